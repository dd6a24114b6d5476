// Package limpettest holds what Limpet's tests share with the tests of those
// who extend it: suites that say whether a store or a keystore behaves as its
// interface promises, and stand-ins for hardware.
package limpettest
