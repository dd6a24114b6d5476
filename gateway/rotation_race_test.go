package gateway_test

import (
	"sync"
	"testing"

	"github.com/limpet-auth/limpet/gateway"
)

// Requests that go on while the app replaces the session's token over and over are
// all proven, and each of the tokens is worthless to a thief, before the logout and
// after it.
func TestTokensReplacedInParallel(t *testing.T) {
	s := newSite(t, gateway.Config{})
	owner := s.device(t)
	s.login(t, owner)
	tokens := sync.Map{}
	tokens.Store(s.cookie(t, owner), true)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 10 {
				if code, _ := s.ask(t, owner, "GET", "/rotate", nil); code != 200 {
					t.Errorf("the owner got %d", code)
				}
				tokens.Store(s.cookie(t, owner), true)
			}
		})
	}
	group.Wait()
	refused := func(when string) {
		tokens.Range(func(token, _ any) bool {
			if code, _ := s.ask(t, s.thief(t, token.(string)), "GET", "/me", nil); code != 401 {
				t.Errorf("a thief got %d %s", code, when)
			}
			return true
		})
	}
	refused("before the logout")
	s.wants(t, owner, "POST", "/logout", 200, "")
	refused("after the logout")
}
