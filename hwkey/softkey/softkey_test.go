package softkey_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/limpettest"
)

var all = []hwkey.Algorithm{hwkey.ECDSAP256, hwkey.RSA2048, hwkey.Ed25519}

func open(t *testing.T, dir string, secret softkey.Secret) *softkey.Keystore {
	t.Helper()
	ks, err := softkey.Open(t.Context(), dir, secret)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return ks
}

func TestKeystore(t *testing.T) {
	limpettest.Keystore(t, append(all, hwkey.HMACSHA256), func(t *testing.T, dir string) hwkey.Keystore { return open(t, dir, softkey.KeyFile("")) })
}

func TestSecrets(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "unlock")
	tests := []struct {
		name       string
		made, with softkey.Secret
		want       error
	}{
		{"passphrase", softkey.Passphrase([]byte("right")), softkey.Passphrase([]byte("right")), nil},
		{"wrong passphrase", softkey.Passphrase([]byte("right")), softkey.Passphrase([]byte("wrong")), softkey.ErrWrongSecret},
		{"passphrase for a key file", softkey.KeyFile(""), softkey.Passphrase([]byte("right")), softkey.ErrOtherSecret},
		{"key file for a passphrase", softkey.Passphrase([]byte("right")), softkey.KeyFile(""), softkey.ErrOtherSecret},
		{"key file elsewhere", softkey.KeyFile(outside), softkey.KeyFile(outside), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "keys")
			key, err := open(t, dir, tt.made).Create(t.Context(), hwkey.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			ks, err := softkey.Open(t.Context(), dir, tt.with)
			if !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if err == nil {
				if key, err = ks.Load(t.Context(), key.Info().ID); err != nil {
					t.Fatal(err)
				}
				if err := limpettest.SignAndVerify(key, key.Public(), []byte("message")); err != nil {
					t.Error(err)
				}
			}
			if errors.Is(err, hwkey.ErrLost) {
				t.Errorf("error %v says that keys are lost", err)
			}
		})
	}
	for name, secret := range map[string]softkey.Secret{"empty passphrase": softkey.Passphrase(nil), "no secret": {}} {
		dir := filepath.Join(t.TempDir(), "keys")
		if _, err := softkey.Open(t.Context(), dir, secret); err == nil {
			t.Errorf("%s was accepted", name)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s left a directory behind", name)
		}
	}
}

func TestWrongKeyFile(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, softkey.KeyFile(""))
	path := filepath.Join(dir, "unlock.key")

	write := func(data []byte, mode os.FileMode) error {
		os.Remove(path)
		if err := os.WriteFile(path, data, mode); err != nil {
			t.Fatal(err)
		}
		_, err := softkey.Open(t.Context(), dir, softkey.KeyFile(""))
		return err
	}
	if err := write(make([]byte, 32), 0o600); !errors.Is(err, softkey.ErrWrongSecret) {
		t.Errorf("another key: error %v, want ErrWrongSecret", err)
	}
	if err := write(make([]byte, 31), 0o600); err == nil || !strings.Contains(err.Error(), "31 bytes") {
		t.Errorf("short key: error %v", err)
	}
	if err := write(make([]byte, 1<<20), 0o600); err == nil {
		t.Error("a key file of 1 MiB was read")
	}
	if runtime.GOOS != "windows" {
		if err := write(make([]byte, 32), 0o640); err == nil || !strings.Contains(err.Error(), "others can read") {
			t.Errorf("key file for the group: error %v", err)
		}
	}
	os.Remove(path)
	if _, err := softkey.Open(t.Context(), dir, softkey.KeyFile("")); err == nil {
		t.Error("opened without the key file")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a new key file was made beside old keys")
	}
}

// Every field of a key's file is either sealed or authenticated.
func TestDamagedKey(t *testing.T) {
	dir := t.TempDir()
	ks := open(t, dir, softkey.KeyFile(""))
	var ids []string
	for _, alg := range all {
		key, err := ks.Create(t.Context(), hwkey.CreateOptions{Algorithm: alg, Label: "label"})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, key.Info().ID)
	}
	path := filepath.Join(dir, ids[0]+".softkey")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(filepath.Join(dir, ids[1]+".softkey"))
	if err != nil {
		t.Fatal(err)
	}
	set := func(field string, value any) []byte {
		var m map[string]any
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		m[field] = value
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	tests := map[string][]byte{
		"empty":        {},
		"cut":          good[:len(good)/2],
		"not JSON":     []byte("hello"),
		"another key":  other,
		"renamed":      bytes.ReplaceAll(other, []byte(ids[1]), []byte(ids[0])),
		"version":      set("version", 2),
		"id":           set("id", ids[1]),
		"algorithm":    set("algorithm", "rsa-2048"),
		"label":        set("label", "another"),
		"long label":   set("label", strings.Repeat("x", 1000)),
		"created":      set("created", 1),
		"nonce":        set("nonce", make([]byte, 12)),
		"short nonce":  set("nonce", make([]byte, 11)),
		"no sealed":    set("sealed", nil),
		"other sealed": set("sealed", make([]byte, 200)),
	}
	for name, data := range tests {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := ks.Load(t.Context(), ids[0]); !errors.Is(err, hwkey.ErrLost) {
				t.Errorf("error %v, want ErrLost", err)
			}
			infos, err := ks.List(t.Context())
			if err != nil || len(infos) != len(ids) {
				t.Errorf("List has %d keys, error %v; want %d", len(infos), err, len(ids))
			}
		})
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ks.Load(t.Context(), ids[0]); err != nil {
		t.Errorf("the restored file does not load: %v", err)
	}
}

// An HMAC key's file is authenticated as a whole too, and neither kind of key
// can be passed off as the other.
func TestDamagedHMACKey(t *testing.T) {
	dir := t.TempDir()
	ks := open(t, dir, softkey.KeyFile(""))
	key, err := ks.ImportHMAC(t.Context(), bytes.Repeat([]byte("secret"), 5), "label")
	if err != nil {
		t.Fatal(err)
	}
	id := key.Info().ID
	path := filepath.Join(dir, id+".softkey")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(map[string]any){
		"algorithm":    func(m map[string]any) { m["algorithm"] = "ed25519" },
		"no algorithm": func(m map[string]any) { delete(m, "algorithm") },
		"not imported": func(m map[string]any) { delete(m, "imported") },
		"label":        func(m map[string]any) { m["label"] = "another" },
		"sealed":       func(m map[string]any) { m["sealed"] = make([]byte, 46) },
	} {
		t.Run(name, func(t *testing.T) {
			var m map[string]any
			if err := json.Unmarshal(good, &m); err != nil {
				t.Fatal(err)
			}
			change(m)
			data, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := ks.LoadHMAC(t.Context(), id); !errors.Is(err, hwkey.ErrLost) {
				t.Errorf("LoadHMAC: error %v, want ErrLost", err)
			}
			if _, err := ks.Load(t.Context(), id); !errors.Is(err, hwkey.ErrLost) {
				t.Errorf("Load: error %v, want ErrLost", err)
			}
		})
	}

	signing, err := ks.Create(t.Context(), hwkey.CreateOptions{Algorithm: hwkey.Ed25519})
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, signing.Info().ID+".softkey")
	if good, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(good, []byte("ed25519"), []byte("hmac-sha256"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ks.LoadHMAC(t.Context(), signing.Info().ID); !errors.Is(err, hwkey.ErrLost) {
		t.Errorf("error %v, want ErrLost", err)
	}
}

func TestDamagedHeader(t *testing.T) {
	dir := t.TempDir()
	secret := softkey.Passphrase([]byte("right"))
	ks := open(t, dir, secret)
	if _, err := ks.Create(t.Context(), hwkey.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "keystore.json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string][]byte{
		"empty":       {},
		"not JSON":    []byte("hello"),
		"version":     bytes.Replace(good, []byte(`"version": 1`), []byte(`"version": 2`), 1),
		"kind":        bytes.Replace(good, []byte(`"passphrase"`), []byte(`"tea leaves"`), 1),
		"much memory": bytes.Replace(good, []byte(`65536`), []byte(`4294967295`), 1),
		"no memory":   bytes.Replace(good, []byte(`65536`), []byte(`1`), 1),
		"much time":   bytes.Replace(good, []byte(`"time": 3`), []byte(`"time": 4294967295`), 1),
		"no salt":     bytes.Replace(good, []byte(`"salt": "`), []byte(`"salt": "","x": "`), 1),
	}
	for name, data := range tests {
		t.Run(name, func(t *testing.T) {
			if bytes.Equal(data, good) {
				t.Fatal("the test changes nothing")
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := softkey.Open(t.Context(), dir, secret); err == nil || errors.Is(err, softkey.ErrWrongSecret) {
				t.Errorf("error %v, want one that names the damage", err)
			}
		})
	}
	// A new header over old keys would look like an empty keystore.
	os.Remove(path)
	if _, err := softkey.Open(t.Context(), dir, secret); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("without the header: error %v", err)
	}
}

// Processes that start together agree on one header.
func TestConcurrentOpen(t *testing.T) {
	for range 10 {
		dir := filepath.Join(t.TempDir(), "a", "keys")
		stores := make([]*softkey.Keystore, 8)
		var wg sync.WaitGroup
		for i := range stores {
			wg.Go(func() {
				ks, err := softkey.Open(context.Background(), dir, softkey.KeyFile(""))
				if err != nil {
					t.Error(err)
				}
				stores[i] = ks
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		key, err := stores[0].Create(t.Context(), hwkey.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, ks := range stores {
			if _, err := ks.Load(t.Context(), key.Info().ID); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestFileModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no mode bits")
	}
	dir := filepath.Join(t.TempDir(), "keys")
	ks := open(t, dir, softkey.KeyFile(""))
	if _, err := ks.Create(t.Context(), hwkey.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %#o", path, fi.Mode().Perm())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestNothingSecretPrints(t *testing.T) {
	secret := softkey.Passphrase([]byte("hunter2"))
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("opening", "secret", secret, "nested", []any{secret})
	fmt.Fprintf(&out, "%v %+v %#v %s", secret, secret, secret, secret)
	ks := open(t, t.TempDir(), softkey.KeyFile(""))
	key, err := ks.Create(t.Context(), hwkey.CreateOptions{Algorithm: hwkey.Ed25519})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&out, "%v %s", key, key)
	if s := out.String(); strings.Contains(s, "hunter2") || strings.Contains(s, fmt.Sprint([]byte("hunter2"))) {
		t.Errorf("printed the passphrase: %s", s)
	}
}

func TestCandidate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent")
	for range 2 { // a new directory, then one that exists
		ks, findings, err := hwkey.Auto(t.Context(), softkey.Candidate(dir))
		if err != nil {
			t.Fatal(err)
		}
		if key, err := ks.Create(t.Context(), hwkey.CreateOptions{}); err != nil {
			t.Error(err)
		} else if key.Info().Level != hwkey.Software {
			t.Errorf("level %q", key.Info().Level)
		}
		if f := findings[0]; !f.Chosen || !strings.Contains(f.Reason, "a key file") || !strings.Contains(f.Reason, dir) {
			t.Errorf("finding %q does not say how it is unlocked", f)
		}
	}
	_, findings, err := hwkey.Auto(t.Context(), softkey.Candidate(dir, softkey.Passphrase([]byte("x"))))
	if !errors.Is(err, softkey.ErrOtherSecret) || findings[0].Chosen {
		t.Errorf("finding %v, error %v; want ErrOtherSecret", findings, err)
	}
}

func Example() {
	dir, err := os.MkdirTemp("", "keys-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	ctx := context.Background()
	ks, err := softkey.Open(ctx, dir, softkey.Passphrase([]byte("correct horse battery staple")))
	if err != nil {
		fmt.Println(err)
		return
	}
	key, err := ks.Create(ctx, hwkey.CreateOptions{Algorithm: hwkey.Ed25519, Label: "api.example.com"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(key.Info().Level, key.Info().Algorithm, key.Info().Label)

	_, err = softkey.Open(ctx, dir, softkey.Passphrase([]byte("wrong")))
	fmt.Println(errors.Is(err, softkey.ErrWrongSecret))
	// Output:
	// software ed25519 api.example.com
	// true
}
