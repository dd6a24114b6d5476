package oauth

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/limpet-auth/limpet/proof"
)

// remember is how long a token that was verified is not verified again.
const remember = 5 * time.Minute

// algorithms that an access token may be signed with. All are asymmetric: a
// shared secret would make every resource server an issuer.
var algorithms = []jose.SignatureAlgorithm{
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
	jose.PS256, jose.PS384, jose.PS512, jose.RS256, jose.RS384, jose.RS512,
}

// JWTConfig is what a [JWT] is made from. All but Client must be set.
type JWTConfig struct {
	Issuer   string       // iss, to the letter
	Audience string       // this resource server, which aud must name
	JWKS     string       // URL of the issuer's keys; https:// unless it is on this machine
	Client   *http.Client // to fetch them with; nil for one of its own. At most 5 s are waited, no redirect is followed
}

// JWT knows access tokens that are JWTs signed by their issuer (RFC 9068). It is
// safe for concurrent use.
//
// A token must be of type at+jwt or JWT, be signed with an asymmetric algorithm
// by a key of the issuer's set (RFC 7517), and have iss, aud, sub and exp. For exp
// and nbf the clocks may be 30 s apart. A token that names no key is verified if
// the set has only one.
//
// The set is fetched when it is first needed, and again when it is five minutes
// old or, at most once a minute, when a token names an unknown key. If that fails
// the keys at hand serve for up to a day. A token that was verified is remembered
// for as long as the set does not change, for five minutes at most. So a key that
// the issuer withdraws counts for up to five minutes more, and a single token
// that it revokes until its exp: ask it, with [Introspection], where that is too
// long.
type JWT struct {
	issuer   string
	audience string
	keys     *keys
	memory   memory
	now      func() time.Time
}

// NewJWT returns a JWT. It asks the issuer for nothing yet.
func NewJWT(cfg JWTConfig) (*JWT, error) {
	if cfg.Issuer == "" {
		return nil, errors.New("limpet: oauth: JWTConfig.Issuer is not set")
	}
	if cfg.Audience == "" {
		return nil, errors.New("limpet: oauth: JWTConfig.Audience is not set")
	}
	if err := endpoint("JWTConfig.JWKS", cfg.JWKS); err != nil {
		return nil, err
	}
	j := &JWT{issuer: cfg.Issuer, audience: cfg.Audience, now: time.Now}
	j.keys = &keys{url: cfg.JWKS, client: limited(cfg.Client), now: func() time.Time { return j.now() }}
	return j, nil
}

// Confirm returns whom a token belongs to and what it is bound to. The caller
// does not modify it. An error is a *[proof.Refusal].
func (j *JWT) Confirm(ctx context.Context, token string) (*proof.Confirmation, error) {
	if err := read(token); err != nil {
		return nil, err
	}
	id := sha256.Sum256([]byte(token))
	if set := j.keys.refreshed(ctx); set != nil {
		if c := j.memory.get(id, j.now(), set); c != nil {
			return c, nil
		}
	}
	c, err := j.unverified(token)
	if err != nil {
		return nil, err
	}
	t, err := jwt.ParseSigned(token, algorithms)
	if err != nil || len(t.Headers) != 1 {
		return nil, refuse(proof.Invalid, "a JWT with an algorithm or header that is not admitted")
	}
	header := t.Headers[0]
	if typ, _ := header.ExtraHeaders[jose.HeaderType].(string); !accessToken(typ) {
		return nil, refuse(proof.Invalid, "a JWT of another type than at+jwt and JWT")
	}
	set, candidates, err := j.keys.find(ctx, header.KeyID, jose.SignatureAlgorithm(header.Algorithm))
	if err != nil {
		return nil, err
	}
	if !verifies(t, candidates) {
		return nil, refuse(proof.Invalid, "a JWT that none of the issuer's keys signed")
	}
	now := j.now()
	confirmed, err := c.confirm(j.audience, now)
	if err != nil {
		return nil, err
	}
	if c.Expiry == nil {
		return nil, refuse(proof.Invalid, "a token without an exp")
	}
	j.memory.put(id, remembered{confirmed, earlier(confirmed.Expires.Add(skew), now.Add(remember)), set})
	return confirmed, nil
}

// unverified reads the claims of a token that says it is the issuer's. Nothing in
// them is to be believed yet, but what says otherwise makes nobody ask for keys.
//
// A JWT has one spelling here, of three parts in strict base64url. There are apps
// that skip what does not belong there; a bound token that is spelled their way
// must not look like one that is no JWT.
func (j *JWT) unverified(token string) (*claims, error) {
	parts := strings.Split(token, ".")
	if len(parts) < 3 {
		return nil, refuse(proof.SessionUnbound, "not a JWT")
	}
	var payload []byte
	for i, part := range parts {
		b, err := base64URL.DecodeString(part)
		if err != nil || len(parts) > 3 {
			return nil, refuse(proof.Malformed, "not a JWT in the one spelling that it has")
		}
		if i == 1 {
			payload = b
		}
	}
	c := new(claims)
	if err := json.Unmarshal(payload, c); err != nil {
		return nil, refuse(proof.Malformed, "a JWT without claims, or with claims that can be read in two ways")
	}
	if c.Issuer != j.issuer {
		return nil, refuse(proof.SessionUnbound, "a JWT of another issuer")
	}
	return c, nil
}

// accessToken reports whether a typ may be an access token's (RFC 9068, 2.1), and
// not that of a proof, an assertion or a logout.
func accessToken(typ string) bool {
	typ = strings.ToLower(typ)
	return strings.TrimPrefix(typ, "application/") == "at+jwt" || typ == "jwt"
}

func verifies(t *jwt.JSONWebToken, candidates []any) bool {
	for _, key := range candidates {
		if t.Claims(key) == nil {
			return true
		}
	}
	return false
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
