//go:build unix

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey/softkey"
)

// recorder remembers the requests that were answered with 200, as they were sent.
type recorder struct {
	http.RoundTripper
	mu       sync.Mutex
	admitted []*http.Request
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.RoundTripper.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusOK && req.URL.Path == "/me" {
		r.mu.Lock()
		r.admitted = append(r.admitted, req.Clone(context.Background()))
		r.mu.Unlock()
	}
	return resp, err
}

// customer is a person in a storm, and what the gateway acknowledged.
type customer struct {
	*person
	sent  *recorder
	live  []string // tokens of logins
	ended []string // and of logouts
	wrong error
}

func newCustomer(t *testing.T, base string) *customer {
	t.Helper()
	c := &customer{person: newPerson(t, base, false)}
	ks, err := softkey.Open(t.Context(), t.TempDir(), softkey.KeyFile(""))
	if err != nil {
		t.Fatal(err)
	}
	c.sent = &recorder{RoundTripper: c.Transport}
	c.Transport = client.New(ks).Transport(c.sent)
	return c
}

// storm logs in, asks and, every other time from first on, logs out, until the
// gateway is gone. It counts the times.
func (c *customer) storm(t *testing.T, first int, times *atomic.Int32) {
	for n := first; ; n++ {
		resp, err := c.PostForm(c.base+"/login", url.Values{"username": {"alice"}, "password": {"correct horse"}})
		if err != nil {
			return
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusFound {
			c.wrong = fmt.Errorf("login: %s", resp.Status)
			return
		}
		c.live = append(c.live, c.token(t))
		for range 6 {
			code, text, err := c.do("GET", "/me")
			if err != nil {
				return
			}
			if code != 200 || !strings.Contains(text, `"level": "software"`) {
				c.wrong = fmt.Errorf("GET /me: %d %s", code, text)
				return
			}
		}
		if n%2 == 0 {
			token := c.live[len(c.live)-1]
			c.live = c.live[:len(c.live)-1] // ended or not, if it is not answered
			if code, _, err := c.do("POST", "/logout"); err != nil || code != 200 {
				return
			}
			c.ended = append(c.ended, token)
		}
		times.Add(1)
	}
}

// TestGatewayKill9: the gateway is killed under load and started again, 20 times:
// no binding, logout or spent proof that it has acknowledged is lost.
func TestGatewayKill9(t *testing.T) {
	t.Parallel()
	flags := []string{"--upstream", pythonApp(t), "--session-cookie", "sid", "--store", "bolt:" + filepath.Join(t.TempDir(), "store")}
	g := mustGateway(t, "127.0.0.1:0", flags...)
	address := strings.TrimPrefix(g.url, "http://")
	logins, logouts, proofs := 0, 0, 0
	for range 20 {
		var wg sync.WaitGroup
		var times atomic.Int32
		customers := make([]*customer, 3)
		for i := range customers {
			c := newCustomer(t, g.url)
			customers[i] = c
			wg.Go(func() { c.storm(t, i, &times) })
		}
		for began := time.Now(); times.Load() < 2 && time.Since(began) < 10*time.Second; {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(rand.N(150 * time.Millisecond))
		g.kill()
		wg.Wait()
		g = mustGateway(t, address, flags...)
		for _, c := range customers {
			if c.wrong != nil {
				t.Error("before the crash:", c.wrong)
			}
			logins, logouts, proofs = logins+len(c.live), logouts+len(c.ended), proofs+len(c.sent.admitted)
			for i, r := range c.sent.admitted {
				resp, err := httpClient.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != 401 && resp.StatusCode != 503 {
					t.Errorf("proof %d of %d that was spent before the crash: %s", i+1, len(c.sent.admitted), resp.Status)
				}
			}
			for tokens, reason := range map[*[]string]string{&c.live: "proof_required", &c.ended: "session_ended"} {
				for _, token := range *tokens {
					a, err := do("GET", g.url+"/me", http.Header{"Cookie": {"sid=" + token}}, "")
					if err != nil {
						t.Fatal(err)
					}
					wantRefused(t, "a stolen cookie after the crash", a, 401, reason)
				}
			}
			if n := len(c.live); n > 0 && c.live[n-1] == c.token(t) {
				c.wants(t, "GET", "/me", 200, "alice")
			}
		}
	}
	if logins < 20 || logouts < 5 || proofs < 100 {
		t.Errorf("only %d logins, %d logouts and %d proofs: no storm", logins, logouts, proofs)
	}
	t.Logf("%d logins, %d logouts, %d proofs", logins, logouts, proofs)
}

// TestGatewayDiskFull: while the file system of its store is full the gateway
// answers 503 and lets nobody in unproven, and goes on by itself afterwards.
func TestGatewayDiskFull(t *testing.T) {
	t.Parallel()
	disk := t.TempDir()
	asRoot := func(command ...string) ([]byte, error) {
		if os.Getuid() != 0 {
			command = append([]string{"sudo", "-n"}, command...)
		}
		return exec.Command(command[0], command[1:]...).CombinedOutput()
	}
	if out, err := asRoot("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=1m,mode=0700,uid=%d", os.Getuid()), "tmpfs", disk); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("this test needs to mount a file system: %v, %s", err, bytes.TrimSpace(out))
		}
		t.Skipf("no file system of its own: %v, %s", err, bytes.TrimSpace(out))
	}
	t.Cleanup(func() { asRoot("umount", "-l", disk) })
	g := mustGateway(t, "127.0.0.1:0", "--upstream", pythonApp(t), "--session-cookie", "sid", "--store", "bolt:"+filepath.Join(disk, "store"))
	owner := newPerson(t, g.url, true)
	token := owner.login(t, "alice", "correct horse")
	owner.wants(t, "GET", "/me", 200, "alice")
	thief := func() *http.Response {
		req, _ := http.NewRequest("GET", g.url+"/me", nil)
		req.Header.Set("Cookie", "sid="+token)
		resp, err := httpClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	// All but nothing is taken away, so that neither journal nor database can grow.
	filler := filepath.Join(disk, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	f.Close()
	full := 0
	codes := make(map[string]int)
	for range 400 { // the journal has room for some
		code, text, err := owner.do("GET", "/me")
		if err != nil {
			t.Fatal(err)
		}
		codes[strconv.Itoa(code)]++
		if code == 503 {
			full++
		} else if code != 200 {
			t.Fatalf("while the disk is full: %d %s", code, text)
		}
		if full > 20 {
			break
		}
	}
	if full == 0 {
		t.Fatalf("the disk was not full: %v", codes)
	}
	// A login whose session cannot be recorded is not handed out.
	other := newPerson(t, g.url, true)
	for n := 0; other.login(t, "bob", "battery staple") != ""; n++ {
		if n == 50 {
			t.Fatal("logins are recorded on a full disk")
		}
		other = newPerson(t, g.url, true)
	}
	if resp := thief(); resp.StatusCode != 401 && resp.StatusCode != 503 {
		t.Errorf("a stolen cookie while the disk is full: %s", resp.Status)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	var last error
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		code, text, err := owner.do("GET", "/me")
		if err == nil && code == 200 {
			break
		}
		if last = errors.Join(err, fmt.Errorf("%d %s", code, text)); time.Now().After(end) {
			t.Fatalf("with room on the disk again: %v", last)
		}
	}
	if resp := thief(); resp.StatusCode != 401 {
		t.Errorf("a stolen cookie afterwards: %s", resp.Status)
	}
	if other.login(t, "bob", "battery staple") == "" {
		t.Error("no login afterwards")
	}
	other.wants(t, "GET", "/me", 200, `"level": "software"`)
	t.Logf("while the disk was full: %v; last: %v", codes, last)
}
