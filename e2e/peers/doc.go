// Package peers tests the wires against programs that others wrote: packages for
// HTTP message signatures, DPoP and OAuth that run on Node.js. They are clients of
// a real guard and servers of our clients, over real connections.
//
// The programs, one for signatures and one for OAuth, answer lines of JSON. Their
// packages have the versions of package-lock.json; the tests install them.
package peers
