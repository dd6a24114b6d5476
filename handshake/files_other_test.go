//go:build !unix

package handshake

func maxFiles() int { return 0 }
