// Package jose reads and makes the JWTs that carry their key or name their
// challenge: what DPoP (RFC 9449) and device bound session credentials have in
// common. It reads strictly: of each JWT there is one text.
package jose

import (
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"
	"unicode/utf8"

	"github.com/limpet-auth/limpet/proof"
)

// maxMembers bounds the members of a JSON object: a proof has three in its
// header, and six claims.
const maxMembers = 32

// Base64 has no padding, and of the last character's spare bits admits only
// zeros (RFC 4648, 3.5).
var Base64 = base64.RawURLEncoding.Strict()

// decode returns the bytes that text stands for, of which there is one text.
func decode(text string) (b []byte, ok bool) {
	if strings.IndexByte(text, '\n') >= 0 || strings.IndexByte(text, '\r') >= 0 { // which encoding/base64 skips
		return nil, false
	}
	b, err := Base64.DecodeString(text)
	return b, err == nil
}

// Split takes a JWS in the compact serialization apart (RFC 7515, 7.1), into p and
// the two objects. An error is a *[proof.Refusal].
func Split(jwt string, p *proof.Proof, header, claims *Object) error {
	first := strings.IndexByte(jwt, '.')
	last := strings.LastIndexByte(jwt, '.')
	if first == last || strings.IndexByte(jwt[first+1:last], '.') >= 0 {
		return malformed("not a JWS of three parts")
	}
	if err := decodeObject(jwt[:first], header); err != nil {
		return err
	}
	if err := decodeObject(jwt[first+1:last], claims); err != nil {
		return err
	}
	sig, ok := decode(jwt[last+1:])
	if !ok || len(sig) == 0 {
		return malformed("a signature that is not base64url")
	}
	p.Signature = append(p.Signature[:0], sig...)
	p.Signed = append(p.Signed[:0], jwt[:last]...)
	return nil
}

func decodeObject(text string, o *Object) error {
	b, ok := decode(text)
	if !ok {
		return malformed("a part that is not base64url")
	}
	if !utf8.Valid(b) || !json.Valid(b) {
		return malformed("a part that is not JSON")
	}
	if !o.Read(string(b)) {
		return malformed("a part that is no object, or an ambiguous one")
	}
	return nil
}

// Object is a JSON object. Names are compared as they are, and none occurs
// twice: two parsers could else see two proofs in one (RFC 8259, 4).
type Object struct {
	n      int
	names  [maxMembers]string
	values [maxMembers]string // JSON, as written
}

// Read takes text apart, which is one value of valid JSON or empty. It reports
// whether that is an object with few members, of different names.
func (o *Object) Read(text string) bool {
	rest, ok := strings.CutPrefix(skipSpace(text), "{")
	if !ok {
		return false
	}
	for rest = skipSpace(rest); rest[0] != '}'; rest = skipSpace(rest) {
		if rest[0] == ',' {
			rest = skipSpace(rest[1:])
		}
		var name, val string
		name, rest = cutValue(rest)
		val, rest = cutValue(skipSpace(skipSpace(rest)[1:])) // after the colon
		if name, ok = unquote(name); !ok || o.n == maxMembers || o.Has(name) {
			return false
		}
		o.names[o.n], o.values[o.n] = name, val
		o.n++
	}
	return true
}

// Raw returns the JSON of a member's value.
func (o *Object) Raw(name string) (string, bool) {
	for i := range o.n {
		if o.names[i] == name {
			return o.values[i], true
		}
	}
	return "", false
}

// Has reports whether there is a member with this name.
func (o *Object) Has(name string) bool {
	_, ok := o.Raw(name)
	return ok
}

// Text returns the value of a member that is a string.
func (o *Object) Text(name string) (string, bool) {
	raw, _ := o.Raw(name)
	return unquote(raw)
}

// unquote returns the string that valid JSON stands for.
func unquote(raw string) (string, bool) {
	if raw == "" || raw[0] != '"' {
		return "", false
	}
	if strings.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1], true
	}
	var s string
	err := json.Unmarshal([]byte(raw), &s)
	return s, err == nil
}

// cutValue cuts the value off the front of valid JSON.
func cutValue(text string) (val, rest string) {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			for i++; text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
			if depth == 0 {
				return text[:i+1], text[i+1:]
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth < 0 { // the end of what a number or literal is in
				return text[:i], text[i:]
			}
			if depth == 0 {
				return text[:i+1], text[i+1:]
			}
		case ',', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return text[:i], text[i:]
			}
		}
	}
	return text, ""
}

func skipSpace(text string) string {
	for text != "" && (text[0] == ' ' || text[0] == '\t' || text[0] == '\n' || text[0] == '\r') {
		text = text[1:]
	}
	return text
}

// Algorithm reads a JOSE header as far as it says what the JWT is: of type typ,
// signed by one of these algorithms, which have their JWS names. An error is a
// *[proof.Refusal].
func Algorithm(header *Object, typ string, admitted map[string]proof.Algorithm) (proof.Algorithm, error) {
	if got, ok := header.Text("typ"); !ok || got != typ {
		return 0, malformed("a JWT of another type")
	}
	// No extension is understood here (RFC 7515, 4.1.11), and none may change
	// what is signed (RFC 7797).
	if header.Has("crit") || header.Has("b64") {
		return 0, malformed("a JOSE header with an extension")
	}
	name, _ := header.Text("alg")
	alg, ok := admitted[name]
	if !ok {
		return 0, malformed("an algorithm that is not admitted")
	}
	return alg, nil
}

// Key reads the key that a JOSE header carries, for use with alg. An error is a
// *[proof.Refusal].
func Key(header *Object, alg proof.Algorithm) (*proof.PublicKey, error) {
	raw, _ := header.Raw("jwk")
	var jwk Object
	if !jwk.Read(raw) {
		return nil, malformed("no JWK, or an ambiguous one")
	}
	return publicKey(alg, &jwk)
}

// publicKey reads a JWK (RFC 7517; RFC 7518, 6; RFC 8037, 2) for use with alg.
func publicKey(alg proof.Algorithm, jwk *Object) (*proof.PublicKey, error) {
	for _, private := range [...]string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"} {
		if jwk.Has(private) {
			return nil, malformed("a JWK with a private key")
		}
	}
	var key *proof.PublicKey
	var err error
	switch kty, _ := jwk.Text("kty"); {
	case alg == proof.ECDSAP256 && kty == "EC":
		var point [65]byte
		point[0] = 4 // uncompressed (SEC 1, 2.3.3)
		if crv, _ := jwk.Text("crv"); crv != "P-256" || !jwk.octets("x", point[1:33]) || !jwk.octets("y", point[33:]) {
			return nil, malformed("a JWK that is no P-256 key")
		}
		key, err = proof.ParsePublicKey(alg, point[:])
	case alg == proof.Ed25519 && kty == "OKP":
		var x [32]byte
		if crv, _ := jwk.Text("crv"); crv != "Ed25519" || !jwk.octets("x", x[:]) {
			return nil, malformed("a JWK that is no Ed25519 key")
		}
		key, err = proof.ParsePublicKey(alg, x[:])
	case (alg == proof.RSAPKCS1 || alg == proof.RSAPSS) && kty == "RSA":
		n, e := jwk.integer("n", 4096/8), jwk.integer("e", 4)
		if n == nil || e == nil {
			return nil, malformed("a JWK that is no RSA key")
		}
		key, err = proof.NewPublicKey(alg, &rsa.PublicKey{N: n, E: int(e.Int64())})
	default:
		return nil, malformed("a JWK of another kind than the algorithm's")
	}
	if err != nil {
		return nil, &proof.Refusal{Reason: proof.Malformed, Detail: "JWK", Err: err}
	}
	return key, nil
}

// octets decodes a member of exactly len(dst) bytes.
func (o *Object) octets(name string, dst []byte) bool {
	text, _ := o.Text(name)
	b, ok := decode(text)
	return ok && len(b) == len(dst) && copy(dst, b) == len(b)
}

// integer decodes a positive Base64urlUInt (RFC 7518, 2) of at most size bytes.
// It is nil if there is none.
func (o *Object) integer(name string, size int) *big.Int {
	text, _ := o.Text(name)
	b, ok := decode(text)
	if !ok || len(b) == 0 || len(b) > size || b[0] == 0 { // no more octets than it needs
		return nil
	}
	return new(big.Int).SetBytes(b)
}

func malformed(detail string) error {
	return &proof.Refusal{Reason: proof.Malformed, Detail: detail}
}
