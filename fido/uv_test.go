package fido_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-auth/limpet/fido"
)

// verifier finds what it is told to.
type verifier struct {
	user  string
	finds error
	does  func(context.Context) // while the dialog is open
	asked []string
}

func (v *verifier) User(context.Context) (string, error) { return v.user, nil }

func (v *verifier) Verify(ctx context.Context, user string, r fido.Request) error {
	v.asked = append(v.asked, user+": "+r.Text())
	if v.does != nil {
		v.does(ctx)
		return ctx.Err()
	}
	return v.finds
}

// keeper is a vault that remembers what its PIN unlocked.
type keeper struct {
	*recorder
	unlocked []fido.Unlocked
}

func (k *keeper) Unlock(ctx context.Context, pin [16]byte) (fido.Unlocked, error) {
	u, err := k.recorder.Unlock(ctx, pin)
	if err == nil {
		k.unlocked = append(k.unlocked, u)
	}
	return u, err
}

// forgotten reports whether all of that is useless.
func (k *keeper) forgotten(t *testing.T) bool {
	t.Helper()
	for _, u := range k.unlocked {
		if _, _, err := k.Vault.Create(t.Context(), [32]byte{}, u); !errors.Is(err, fido.ErrLocked) {
			return false
		}
	}
	return len(k.unlocked) > 0
}

type uvBench struct {
	*bench
	vault    *keeper
	verifier *verifier
}

var pin = []byte("1234")

// newUVBench returns a token with a PIN that was right once.
func newUVBench(t *testing.T, dir string) *uvBench {
	t.Helper()
	b := newBench(t, dir)
	u := &uvBench{bench: b, vault: &keeper{recorder: b.vault}, verifier: &verifier{user: "alice"}}
	token, err := fido.New(t.Context(), fido.Config{Vault: u.vault, Prompt: b.user, Verify: u.verifier, File: filepath.Join(dir, "credentials"), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	b.Token = token
	if err := token.SetPIN(t.Context(), pin); err != nil {
		t.Fatal(err)
	}
	u.typePIN()
	return u
}

func (b *uvBench) typePIN() {
	b.t.Helper()
	if _, err := b.List(b.t.Context(), pin); err != nil {
		b.t.Fatal(err)
	}
}

func (b *uvBench) uv() (is, there bool) {
	b.t.Helper()
	is, there = b.want("getInfo", 0, []byte{4})[uint64(4)].(m)["uv"].(bool)
	return is, there
}

func (b *uvBench) retries() uint64 {
	b.t.Helper()
	return b.want("getUVRetries", 0, request(b.t, 6, m{2: 7}))[uint64(5)].(uint64)
}

var verified = m{"uv": true}

func withUV(params m, key int) m {
	params[key] = verified
	return params
}

// TestVerified: the user is verified in place of the PIN, is shown for what, and is
// not asked a second time.
func TestVerified(t *testing.T) {
	t.Parallel()
	plain := newBench(t, t.TempDir())
	if _, there := plain.want("getInfo", 0, []byte{4})[uint64(4)].(m)["uv"]; there {
		t.Error("there is no verifier, and option uv")
	}
	plain.want("uv without a verifier", 0x2c, request(t, 1, create(m{7: verified})))

	b := newUVBench(t, t.TempDir())
	if is, _ := b.uv(); !is || b.retries() != 3 {
		t.Errorf("after the PIN: uv %v, %d tries", is, b.retries())
	}
	made := b.want("makeCredential", 0, request(t, 1, create(m{7: m{"uv": true, "rk": true}})))[uint64(2)].([]byte)
	if made[32]&5 != 5 {
		t.Errorf("flags %#x, want present and verified", made[32])
	}
	id := made[55 : 55+int(made[53])<<8+int(made[54])]
	got := b.want("getAssertion", 0, request(t, 2, withUV(use(id), 5)))[uint64(2)].([]byte)
	if got[32] != 5 {
		t.Errorf("flags %#x", got[32])
	}
	got = b.want("getAssertion, silent", 0, request(t, 2, m{1: "example.com", 2: hash, 5: m{"uv": true, "up": false}}))[uint64(2)].([]byte)
	if got[32] != 4 {
		t.Errorf("flags %#x", got[32])
	}
	b.want("no credential", 0x2e, request(t, 2, withUV(m{1: "other.example", 2: hash}, 5)))
	if want := []string{
		`alice: Register with example.com (calls itself "Example") as "alice"?`,
		`alice: Sign in to example.com (calls itself "Example") as "alice"?`,
		`alice: Sign in to example.com (calls itself "Example") as "alice"?`,
		`alice: Sign in to other.example?`,
	}; !slices.Equal(b.verifier.asked, want) {
		t.Errorf("asked %q", b.verifier.asked)
	}
	if len(b.user.asked) != 0 {
		t.Errorf("asked again: %v", b.user.asked)
	}
	b.want("without verification", 0x36, request(t, 2, use(id)))
	b.make(nil)
	if len(b.user.asked) != 1 || len(b.verifier.asked) != 4 {
		t.Errorf("without option uv: asked %v, %q", b.user.asked, b.verifier.asked)
	}
}

// TestRefusedVerification: three in a row, and the PIN is needed; what is in nobody's
// hand does not count.
func TestRefusedVerification(t *testing.T) {
	t.Parallel()
	b := newUVBench(t, t.TempDir())
	register := request(t, 1, create(m{7: verified}))
	for _, test := range []struct {
		finds  error
		status byte
		left   uint64
	}{
		{fido.ErrNotVerified, 0x36, 2},
		{errors.New("no bus"), 0x36, 2},
		{fido.ErrDismissed, 0x27, 1},
		{nil, 0, 3},
		{fido.ErrDismissed, 0x27, 2},
		{fido.ErrDismissed, 0x27, 1},
		{fido.ErrNotVerified, 0x36, 0},
	} {
		b.verifier.finds = test.finds
		b.want("makeCredential", test.status, register)
		if left := b.retries(); left != test.left {
			t.Errorf("%v: %d tries left, want %d", test.finds, left, test.left)
		}
	}
	if calls := b.vault.calls; slices.Contains(calls[slices.Index(calls, "Create")+1:], "Create") {
		t.Errorf("refused, and a key is made: %q", calls)
	}
	b.verifier.finds = nil
	before := len(b.verifier.asked)
	b.want("blocked", 0x36, register)
	if is, there := b.uv(); is || !there || len(b.verifier.asked) != before || !b.vault.forgotten(t) {
		t.Errorf("blocked: uv %v, asked %d times more", is, len(b.verifier.asked)-before)
	}
	b.typePIN()
	b.want("after the PIN", 0, register)
}

// TestVerificationEnds: what the PIN unlocked is forgotten when it has to be.
func TestVerificationEnds(t *testing.T) {
	t.Parallel()
	register := request(t, 1, create(m{7: verified}))
	for what, end := range map[string]func(*testing.T, *uvBench){
		"the PIN changes": func(t *testing.T, b *uvBench) {
			if err := b.ChangePIN(t.Context(), pin, []byte("5678")); err != nil {
				t.Fatal(err)
			}
		},
		"reset": func(t *testing.T, b *uvBench) {
			if err := b.Reset(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := b.SetPIN(t.Context(), pin); err != nil {
				t.Fatal(err)
			}
		},
		"somebody else": func(t *testing.T, b *uvBench) {
			b.verifier.user = "bob"
			b.want("as bob", 0x36, register)
			b.verifier.user = "alice"
		},
		"somebody else, while the dialog is open": func(t *testing.T, b *uvBench) {
			b.verifier.does = func(context.Context) { b.verifier.user = "bob" }
			b.want("as bob", 0x36, register)
		},
		"the vault's end": func(t *testing.T, b *uvBench) {
			b.vault.unlocked[0].Forget() // as a TPM does that was restarted
			b.want("locked", 0x36, register)
		},
		"the device goes to another": func(t *testing.T, b *uvBench) { b.Forget() },
		"12 hours": func(t *testing.T, b *uvBench) {
			time.Sleep(12*time.Hour - time.Second)
			b.want("just before", 0, register)
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if !b.vault.forgotten(t) {
				t.Error("held until it is asked for")
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				b := newUVBench(t, dir)
				b.want("before", 0, register)
				end(t, b)
				if is, there := b.uv(); is || !there {
					t.Errorf("uv is %v", is)
				}
				b.verifier.does = nil
				before := len(b.verifier.asked)
				b.want("afterwards", 0x36, register)
				if len(b.verifier.asked) != before || !b.vault.forgotten(t) {
					t.Error("it is held")
				}
			})
		})
	}
}

// TestVerificationAbandoned: a host that gives up, or a user who is away, ends the
// dialog, and does not count.
func TestVerificationAbandoned(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := newUVBench(t, dir)
		b.verifier.does = func(ctx context.Context) { <-ctx.Done() }
		register := request(t, 1, create(m{7: verified}))
		var told []bool
		began := time.Now()
		got := b.CBOR(t.Context(), 1, register, func(waits bool) { told = append(told, waits) })
		if string(got) != "\x2f" || time.Since(began) != time.Minute || !slices.Equal(told, []bool{true, false}) {
			t.Errorf("%x after %v, told %v", got, time.Since(began), told)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got := b.CBOR(ctx, 1, register, func(bool) {}); string(got) != "\x2d" {
			t.Errorf("cancelled: %x", got)
		}
		if b.retries() != 3 {
			t.Errorf("%d tries left", b.retries())
		}
	})
}

// byName verifies as the relying party's name says.
type byName struct{}

func (byName) User(context.Context) (string, error) { return "alice", nil }

func (byName) Verify(ctx context.Context, _ string, r fido.Request) error {
	switch {
	case strings.HasPrefix(r.RPID, "wrong."):
		return fido.ErrNotVerified
	case strings.HasPrefix(r.RPID, "dismiss."):
		return fido.ErrDismissed
	case strings.HasPrefix(r.RPID, "wait."):
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

// TestPythonVerified has python3-fido2 use built-in verification.
func TestPythonVerified(t *testing.T) {
	t.Parallel()
	port, _ := plugWith(t, t.TempDir(), time.Now().Add(time.Hour), byName{})
	python(t, port, "verified")
}

// TestTextOfVerification: what a program gets is said.
func TestTextOfVerification(t *testing.T) {
	for want, r := range map[string]fido.Request{
		`Prove to example.com that it is you?`:                            {Operation: fido.Verify, RPID: "example.com"},
		`Let a program manage the accounts of this token at example.com?`: {Operation: fido.Manage, RPID: "example.com"},
		`Let a program manage what this token keeps?`:                     {Operation: fido.Manage},
		"Prove to exa\ufffdmple.com\ufffd that it is you?":                {Operation: fido.Verify, RPID: "exa\nmple.com\u202e"},
	} {
		if got := r.Text(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
