package httpsig

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"strconv"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// maxTime bounds every time on the wire, in Unix seconds: the end of the year
// 9999.
const maxTime = 253402300799

// maxLease bounds a lease that a server announces, in seconds: ten years.
const maxLease = 10 * 365 * 24 * 60 * 60

// strict is base64 in the one form that each value has.
var strict = base64.StdEncoding.Strict()

// FormatDigest returns the value of Content-Digest for a body with the SHA-256
// sum (RFC 9530, 2).
func FormatDigest(sum [sha256.Size]byte) string { return "sha-256=" + formatBytes(sum[:]) }

// FormatSession returns the value of Limpet-Session: id is the SHA-256 of the
// session token.
func FormatSession(id [sha256.Size]byte) string { return formatBytes(id[:]) }

// FormatDevice returns the value of Limpet-Device: the key's SPKI DER, what it
// is used with if the key does not tell, and what the client says keeps it,
// [proof.Hardware] or else software. An agreement key is an error: it cannot
// sign.
func FormatDevice(key *proof.PublicKey, level proof.Level) (string, error) {
	if key.Algorithm() == proof.HMACSHA256 {
		return "", errors.New("limpet: httpsig: an agreement key is no device key")
	}
	der, err := key.SPKI()
	if err != nil {
		return "", err
	}
	s := formatBytes(der)
	switch alg := key.Algorithm(); alg {
	case proof.RSAPSS:
		s += ";alg=" + rsaPSS
	case proof.RSAPSSSHA512, proof.RSAPKCS1:
		s += ";alg=" + nameOf(alg)
	}
	if level == proof.Hardware {
		return s + ";level=hardware", nil
	}
	return s + ";level=software", nil
}

// rsaPSS names PSS with SHA-256 in Limpet-Device. The registry of signature
// algorithms has no name for it.
const rsaPSS = "rsa-pss-sha256"

// parseDevice reads what FormatDevice writes.
func parseDevice(field string) (*proof.PublicKey, proof.Level, error) {
	der, params, ok := parseBytes(field)
	if !ok {
		return nil, "", malformed("Limpet-Device is no byte sequence")
	}
	var alg string
	level := proof.Software // a client that does not say is not taken for hardware
	for _, p := range params {
		switch {
		case p.key == "alg" && p.kind == token && alg == "":
			alg = p.raw
		case p.key == "level" && p.kind == token:
			if p.raw == string(proof.Hardware) {
				level = proof.Hardware
			}
		default:
			return nil, "", malformed("a parameter of Limpet-Device that is not known here, or occurs twice")
		}
	}
	if len(der) > maxKey {
		return nil, "", malformed("device key over 1 KiB")
	}
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, "", malformed("device key that is no SubjectPublicKeyInfo") // err may repeat parts of it
	}
	use := algorithmOf(alg)
	switch pub.(type) {
	case ed25519.PublicKey:
		if alg == "" {
			use = proof.Ed25519
		}
	case *ecdsa.PublicKey:
		if alg == "" {
			use = proof.ECDSAP256
		}
	case *rsa.PublicKey:
		if alg == rsaPSS {
			use = proof.RSAPSS
		}
	}
	if use == 0 || use == proof.HMACSHA256 {
		return nil, "", malformed("device key of an unknown or unfit algorithm")
	}
	key, err := proof.NewPublicKey(use, pub)
	if err != nil {
		return nil, "", &proof.Refusal{Reason: proof.Malformed, Detail: "device key", Err: err}
	}
	return key, level, nil
}

// FormatServer returns the value of Limpet-Key: the server's key, which must
// not be nil, the end of its agreements in Unix seconds, the longest lease in
// seconds and, in the answer to a login, the session's ID. The text has no
// double quotes and no backslash in it.
func FormatServer(s *proof.Server, session *[sha256.Size]byte) string {
	field := formatBytes(s.Key.Bytes()) +
		";exp=" + strconv.FormatInt(s.KeyExpires.Unix(), 10) +
		";lease=" + strconv.FormatInt(int64(s.Lease/time.Second), 10)
	if session != nil {
		field += ";session=" + formatBytes(session[:])
	}
	return field
}

// ParseServer reads what [FormatServer] writes; session is nil if the text has
// none. Parameters that it does not know are ignored. The error does not repeat
// the text.
func ParseServer(text string) (s *proof.Server, session *[sha256.Size]byte, err error) {
	point, params, ok := parseBytes(text)
	if !ok || len(text) > maxField {
		return nil, nil, errServer
	}
	key, err := proof.ParsePublicKey(proof.HMACSHA256, point)
	if err != nil {
		return nil, nil, err
	}
	s = &proof.Server{Key: key}
	for _, p := range params {
		switch p.key {
		case "exp":
			n, ok := p.number(maxTime)
			if !ok || !s.KeyExpires.IsZero() {
				return nil, nil, errServer
			}
			s.KeyExpires = time.Unix(n, 0)
		case "lease":
			n, ok := p.number(maxLease)
			if !ok || s.Lease != 0 {
				return nil, nil, errServer
			}
			s.Lease = time.Duration(n) * time.Second
		case "session":
			b, ok := p.bytes()
			if !ok || len(b) != sha256.Size || session != nil {
				return nil, nil, errServer
			}
			session = (*[sha256.Size]byte)(b)
		}
	}
	if s.KeyExpires.IsZero() || s.Lease == 0 {
		return nil, nil, errServer
	}
	return s, session, nil
}

var errServer = errors.New("limpet: httpsig: the server's description of itself cannot be read")

// formatBytes returns b as a byte sequence (RFC 9651, 4.1.8).
func formatBytes(b []byte) string { return ":" + strict.EncodeToString(b) + ":" }

// attribute is a parameter of an item.
type attribute struct {
	key string
	item
}

// maxAttributes bounds the parameters of a field that is an item.
const maxAttributes = 16

// parseBytes reads a field that is a byte sequence with parameters.
func parseBytes(field string) (b []byte, params []attribute, ok bool) {
	s := scanner{s: field}
	s.spaces()
	v, ok := s.item()
	if !ok {
		return nil, nil, false
	}
	if b, ok = v.bytes(); !ok {
		return nil, nil, false
	}
	for {
		key, v, done, ok := s.param()
		if !ok || len(params) == maxAttributes {
			return nil, nil, false
		}
		if done {
			break
		}
		params = append(params, attribute{key, v})
	}
	s.spaces()
	return b, params, s.end()
}

// bytes returns the value of a byte sequence.
func (v item) bytes() ([]byte, bool) {
	if v.kind != octets {
		return nil, false
	}
	b, err := strict.DecodeString(v.raw)
	return b, err == nil
}

// number returns the value of an integer from 1 to most.
func (v item) number(most int64) (int64, bool) {
	if v.kind != integer {
		return 0, false
	}
	n, err := strconv.ParseInt(v.raw, 10, 64)
	return n, err == nil && 1 <= n && n <= most
}
