package proof

import (
	"crypto/sha256"
	"time"
)

// Confirmation is what an access token is bound to (RFC 7800). A token that is
// bound to both a key and a certificate wants proof of both; one that is bound to
// neither is a bearer token.
type Confirmation struct {
	User        string             // sub
	Thumbprint  *[sha256.Size]byte // cnf.jkt, RFC 9449 6.1; nil if none
	Certificate *[sha256.Size]byte // cnf.x5t#S256, RFC 8705 3.1; nil if none
	Expires     time.Time          // when the token, or what is known of it, ends; the clocks' skew comes on top
}
