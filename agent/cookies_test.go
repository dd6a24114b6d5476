package agent_test

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

// TestSharedCookies: a cookie that the app sets for everybody makes no request
// one of another's session, and a login that failed makes none.
func TestSharedCookies(t *testing.T) {
	s := newSite(t, false)
	h := s.home(t)
	a := h.start(t)
	enter := func(p *program, user, password string) {
		t.Helper()
		resp, err := p.PostForm(a.url+"/login", url.Values{"username": {user}, "password": {password}, "lang": {"en"}})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusSeeOther {
			t.Fatalf("login: %s", resp.Status)
		}
	}
	alice, bob, carol := newProgram(t), newProgram(t), newProgram(t)
	enter(bob, "bob", "secret")
	enter(alice, "alice", "secret")
	enter(carol, "carol", "guessed") // no session, but a cookie
	if n := h.countKeys(t); n != 2 {
		t.Errorf("%d keys, want alice's and bob's", n)
	}
	carol.wants(t, "GET", a.url+"/me", 200, `"User":""`)
	alice.wants(t, "GET", a.url+"/me", 200, `"User":"alice"`)

	// What bob's program sends goes on after his session is over.
	if _, err := s.gateway.Guard().RevokeUser(t.Context(), "bob"); err != nil {
		t.Fatal(err)
	}
	old := "sid=" + bob.cookie(t, a.url) + "; lang=en"
	for range 2 {
		for range 3 {
			if resp, text := newProgram(t).do(t, "GET", a.url+"/me", nil, "Cookie", old); resp.StatusCode != 401 {
				t.Errorf("%s %s", resp.Status, text)
			}
		}
		alice.wants(t, "GET", a.url+"/me", 200, `"User":"alice"`)
		if n := h.countKeys(t); n != 1 {
			t.Errorf("%d keys, want alice's", n)
		}
		a.stop()
		a = h.start(t)
	}
}

// TestReplacedAllTheTime: a session of an app that replaces its cookie with each
// answer is in use.
func TestReplacedAllTheTime(t *testing.T) {
	s := newSite(t, false)
	h := s.home(t)
	a := h.start(t)
	p := newProgram(t)
	p.login(t, a.url, "alice")
	a.stop()
	text, err := os.ReadFile(h.state)
	if err != nil {
		t.Fatal(err)
	}
	today, before := time.Now().UTC(), time.Now().UTC().Add(-20*24*time.Hour)
	old := strings.ReplaceAll(string(text), today.Format("2006-01-02"), before.Format("2006-01-02"))
	if err := os.WriteFile(h.state, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	a = h.start(t)
	p.wants(t, "POST", a.url+"/rotate", 200, "")
	a.stop()
	if text, _ := os.ReadFile(h.state); strings.Contains(string(text), before.Format("2006-01-02")) {
		t.Errorf("%s", text)
	}
}

// TestForeignProofs: what a program says in a proof's headers is not heard.
func TestForeignProofs(t *testing.T) {
	s := newSite(t, false)
	a := s.home(t).start(t)
	p := newProgram(t)
	p.login(t, a.url, "alice")
	sid := p.cookie(t, a.url)
	host := strings.TrimPrefix(a.url, "http://")
	for _, extra := range []string{
		"Signature: limpet=:AAAA:\r\nSignature-Input: limpet=(\"@method\");created=1\r\n",
		"Signature: x=:AAAA:\r\nSignature-Input: x=(\"@method\");created=1\r\n",
		"Limpet-Session: :AAAA:\r\nLimpet-Delegation: x\r\nLimpet-Device: x\r\nLimpet-Challenge: x\r\nLimpet-Channel: x\r\n",
		"Limpet_Session: :AAAA:\r\nSignature_Input: x\r\n",
		"DPoP: x\r\n",
		"X-Rpc-Sec-Bound-Token-Session: x\r\n",
		"Connection: Signature, Signature-Input, Limpet-Session, Limpet-Delegation, Cookie2\r\n",
		"Connection: close, Host, Limpet-Session\r\nProxy-Connection: keep-alive\r\n",
		"Te: trailers\r\nTrailer: Signature\r\n",
		"X-Forwarded-Host: evil.example\r\nForwarded: host=evil.example\r\n",
		"X-HTTP-Method-Override: GET\r\n",
		"Remote-User: root\r\nLimpet-Level: hardware\r\nRemote_User: root\r\n",
	} {
		for _, body := range []string{"GET /me HTTP/1.1\r\n%s\r\n", "POST /me HTTP/1.1\r\nContent-Length: 5\r\n%s\r\nhello", "POST /me HTTP/1.1\r\nTransfer-Encoding: chunked\r\n%s\r\n5\r\nhello\r\n0\r\n\r\n"} {
			got := raw(t, host, fmt.Sprintf(body, "Host: "+host+"\r\nCookie: sid="+sid+"\r\n"+extra))
			if !strings.Contains(got, `"User":"alice"`) {
				t.Errorf("%q %.20q: %s", extra, body, got)
			}
		}
	}
}
