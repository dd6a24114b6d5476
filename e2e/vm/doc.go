// Package vm tests what needs a kernel of its own: limpet fido as the package
// installs it, with a real /dev/uhid, udev, systemd, a TPM at /dev/tpmrm0, and
// the programs that people use security keys with.
//
// The host's part boots a virtual machine, without KVM, and reads what comes out
// of it. The machine's files are those of the host, read-only, below what
// packages and the test lay over them. The guest's part are Go tests too, of the
// build tag guest. What takes long, Chromium, has the build tag browser.
package vm
