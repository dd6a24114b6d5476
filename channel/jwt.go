package channel

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/proof"
)

const (
	jwtType = "limpet-channel+jwt" // keeps our JWTs from being taken for others (RFC 8725, 3.11)

	maxJWTLife = time.Hour        // of a JWT that is admitted
	jwtLife    = 5 * time.Minute  // of a JWT that is made
	skew       = 30 * time.Second // that clocks may be apart
	maxJTI     = 64               // characters
)

// claims are those of a JWT. Exported is in those only that are signed with a key
// pair; of others the key is proof of the connection.
type claims struct {
	jwt.Claims
	Exported string `json:"limpet_exporter,omitempty"`
}

// newClaims returns the claims of a JWT that is made now.
func newClaims(id, authority, exported string, now time.Time) *claims {
	return &claims{
		Claims: jwt.Claims{
			Issuer:    id,
			Subject:   id,
			Audience:  jwt.Audience{"https://" + authority},
			IssuedAt:  jwt.NewNumericDate(now),
			NotBefore: jwt.NewNumericDate(now),
			Expiry:    jwt.NewNumericDate(now.Add(jwtLife)),
			ID:        rand.Text(),
		},
		Exported: exported,
	}
}

// check tells what is wrong with the claims of a JWT.
func (c *claims) check(id, authority, exported string, now time.Time) error {
	switch {
	case c.Expiry == nil || c.IssuedAt == nil || c.NotBefore == nil:
		return errors.New("a JWT without exp, nbf or iat")
	case len(c.ID) < 16 || len(c.ID) > maxJTI:
		return fmt.Errorf("a jti of %d characters, want 16 to %d", len(c.ID), maxJTI)
	case c.Expiry.Time().Sub(c.IssuedAt.Time()) > maxJWTLife:
		return fmt.Errorf("a JWT that lives longer than %v", maxJWTLife)
	case exported != "" && !equal(c.Exported, exported):
		return errors.New("the JWT is for another TLS connection")
	}
	return c.ValidateWithLeeway(jwt.Expected{Issuer: id, Subject: id, AnyAudience: jwt.Audience{"https://" + authority}, Time: now}, skew)
}

// signJWT returns a JWT in the compact serialization (RFC 7515, 3.1). key is the
// secret of HS256 or a jose.OpaqueSigner. kid and typ may be empty.
func signJWT(alg jose.SignatureAlgorithm, key any, kid, typ string, claims any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	opts := new(jose.SignerOptions)
	if typ != "" {
		opts.WithType(jose.ContentType(typ))
	}
	if kid != "" {
		opts.WithHeader("kid", kid)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts)
	if err != nil {
		return "", err
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}

// encryptJWT returns a JWT within a JWE (RFC 7519, 5.2; RFC 7516, 3.1).
func encryptJWT(key []byte, kid, typ, inner string) (string, error) {
	opts := new(jose.EncrypterOptions).WithType(jose.ContentType(typ)).WithContentType("JWT")
	encrypter, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.DIRECT, Key: key, KeyID: kid}, opts)
	if err != nil {
		return "", err
	}
	jwe, err := encrypter.Encrypt([]byte(inner))
	if err != nil {
		return "", err
	}
	return jwe.CompactSerialize()
}

// deviceSigner is a device key as go-jose uses it: ES256.
type deviceSigner struct{ key hwkey.Key }

func (d deviceSigner) Public() *jose.JSONWebKey      { return &jose.JSONWebKey{Key: d.key.Public()} } // named by our kid
func (deviceSigner) Algs() []jose.SignatureAlgorithm { return []jose.SignatureAlgorithm{jose.ES256} }
func (d deviceSigner) SignPayload(payload []byte, _ jose.SignatureAlgorithm) ([]byte, error) {
	return signP256(d.key, payload)
}

// header is the protected header of a JWS or JWE.
type header struct{ alg, enc, kid, typ, cty string }

// readHeader reads the protected header that text begins with. Members that are
// not known are refused, whether critical or not: nobody who speaks this
// protocol sends them, and some change what a JWT means (zip, jwk, jku, b64).
func readHeader(text string, known ...string) (h header, err error) {
	part, _, _ := strings.Cut(text, ".")
	b, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return h, errors.New("a header that is not base64url")
	}
	var members map[string]any
	if err := json.Unmarshal(b, &members); err != nil { // which refuses duplicates
		return h, errors.New("a header that is no JSON object, or an ambiguous one")
	}
	for name, value := range members {
		s, ok := value.(string)
		if !ok || !slices.Contains(known, name) {
			return h, errors.New("a header with other members than the protocol has")
		}
		switch name {
		case "alg":
			h.alg = s
		case "enc":
			h.enc = s
		case "kid":
			h.kid = s
		case "typ":
			h.typ = s
		case "cty":
			h.cty = s
		}
	}
	return h, nil
}

// verifyJWT returns the payload of a JWS that the key signed with this algorithm
// and no other. key is a secret or an *ecdsa.PublicKey.
func verifyJWT(text string, alg jose.SignatureAlgorithm, key any) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{alg})
	if err != nil {
		return nil, errors.New("a JWS that cannot be read")
	}
	payload, err := jws.Verify(key)
	if err != nil {
		return nil, errors.New("a JWS of another key or connection")
	}
	return payload, nil
}

// decryptJWT returns what a JWE under this key holds.
func decryptJWT(text string, key []byte) (string, error) {
	if _, rest, _ := strings.Cut(text, "."); !strings.HasPrefix(rest, ".") { // RFC 7516, 5.2, step 10, which go-jose leaves out
		return "", errors.New("a JWE with an encrypted key, of the algorithm dir")
	}
	jwe, err := jose.ParseEncryptedCompact(text, []jose.KeyAlgorithm{jose.DIRECT}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		return "", errors.New("a JWE that cannot be read")
	}
	inner, err := jwe.Decrypt(key)
	if err != nil {
		return "", errors.New("a JWE of another key or connection")
	}
	return string(inner), nil
}

func parseClaims(payload []byte, into any) error {
	if err := json.Unmarshal(payload, into); err != nil {
		return errors.New("claims that cannot be read")
	}
	return nil
}

// verifySigned returns the claims of a JWT of ours, signed with HS256 under a
// secret or with ES256 by a key pair.
func verifySigned(text, id string, key any) (*claims, error) {
	alg := jose.HS256
	if _, pair := key.(*ecdsa.PublicKey); pair {
		alg = jose.ES256
	}
	h, err := readHeader(text, "alg", "kid", "typ")
	switch {
	case err != nil:
		return nil, err
	case h.alg != string(alg) || h.typ != jwtType || h.kid != id:
		return nil, errors.New("a JWT of another algorithm, type or client")
	}
	payload, err := verifyJWT(text, alg, key)
	if err != nil {
		return nil, err
	}
	c := new(claims)
	return c, parseClaims(payload, c)
}

// signP256 returns a device key's signature over message, as r‖s.
func signP256(key hwkey.Key, message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	sig, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return proof.RawECDSA(sig)
}
