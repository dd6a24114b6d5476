package prompt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/limpet-auth/limpet/fido"
)

// Terminal asks on a terminal.
type Terminal struct {
	in  io.Reader
	out io.Writer

	asked  atomic.Uint64 // questions so far
	mu     sync.Mutex
	line   []byte      // what has been typed of one since the question
	answer chan string // of the question that waits, nil if none does
	ended  chan struct{}
}

const maxLine = 100 // bytes; what is longer says neither yes nor no

// NewTerminal asks on out and reads answers, a line each, from in. It reads all the
// time: what comes when there is no question answers none. Of a line that was begun
// before the question, on Linux's terminals nothing counts, elsewhere what came after.
func NewTerminal(in io.Reader, out io.Writer) *Terminal {
	t := &Terminal{in: in, out: out, ended: make(chan struct{})}
	go func() {
		defer close(t.ended)
		buf := make([]byte, 1024)
		for {
			n, err := in.Read(buf)
			t.typed(buf[:n], t.asked.Load())
			if err != nil {
				return
			}
		}
	}()
	return t
}

// typed gives the first line to who waits for one, but for what was read before the
// last of so many questions was there.
func (t *Terminal) typed(b []byte, asked uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.answer == nil || asked != t.asked.Load() {
		return
	}
	b, _, whole := bytes.Cut(b, []byte("\n"))
	t.line = append(t.line, b[:min(len(b), maxLine-len(t.line))]...)
	if whole {
		t.answer <- string(t.line)
		t.answer = nil
	}
}

// ask begins a question, which takes the place of one that waits.
func (t *Terminal) ask(text string) <-chan string {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, "%s [y/N] ", text)
	if f, isFile := t.in.(*os.File); isFile {
		flush(f)
	}
	answer := make(chan string, 1)
	t.line, t.answer = nil, answer
	t.asked.Add(1)
	return answer
}

// Ask takes y for yes, in a line that was typed after the question was there.
func (t *Terminal) Ask(ctx context.Context, r fido.Request) (bool, error) {
	answer := t.ask(r.Text())
	var line string
	select {
	case line = <-answer:
	case <-t.ended:
		select {
		case line = <-answer: // the last one
		default:
			fmt.Fprintln(t.out)
			return false, errors.New("limpet: prompt: standard input has ended")
		}
	case <-ctx.Done():
		fmt.Fprintln(t.out, "\nno longer wanted")
		return false, ctx.Err()
	}
	line = strings.ToLower(strings.TrimSpace(line))
	return line == "y" || line == "yes", nil
}
