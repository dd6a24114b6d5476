package channel

import (
	"encoding/base64"
	"errors"
	"strings"
)

// A token of form Token is "limpet1.", the client's name and the tag, the last
// two in base64url: 32 bytes of a tag or 64 of a signature.
const tokenPrefix = "limpet1."

// credential is what a request carries in the profile Limpet, taken apart and
// believed in nothing.
type credential struct {
	form   Form
	id     string
	tag    []byte // of form Token
	signed bool   // by a key pair
	text   string
}

var (
	base64URL     = base64.RawURLEncoding.Strict()
	errCredential = errors.New("a token that cannot be read")
)

// formatToken writes a token of form Token.
func formatToken(id string, tag []byte) string {
	return tokenPrefix + base64URL.EncodeToString([]byte(id)) + "." + base64URL.EncodeToString(tag)
}

func parseCredential(text string) (*credential, error) {
	if len(text) > maxCredential {
		return nil, errors.New("a token over 4 KiB")
	}
	if strings.ContainsAny(text, "\r\n") {
		return nil, errCredential
	}
	c := &credential{text: text}
	if rest, ok := strings.CutPrefix(text, tokenPrefix); ok {
		name, tag, _ := strings.Cut(rest, ".")
		id, err := base64URL.DecodeString(name)
		if err != nil {
			return nil, errCredential
		}
		if c.tag, err = base64URL.DecodeString(tag); err != nil {
			return nil, errCredential
		}
		c.id, c.signed = string(id), len(c.tag) == 64
		if len(c.tag) != 32 && !c.signed {
			return nil, errCredential
		}
		return c, nil
	}
	var h header
	var err error
	switch strings.Count(text, ".") {
	case 2:
		c.form = JWT
		h, err = readHeader(text, "alg", "kid", "typ")
		c.signed = h.alg == "ES256"
	case 4:
		c.form = JWE
		h, err = readHeader(text, "alg", "enc", "kid", "typ", "cty")
		if err == nil && (h.alg != "dir" || h.enc != "A256GCM" || h.cty != "JWT") {
			err = errors.New("a JWE of another kind")
		}
	default:
		err = errCredential
	}
	if err != nil {
		return nil, err
	}
	if h.typ != jwtType || h.alg != "HS256" && h.alg != "ES256" && h.alg != "dir" {
		return nil, errors.New("a JWT of another kind")
	}
	c.id = h.kid
	return c, nil
}

// equal compares in constant time, but for the length. Eight bytes at a time: a
// JWT is compared with each request.
func equal(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	var diff uint64
	i := 0
	for ; i+8 <= len(a); i += 8 {
		diff |= word(a[i:i+8]) ^ word(b[i:i+8])
	}
	for ; i < len(a); i++ {
		diff |= uint64(a[i] ^ b[i])
	}
	return diff == 0
}

// word returns 8 bytes as a number; it compiles to one load.
func word(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}
