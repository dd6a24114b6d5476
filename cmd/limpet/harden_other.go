//go:build !linux

package main

// harden does nothing here: core files are off by default, or Windows has none.
func harden() {}
