// Package channel authenticates clients with tokens that live for one TLS
// connection.
//
// Client and server share a secret, or the server knows the client's public
// key. What crosses the wire is derived from that and from keying material that
// both ends export from their TLS connection (RFC 5705, RFC 9266): whoever sniffs
// it, finds it in a log or takes it from the client can use it on that one
// connection, which is not theirs. The secret may be in the client's TPM, and in
// the server's.
//
//	keys := tpmkey.Open("")
//	key, _ := keys.LoadHMAC(ctx, id)
//	t, _ := channel.NewTransport(channel.Config{ID: "billing", HMAC: key})
//	c := &http.Client{Transport: t}
//
//	ring, _ := keyring.Open("clients.json", keyring.Options{})
//	s, _ := channel.NewServer(channel.ServerConfig{Keys: ring})
//	http.ListenAndServeTLS(addr, cert, key, s.Protect(mux))
//
// TLS must end at the server itself. Behind a proxy that ends it nothing is
// admitted, and the client's error says why.
//
// A token says who the client is, and nothing of a request: whoever shares the
// connection (behind a forward proxy on the client's side that ends TLS, or in
// the client's process) can send requests of their own on it. With
// [Config.PerRequest] each request is covered by a MAC of its own.
package channel

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/proof"
)

// Profile is the protocol that both ends speak.
type Profile uint8

const (
	// Limpet is Limpet's own: TLS 1.3, a context that says whom the token is for.
	Limpet Profile = iota

	// Sample is that of a public sample, for peers that cannot be changed. It
	// works on TLS 1.2 too. Its tokens do not say whom they are for, its JWTs
	// not when they were made, and its signed JWTs not even by whom.
	Sample
)

// String returns the word that commands use.
func (p Profile) String() string {
	switch p {
	case Limpet:
		return "limpet"
	case Sample:
		return "sample"
	}
	return "unknown"
}

// Form is what a token looks like.
type Form uint8

const (
	Token Form = iota // a name and a tag, or a signature
	JWT               // a signed JWT (RFC 7519): HS256 or ES256
	JWE               // a JWT, signed with HS256, within a JWE (RFC 7516): dir, A256GCM
)

// String returns the word that commands use, and the exporter's context.
func (f Form) String() string {
	switch f {
	case Token:
		return "token"
	case JWT:
		return "jwt"
	case JWE:
		return "jwe"
	}
	return "unknown"
}

// Names of header fields, in the canonical form of net/http.
const (
	ClientField      = "Limpet-Client"  // request: the token, where Authorization is taken
	FingerprintField = "Limpet-Channel" // response that refuses: the server's Fingerprint of the connection

	SampleClientField = "Client" // request in the sample profile: the client's name
	SampleTokenField  = "Apikey" // and its token
)

const (
	exporterLabel    = "EXPORTER-limpet-channel"
	fingerprintLabel = "EXPORTER-limpet-channel-fingerprint"
	exporterSize     = 32

	// Algorithms, as contexts name them.
	hmacSHA256 = "hmac-sha256"
	ecdsaP256  = "ecdsa-p256"

	maxCredential = 4 << 10 // bytes of a token of any form
)

// Fingerprint returns what tells two ends whether they are on one connection: 16
// bytes exported from it, in base64url. It is no secret, and says nothing of any
// token. It is "none" if there is no connection, or one that exports nothing.
func Fingerprint(state *tls.ConnectionState) string {
	if state == nil || !state.HandshakeComplete {
		return "none"
	}
	b, err := incoming.Export(state, fingerprintLabel, nil, 16)
	if err != nil {
		return "none"
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// usable tells what makes a connection unfit.
func usable(state *tls.ConnectionState, p Profile) error {
	switch {
	case state == nil:
		return errors.New("there is no TLS, or it ends at a proxy before the server")
	case !state.HandshakeComplete:
		return errors.New("the TLS handshake is not complete")
	case p == Limpet && state.Version < tls.VersionTLS13:
		return fmt.Errorf("%s, and TLS 1.3 is wanted", tls.VersionName(state.Version))
	case state.Version < tls.VersionTLS12:
		return fmt.Errorf("%s, and TLS 1.2 at least is wanted", tls.VersionName(state.Version))
	}
	return nil
}

// purpose is what a token is bound to besides its connection: the context of the
// exporter. Its fields are those of RFC 9729, 3.1, with the form in place of the
// realm.
type purpose struct {
	algorithm string // hmacSHA256 or ecdsaP256
	id        string // of the client
	public    []byte // its key, SEC 1 uncompressed; none of an HMAC key
	authority string // of the server, as the client asks for it
	form      Form
}

// context returns the exporter's. Each field goes with its length, so that no two
// purposes share it.
func (p *purpose) context() []byte {
	var context []byte
	for _, field := range [][]byte{[]byte("limpet channel 1"), []byte(p.algorithm), []byte(p.id), p.public,
		[]byte("https"), []byte(p.authority), []byte(p.form.String())} {
		context = binary.BigEndian.AppendUint16(context, uint16(len(field)))
		context = append(context, field...)
	}
	return context
}

// export returns the keying material of a connection for one purpose.
func (p *purpose) export(state *tls.ConnectionState) ([]byte, error) {
	return incoming.Export(state, exporterLabel, p.context(), exporterSize)
}

// hmacFunc is an HMAC-SHA256 with a key that its keeper may not give out.
type hmacFunc func(ctx context.Context, message []byte) ([]byte, error)

// keeperError is what the keeper of a key fails with.
type keeperError struct{ err error }

func (e *keeperError) Error() string { return "the client's key: " + e.err.Error() }
func (e *keeperError) Unwrap() error { return e.err }

// secrets is what a shared secret becomes on one connection for one purpose.
type secrets struct{ root *proof.MACKey }

// agree returns the secrets of a connection. It asks the keeper of the key once.
func agree(ctx context.Context, key hmacFunc, exported []byte) (*secrets, error) {
	root, err := key(ctx, append([]byte("limpet channel secret 1\x00"), exported...))
	if err != nil {
		return nil, &keeperError{err}
	}
	defer clear(root)
	return &secrets{proof.NewMACKey(root)}, nil
}

func (s *secrets) derive(what string) []byte {
	return s.root.Append(nil, []byte("limpet channel "+what+" 1\x00"))
}

func (s *secrets) tag() []byte             { return s.derive("token") }
func (s *secrets) signing() []byte         { return s.derive("jwt") }
func (s *secrets) encryption() []byte      { return s.derive("jwe") }
func (s *secrets) requests() *proof.MACKey { return proof.NewMACKey(s.derive("request")) }

// Format keeps the secrets out of text, whatever the verb.
func (*secrets) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// statement returns what a client with a key pair signs: as in TLS 1.3, 64
// spaces and a context that no other signature begins with (RFC 8446, 4.4.3),
// then the keying material.
func statement(exported []byte) []byte {
	b := make([]byte, 64, 128)
	for i := range b {
		b[i] = ' '
	}
	return append(append(b, "Limpet channel token 1\x00"...), exported...)
}

// exportedClaim is the claim of a JWT that is signed with a key pair: the hash of
// the keying material, in base64url.
func exportedClaim(exported []byte) string {
	sum := sha256.Sum256(append([]byte("limpet channel claim 1\x00"), exported...))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// requestKeyID names the key of a client's requests in their signatures.
func requestKeyID(id string) string {
	sum := sha256.Sum256([]byte("limpet channel client 1\x00" + id))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
