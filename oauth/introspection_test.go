package oauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// newIntrospection returns one whose issuer answers with what about returns.
func newIntrospection(t testing.TB, change func(*IntrospectionConfig), about func(token string) any) (*Introspection, *clock, *atomic.Int64) {
	t.Helper()
	asked := new(atomic.Int64)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		id, secret, _ := r.BasicAuth()
		if r.Method != http.MethodPost || id != "rs%3A1" || secret != "s%26cret" || r.PostFormValue("token_type_hint") != "access_token" ||
			r.URL.RawQuery != "" || r.Header.Get("Accept") != "application/json" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		switch answer := about(r.PostFormValue("token")).(type) {
		case int:
			w.WriteHeader(answer)
		case string:
			fmt.Fprint(w, answer)
		default:
			_ = json.NewEncoder(w).Encode(answer)
		}
	}))
	t.Cleanup(s.Close)
	cfg := IntrospectionConfig{URL: s.URL, ClientID: "rs:1", ClientSecret: "s&cret", Client: s.Client()}
	if change != nil {
		change(&cfg)
	}
	i, err := NewIntrospection(cfg)
	must(t, err)
	c := new(clock)
	i.now = c.now
	return i, c, asked
}

func TestIntrospection(t *testing.T) {
	now := time.Now().Unix()
	jkt := "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
	answer := func(with set) set {
		all := set{"active": true, "sub": "alice", "exp": now + 600, "iss": issuer, "aud": audience, "token_type": "DPoP", "scope": "a b"}
		maps.Copy(all, with)
		for name, v := range all {
			if v == nil {
				delete(all, name)
			}
		}
		return all
	}
	for _, tt := range []struct {
		name   string
		answer any
		reason proof.Reason
	}{
		{"as it is", answer(nil), ""},
		{"bound", answer(set{"cnf": set{"jkt": jkt}}), ""},
		{"no exp", answer(set{"exp": nil}), ""},
		{"one of two auds", answer(set{"aud": []string{"x", audience}}), ""},
		{"not active", set{"active": false}, proof.SessionEnded},
		{"not active, with claims", answer(set{"active": false}), proof.SessionEnded},
		{"over", answer(set{"exp": now - 31}), proof.SessionEnded},
		{"not yet", answer(set{"nbf": now + 60}), proof.Invalid},
		{"no sub", answer(set{"sub": nil}), proof.Invalid},
		{"another iss", answer(set{"iss": "x"}), proof.SessionUnbound},
		{"no iss", answer(set{"iss": nil}), proof.SessionUnbound},
		{"another aud", answer(set{"aud": "x"}), proof.Invalid},
		{"no aud", answer(set{"aud": nil}), proof.Invalid},
		{"bound in an unknown way", answer(set{"cnf": set{"kid": "x"}}), proof.Invalid},
		{"bound badly", answer(set{"cnf": set{"jkt": "x"}}), proof.Invalid},
		{"active is text", answer(set{"active": "true"}), proof.Unavailable},
		{"no active", answer(set{"active": nil}), proof.Unavailable},
		{"Active", answer(set{"active": nil, "Active": true}), proof.Unavailable},
		{"active twice", `{"active":false,"active":true,"sub":"alice"}`, proof.Unavailable},
		{"exp is text", answer(set{"exp": "x"}), proof.Unavailable},
		{"not JSON", "<html>", proof.Unavailable},
		{"a list", "[]", proof.Unavailable},
		{"nothing", "", proof.Unavailable},
		{"too large", answer(set{"x": strings.Repeat("x", maxAnswer)}), proof.Unavailable},
		{"not our client", 401, proof.Unavailable},
		{"a fault", 500, proof.Unavailable},
		{"a redirect", 302, proof.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i, _, _ := newIntrospection(t, func(c *IntrospectionConfig) { c.Issuer, c.Audience = issuer, audience }, func(token string) any {
				if token != "a+b/c~d=&" {
					return 400
				}
				return tt.answer
			})
			for range 2 {
				c, err := i.Confirm(t.Context(), "a+b/c~d=&")
				if reasonOf(err) != tt.reason || (c == nil) != (err != nil) {
					t.Fatalf("%v, %v, want %q", c, err, tt.reason)
				}
				if err != nil && strings.Contains(err.Error(), "a+b/c") {
					t.Errorf("repeats the token: %v", err)
				}
				if c != nil && (c.User != "alice" || (c.Thumbprint != nil) != (tt.name == "bound") || c.Certificate != nil) {
					t.Errorf("%+v", c)
				}
			}
		})
	}
}

func TestAnswersAreRemembered(t *testing.T) {
	begin := time.Now()
	var revoked atomic.Bool
	i, clock, asked := newIntrospection(t, nil, func(token string) any {
		answer := set{"active": !revoked.Load(), "sub": "alice"}
		if token == "short" {
			answer["exp"] = begin.Unix() + 10
		}
		return answer
	})
	for range 3 {
		for _, token := range []string{"short", "long"} {
			c, err := i.Confirm(t.Context(), token)
			must(t, err)
			if token == "long" && (c.Expires.Before(begin.Add(30*time.Second)) || c.Expires.After(time.Now().Add(30*time.Second))) {
				t.Errorf("without exp: %v", c.Expires)
			}
		}
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("asked %d times", n)
	}
	revoked.Store(true)
	clock.advance(11 * time.Second)
	if _, err := i.Confirm(t.Context(), "short"); reasonOf(err) != proof.SessionEnded {
		t.Errorf("after exp: %v", err)
	}
	if _, err := i.Confirm(t.Context(), "long"); err != nil {
		t.Error(err)
	}
	clock.advance(20 * time.Second)
	if _, err := i.Confirm(t.Context(), "long"); reasonOf(err) != proof.SessionEnded {
		t.Errorf("after 30 s: %v", err)
	}
	// What is not good is not remembered.
	revoked.Store(false)
	if _, err := i.Confirm(t.Context(), "long"); err != nil {
		t.Error(err)
	}
}

func TestOneQuestionATime(t *testing.T) {
	release := make(chan struct{})
	i, _, asked := newIntrospection(t, nil, func(token string) any {
		<-release
		return set{"active": true, "sub": token}
	})
	var wg sync.WaitGroup
	for n := range 32 {
		wg.Go(func() {
			token := fmt.Sprint("token", n%2)
			c, err := i.Confirm(t.Context(), token)
			if err != nil || c.User != token {
				t.Errorf("%v, %v", c, err)
			}
		})
	}
	for asked.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	// Who leaves does not end the question for the others.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := i.Confirm(ctx, "token0"); reasonOf(err) != proof.Unavailable || !errors.Is(err, context.Canceled) {
		t.Errorf("a request that ended: %v", err)
	}
	close(release)
	wg.Wait()
	if n := asked.Load(); n != 2 {
		t.Errorf("asked %d times", n)
	}
}

func TestQuestionsAreBounded(t *testing.T) {
	i, _, _ := newIntrospection(t, nil, func(string) any { return set{"active": true, "sub": "alice"} })
	for n := range maxAsking {
		i.asking[[32]byte{byte(n), byte(n >> 8), 1}] = &question{}
	}
	if _, err := i.Confirm(t.Context(), "token"); reasonOf(err) != proof.Unavailable {
		t.Error(err)
	}
}

func TestUnreachableIntrospection(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	cfg := IntrospectionConfig{URL: s.URL, ClientID: "rs", ClientSecret: "s", Client: s.Client()}
	s.Close()
	i, err := NewIntrospection(cfg)
	must(t, err)
	if _, err := i.Confirm(t.Context(), "token-1234567890"); reasonOf(err) != proof.Unavailable || strings.Contains(err.Error(), "token-1234567890") {
		t.Error(err)
	}
	for token, reason := range map[string]proof.Reason{"": proof.SessionUnbound, "a b": proof.Malformed, "ä": proof.Malformed, strings.Repeat("x", 8193): proof.TooLarge} {
		if _, err := i.Confirm(t.Context(), token); reasonOf(err) != reason {
			t.Errorf("%.10q: %v", token, err)
		}
	}
	if len(i.asking) != 0 {
		t.Errorf("%d questions are left", len(i.asking))
	}
}

func TestNewIntrospectionRefuses(t *testing.T) {
	for name, c := range map[string]IntrospectionConfig{
		"no URL":    {ClientID: "rs", ClientSecret: "s"},
		"no TLS":    {URL: "http://as.example.com/", ClientID: "rs", ClientSecret: "s"},
		"no client": {URL: "https://as.example.com/", ClientSecret: "s"},
		"no secret": {URL: "https://as.example.com/", ClientID: "rs"},
	} {
		if _, err := NewIntrospection(c); err == nil || !strings.HasPrefix(err.Error(), "limpet: oauth: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSecretIsNotPrinted(t *testing.T) {
	cfg := IntrospectionConfig{URL: "https://as.example.com/", ClientID: "rs", ClientSecret: "canary"}
	i, err := NewIntrospection(cfg)
	must(t, err)
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "config", cfg, "introspection", i)
	fmt.Fprintf(&b, "%v %+v %s %#v %v %+v %#v", cfg, cfg, cfg, cfg, i, i, i)
	if strings.Contains(b.String(), "canary") || !strings.Contains(b.String(), "client_id=rs") {
		t.Error(b.String())
	}
}
