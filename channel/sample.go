package channel

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/limpet-auth/limpet/internal/incoming"
)

// The sample profile, as its public clients and servers speak it.
const (
	sampleTokenLabel = "EXPORTER-my_label"        // the context is the client's name
	sampleJWTLabel   = "EXPORTER-Channel-Binding" // the context is one of these
	sampleSigning    = "sig_key"
	sampleEncryption = "enc_key"

	sampleIssuer  = "issuer"
	sampleSubject = "subject"
)

// sampleToken returns the token of form Token: one block of a key derivation in
// counter mode (SP 800-108) whose counter begins at 0, with neither label nor
// separator.
func sampleToken(ctx context.Context, key hmacFunc, state *tls.ConnectionState, id string) ([]byte, error) {
	exported, err := incoming.Export(state, sampleTokenLabel, []byte(id), exporterSize)
	if err != nil {
		return nil, err
	}
	tag, err := key(ctx, sampleBlock(exported))
	if err != nil {
		return nil, &keeperError{err}
	}
	return tag, nil
}

func sampleBlock(exported []byte) []byte {
	b := append(make([]byte, 4, 40), exported...) // counter
	return append(b, 0, 0, 1, 0)                  // length in bits
}

// sampleKey returns the key of its JWTs for one use.
func sampleKey(ctx context.Context, key hmacFunc, state *tls.ConnectionState, use string) ([]byte, error) {
	exported, err := incoming.Export(state, sampleJWTLabel, []byte(use), exporterSize)
	if err != nil {
		return nil, err
	}
	secret, err := key(ctx, exported)
	if err != nil {
		return nil, &keeperError{err}
	}
	return secret, nil
}

// sampleCredential returns the token of a client in the sample profile.
func sampleCredential(ctx context.Context, key hmacFunc, state *tls.ConnectionState, id string, form Form) (string, error) {
	if form == Token {
		tag, err := sampleToken(ctx, key, state, id)
		return base64.StdEncoding.EncodeToString(tag), err
	}
	signing, err := sampleKey(ctx, key, state, sampleSigning)
	if err != nil {
		return "", err
	}
	inner, err := signJWT(jose.HS256, signing, "", "", jwt.Claims{Issuer: sampleIssuer, Subject: sampleSubject})
	if err != nil || form == JWT {
		return inner, err
	}
	encryption, err := sampleKey(ctx, key, state, sampleEncryption)
	if err != nil {
		return "", err
	}
	return encryptJWT(encryption, id, "JWT", inner)
}

// sampleVerify tells what is wrong with a token in the sample profile.
func sampleVerify(ctx context.Context, key hmacFunc, state *tls.ConnectionState, c *credential, now time.Time) error {
	if c.form == Token {
		tag, err := sampleToken(ctx, key, state, c.id)
		if err != nil {
			return err
		}
		if !hmac.Equal(tag, c.tag) {
			return errMismatch
		}
		return nil
	}
	text := c.text
	if c.form == JWE {
		encryption, err := sampleKey(ctx, key, state, sampleEncryption)
		if err != nil {
			return err
		}
		if text, err = decryptJWT(text, encryption); err != nil {
			return err
		}
	}
	if _, err := readHeader(text, "alg", "kid", "typ"); err != nil {
		return err
	}
	signing, err := sampleKey(ctx, key, state, sampleSigning)
	if err != nil {
		return err
	}
	payload, err := verifyJWT(text, jose.HS256, signing)
	if err != nil {
		return err
	}
	var claims jwt.Claims
	if err := parseClaims(payload, &claims); err != nil {
		return err
	}
	return claims.ValidateWithLeeway(jwt.Expected{Issuer: sampleIssuer, Subject: sampleSubject, Time: now}, skew)
}

// parseSample takes a token of the sample profile apart. id is the client that the
// request names besides, fallback whose a signed JWT is that comes without.
func parseSample(text, id, fallback string) (*credential, error) {
	if len(text) > maxCredential {
		return nil, errors.New("a token over 4 KiB")
	}
	if strings.ContainsAny(text, "\r\n") { // which base64 would leave out
		return nil, errCredential
	}
	if tag, err := base64.StdEncoding.Strict().DecodeString(text); err == nil && len(tag) == 32 {
		if id == "" {
			return nil, errors.New("a token without a client")
		}
		return &credential{form: Token, id: id, tag: tag, text: text}, nil
	}
	c := &credential{form: JWT, id: cmp.Or(id, fallback), text: text}
	h, err := readHeader(text, "alg", "enc", "kid", "typ", "cty")
	switch dots := strings.Count(text, "."); {
	case err != nil:
		return nil, err
	case dots == 4 && h.alg == "dir" && h.enc == "A256GCM":
		if id != "" && id != h.kid {
			return nil, errors.New("a token of another client than the request names")
		}
		c.form, c.id = JWE, h.kid
	case dots != 2 || h.alg != "HS256" || h.enc != "":
		return nil, errors.New("a JWT of another kind")
	}
	return c, nil
}
