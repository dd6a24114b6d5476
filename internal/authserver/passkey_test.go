package authserver

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/store/memstore"
)

const site = "app.example:8443"

// authenticator is one with a single passkey, of ES256 and without attestation. What
// it signs is what a browser at origin would have it sign for the site.
type authenticator struct {
	key         *ecdsa.PrivateKey
	id, handle  []byte
	origin, rp  string
	count       uint32
	unverified  bool // nobody has shown a finger
	crossOrigin bool
	attested    bool   // says who made it
	modulus     []byte // of an RSA key in place of key
}

func newAuthenticator(t *testing.T) *authenticator {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authenticator{key: key, id: make([]byte, 32), origin: "https://" + site, rp: "app.example"}
	rand.Read(a.id)
	return a
}

var b64 = base64.RawURLEncoding

func (a *authenticator) clientData(kind, challenge string) []byte {
	b, _ := json.Marshal(map[string]any{"type": kind, "challenge": challenge, "origin": a.origin, "crossOrigin": a.crossOrigin})
	return b
}

func (a *authenticator) data(flags byte) []byte {
	if a.unverified {
		flags &^= 4
	}
	rp := sha256.Sum256([]byte(a.rp))
	return binary.BigEndian.AppendUint32(append(rp[:], flags), a.count)
}

// make returns what a browser sends after navigator.credentials.create, without
// attestation.
func (a *authenticator) make(options map[string]any) string {
	publicKey := options["publicKey"].(map[string]any)
	a.handle, _ = b64.DecodeString(publicKey["user"].(map[string]any)["id"].(string))
	point, _ := a.key.PublicKey.Bytes()
	cose := append([]byte{0xa5, 1, 2, 3, 0x26, 0x20, 1, 0x21, 0x58, 32}, point[1:33]...) // EC2, ES256, P-256
	cose = append(append(cose, 0x22, 0x58, 32), point[33:]...)
	if a.modulus != nil { // RSA, RS256
		cose = binary.BigEndian.AppendUint16([]byte{0xa4, 1, 3, 3, 0x39, 1, 0, 0x20, 0x59}, uint16(len(a.modulus)))
		cose = append(append(cose, a.modulus...), 0x21, 0x43, 1, 0, 1)
	}
	data := a.data(1 | 4 | 0x40)
	data = append(data, make([]byte, 16)...) // no model
	data = binary.BigEndian.AppendUint16(data, uint16(len(a.id)))
	data = append(append(data, a.id...), cose...)
	statement := "\x64none\x67attStmt\xa0"
	if a.attested {
		statement = "\x66packed\x67attStmt\xa2\x63alg\x26\x63sig\x41x" // which does not hold
	}
	object := binary.BigEndian.AppendUint16([]byte("\xa3\x63fmt"+statement+"\x68authData\x59"), uint16(len(data)))
	client := a.clientData("webauthn.create", publicKey["challenge"].(string))
	b, _ := json.Marshal(map[string]any{"id": b64.EncodeToString(a.id), "rawId": b64.EncodeToString(a.id), "type": "public-key",
		"response": map[string]any{"clientDataJSON": b64.EncodeToString(client), "attestationObject": b64.EncodeToString(append(object, data...))}})
	return string(b)
}

// sign returns what a browser sends after navigator.credentials.get.
func (a *authenticator) sign(options map[string]any) string {
	client := a.clientData("webauthn.get", options["publicKey"].(map[string]any)["challenge"].(string))
	a.count++
	data := a.data(1 | 4)
	hash := sha256.Sum256(client)
	sum := sha256.Sum256(append(bytes.Clone(data), hash[:]...))
	signature, err := ecdsa.SignASN1(rand.Reader, a.key, sum[:])
	if err != nil {
		panic(err)
	}
	b, _ := json.Marshal(map[string]any{"id": b64.EncodeToString(a.id), "rawId": b64.EncodeToString(a.id), "type": "public-key",
		"response": map[string]any{"clientDataJSON": b64.EncodeToString(client), "authenticatorData": b64.EncodeToString(data),
			"signature": b64.EncodeToString(signature), "userHandle": b64.EncodeToString(a.handle)}})
	return string(b)
}

// at makes requests of a host.
type at struct {
	s    http.Handler
	host string
}

func (a at) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Host = a.host
	a.s.ServeHTTP(w, r)
}

// makePasskey registers alice, and returns the passkey that she makes.
func makePasskey(t *testing.T, s http.Handler) (*authenticator, string) {
	t.Helper()
	do(t, s, "POST", "/register", "", account("alice", "secret"))
	token := login(t, s, "alice", "secret")
	a := newAuthenticator(t)
	_, options := do(t, s, "POST", "/passkey/options", token, "")
	if code, answer := do(t, s, "POST", "/passkey", token, a.make(options)); code != 201 {
		t.Fatalf("%d %v", code, answer)
	}
	return a, token
}

func TestPasskey(t *testing.T) {
	server, log := newServer(t, Config{})
	s := at{server, site}
	a, _ := makePasskey(t, s)
	for range 2 {
		_, options := do(t, s, "POST", "/login/passkey/options", "", "")
		code, answer := do(t, s, "POST", "/login/passkey", "", a.sign(options))
		if code != 200 {
			t.Fatalf("%d %v\n%s", code, answer, log)
		}
		if _, me := do(t, s, "GET", "/authenticated", answer["token"].(string), ""); me["user"] != "alice" {
			t.Errorf("%v", me)
		}
	}
	// The handle says nothing of the user, and stays with her.
	if strings.Contains(string(a.handle), "alice") || len(a.handle) != 32 {
		t.Errorf("handle %q", a.handle)
	}
	_, options := do(t, s, "POST", "/passkey/options", login(t, s, "alice", "secret"), "")
	if id := options["publicKey"].(map[string]any)["user"].(map[string]any)["id"]; id != b64.EncodeToString(a.handle) {
		t.Errorf("another handle, %v", id)
	}
	if strings.Contains(log.String(), "secret") {
		t.Errorf("the log has a secret:\n%s", log)
	}
}

// TestPasskeyRefusals: none of these logs in, and the answer says nothing of why.
func TestPasskeyRefusals(t *testing.T) {
	server, log := newServer(t, Config{})
	s := at{server, site}
	a, token := makePasskey(t, s)
	begin := func() map[string]any {
		_, options := do(t, s, "POST", "/login/passkey/options", "", "")
		return options
	}
	with := func(change func(*authenticator)) *authenticator {
		other := *a
		other.count = 100
		change(&other)
		return &other
	}
	refused := func(what, body string) {
		t.Helper()
		if code, answer := do(t, s, "POST", "/login/passkey", "", body); code != 401 || answer["reason"] != "passkey_invalid" || answer["token"] != nil {
			t.Errorf("%s: %d %v", what, code, answer)
		}
	}
	for what, other := range map[string]*authenticator{
		"another site's page":   with(func(a *authenticator) { a.origin = "https://evil.example" }),
		"another port":          with(func(a *authenticator) { a.origin = "https://app.example" }),
		"without TLS":           with(func(a *authenticator) { a.origin = "http://" + site }),
		"for another name":      with(func(a *authenticator) { a.rp = "evil.example" }),
		"in a foreign frame":    with(func(a *authenticator) { a.crossOrigin = true }),
		"without verification":  with(func(a *authenticator) { a.unverified = true }),
		"another key":           with(func(a *authenticator) { a.key = newAuthenticator(t).key }),
		"another credential":    with(func(a *authenticator) { a.id = bytes.Repeat([]byte{1}, 32) }),
		"another user's handle": with(func(a *authenticator) { a.handle = bytes.Repeat([]byte{1}, 32) }),
		"no handle":             with(func(a *authenticator) { a.handle = nil }),
		"a handle out of bounds": with(func(a *authenticator) {
			a.handle = bytes.Repeat([]byte{'x'}, 300)
		}),
	} {
		refused(what, other.sign(begin()))
	}

	used := a.sign(begin())
	if code, answer := do(t, s, "POST", "/login/passkey", "", used); code != 200 {
		t.Fatalf("%d %v\n%s", code, answer, log)
	}
	refused("sent again", used)
	options := begin()
	if code, _ := do(t, s, "POST", "/login/passkey", "", a.sign(options)); code != 200 {
		t.Fatal("not admitted")
	}
	refused("a challenge signed twice", a.sign(options))
	refused("a counter that went back", with(func(a *authenticator) { a.count = 0 }).sign(begin()))
	refused("a challenge of nobody's", a.sign(map[string]any{"publicKey": map[string]any{"challenge": b64.EncodeToString(make([]byte, 56))}}))
	_, making := do(t, s, "POST", "/passkey/options", token, "")
	refused("a challenge for making one", a.sign(making))
	old := begin()
	server.passkeys.now = func() time.Time { return time.Now().Add(ceremonyTime + time.Second) }
	refused("a challenge that is over", a.sign(old))
	server.passkeys.now = time.Now
	for _, garbage := range []string{"", "{}", "[]", "null", "\xff", `{"id":"x","rawId":"x","type":"public-key","response":{}}`, strings.Repeat("[", 5000)} {
		refused(fmt.Sprintf("%.20q", garbage), garbage)
	}
	if code, answer := do(t, s, "POST", "/login/passkey", "", strings.Repeat(" ", maxBody+1)); code != 413 || answer["reason"] != "body_too_large" {
		t.Errorf("a large body: %d %v", code, answer)
	}

	// A passkey is for the name that it was made at.
	elsewhere := at{server, "other.example"}
	_, options = do(t, elsewhere, "POST", "/login/passkey/options", "", "")
	moved := with(func(a *authenticator) { a.origin, a.rp = "https://other.example", "other.example" })
	if code, answer := do(t, elsewhere, "POST", "/login/passkey", "", moved.sign(options)); code != 401 {
		t.Errorf("at another name: %d %v", code, answer)
	}
	// The browser offers it to the same name's other ports, which may be somebody else's,
	// who then asks with a Host that fits.
	elsewhere = at{server, "app.example:9999"}
	_, options = do(t, elsewhere, "POST", "/login/passkey/options", "", "")
	moved = with(func(a *authenticator) { a.origin = "https://app.example:9999" })
	if code, answer := do(t, elsewhere, "POST", "/login/passkey", "", moved.sign(options)); code != 401 {
		t.Errorf("at another port: %d %v", code, answer)
	}
	for _, host := range []string{"127.0.0.1:28280", "[::1]:28280", "", "a b", "app.example:8443:1", "-x-", "[fe80::1%25eth0]", strings.Repeat("a.", 200) + "example"} {
		if code, answer := do(t, at{server, host}, "POST", "/login/passkey/options", "", ""); code != 400 || answer["reason"] != "no_relying_party" {
			t.Errorf("%q: %d %v", host, code, answer)
		}
	}
	for _, host := range []string{"localhost:28280", "LOCALHOST", "app.localhost:1", "app.example"} {
		if code, answer := do(t, at{server, host}, "POST", "/login/passkey/options", "", ""); code != 200 {
			t.Errorf("%q: %d %v", host, code, answer)
		}
	}
}

// TestPasskeyMaking: a passkey is made by who is logged in, for themselves, once for
// each challenge, and not any number of them.
func TestPasskeyMaking(t *testing.T) {
	server, _ := newServer(t, Config{})
	s := at{server, site}
	_, token := makePasskey(t, s)
	for _, path := range []string{"/passkey", "/passkey/options"} {
		if code, _ := do(t, s, "POST", path, "", "{}"); code != 401 {
			t.Errorf("%s without a session: %d", path, code)
		}
		if code, _ := do(t, s, "GET", path, token, ""); code != 405 {
			t.Errorf("GET %s: %d", path, code)
		}
	}
	_, options := do(t, s, "POST", "/passkey/options", token, "")
	do(t, s, "POST", "/register", "", account("mallory", "secret"))
	mallory := login(t, s, "mallory", "secret")
	if code, _ := do(t, s, "POST", "/passkey", mallory, newAuthenticator(t).make(options)); code != 401 {
		t.Errorf("with another's challenge: %d", code)
	}
	a := newAuthenticator(t)
	a.origin = "https://evil.example"
	if code, _ := do(t, s, "POST", "/passkey", token, a.make(options)); code != 401 {
		t.Errorf("at another site: %d", code)
	}
	a.origin, a.unverified = "https://"+site, true
	if code, _ := do(t, s, "POST", "/passkey", token, a.make(options)); code != 401 {
		t.Errorf("without verification: %d", code)
	}
	a.unverified = false
	a.attested = true // which nobody looks at
	if code, _ := do(t, s, "POST", "/passkey", token, a.make(options)); code != 201 {
		t.Errorf("%d", code)
	}
	if code, _ := do(t, s, "POST", "/passkey", token, newAuthenticator(t).make(options)); code != 401 {
		t.Errorf("with the same challenge: %d", code)
	}
	// Every login that names it would have the server reckon for seconds.
	_, options = do(t, s, "POST", "/passkey/options", token, "")
	large := newAuthenticator(t)
	large.modulus = bytes.Repeat([]byte{0xff}, 30_000)
	if code, _ := do(t, s, "POST", "/passkey", token, large.make(options)); code != 401 {
		t.Fatalf("with a key of 30 kB: %d", code)
	}
	var last *authenticator
	_, late := do(t, s, "POST", "/passkey/options", token, "")
	for i := 2; i <= maxPasskeys; i++ {
		code, options := do(t, s, "POST", "/passkey/options", token, "")
		// An authenticator makes no second one in place of the first.
		if i < maxPasskeys {
			if not := options["publicKey"].(map[string]any)["excludeCredentials"].([]any); len(not) != i {
				t.Errorf("of %d passkeys %v are told", i, not)
			}
		} else if code != 409 { // else it is made first, and then not kept
			t.Errorf("options for one too many: %d", code)
		} else {
			options = late
		}
		other := newAuthenticator(t)
		code, answer := do(t, s, "POST", "/passkey", token, other.make(options))
		if want := map[bool]int{true: 201, false: 409}[i < maxPasskeys]; code != want {
			t.Errorf("passkey %d: %d %v", i+1, code, answer)
		} else if code == 201 {
			last = other
		}
	}
	_, options = do(t, s, "POST", "/login/passkey/options", "", "")
	if code, _ := do(t, s, "POST", "/login/passkey", "", last.sign(options)); code != 200 {
		t.Errorf("the last one: %d", code)
	}
}

// TestPasskeyStoreDown: an outage is none of the passkey's faults.
func TestPasskeyStoreDown(t *testing.T) {
	mem := memstore.New(nil)
	key := bytes.Repeat([]byte{1}, 32)
	up, _ := newServer(t, Config{Store: mem, SealKey: key})
	a, token := makePasskey(t, at{up, site})
	dead, _ := newServer(t, Config{Store: down{}, SealKey: key})
	s := at{dead, site}
	_, options := do(t, s, "POST", "/login/passkey/options", "", "") // which needs none
	if code, answer := do(t, s, "POST", "/login/passkey", "", a.sign(options)); code != 503 || answer["reason"] != "unavailable" {
		t.Errorf("login: %d %v", code, answer)
	}
	if code, _ := do(t, s, "POST", "/passkey/options", token, ""); code != 503 {
		t.Errorf("making one: %d", code)
	}
	// A challenge is good at every server of the store.
	if code, answer := do(t, at{up, site}, "POST", "/login/passkey", "", a.sign(options)); code != 200 {
		t.Errorf("another server's challenge: %d %v", code, answer)
	}
}

// lifetimes notes for how long challenges are remembered.
type lifetimes struct {
	limpet.Store
	of []time.Duration
}

func (l *lifetimes) Add(ctx context.Context, key string, val []byte, ttl time.Duration) (bool, error) {
	if strings.HasPrefix(key, "auth:challenge:") {
		l.of = append(l.of, ttl)
	}
	return l.Store.Add(ctx, key, val, ttl)
}

// TestPasskeyLateClock: a challenge counts once, also at a server whose clock is behind
// that of the one where it was spent.
func TestPasskeyLateClock(t *testing.T) {
	store := &lifetimes{Store: memstore.New(nil)}
	server, _ := newServer(t, Config{Store: store})
	makePasskey(t, at{server, site})
	if len(store.of) != 1 || store.of[0] < ceremonyTime+time.Minute {
		t.Errorf("remembered for %v", store.of)
	}
}

// FuzzPasskey: bodies of strangers are refused, whatever they are.
func FuzzPasskey(f *testing.F) {
	s, err := New(Config{Store: memstore.New(nil), SealKey: bytes.Repeat([]byte{1}, 32), Rule: limpet.Rule{}})
	if err != nil {
		f.Fatal(err)
	}
	a := &authenticator{id: make([]byte, 16), origin: "https://" + site, rp: "app.example", handle: make([]byte, 32)}
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		f.Fatal(err)
	}
	challenge := map[string]any{"publicKey": map[string]any{"challenge": b64.EncodeToString(s.passkeys.challenge(toLogIn)),
		"user": map[string]any{"id": b64.EncodeToString(a.handle)}}}
	f.Add(a.sign(challenge))
	f.Add(a.make(challenge))
	f.Add("{}")
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest("POST", "/login/passkey", strings.NewReader(body))
		r.Host = site
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != 401 && w.Code != 413 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

// TestDemoPageServed: who opens the server's address finds something there.
func TestDemoPageServed(t *testing.T) {
	s, _ := newServer(t, Config{Rule: limpet.Rule{Mode: limpet.Require}})
	for path, code := range map[string]int{"/": 200, "/demo/demo.js": 200, "/demo/limpet.js": 200, "/demo/nothing": 404, "/demo": 404} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != code {
			t.Errorf("%s: %d, want %d", path, w.Code, code)
		}
	}
}
