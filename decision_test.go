package limpet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/store/memstore"
)

// told collects decisions.
type told struct {
	mu  sync.Mutex
	all []Decision
}

func (c *told) decided(_ context.Context, d *Decision) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, *d)
}

// since returns what was decided since the last call.
func (c *told) since() []Decision {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.all
	c.all = nil
	return all
}

// one wants exactly one decision.
func (c *told) one(t *testing.T, what string, result Result, reason proof.Reason, format Format) Decision {
	t.Helper()
	all := c.since()
	if len(all) != 1 {
		t.Fatalf("%s: %d decisions: %+v", what, len(all), all)
	}
	d := all[0]
	if d.Result != result || d.Reason != reason || d.Format != format {
		t.Errorf("%s: %s, %q, %s; want %s, %q, %s", what, d.Result, d.Reason, d.Format, result, reason, format)
	}
	if (d.Err == nil) != (reason == "") {
		t.Errorf("%s: the error is %v", what, d.Err)
	}
	return d
}

func TestDecisions(t *testing.T) {
	var c told
	s := newSite(t, Config{Decided: c.decided, Routes: []Route{
		{"/strict/", Rule{Mode: Require}},
		{"/new/", Rule{Mode: Observe}},
		{"/streamed/", Rule{Body: StreamBody}},
		{"/admin/", Rule{MinLevel: Hardware}},
	}})
	anonymous := &device{site: s}
	anonymous.send("GET", "/path?query", "", nil)
	if d := c.one(t, "nobody", Admitted, "", NoProof); d.Method != "GET" || d.Path != "/path" || d.Session != (ID{}) || d.Level != None || d.Took <= 0 {
		t.Errorf("nobody: %+v", d)
	}
	(&device{site: s, token: "unbound"}).send("GET", "/", "", nil)
	if d := c.one(t, "unbound", Admitted, "", NoProof); d.Session != Bearer().ID("unbound") || d.User != "" || d.Level != None {
		t.Errorf("unbound: %+v", d)
	}
	anonymous.send("GET", "/strict/", "", nil)
	c.one(t, "nobody where a session is required", Refused, proof.SessionRequired, NoProof)
	anonymous.send("GET", "/new/", "", nil)
	c.one(t, "nobody, observed", WouldRefuse, proof.SessionRequired, NoProof)

	// A login and requests on hw-sign.
	d := s.login("token", "alice")
	bound := c.one(t, "login", Bound, "", HWSign)
	if bound.User != "alice" || bound.Level != Software || len(bound.Key) != 43 || bound.Session != Bearer().ID("token") || bound.Path != "/login" {
		t.Errorf("login: %+v", bound)
	}
	d.introduce()
	c.one(t, "introduction", Admitted, "", HWSign)
	h := d.proof(s.value())
	d.send("GET", "/", "", h)
	if got := c.one(t, "proof", Admitted, "", HWSign); got.User != "alice" || got.Level != Software || got.Key != bound.Key || got.Session != bound.Session {
		t.Errorf("proof: %+v", got)
	}
	refused := func(what string, reason proof.Reason, format Format) {
		t.Helper()
		got := c.one(t, what, Refused, reason, format)
		if got.User != "" || got.Level != "" || got.Key != "" || got.Client != "" {
			t.Errorf("%s: somebody is named: %+v", what, got)
		}
		if got.Session != bound.Session {
			t.Errorf("%s: session %s", what, got.Session)
		}
	}
	d.send("GET", "/", "", h)
	refused("replay", proof.NonceSpent, HWSign)
	d.send("GET", "/", "", nil)
	refused("no proof", proof.Required, NoProof)
	d.send("GET", "/admin/", "", d.proof(s.value()))
	refused("level", proof.LevelTooLow, HWSign)
	h = d.proof(s.value())
	h[http.CanonicalHeaderKey("X-Rpc-Sec-Bound-Token-Data-Sig")] = []string{"!"}
	d.send("GET", "/", "", h)
	refused("garbage", proof.Malformed, HWSign)

	// On Limpet's own wire, with bodies.
	own := s.hold("another")
	c.one(t, "login", Bound, "", RFC9421)
	own.get(true)
	c.one(t, "introduction", Admitted, "", RFC9421)
	r := own.request("POST", "/streamed/", "amount=1", false)
	r.Body = io.NopCloser(strings.NewReader("amount=9"))
	s.serve(r)
	all := c.since()
	if len(all) != 2 || all[0].Result != Admitted || all[1].Result != BrokenOff || all[1].Reason != proof.BodyDiffer || all[1].Format != RFC9421 || all[1].User != "alice" {
		t.Errorf("another body, streamed: %+v", all)
	}
	r = own.request("POST", "/", "amount=1", false)
	r.Body = io.NopCloser(strings.NewReader("amount=9"))
	s.serve(r)
	c.one(t, "another body", Refused, proof.BodyDiffer, RFC9421)

	// What never gets to a rule.
	s.serve(httptest.NewRequest("GET", "/strict%2Fx", nil))
	c.one(t, "a path with two rules", Refused, proof.Malformed, NoProof)
	opaque := httptest.NewRequest("GET", "/", nil)
	opaque.URL.Opaque = "x:anything"
	s.serve(opaque)
	c.one(t, "a target that is no path", Refused, proof.Malformed, NoProof)
	login := own.loginRequest(own.device)
	login.Body = io.NopCloser(strings.NewReader("another word"))
	s.CheckBody(nil).ServeHTTP(httptest.NewRecorder(), login)
	c.one(t, "a login with another body", Refused, proof.BodyDiffer, NoProof)
	if err := s.Bind(httptest.NewRecorder(), own.loginRequest(newECDSA(t)), "third", "bob"); err == nil {
		t.Fatal("bound")
	}
	if got := c.one(t, "a login with a key that is another's", Refused, proof.Invalid, RFC9421); got.User != "" || got.Key != "" {
		t.Errorf("somebody is named: %+v", got)
	}
	if err := s.Bind(httptest.NewRecorder(), httptest.NewRequest("POST", "/login", nil), "another", "bob"); !errors.Is(err, ErrBound) {
		t.Fatal(err)
	}
	c.one(t, "a session that is bound", Refused, internalError, NoProof)

	// Sessions that are carried over and end.
	ctx := context.Background()
	if err := s.Rebind(ctx, http.Header{}, "another", "next"); err != nil {
		t.Fatal(err)
	}
	if got := c.one(t, "rebind", Rebound, "", NoProof); got.Session != Bearer().ID("another") || got.User != "alice" {
		t.Errorf("rebind: %+v", got)
	}
	if err := s.Rebind(ctx, http.Header{}, "unknown", "next2"); !errors.Is(err, ErrNoSession) || len(c.since()) != 0 {
		t.Errorf("rebind of nothing: %v", err)
	}
	if err := s.Rebind(ctx, http.Header{}, "token", "next"); !errors.Is(err, ErrBound) {
		t.Fatal(err)
	}
	c.one(t, "rebind to another's", BrokenOff, internalError, NoProof)
	for range 2 { // the second time nothing is left to end
		if err := s.Revoke(ctx, Bearer().ID("next")); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.one(t, "revoke", Revoked, "", NoProof); got.Session != Bearer().ID("another") || got.User != "alice" {
		t.Errorf("revoke: %+v", got)
	}
	own.get(false)
	c.one(t, "a revoked session", Refused, proof.SessionEnded, NoProof)
}

// Where all rules only observe, so do logins.
func TestObservedDecisions(t *testing.T) {
	var c told
	s := newSite(t, Config{Decided: c.decided, Rule: Rule{Mode: Observe}})
	if err := s.Bind(httptest.NewRecorder(), httptest.NewRequest("POST", "/login", nil), "", "bob"); err == nil {
		t.Fatal("bound")
	}
	c.one(t, "bind", WouldRefuse, internalError, NoProof)
}

// A store that fails is told as such.
func TestDecisionsOfAnOutage(t *testing.T) {
	var c told
	store := &brokenStore{Store: memstore.New(nil)}
	store.down.Store(true)
	s := newSite(t, Config{Decided: c.decided, Store: store})
	(&device{site: s, token: "token"}).send("GET", "/", "", nil)
	c.one(t, "request", Refused, proof.Unavailable, NoProof)
}

// One line a decision for those who ask, with hashes that are cut short and
// nothing secret.
func TestDecisionLines(t *testing.T) {
	var log bytes.Buffer
	s := newSite(t, Config{Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	d := s.login("secret-token", "alice")
	d.introduce()
	d.get()
	d.send("GET", "/path?private", "", nil)
	var lines []map[string]any
	for dec := json.NewDecoder(&log); dec.More(); {
		line := map[string]any{}
		if err := dec.Decode(&line); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	var said []string
	id := Bearer().ID("secret-token").String()
	for _, line := range lines {
		said = append(said, line["msg"].(string))
		if line["session"] != id[:12] {
			t.Errorf("session %v", line)
		}
		if key, _ := line["key"].(string); line["msg"] != "limpet: refused" && (len(key) != 12 || line["user"] != "alice") {
			t.Errorf("%v", line)
		}
	}
	if want := []string{"limpet: bound", "limpet: admitted", "limpet: admitted", "limpet: refused"}; !slices.Equal(said, want) {
		t.Errorf("%q, want %q", said, want)
	}
	for _, secret := range []string{"secret-token", "private", id} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}
