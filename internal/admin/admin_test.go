package admin

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/hwsign"
	"github.com/limpet-auth/limpet/store/memstore"
)

// store is a store that fails when told to.
type store struct {
	*memstore.Store
	down atomic.Bool
	slow atomic.Bool
}

func (s *store) Get(ctx context.Context, key string) ([]byte, bool, error) {
	if s.down.Load() {
		return nil, false, errors.New("store: no route to 10.0.0.1")
	}
	return s.Store.Get(ctx, key)
}

func (s *store) List(ctx context.Context, prefix string, yield func(string, []byte) bool) error {
	err := s.Store.List(ctx, prefix, yield)
	if s.slow.Load() {
		time.Sleep(1200 * time.Millisecond)
		err = errors.Join(err, ctx.Err())
	}
	if s.down.Load() {
		err = errors.New("store: no route to 10.0.0.1")
	}
	return err
}

// server is a guard with its admin API on a socket.
type server struct {
	*limpet.Guard
	*Client
	t         *testing.T
	api       *API
	store     *store
	decisions *Decisions
	recent    *Recent
	tpm       atomic.Pointer[error] // what it says; nil if there is none
	socket    string
	http      *http.Client // to the socket
}

func nothing(func(limpet.Result, proof.Reason, uint64)) {}

func newServer(t *testing.T) *server {
	s := &server{t: t, store: &store{Store: memstore.New(nil)}, decisions: new(Decisions), recent: NewRecent(nothing), socket: filepath.Join(t.TempDir(), "admin")}
	log := slog.New(slog.DiscardHandler)
	var err error
	s.Guard, err = limpet.New(limpet.Config{Session: limpet.Bearer(), Store: s.store, Logger: log, Decided: func(ctx context.Context, d *limpet.Decision) {
		s.decisions.Decided(ctx, d)
		s.recent.Decided(ctx, d)
	}})
	if err != nil {
		t.Fatal(err)
	}
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "limpet_up 1\n") })
	s.api = New(Config{Guard: func() *limpet.Guard { return s.Guard }, Store: s.store, Decisions: s.decisions, Recent: s.recent, Metrics: metrics, Logger: log,
		Service: "limpet-test", Version: "v1", StoreKind: "mem", TPM: func(context.Context) (bool, error) {
			err := s.tpm.Load()
			if err == nil {
				return false, nil
			}
			return true, *err
		}})
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	srv := &http.Server{Handler: s.api.OnSocket(), ReadTimeout: time.Second, WriteTimeout: time.Second, // as a server has them
		BaseContext: func(net.Listener) context.Context { return ctx }, ErrorLog: slog.NewLogLogger(log.Handler(), 0)}
	go srv.Serve(l)
	t.Cleanup(func() { cancel(); srv.Close() })
	if s.Client, err = Dial(s.socket); err != nil {
		t.Fatal(err)
	}
	s.http = s.Client.http
	return s
}

func (s *server) bind(token, user string, key *ecdsa.PrivateKey) limpet.ID {
	s.t.Helper()
	r := httptest.NewRequest("POST", "/login", nil)
	if key != nil {
		der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			s.t.Fatal(err)
		}
		r.Header.Set(hwsign.BoundToken.DeviceKey, base64.StdEncoding.EncodeToString(der))
		r.Header.Set(hwsign.BoundToken.DeviceKeyType, "ecdsa")
	}
	if err := s.Bind(httptest.NewRecorder(), r, token, user); err != nil {
		s.t.Fatal(err)
	}
	return limpet.Bearer().ID(token)
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// ids returns those of the sessions that a filter chooses.
func (s *server) ids(f Filter) (ids []limpet.ID) {
	s.t.Helper()
	err := s.Client.List(s.t.Context(), f, func(b *limpet.Binding) bool {
		ids = append(ids, b.Session)
		return true
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return ids
}

func TestSessions(t *testing.T) {
	s := newServer(t)
	ctx := t.Context()
	laptop := newKey(t)
	const odd = "alice & co?user=bob"
	a1, a2 := s.bind("a1", odd, laptop), s.bind("a2", odd, nil)
	b1, b2 := s.bind("b1", "bob", laptop), s.bind("b2", "bob", newKey(t))
	shown, err := s.Show(ctx, a1)
	if err != nil || shown.User != odd || shown.Level != limpet.Software || shown.Key == "" || !shown.Ended.IsZero() || time.Until(shown.Expires) < time.Hour {
		t.Fatalf("%+v, %v", shown, err)
	}
	for _, tt := range []struct {
		filter Filter
		want   []limpet.ID
	}{
		{Filter{}, []limpet.ID{a1, a2, b1, b2}},
		{Filter{User: odd}, []limpet.ID{a1, a2}},
		{Filter{User: "nobody"}, nil},
		{Filter{Key: shown.Key}, []limpet.ID{a1, b1}},
		{Filter{Level: limpet.None}, []limpet.ID{a2}},
		{Filter{User: "bob", Key: shown.Key, Level: limpet.Software}, []limpet.ID{b1}},
		{Filter{Level: limpet.Hardware}, nil},
	} {
		got := s.ids(tt.filter)
		if len(got) != len(tt.want) || slices.ContainsFunc(tt.want, func(id limpet.ID) bool { return !slices.Contains(got, id) }) {
			t.Errorf("%+v: %v, want %v", tt.filter, got, tt.want)
		}
		// Without a server it is the same.
		n := 0
		if err := (Sessions{s.Guard}).List(ctx, tt.filter, func(*limpet.Binding) bool { n++; return true }); err != nil || n != len(tt.want) {
			t.Errorf("%+v: %d, %v", tt.filter, n, err)
		}
	}

	// What is revoked is refused at once.
	admits := func(token string) bool {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		_, err := s.Admit(http.Header{}, r, limpet.Rule{})
		return err == nil
	}
	if !admits("a2") {
		t.Error("a session without a key is not admitted")
	}
	if n, err := s.Client.RevokeAll(ctx, Filter{User: odd, Level: limpet.None}); n != 1 || err != nil || admits("a2") {
		t.Errorf("narrowed: %d, %v", n, err)
	}
	if n, err := s.Client.RevokeAll(ctx, Filter{Key: shown.Key}); n != 2 || err != nil {
		t.Errorf("by key: %d, %v", n, err)
	}
	if n, err := s.Client.RevokeAll(ctx, Filter{User: "bob"}); n != 1 || err != nil {
		t.Errorf("by user: %d, %v", n, err)
	}
	if n := len(s.ids(Filter{})); n != 0 {
		t.Errorf("%d are left", n)
	}
	if shown, err := s.Show(ctx, a1); err != nil || shown.Ended.IsZero() {
		t.Errorf("%+v, %v", shown, err)
	}
	if err := s.Client.Revoke(ctx, a1); err != nil {
		t.Errorf("once more: %v", err)
	}
	if _, err := s.Show(ctx, limpet.ID{}); !errors.Is(err, limpet.ErrNoSession) {
		t.Errorf("show nothing: %v", err)
	}
	if err := s.Client.Revoke(ctx, limpet.ID{}); !errors.Is(err, limpet.ErrNoSession) {
		t.Errorf("revoke nothing: %v", err)
	}
	if _, err := s.Client.RevokeAll(ctx, Filter{Level: limpet.None}); err == nil {
		t.Error("everybody is revoked")
	}
	if _, err := (Sessions{s.Guard}).RevokeAll(ctx, Filter{Level: limpet.None}); err == nil {
		t.Error("everybody is revoked")
	}
}

// ask sends a request to the socket.
func (s *server) ask(method, path string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequest(method, "http://localhost"+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	var refusal struct{ Message, Reason string }
	if resp.StatusCode >= 400 {
		if json.Unmarshal(body, &refusal) != nil || refusal.Message == "" || strings.Contains(string(body), "10.0.0.1") {
			s.t.Errorf("%s %s: not the JSON of a refusal: %s", method, path, body)
		}
		return resp.StatusCode, refusal.Reason
	}
	return resp.StatusCode, string(body)
}

func TestRefusals(t *testing.T) {
	s := newServer(t)
	id := s.bind("token", "alice", nil).String()
	for _, tt := range []struct {
		method, path string
		code         int
		reason       string
	}{
		{"GET", "/", 404, "not_found"},
		{"GET", "/sessions/", 404, "not_found"},
		{"GET", "/sessions/garbage", 400, "bad_request"},
		{"DELETE", "/sessions/garbage", 400, "bad_request"},
		{"DELETE", "/sessions", 400, "bad_request"},
		{"DELETE", "/sessions?level=none", 400, "bad_request"},
		{"DELETE", "/sessions?user=", 400, "bad_request"},
		{"DELETE", "/sessions?name=alice", 400, "bad_request"},
		{"DELETE", "/sessions?user=alice&user=bob", 400, "bad_request"},
		{"DELETE", "/sessions?user=alice&level=no%ne", 400, "bad_request"},
		{"DELETE", "/sessions?user=alice&level=none;x", 400, "bad_request"},
		{"GET", "/sessions?user=%zz", 400, "bad_request"},
		{"GET", "/sessions?level=strong", 400, "bad_request"},
		{"GET", "/decisions?usr=alice", 400, "bad_request"},
		{"GET", "/decisions?admitted=maybe", 400, "bad_request"},
		{"GET", "/sessions?admitted=no", 400, "bad_request"},
		{"POST", "/sessions/" + id, 404, "not_found"},
		{"GET", "/sessions/" + limpet.ID{}.String(), 404, noSuchSession},
	} {
		if code, reason := s.ask(tt.method, tt.path); code != tt.code || reason != tt.reason {
			t.Errorf("%s %s: %d %s, want %d %s", tt.method, tt.path, code, reason, tt.code, tt.reason)
		}
	}
	if n := len(s.ids(Filter{})); n != 1 {
		t.Errorf("%d sessions are left, want 1", n)
	}
}

// What takes longer than the server gives other requests.
func TestLargeStore(t *testing.T) {
	s := newServer(t)
	s.bind("token", "alice", nil)
	s.store.slow.Store(true)
	for _, user := range []string{"alice", "nobody"} {
		n := 0
		if err := s.Client.List(t.Context(), Filter{User: user}, func(*limpet.Binding) bool { n++; return true }); err != nil || (n == 1) != (user == "alice") {
			t.Errorf("%s: %d, %v", user, n, err)
		}
	}
	if n, err := s.Client.RevokeAll(t.Context(), Filter{User: "alice"}); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// A server without its store lives, and is not ready. A list that breaks off does
// not look complete.
func TestOutage(t *testing.T) {
	s := newServer(t)
	id := s.bind("token", "alice", nil)
	if code, body := s.ask("GET", "/readyz"); code != 200 || !strings.Contains(body, "ready") {
		t.Errorf("ready: %d %s", code, body)
	}
	s.store.down.Store(true)
	for path, want := range map[string]int{"/livez": 200, "/readyz": 503, "/metrics": 200, "/sessions/" + id.String(): 503, "/sessions?user=nobody": 503} {
		if code, _ := s.ask("GET", path); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
	if err := s.Client.List(t.Context(), Filter{}, func(*limpet.Binding) bool { return true }); err == nil {
		t.Error("a list that breaks off looks complete")
	}
	if err := s.Client.Revoke(t.Context(), id); err == nil || errors.Is(err, limpet.ErrNoSession) {
		t.Errorf("revoke: %v", err)
	}
	s.store.down.Store(false)
	if code, _ := s.ask("GET", "/readyz"); code != 200 {
		t.Errorf("again: %d", code)
	}
}

// watching begins to watch, and returns when it has begun.
func (s *server) watching(query string) (lines *bufio.Scanner, end func()) {
	s.t.Helper()
	before := len(s.decisions.seen())
	resp, err := s.http.Get("http://localhost/decisions" + query)
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != 200 || len(s.decisions.seen()) != before+1 {
		s.t.Fatalf("%s, %d watchers", resp.Status, len(s.decisions.seen()))
	}
	return bufio.NewScanner(resp.Body), func() { resp.Body.Close() }
}

func (d *Decisions) seen() []*watcher {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.watchers)
}

func next(t *testing.T, lines *bufio.Scanner) (d Decision) {
	t.Helper()
	if !lines.Scan() {
		t.Fatalf("the stream ends: %v", lines.Err())
	}
	if err := json.Unmarshal(lines.Bytes(), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestWatch(t *testing.T) {
	s := newServer(t)
	all, end := s.watching("")
	defer end()
	alices, endAlices := s.watching("?user=alice")
	defer endAlices()
	time.Sleep(1500 * time.Millisecond) // longer than the server's timeouts
	s.bind("b", "bob", nil)
	id := s.bind("a", "alice", newKey(t))
	r := httptest.NewRequest("GET", "/path?private", nil)
	r.Header.Set("Authorization", "Bearer a")
	if _, err := s.Admit(http.Header{}, r, limpet.Rule{}); err == nil {
		t.Fatal("admitted")
	}
	if d := next(t, all); d.Result != limpet.Bound || d.User != "bob" {
		t.Errorf("%+v", d)
	}
	bound := next(t, all)
	if bound.Result != limpet.Bound || bound.User != "alice" || bound.Session != id.String() || bound.Level != limpet.Software || bound.Format != limpet.HWSign || bound.Key == "" {
		t.Errorf("%+v", bound)
	}
	if d := next(t, all); d.Result != limpet.Refused || d.Reason != "proof_required" || d.User != "" || d.Session != id.String() || d.Path != "/path" || d.Why == "" || d.Took <= 0 {
		t.Errorf("%+v", d)
	}
	if d := next(t, alices); d != bound {
		t.Errorf("%+v, want %+v", d, bound)
	}
}

// One who asks for it is not told of admissions.
func TestQuietWatcher(t *testing.T) {
	d := new(Decisions)
	w := d.watch(Filter{}, true)
	for _, r := range []limpet.Result{limpet.Admitted, limpet.Refused, limpet.Admitted, limpet.Revoked} {
		d.Decided(t.Context(), &limpet.Decision{Result: r})
	}
	if len(w.queue) != 2 || (<-w.queue).Result != limpet.Refused || (<-w.queue).Result != limpet.Revoked {
		t.Error("not those two")
	}
}

// Nobody who watches holds up those who decide; who is too slow is told.
func TestSlowWatcher(t *testing.T) {
	d := new(Decisions)
	w := d.watch(Filter{}, false)
	const over = 7
	for range waiting + over {
		d.Decided(t.Context(), &limpet.Decision{Result: limpet.Admitted, Path: strings.Repeat("x", 5000)})
	}
	for range waiting {
		if got := <-w.queue; got.Lost != 0 || len(got.Path) > maxText {
			t.Fatalf("%d lost, a path of %d bytes", got.Lost, len(got.Path))
		}
	}
	for _, want := range []int{over, 0} {
		d.Decided(t.Context(), &limpet.Decision{Result: limpet.Refused})
		if got := <-w.queue; got.Lost != want || got.Result != limpet.Refused {
			t.Errorf("%+v, want %d lost", got, want)
		}
	}
	d.leave(w)
	d.Decided(t.Context(), &limpet.Decision{})
	if d.watched.Load() || len(w.queue) != 0 {
		t.Error("it still watches")
	}
}

// TestWaitingDecisions: a decision that waits for a watcher holds no more of its
// request than what will be said of it.
func TestWaitingDecisions(t *testing.T) {
	decisions := new(Decisions)
	w := decisions.watch(Filter{}, false)
	used := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := used()
	for range waiting {
		line := strings.Repeat("x", 64<<10)
		decisions.Decided(t.Context(), &limpet.Decision{Path: line[:8]})
	}
	if after := used(); after > before+16<<20 {
		t.Errorf("%d MiB for %d decisions", (after-before)>>20, len(w.queue))
	}
	runtime.KeepAlive(w)
}

func TestManyWatchers(t *testing.T) {
	s := newServer(t)
	for range maxWatchers {
		_, end := s.watching("")
		defer end()
	}
	if code, reason := s.ask("GET", "/decisions"); code != 429 || reason != "too_many_watchers" {
		t.Errorf("%d %s", code, reason)
	}
}

// Those who are gone leave their place, and so does the server when it ends.
func TestWatchersLeave(t *testing.T) {
	s := newServer(t)
	for range 2 * maxWatchers {
		_, end := s.watching("")
		end()
		for deadline := time.Now().Add(10 * time.Second); len(s.decisions.seen()) > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("a watcher stays")
			}
		}
	}
}

// On a port everybody of this machine sees metrics and health, those with the
// token the rest, and web pages nothing.
func TestLoopback(t *testing.T) {
	s := newServer(t)
	id := s.bind("token", "alice", nil).String()
	const token = "an admin token of some length"
	open, closed := s.api.OnLoopback(strings.ReplaceAll(token, " ", "-")), s.api.OnLoopback("")
	right := "Bearer " + strings.ReplaceAll(token, " ", "-")
	for _, tt := range []struct {
		handler    http.Handler
		path, host string
		header     string // NAME: VALUE
		code       int
	}{
		{open, "/metrics", "127.0.0.1:9180", "", 200},
		{open, "/livez", "localhost", "", 200},
		{open, "/readyz", "[::1]:9180", "", 200},
		{open, "/sessions", "127.0.0.1:9180", "Authorization: " + right, 200},
		{open, "/sessions/" + id, "127.0.0.1:9180", "Authorization: " + right, 200},
		{open, "/sessions", "127.0.0.1:9180", "", 401},
		{open, "/sessions/" + id, "127.0.0.1:9180", "", 401},
		{open, "/decisions", "127.0.0.1:9180", "", 401},
		{open, "/nothing", "127.0.0.1:9180", "", 401},
		{open, "/sessions", "127.0.0.1:9180", "Authorization: " + right + "x", 401},
		{open, "/sessions", "127.0.0.1:9180", "Authorization: " + right[:len(right)-1], 401},
		{open, "/sessions", "127.0.0.1:9180", "Authorization: Bearer ", 401},
		{closed, "/metrics", "127.0.0.1:9180", "", 200},
		{closed, "/sessions", "127.0.0.1:9180", "", 401},
		{closed, "/sessions", "127.0.0.1:9180", "Authorization: Bearer ", 401},
		{closed, "/sessions", "127.0.0.1:9180", "Authorization: ", 401},
		{open, "/metrics", "evil.example:9180", "", 403},
		{open, "/metrics", "127.0.0.1.evil.example", "", 403},
		{open, "/metrics", "10.0.0.1:9180", "", 403},
		{open, "/metrics", "", "", 403},
		{open, "/metrics", "127.0.0.1:9180", "Origin: http://127.0.0.1:8080", 403},
		{open, "/metrics", "127.0.0.1:9180", "Sec-Fetch-Site: cross-site", 403},
		{open, "/metrics", "127.0.0.1:9180", "Sec-Fetch-Site: none", 200},
		{open, "/sessions", "evil.example", "Authorization: " + right, 403},
	} {
		r := httptest.NewRequest("GET", tt.path, nil)
		r.Host = tt.host
		if name, value, ok := strings.Cut(tt.header, ": "); ok {
			r.Header.Set(name, value)
		}
		w := httptest.NewRecorder()
		tt.handler.ServeHTTP(w, r)
		if w.Code != tt.code || w.Code != 200 && strings.Contains(w.Body.String(), "alice") {
			t.Errorf("%s at %s with %s: %d, want %d: %s", tt.path, tt.host, tt.header, w.Code, tt.code, w.Body)
		}
	}
}

func TestNoServer(t *testing.T) {
	if _, err := Dial(filepath.Join(t.TempDir(), "admin")); err == nil {
		t.Error("dialled nothing")
	}
	odd := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "what?", http.StatusBadGateway) }))
	odd.Listener.Close()
	var err error
	if odd.Listener, err = net.Listen("unix", filepath.Join(t.TempDir(), "odd")); err != nil {
		t.Fatal(err)
	}
	odd.Start()
	defer odd.Close()
	c, err := Dial(odd.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Revoke(t.Context(), limpet.ID{}); err == nil || errors.Is(err, limpet.ErrNoSession) || strings.Contains(err.Error(), "http://") {
		t.Errorf("%v", err)
	}
}

// TestListLeft: a reader who has seen enough is nothing to wake somebody for.
func TestListLeft(t *testing.T) {
	s := newServer(t)
	s.bind("token", "alice", nil)
	var log bytes.Buffer
	s.api.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	ctx, leave := context.WithCancel(t.Context())
	r := httptest.NewRequestWithContext(ctx, "GET", "/sessions", nil)
	defer func() {
		if recover() != http.ErrAbortHandler || log.Len() > 0 {
			t.Errorf("it looks complete, or the log says: %s", &log)
		}
	}()
	s.store.slow.Store(true)
	s.api.OnSocket().ServeHTTP(leaver{httptest.NewRecorder(), leave}, r)
}

// leaver goes away with the first bytes that it gets.
type leaver struct {
	*httptest.ResponseRecorder
	leave func()
}

func (l leaver) Write(b []byte) (int, error) {
	l.leave()
	return l.ResponseRecorder.Write(b)
}
