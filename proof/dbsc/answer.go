package dbsc

import (
	"crypto"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/internal/jose"
)

// FormatRegistration returns the value of RegistrationField that offers a session:
// the browser registers a key at path, with a JWT that covers challenge. Neither
// may have characters that a string must escape.
func FormatRegistration(path, challenge string) string {
	// An inner list of tokens; Chromium takes no strings there.
	return `(ES256 RS256);path="` + path + `";challenge="` + challenge + `"`
}

// FormatChallenge returns the value of ChallengeField: what the next JWT of the
// session id is to cover.
func FormatChallenge(challenge, id string) string {
	return `"` + challenge + `";id="` + id + `"`
}

// Cookie is what a session is bound by. Its attributes are said twice, in
// Set-Cookie and in the session's document, and must be the same: else browsers
// refresh at every request.
type Cookie struct {
	Name       string
	Attributes string // as in Set-Cookie; without Max-Age, Expires and Partitioned, which a document must not have
}

// Set returns the value of Set-Cookie for maxAge seconds. 0 deletes the cookie.
func (c Cookie) Set(value string, maxAge int) string {
	return c.Name + "=" + value + "; " + c.Attributes + "; Max-Age=" + strconv.Itoa(maxAge)
}

// Session is the document that answers a registration or a refresh.
type Session struct {
	ID         string // [a-zA-Z0-9_.-]; one that the browser knows is replaced
	RefreshURL string // or its path
	Cookie     Cookie // for all of this origin
}

// JSON returns the document.
func (s *Session) JSON() []byte {
	type credential struct {
		Type       string `json:"type"`
		Name       string `json:"name"`
		Attributes string `json:"attributes"`
	}
	type scope struct {
		IncludeSite bool `json:"include_site"`
	}
	b, err := json.Marshal(struct {
		ID          string       `json:"session_identifier"`
		RefreshURL  string       `json:"refresh_url"`
		Scope       scope        `json:"scope"`
		Credentials []credential `json:"credentials"`
	}{s.ID, s.RefreshURL, scope{}, []credential{{"cookie", s.Cookie.Name, s.Cookie.Attributes}}})
	if err != nil {
		panic(err) // strings are never too much
	}
	return b
}

// End returns the document that ends a session in the browser.
func End(id string) []byte {
	b, err := json.Marshal(struct {
		ID       string `json:"session_identifier"`
		Continue bool   `json:"continue"`
	}{id, false})
	if err != nil {
		panic(err)
	}
	return b
}

// NewRegistration returns the JWT by which a browser registers key, whose public
// half is pub, with alg: ECDSAP256 or RSAPKCS1.
func NewRegistration(key crypto.Signer, alg proof.Algorithm, pub *proof.PublicKey, challenge string) (string, error) {
	header, err := jose.NewHeader(Type, alg, pub)
	if err != nil {
		return "", fmt.Errorf("limpet: dbsc: %w", err)
	}
	return newJWT(key, alg, header, challenge)
}

// NewRefresh returns the JWT by which a browser that has registered key has its
// session refreshed.
func NewRefresh(key crypto.Signer, alg proof.Algorithm, challenge string) (string, error) {
	for name, a := range algorithms {
		if a == alg {
			return newJWT(key, alg, []byte(`{"alg":"`+name+`","typ":"`+Type+`"}`), challenge)
		}
	}
	return "", fmt.Errorf("limpet: dbsc: %s makes no JWT", alg)
}

func newJWT(key crypto.Signer, alg proof.Algorithm, header []byte, challenge string) (string, error) {
	payload, err := json.Marshal(struct {
		JTI string `json:"jti"`
	}{challenge})
	if err != nil {
		return "", fmt.Errorf("limpet: dbsc: %w", err)
	}
	jwt, err := jose.Sign(key, alg, header, payload)
	if err != nil {
		return "", fmt.Errorf("limpet: dbsc: sign: %w", err)
	}
	return jwt, nil
}
