// Package uhid makes a FIDO token's device on Linux: /dev/uhid, which gives programs
// of this machine a hidraw device as if a token were plugged in.
package uhid
