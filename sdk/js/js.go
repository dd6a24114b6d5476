// Package js holds the SDK for browsers as it is built from src, for servers
// that hand it out: one ES module, and one service worker.
package js

import _ "embed"

// Source is dist/limpet.js, an ES module: what the npm package @limpet/browser
// has. It must not be modified.
//
//go:embed dist/limpet.js
var Source []byte

// Worker is dist/worker.js, a classic script for a service worker. It must not be
// modified.
//
//go:embed dist/worker.js
var Worker []byte
