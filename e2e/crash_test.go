package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// witness is what one worker of a storm was told before the crash.
type witness struct {
	key   *ephemeral    // the last one
	live  []*peer       // whose logins were acknowledged
	ended []*peer       // whose logouts were
	spent []http.Header // proofs that were admitted
	err   error         // an answer that should not have been

	answers *atomic.Int32 // of all witnesses
}

// TestKill9: what was acknowledged before the process was killed holds after
// it: logins, logouts and spent proofs.
func TestKill9(t *testing.T) {
	t.Parallel()
	store := "bolt:" + filepath.Join(t.TempDir(), "store")
	const rounds, workers = 4, 4
	logins, logouts, spent := 0, 0, 0
	for range rounds {
		s := mustServe(t, store)
		witnesses := make([]*witness, workers)
		var wg sync.WaitGroup
		var answers atomic.Int32
		for i := range witnesses {
			w := &witness{answers: &answers}
			witnesses[i] = w
			wg.Go(func() { w.storm(s, []string{"ed25519", "ecdh", "ecdsa", "ecdh-p256"}[i%4]) })
		}
		enough, began := 100+rand.N[int32](100), time.Now()
		for answers.Load() < enough && time.Since(began) < 15*time.Second {
			time.Sleep(time.Millisecond)
		}
		s.kill()
		wg.Wait()

		s = mustServe(t, store)
		for _, w := range witnesses {
			if w.err != nil {
				t.Error("before the crash:", w.err)
			}
			logins, logouts, spent = logins+len(w.live), logouts+len(w.ended), spent+len(w.spent)
			w.check(t, s)
		}
		s.kill()
	}
	if logins == 0 || logouts == 0 || spent < 100*rounds {
		t.Errorf("only %d logins, %d logouts and %d requests: no storm", logins, logouts, spent)
	}
}

// storm logs in, proves and logs out until the server is gone.
func (w *witness) storm(s *server, ephemeralType string) {
	for {
		p, e := stranger(s.url, "ed25519"), newEphemeral(ephemeralType)
		if p.register() != nil || p.login() != nil {
			return
		}
		w.key, w.live = e, append(w.live, p)
		for i := range 12 {
			method, path, h := "GET", "/authenticated", p.proof
			switch i {
			case 0:
				h = p.introduction
			case 11:
				method, path = "POST", "/logout"
				w.live = w.live[:len(w.live)-1] // ended or not, if it is not answered
			}
			data := stamp()
			if (i+len(w.live))%2 == 1 {
				data = `{"no time":"` + data + `"}`
			}
			sent := p.authorized(h(e, data))
			a, err := do(method, s.url+path, sent, "")
			if err != nil {
				return
			}
			if i == 0 {
				err = p.learn(e, a)
			} else if a.status != http.StatusOK {
				err = fmt.Errorf("proof %d: %v", i, a)
			}
			if err != nil {
				w.err = err
				return
			}
			w.spent = append(w.spent, sent)
			w.answers.Add(1)
		}
		w.ended = append(w.ended, p)
	}
}

func (w *witness) check(t *testing.T, s *server) {
	for i, h := range w.spent {
		a, err := do("GET", s.url+"/authenticated", h, "")
		if err != nil {
			t.Fatal(err)
		}
		if a.status != 401 && a.status != 503 {
			t.Errorf("proof %d of %d that was spent before the crash: %v", i+1, len(w.spent), a)
		}
	}
	for _, p := range w.ended {
		p.base = s.url
		wantRefused(t, "a session that was ended before the crash", p.get(t, p.introduction(newEphemeral("ecdsa"), stamp())), 401, "session_ended")
	}
	for i, p := range w.live {
		p.base = s.url
		wantRefused(t, "no proof", p.get(t, nil), 401, "proof_required")
		p.introduce(t, newEphemeral("ecdsa"))
		if i == len(w.live)-1 && w.key.id != "" {
			if a := p.get(t, p.proof(w.key, stamp())); a.status != 200 && a.reason() != "key_unknown" {
				t.Errorf("the ephemeral key of before: %v", a)
			}
		}
		p.mustLogin(t)
	}
}
