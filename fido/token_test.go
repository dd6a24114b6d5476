package fido_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/softvault"
)

var canonical = func() cbor.EncMode {
	mode, err := cbor.CTAP2EncOptions().EncMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// m is a map of CBOR.
type m = map[any]any

func request(t testing.TB, cmd byte, params any) []byte {
	t.Helper()
	b, err := canonical.Marshal(params)
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte{cmd}, b...)
}

// recorder is a vault that remembers what it was asked, and dies at one of its calls.
type recorder struct {
	fido.Vault
	calls []string
	dies  int // at which call, from 1 on
}

var errDead = errors.New("dead")

func (r *recorder) call(name string) error {
	r.calls = append(r.calls, name)
	if r.dies != 0 && len(r.calls) >= r.dies {
		return errDead
	}
	return nil
}

func (r *recorder) Create(ctx context.Context, tie [32]byte, u fido.Unlocked) ([]byte, *ecdsa.PublicKey, error) {
	if err := r.call("Create"); err != nil {
		return nil, nil, err
	}
	return r.Vault.Create(ctx, tie, u)
}

func (r *recorder) CreateSecret(ctx context.Context, tie [32]byte, u fido.Unlocked) ([]byte, error) {
	if err := r.call("CreateSecret"); err != nil {
		return nil, err
	}
	return r.Vault.CreateSecret(ctx, tie, u)
}

func (r *recorder) Sign(ctx context.Context, tie [32]byte, handle []byte, u fido.Unlocked, digest [32]byte) ([]byte, error) {
	if err := r.call("Sign"); err != nil {
		return nil, err
	}
	return r.Vault.Sign(ctx, tie, handle, u, digest)
}

func (r *recorder) Secret(ctx context.Context, tie [32]byte, handle []byte, u fido.Unlocked, salt []byte) ([32]byte, error) {
	if err := r.call("Secret"); err != nil {
		return [32]byte{}, err
	}
	return r.Vault.Secret(ctx, tie, handle, u, salt)
}

func (r *recorder) Count(ctx context.Context) (uint32, error) {
	if err := r.call("Count"); err != nil {
		return 0, err
	}
	return r.Vault.Count(ctx)
}

func (r *recorder) Seal(ctx context.Context, plain []byte) ([]byte, error) {
	if err := r.call("Seal"); err != nil {
		return nil, err
	}
	return r.Vault.Seal(ctx, plain)
}

func (r *recorder) Reset(ctx context.Context) error {
	if err := r.call("Reset"); err != nil {
		return err
	}
	return r.Vault.Reset(ctx)
}

func (r *recorder) SetPIN(ctx context.Context, pin [16]byte) error {
	if err := r.call("SetPIN"); err != nil {
		return err
	}
	return r.Vault.SetPIN(ctx, pin)
}

// asker answers what it is told to, and remembers what it was asked.
type asker struct {
	allow bool
	asked []fido.Request
}

func (a *asker) Ask(_ context.Context, r fido.Request) (bool, error) {
	a.asked = append(a.asked, r)
	return a.allow, nil
}

// bench is a token whose parts can be looked at.
type bench struct {
	t *testing.T
	*fido.Token
	vault *recorder
	user  *asker
	dir   string
}

func newBench(t *testing.T, dir string) *bench {
	t.Helper()
	vault, err := softvault.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, vault: &recorder{Vault: vault}, user: &asker{allow: true}, dir: dir}
	b.Token, err = fido.New(t.Context(), fido.Config{Vault: b.vault, Prompt: b.user, File: filepath.Join(dir, "credentials"), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vault.Close() })
	b.Appear()
	return b
}

// reopen is the token after its end.
func (b *bench) reopen() *bench {
	b.t.Helper()
	if err := b.vault.Close(); err != nil {
		b.t.Fatal(err)
	}
	return newBench(b.t, b.dir)
}

// send returns the status and the map of an answer.
func (b *bench) send(request []byte) (status byte, answer map[any]any) {
	b.t.Helper()
	raw := b.CBOR(b.t.Context(), 1, request, func(bool) {})
	if len(raw) > 1 {
		if err := cbor.Unmarshal(raw[1:], &answer); err != nil {
			b.t.Fatal(err)
		}
		again, err := canonical.Marshal(answer)
		if err != nil || !bytes.Equal(again, raw[1:]) {
			b.t.Fatalf("not canonical: %x", raw)
		}
	}
	return raw[0], answer
}

func (b *bench) want(what string, status byte, request []byte) map[any]any {
	b.t.Helper()
	got, answer := b.send(request)
	if got != status {
		b.t.Fatalf("%s: status %#02x, want %#02x", what, got, status)
	}
	return answer
}

var hash = make([]byte, 32)

func create(more m) m {
	params := m{1: hash, 2: m{"id": "example.com", "name": "Example"}, 3: m{"id": []byte("1"), "name": "alice"}, 4: []m{{"alg": -7, "type": "public-key"}}}
	for k, v := range more {
		params[k] = v
		if v == nil {
			delete(params, k)
		}
	}
	return params
}

func (b *bench) make(more m) (id []byte) {
	b.t.Helper()
	data := b.want("makeCredential", 0, request(b.t, 1, create(more)))[uint64(2)].([]byte)
	n := int(binary.BigEndian.Uint16(data[53:]))
	return bytes.Clone(data[55 : 55+n])
}

func use(id []byte) m {
	params := m{1: "example.com", 2: hash}
	if id != nil {
		params[3] = []m{{"id": id, "type": "public-key"}}
	}
	return params
}

// TestMalformed: each thing that is wrong with a request has the error that CTAP has
// for it.
func TestMalformed(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	id := b.make(nil)
	raw := func(s string) []byte { return []byte(s) }
	long := strings.Repeat("x", 256)
	point := m{1: 2, 3: -25, -1: 1, -2: make([]byte, 32), -3: make([]byte, 32)}
	var many []m
	for range 65 {
		many = append(many, m{"id": []byte("x"), "type": "public-key"})
	}
	for _, test := range []struct {
		what    string
		status  byte
		request []byte
	}{
		{"nothing", 0x03, nil},
		{"unknown command", 0x01, raw("\x55")},
		{"unknown command with data", 0x01, raw("\x40\xa0")},
		{"vendor command", 0x01, raw("\xff")},
		{"getInfo with data", 0x03, raw("\x04\xa0")},
		{"no parameters", 0x12, raw("\x01")},
		{"no map", 0x11, raw("\x01\x80")},
		{"a map cut off", 0x12, raw("\x01\xa1\x01")},
		{"more after the map", 0x12, raw("\x01\xa0\x00")},
		{"indefinite length", 0x12, raw("\x06\xbf\x02\x01\xff")},
		{"a tag", 0x12, raw("\x06\xa1\x02\xc0\x60")},
		{"a member twice", 0x12, raw("\x06\xa2\x02\x01\x02\x01")},
		{"members in disorder", 0x12, raw("\x06\xa2\x02\x01\x01\x01")},
		{"a long number that is small", 0x12, raw("\x06\xa1\x02\x18\x01")},
		{"a long length that is short", 0x12, raw("\x06\xa1\x18\x02\x01")},
		{"too deep", 0x12, raw("\x06\xa1\x02\x81\x81\x81\x81\x81\x01")},
		{"not UTF-8", 0x12, raw("\x06\xa1\x02\x61\xff")},
		{"null", 0x11, raw("\x06\xa1\x02\xf6")},
		{"undefined", 0x11, raw("\x06\xa1\x02\xf7")},
		{"a float", 0x11, raw("\x06\xa1\x02\xfb\x3f\xf0\x00\x00\x00\x00\x00\x00")},
		{"a number too large", 0x11, raw("\x06\xa1\x02\x1b\xff\xff\xff\xff\xff\xff\xff\xff")},
		{"a key of bytes", 0x11, raw("\x06\xa1\x41\x02\x01")},
		{"a huge array", 0x12, raw("\x06\xa1\x02\x9b\x7f\xff\xff\xff\xff\xff\xff\xff")},

		{"no client data", 0x14, request(t, 1, create(m{1: nil}))},
		{"no relying party", 0x14, request(t, 1, create(m{2: nil}))},
		{"no relying party's ID", 0x14, request(t, 1, create(m{2: m{"name": "x"}}))},
		{"no user", 0x14, request(t, 1, create(m{3: nil}))},
		{"no user's ID", 0x14, request(t, 1, create(m{3: m{"name": "x"}}))},
		{"no algorithms", 0x14, request(t, 1, create(m{4: nil}))},
		{"no algorithm", 0x26, request(t, 1, create(m{4: []m{}}))},
		{"another algorithm", 0x26, request(t, 1, create(m{4: []m{{"alg": -8, "type": "public-key"}}}))},
		{"another type", 0x26, request(t, 1, create(m{4: []m{{"alg": -7, "type": "x"}}}))},
		{"an algorithm without a type", 0x14, request(t, 1, create(m{4: []m{{"alg": -7}}}))},
		{"an algorithm of text, after one that will do", 0x11, request(t, 1, create(m{4: []m{{"alg": -7, "type": "public-key"}, {"alg": "x", "type": "public-key"}}}))},
		{"algorithms that are no maps", 0x11, request(t, 1, create(m{4: []int{-7}}))},
		{"client data of text", 0x11, request(t, 1, create(m{1: "x"}))},
		{"client data as numbers", 0x11, request(t, 1, create(m{1: []int{1}}))},
		{"short client data", 0x03, request(t, 1, create(m{1: []byte("x")}))},
		{"a relying party of text", 0x11, request(t, 1, create(m{2: "example.com"}))},
		{"a relying party's ID of bytes", 0x11, request(t, 1, create(m{2: m{"id": []byte("x")}}))},
		{"a relying party's empty ID", 0x03, request(t, 1, create(m{2: m{"id": ""}}))},
		{"a relying party's long ID", 0x15, request(t, 1, create(m{2: m{"id": long}}))},
		{"a user's long ID", 0x03, request(t, 1, create(m{3: m{"id": []byte(long)}}))},
		{"a user's ID of text", 0x11, request(t, 1, create(m{3: m{"id": "x"}}))},
		{"a user's name of bytes", 0x11, request(t, 1, create(m{3: m{"id": []byte("x"), "name": []byte("x")}}))},
		{"an icon that is a number", 0x11, request(t, 1, create(m{3: m{"id": []byte("x"), "icon": 8}}))},
		{"an excluded one without ID", 0x14, request(t, 1, create(m{5: []m{{"type": "public-key"}}}))},
		{"an excluded one without type", 0x14, request(t, 1, create(m{5: []m{{"id": []byte("x")}}}))},
		{"too many excluded", 0x15, request(t, 1, create(m{5: many}))},
		{"excluded", 0x19, request(t, 1, create(m{5: []m{{"id": id, "type": "public-key"}}}))},
		{"extensions that are no map", 0x11, request(t, 1, create(m{6: 1}))},
		{"an extension of another type", 0x11, request(t, 1, create(m{6: m{"hmac-secret": 1}}))},
		{"options that are no map", 0x11, request(t, 1, create(m{7: []int{}}))},
		{"an option that is a number", 0x11, request(t, 1, create(m{7: m{"rk": 1}}))},
		{"up is false", 0x2c, request(t, 1, create(m{7: m{"up": false}}))},
		{"uv", 0x2c, request(t, 1, create(m{7: m{"uv": true}}))},
		{"a PIN, of which there is none", 0x35, request(t, 1, create(m{8: hash, 9: 1}))},
		{"a PIN without protocol", 0x14, request(t, 1, create(m{8: hash}))},
		{"a PIN with an unknown protocol", 0x02, request(t, 1, create(m{8: hash, 9: 3}))},
		{"an empty PIN", 0x35, request(t, 1, create(m{8: []byte{}, 9: 1}))},
		{"a PIN of text", 0x11, request(t, 1, create(m{8: "x", 9: 1}))},
		{"enterprise attestation", 0x02, request(t, 1, create(m{10: 1}))},
		{"what nobody knows", 0x00, request(t, 1, create(m{6: m{"x": true}, 7: m{"x": true}, 99: 1}))},

		{"no relying party", 0x14, request(t, 2, m{2: hash})},
		{"no client data", 0x14, request(t, 2, m{1: "x"})},
		{"short client data", 0x03, request(t, 2, m{1: "x", 2: []byte("x")})},
		{"a relying party of bytes", 0x11, request(t, 2, m{1: hash, 2: hash})},
		{"a credential that is no map", 0x11, request(t, 2, m{1: "example.com", 2: hash, 3: []int{1}})},
		{"too many", 0x15, request(t, 2, m{1: "example.com", 2: hash, 3: many})},
		{"none is known", 0x2e, request(t, 2, m{1: "example.com", 2: hash, 3: many[:64]})},
		{"an empty list", 0x2e, request(t, 2, m{1: "example.com", 2: hash, 3: []m{}})},
		{"of another type", 0x2e, request(t, 2, m{1: "example.com", 2: hash, 3: []m{{"id": id, "type": "x"}}})},
		{"a long ID", 0x2e, request(t, 2, m{1: "example.com", 2: hash, 3: []m{{"id": make([]byte, 2000), "type": "public-key"}}})},
		{"rk", 0x2b, request(t, 2, m{1: "example.com", 2: hash, 5: m{"rk": true}})},
		{"uv", 0x2c, request(t, 2, m{1: "example.com", 2: hash, 5: m{"uv": true}})},
		{"hmac-secret that is no map", 0x11, request(t, 2, m{1: "example.com", 2: hash, 4: m{"hmac-secret": true}})},
		{"hmac-secret without key", 0x14, request(t, 2, m{1: "example.com", 2: hash, 4: m{"hmac-secret": m{2: hash, 3: hash}}})},
		{"hmac-secret off the curve", 0x02, request(t, 2, m{1: "example.com", 2: hash, 4: m{"hmac-secret": m{1: point, 2: hash, 3: hash, 4: 2}}})},
		{"hmac-secret of an unknown protocol", 0x02, request(t, 2, m{1: "example.com", 2: hash, 4: m{"hmac-secret": m{1: point, 2: hash, 3: hash, 4: 9}}})},
		{"next of nothing", 0x30, raw("\x08")},

		{"no subcommand", 0x14, request(t, 6, m{1: 1})},
		{"an unknown subcommand", 0x3e, request(t, 6, m{1: 1, 2: 99})},
		{"no protocol", 0x14, request(t, 6, m{2: 2})},
		{"an unknown protocol", 0x02, request(t, 6, m{1: 3, 2: 2})},
		{"setPIN without key", 0x14, request(t, 6, m{1: 2, 2: 3, 4: hash, 5: hash})},
		{"setPIN without PIN", 0x14, request(t, 6, m{1: 2, 2: 3, 3: point, 4: hash})},
		{"setPIN off the curve", 0x02, request(t, 6, m{1: 2, 2: 3, 3: point, 4: hash, 5: hash})},
		{"setPIN with a key of another kind", 0x02, request(t, 6, m{1: 2, 2: 3, 3: m{1: 3, 3: -25, -1: 1, -2: hash, -3: hash}, 4: hash, 5: hash})},
		{"setPIN with a key without y", 0x14, request(t, 6, m{1: 2, 2: 3, 3: m{1: 2, 3: -25, -1: 1, -2: hash}, 4: hash, 5: hash})},
		{"changePIN without PIN", 0x35, request(t, 6, m{1: 2, 2: 4, 3: point, 4: hash, 5: hash, 6: hash})},
		{"token with permissions, by the old way", 0x02, request(t, 6, m{1: 2, 2: 5, 3: point, 6: hash, 9: 1})},
		{"token without permissions, by the new", 0x14, request(t, 6, m{1: 2, 2: 9, 3: point, 6: hash})},
		{"negative permissions", 0x02, request(t, 6, m{1: 2, 2: 9, 3: point, 6: hash, 9: -1})},
		{"unknown permissions", 0x40, request(t, 6, m{1: 2, 2: 9, 3: point, 6: hash, 9: 64})},

		{"management without PIN", 0x36, request(t, 10, m{1: 1})},
		{"management by its older number", 0x36, request(t, 0x41, m{1: 1})},
		{"management of nothing", 0x3e, request(t, 10, m{1: 99})},
		{"negative", 0x3e, request(t, 10, m{1: -1})},
		{"with a PIN that is not set", 0x33, request(t, 10, m{1: 1, 3: 1, 4: hash})},
		{"parameters that are no map", 0x11, request(t, 10, m{1: 4, 2: 1, 3: 1, 4: hash})},
		{"next of nothing", 0x30, request(t, 10, m{1: 3})},
		{"next of nothing", 0x30, request(t, 10, m{1: 5})},

		{"neither get nor set", 0x02, request(t, 12, m{3: 0})},
		{"get and set", 0x02, request(t, 12, m{1: 1, 2: hash, 3: 0})},
		{"no offset", 0x14, request(t, 12, m{1: 1})},
		{"a negative offset", 0x02, request(t, 12, m{1: 1, 3: -1})},
		{"a negative length", 0x02, request(t, 12, m{1: -1, 3: 0})},
		{"get with a length", 0x02, request(t, 12, m{1: 1, 3: 0, 4: 1})},
		{"beyond the end", 0x02, request(t, 12, m{1: 1, 3: 18})},
		{"set without length", 0x02, request(t, 12, m{2: hash, 3: 0})},
		{"set, too short", 0x02, request(t, 12, m{2: hash[:16], 3: 0, 4: 16})},
		{"set, too long", 0x18, request(t, 12, m{2: hash, 3: 0, 4: 1 << 20})},
		{"set in the middle", 0x04, request(t, 12, m{2: hash, 3: 32})},
		{"set more than was said", 0x02, request(t, 12, m{2: make([]byte, 33), 3: 0, 4: 32})},
		{"set, not hashed", 0x3d, request(t, 12, m{2: hash, 3: 0, 4: 32})},

		{"nothing to configure", 0x14, request(t, 13, m{})},
		{"enterprise attestation", 0x3e, request(t, 13, m{1: 1})},
		{"a long PIN", 0x37, request(t, 13, m{1: 3, 2: m{1: 64}})},
		{"a shorter PIN", 0x37, request(t, 13, m{1: 3, 2: m{1: 3}})},
		{"to change a PIN that is not set", 0x35, request(t, 13, m{1: 3, 2: m{3: true}})},
		{"relying parties that are numbers", 0x11, request(t, 13, m{1: 3, 2: m{2: []int{1}}})},
		{"too many relying parties", 0x28, request(t, 13, m{1: 3, 2: m{2: slices.Repeat([]string{"x"}, 17)}})},
	} {
		if got, _ := b.send(test.request); got != test.status {
			t.Errorf("%s: status %#02x, want %#02x\n%x", test.what, got, test.status, test.request)
		}
	}
	b.want("after all that", 0, request(t, 2, use(id)))
}

// TestNothingBeforeConsent: keys are neither made nor used before the user has been
// asked, once, and not at all if the user refuses. Afterwards each is used once.
func TestNothingBeforeConsent(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	id := b.make(m{7: m{"rk": true}})
	for _, test := range []struct {
		what    string
		request []byte
		calls   []string
		asked   string
	}{
		{"makeCredential", request(t, 1, create(nil)), []string{"Create", "Count", "Sign"}, `Register with example.com (calls itself "Example") as "alice"?`},
		{"discoverable", request(t, 1, create(m{7: m{"rk": true}, 3: m{"id": []byte("2")}})), []string{"Create", "Count", "Sign", "Seal"}, `Register with example.com (calls itself "Example")?`},
		{"hmac-secret", request(t, 1, create(m{6: m{"hmac-secret": true}})), []string{"Create", "CreateSecret", "Count", "Sign"}, `Register with example.com (calls itself "Example") as "alice"?`},
		{"without statement", request(t, 1, create(m{11: []string{"none"}})), []string{"Create", "Count"}, `Register with example.com (calls itself "Example") as "alice"?`},
		{"getAssertion", request(t, 2, use(id)), []string{"Count", "Sign"}, `Sign in to example.com (calls itself "Example") as "alice"?`},
		{"getAssertion of several", request(t, 2, use(nil)), []string{"Count", "Sign"}, `Sign in to example.com (calls itself "Example") with one of 2 accounts?`},
		{"selection", []byte{11}, nil, "A program asks which token to use: use this one?"},
		{"reset", []byte{7}, []string{"Reset", "Seal"}, "Delete all credentials and the PIN of this token?"},
	} {
		for _, allow := range []bool{false, true} {
			b.vault.calls, b.user.asked, b.user.allow = nil, nil, allow
			want := byte(0)
			var calls []string
			if allow {
				calls = test.calls
			} else {
				want = 0x27
			}
			b.want(test.what, want, test.request)
			if len(b.user.asked) != 1 {
				t.Errorf("%s: the user was asked %d times", test.what, len(b.user.asked))
			} else if got := b.user.asked[0].Text(); got != test.asked {
				t.Errorf("%s: the user was asked %q", test.what, got)
			}
			if !slices.Equal(b.vault.calls, calls) {
				t.Errorf("%s, allowed %v: the vault was asked for %v, want %v", test.what, allow, b.vault.calls, calls)
			}
		}
	}
}

// TestInterrupted: at whichever step it ends, the token works afterwards, with what it
// had or with what it was about to have.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		what string
		do   func(b *bench) byte
	}{
		{"makeCredential", func(b *bench) byte {
			s, _ := b.send(request(t, 1, create(m{6: m{"hmac-secret": true}, 7: m{"rk": true}, 3: m{"id": []byte("2")}})))
			return s
		}},
		{"getAssertion", func(b *bench) byte { s, _ := b.send(request(t, 2, use(nil))); return s }},
		{"reset", func(b *bench) byte { s, _ := b.send([]byte{7}); return s }},
		{"setPIN", func(b *bench) byte {
			if b.SetPIN(t.Context(), []byte("1234")) != nil {
				return 1
			}
			return 0
		}},
	} {
		for dies := 1; ; dies++ {
			b := newBench(t, t.TempDir())
			id := b.make(m{7: m{"rk": true}})
			b.vault.calls, b.vault.dies = nil, dies
			done := test.do(b) == 0
			b.vault.dies = 0
			b = b.reopen()
			what := fmt.Sprintf("%s, dead at call %d", test.what, dies)
			switch status, _ := b.send(request(t, 2, use(id))); {
			case status == 0:
			case status == 0x2e && test.what == "reset":
			default:
				t.Errorf("%s: status %#02x", what, status)
			}
			s, err := b.Status(t.Context())
			if err != nil || s.Credentials > 2 {
				t.Errorf("%s: %v, %+v", what, err, s)
			}
			if s.PIN {
				if _, err := b.List(t.Context(), []byte("1234")); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			} else {
				b.want(what, 0, request(t, 1, create(m{7: m{"rk": true}})))
			}
			if done {
				break
			}
		}
	}
}

// TestNextIsForItsHost: what one host began, no other goes on with.
func TestNextIsForItsHost(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	for _, user := range []string{"1", "2", "3"} {
		b.make(m{3: m{"id": []byte(user)}, 7: m{"rk": true}})
	}
	b.want("first", 0, request(t, 2, use(nil)))
	b.want("next", 0, []byte{8})
	if got := b.CBOR(t.Context(), 2, []byte{8}, func(bool) {}); !bytes.Equal(got, []byte{0x30}) {
		t.Errorf("another host: %x", got)
	}
	b.want("after that", 0x30, []byte{8})
}

// TestBackup: files of before a reset are worth nothing, nor are those of a token
// that is gone; a credential that was deleted stays so for who has its ID.
func TestBackup(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	id, listed := b.make(nil), b.make(m{7: m{"rk": true}})
	file := filepath.Join(b.dir, "credentials")
	backup, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(backup, []byte("example.com")) || bytes.Contains(backup, []byte("alice")) {
		t.Error("the file tells of accounts")
	}
	if err := b.Remove(t.Context(), nil, listed); err != nil {
		t.Fatal(err)
	}
	b.want("deleted", 0x2e, request(t, 2, use(listed)))
	b.want("reset", 0, []byte{7})
	if err := os.WriteFile(file, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	b = b.reopen()
	for _, id := range [][]byte{id, listed, nil} {
		b.want("restored after a reset", 0x2e, request(t, 2, use(id)))
	}
	// What was put aside stays, whatever is put aside after it.
	for n, name := range []string{".worthless", ".worthless.2", ".worthless.3"} {
		if got, err := os.ReadFile(file + name); err != nil || !bytes.Equal(got, append(backup, make([]byte, n)...)) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(backup)+n, err)
		}
		if err := os.WriteFile(file, append(backup, make([]byte, n+1)...), 0o600); err != nil {
			t.Fatal(err)
		}
		b = b.reopen()
	}
	for n := range 100 {
		if err := os.WriteFile(fmt.Sprintf("%s.worthless.%d", file, n+1), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fido.New(t.Context(), fido.Config{Vault: b.vault, File: file, Logger: quiet}); err == nil {
		t.Error("there is no name left, and it went somewhere")
	}
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, backup) {
		t.Errorf("it is not where it was: %v", err)
	}
}

// TestUserIsAskedForAWhile: 30 seconds, with the host told that it is the user who is
// waited for; and a host that gives up ends it.
func TestUserIsAskedForAWhile(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, dir)
		token, err := fido.New(t.Context(), fido.Config{Vault: b.vault, Prompt: user{}, File: filepath.Join(dir, "credentials"), Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		wait := request(t, 1, create(m{2: m{"id": "wait.example"}}))
		began := time.Now()
		var told []bool
		got := token.CBOR(t.Context(), 1, wait, func(waits bool) { told = append(told, waits) })
		if !bytes.Equal(got, []byte{0x2f}) || time.Since(began) != 30*time.Second || !slices.Equal(told, []bool{true, false}) {
			t.Errorf("%x after %v, told %v", got, time.Since(began), told)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got := token.CBOR(ctx, 1, wait, func(bool) {}); !bytes.Equal(got, []byte{0x2d}) {
			t.Errorf("cancelled: %x", got)
		}
	})
}

// TestU2FIsAsked: a question stands as long as its host polls, and is for its request
// alone.
func TestU2FIsAsked(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, dir)
		ask := &slow{answer: make(chan bool)}
		token, err := fido.New(t.Context(), fido.Config{Vault: b.vault, Prompt: ask, File: filepath.Join(dir, "credentials"), Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		register := func(challenge byte) uint16 {
			apdu := append([]byte{0, 1, 3, 0, 0, 0, 64, challenge}, make([]byte, 63)...)
			answer := token.Message(t.Context(), 1, apdu)
			synctest.Wait()
			return binary.BigEndian.Uint16(answer[len(answer)-2:])
		}
		want := func(what string, got, want uint16) {
			t.Helper()
			if got != want {
				t.Errorf("%s: %#04x, want %#04x", what, got, want)
			}
		}
		for range 10 {
			want("waiting", register(1), 0x6985)
			time.Sleep(time.Second)
		}
		want("another request", register(2), 0x6985)
		if ask.open != 1 || ask.asked != 1 {
			t.Errorf("%d questions, %d open", ask.asked, ask.open)
		}
		ask.answer <- true
		synctest.Wait()
		want("another request", register(2), 0x6985)
		want("allowed", register(1), 0x9000)
		want("again", register(1), 0x6985)
		time.Sleep(3 * time.Second) // the host does not poll
		synctest.Wait()
		if ask.open != 0 {
			t.Error("the question stands though nobody waits for it")
		}
		want("after that", register(1), 0x6985)
		ask.answer <- false
		synctest.Wait()
		want("refused", register(1), 0x6f00)
		want("refused", register(1), 0x6f00)
		time.Sleep(3 * time.Second)
		synctest.Wait()
	})
}

// slow is a user who takes time.
type slow struct {
	answer      chan bool
	asked, open int
}

func (s *slow) Ask(ctx context.Context, _ fido.Request) (bool, error) {
	s.asked++
	s.open++
	defer func() { s.open-- }()
	select {
	case allowed := <-s.answer:
		return allowed, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// TestWholeSite: the end of a long name, which says whose it is, is shown.
func TestWholeSite(t *testing.T) {
	t.Parallel()
	long := "accounts.example.com." + strings.Repeat("x.", 110) + "evil.example"
	if text := (fido.Request{Operation: fido.Authenticate, RPID: long, Account: "alice"}).Text(); text != "Sign in to "+long+` as "alice"?` {
		t.Error(text)
	}
	if text := (fido.Request{Operation: fido.Authenticate, RPID: "ex\u0430mple.com"}).Text(); text != "Sign in to ex\ufffdmple.com?" {
		t.Error(text)
	}
}

// TestText: whatever a relying party calls itself, a prompt is one short line that
// says who asks.
func TestText(t *testing.T) {
	t.Parallel()
	evil := "a\"\n\x1b[2J\u202e" + strings.Repeat("x", 1000)
	for _, r := range []fido.Request{
		{Operation: fido.Register, RPID: evil[:255], RPName: evil, Account: evil},
		{Operation: fido.Authenticate, RPID: evil[:255], RPName: evil, Account: evil},
		{Operation: fido.Authenticate, App: hash},
		{Operation: fido.Authenticate},
	} {
		text := r.Text()
		if len(text) > 900 || strings.ContainsAny(text, "\n\x1b\u202e") {
			t.Errorf("%q", text)
		}
	}
}

// FuzzCBOR: whatever a host sends, the answer is a status, and what comes with a good
// one is canonical.
func FuzzCBOR(f *testing.F) {
	dir := f.TempDir()
	vault, err := softvault.Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	token, err := fido.New(f.Context(), fido.Config{Vault: vault, Prompt: &asker{allow: true}, Verify: &verifier{user: "alice"}, File: filepath.Join(dir, "credentials"), Logger: quiet})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{
		{4}, {7}, {8}, {11}, {0xff},
		request(f, 1, create(m{6: m{"credProtect": 2, "hmac-secret": true, "credBlob": []byte("x"), "minPinLength": true, "largeBlobKey": true}, 7: m{"rk": true}})),
		request(f, 1, create(m{5: []m{{"id": hash, "type": "public-key"}}, 8: hash, 9: 2})),
		request(f, 2, use(hash)), request(f, 2, use(nil)),
		request(f, 2, m{1: "example.com", 2: hash, 4: m{"credBlob": true, "hmac-secret": m{1: m{1: 2, 3: -25, -1: 1, -2: hash, -3: hash}, 2: hash, 3: hash, 4: 2}}, 5: m{"up": false}}),
		request(f, 6, m{2: 1}), request(f, 6, m{1: 2, 2: 2}),
		request(f, 6, m{1: 2, 2: 3, 3: m{1: 2, 3: -25, -1: 1, -2: hash, -3: hash}, 4: hash, 5: make([]byte, 80)}),
		request(f, 6, m{2: 7}), request(f, 6, m{1: 2, 2: 6, 3: m{1: 2, 3: -25, -1: 1, -2: hash, -3: hash}, 9: 3, 10: "example.com"}),
		request(f, 1, create(m{7: m{"uv": true}})), request(f, 2, m{1: "example.com", 2: hash, 5: m{"uv": true}}),
		request(f, 6, m{1: 1, 2: 9, 3: m{1: 2, 3: -25, -1: 1, -2: hash, -3: hash}, 6: hash, 9: 1, 10: "example.com"}),
		request(f, 10, m{1: 7, 2: m{2: m{"id": hash, "type": "public-key"}, 3: m{"id": hash}}, 3: 1, 4: hash}),
		request(f, 12, m{1: 100, 3: 0}), request(f, 12, m{2: hash, 3: 0, 4: 32}),
		request(f, 13, m{1: 2}), request(f, 13, m{1: 3, 2: m{1: 4, 2: []string{"example.com"}}}),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 7609 {
			return
		}
		raw := token.CBOR(t.Context(), 1, data, func(bool) {})
		if len(raw) == 0 || len(raw) > 7609 || raw[0] == 0x7f || raw[0] != 0 && len(raw) != 1 {
			t.Fatalf("%x", raw)
		}
		if len(raw) > 1 {
			var v any
			if err := cbor.Unmarshal(raw[1:], &v); err != nil {
				t.Fatal(err)
			}
			if again, err := canonical.Marshal(v); err != nil || !bytes.Equal(again, raw[1:]) {
				t.Fatalf("not canonical: %x", raw)
			}
		}
	})
}

// FuzzMessage: whatever a host sends by U2F, the answer ends with a status.
func FuzzMessage(f *testing.F) {
	dir := f.TempDir()
	vault, err := softvault.Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	token, err := fido.New(f.Context(), fido.Config{Vault: vault, Prompt: &asker{allow: true}, File: filepath.Join(dir, "credentials"), Logger: quiet})
	if err != nil {
		f.Fatal(err)
	}
	app := sha256.Sum256([]byte("app"))
	for _, seed := range [][]byte{
		{0, 3, 0, 0}, {0, 3, 0, 0, 0, 0}, {0, 3, 0, 0, 0, 0, 0},
		append([]byte{0, 1, 3, 0, 0, 0, 64}, append(hash, app[:]...)...),
		append(append([]byte{0, 2, 7, 0, 0, 0, 97}, append(hash, app[:]...)...), append([]byte{32}, hash...)...),
		append(append([]byte{0, 2, 3, 0, 97}, append(hash, app[:]...)...), append([]byte{32}, hash...)...),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		raw := token.Message(t.Context(), 1, data)
		if len(raw) < 2 {
			t.Fatalf("%x", raw)
		}
		switch word := binary.BigEndian.Uint16(raw[len(raw)-2:]); word {
		case 0x9000, 0x6700, 0x6985, 0x6a80, 0x6a86, 0x6d00, 0x6e00:
		default:
			t.Fatalf("%#04x", word)
		}
	})
}
