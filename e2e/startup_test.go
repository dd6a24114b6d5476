package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestStartUpFaults: a server that cannot start says why and ends.
func TestStartUpFaults(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	locked := filepath.Join(dir, "locked")
	running := mustServe(t, "bolt:"+locked)

	corrupt := filepath.Join(dir, "corrupt")
	write(t, corrupt, strings.Repeat("this is no store\n", 1000))
	torn := filepath.Join(dir, "torn")
	s := mustServe(t, "bolt:"+torn)
	newPeer(t, s.url, "ed25519")
	s.kill()
	whole, err := os.ReadFile(torn)
	if err != nil {
		t.Fatal(err)
	}
	if len(whole) < 8192 {
		t.Fatalf("the store has only %d bytes", len(whole))
	}
	write(t, torn, strings.Repeat("\xff", 8192)+string(whole[8192:]))
	file := filepath.Join(dir, "file")
	write(t, file, "x")

	for _, tt := range []struct {
		name, store string
		flags       []string
		says        string // one of the words, separated by |
	}{
		{"the store is in use", "bolt:" + locked, nil, "another process|in use|locked"},
		{"the store is no store", "bolt:" + corrupt, nil, "corrupt|invalid|not a"},
		{"the store is damaged", "bolt:" + torn, nil, "corrupt|invalid|not a"},
		{"the store is a directory", "bolt:" + dir, nil, "directory|regular file"},
		{"the directory is a file", "bolt:" + filepath.Join(file, "store"), nil, "directory"},
		{"the directory cannot be written", "bolt:/proc/limpet/store", nil, "permission|no such file|not permitted|read-only"},
		{"no such kind of store", "paper:", nil, "store"},
		{"the address is taken", "mem:", []string{"--listen", strings.TrimPrefix(running.url, "http://")}, "in use"},
		{"the address is none", "mem:", []string{"--listen", "nowhere"}, "nowhere"},
		{"no such flag", "mem:", []string{"--no-such-flag"}, "no-such-flag"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, err := start(tt.store, tt.flags...)
			if err != nil {
				t.Fatal(err)
			}
			defer s.kill()
			if code := s.ended(t); code == 0 {
				t.Error("exit code 0")
			}
			said := s.out.String()
			found := false
			for _, word := range strings.Split(tt.says, "|") {
				found = found || strings.Contains(said, word)
			}
			if !found || strings.Contains(said, "panic") || strings.Contains(said, "goroutine ") {
				t.Errorf("it says %q, want one of %q in it", said, tt.says)
			}
		})
	}
	t.Cleanup(func() { // once the cases are done
		if a, err := do("GET", running.url+"/authenticated", http.Header{}, ""); err != nil || a.status != 401 {
			t.Errorf("the server that has the store: %v %v", a, err)
		}
	})
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestGracefulShutdown: a request in flight is answered, then the process ends
// with 0, and what it did is kept.
func TestGracefulShutdown(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			store := "bolt:" + filepath.Join(t.TempDir(), "store")
			s := mustServe(t, store)
			p, e := ready(t, s.url, "ecdsa", "ecdh")
			idle, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer idle.Close()
			conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			body := p.credentials()
			fmt.Fprintf(conn, "POST /login HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n", len(body))
			p.offer().Write(conn)
			io.WriteString(conn, "\r\n")
			answers := bufio.NewReader(conn)
			if resp, err := http.ReadResponse(answers, nil); err != nil || resp.StatusCode != http.StatusContinue {
				t.Fatalf("the request is not under way: %v %v", resp, err)
			}
			io.WriteString(conn, body[:5])
			if err := s.cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
				other, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
				if err != nil {
					break
				}
				other.Close()
				if time.Since(began) > 5*time.Second {
					t.Fatal("a server that is ending takes new connections")
				}
			}
			io.WriteString(conn, body[5:])
			resp, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatalf("the request in flight: %v\n%s", err, s.out)
			}
			answered, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("the request in flight: %s %s %v", resp.Status, answered, err)
			}
			if code := s.ended(t); code != 0 {
				t.Errorf("exit code %d\n%s", code, s.out)
			}
			p.base = mustServe(t, store).url
			wantAdmitted(t, "the session and key of before", p.get(t, p.proof(e, stamp())))
			p.token = answer{body: string(answered)}.field("token")
			p.introduce(t, e)
			wantAdmitted(t, "the login that was in flight", p.get(t, p.proof(e, stamp())))
		})
	}
}
