package hwkey

import (
	"context"
	"errors"
	"fmt"
)

// Candidate is a keystore that a program would use if it works here. The
// packages of this module's keystores make them: tpmkey.Candidate,
// softkey.Candidate.
type Candidate struct {
	// Name says what the keystore is, for people: "TPM 2.0", "encrypted file".
	Name string

	// Level is the level of the keys it makes.
	Level Level

	// Open opens the keystore and proves that it can make keys, as cheaply as
	// it can. On success about says in a few words what was found, such as the
	// make of the TPM. It must return soon after ctx is done.
	Open func(ctx context.Context) (ks Keystore, about string, err error)
}

// Finding says what became of one candidate.
type Finding struct {
	Name   string // the candidate
	Level  Level  // what its keys would be
	Chosen bool
	Reason string // for people: why it was chosen, or why it was not
	Err    error  // what it failed with; nil if it works or was not tried
}

// String returns the finding as one line for a person.
func (f Finding) String() string {
	if f.Chosen {
		return f.Name + ": used: " + f.Reason
	}
	return f.Name + ": not used: " + f.Reason
}

// ErrNoKeystore means that none of the candidates works on this machine.
var ErrNoKeystore = errors.New("hwkey: no keystore works on this machine")

// Auto opens the candidates in order, best first, and returns the first that
// works. There is one finding for each candidate, in their order, so that a
// program can tell its user what keeps the keys and why it is not something
// better. A candidate that fails never stops Auto; if all fail the error is
// ErrNoKeystore and wraps every reason. If ctx ends, Auto stops with its error.
func Auto(ctx context.Context, candidates ...Candidate) (Keystore, []Finding, error) {
	var (
		chosen   Keystore
		name     string
		findings []Finding
		errs     = []error{ErrNoKeystore}
	)
	for _, c := range candidates {
		f := Finding{Name: c.Name, Level: c.Level}
		if chosen != nil {
			f.Reason = fmt.Sprintf("%s comes first and works", name)
			findings = append(findings, f)
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, findings, fmt.Errorf("hwkey: looking for a keystore: %w", err)
		}
		ks, about, err := c.Open(ctx)
		if err != nil {
			f.Reason, f.Err = err.Error(), err
			errs = append(errs, fmt.Errorf("%s: %w", c.Name, err))
		} else {
			chosen, name = ks, c.Name
			f.Chosen, f.Reason = true, about
		}
		findings = append(findings, f)
	}
	if chosen == nil {
		return nil, findings, errors.Join(errs...)
	}
	return chosen, findings, nil
}
