package tpmvault

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/internal/tpm"
)

// Level says what stands between the PIN and somebody who has this machine, may use
// its TPM and has the vault's files.
type Level string

const (
	// Full: eight tries by the TPM's own count, which nobody sets back; whoever
	// replaces that count has the few tries of the TPM's lockout.
	Full Level = "full"

	// Lockout: this TPM has no count for one PIN. Wrong ones count towards its
	// lockout, which is shared with other programs and forgets with time.
	Lockout Level = "lockout"

	// Resettable: the lockout has no password, so that who may use the TPM resets it
	// after each few tries, and guesses on; or it takes so many, or forgets them so
	// soon, that it comes to the same.
	Resettable Level = "resettable"

	// None: no token can be made here.
	None Level = "none"
)

// What the lockout has to be for a level above Resettable: at most so many wrong
// passwords at once, and at least so long until there may be another. The ten thousand
// PINs of four digits take a month then.
const (
	maxFailures = 100
	minForget   = 5 * time.Minute
)

// minRecovery is how long after a wrong password of the lockout's there should be no
// other. The one of Setup cannot be guessed, however short that is.
const minRecovery = 5 * time.Minute

// Status is what a TPM and a vault's files are good for.
type Status struct {
	Level   Level
	Reasons []string // why the level is no better, and what to do; one sentence each

	TPM             string // its address
	Chip            string // who made it
	StorageKey      bool   // whether the key that the machine shares is there
	OwnerPassword   bool
	LockoutPassword bool
	PINIndex        bool // whether the TPM counts tries of one PIN; false also if that cannot be tried

	Locked         bool          // the TPM takes no password at present
	Failures       uint32        // wrong passwords counted, of all programs
	MaxFailures    uint32        // that start the lockout
	ForgetInterval time.Duration // in which it forgets one
	Recovery       time.Duration // after a wrong password of the lockout's own, until it takes another; 0 for the TPM's next start

	Token      bool // whether the files have one
	OtherToken bool // whether the TPM has, or may have, one that is not these files': of another directory, or its files are lost
	PINSet     bool
	Retries    int // of a PIN that is set
}

// Examine looks at a TPM and a vault's files. It makes nothing, but for a place in
// the TPM's memory that it removes at once, and works while another process has the
// vault open. On an error the Status has what was found before.
func Examine(ctx context.Context, c Config) (Status, error) {
	v := &Vault{dir: c.Dir}
	v.conn = tpm.New(c.Addr, c.Dial, (*loaded)(v))
	defer v.conn.Close()
	s := Status{Level: None, TPM: v.conn.Addr}
	var err error
	if v.state, err = readState(c.Dir); err != nil && !errors.Is(err, fs.ErrPermission) {
		return s, prefix(err)
	}
	unreadable := err
	err = v.conn.Do(ctx, func() error { return v.examine(&s) })
	return s, prefix(cmp.Or(err, unreadable))
}

func (v *Vault) examine(s *Status) error {
	*s = Status{Level: None, TPM: s.TPM, Chip: tpm.MakerAndModel(v.conn.Properties)}
	why := func(format string, args ...any) { s.Reasons = append(s.Reasons, fmt.Sprintf(format, args...)) }
	p, err := tpm.Properties(v.conn, tpm2.TPMPTPermanent)
	if err != nil {
		return tpm.Words("asking the TPM about its state", err)
	}
	permanent := p[tpm2.TPMPTPermanent]
	s.OwnerPassword = permanent&ownerAuthSet != 0
	s.LockoutPassword = permanent&lockoutAuthSet != 0
	s.Locked = permanent&inLockout != 0
	s.Failures, s.MaxFailures = p[tpm2.TPMPTLockoutCounter], p[tpm2.TPMPTMaxAuthFail]
	s.ForgetInterval = time.Duration(p[tpm2.TPMPTLockoutInterval]) * time.Second
	s.Recovery = time.Duration(p[tpm2.TPMPTLockoutRecovery]) * time.Second

	err = v.findStorageKey(false)
	s.StorageKey = err == nil
	if err != nil && !errors.Is(err, errOtherTPM) {
		return err
	}
	if v.state != nil && !s.StorageKey {
		why("the files are of another TPM, or of this one before it was cleared: a reset makes a new token")
	} else if v.state != nil && v.state.Resetting {
		why("a reset was broken off: the token's next use finishes it")
	} else if v.state != nil {
		switch err := v.ready(); {
		case err == nil:
			s.Token, s.PINSet = true, v.state.pinSet()
			if s.PINSet {
				if s.Retries, err = v.readRetries(); err != nil {
					return err
				}
			}
		case errors.Is(err, errOtherTPM), errors.Is(err, errOutdated):
			why("%v", err)
		default:
			return err
		}
	}
	resetting := v.state != nil && v.state.Resetting && s.StorageKey && bytes.Equal(v.state.SRK, v.srk.name.Buffer)
	there, written, err := v.look(counterIndex(genHandle))
	if err != nil {
		return err
	}
	mine := s.Token && !v.state.Joined || resetting
	s.OtherToken = there && written && !mine
	there, _, err = v.look(pinIndex(pinHandle))
	untried := ""
	if err == nil && !there && s.OwnerPassword {
		untried = "while its owner has a password; setting a first PIN needs it empty too (tpm2_changeauth -c owner -p file:-)"
	} else if err == nil && !there {
		if s.PINIndex, err = v.tryPINIndex(); errors.Is(err, errNoTrial) {
			untried, err = errNoTrial.Error(), nil
		}
	}
	if err != nil {
		why("%v", err)
		return nil
	}
	if there {
		s.PINIndex = true
		if v.state == nil || v.state.PIN == nil {
			why("%v", errForeignPIN)
		}
	}
	complete := s.StorageKey
	for _, h := range []tpm2.TPMHandle{genHandle, countHandle} {
		there, _, err := v.look(counterIndex(h))
		if err != nil {
			why("%v", err)
			return nil
		}
		complete = complete && there
	}
	if s.OwnerPassword && !complete {
		why("the owner of the TPM has a password: whoever has it can empty it for limpet fido setup, the first PIN and a reset (tpm2_changeauth -c owner -p file:-, which asks for it), and set it again afterwards")
		return nil
	}
	const repair = "tpm2_dictionarylockout -s -n 32 -t 600 -l 86400 -p file:-, which asks for the lockout's password, sets it to what many have"
	lockout := v.state.lockout()
	s.Level = Full
	if !s.PINIndex || lockout {
		s.Level = Lockout
	}
	if !s.LockoutPassword {
		s.Level = Resettable
		why("the TPM's lockout has no password: whoever may use the TPM resets it and guesses PINs on; limpet fido setup gives it one")
	}
	switch {
	case s.MaxFailures == 0 || s.ForgetInterval == 0:
		s.Level = Resettable
		why("the TPM's lockout is off (%d failures, one forgotten in %v): %s", s.MaxFailures, s.ForgetInterval, repair)
	case s.MaxFailures > maxFailures || s.ForgetInterval < minForget:
		s.Level = Resettable
		why("the TPM's lockout is weak (%d failures at once, then one more every %v; at most %d, and one in %v at the soonest, have a PIN of four digits last a month): %s",
			s.MaxFailures, s.ForgetInterval, maxFailures, minForget, repair)
	case s.LockoutPassword && s.Recovery != 0 && s.Recovery < minRecovery:
		why("the lockout's own password can be tried every %v, which one that limpet fido setup made stands and a short one does not: %s", s.Recovery, repair)
	}
	switch {
	case s.PINIndex && !lockout, s.PINSet && !lockout:
	case untried != "" && !lockout:
		why("whether this TPM counts the tries of one PIN cannot be tried %s", untried)
	default:
		why("this TPM cannot count the tries of one PIN: wrong ones count towards its lockout, which other programs share, and copies of the files work with the PIN of their time")
	}
	if s.Locked {
		why("the TPM is locked after %d wrong passwords, of whichever program: it forgets one in %v, and the PIN does not work until then", s.Failures, s.ForgetInterval)
	}
	return nil
}

// errNoTrial: there is no place for a trial.
var errNoTrial = fmt.Errorf("while other software has something at each of %#x to %#x in its memory (tpm2_nvreadpublic shows it)", uint32(firstTrial), uint32(lastTrial))

// tryPINIndex finds out whether the TPM counts tries of one PIN, by making such a
// place and removing it. What others have there is left alone: the session that
// removes a place is for one of this name only.
func (v *Vault) tryPINIndex() (can bool, err error) {
	err = v.withStorageKey(func() error {
		for h := firstTrial; h <= lastTrial; h++ {
			i := pinIndex(h)
			there, written, err := v.look(i)
			if there && (err != nil || written) {
				continue
			}
			if err != nil {
				return err
			}
			if !there {
				err := v.define(i, nil)
				if noPINIndex(err) {
					return nil
				}
				if errors.Is(err, tpm2.TPMRCNVDefined) {
					continue // at this moment
				}
				if err != nil {
					return err
				}
			} // else a trial was broken off
			can = true
			if err := v.undefine(i, false); !errors.Is(err, tpm2.TPMRCHandle) {
				return err
			}
			return nil // another trial has removed it
		}
		return errNoTrial
	})
	return can, err
}

// Setup makes what a token needs: the storage key, the places in the TPM's memory and
// the vault's file, if they are not there. If the TPM's lockout has no password and
// recovery is not nil, it gives it a random one, after recovery was called with it
// and returned nil: nobody can ask for it again. The owner's password it neither
// sets nor takes. It works while another process has the vault open.
func Setup(ctx context.Context, c Config, recovery func(password string) error) (Status, error) {
	v, err := Open(c)
	switch {
	case errors.Is(err, ErrInUse):
		v = &Vault{dir: c.Dir}
		v.conn = tpm.New(c.Addr, c.Dial, (*loaded)(v))
		defer v.conn.Close()
		err = v.conn.Do(ctx, func() error { return v.findStorageKey(true) })
	case err != nil:
		return Status{Level: None}, err
	default:
		defer v.Close()
		err = v.do(ctx, func() error { return nil })
	}
	if err == nil && recovery != nil {
		err = v.lockLockout(ctx, recovery)
	}
	if err != nil {
		return Status{Level: None}, prefix(err)
	}
	v.conn.Close() // swtpm serves one connection at a time
	return Examine(ctx, c)
}

// lockLockout gives the lockout a password, if it has none.
func (v *Vault) lockLockout(ctx context.Context, recovery func(string) error) error {
	var permanent uint32
	err := v.conn.Do(ctx, func() error {
		p, err := tpm.Properties(v.conn, tpm2.TPMPTPermanent)
		permanent = p[tpm2.TPMPTPermanent]
		return tpm.Words("asking the TPM about its state", err)
	})
	if err != nil || permanent&lockoutAuthSet != 0 {
		return err
	}
	password := newPassword()
	if err := recovery(password); err != nil {
		return fmt.Errorf("the lockout's password could not be kept, so it was not set: %w", err)
	}
	return v.conn.Do(ctx, func() error {
		if err := v.findStorageKey(false); err != nil {
			return err
		}
		hmac, err := v.hmacSession()
		if err != nil {
			return err
		}
		u := hmac.secret(nil)
		u.after = []byte(password)
		_, err = tpm2.HierarchyChangeAuth{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: u},
			NewAuth:    tpm2.TPM2BAuth{Buffer: u.after},
		}.Execute(v.conn)
		return tpm.Words("giving the lockout a password", err)
	})
}

// newPassword returns 130 random bits in groups that a person can copy.
func newPassword() string {
	t := rand.Text() // 26 characters
	return t[:5] + "-" + t[5:10] + "-" + t[10:15] + "-" + t[15:20] + "-" + t[20:]
}
