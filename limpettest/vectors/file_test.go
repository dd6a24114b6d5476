package vectors_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/limpettest/vectors"
	"github.com/limpet-auth/limpet/proof"
)

var update = flag.Bool("update", false, "write the files and the example in the documentation anew")

// httpsigFile is httpsig.json; dpopFile is dpop.json. The package's comment
// explains the members.
type httpsigFile struct {
	Comment     []string      `json:"comment"`
	Window      int64         `json:"window"`
	Skew        int64         `json:"skew"`
	Keys        []*key        `json:"keys"`
	Session     session       `json:"session"`
	Server      server        `json:"server"`
	Delegations []*delegation `json:"delegations"`
	Logins      []*request    `json:"logins"`
	Requests    []*request    `json:"requests"`
	Refused     []*refused    `json:"refused"`
}

type dpopFile struct {
	Comment []string   `json:"comment"`
	Window  int64      `json:"window"`
	Skew    int64      `json:"skew"`
	Keys    []*key     `json:"keys"`
	Session session    `json:"session"`
	Proofs  []*jwt     `json:"proofs"`
	Refused []*refused `json:"refused"`
}

type key struct {
	Name      string `json:"name"`
	Algorithm string `json:"algorithm"`
	Private   string `json:"private"`
	Public    string `json:"public"`
	SPKI      string `json:"spki"`
	JWK       string `json:"jwk"`
	KeyID     string `json:"keyid"`
}

type session struct {
	Token string `json:"token"`
	ID    string `json:"id"`
	Field string `json:"field,omitempty"`
	ATH   string `json:"ath,omitempty"`
}

type server struct {
	Key       string `json:"key"`
	ID        string `json:"id"`
	Expires   int64  `json:"exp"`
	Lease     int64  `json:"lease"`
	Text      string `json:"limpet_key"`
	LoginText string `json:"limpet_key_login"`
	Label     string `json:"exporter_label"`
}

type delegation struct {
	Name      string     `json:"name"`
	Device    string     `json:"device"`
	Key       string     `json:"key"`
	Algorithm string     `json:"algorithm"`
	Code      byte       `json:"code"`
	NotBefore int64      `json:"not_before"`
	Expires   int64      `json:"expires"`
	Session   string     `json:"session"`
	Audience  string     `json:"audience"`
	Statement string     `json:"statement"`
	Signature string     `json:"signature"`
	Agreement *agreement `json:"agreement,omitempty"`
	Text      string     `json:"limpet_delegation"`
}

type agreement struct {
	Server    string `json:"server"`
	ID        string `json:"id"`
	Z         string `json:"z"`
	Statement string `json:"statement_sha256"`
	Info      string `json:"info"`
	Secret    string `json:"secret"`
}

// message is the request as it is sent.
type message struct {
	Method    string  `json:"method"`
	Scheme    string  `json:"scheme"`
	Authority string  `json:"authority"`
	Path      string  `json:"path"`
	Query     string  `json:"query"`
	Fields    []field `json:"fields"`
	Body      string  `json:"body"`
}

type field [2]string

type request struct {
	Name       string `json:"name"`
	Key        string `json:"key"`
	Device     string `json:"limpet_device,omitempty"`
	Level      string `json:"level,omitempty"`
	Delegation string `json:"delegation,omitempty"`
	Algorithm  string `json:"algorithm"`
	Created    int64  `json:"created"`
	Nonce      string `json:"nonce"`
	message
	Base       []string `json:"base"`
	ChannelKey string   `json:"channel_key,omitempty"`
	Input      string   `json:"signature_input"`
	Signature  string   `json:"signature"`
	At         at       `json:"server"`
}

// at is what the server knows and wants when the request comes.
type at struct {
	Now       int64  `json:"now"`
	Device    string `json:"device,omitempty"`
	Known     bool   `json:"known"`
	Challenge string `json:"challenge,omitempty"`
	Channel   bool   `json:"channel,omitempty"`
	Exported  string `json:"exported,omitempty"`
}

type jwt struct {
	Name  string `json:"name"`
	Key   string `json:"key"`
	Login bool   `json:"login,omitempty"`
	message
	Header    string `json:"jwt_header"`
	Claims    string `json:"jwt_claims"`
	Input     string `json:"signing_input"`
	Signature string `json:"signature"`
	At        at     `json:"server"`
}

type refused struct {
	Name    string   `json:"name"`
	Of      string   `json:"of"`
	Stage   string   `json:"stage"`
	Reason  string   `json:"reason"`
	Changes []change `json:"changes,omitempty"`
	At      *at      `json:"server,omitempty"`
}

// change is one of "set", "add" and "remove" with what they name.
type change struct {
	Set    string  `json:"set,omitempty"`
	Add    string  `json:"add,omitempty"`
	Remove string  `json:"remove,omitempty"`
	To     *string `json:"to,omitempty"`
}

func read(t testing.TB, name string, into any) []byte {
	t.Helper()
	b, err := vectors.Files.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatal(name, err)
	}
	return b
}

// narrow puts arrays and objects of two strings on one line.
var narrow = regexp.MustCompile(`([\[{])\n\t+("(?:[^"\\]|\\.)*"(?:: "(?:[^"\\]|\\.)*")?)(?:,\n\t+("(?:[^"\\]|\\.)*"(?:: "(?:[^"\\]|\\.)*")?))?\n\t+([\]}])`)

// compare holds a stored file against what it must be, or writes that.
func compare(t *testing.T, name string, stored []byte, file any) {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "\t")
	if err := e.Encode(file); err != nil {
		t.Fatal(err)
	}
	want := narrow.ReplaceAllFunc(b.Bytes(), func(part []byte) []byte {
		m := narrow.FindSubmatch(part)
		if len(m[3]) == 0 {
			return slices.Concat(m[1], m[2], m[4])
		}
		return slices.Concat(m[1], m[2], []byte(", "), m[3], m[4])
	})
	if bytes.Equal(want, stored) {
		return
	}
	if *update {
		if err := os.WriteFile(name, want, 0o644); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s is written anew", name)
		return
	}
	got, lines := strings.Split(string(stored), "\n"), strings.Split(string(want), "\n")
	for i, line := range lines {
		if i >= len(got) || got[i] != line {
			t.Fatalf("%s, line %d, is not %.300s: run the test with -update", name, i+1, line)
		}
	}
	t.Fatalf("%s is longer than it must be", name)
}

// named returns the element of a list that has a name.
func named[T any](t testing.TB, list []T, of func(T) string, name string) T {
	t.Helper()
	for _, v := range list {
		if of(v) == name {
			return v
		}
	}
	t.Fatalf("nothing is called %q", name)
	panic("unreachable")
}

func keyNamed(t testing.TB, keys []*key, name string) *key {
	t.Helper()
	return named(t, keys, func(k *key) string { return k.Name }, name)
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (m message) clone() message {
	m.Fields = slices.Clone(m.Fields)
	return m
}

// lines returns the lines of a field.
func (m *message) lines(name string) (values []string) {
	for _, f := range m.Fields {
		if f[0] == name {
			values = append(values, f[1])
		}
	}
	return values
}

// set replaces a field where it is, or adds it.
func (m *message) set(name, value string) {
	for i := range m.Fields {
		if m.Fields[i][0] == name {
			m.Fields[i][1] = value
			return
		}
	}
	m.add(name, value)
}

func (m *message) add(name, value string) { m.Fields = append(m.Fields, field{name, value}) }

func (m *message) remove(name string) {
	m.Fields = slices.DeleteFunc(m.Fields, func(f field) bool { return f[0] == name })
}

// part returns one of the parts that are no fields, nil if there is none of the
// name.
func (m *message) part(name string) *string {
	switch name {
	case "@method":
		return &m.Method
	case "@scheme":
		return &m.Scheme
	case "@authority":
		return &m.Authority
	case "@path":
		return &m.Path
	case "@query":
		return &m.Query
	case "@body":
		return &m.Body
	}
	return nil
}

// apply makes the changes.
func (m message) apply(t testing.TB, changes []change) message {
	t.Helper()
	m = m.clone()
	for _, c := range changes {
		switch {
		case c.Remove != "":
			m.remove(c.Remove)
		case c.To == nil:
			t.Fatalf("a change to nothing: %+v", c)
		case c.Add != "":
			m.add(c.Add, *c.To)
		case m.part(c.Set) != nil:
			*m.part(c.Set) = *c.To
		default:
			m.set(c.Set, *c.To)
		}
	}
	return m
}

// diff returns the changes that make m of before.
func (m message) diff(before message) (changes []change) {
	for _, name := range []string{"@method", "@scheme", "@authority", "@path", "@query", "@body"} {
		if to := *m.part(name); to != *before.part(name) {
			changes = append(changes, change{Set: name, To: &to})
		}
	}
	var names []string
	for _, f := range slices.Concat(before.Fields, m.Fields) {
		if !slices.Contains(names, f[0]) {
			names = append(names, f[0])
		}
	}
	for _, name := range names {
		was, is := before.lines(name), m.lines(name)
		switch {
		case slices.Equal(was, is):
			continue
		case len(is) == 0:
			changes = append(changes, change{Remove: name})
			continue
		case len(was) == 0 || was[0] != is[0]:
			changes = append(changes, change{Set: name, To: &is[0]})
		}
		for _, more := range is[1:] {
			changes = append(changes, change{Add: name, To: &more})
		}
	}
	return changes
}

// token returns the session token, and whether it is in a cookie.
func (m *message) token() (token string, inCookie bool) {
	for _, line := range m.lines("Cookie") {
		if _, v, ok := strings.Cut(line, "sid="); ok {
			return v, true
		}
	}
	for _, line := range m.lines("Authorization") {
		_, token, _ = strings.Cut(line, " ")
		break
	}
	return token, false
}

// proofMessage is the request as a server has it.
func (m *message) proofMessage(login bool) *proof.Message {
	token, inCookie := m.token()
	out := &proof.Message{
		Method: m.Method, Scheme: m.Scheme, Authority: proof.Authority(m.Scheme, m.Authority), Path: m.Path, RawQuery: m.Query,
		Header: map[string][]string{}, HasBody: m.Body != "",
	}
	if !login {
		out.Session, out.InCookie = sha256.Sum256([]byte(token)), inCookie
	}
	for _, f := range m.Fields {
		out.Header[f[0]] = append(out.Header[f[0]], f[1])
	}
	return out
}

// publicKey returns the key for use with what it is said to be used with.
func (k *key) publicKey(t testing.TB) *proof.PublicKey {
	t.Helper()
	pub, err := proof.ParsePublicKey(algorithms[k.Algorithm], unhex(t, k.Public))
	if err != nil {
		t.Fatalf("%s: %v", k.Name, err)
	}
	return pub
}

var algorithms = map[string]proof.Algorithm{
	"hmac-sha256": proof.HMACSHA256, "ecdsa-p256-sha256": proof.ECDSAP256, "ed25519": proof.Ed25519,
	"rsa-pss-sha512": proof.RSAPSSSHA512, "rsa-v1_5-sha256": proof.RSAPKCS1, "rsa-pss-sha256": proof.RSAPSS,
}

// Stages of the check of a request, see the package's comment.
const (
	atRead   = "read"
	atVerify = "verify"
	atBody   = "body"
	atSpend  = "spend"
	admitted = "admitted"
)

// checked is how far a request came.
type checked struct {
	stage, reason string
	err           error
	proof         *proof.Proof
	key           *proof.EphemeralKey
}

func (c *checked) replayID() string { return string(c.proof.ReplayID(nil, c.key)) }

func refusal(t testing.TB, stage string, err error) *checked {
	t.Helper()
	var r *proof.Refusal
	if !errors.As(err, &r) {
		t.Fatalf("an error that is no refusal: %v", err)
	}
	return &checked{stage: stage, reason: string(r.Reason), err: err}
}

// checkLogin checks a login on a wire.
func checkLogin(t testing.TB, wire proof.Wire, m *message, now int64, policy proof.Policy) *checked {
	t.Helper()
	msg := m.proofMessage(true)
	offer, err := wire.Offer(msg)
	if err != nil {
		return refusal(t, atRead, err)
	}
	if offer == nil {
		t.Fatal("a login without a device key")
	}
	if err := proof.VerifyOffer(msg, offer, time.Unix(now, 0), policy); err != nil {
		return refusal(t, atVerify, err)
	}
	return checkBody(&checked{proof: offer.Proof, key: &proof.EphemeralKey{Public: offer.Key}}, m)
}

// checkRequest checks a request of a session on a wire.
func checkRequest(t testing.TB, wire proof.Wire, m *message, msg *proof.Message, device *proof.PublicKey, known *proof.EphemeralKey, now int64, policy proof.Policy) *checked {
	t.Helper()
	p := new(proof.Proof)
	found, err := wire.Extract(msg, p)
	if err != nil {
		return refusal(t, atRead, err)
	}
	if !found {
		return &checked{stage: atRead, reason: string(proof.Required)}
	}
	if known != nil && known.ID != p.KeyID {
		known = nil
	}
	key, err := proof.Verify(msg, p, device, known, time.Unix(now, 0), policy)
	if err != nil {
		return refusal(t, atVerify, err)
	}
	return checkBody(&checked{proof: p, key: key}, m)
}

// checkBody compares the body with the digest that is covered.
func checkBody(c *checked, m *message) *checked {
	sum := sha256.Sum256([]byte(m.Body))
	if c.proof.Digest && !bytes.Equal(c.proof.BodyClaim, sum[:]) {
		c.stage, c.reason = atBody, string(proof.BodyDiffer)
		return c
	}
	c.stage = admitted
	return c
}

// is reports that the check came out otherwise than it must.
func (c *checked) is(t *testing.T, stage, reason string) {
	t.Helper()
	if c.stage != stage || c.reason != reason {
		t.Errorf("%s %q (%v), want %s %q", c.stage, c.reason, c.err, stage, reason)
	}
}

// names fails if two of the names are one.
func names(t *testing.T, list []string) {
	t.Helper()
	for i, name := range list {
		if name == "" || slices.Contains(list[:i], name) {
			t.Errorf("two are called %q", name)
		}
	}
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
func b64url(b []byte) string {
	return base64.RawURLEncoding.EncodeToString(b)
}
func sum(s string) []byte {
	d := sha256.Sum256([]byte(s))
	return d[:]
}
