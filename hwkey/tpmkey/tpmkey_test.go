//go:build unix

package tpmkey_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
	"github.com/limpet-auth/limpet/limpettest"
)

var supported = []hwkey.Algorithm{hwkey.ECDSAP256, hwkey.RSA2048}

// open returns a keystore with a directory of its own on the TPM behind dial.
func open(t *testing.T, dial func(context.Context) (io.ReadWriteCloser, error)) *tpmkey.Keystore {
	return openDir(t, filepath.Join(t.TempDir(), "keys"), dial)
}

func openDir(t *testing.T, dir string, dial func(context.Context) (io.ReadWriteCloser, error)) *tpmkey.Keystore {
	ks := tpmkey.New(tpmkey.Config{Dir: dir, Dial: dial})
	t.Cleanup(func() { ks.Close() })
	return ks
}

func create(t *testing.T, ks *tpmkey.Keystore, alg hwkey.Algorithm) hwkey.Key {
	t.Helper()
	key, err := ks.Create(t.Context(), hwkey.CreateOptions{Algorithm: alg})
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return key
}

func sign(t *testing.T, key hwkey.Key) {
	t.Helper()
	if err := limpettest.SignAndVerify(key, key.Public(), []byte("message")); err != nil {
		t.Fatal(err)
	}
}

// kind is what must hold for keys that sign and for HMAC keys alike.
type kind struct {
	name    string
	command tpm2.TPMCC // that uses a key
	doing   string     // what errors say was tried
	create  func(*testing.T, *tpmkey.Keystore) usable
	load    func(*tpmkey.Keystore, string) (usable, error)
}

// usable is a key of either kind. use gives an error also if the result is not
// what it was or must be.
type usable struct {
	id    string
	use   func() error
	close func() error
}

func (u usable) mustWork(t *testing.T) {
	t.Helper()
	if err := u.use(); err != nil {
		t.Fatal(err)
	}
}

var signingKeys = kind{"signing", tpm2.TPMCCSign, "signing",
	func(t *testing.T, ks *tpmkey.Keystore) usable { return usableKey(create(t, ks, hwkey.ECDSAP256)) },
	func(ks *tpmkey.Keystore, id string) (usable, error) {
		key, err := ks.Load(context.Background(), id)
		if err != nil {
			return usable{}, err
		}
		return usableKey(key), nil
	},
}

// errWrong means that a key gave a result, and a wrong one.
var errWrong = errors.New("the result is wrong")

func usableKey(key hwkey.Key) usable {
	return usable{key.Info().ID, func() error {
		err := limpettest.SignAndVerify(key, key.Public(), []byte("message"))
		if inner := errors.Unwrap(err); inner != nil {
			return inner // of Sign
		}
		if err != nil {
			return errWrong
		}
		return nil
	}, key.Close}
}

var hmacKeys = kind{"HMAC", tpm2.TPMCCHMAC, "computing an HMAC",
	func(t *testing.T, ks *tpmkey.Keystore) usable {
		t.Helper()
		key, err := ks.ImportHMAC(t.Context(), hmacSecret, "")
		if err != nil {
			t.Fatalf("ImportHMAC: %v", err)
		}
		return usableHMAC(key)
	},
	func(ks *tpmkey.Keystore, id string) (usable, error) {
		key, err := ks.LoadHMAC(context.Background(), id)
		if err != nil {
			return usable{}, err
		}
		return usableHMAC(key), nil
	},
}

var kinds = []kind{signingKeys, hmacKeys}

var hmacSecret = []byte("a secret that a peer has too")

func usableHMAC(key hwkey.HMACKey) usable {
	return usable{key.Info().ID, func() error { return checkHMAC(key, hmacSecret, []byte("message")) }, key.Close}
}

// checkHMAC checks a key against the secret that it must hold.
func checkHMAC(key hwkey.HMACKey, secret, message []byte) error {
	mac, err := key.HMAC(context.Background(), message)
	if err != nil {
		return err
	}
	want := hmac.New(sha256.New, secret)
	want.Write(message)
	if !bytes.Equal(mac, want.Sum(nil)) {
		return fmt.Errorf("%w: HMAC is %x, want %x", errWrong, mac, want.Sum(nil))
	}
	return nil
}

// wantWords checks that err is told in these words.
func wantWords(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one that says %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
	if !strings.HasPrefix(err.Error(), "limpet: tpmkey: ") {
		t.Errorf("error %q does not say where it is from", err)
	}
}

func TestKeystore(t *testing.T) {
	tests := []struct {
		name   string
		config func(t *testing.T) tpmkey.Config
	}{
		{"socket pair", func(t *testing.T) tpmkey.Config { return tpmkey.Config{Dial: limpettest.SoftTPM(t).Dial} }},
		{"unix", func(t *testing.T) tpmkey.Config { return tpmkey.Config{Addr: limpettest.SoftTPMAt(t, "unix")} }},
		{"tcp", func(t *testing.T) tpmkey.Config { return tpmkey.Config{Addr: limpettest.SoftTPMAt(t, "tcp")} }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.config(t)
			limpettest.Keystore(t, append(supported, hwkey.HMACSHA256), func(t *testing.T, dir string) hwkey.Keystore {
				c.Dir = dir
				return tpmkey.New(c)
			})
		})
	}
}

// A signature or an HMAC with a loaded key is one command and nothing else,
// also when both kinds take turns.
func TestOneCommandPerUse(t *testing.T) {
	rsa := signingKeys
	rsa.name = "RSA"
	rsa.create = func(t *testing.T, ks *tpmkey.Keystore) usable { return usableKey(create(t, ks, hwkey.RSA2048)) }
	for _, tt := range []struct {
		name  string
		kinds []kind
		want  map[string]int
	}{
		{"ECDSA", []kind{signingKeys}, map[string]int{"Sign": 10}},
		{"RSA", []kind{rsa}, map[string]int{"Sign": 10}},
		{"HMAC", []kind{hmacKeys}, map[string]int{"HMAC": 10}},
		{"both", kinds, map[string]int{"Sign": 10, "HMAC": 10}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ks := open(t, limpettest.SoftTPM(t).Dial)
			var keys []usable
			for _, kind := range tt.kinds {
				keys = append(keys, kind.create(t, ks))
			}
			before := ks.Commands()
			for range 10 {
				for _, key := range keys {
					key.mustWork(t)
				}
			}
			got := map[string]int{}
			for name, n := range ks.Commands() {
				if n > before[name] {
					got[name] = n - before[name]
				}
			}
			if !maps.Equal(got, tt.want) {
				t.Errorf("10 rounds took the commands %v, want %v", got, tt.want)
			}
		})
	}
}

// Making and using one key costs what it must. CreatePrimary is slow on real
// chips: once.
func TestCommandsOfAKey(t *testing.T) {
	ks := open(t, limpettest.SoftTPM(t).Dial)
	sign(t, create(t, ks, hwkey.ECDSAP256))
	sign(t, create(t, ks, hwkey.ECDSAP256))
	got := ks.Commands()
	for name, want := range map[string]int{"CreatePrimary": 1, "StartAuthSession": 1, "Create": 2, "Load": 2, "Sign": 2} {
		if got[name] != want {
			t.Errorf("%d %s commands for two keys, want %d", got[name], name, want)
		}
	}
}

func TestCommandsOfAnHMACKey(t *testing.T) {
	ks := open(t, limpettest.SoftTPM(t).Dial)
	hmacKeys.create(t, ks).mustWork(t)
	hmacKeys.create(t, ks).mustWork(t)
	got := ks.Commands()
	for name, want := range map[string]int{"CreatePrimary": 1, "StartAuthSession": 1, "Create": 2, "Load": 2, "HMAC": 4} { // a trial each
		if got[name] != want {
			t.Errorf("%d %s commands for two keys, want %d", got[name], name, want)
		}
	}
}

// More keys than a TPM holds, one parent, and room left for it.
func TestManyKeys(t *testing.T) {
	b := newBus(t)
	ks := open(t, b.Dial)
	type made struct {
		kind kind
		key  usable
	}
	var keys []made
	for i := range 8 { // more than a TPM holds
		kind := kinds[i/2%2]
		keys = append(keys, made{kind, kind.create(t, ks)})
	}
	for _, m := range append(keys, keys...) {
		again, err := m.kind.load(ks, m.key.id)
		if err != nil {
			t.Fatal(err)
		}
		again.mustWork(t)
		m.key.mustWork(t)
		if objects, _ := b.loaded(t); len(objects) > 2 {
			t.Errorf("%d objects loaded, want room for another", len(objects))
		}
	}
	commands := ks.Commands()
	if commands["CreatePrimary"] != 1 || commands["StartAuthSession"] != 2 {
		t.Errorf("commands %v, want one CreatePrimary and two sessions", commands)
	}
}

// Damage to a key file is a lost key; no file makes a panic.
func TestDamagedFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	ks := openDir(t, dir, limpettest.SoftTPM(t).Dial)
	id := create(t, ks, hwkey.ECDSAP256).Info().ID
	path := filepath.Join(dir, id+".tpm")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	end := strings.Index(string(good), "Limpet: ")
	flipped := func(i int) []byte {
		b := []byte(string(good))
		if b[i]++; b[i] == 'Z'+1 || b[i] == 'z'+1 || b[i] == '9'+1 {
			b[i] -= 2
		}
		return b
	}
	tests := map[string][]byte{
		"empty":           {},
		"cut":             good[:len(good)-100],
		"no PEM":          good[end:],
		"metadata":        flipped(end + len("Limpet: ")),
		"another parent":  []byte(strings.Replace(string(good), `"parent":"000b`, `"parent":"000c`, 1)),
		"no parent":       []byte(strings.Replace(string(good), `"parent":"000b`, `"x":"000b`, 1)),
		"private flipped": flipped(end - 60),
		"too long":        append([]byte(string(good)), make([]byte, 1<<20)...),
	}
	for name, data := range tests {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := ks.Load(t.Context(), id)
			if name != "too long" && !errors.Is(err, hwkey.ErrLost) || err == nil {
				t.Errorf("error %v, want ErrLost", err)
			}
			if infos, err := ks.List(t.Context()); err != nil || len(infos) != 1 || infos[0].ID != id {
				t.Errorf("List is %v, error %v", infos, err)
			}
		})
	}
}

func TestDescribe(t *testing.T) {
	ks := tpmkey.New(tpmkey.Config{Addr: limpettest.SoftTPMAt(t, "unix"), Dir: filepath.Join(t.TempDir(), "keys")})
	defer ks.Close()
	create(t, ks, hwkey.ECDSAP256)
	d, err := ks.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d.Manufacturer != "IBM" || !strings.Contains(d.Vendor, "SW") || d.Spec == "" || d.Firmware == "" {
		t.Errorf("%+v does not describe swtpm", d)
	}
	if !strings.HasPrefix(d.Address, "unix:/") || d.SRK || len(d.Parent) != 68 || d.Keys != 1 || d.Foreign != 0 {
		t.Errorf("%+v: wrong address, parent or keys", d)
	}
	if d.Lockout.Active || d.Lockout.Max == 0 || d.Lockout.AuthSet || d.OwnerAuthSet {
		t.Errorf("%+v: wrong lockout", d)
	}
	if len(d.Algorithms) != 2 {
		t.Errorf("algorithms %v, want both", d.Algorithms)
	}
}

func TestCandidate(t *testing.T) {
	dir := t.TempDir()
	ks, findings, err := hwkey.Auto(t.Context(), tpmkey.Candidate(tpmkey.Config{Dir: dir, Dial: limpettest.SoftTPM(t).Dial}))
	if err != nil {
		t.Fatal(err)
	}
	defer ks.(io.Closer).Close()
	if f := findings[0]; f.Level != hwkey.Hardware || !strings.Contains(f.Reason, "IBM") {
		t.Errorf("finding %v does not name the TPM", f)
	}
	if key, err := ks.Create(t.Context(), hwkey.CreateOptions{}); err != nil || key.Info().Level != hwkey.Hardware {
		t.Errorf("key %v, error %v", key, err)
	}
}
