// Package httpsig is Limpet's own wire: HTTP message signatures (RFC 9421)
// over method, authority, path, query, body and session, for both ends.
//
// A login brings the device key (Limpet-Device) and is signed by it. A request
// is signed by the ephemeral key, which the first ones introduce
// (Limpet-Delegation). The body is covered by its digest (RFC 9530). All of a
// message's signatures that are not tagged "limpet" are other people's, and
// ignored. Fields are structured fields (RFC 9651), read strictly.
package httpsig

import (
	"crypto/sha256"
	"encoding/base64"

	"github.com/limpet-auth/limpet/proof"
)

// Names of header fields, in the canonical form of net/http.
const (
	DeviceField     = "Limpet-Device"     // login: the device key
	DelegationField = "Limpet-Delegation" // first requests with an ephemeral key: the delegation
	SessionField    = "Limpet-Session"    // request: the session's ID, where the session is a cookie
	ChallengeField  = "Limpet-Challenge"  // request: the challenge that is covered; response: the current one
	ChannelField    = "Limpet-Channel"    // request: "tls-exporter" if it is made with the key of its TLS connection
	KeyField        = "Limpet-Key"        // response to a login: what the server says of itself
	DigestField     = "Content-Digest"    // RFC 9530, 2
)

// Words of the wire.
const (
	Tag           = "limpet"                      // of our signatures, see RFC 9421, 2.3
	Channel       = "tls-exporter"                // the one value of ChannelField
	ExporterLabel = "EXPORTER-limpet-request-key" // of the 32 bytes for proof.MACKey.OnChannel, without context (RFC 5705)
	WellKnownPath = "/.well-known/limpet"         // where a server says of itself what KeyField says
)

// emptySum is the SHA-256 of no bytes.
var emptySum = sha256.Sum256(nil)

// Wire is the httpsig wire on the side that checks.
type Wire struct{}

// Offer reads Limpet-Device and the signature by that key, which must cover
// @method, @authority, @path, @query, limpet-device and, if there is a body or
// its digest, content-digest.
func (Wire) Offer(m *proof.Message) (*proof.Offer, error) {
	field, err := value(m.Header, DeviceField)
	if field == "" || err != nil {
		return nil, err
	}
	key, level, err := parseDevice(field)
	if err != nil {
		return nil, err
	}
	var in input
	p := new(proof.Proof)
	found, err := read(m, p, &in)
	switch {
	case err != nil:
		return nil, err
	case !found:
		return nil, malformed("a device key without its signature")
	case in.covers&deviceField == 0:
		return nil, malformed("the signature does not cover the device key")
	}
	if sum := key.Thumbprint(); p.KeyID != base64.RawURLEncoding.EncodeToString(sum[:]) {
		return nil, malformed("the signature is by another key than the one offered")
	}
	// PSS with SHA-256, which is all that some TPMs do, has no name to say.
	if p.Algorithm != key.Algorithm() && !(in.alg == "" && key.Algorithm() == proof.RSAPSS) {
		return nil, malformed("the signature is of another algorithm than its key")
	}
	p.Algorithm = key.Algorithm()
	return &proof.Offer{Key: key, Level: level, Proof: p}, nil
}

// Extract reads the signature tagged "limpet". It must cover @method,
// @authority, @path, @query, the session credential (authorization, or
// limpet-session of a session in a cookie), content-digest if there is a body
// or its digest, and those of limpet-session, limpet-challenge and
// limpet-channel that the request has. It may cover more. A delegation needs no
// cover: it is signed by itself, and for one key.
func (Wire) Extract(m *proof.Message, p *proof.Proof) (found bool, err error) {
	if !present(m, "Signature-Input") && !present(m, DelegationField) {
		return false, nil // before room is made for it
	}
	return extract(m, p)
}

func extract(m *proof.Message, p *proof.Proof) (found bool, err error) {
	in := inputs.Get().(*input)
	defer in.release()
	if found, err = read(m, p, in); err != nil {
		return false, err
	}
	delegation, err := value(m.Header, DelegationField)
	if err != nil {
		return false, err
	}
	if !found {
		if delegation != "" {
			return false, malformed("a delegation without a signature by its key")
		}
		return false, nil
	}
	session, err := value(m.Header, SessionField)
	if err != nil {
		return false, err
	}
	switch {
	case p.Algorithm == 0:
		return false, malformed("the signature does not say its algorithm")
	case !m.InCookie && in.covers&credential == 0:
		return false, malformed("the signature does not cover the session token")
	case m.InCookie && session == "", session != "" && in.covers&sessionField == 0:
		return false, malformed("the signature does not cover the session's ID")
	case session != "" && !names(session, m.Session):
		return false, &proof.Refusal{Reason: proof.Invalid, Detail: "the proof is for another session"}
	}
	if delegation != "" {
		if p.Delegation, err = parseDelegation(delegation); err != nil {
			return false, err
		}
	}
	return true, nil
}

// names reports whether a Limpet-Session is the session's ID, in the one form
// that FormatSession writes.
func names(field string, session [sha256.Size]byte) bool {
	var own [1 + 44 + 1]byte
	own[0], own[len(own)-1] = ':', ':'
	strict.Encode(own[1:], session[:])
	return field == string(own[:])
}

// Bound tells the client the server's key and the session's ID. A server without
// a key says nothing.
func (Wire) Bound(response map[string][]string, session [sha256.Size]byte, s *proof.Server) {
	if s.Key != nil {
		response[KeyField] = []string{FormatServer(s, &session)}
	}
}

// Admitted tells the client the current challenge.
func (Wire) Admitted(_ *proof.Message, response map[string][]string, _ *proof.Introduced, challenge string) {
	if challenge != "" {
		response[ChallengeField] = []string{challenge}
	}
}

// Refused adds a challenge of the scheme "Limpet" (RFC 9110, 11.6.1): the
// reason, and with it what the next proof needs: the server's key, the current
// challenge.
func (Wire) Refused(_ *proof.Message, response map[string][]string, reason proof.Reason, s *proof.Server) {
	text := `Limpet error="` + string(reason) + `"`
	begin := reason == proof.KeyUnknown || reason == proof.Required // the client must make a key, or a first proof
	if begin && s.Key != nil {
		text += `, key="` + FormatServer(s, nil) + `"`
	}
	if (begin || reason == proof.Stale) && s.Challenge != "" {
		text += `, challenge="` + s.Challenge + `"`
	}
	response["Www-Authenticate"] = append(response["Www-Authenticate"], text)
	if s.Challenge != "" {
		response[ChallengeField] = []string{s.Challenge}
	}
}

func present(m *proof.Message, name string) bool { return len(m.Header[name]) > 0 }

// value returns the one line of a field, without the white space around it; "" if
// it is absent or empty.
func value(h map[string][]string, name string) (string, error) {
	switch v := h[name]; {
	case len(v) == 0:
		return "", nil
	case len(v) > 1:
		return "", twice()
	case len(v[0]) > maxField:
		return "", tooLarge()
	default:
		return trim(v[0]), nil
	}
}

func malformed(detail string) error {
	return &proof.Refusal{Reason: proof.Malformed, Detail: detail}
}

func twice() error { return malformed("a field that occurs twice") }

func tooLarge() error {
	return &proof.Refusal{Reason: proof.TooLarge, Detail: "a field over 8 KiB"}
}
