package authserver

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/proof"
)

// Passkeys: another way to log in than a password. A user who is logged in makes
// one, which the authenticator finds by itself later (a discoverable credential),
// with user verification. Both ceremonies begin with a challenge that the server
// keeps nothing of: it carries its end and a MAC, and is used up when it has served.
//
// The relying party is the host that the browser asked for. A credential belongs to
// the origin that it was made at: a browser that is led to another name has none there,
// and to the same name's other ports it offers it, so these are told apart here.

const (
	ceremonyTime = 5 * time.Minute
	maxPasskeys  = 8       // of a user
	maxHost      = 253     // characters of a name in DNS
	maxKey       = 4 << 10 // bytes of a passkey's public key: ML-DSA-87 has 2,592, RSA takes 50 ms at this size
	randomSize   = 16
	expirySize   = 8
)

// passkeys makes and checks challenges.
type passkeys struct {
	key []byte
	now func() time.Time
}

func newPasskeys(sealKey []byte) passkeys {
	if sealKey == nil { // as limpet.Config has it
		sealKey = make([]byte, 32)
		rand.Read(sealKey) // never fails
	}
	mac := hmac.New(sha256.New, sealKey)
	mac.Write([]byte("limpet authserver: challenges of passkeys"))
	return passkeys{mac.Sum(nil), time.Now}
}

// challenge returns a fresh challenge for one purpose.
func (p passkeys) challenge(purpose string) []byte {
	c := make([]byte, randomSize, randomSize+expirySize+sha256.Size)
	rand.Read(c) // never fails
	c = binary.BigEndian.AppendUint64(c, uint64(p.now().Add(ceremonyTime).Unix()))
	return append(c, p.mac(purpose, c)...)
}

func (p passkeys) mac(purpose string, begin []byte) []byte {
	mac := hmac.New(sha256.New, p.key)
	mac.Write(begin) // of one length
	mac.Write([]byte(purpose))
	return mac.Sum(nil)
}

// open decodes a challenge of ours and returns when it ends.
func (p passkeys) open(text, purpose string) (challenge []byte, ends time.Time, err error) {
	c, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(c) != randomSize+expirySize+sha256.Size || !hmac.Equal(c[randomSize+expirySize:], p.mac(purpose, c[:randomSize+expirySize])) {
		return nil, ends, errors.New("limpet: passkey: a challenge that is not this server's")
	}
	ends = time.Unix(int64(binary.BigEndian.Uint64(c[randomSize:])), 0)
	if !p.now().Before(ends) {
		return nil, ends, errors.New("limpet: passkey: the challenge is over")
	}
	return c, ends, nil
}

const (
	toLogIn = "log in"
	toMake  = "make " // and the user's handle
)

// spend reports whether a challenge is used for the first time. It is remembered for
// longer than it is good for: other servers' clocks may be late.
func (s *Server) spend(ctx context.Context, challenge []byte, ends time.Time) (bool, error) {
	sum := sha256.Sum256(challenge)
	return s.store.Add(ctx, "auth:challenge:"+base64.RawURLEncoding.EncodeToString(sum[:]), nil, ends.Sub(s.passkeys.now())+ceremonyTime)
}

// relyingParty returns the one of the host that a request names, or answers that
// there is none.
func relyingParty(w http.ResponseWriter, r *http.Request) (*webauthn.WebAuthn, bool) {
	name := r.Host
	if h, _, err := net.SplitHostPort(r.Host); err == nil {
		name = h
	}
	name = strings.ToLower(name)
	// A proxy in front may have ended TLS; browsers allow passkeys without it on
	// the machine itself only.
	origins := []string{"https://" + r.Host}
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		origins = append(origins, "http://"+r.Host)
	}
	_, noAddress := netip.ParseAddr(strings.Trim(name, "[]"))
	rp, err := webauthn.New(&webauthn.Config{RPID: name, RPDisplayName: "Limpet", RPOrigins: origins,
		AttestationPreference:  protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{ResidentKey: protocol.ResidentKeyRequirementRequired, UserVerification: protocol.VerificationRequired},
	})
	if len(name) < 1 || len(name) > maxHost || noAddress == nil || err != nil {
		refuse(w, http.StatusBadRequest, "no_relying_party", "passkeys belong to a name, not to an address: use one, such as localhost")
		return nil, false
	}
	return rp, true
}

// passkey is a record: a credential, where it was made, and whose it is.
type passkey struct {
	User       string              `json:"user"`
	Origin     string              `json:"origin"`
	Credential webauthn.Credential `json:"credential"`
}

// holder is a user to package webauthn.
type holder struct {
	name        string
	handle      []byte
	credentials []webauthn.Credential
}

func (h *holder) WebAuthnID() []byte                         { return h.handle }
func (h *holder) WebAuthnName() string                       { return h.name }
func (h *holder) WebAuthnDisplayName() string                { return h.name }
func (h *holder) WebAuthnCredentials() []webauthn.Credential { return h.credentials }

const handleSize = 32

// handle returns what authenticators know a user by: random bytes, which say
// nothing of the user.
func (s *Server) handle(ctx context.Context, user string) ([]byte, error) {
	h := make([]byte, handleSize)
	rand.Read(h) // never fails
	added, err := s.store.Add(ctx, handleKey(user), h, userLifetime)
	if err != nil || added {
		return h, err
	}
	h, found, err := s.store.Get(ctx, handleKey(user))
	if err == nil && (!found || len(h) != handleSize) {
		err = errors.New("limpet: passkey: a damaged record of a user's handle")
	}
	return h, err
}

// kept returns a user's passkeys by their places.
func (s *Server) kept(ctx context.Context, handle []byte) (map[int]passkey, error) {
	all := make(map[int]passkey)
	for place := range maxPasskeys {
		rec, found, err := s.store.Get(ctx, passkeyKey(handle, place))
		if err != nil {
			return nil, &storeError{err}
		}
		if !found {
			continue
		}
		var k passkey
		if err := json.Unmarshal(rec, &k); err != nil {
			return nil, &storeError{fmt.Errorf("limpet: passkey: a damaged record: %w", err)}
		}
		all[place] = k
	}
	return all, nil
}

// passkey returns a user's credential with this ID, and in which of the places it is.
func (s *Server) passkey(ctx context.Context, handle, id []byte) (k passkey, place int, err error) {
	if len(handle) != handleSize {
		return k, 0, errNoPasskey
	}
	all, err := s.kept(ctx, handle)
	if err != nil {
		return k, 0, err
	}
	for place, k := range all {
		if bytes.Equal(k.Credential.ID, id) {
			return k, place, nil
		}
	}
	return k, 0, errNoPasskey
}

var errNoPasskey = errors.New("limpet: passkey: none like that is known")

// storeError is what comes back through package webauthn, which would make a
// refusal of it.
type storeError struct{ err error }

func (e *storeError) Error() string { return e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

// creation returns what a browser is to make a passkey of, and what the answer is
// compared with. An authenticator that has one of the user's makes none: it would
// write over that.
func creation(rp *webauthn.WebAuthn, user *holder, challenge []byte) (*protocol.CredentialCreation, *webauthn.SessionData, error) {
	return rp.BeginRegistration(user, webauthn.WithExclusions(webauthn.Credentials(user.credentials).CredentialDescriptors()), func(o *protocol.PublicKeyCredentialCreationOptions) error {
		o.Challenge = challenge
		return nil
	})
}

// serveMakeOptions answers with what a browser needs to make a passkey.
func (s *Server) serveMakeOptions(w http.ResponseWriter, r *http.Request) {
	b, ok := s.session(w, r)
	if !ok {
		return
	}
	rp, ok := relyingParty(w, r)
	if !ok {
		return
	}
	handle, err := s.handle(r.Context(), b.User)
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	all, err := s.kept(r.Context(), handle)
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	if len(all) == maxPasskeys { // before anything is made that nobody would keep
		tooManyPasskeys(w)
		return
	}
	user := &holder{name: b.User, handle: handle}
	for _, k := range all {
		if slices.Contains(rp.Config.RPOrigins, k.Origin) {
			user.credentials = append(user.credentials, k.Credential)
		}
	}
	options, _, err := creation(rp, user, s.passkeys.challenge(toMake+string(handle)))
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	answer(w, http.StatusOK, options)
}

// serveMake keeps the passkey that a browser made.
func (s *Server) serveMake(w http.ResponseWriter, r *http.Request) {
	b, ok := s.session(w, r)
	if !ok {
		return
	}
	rp, ok := relyingParty(w, r)
	if !ok {
		return
	}
	body, ok := readPasskey(w, r)
	if !ok {
		return
	}
	handle, err := s.handle(r.Context(), b.User)
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	made, err := protocol.ParseCredentialCreationResponseBytes(body)
	var challenge []byte
	var ends time.Time
	if err == nil {
		challenge, ends, err = s.passkeys.open(made.Response.CollectedClientData.Challenge, toMake+string(handle))
	}
	user := &holder{name: b.User, handle: handle}
	var credential *webauthn.Credential
	if err == nil && len(made.Response.AttestationObject.AuthData.AttData.CredentialPublicKey) > maxKey {
		err = errors.New("limpet: passkey: a key over 4 KiB")
	}
	if err == nil {
		// Nobody asked who made the authenticator. What says so nonetheless is not
		// looked at: checking it may take any time.
		object := &made.Response.AttestationObject
		object.Format, object.AttStatement, object.SubStatements = string(protocol.AttestationFormatNone), nil, nil
		var against *webauthn.SessionData
		if _, against, err = creation(rp, user, challenge); err == nil {
			credential, err = rp.CreateCredential(user, *against, made)
		}
	}
	if err != nil {
		s.badPasskey(w, r, err)
		return
	}
	fresh, err := s.spend(r.Context(), challenge, ends)
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	if !fresh {
		s.badPasskey(w, r, errors.New("limpet: passkey: the challenge was used before"))
		return
	}
	credential.Attestation = webauthn.CredentialAttestation{}
	rec, err := json.Marshal(passkey{b.User, made.Response.CollectedClientData.Origin, *credential})
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	for place := range maxPasskeys {
		added, err := s.store.Add(r.Context(), passkeyKey(handle, place), rec, userLifetime)
		if err != nil {
			s.unavailable(w, r, err)
			return
		}
		if added {
			s.log.InfoContext(r.Context(), "limpet: passkey made", "user", b.User, "party", rp.Config.RPID)
			answer(w, http.StatusCreated, map[string]any{"message": "the passkey is kept"})
			return
		}
	}
	tooManyPasskeys(w)
}

func tooManyPasskeys(w http.ResponseWriter) {
	refuse(w, http.StatusConflict, "too_many_passkeys", fmt.Sprintf("a user has %d passkeys at most", maxPasskeys))
}

// assertion returns what a browser is to sign, and what the answer is compared with.
func assertion(rp *webauthn.WebAuthn, challenge []byte) (*protocol.CredentialAssertion, *webauthn.SessionData, error) {
	return rp.BeginDiscoverableLogin(webauthn.WithChallenge(challenge))
}

// serveLoginOptions answers with what a browser needs to log in with a passkey.
func (s *Server) serveLoginOptions(w http.ResponseWriter, r *http.Request) {
	rp, ok := relyingParty(w, r)
	if !ok {
		return
	}
	options, _, err := assertion(rp, s.passkeys.challenge(toLogIn))
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	answer(w, http.StatusOK, options)
}

// servePasskeyLogin is serveLogin with a passkey in place of name and password.
func (s *Server) servePasskeyLogin(w http.ResponseWriter, r *http.Request) {
	rp, ok := relyingParty(w, r)
	if !ok {
		return
	}
	body, ok := readPasskey(w, r)
	if !ok {
		return
	}
	user, challenge, ends, err := s.matchPasskey(r.Context(), rp, body)
	if down := (*storeError)(nil); errors.As(err, &down) {
		s.unavailable(w, r, err)
		return
	} else if err != nil {
		s.badPasskey(w, r, err)
		return
	}
	// Now, and not before: strangers would fill the store with what they never signed.
	fresh, err := s.spend(r.Context(), challenge, ends)
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	if !fresh {
		s.badPasskey(w, r, errors.New("limpet: passkey: the challenge was used before"))
		return
	}
	s.begin(w, r, user)
}

// matchPasskey returns whose passkey signed a challenge of ours for this party.
func (s *Server) matchPasskey(ctx context.Context, rp *webauthn.WebAuthn, body []byte) (user string, challenge []byte, ends time.Time, err error) {
	signed, err := protocol.ParseCredentialRequestResponseBytes(body)
	if err != nil {
		return "", nil, ends, err
	}
	if challenge, ends, err = s.passkeys.open(signed.Response.CollectedClientData.Challenge, toLogIn); err != nil {
		return "", nil, ends, err
	}
	_, against, err := assertion(rp, challenge)
	if err != nil {
		return "", nil, ends, err
	}
	var k passkey
	var place int
	var failed error
	_, credential, err := rp.ValidatePasskeyLogin(func(id, handle []byte) (webauthn.User, error) {
		if k, place, failed = s.passkey(ctx, handle, id); failed != nil {
			return nil, failed
		}
		return &holder{k.User, handle, []webauthn.Credential{k.Credential}}, nil
	}, *against, signed)
	if failed != nil {
		return "", nil, ends, failed
	}
	switch {
	case err != nil:
		return "", nil, ends, err
	case k.Origin != signed.Response.CollectedClientData.Origin:
		return "", nil, ends, errors.New("limpet: passkey: it was made at another address of this server")
	case credential.Authenticator.CloneWarning:
		return "", nil, ends, errors.New("limpet: passkey: its counter went back: there are two of it")
	}
	if credential.Authenticator.SignCount != k.Credential.Authenticator.SignCount {
		k.Credential = *credential
		rec, err := json.Marshal(k)
		if err == nil {
			err = s.store.Put(ctx, passkeyKey(signed.Response.UserHandle, place), rec, userLifetime)
		}
		if err != nil {
			return "", nil, ends, &storeError{err}
		}
	}
	return k.User, challenge, ends, nil
}

func readPasskey(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		refuse(w, http.StatusRequestEntityTooLarge, "body_too_large", "the body is over 64 KiB")
		return nil, false
	}
	if refusal := (*proof.Refusal)(nil); errors.As(err, &refusal) { // of a body that was not read before
		limpet.Refuse(w, err)
		return nil, false
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "bad_request", "the body cannot be read")
		return nil, false
	}
	return body, true
}

// badPasskey refuses with one answer, whatever was wrong; the log says it.
func (s *Server) badPasskey(w http.ResponseWriter, r *http.Request, err error) {
	why := err.Error()
	if e := (*protocol.Error)(nil); errors.As(err, &e) {
		why = e.Details + ": " + e.DevInfo
	}
	s.log.WarnContext(r.Context(), "limpet: passkey refused", "remote", r.RemoteAddr, "why", why[:min(len(why), 500)])
	refuse(w, http.StatusUnauthorized, "passkey_invalid", "this passkey is not known here, or its answer does not fit: try again")
}

func handleKey(user string) string { return "auth:handle:" + idOf(user).String() }

func passkeyKey(handle []byte, place int) string {
	return fmt.Sprintf("auth:passkey:%s:%d", base64.RawURLEncoding.EncodeToString(handle), place)
}
