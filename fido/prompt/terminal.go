package prompt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/fido"
)

// Terminal asks on a terminal.
type Terminal struct {
	out   io.Writer
	lines chan line
}

type line struct {
	text string
	at   time.Time
}

// NewTerminal asks on out and reads answers, a line each, from in.
func NewTerminal(in io.Reader, out io.Writer) *Terminal {
	t := &Terminal{out, make(chan line)}
	go func() {
		defer close(t.lines)
		for s := bufio.NewScanner(in); s.Scan(); {
			t.lines <- line{s.Text(), time.Now()}
		}
	}()
	return t
}

// Ask takes y for yes, in a line that was entered after the question was there.
func (t *Terminal) Ask(ctx context.Context, r fido.Request) (bool, error) {
	asked := time.Now()
	fmt.Fprintf(t.out, "%s [y/N] ", r.Text())
	for {
		select {
		case l, open := <-t.lines:
			switch {
			case !open:
				fmt.Fprintln(t.out)
				return false, errors.New("limpet: prompt: standard input has ended")
			case l.at.After(asked):
				answer := strings.ToLower(strings.TrimSpace(l.text))
				return answer == "y" || answer == "yes", nil
			}
		case <-ctx.Done():
			fmt.Fprintln(t.out, "\nno longer wanted")
			return false, ctx.Err()
		}
	}
}
