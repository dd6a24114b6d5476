package limpet

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/hwsign"
	"github.com/limpet-auth/limpet/store/memstore"
)

var b64 = base64.StdEncoding.EncodeToString

// site is an app behind a guard whose clock the test sets.
type site struct {
	*Guard
	t     testing.TB
	store Store
	log   *bytes.Buffer
	clock atomic.Int64 // unix nanoseconds
	next  http.Handler // what Protect admits to
	seen  *Binding     // what the app was told last; nil after a refusal
}

func newSite(t testing.TB, cfg Config) *site {
	t.Helper()
	s := &site{t: t, log: new(bytes.Buffer)}
	if cfg.Store == nil {
		cfg.Store = memstore.New(nil)
	}
	if cfg.Session == (Session{}) {
		cfg.Session = Bearer()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(&lockedWriter{w: s.log}, nil))
	}
	s.store = cfg.Store
	var err error
	if s.Guard, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	s.clock.Store(time.Now().UnixNano())
	s.Guard.now = s.time
	s.next = s.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.seen = FromContext(r.Context())
		io.Copy(w, r.Body)
	}))
	return s
}

func (s *site) time() time.Time      { return time.Unix(0, s.clock.Load()) }
func (s *site) pass(d time.Duration) { s.clock.Add(int64(d)) }

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// device is a client: a device key and an ephemeral ECDH key of the LONG dialect.
type device struct {
	site      *site
	token     string
	key       *ecdsa.PrivateKey
	ephemeral *ecdh.PrivateKey
	id        string
	secret    []byte
}

func newECDSA(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (s *site) login(token, user string) *device {
	s.t.Helper()
	d := &device{site: s, token: token, key: newECDSA(s.t)}
	if err := d.bind(user); err != nil {
		s.t.Fatal(err)
	}
	return d
}

func (d *device) bind(user string) error {
	der, err := x509.MarshalPKIXPublicKey(&d.key.PublicKey)
	if err != nil {
		d.site.t.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/login", nil)
	r.Header.Set(hwsign.BoundToken.DeviceKey, b64(der))
	r.Header.Set(hwsign.BoundToken.DeviceKeyType, "ecdsa")
	return d.site.Bind(httptest.NewRecorder(), r, d.token, user)
}

func (d *device) sign(message []byte) string {
	return sign(d.site.t, d.key, message)
}

func sign(t testing.TB, key *ecdsa.PrivateKey, message []byte) string {
	sum := sha256.Sum256(message)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return b64(sig)
}

// value is a fresh P-data.
func (s *site) value() string {
	var r [16]byte
	rand.Read(r[:])
	return fmt.Sprintf("%d-%x", s.time().Unix(), r)
}

// introduction makes the headers that introduce a key of the SHORT dialect, in
// which the device key signs the value.
func (d *device) introduction(ephemeral *ecdh.PrivateKey, value string) http.Header {
	n := hwsign.BoundToken
	text := b64(ephemeral.PublicKey().Bytes())
	h := http.Header{}
	h.Set(n.EphemeralKey, text)
	h.Set(n.EphemeralType, "ecdh")
	h.Set(n.EphemeralSig, d.sign([]byte(text)))
	h.Set(n.Data, value)
	h.Set(n.DataSig, d.sign([]byte(value)))
	return h
}

func newECDH(t testing.TB) *ecdh.PrivateKey {
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// introduce sends a fresh introduction and takes the answer.
func (d *device) introduce() *httptest.ResponseRecorder {
	d.site.t.Helper()
	d.ephemeral = newECDH(d.site.t)
	w := d.send("GET", "/", "", d.introduction(d.ephemeral, d.site.value()))
	if w.Code == 200 {
		d.take(w)
	}
	return w
}

func (d *device) take(w *httptest.ResponseRecorder) {
	d.site.t.Helper()
	d.id = w.Header().Get(hwsign.BoundToken.EphemeralID)
	raw, err := base64.StdEncoding.DecodeString(w.Header().Get(hwsign.BoundToken.EphemeralKey))
	if err != nil {
		d.site.t.Fatal(err)
	}
	server, err := ecdh.P256().NewPublicKey(raw)
	if err != nil {
		d.site.t.Fatal(err)
	}
	if d.secret, err = d.ephemeral.ECDH(server); err != nil {
		d.site.t.Fatal(err)
	}
}

func (d *device) proof(value string) http.Header {
	mac := hmac.New(sha256.New, d.secret)
	mac.Write([]byte(value))
	h := http.Header{}
	h.Set(hwsign.BoundToken.EphemeralID, d.id)
	h.Set(hwsign.BoundToken.Data, value)
	h.Set(hwsign.BoundToken.DataSig, b64(mac.Sum(nil)))
	return h
}

func (d *device) send(method, target, body string, h http.Header) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for name, v := range h {
		r.Header[name] = v
	}
	if d.token != "" {
		r.Header.Set("Authorization", "Bearer "+d.token)
	}
	w := httptest.NewRecorder()
	d.site.seen = nil
	d.site.next.ServeHTTP(w, r)
	return w
}

// get sends a fresh proof.
func (d *device) get() *httptest.ResponseRecorder {
	return d.send("GET", "/", "", d.proof(d.site.value()))
}

func reasonIn(t testing.TB, w *httptest.ResponseRecorder) proof.Reason {
	t.Helper()
	if w.Code == 200 {
		return ""
	}
	var body struct{ Message, Reason string }
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Message == "" {
		t.Errorf("%d without the JSON of a refusal: %q", w.Code, w.Body)
	}
	if auth := w.Header().Get("WWW-Authenticate"); w.Code == 401 && !strings.HasPrefix(auth, fmt.Sprintf("Limpet error=%q", body.Reason)) {
		t.Errorf("WWW-Authenticate: %q", auth)
	}
	return proof.Reason(body.Reason)
}

func expect(t testing.TB, what string, w *httptest.ResponseRecorder, want proof.Reason) {
	t.Helper()
	if got := reasonIn(t, w); got != want {
		t.Errorf("%s: %d %q, want %q", what, w.Code, got, want)
	}
}
