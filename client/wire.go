package client

import "github.com/limpet-auth/limpet/proof/hwsign"

// Wire is the protocol in which a client makes its proofs.
type Wire uint8

const (
	// HTTPSig is Limpet's own wire: HTTP message signatures (RFC 9421) over
	// method, target, body and session, see package proof/httpsig.
	HTTPSig Wire = iota

	// HWSign is the hw-sign wire in the ecdh-p256 dialect, with header names
	// that begin with X-Rpc-Sec-Bound-Token-.
	HWSign

	// HWSignDBCS is HWSign as older servers want it: names begin with
	// X-Rpc-Sec-Dbcs-.
	HWSignDBCS
)

// String returns the wire's name as saved sessions have it.
func (w Wire) String() string {
	switch w {
	case HTTPSig:
		return "httpsig"
	case HWSign:
		return "hwsign"
	case HWSignDBCS:
		return "hwsign-dbcs"
	}
	return "unknown"
}

// names returns the header names of the hw-sign wires, nil for HTTPSig.
func (w Wire) names() *hwsign.Names {
	switch w {
	case HWSign:
		return &hwsign.BoundToken
	case HWSignDBCS:
		return &hwsign.DBCS
	}
	return nil
}

// savedWire returns the wire of a saved session. Sessions from before there was
// a choice do not name it: they are on a hw-sign wire.
func (c *Client) savedWire(name string) (w Wire, ok bool) {
	for _, w := range []Wire{HTTPSig, HWSign, HWSignDBCS} {
		if w.String() == name {
			return w, true
		}
	}
	if c.Wire != HTTPSig {
		return c.Wire, name == ""
	}
	return HWSign, name == ""
}
