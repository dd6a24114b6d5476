package limpet

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

func (s *site) rebind(token, next string) error {
	return s.Rebind(s.t.Context(), make(http.Header), token, next)
}

// TestRebind: a token that continues a session is bound as the session is, and
// ends with it, whichever of its tokens is revoked, on every server of the store.
func TestRebind(t *testing.T) {
	for revoked := range 3 {
		s := newSite(t, Config{SealKey: make([]byte, 32)})
		other := newSite(t, Config{SealKey: make([]byte, 32), Store: s.store})
		d := s.login("one", "alice")
		header := make(http.Header)
		if err := s.Rebind(t.Context(), header, "one", "two"); err != nil || len(header["Limpet-Key"]) != 1 {
			t.Fatal(err, header)
		}
		if err := other.rebind("two", "three"); err != nil {
			t.Fatal(err)
		}
		ids := []ID{Bearer().ID("one"), Bearer().ID("two"), Bearer().ID("three")}
		for i, token := range []string{"one", "two", "three"} {
			d.token = token
			expect(t, token+" without a proof", d.send("GET", "/", "", nil), proof.Required)
			expect(t, token, d.introduce(), "")
			b := s.seen
			root := ids[0]
			if i == 0 {
				root = ID{}
			}
			if b == nil || b.Session != ids[i] || b.Root != root || b.User != "alice" || b.Level != Software {
				t.Errorf("%s: %+v", token, b)
			}
			if found, err := s.Find(t.Context(), ids[i]); err != nil || !found.Expires.Equal(b.Created.Add(30*24*time.Hour)) {
				t.Errorf("%s: %+v, %v", token, found, err)
			}
		}
		var listed []ID
		if err := s.Sessions(t.Context(), func(b *Binding) bool { listed = append(listed, b.Session); return true }); err != nil || !slices.Equal(listed, ids[:1]) {
			t.Errorf("listed %v, %v", listed, err)
		}
		if err := other.Revoke(t.Context(), ids[revoked]); err != nil {
			t.Fatal(err)
		}
		for _, token := range []string{"one", "two", "three"} {
			d.token = token
			expect(t, token+" of a session that is over", d.send("GET", "/", "", d.proof(s.value())), proof.SessionEnded)
			if err := s.rebind(token, "four"); !isReason(err, proof.SessionEnded) {
				t.Errorf("rebind of %s: %v", token, err)
			}
		}
	}
}

// TestRebindRefusals: a token is bound to one session, and to none that is not
// known.
func TestRebindRefusals(t *testing.T) {
	s := newSite(t, Config{})
	s.login("one", "alice")
	if err := s.rebind("unknown", "two"); !errors.Is(err, ErrNoSession) {
		t.Errorf("unknown: %v", err)
	}
	if _, err := s.Find(t.Context(), Bearer().ID("two")); !errors.Is(err, ErrNoSession) {
		t.Errorf("what an unknown token became: %v", err)
	}
	s.login("bobs", "bob")
	for range 2 {
		if err := s.rebind("one", "two"); err != nil { // the same again changes nothing
			t.Error(err)
		}
	}
	for _, same := range [][2]string{{"one", "one"}, {"two", "one"}, {"two", "two"}} {
		if err := s.rebind(same[0], same[1]); err != nil {
			t.Errorf("%q: %v", same, err)
		}
	}
	if err := s.rebind("one", "bobs"); !errors.Is(err, ErrBound) {
		t.Errorf("another's: %v", err)
	}
	for _, bad := range []string{"", "a b", strings.Repeat("x", maxToken+1)} {
		if err := s.rebind("one", bad); err == nil {
			t.Errorf("a token of %d bytes is bound", len(bad))
		}
	}
	if err := s.Bind(httptest.NewRecorder(), httptest.NewRequest("POST", "/login", nil), "two", "mallory"); !errors.Is(err, ErrBound) {
		t.Errorf("a login with a token of alice's: %v", err)
	}
	n, err := s.RevokeUser(t.Context(), "alice")
	if b, found := s.Find(t.Context(), Bearer().ID("two")); n != 1 || err != nil || found != nil || b.Ended.IsZero() {
		t.Errorf("%d, %v, %+v", n, err, b)
	}
}

// TestRebindWithoutRoot: a token whose login's record is gone is over.
func TestRebindWithoutRoot(t *testing.T) {
	s := newSite(t, Config{})
	d := s.login("one", "alice")
	if err := s.rebind("one", "two"); err != nil {
		t.Fatal(err)
	}
	d.token = "two"
	expect(t, "before", d.introduce(), "")
	for _, spoil := range []func() error{
		func() error { return s.store.Put(t.Context(), bindingKey(Bearer().ID("one")), []byte("x"), time.Hour) },
		func() error { return s.store.Delete(t.Context(), bindingKey(Bearer().ID("one"))) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		expect(t, "after", d.send("GET", "/", "", d.proof(s.value())), proof.SessionEnded)
	}
}

// TestBindAgain: a session of level none stays what it is; nothing makes it
// another's, or takes a bound one's key away.
func TestBindAgain(t *testing.T) {
	s := newSite(t, Config{})
	bind := func(token, user string) error {
		return s.Bind(httptest.NewRecorder(), httptest.NewRequest("POST", "/login", nil), token, user)
	}
	for range 2 {
		if err := bind("none", "alice"); err != nil {
			t.Error(err)
		}
	}
	if err := bind("none", "bob"); !errors.Is(err, ErrBound) {
		t.Errorf("another user: %v", err)
	}
	s.login("bound", "alice")
	if err := bind("bound", "alice"); !errors.Is(err, ErrBound) {
		t.Errorf("a bound session: %v", err)
	}
	if err := s.Revoke(t.Context(), Bearer().ID("none")); err != nil {
		t.Fatal(err)
	}
	if err := bind("none", "alice"); !errors.Is(err, ErrBound) {
		t.Errorf("a session that is over: %v", err)
	}
}

func TestIssued(t *testing.T) {
	for _, tt := range []struct {
		set  []string
		want string
	}{
		{nil, ""},
		{[]string{"sid=x; Path=/"}, "x"},
		{[]string{" sid = x ;HttpOnly"}, "x"},
		{[]string{"SID=x"}, "x"},
		{[]string{"s%69d=x"}, "x"},
		{[]string{"=sid=x"}, "x"},
		{[]string{"sid=x=y"}, "x=y"},
		{[]string{`sid="x"`}, `"x"`},
		{[]string{"sid=x", `sid="x"; Path=/a`, "other=y"}, `"x"`},
		{[]string{"sid=x", "sid=y"}, "refused"},
		{[]string{"sid=x; Max-Age=0", "sid=y; Max-Age=10"}, "y"},
		{[]string{"sid=x; Max-Age=-1"}, ""},
		{[]string{"sid=x; Max-Age=soon; Expires=Thu, 01 Jan 1970 00:00:00 GMT"}, ""},
		{[]string{"sid=x; Max-Age=5; Expires=Thu, 01 Jan 1970 00:00:00 GMT"}, "x"},
		{[]string{"sid=deleted; expires=Thu, 01-Jan-1970 00:00:01 GMT"}, ""},
		{[]string{"sid=x; Expires=Fri, 31 Dec 9999 23:59:59 GMT"}, "x"},
		{[]string{"sid=x; Max-Age=0; Max-Age=10"}, "x"},
		{[]string{"sid=x; Max-Age=10; Max-Age=0"}, ""},
		{[]string{"sid=x; Max-Age=+0"}, "x"},
		{[]string{"sid=x; Max-Age=99999999999999999999; Expires=Thu, 01 Jan 1970 00:00:00 GMT"}, "x"},
		{[]string{"sid=", `sid=""`, "sid"}, ""},
		{[]string{"sid2=x", "xsid=y", "a=sid=z"}, ""},
	} {
		got, err := Cookie("sid").Issued(http.Header{"Set-Cookie": tt.set})
		if err != nil {
			got = "refused"
		}
		if got != tt.want {
			t.Errorf("%q: %q, want %q", tt.set, got, tt.want)
		}
	}
	if token, err := Bearer().Issued(http.Header{"Set-Cookie": {"sid=x"}}); token != "" || err != nil {
		t.Errorf("bearer: %q, %v", token, err)
	}
}

func TestRemove(t *testing.T) {
	h := http.Header{"Cookie": {"a=b; sid=x;c=d", `s%69d="x"`, "SID=x; e=f", "g=h, sid=x", "%20sid=x", "sid%00=x"}, "Authorization": {"Bearer x"}}
	Cookie("sid").Remove(h)
	if want := []string{"a=b; c=d", "e=f"}; !slices.Equal(h["Cookie"], want) || len(h["Authorization"]) != 1 {
		t.Errorf("%q", h)
	}
	Bearer().Remove(h)
	if len(h["Authorization"]) != 0 || len(h["Cookie"]) != 2 {
		t.Errorf("%q", h)
	}
	if token, err := Cookie("sid").Token(h); token != "" || err != nil {
		t.Errorf("left: %q, %v", token, err)
	}
}

// TestRecordVersions: records of before the root had a place are read as ever.
func TestRecordVersions(t *testing.T) {
	b := &Binding{Session: Bearer().ID("x"), User: "alice", Level: None, Created: time.Unix(1, 0), Expires: time.Unix(2, 0)}
	rec := b.encode()
	if rec[0] != 1 {
		t.Errorf("version %d", rec[0])
	}
	b.Root = Bearer().ID("root")
	rooted := b.encode()
	got, err := decodeBinding(b.Session, rooted)
	if err != nil || rooted[0] != 2 || got.Root != b.Root || got.User != "alice" {
		t.Errorf("%+v, %v", got, err)
	}
	b.offered = true
	offered := b.encode()
	if got, err := decodeBinding(b.Session, offered); err != nil || offered[0] != 4 || !got.offered || got.Root != b.Root {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range [][]byte{rooted[:len(rooted)-1], append(slices.Clone(rooted), 0), append([]byte{1}, rooted[1:]...), append([]byte{2}, rec[1:]...), append([]byte{4}, rec[1:]...), append([]byte{5}, rooted[1:]...), append([]byte{0}, rec[1:]...)} {
		if _, err := decodeBinding(b.Session, bad); err == nil {
			t.Errorf("%x is read", bad)
		}
	}
}

func isReason(err error, reason proof.Reason) bool {
	var refusal *proof.Refusal
	return errors.As(err, &refusal) && refusal.Reason == reason
}
