package e2e

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The two prefixes of the wire, which spec texts write as P-.
const (
	boundToken = "x-rpc-sec-bound-token-"
	dbcs       = "x-rpc-sec-dbcs-"
)

// peer is a client of the hw-sign wire.
type peer struct {
	base   string // of the server's URL
	prefix string
	b64    func([]byte) string // how it spells base64
	device *key

	user, password, token string
}

// ephemeral is an ephemeral key, and what the server said about it.
type ephemeral struct {
	*key
	own bool // SHORT: the key itself signs the introduction's P-data, as some old clients do

	id      string
	z       []byte // the agreed secret, of an ECDH key
	expires time.Time
}

func newEphemeral(typeName string) *ephemeral {
	return &ephemeral{key: newKey(typeName, ephemeralRSA)}
}

// answer is a response, read to its end.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) field(name string) string {
	var fields map[string]any
	if json.Unmarshal([]byte(a.body), &fields) != nil {
		return ""
	}
	s, _ := fields[name].(string)
	return s
}

func (a answer) reason() string { return a.field("reason") }

func (a answer) String() string { return fmt.Sprintf("%d %s", a.status, strings.TrimSpace(a.body)) }

var transport = &http.Transport{MaxIdleConnsPerHost: 16}

var httpClient = &http.Client{Transport: transport, Timeout: 30 * time.Second}

func do(method, url string, h http.Header, body string) (answer, error) {
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	r.Header = h
	resp, err := httpClient.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b)}, err
}

// send sends a request with the session's token and the headers of a proof.
func (p *peer) send(t testing.TB, method, target string, h http.Header, body string) answer {
	t.Helper()
	a, err := do(method, p.base+target, p.authorized(h), body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	return a
}

func (p *peer) authorized(h http.Header) http.Header {
	all := http.Header{}
	if p.token != "" {
		all.Set("Authorization", "Bearer "+p.token)
	}
	maps.Copy(all, h)
	return all
}

// get sends GET /authenticated with the headers of a proof.
func (p *peer) get(t testing.TB, h http.Header) answer {
	t.Helper()
	return p.send(t, "GET", "/authenticated", h, "")
}

func (p *peer) credentials() string {
	b, _ := json.Marshal(map[string]string{"username": p.user, "password": p.password}) // strings encode
	return string(b)
}

// offer is what a login says about the device key.
func (p *peer) offer() http.Header {
	h := http.Header{}
	h.Set(p.prefix+"hw-pub", p.b64(p.device.public()))
	h.Set(p.prefix+"hw-pub-type", p.device.typeName)
	return h
}

func (p *peer) register() error {
	a, err := do("POST", p.base+"/register", http.Header{}, p.credentials())
	if err == nil && a.status != http.StatusCreated {
		err = fmt.Errorf("register: %v", a)
	}
	return err
}

func (p *peer) login() error {
	a, err := do("POST", p.base+"/login", p.offer(), p.credentials())
	if err != nil {
		return err
	}
	if p.token = a.field("token"); a.status != http.StatusOK || p.token == "" {
		return fmt.Errorf("login: %v", a)
	}
	return nil
}

// introduction is the headers that introduce e with this P-data.
func (p *peer) introduction(e *ephemeral, data string) http.Header {
	signer := e.key
	if strings.EqualFold(e.typeName, "ecdh") && !e.own {
		signer = p.device
	}
	h := http.Header{}
	text := p.b64(e.public())
	h.Set(p.prefix+"accel-pub", text)
	h.Set(p.prefix+"accel-pub-type", e.typeName)
	h.Set(p.prefix+"accel-pub-sig", p.b64(p.device.sign([]byte(text))))
	h.Set(p.prefix+"data", data)
	h.Set(p.prefix+"data-sig", p.b64(signer.sign([]byte(data))))
	return h
}

// proof is the headers that prove possession of e with this P-data.
func (p *peer) proof(e *ephemeral, data string) http.Header {
	h := http.Header{}
	h.Set(p.prefix+"accel-pub-id", e.id)
	h.Set(p.prefix+"data", data)
	h.Set(p.prefix+"data-sig", p.b64(e.prove([]byte(data))))
	return h
}

func (e *ephemeral) prove(data []byte) []byte {
	if e.z == nil {
		return e.sign(data)
	}
	mac := hmac.New(sha256.New, e.z)
	mac.Write(data)
	return mac.Sum(nil)
}

// learn takes from the answer what the server says about e.
func (p *peer) learn(e *ephemeral, a answer) error {
	if a.status != http.StatusOK {
		return fmt.Errorf("introduction: %v", a)
	}
	if e.id = a.header.Get(p.prefix + "accel-pub-id"); e.id == "" {
		return errors.New("the answer to an introduction has no accel-pub-id under the request's prefix")
	}
	seconds, err := strconv.ParseInt(a.header.Get(p.prefix+"accel-pub-expire"), 10, 64)
	if err != nil {
		return fmt.Errorf("accel-pub-expire: %w", err)
	}
	e.expires = time.Unix(seconds, 0)
	other := boundToken
	if p.prefix == boundToken {
		other = dbcs
	}
	if a.header.Get(other+"accel-pub-id") != "" {
		return errors.New("the answer uses the other prefix too")
	}
	text := a.header.Get(p.prefix + "accel-pub")
	if name := strings.ToLower(e.typeName); strings.HasPrefix(name, "ecdh") {
		server, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return fmt.Errorf("accel-pub: %w", err)
		}
		e.z, err = e.agree(server, name == "ecdh-p256")
		return err
	}
	if text != "" {
		return errors.New("a signing key was answered with a server key")
	}
	return nil
}

func (p *peer) introduce(t testing.TB, e *ephemeral) {
	t.Helper()
	if err := p.learn(e, p.get(t, p.introduction(e, stamp()))); err != nil {
		t.Fatal(err)
	}
}

// stamp is P-data as the README of hw-sign has it.
func stamp() string { return stampAt(time.Now()) }

func stampAt(at time.Time) string { return fmt.Sprintf("%d-%s", at.Unix(), randomHex(32)) }

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// newPeer returns a peer of a user of its own, registered and logged in.
func newPeer(t testing.TB, base, deviceType string) *peer {
	t.Helper()
	p := stranger(base, deviceType)
	if err := p.register(); err != nil {
		t.Fatal(err)
	}
	p.mustLogin(t)
	return p
}

// stranger returns a peer whom the server has not met.
func stranger(base, deviceType string) *peer {
	return &peer{
		base: base, prefix: boundToken, b64: base64.StdEncoding.EncodeToString,
		device: newKey(deviceType, deviceRSA),
		user:   "alice-" + randomHex(6), password: "correct horse " + randomHex(8),
	}
}

// again returns the same user on another device, logged in.
func (p *peer) again(t testing.TB) *peer {
	t.Helper()
	q := *p
	q.device, q.token = newKey(p.device.typeName, newRSA), ""
	q.mustLogin(t)
	return &q
}

func (p *peer) mustLogin(t testing.TB) {
	t.Helper()
	if err := p.login(); err != nil {
		t.Fatal(err)
	}
}

// ready returns a logged-in peer with an ephemeral key that is introduced.
func ready(t testing.TB, base, deviceType, ephemeralType string) (*peer, *ephemeral) {
	t.Helper()
	p, e := newPeer(t, base, deviceType), newEphemeral(ephemeralType)
	p.introduce(t, e)
	return p, e
}

// with returns h with one header of the wire replaced.
func (p *peer) with(h http.Header, name, val string) http.Header {
	h = h.Clone()
	h.Set(p.prefix+name, val)
	return h
}

func wantAdmitted(t testing.TB, what string, a answer) {
	t.Helper()
	var fields struct{ Authenticated bool }
	if a.status != http.StatusOK || json.Unmarshal([]byte(a.body), &fields) != nil || !fields.Authenticated {
		t.Errorf("%s: got %v, want it admitted", what, a)
	}
}

// wantRefused checks status, shape and, unless it is "", the reason.
func wantRefused(t testing.TB, what string, a answer, status int, reason string) {
	t.Helper()
	if a.status != status || reason != "" && a.reason() != reason {
		t.Errorf("%s: got %v, want %d %s", what, a, status, reason)
		return
	}
	if a.field("message") == "" || a.reason() == "" || !strings.HasPrefix(a.header.Get("Content-Type"), "application/json") {
		t.Errorf("%s: the refusal is not JSON with message and reason: %v", what, a)
	}
	for name := range a.header {
		if strings.HasPrefix(name, "X-Rpc-Sec-") {
			t.Errorf("%s: a refusal carries %s", what, name)
		}
	}
}
