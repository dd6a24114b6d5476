package keyring

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var example = Secret("0123456789abcdef")

func newPublic(t testing.TB, curve elliptic.Curve) *ecdsa.PublicKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &key.PublicKey
}

// edit makes a change that must succeed.
func edit(t testing.TB, path string, change func(*List) error) {
	t.Helper()
	if err := Edit(path, change); err != nil {
		t.Fatal(err)
	}
}

func add(id string, k *Key) func(*List) error {
	return func(l *List) error { return l.Add(id, k) }
}

func open(t testing.TB, path string, opts Options) *Ring {
	t.Helper()
	r, err := Open(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// versions is what a ring says of a peer.
func versions(r *Ring, id string) (v []int) {
	for _, k := range r.Lookup(id) {
		v = append(v, k.Version)
	}
	return v
}

// forgetful lets a ring look at its file again at once.
func forgetful(r *Ring) { r.looked.Store(-int64(interval)) }

// lines is a log that many write to.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.b.Bytes(), []byte("\n"))
}

func wantWords(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one that says %q", words)
		return
	}
	for _, w := range append(words, "limpet: keyring: ") {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
	if strings.Count(err.Error(), "limpet: keyring: ") != 1 {
		t.Errorf("error %q names the package twice", err)
	}
}

// A file gives back what was put into it, by name and newest first, and is
// nobody's but its owner's.
func TestFileRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "keys.json")
	public := newPublic(t, elliptic.P256())
	secret := NewSecret()
	start := time.Now().Add(-time.Second)
	edit(t, path, func(l *List) error {
		return errors.Join(l.Add("web", &Key{Public: public}), l.Add("tpm", TPMKey([]byte("pem"))),
			l.Add("billing", &Key{Secret: example}), l.Rotate("billing", &Key{Secret: secret}))
	})
	l, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range l.Keys {
		got = append(got, k.String())
		if k.Created.Before(start) || k.Created.After(time.Now()) {
			t.Errorf("%v made %v", k, k.Created)
		}
	}
	if want := []string{"key 2 of billing", "key 1 of billing", "key 1 of tpm", "key 1 of web"}; !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	if !bytes.Equal(l.Keys[0].Secret, secret) || !bytes.Equal(l.Keys[1].Secret, example) || !l.Keys[2].InTPM() || string(l.Keys[2].tpm) != "pem" || !l.Keys[3].Public.Equal(public) {
		t.Errorf("other keys than were put in: %v", l.Keys)
	}
	if l.Keys[0].InTPM() || l.Keys[2].Secret != nil || l.Keys[3].Secret != nil {
		t.Error("a key of two kinds")
	}
	for _, name := range []string{path, path + ".lock"} {
		fi, err := os.Stat(name)
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, fi.Mode(), err)
		}
	}
	if fi, err := os.Stat(filepath.Dir(path)); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("directory: mode %v, %v", fi.Mode(), err)
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// A peer has at most two live keys: the one it has and the one it goes over to.
func TestLivesOfAKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	key := func() *Key { return &Key{Secret: NewSecret()} }
	for i, step := range []struct {
		what   func(*List) error
		want   []int
		failed error  // or
		words  string // of it
	}{
		{what: func(l *List) error { return l.Rotate("a", key()) }, failed: ErrNotFound},
		{what: func(l *List) error { return l.Retire("a") }, failed: ErrNotFound},
		{what: func(l *List) error { return l.Revoke("a") }, failed: ErrNotFound},
		{what: add("a", key()), want: []int{1}},
		{what: add("b", key()), want: []int{1}},
		{what: add("a", key()), want: []int{1}, words: "rotate it, or revoke it first"},
		{what: func(l *List) error { return l.Rotate("a", key()) }, want: []int{2, 1}},
		{what: func(l *List) error { return l.Rotate("a", key()) }, want: []int{3, 2}},
		{what: func(l *List) error { return l.Retire("a") }, want: []int{3}},
		{what: func(l *List) error { return l.Retire("a") }, want: []int{3}},
		{what: func(l *List) error { return l.Rotate("a", &Key{Public: newPublic(t, elliptic.P256())}) }, want: []int{4, 3}},
		{what: func(l *List) error { return l.Rotate("a", &Key{Secret: Secret("short")}) }, want: []int{4, 3}, words: "40 bits"},
		{what: func(l *List) error { return l.Revoke("a") }, want: nil},
		{what: add("a", key()), want: []int{1}},
	} {
		err := Edit(path, step.what)
		switch {
		case step.failed != nil && !errors.Is(err, step.failed), step.failed == nil && step.words == "" && err != nil:
			t.Errorf("step %d: error %v", i, err)
		case step.words != "":
			wantWords(t, err, step.words)
		}
		if i < 3 {
			continue // there is no key of a peer yet
		}
		if got := versions(open(t, path, Options{}), "a"); !slices.Equal(got, step.want) {
			t.Errorf("step %d: versions %v, want %v", i, got, step.want)
		}
	}
}

// A change that fails leaves the keys, whether or not whoever made it minds.
func TestAFailedChangeDropsNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	edit(t, path, func(l *List) error {
		return errors.Join(l.Add("a", &Key{Secret: NewSecret()}), l.Rotate("a", &Key{Secret: NewSecret()}))
	})
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	edit(t, path, func(l *List) error {
		if err := l.Rotate("a", &Key{}); err == nil {
			t.Error("rotated to nothing")
		}
		return nil
	})
	stop := errors.New("stop")
	if err := Edit(path, func(l *List) error { l.Revoke("a"); return stop }); err != stop {
		t.Errorf("error %v", err)
	}
	for _, change := range []func(*List) error{
		func(l *List) error { l.Keys[0].Version = 0; return nil },
		func(l *List) error { l.Keys[1].Version = 2; return nil },
		func(l *List) error { l.Keys[0].Secret = nil; return nil },
		func(l *List) error { l.Keys[0].Secret = Secret("short"); return nil },
		func(l *List) error { l.Keys[0].ID = "two words"; return nil },
		func(l *List) error { l.Keys = append(l.Keys, l.Keys[0], l.Keys[1]); return nil },
	} {
		if err := Edit(path, change); err == nil {
			t.Error("a file was written that cannot be read")
		}
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file changed: %v", err)
	}
}

// A list keeps copies: one key given to two peers is not renamed.
func TestListKeepsCopies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	k := &Key{Secret: Secret(strings.Clone(string(example)))}
	edit(t, path, func(l *List) error {
		err := errors.Join(l.Add("a", k), l.Add("b", k))
		clear(k.Secret)
		return err
	})
	r := open(t, path, Options{})
	for _, id := range []string{"a", "b"} {
		if keys := r.Lookup(id); len(keys) != 1 || keys[0].ID != id || !bytes.Equal(keys[0].Secret, example) {
			t.Errorf("%s has %v", id, keys)
		}
	}
}

func TestNamesAndSecretsAreRefusedInWords(t *testing.T) {
	ids := map[string]string{
		"":                         "0 bytes",
		strings.Repeat("x", 129):   "129 bytes",
		"two words":                "other characters",
		"a\nb":                     "other characters",
		"a,b":                      "other characters",
		"ü":                        "other characters",
		"a\x00":                    "other characters",
		"<script>":                 "other characters",
		strings.Repeat("x", 1<<20): "1048576 bytes",
	}
	for id, words := range ids {
		wantWords(t, CheckID(id), words)
		wantWords(t, new(List).Add(id, &Key{Secret: NewSecret()}), words)
		if err := CheckID(id); id != "" && strings.Contains(err.Error(), id) {
			t.Errorf("error %.80q repeats the name", err)
		}
	}
	for _, id := range []string{"a", "client_1", "spiffe://example.org/billing", "a@b.example:8443", strings.Repeat("x", 128), "A-._@:/+=z"} {
		if err := CheckID(id); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	secrets := map[string]string{
		"":                         "0 bits",
		"my_api_key":               "80 bits can be guessed",
		"0123456789abcde":          "120 bits can be guessed",
		strings.Repeat("a", 16):    "one byte repeated",
		strings.Repeat("\x00", 32): "one byte repeated",
		strings.Repeat("ab", 65):   "130 bytes",
	}
	for secret, words := range secrets {
		wantWords(t, CheckSecret([]byte(secret)), words)
		wantWords(t, new(List).Add("a", &Key{Secret: Secret(secret)}), words)
		if err := CheckSecret([]byte(secret)); secret != "" && strings.Contains(err.Error(), secret) {
			t.Errorf("error %q repeats the secret", err)
		}
	}
	for _, secret := range []string{"0123456789abcdef", strings.Repeat("ab", 64), strings.Repeat("a", 15) + "b"} {
		if err := CheckSecret([]byte(secret)); err != nil {
			t.Errorf("%q: %v", secret, err)
		}
	}
	for words, k := range map[string]*Key{
		"P-256":       {Public: newPublic(t, elliptic.P384())},
		"two keys":    {Public: newPublic(t, elliptic.P256()), Secret: NewSecret()},
		"without its": TPMKey([]byte{}),
		"0 bits":      {},
	} {
		wantWords(t, new(List).Add("a", k), words)
	}
}

// entry is a key of a file as JSON.
func entry(fields string) string {
	return `{"version":1,"keys":[{"id":"a","version":1,"created":"2026-01-02T03:04:05Z",` + fields + `}]}`
}

const goodSecret = `"secret":"MDEyMzQ1Njc4OWFiY2RlZg"`

func spki(t testing.TB, public any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(der)
}

func TestGarbageFiles(t *testing.T) {
	good := entry(goodSecret)
	key := func(version int) string {
		return fmt.Sprintf(`{"id":"a","version":%d,"created":"2026-01-02T03:04:05Z",%s}`, version, goodSecret)
	}
	keys := func(list ...string) string { return `{"version":1,"keys":[` + strings.Join(list, ",") + `]}` }
	p256 := newPublic(t, elliptic.P256())
	if _, err := parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	if k, err := parse([]byte(keys(key(1), key(7)))); err != nil || len(k) != 2 {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty":                   "",
		"no JSON":                 "client1: my_api_key",
		"cut":                     good[:len(good)-3],
		"more behind":             good + good,
		"a brace behind":          good + "}",
		"a bracket behind":        good + " ]",
		"garbage behind":          good + "x",
		"a list":                  "[" + good + "]",
		"null":                    "null",
		"no version":              `{"keys":[]}`,
		"another version":         strings.Replace(good, `"version":1`, `"version":2`, 1),
		"unknown field":           entry(goodSecret + `,"expires":1`),
		"unknown field of all":    strings.Replace(good, "{", `{"comment":"",`, 1),
		"a version of 0":          keys(key(0)),
		"a negative version":      keys(key(-1)),
		"a version as text":       keys(strings.Replace(key(1), `"version":1`, `"version":"1"`, 1)),
		"two versions alike":      keys(key(1), key(1)),
		"three keys":              keys(key(1), key(2), key(3)),
		"no name":                 strings.Replace(good, `"a"`, `""`, 1),
		"a bad name":              strings.Replace(good, `"a"`, `"a b"`, 1),
		"no key":                  strings.Replace(good, ","+goodSecret, "", 1),
		"an empty secret":         entry(`"secret":""`),
		"secret and public":       entry(goodSecret + `,"public":"` + spki(t, p256) + `"`),
		"secret and TPM":          entry(goodSecret + `,"tpm":"pem"`),
		"public and TPM":          entry(`"tpm":"pem","public":"` + spki(t, p256) + `"`),
		"a short secret":          entry(`"secret":"bXlfYXBpX2tleQ"`),
		"a repeated byte":         entry(`"secret":"` + strings.Repeat("A", 32) + `"`),
		"a secret in padded":      entry(`"secret":"MDEyMzQ1Njc4OWFiY2RlZg=="`),
		"a secret in hex":         entry(`"secret":"` + strings.Repeat("!!", 32) + `"`),
		"another curve":           entry(`"public":"` + spki(t, newPublic(t, elliptic.P384())) + `"`),
		"a public key of nothing": entry(`"public":"AAAA"`),
		"a public key not base64": entry(`"public":"?"`),
		"a certificate":           entry(`"public":"` + base64.RawURLEncoding.EncodeToString([]byte("-----BEGIN CERTIFICATE-----")) + `"`),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keys.json")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(path, Options{})
			wantWords(t, err, path)
			if _, err := Read(path); err == nil {
				t.Error("read")
			}
			if err := Edit(path, func(*List) error { t.Error("edited"); return nil }); err == nil {
				t.Error("edited")
			}
			for _, secret := range []string{"MDEyMzQ1Njc4OWFiY2RlZg", "bXlfYXBpX2tleQ", "my_api_key", "0123456789abcdef", "AAAAAAAA", "!!!!"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("error %q has the secret", err)
				}
			}
			if after, _ := os.ReadFile(path); string(after) != text {
				t.Error("the file was changed")
			}
		})
	}
}

func TestParsePublic(t *testing.T) {
	p256 := newPublic(t, elliptic.P256())
	der, _ := base64.RawURLEncoding.DecodeString(spki(t, p256))
	if got, err := ParsePublic(der); err != nil || !got.Equal(p256) {
		t.Errorf("%v, %v", got, err)
	}
	other, _ := base64.RawURLEncoding.DecodeString(spki(t, newPublic(t, elliptic.P384())))
	for _, bad := range [][]byte{nil, der[:len(der)-1], other, append(bytes.Clone(der), 0), append(bytes.Clone(der[:len(der)-1]), der[len(der)-1]^1)} {
		if _, err := ParsePublic(bad); err == nil {
			t.Errorf("read %x", bad)
		}
	}
}

// Whoever else can read the file has everybody's secrets: it is not used.
func TestFileOthersCanRead(t *testing.T) {
	for _, mode := range []os.FileMode{0o644, 0o640, 0o660, 0o601, 0o602, 0o777} {
		path := filepath.Join(t.TempDir(), "keys.json")
		edit(t, path, add("a", &Key{Secret: NewSecret()}))
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path, Options{})
		wantWords(t, err, "others can read", fmt.Sprintf("%#o", mode), "0600")
		_, err = Read(path)
		wantWords(t, err, "others can read")
		wantWords(t, Edit(path, func(*List) error { return nil }), "others can read")
	}
	path := filepath.Join(t.TempDir(), "keys.json")
	edit(t, path, add("a", &Key{Secret: NewSecret()}))
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	open(t, path, Options{})
}

// An edit goes to the file itself, whatever name it is known by, and leaves it to
// its owner: else a revocation would not reach the server.
func TestEditReachesTheServersFile(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "keys.json"), filepath.Join(dir, "link.json")
	edit(t, path, func(l *List) error { return l.Add("billing", &Key{Secret: NewSecret()}) })
	if err := os.Symlink("keys.json", link); err != nil {
		if runtime.GOOS == "windows" {
			t.Skip(err) // it takes a privilege there
		}
		t.Fatal(err)
	}
	const other = 65534
	foreign := os.Chown(path, other, other) == nil // root can
	edit(t, link, func(l *List) error { return l.Revoke("billing") })
	if fi, err := os.Lstat(link); err != nil || fi.Mode().Type() != os.ModeSymlink {
		t.Errorf("the link became %v %v", fi, err)
	}
	if l, err := Read(path); err != nil || len(l.Keys) != 0 {
		t.Errorf("the file has %v %v", l, err)
	}
	for _, name := range []string{path, path + ".lock"} {
		fi, err := os.Stat(name)
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Fatal(fi, err)
		}
		if uid := reflect.ValueOf(fi.Sys()).Elem().FieldByName("Uid"); foreign && uid.Uint() != other {
			t.Errorf("%s belongs to %d", name, uid.Uint())
		}
	}
}

func TestReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	edit(t, path, add("a", &Key{Secret: NewSecret()}))
	r := open(t, path, Options{})
	before := r.Generation()
	if r.Lookup("b") != nil || r.Generation() != before {
		t.Fatal("a key of nobody, or another generation without an edit")
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "KEYRING_EDIT="+path, "KEYRING_NAME=b", "KEYRING_TIMES=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	start := time.Now()
	for r.Lookup("b0") == nil {
		if time.Since(start) > 2*interval {
			t.Fatal("the edit is not seen")
		}
		time.Sleep(interval / 50)
	}
	after := r.Generation()
	if after == before {
		t.Error("the generation is the same")
	}
	edit(t, path, func(l *List) error { return l.Revoke("a") })
	if err := r.Reload(); err != nil || r.Lookup("a") != nil || r.Generation() == after {
		t.Errorf("reloaded: %v, %v", r.Lookup("a"), err)
	}
}

// A file that breaks or goes leaves the keys as they were, says so once, and is
// read again when it is right.
func TestBrokenFileKeepsTheKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	edit(t, path, add("a", &Key{Secret: example}))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	log := new(lines)
	r := open(t, path, Options{Logger: slog.New(slog.NewTextHandler(log, nil))})
	generation := r.Generation()
	told := 0
	for _, step := range []struct {
		name  string
		do    func() error
		wrong bool
	}{
		{"garbage", func() error { return os.WriteFile(path, []byte("MDEyMzQ1Njc4OWFiY2RlZg"), 0o600) }, true},
		{"right again", func() error { return os.WriteFile(path, good, 0o600) }, false},
		{"others can read it", func() error { return os.Chmod(path, 0o644) }, true},
		{"mode put right, and nothing else", func() error { return os.Chmod(path, 0o600) }, false},
		{"removed", func() error { return os.Remove(path) }, true},
		{"back", func() error { return os.WriteFile(path, good, 0o600) }, false},
		{"a directory", func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, true},
	} {
		if err := step.do(); err != nil {
			t.Fatal(step.name, err)
		}
		for range 3 {
			forgetful(r)
			if keys := r.Lookup("a"); len(keys) != 1 || !bytes.Equal(keys[0].Secret, example) {
				t.Errorf("%s: the keys are %v", step.name, keys)
			}
		}
		if step.wrong {
			told++
		} else if now := r.Generation(); now == generation {
			t.Errorf("%s: not read again", step.name)
		} else {
			generation = now
		}
		if n := log.count(); n != told {
			t.Errorf("%s: %d lines of log, want %d: %s", step.name, n, told, log.b.String())
		}
		if step.wrong {
			if err := r.Reload(); err == nil {
				t.Errorf("%s: Reload does not say so", step.name)
			}
		}
	}
	if strings.Contains(log.b.String(), "MDEyMzQ1Njc4") {
		t.Errorf("the log has the secret: %s", log.b.String())
	}
}

// Edits of many goroutines and processes at once are all there afterwards.
func TestConcurrentEdits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	var wg sync.WaitGroup
	const processes, goroutines, times = 4, 8, 8
	for p := range processes {
		wg.Go(func() {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "KEYRING_EDIT="+path, fmt.Sprintf("KEYRING_NAME=p%d-", p), fmt.Sprintf("KEYRING_TIMES=%d", times))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	for g := range goroutines {
		wg.Go(func() {
			for i := range times {
				if err := Edit(path, add(fmt.Sprintf("g%d-%d", g, i), &Key{Secret: NewSecret()})); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	l, err := Read(path)
	if err != nil || len(l.Keys) != (processes+goroutines)*times {
		t.Errorf("%d keys, want %d, %v", len(l.Keys), (processes+goroutines)*times, err)
	}
}

// A program that is killed in an edit leaves the file whole, and the next edit
// sweeps up.
func TestKilledEdit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "keys.json")
	edit(t, path, add("first", &Key{Secret: NewSecret()}))
	had := 1
	for i := range 12 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "KEYRING_EDIT="+path, fmt.Sprintf("KEYRING_NAME=k%d-", i), "KEYRING_TIMES=100000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(10+7*i) * time.Millisecond) // anywhere in its edits
		cmd.Process.Kill()
		cmd.Wait()
		l, err := Read(path)
		if err != nil || len(l.Keys) < had {
			t.Fatalf("%d keys, had %d, %v", len(l.Keys), had, err)
		}
		had = len(l.Keys)
	}
	if had == 1 {
		t.Fatal("no edit was done")
	}
	if err := os.WriteFile(path+".new", []byte("what a killed program left"), 0o600); err != nil {
		t.Fatal(err)
	}
	edit(t, path, func(l *List) error { return l.Revoke("first") })
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
}

// TestMain is the other process too.
func TestMain(m *testing.M) {
	path := os.Getenv("KEYRING_EDIT")
	if path == "" {
		os.Exit(m.Run())
	}
	var times int
	fmt.Sscan(os.Getenv("KEYRING_TIMES"), &times)
	for i := range times {
		if err := Edit(path, add(fmt.Sprint(os.Getenv("KEYRING_NAME"), i), &Key{Secret: NewSecret()})); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

// No way of printing shows a secret.
func TestNothingSecretPrints(t *testing.T) {
	secret := Secret("AbCdEfGhIjKlMnOpQrStUvWxYz")
	path := filepath.Join(t.TempDir(), "keys.json")
	edit(t, path, add("a", &Key{Secret: secret}))
	r := open(t, path, Options{})
	k := r.Lookup("a")[0]
	l, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	values := []any{secret, k, *k, []*Key{k}, map[string]*Key{"a": k}, struct{ Secret Secret }{secret}, struct{ Key Key }{*k},
		r, l, *l, &List{Keys: []*Key{k}}}
	var out bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewJSONHandler(&out, nil), slog.NewTextHandler(&out, nil)} {
		for _, v := range values {
			slog.New(handler).Info("key", "key", v)
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b"} {
		for _, v := range values {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v"} {
		fmt.Fprintf(&out, verb+"\n", struct{ key *Key }{k}) // which fmt asks for no method
	}
	for _, v := range values {
		b, _ := json.Marshal(v)
		out.Write(b)
	}
	text := strings.ToLower(out.String())
	for form, s := range map[string]string{"text": string(secret[:8]), "hex": hex.EncodeToString(secret[:8]), "numbers": "65 98 67 100",
		"Go": "0x41, 0x62, 0x43", "octal": "101 142 103", "JSON": "QWJDZEVmR2"} {
		if strings.Contains(text, strings.ToLower(s)) {
			t.Errorf("printed the secret as %s: %s", form, text)
		}
	}
	if !strings.Contains(text, "key 1 of a") || !strings.Contains(text, "[secret]") {
		t.Error("nothing says what was printed")
	}
}

func TestHMAC(t *testing.T) {
	mac := hmac.New(sha256.New, example)
	mac.Write([]byte("message"))
	got, err := (&Key{Secret: example}).HMAC(t.Context(), []byte("message"))
	if err != nil || !bytes.Equal(got, mac.Sum(nil)) {
		t.Errorf("%x, %v", got, err)
	}
	_, err = (&Key{Public: newPublic(t, elliptic.P256())}).HMAC(t.Context(), nil)
	wantWords(t, err, "public key")
	_, err = TPMKey([]byte("pem")).HMAC(t.Context(), nil) // of no ring
	wantWords(t, err, "uses none")
	if s := NewSecret(); len(s) != 32 || bytes.Equal(s, NewSecret()) {
		t.Error("secrets that are not random")
	}
	path := filepath.Join(t.TempDir(), "keys.json")
	edit(t, path, add("a", TPMKey([]byte("pem"))))
	_, err = open(t, path, Options{}).Lookup("a")[0].HMAC(t.Context(), nil)
	wantWords(t, err, "in a TPM", "uses none")
}

func TestReadersAndAnEditor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	edit(t, path, add("a", &Key{Secret: NewSecret()}))
	r := open(t, path, Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 300 {
				forgetful(r)
				if n := len(r.Lookup("a")); n != 1 && n != 2 {
					t.Errorf("%d keys", n)
				}
			}
		})
	}
	for range 20 {
		edit(t, path, func(l *List) error { return l.Rotate("a", &Key{Secret: NewSecret()}) })
	}
	wg.Wait()
}

// What is read is written the same and read again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(entry(goodSecret)))
	f.Add([]byte(entry(`"tpm":"-----BEGIN TSS2 PRIVATE KEY-----"`)))
	f.Add([]byte(entry(`"public":"` + spki(f, newPublic(f, elliptic.P256())) + `"`)))
	f.Add([]byte(`{"version":1,"keys":null}`))
	f.Add([]byte(`{"version":1,"keys":[]}]`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := parse(data)
		if err != nil {
			return
		}
		path := filepath.Join(dir, "keys.json")
		l := &List{Keys: keys}
		if err := l.write(path); err != nil {
			if strings.Contains(err.Error(), "year") { // of times that JSON can read and not write
				return
			}
			t.Fatal(err)
		}
		again, err := Read(path)
		if err != nil || len(again.Keys) != len(keys) {
			t.Fatalf("%d keys, want %d: %v", len(again.Keys), len(keys), err)
		}
		for i, k := range l.Keys {
			got := again.Keys[i]
			if got.String() != k.String() || !bytes.Equal(got.Secret, k.Secret) || !bytes.Equal(got.tpm, k.tpm) || (k.Public == nil) != (got.Public == nil) {
				t.Fatalf("key %d is %v, want %v", i, got, k)
			}
		}
	})
}
