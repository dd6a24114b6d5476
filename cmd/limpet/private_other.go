//go:build !unix

package main

import (
	"errors"
	"net"
	"os"
)

func listenPrivate(string) (net.Listener, error) {
	return nil, errors.New("not available on this system")
}

func listenPublic(path string) (net.Listener, error) { return listenPrivate(path) }

var hangup os.Signal // there is none
