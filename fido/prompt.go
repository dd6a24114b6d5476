package fido

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// Prompt asks the user.
type Prompt interface {
	// Ask shows a request and waits for the user's answer, or until ctx is done. An
	// error means that the user could not be asked.
	Ask(ctx context.Context, r Request) (allowed bool, err error)
}

// Request is what a user is asked to allow.
type Request struct {
	Operation Operation `json:"operation"`
	RPID      string    `json:"rp_id,omitempty"`    // the relying party, such as example.com; the browser vouches for it. None on U2F
	RPName    string    `json:"rp_name,omitempty"`  // what it calls itself
	Account   string    `json:"account,omitempty"`  // the user's name there, if it is known and one
	Accounts  int       `json:"accounts,omitempty"` // how many of the token's accounts may be used, if it is not one
	App       []byte    `json:"app,omitempty"`      // on U2F, the hash of the application's name, which is all that the token learns
}

// Operation is what is asked for.
type Operation string

// Operations.
const (
	Register     Operation = "register"
	Authenticate Operation = "authenticate"
	Select       Operation = "select" // the user has several tokens, and is to choose one
	Reset        Operation = "reset"  // everything is to be deleted

	// Those of a [Verifier] alone.
	Verify Operation = "verify" // the relying party is to know that it is the user
	Manage Operation = "manage" // a program is to see and change what the token keeps, of one relying party if that is known
)

// Text says in one line what is asked. Whatever comes from others is short and
// printable, whoever chose it.
func (r Request) Text() string {
	switch r.Operation {
	case Reset:
		return "Delete all credentials and the PIN of this token?"
	case Select:
		return "A program asks which token to use: use this one?"
	case Verify:
		return "Prove to " + r.site() + " that it is you?"
	case Manage:
		if r.RPID != "" {
			return "Let a program manage the accounts of this token at " + r.site() + "?"
		}
		return "Let a program manage what this token keeps?"
	}
	what := "Sign in to " + r.site()
	if r.Operation == Register {
		what = "Register with " + r.site()
	}
	switch {
	case r.Account != "":
		what += " as " + quote(r.Account, maxName)
	case r.Accounts > 1:
		what += fmt.Sprintf(" with one of %d accounts", r.Accounts)
	}
	return what + "?"
}

func (r Request) site() string {
	if r.RPID == "" {
		return fmt.Sprintf("a site of which only a hash is known, %s", hex.EncodeToString(r.App[:min(8, len(r.App))]))
	}
	// Whole, since it is its end that cannot be chosen by just anybody.
	site := strings.Map(func(c rune) rune {
		if c <= ' ' || c > '~' || c == '"' {
			return '\ufffd' // no domain has it
		}
		return c
	}, r.RPID)
	if r.RPName != "" && r.RPName != r.RPID {
		site += " (calls itself " + quote(r.RPName, maxName) + ")"
	}
	return site
}

// quote returns a stranger's words, cut off, without what could change the look of a prompt.
func quote(s string, limit int) string {
	var b strings.Builder
	n := 0
	for _, c := range s {
		if n++; n > limit {
			b.WriteString("…")
			break
		}
		if c == '"' || !unicode.IsPrint(c) {
			c = '\ufffd'
		}
		b.WriteRune(c)
	}
	return `"` + b.String() + `"`
}

// shownOf cuts off what quote does not show of a name, and leaves it a character to
// see that there was more: what an agent is told has to fit in a line.
func shownOf(name string) string {
	n := 0
	for at := range name {
		if n++; n > maxName+1 {
			return strings.Clone(name[:at])
		}
	}
	return name
}

// promptTimeout is how long a user is asked: CTAP 2.1, section 6.1.2, has 30 seconds.
const promptTimeout = 30 * time.Second

// consent asks the user, once for a transaction. Nothing is done with the vault's keys before.
func (t *Token) consent(x *transaction, r Request) error {
	r.RPName, r.Account = shownOf(r.RPName), shownOf(r.Account)
	x.waiting(true)
	defer x.waiting(false)
	select { // a U2F request may have a question open
	case t.asking <- struct{}{}:
		defer func() { <-t.asking }()
	case <-x.host.Done():
		return statusCancelled
	}
	ctx, cancel := context.WithTimeout(x.host, promptTimeout)
	defer cancel()
	allowed, err := t.prompt.Ask(ctx, r)
	switch {
	case x.host.Err() != nil:
		return statusCancelled
	case ctx.Err() != nil:
		return statusUserTimeout
	case err != nil && !errors.Is(err, context.DeadlineExceeded):
		t.complain("cannot ask the user", err)
		return statusOperationDenied
	case !allowed:
		return statusOperationDenied
	}
	return nil
}

// complain logs what stands in the way, now and then: hosts can ask as often as they like.
func (t *Token) complain(what string, err error) {
	if time.Since(t.complained) > time.Minute {
		t.complained = time.Now()
		t.log.Warn("limpet: fido: "+what, "error", err)
	}
}
