//go:build !linux

package main

import "net"

// There is no systemd here.

func inherited(...string) (map[string][]net.Listener, error) { return nil, nil }

func ready(string) {}
func reloading()   {}
func stopping()    {}
