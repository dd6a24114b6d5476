package client_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/textproto"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// sigServer is a server of the httpsig wire, written from its description and
// not with package proof. POST /login with the body "secret" gives a token; all
// other paths echo the body.
type sigServer struct {
	cookie string        // where the token is; "" for a bearer token
	lease  time.Duration // that it tells
	// honoured is the lease that it has; 0 for the one that it tells
	honoured time.Duration
	keyLife  time.Duration // that it tells of its key
	ahead    time.Duration // its clock
	mute     bool          // Limpet-Key is dropped on the way
	ignorant bool          // it knows nothing of the wire
	channel  bool          // proofs must be bound to their connection

	mu        sync.Mutex
	challenge string // that proofs must cover
	private   *ecdh.PrivateKey
	sessions  map[[32]byte]crypto.PublicKey
	keys      map[string]*sigKey
	nonces    map[string]bool
	requests  int
	carried   int // requests that carried a delegation
	asked     int // for the well-known
	refused   map[string]int
	bodies    []string
}

type sigKey struct {
	mac     []byte // nil for a signing key
	public  crypto.PublicKey
	expires time.Time
}

func newSigServer() *sigServer {
	s := &sigServer{lease: 15 * time.Minute, keyLife: 24 * time.Hour, sessions: map[[32]byte]crypto.PublicKey{}}
	s.restart()
	return s
}

// restart forgets all keys, and takes another for agreements.
func (s *sigServer) restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.private, err = ecdh.P256().GenerateKey(rand.Reader); err != nil {
		panic(err)
	}
	s.keys, s.nonces, s.refused = map[string]*sigKey{}, map[string]bool{}, map[string]int{}
	s.requests, s.carried, s.asked, s.bodies = 0, 0, 0, nil
}

// forget forgets all ephemeral keys and counts.
func (s *sigServer) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys, s.refused = map[string]*sigKey{}, map[string]int{}
	s.requests, s.carried, s.asked = 0, 0, 0
}

// expect compares what was counted since restart or forget, and counts anew.
func (s *sigServer) expect(t testing.TB, requests, carried int, refused string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	got := fmt.Sprint(s.refused)
	if refused == "" {
		refused = "map[]"
	}
	if s.requests != requests || s.carried != carried || got != refused {
		t.Errorf("%d requests, %d with a delegation, refused %s; want %d, %d and %s", s.requests, s.carried, got, requests, carried, refused)
	}
	s.refused, s.requests, s.carried = map[string]int{}, 0, 0
}

func (s *sigServer) now() time.Time { return time.Now().Add(s.ahead) }

func (s *sigServer) describe(session *[32]byte) string {
	text := fmt.Sprintf(":%s:;exp=%d;lease=%d", base64.StdEncoding.EncodeToString(s.private.PublicKey().Bytes()),
		s.now().Add(s.keyLife).Unix(), s.lease/time.Second)
	if session != nil {
		text += ";session=:" + base64.StdEncoding.EncodeToString(session[:]) + ":"
	}
	return text
}

type refusal struct{ reason, detail string }

func (r refusal) Error() string { return r.reason + ": " + r.detail }

func (s *sigServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Date", s.now().UTC().Format(http.TimeFormat))
	if r.URL.Path == "/.well-known/limpet" && !s.ignorant {
		s.asked++
		kind := `"session":"bearer"`
		if s.cookie != "" {
			kind = `"session":"cookie","cookie":"` + s.cookie + `"`
		}
		fmt.Fprintf(w, `{"key":%q,%s,"challenge":%q}`, s.describe(nil), kind, s.challenge)
		return
	}
	if r.URL.Path == "/.well-known/limpet" {
		s.asked++
		http.NotFound(w, r)
		return
	}
	s.requests++
	switch {
	case s.ignorant && r.URL.Path != "/login":
	case r.URL.Path == "/login":
		err = s.login(w, r, body)
	case r.URL.Path == "/open": // no guard before it
	default:
		err = s.check(r, body)
	}
	if s.challenge != "" {
		w.Header().Set("Limpet-Challenge", s.challenge)
	}
	if err != nil {
		var ref refusal
		if !errors.As(err, &ref) {
			ref = refusal{"proof_invalid", err.Error()}
		}
		s.refused[ref.reason]++
		text := `Limpet error="` + ref.reason + `"`
		if ref.reason == "key_unknown" {
			text += `, key="` + s.describe(nil) + `"`
		}
		w.Header().Add("WWW-Authenticate", `Bearer realm="x"`)
		w.Header().Add("WWW-Authenticate", text)
		w.WriteHeader(http.StatusUnauthorized)
		io.WriteString(w, err.Error())
		return
	}
	if r.URL.Path != "/login" {
		s.bodies = append(s.bodies, string(body))
		w.Write(body)
	}
}

func (s *sigServer) login(w http.ResponseWriter, r *http.Request, body []byte) error {
	if string(body) != "secret" {
		w.WriteHeader(http.StatusForbidden)
		return nil
	}
	token := hex.EncodeToString(random(16))
	id := sha256.Sum256([]byte(token))
	if !s.ignorant {
		m := regexp.MustCompile(`^:(.*):(;alg=rsa-pss-sha256)?;level=(hardware|software)$`).FindStringSubmatch(r.Header.Get("Limpet-Device"))
		if m == nil {
			return errors.New("no device key")
		}
		spki, err := base64.StdEncoding.DecodeString(m[1])
		if err != nil {
			return err
		}
		device, err := x509.ParsePKIXPublicKey(spki)
		if err != nil {
			return err
		}
		verify := func(_ string, base, sig []byte) error { return verifySig(device, base, sig) }
		if err := s.verify(r, body, verify, "content-digest", "limpet-device"); err != nil {
			return err
		}
		s.sessions[id] = device
		if !s.mute {
			w.Header().Set("Limpet-Key", s.describe(&id))
		}
	}
	if s.cookie != "" {
		http.SetCookie(w, &http.Cookie{Name: "lang", Value: "en", Path: "/"})
		http.SetCookie(w, &http.Cookie{Name: s.cookie, Value: token, Path: "/"})
		return nil
	}
	fmt.Fprintf(w, `{"token":%q}`, token)
	return nil
}

func (s *sigServer) check(r *http.Request, body []byte) error {
	var token string
	must := []string{"authorization"}
	if s.cookie != "" {
		must = []string{"limpet-session"}
		c, err := r.Cookie(s.cookie)
		if err != nil {
			return err
		}
		token = c.Value
	} else {
		token = strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	}
	id := sha256.Sum256([]byte(token))
	if s.cookie != "" && r.Header.Get("Limpet-Session") != ":"+base64.StdEncoding.EncodeToString(id[:])+":" {
		return errors.New("the proof is for another session")
	}
	device := s.sessions[id]
	if device == nil {
		return refusal{"session_ended", "unknown"}
	}
	d := r.Header.Get("Limpet-Delegation")
	if d != "" {
		s.carried++
	}
	if len(body) > 0 {
		must = append(must, "content-digest")
	}
	if s.challenge != "" {
		if r.Header.Get("Limpet-Challenge") != s.challenge {
			return refusal{"challenge_required", "another challenge"}
		}
		must = append(must, "limpet-challenge")
	}
	bound := r.Header.Get("Limpet-Channel")
	if s.channel && bound == "" {
		return refusal{"channel_required", "no channel"}
	}
	if bound != "" {
		must = append(must, "limpet-channel")
	}
	return s.verify(r, body, func(keyID string, base, sig []byte) error {
		key := s.keys[keyID]
		if key == nil || !s.now().Before(key.expires) {
			if d == "" {
				return refusal{"key_unknown", "no such key"}
			}
			var err error
			if key, err = s.delegated(r, d, device, id); err != nil {
				return err
			}
		}
		if key.mac == nil {
			if err := verifySig(key.public, base, sig); err != nil {
				return err
			}
			s.keys[keyID] = key
			return nil
		}
		mac := key.mac
		if bound != "" {
			exported, err := r.TLS.ExportKeyingMaterial("EXPORTER-limpet-request-key", nil, 32)
			if err != nil {
				return err
			}
			mac = tag(mac, append([]byte("limpet channel key 1\x00"), exported...))
		}
		if !hmac.Equal(sig, tag(mac, base)) {
			return errors.New("the tag is not the key's")
		}
		s.keys[keyID] = key
		return nil
	}, must...)
}

func (s *sigServer) delegated(r *http.Request, field string, device crypto.PublicKey, id [32]byte) (*sigKey, error) {
	m := regexp.MustCompile(`^:(.*?):;sig=:(.*?):(?:;server=:(.*?):)?$`).FindStringSubmatch(field)
	if m == nil {
		return nil, errors.New("no delegation")
	}
	statement, err := base64.StdEncoding.DecodeString(m[1])
	if err != nil {
		return nil, err
	}
	sig, err := base64.StdEncoding.DecodeString(m[2])
	if err != nil {
		return nil, err
	}
	if err := verifySig(device, statement, sig); err != nil {
		return nil, fmt.Errorf("delegation: %w", err)
	}
	b, ok := bytes.CutPrefix(statement, []byte("limpet delegation 1\x00"))
	if !ok {
		return nil, errors.New("another statement")
	}
	alg := b[0]
	begin, end := int64(binary.BigEndian.Uint64(b[1:])), int64(binary.BigEndian.Uint64(b[9:]))
	if [32]byte(b[17:]) != id {
		return nil, errors.New("another session")
	}
	n := int(binary.BigEndian.Uint16(b[49:]))
	if string(b[51:51+n]) != authority(r) {
		return nil, errors.New("another audience")
	}
	point := b[51+n:]
	lease := s.lease
	if s.honoured > 0 {
		lease = s.honoured
	}
	end = min(end, begin+int64(lease/time.Second))
	switch now := s.now().Unix(); {
	case begin > now+30:
		return nil, refusal{"clock_skew", "the delegation is of the future"}
	case now >= end:
		return nil, refusal{"key_unknown", "the delegation is over"}
	}
	key := &sigKey{expires: time.Unix(end, 0)}
	switch alg {
	case 1:
		key.public = ed25519.PublicKey(point)
		return key, nil
	case 2:
		key.public, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
		return key, err
	}
	own := s.private.PublicKey().Bytes()
	sum := sha256.Sum256(own)
	if m[3] != base64.StdEncoding.EncodeToString(sum[:16]) {
		return nil, refusal{"key_unknown", "agreed with another key"}
	}
	peer, err := ecdh.P256().NewPublicKey(point)
	if err != nil {
		return nil, err
	}
	z, err := s.private.ECDH(peer)
	if err != nil {
		return nil, err
	}
	sum = sha256.Sum256(statement)
	info := "limpet request key 1\x00" + string(sum[:]) + string(point) + string(own)
	key.mac, err = hkdf.Key(sha256.New, z, nil, info, 32)
	return key, err
}

var sigInput = regexp.MustCompile(`^([a-z0-9]+)=(\(((?:"[a-z@-]+" ?)+)\);created=(\d+);nonce="([A-Za-z0-9_-]{22})";keyid="([A-Za-z0-9_-]{43})"(?:;alg="[a-z0-9-]+")?;tag="limpet")$`)

// verify checks form, coverage, time and nonce of a signature, the digest of the
// body, and that by admits the signature.
func (s *sigServer) verify(r *http.Request, body []byte, by func(keyID string, base, sig []byte) error, must ...string) error {
	m := sigInput.FindStringSubmatch(r.Header.Get("Signature-Input"))
	if m == nil {
		return refusal{"proof_required", r.Header.Get("Signature-Input")}
	}
	label, params, names, created, nonce, keyID := m[1], m[2], strings.Fields(m[3]), m[4], m[5], m[6]
	text, ok := strings.CutPrefix(r.Header.Get("Signature"), label+"=:")
	if !ok {
		return errors.New("no signature")
	}
	sig, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(text, ":"))
	if err != nil {
		return err
	}
	var base strings.Builder
	covered := map[string]bool{}
	for _, quoted := range names {
		name := strings.Trim(quoted, `"`)
		covered[name] = true
		var value string
		switch name {
		case "@method":
			value = r.Method
		case "@authority":
			value = authority(r)
		case "@path":
			value = r.URL.EscapedPath()
		case "@query":
			value = "?" + r.URL.RawQuery
		default:
			value = strings.Join(r.Header[textproto.CanonicalMIMEHeaderKey(name)], ", ")
		}
		fmt.Fprintf(&base, "%s: %s\n", quoted, value)
	}
	fmt.Fprintf(&base, "%q: %s", "@signature-params", params)
	for _, name := range append(must, "@method", "@authority", "@path", "@query") {
		if !covered[name] {
			return errors.New(name + " is not covered")
		}
	}
	made, _ := strconv.ParseInt(created, 10, 64)
	if age := s.now().Unix() - made; age > 60 || age < -30 {
		return refusal{"clock_skew", fmt.Sprint(age)}
	}
	if len(body) > 0 {
		sum := sha256.Sum256(body)
		if r.Header.Get("Content-Digest") != "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":" {
			return refusal{"body_mismatch", "another body"}
		}
	}
	if err := by(keyID, []byte(base.String()), sig); err != nil {
		return err
	}
	if s.nonces[nonce] {
		return refusal{"nonce_spent", "used before"}
	}
	s.nonces[nonce] = true
	return nil
}

func authority(r *http.Request) string {
	host := strings.ToLower(r.Host)
	if r.TLS != nil {
		return strings.TrimSuffix(host, ":443")
	}
	return strings.TrimSuffix(host, ":80")
}

func tag(key, message []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(message)
	return mac.Sum(nil)
}

// verifySig verifies in the one form of RFC 9421, or of a delegation.
func verifySig(key crypto.PublicKey, message, sig []byte) error {
	sum := sha256.Sum256(message)
	ok := false
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		ok = len(sig) == 64 && ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, message, sig)
	case *rsa.PublicKey:
		ok = rsa.VerifyPSS(key, crypto.SHA256, sum[:], sig, nil) == nil
	}
	if !ok {
		return errors.New("the signature does not verify")
	}
	return nil
}
