//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/channel"
)

// TestDemoTellsBrokenDefences: the demo is a check, not a show.
func TestDemoTellsBrokenDefences(t *testing.T) {
	for _, c := range []struct {
		name  string
		rule  limpet.Rule
		wrong []string // some lines that must be marked
	}{
		{"nothing is refused", limpet.Rule{Mode: limpet.Observe},
			[]string{"the token alone", "a device key of the thief's own", "vouches for itself", "with her delegation", "on another method", "on another body",
				"at another host", "stopped, with another body", "her request, once more", "what the refusal told"}},
		{"replays are admitted", limpet.Rule{Freshness: limpet.Timestamp},
			[]string{"her request, once more", "her introduction of a key, once more"}},
		{"nobody is admitted", limpet.Rule{MinLevel: limpet.HardwareAttested},
			[]string{"a request proven by that key", "logs out"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			var out bytes.Buffer
			err := (&demo{keeper: keeper{tpm: noTPM}, rule: c.rule, stage: stage{out: &out}}).run(t.Context())
			if !errors.Is(err, silent(exitFailure)) {
				t.Errorf("error %v, want exit code 1", err)
			}
			for _, words := range c.wrong {
				if !marked(out.String(), words) {
					t.Errorf("the line %q is not marked", words)
				}
			}
			if t.Failed() {
				t.Logf("%s", &out)
			}
			empty(t)
		})
	}
}

// TestChannelDemoTellsBrokenDefences: so is that one.
func TestChannelDemoTellsBrokenDefences(t *testing.T) {
	for _, c := range []struct {
		name    string
		protect func(*channel.Server, http.Handler) http.Handler
		wrong   []string
	}{
		{"nothing is refused", func(_ *channel.Server, next http.Handler) http.Handler {
			return http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
		}, []string{"the token, on HTTP/2", "the token, on HTTP/1.1", "the JWT, on HTTP/2", "the JWE, on HTTP/1.1", "made with another secret",
			"through the proxy", "hides the fingerprint", "without a MAC", "on another method", "on another query", "on another body", "once more", "within two seconds"}},
		{"nobody is admitted", func(*channel.Server, http.Handler) http.Handler { return http.NotFoundHandler() },
			[]string{"a token, on HTTP/2", "a JWT", "its token meanwhile", "valid, and unspent till now", "a request with a MAC"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			var out bytes.Buffer
			err := (&channelDemo{stage: stage{out: &out}, keeper: keeper{tpm: noTPM}, protect: c.protect}).run(t.Context())
			if !errors.Is(err, silent(exitFailure)) {
				t.Errorf("error %v, want exit code 1", err)
			}
			for _, words := range c.wrong {
				if !marked(out.String(), words) {
					t.Errorf("the line %q is not marked", words)
				}
			}
			if t.Failed() {
				t.Logf("%s", &out)
			}
			empty(t)
		})
	}
}

func marked(out, words string) bool {
	for line := range strings.Lines(out) {
		if strings.Contains(line, words) && strings.HasSuffix(strings.TrimSpace(line), "WRONG") {
			return true
		}
	}
	return false
}

// empty checks that the directory for temporary files is.
func empty(t *testing.T) {
	t.Helper()
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// stopAt cancels when something is written that contains words.
type stopAt struct {
	words  string
	cancel func()
}

func (s stopAt) Write(b []byte) (int, error) {
	if strings.Contains(string(b), s.words) {
		s.cancel()
	}
	return len(b), nil
}

func TestDemoInterrupted(t *testing.T) {
	for _, words := range []string{"listens on", "device key", "registers", "A thief", "the token alone", "on another query", "logs out",
		"What hw-sign", "unspent hw-sign proof"} {
		t.Setenv("TMPDIR", t.TempDir())
		ctx, cancel := context.WithCancel(t.Context())
		err := (&demo{keeper: keeper{tpm: noTPM}, stage: stage{out: stopAt{words, cancel}}}).run(ctx)
		if err == nil || err.Error() != "demo: interrupted" {
			t.Errorf("at %q: error %v", words, err)
		}
		empty(t)
	}
}

func TestChannelDemoInterrupted(t *testing.T) {
	for _, words := range []string{"listens on", "the client's secret", "client works", "a JWT", "A thief", "the JWE, on HTTP/2", "through the proxy",
		"shares its connection", "without a MAC", "is revoked", "within two seconds"} {
		t.Setenv("TMPDIR", t.TempDir())
		ctx, cancel := context.WithCancel(t.Context())
		err := (&channelDemo{stage: stage{out: stopAt{words, cancel}}, keeper: keeper{tpm: noTPM}, protect: (*channel.Server).Protect}).run(ctx)
		if err == nil || err.Error() != "demo: interrupted" {
			t.Errorf("at %q: error %v", words, err)
		}
		empty(t)
	}
}

func TestRoff(t *testing.T) {
	const text = ".hidden\n'too\na-b \\n"
	const want = "\\&.hidden\n\\&'too\na\\-b \\en"
	if got := roff(text); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
