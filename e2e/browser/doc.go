// Package browser tests what browsers see of Limpet in a real one: Chromium,
// driven by scripts of this folder that Go tests start beside the real servers.
//
// A script is a whole scenario: it ends with status 0 if all of it held. The
// packages have the versions of package-lock.json; the tests install them.
// Screenshots are artifacts of their test: go test -artifacts keeps them.
package browser
