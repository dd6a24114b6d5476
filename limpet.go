// Package limpet binds login sessions to keys that cannot leave a device: a
// copied session token is worthless elsewhere.
//
// A [Guard] stands in front of an app's handlers. At login the app calls
// [Guard.Bind] with the token it made; the guard records which device key the
// session belongs to. From then on [Guard.Protect] admits a request with that
// token only if it proves possession of the key: it carries a fresh signature
// by a short-lived ephemeral key that the device key delegated to.
//
// How the app logs people in, and whether it keeps cookies or bearer tokens,
// is its own affair.
package limpet
