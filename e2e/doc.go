// Package e2e tests the limpet command from outside: the real process, real
// HTTP, the command as its user calls it, and a peer of its own that speaks the
// hw-sign wire and shares no code with the client and proof packages. What a default server cannot show (short
// leases, other policies, a failing store) is tested on a guard in process.
package e2e
