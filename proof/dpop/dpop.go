// Package dpop reads and makes DPoP proofs (RFC 9449): a JWT in the header DPoP,
// signed by the key that it brings along. Here that key is the device key of the
// session, and the access token is the session's token.
//
// The proof covers the request's method, its URI without the query, the token,
// and the server's nonce where a route wants one. It covers no body, so a route
// that demands one, [proof.BodyHash], refuses every DPoP proof. The claims exp
// and nbf, which RFC 9449 does not define for proofs, are ignored: how long a
// proof holds is for the server to say.
package dpop

import (
	"crypto/sha256"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/internal/jose"
)

// Header names, in the canonical form of net/http.
const (
	Header      = "Dpop"       // a proof, in a request
	NonceHeader = "Dpop-Nonce" // the value of the next proof's nonce claim, in an answer
)

// Scheme is the authentication scheme of DPoP (RFC 9449, 7.1).
const Scheme = "DPoP"

// Algorithms lists the JWS algorithms of admitted proofs, as in the parameter
// algs of a challenge. Ed25519 is RFC 9864's name for what EdDSA means here.
const Algorithms = "ES256 EdDSA Ed25519 RS256 PS256"

var algorithms = map[string]proof.Algorithm{
	"ES256":   proof.ECDSAP256,
	"EdDSA":   proof.Ed25519,
	"Ed25519": proof.Ed25519,
	"RS256":   proof.RSAPKCS1,
	"PS256":   proof.RSAPSS,
}

// Bounds of what a peer sends.
const (
	maxProof = 8 << 10 // bytes of a proof
	minJTI   = 8       // bytes of a jti: RFC 9449 wants 96 random bits, and some clients count
	maxJTI   = 256

	maxTime = 253402300799 // the last second of the year 9999, so that no time wraps to zero
)

// Wire is the DPoP wire.
type Wire struct{}

// Offer reads the device key from the proof that a login request carries. That
// may already name an access token, as of the session before; it is not looked
// at. A client cannot say what keeps its key, so the level is Software.
func (Wire) Offer(m *proof.Message) (*proof.Offer, error) {
	p := new(proof.Proof)
	found, err := extract(m, p, "")
	if !found || err != nil {
		return nil, err
	}
	return &proof.Offer{Key: p.Key, Level: proof.Software, Proof: p}, nil
}

// Extract reads the proof and makes the checks of RFC 9449, 4.3 that need
// neither clock nor memory nor the session's key. The session token must come in
// a cookie or under the scheme DPoP: beside a Bearer token a proof is refused, so
// that nobody learns to send bound tokens where none is asked for (7.2).
func (Wire) Extract(m *proof.Message, p *proof.Proof) (found bool, err error) {
	if len(m.Header[Header]) == 0 {
		return false, nil
	}
	if !m.InCookie && !underScheme(m.Header) {
		return false, invalid("a proof without the one session token under the scheme DPoP")
	}
	return extract(m, p, jose.Base64.EncodeToString(m.Session[:]))
}

// extract reads the proof into p. ath is the claim it must have; "" for any.
func extract(m *proof.Message, p *proof.Proof, ath string) (found bool, err error) {
	lines := m.Header[Header]
	switch {
	case len(lines) == 0:
		return false, nil
	case len(lines) > 1:
		return false, malformed("a header that occurs twice")
	case len(lines[0]) > maxProof:
		return false, &proof.Refusal{Reason: proof.TooLarge, Detail: "a proof over 8 KiB"}
	}
	var header, claims jose.Object
	if err := jose.Split(lines[0], p, &header, &claims); err != nil {
		return false, err
	}
	if err := readKey(&header, p); err != nil {
		return false, err
	}
	return true, readClaims(m, &claims, p, ath)
}

// readKey reads the JOSE header (RFC 9449, 4.2).
func readKey(header *jose.Object, p *proof.Proof) error {
	alg, err := jose.Algorithm(header, "dpop+jwt", algorithms)
	if err != nil {
		return err
	}
	p.Algorithm = alg
	p.Key, err = jose.Key(header, alg)
	return err
}

func readClaims(m *proof.Message, claims *jose.Object, p *proof.Proof, ath string) error {
	jti, ok := claims.Text("jti")
	if !ok || len(jti) < minJTI || len(jti) > maxJTI {
		return malformed("a jti of less than 8 or more than 256 bytes, or none")
	}
	if htm, ok := claims.Text("htm"); !ok {
		return malformed("no htm")
	} else if htm != m.Method {
		return invalid("the proof is for another method")
	}
	if htu, ok := claims.Text("htu"); !ok {
		return malformed("no htu")
	} else if !sameURI(m, htu) {
		return invalid("the proof is for another URI")
	}
	iat, _ := claims.Raw("iat")
	seconds, ok := numericDate(iat)
	if !ok {
		return malformed("an iat that is no time, or none")
	}
	if ath != "" {
		if got, ok := claims.Text("ath"); !ok {
			return malformed("no ath")
		} else if got != ath {
			return invalid("the proof is for another access token")
		}
	}
	if claims.Has("nonce") {
		if p.Challenge, ok = claims.Text("nonce"); !ok {
			return malformed("a nonce that is no string")
		}
	}
	p.Time = time.Unix(seconds, 0)
	p.Nonce = []byte(jti)
	p.Random = len(jti)
	return nil
}

// numericDate reads a NumericDate (RFC 7519, 2), rounded down to the second.
func numericDate(text string) (seconds int64, ok bool) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return n, 0 <= n && n <= maxTime
	}
	if text == "" || text[0] != '-' && (text[0] < '0' || text[0] > '9') {
		return 0, false // JSON, but no number
	}
	f, err := strconv.ParseFloat(text, 64)
	f = math.Floor(f)
	if err != nil || f < 0 || f > maxTime {
		return 0, false
	}
	return int64(f), true
}

// underScheme reports whether the request has one Authorization header, with the
// scheme DPoP.
func underScheme(h map[string][]string) bool {
	v := h["Authorization"]
	return len(v) == 1 && len(v[0]) > len(Scheme) && v[0][len(Scheme)] == ' ' && strings.EqualFold(v[0][:len(Scheme)], Scheme)
}

// Bound adds nothing: the wire has no word for it.
func (Wire) Bound(map[string][]string, [sha256.Size]byte, *proof.Server) {}

// Admitted tells the client the nonce of its next proof (RFC 9449, 8.2).
func (Wire) Admitted(_ *proof.Message, response map[string][]string, _ *proof.Introduced, challenge string) {
	if challenge != "" {
		response[NonceHeader] = []string{challenge}
	}
}

// Refused adds a challenge (RFC 9449, 7.1) to the answer of a client that speaks
// DPoP, and the nonce if that was what the proof lacked (9).
func (Wire) Refused(m *proof.Message, response map[string][]string, reason proof.Reason, s *proof.Server) {
	if len(m.Header[Header]) == 0 && !underScheme(m.Header) {
		return
	}
	challenge := Scheme + ` `
	switch reason {
	case proof.Required:
	case proof.Stale:
		challenge += `error="use_dpop_nonce", `
		if s != nil && s.Challenge != "" {
			response[NonceHeader] = []string{s.Challenge}
		}
	case proof.SessionRequired, proof.SessionUnbound, proof.SessionEnded, proof.LevelTooLow:
		challenge += `error="invalid_token", ` // no other proof would do better
	default:
		challenge += `error="invalid_dpop_proof", `
	}
	response["Www-Authenticate"] = append(response["Www-Authenticate"], challenge+`algs="`+Algorithms+`"`)
}

func malformed(detail string) error {
	return &proof.Refusal{Reason: proof.Malformed, Detail: detail}
}

func invalid(detail string) error {
	return &proof.Refusal{Reason: proof.Invalid, Detail: detail}
}
