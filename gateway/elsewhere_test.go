package gateway_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/gateway"
)

// TestTokenElsewhere: a bound token is not admitted where apps look for it
// besides its place, and the app is not asked; tokens that are nobody's, or not
// bound, pass there as before.
func TestTokenElsewhere(t *testing.T) {
	type request struct {
		target string
		header []string
	}
	places := map[limpet.Session]func(token string) []request{
		limpet.Cookie("JSESSIONID"): func(token string) []request {
			escaped := fmt.Sprintf("%%%x%s", token[0], token[1:])
			return []request{
				{"/me;jsessionid=" + token, nil},
				{"/a;x=1;JSESSIONID=" + token + "/b", nil},
				{"/a;jsessionid=" + escaped, nil},
				{"/me?jsessionid=" + token, nil},
				{"/me?a=b;JSESSIONID=" + escaped, nil},
				{"/me?%4asessionid=" + token, nil},
				{"/login;jsessionid=" + token, nil},
				{"/login?jsessionid=" + token, nil},
				{"/me", []string{"Authorization", "Bearer " + token}},
				{"/me", []string{"Cookie", "+JSESSIONID=" + token}},
			}
		},
		limpet.Bearer(): func(token string) []request {
			basic := func(text string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(text)) }
			return []request{
				{"/me?access_token=" + token, nil},
				{"/me?x=1&Access-Token=" + token, nil},
				{"/login?access_token=" + token, nil},
				{"/me", []string{"Authorization", token}},
				{"/me", []string{"Authorization", "Token " + token}},
				{"/me", []string{"Authorization", `Token token="` + token + `", x="y"`}},
				{"/me", []string{"Authorization", "Bearer token=" + token}},
				{"/me", []string{"Authorization", "x y " + token}},
				{"/me", []string{"Authorization", basic("x:" + token)}},
				{"/me", []string{"Authorization", basic(token + ":")}},
				{"/me?access_token=" + token, []string{"Authorization", "Bearer other"}},
			}
		},
	}
	for session, at := range places {
		s := newSite(t, gateway.Config{Session: session, Logins: []gateway.Login{{Pattern: "/login"}}})
		bind := func(token string, bound bool) {
			t.Helper()
			form := strings.NewReader(url.Values{"username": {"alice"}, "password": {"secret"}}.Encode())
			var login *http.Request
			before := s.front.Config.Handler
			s.front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { login = r.Clone(t.Context()) })
			c := s.browser(t)
			if bound {
				c = s.device(t)
			}
			resp, err := c.Post(s.front.URL+"/login", "application/x-www-form-urlencoded", form)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			s.front.Config.Handler = before
			if err := s.Guard().Bind(head{}, login, token, "alice"); err != nil {
				t.Fatal(err)
			}
		}
		bind("bound-token", true)
		bind("known-token", false)
		bind("ended-token", true)
		if err := s.Guard().Revoke(t.Context(), session.ID("ended-token")); err != nil {
			t.Fatal(err)
		}
		for token, want := range map[string]bool{"bound-token": false, "ended-token": false, "known-token": true, "other-token": true} {
			for _, r := range at(token) {
				if want && (strings.Contains(r.target, "/login;") || strings.Contains(fmt.Sprint(r.header), "+JSESSIONID")) {
					continue // refused in any case
				}
				before := s.requests()
				code, e := s.ask(t, s.browser(t), "GET", r.target, nil, r.header...)
				if reached := s.requests() > before; reached != want || !want && code != 400 {
					t.Errorf("%v: %+v: %d %s, reached the app: %v, want %v", session, r, code, e.Body, reached, want)
				}
			}
		}
	}
}

// head is an answer that nobody reads.
type head struct{}

func (head) Header() http.Header         { return http.Header{} }
func (head) Write(p []byte) (int, error) { return len(p), nil }
func (head) WriteHeader(int)             {}

// TestTrailersAreNoSessions: a session's token that comes behind the body does
// not reach the app, which may take trailers for headers.
func TestTrailersAreNoSessions(t *testing.T) {
	s := newSite(t, gateway.Config{})
	for _, proto := range []string{"1.1", "2"} {
		c := s.browser(t)
		if proto == "1.1" {
			c.Transport = http1(s)
		}
		req, err := http.NewRequest("POST", s.front.URL+"/", struct{ io.Reader }{strings.NewReader("body")})
		if err != nil {
			t.Fatal(err)
		}
		req.Trailer = http.Header{"X-Sum": {"1"}, "Cookie": {"sid=stolen"}, "X-Http-Method-Override": {"stolen"}}
		if proto == "1.1" { // HTTP/2 does not take these
			for _, name := range []string{"Authorization", "Host", "Content-Type"} {
				req.Trailer[name] = []string{"stolen"}
			}
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !bytes.Contains(text, []byte(`"X-Sum":["1"]`)) || bytes.Contains(text, []byte("stolen")) {
			t.Errorf("HTTP/%s: %s", proto, text)
		}
	}
}
