//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet"
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
			err := (&demo{keeper: keeper{tpm: noTPM}, rule: c.rule, out: &out}).run(t.Context())
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
		err := (&demo{keeper: keeper{tpm: noTPM}, out: stopAt{words, cancel}}).run(ctx)
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
