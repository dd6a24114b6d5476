package limpettest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
)

// Keystore tests that a keystore keeps the promises of the hwkey package. open
// opens the keystore whose state is in dir, a directory that may not exist yet;
// two calls with one dir give the same keys. A keystore with a Close method is
// closed before its dir is opened again. supported are the algorithms that the
// keystore must do; for the others it must return ErrUnsupported. With
// hwkey.HMACSHA256 among them it must be an hwkey.HMACKeystore.
func Keystore(t *testing.T, supported []hwkey.Algorithm, open func(t *testing.T, dir string) hwkey.Keystore) {
	fresh := func(t *testing.T) (ks hwkey.Keystore, reopen func() hwkey.Keystore) {
		dir := t.TempDir() + "/keys"
		shut := func() {
			if c, ok := ks.(io.Closer); ok {
				if err := c.Close(); err != nil {
					t.Errorf("closing the keystore: %v", err)
				}
			}
		}
		ks = open(t, dir)
		t.Cleanup(func() { shut() })
		return ks, func() hwkey.Keystore {
			shut()
			ks = open(t, dir)
			return ks
		}
	}

	for _, alg := range []hwkey.Algorithm{hwkey.ECDSAP256, hwkey.RSA2048, hwkey.Ed25519} {
		if !slices.Contains(supported, alg) {
			t.Run("unsupported "+string(alg), func(t *testing.T) {
				ks, _ := fresh(t)
				_, err := ks.Create(t.Context(), hwkey.CreateOptions{Algorithm: alg})
				wantError(t, "Create", err, hwkey.ErrUnsupported)
				wantIDs(t, ks)
			})
			continue
		}
		t.Run(string(alg), func(t *testing.T) {
			ks, reopen := fresh(t)
			before := time.Now().Truncate(time.Second)
			key := create(t, ks, alg, "login at api.example.com")
			info := key.Info()
			if info.Algorithm != alg || info.Label != "login at api.example.com" || info.Level == "" || info.Detail == "" {
				t.Errorf("info %+v does not describe the key", info)
			}
			if info.Created.Before(before) || info.Created.After(time.Now()) || !info.Created.Equal(info.Created.Truncate(time.Second)) {
				t.Errorf("created %v, want about %v to the second", info.Created, before)
			}
			if err := SignAndVerify(key, key.Public(), []byte("message")); err != nil {
				t.Error(err)
			}
			for _, n := range []int{0, 1, 31, 33, 64} {
				if _, err := key.Sign(nil, make([]byte, n), crypto.SHA256); err == nil {
					t.Errorf("signed a SHA-256 digest of %d bytes", n)
				}
			}
			if alg != hwkey.Ed25519 {
				if _, err := key.Sign(nil, make([]byte, 64), crypto.SHA512); err == nil {
					t.Error("signed a SHA-512 digest")
				}
			}
			public := key.Public()
			closeKey(t, key)

			ks = reopen()
			again, err := ks.Load(t.Context(), info.ID)
			if err != nil {
				t.Fatalf("Load after reopening: %v", err)
			}
			defer closeKey(t, again)
			if got := again.Info(); !sameInfo(got, info) {
				t.Errorf("info after reopening %+v, want %+v", got, info)
			}
			if err := SignAndVerify(again, public, []byte("message")); err != nil {
				t.Errorf("after reopening: %v", err)
			}
		})
	}

	t.Run("HMAC keys do not sign", func(t *testing.T) {
		ks, _ := fresh(t)
		_, err := ks.Create(t.Context(), hwkey.CreateOptions{Algorithm: hwkey.HMACSHA256})
		wantError(t, "Create", err, hwkey.ErrUnsupported)
		wantIDs(t, ks)
	})
	if slices.Contains(supported, hwkey.HMACSHA256) {
		t.Run("HMAC", func(t *testing.T) { hmacKeystore(t, fresh) })
	}

	t.Run("default is ECDSAP256", func(t *testing.T) {
		ks, _ := fresh(t)
		key := create(t, ks, "", "")
		defer closeKey(t, key)
		if got := key.Info().Algorithm; got != hwkey.ECDSAP256 {
			t.Errorf("algorithm %q, want %q", got, hwkey.ECDSAP256)
		}
	})

	t.Run("unknown algorithm", func(t *testing.T) {
		ks, _ := fresh(t)
		_, err := ks.Create(t.Context(), hwkey.CreateOptions{Algorithm: "rot13"})
		wantError(t, "Create", err, hwkey.ErrUnsupported)
	})

	t.Run("list and delete", func(t *testing.T) {
		ks, reopen := fresh(t)
		wantIDs(t, ks)
		var ids []string
		for i := range 5 {
			key := create(t, ks, hwkey.ECDSAP256, fmt.Sprint("key ", i))
			ids = append(ids, key.Info().ID)
			closeKey(t, key)
		}
		wantIDs(t, ks, ids...)
		ks = reopen()
		wantIDs(t, ks, ids...)
		if err := ks.Delete(t.Context(), ids[2]); err != nil {
			t.Fatalf("Delete: %v", err)
		}
		wantError(t, "second Delete", ks.Delete(t.Context(), ids[2]), hwkey.ErrNotFound)
		_, err := ks.Load(t.Context(), ids[2])
		wantError(t, "Load after Delete", err, hwkey.ErrNotFound)
		wantIDs(t, ks, slices.Delete(slices.Clone(ids), 2, 3)...)
	})

	t.Run("hostile ids", func(t *testing.T) {
		ks, _ := fresh(t)
		key := create(t, ks, hwkey.ECDSAP256, "")
		id := key.Info().ID
		closeKey(t, key)
		if strings.ContainsFunc(id, func(r rune) bool { return !strings.ContainsRune("-_", r) && !isAlphanumeric(r) }) || id == "" || len(id) > 64 {
			t.Errorf("id %q is not safe as a file name", id)
		}
		for _, bad := range []string{"", ".", "..", "../" + id, "./" + id, id + "/", id + "\x00", "\x00", "a/b", `a\b`, "C:" + id,
			"-rf", " " + id, id + ".", strings.Repeat("a", 65), strings.Repeat("a", 1<<16), "\u00e9", "\xff", "CON.", "*"} {
			_, err := ks.Load(t.Context(), bad)
			wantError(t, fmt.Sprintf("Load(%.20q)", bad), err, hwkey.ErrNotFound)
			wantError(t, fmt.Sprintf("Delete(%.20q)", bad), ks.Delete(t.Context(), bad), hwkey.ErrNotFound)
		}
		wantIDs(t, ks, id)
	})

	t.Run("labels", func(t *testing.T) {
		ks, reopen := fresh(t)
		labels := []string{"", "https://bücher.example/?q=\"1\"&x=<y>", "-----BEGIN X-----", strings.Repeat("x", 256)}
		for _, label := range labels {
			closeKey(t, create(t, ks, hwkey.ECDSAP256, label))
		}
		for _, bad := range []string{strings.Repeat("x", 257), strings.Repeat("x", 1<<20), "two\nlines", "\x1b[2J", "\xff"} {
			if key, err := ks.Create(t.Context(), hwkey.CreateOptions{Label: bad}); err == nil {
				t.Errorf("a label of %d bytes was accepted", len(bad))
				closeKey(t, key)
			}
		}
		infos, err := reopen().List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, info := range infos {
			got = append(got, info.Label)
		}
		slices.Sort(got)
		slices.Sort(labels)
		if !slices.Equal(got, labels) {
			t.Errorf("labels %q, want %q", got, labels)
		}
	})

	t.Run("closed key", func(t *testing.T) {
		ks, _ := fresh(t)
		key := create(t, ks, hwkey.ECDSAP256, "")
		closeKey(t, key)
		if _, err := key.Sign(nil, make([]byte, 32), crypto.SHA256); err == nil {
			t.Error("a closed key signed")
		}
		if err := key.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		again, err := ks.Load(t.Context(), key.Info().ID)
		if err != nil {
			t.Fatalf("Load after Close: %v", err)
		}
		closeKey(t, again)
	})

	t.Run("one key loaded twice", func(t *testing.T) {
		ks, _ := fresh(t)
		first := create(t, ks, hwkey.ECDSAP256, "")
		second, err := ks.Load(t.Context(), first.Info().ID)
		if err != nil {
			t.Fatal(err)
		}
		closeKey(t, first)
		if err := SignAndVerify(second, first.Public(), []byte("message")); err != nil {
			t.Errorf("after the other was closed: %v", err)
		}
		closeKey(t, second)
	})

	t.Run("cancelled context", func(t *testing.T) {
		ks, _ := fresh(t)
		key := create(t, ks, hwkey.ECDSAP256, "")
		closeKey(t, key)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := ks.Create(ctx, hwkey.CreateOptions{})
		wantError(t, "Create", err, context.Canceled)
		_, err = ks.Load(ctx, key.Info().ID)
		wantError(t, "Load", err, context.Canceled)
		_, err = ks.List(ctx)
		wantError(t, "List", err, context.Canceled)
		wantError(t, "Delete", ks.Delete(ctx, key.Info().ID), context.Canceled)
		wantIDs(t, ks, key.Info().ID)
	})

	t.Run("64 goroutines", func(t *testing.T) {
		ks, _ := fresh(t)
		var keys []hwkey.Key
		for range 5 {
			key := create(t, ks, hwkey.ECDSAP256, "")
			defer closeKey(t, key)
			keys = append(keys, key)
		}
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				key := keys[i%len(keys)]
				for j := range 3 {
					if err := SignAndVerify(key, key.Public(), fmt.Append(nil, i, j)); err != nil {
						t.Error(err)
					}
				}
				if i%16 == 0 { // other calls in between
					loaded, err := ks.Load(t.Context(), key.Info().ID)
					if err != nil {
						t.Error(err)
						return
					}
					closeKey(t, loaded)
				}
			})
		}
		wg.Wait()
	})
}

// SignAndVerify signs message with key and checks the signature against
// public, in the scheme that the key's algorithm stands for.
func SignAndVerify(key hwkey.Key, public crypto.PublicKey, message []byte) error {
	digest := sha256.Sum256(message)
	signed, hash := digest[:], crypto.SHA256
	if key.Info().Algorithm == hwkey.Ed25519 {
		signed, hash = message, crypto.Hash(0)
	}
	sig, err := key.Sign(nil, signed, hash)
	if err != nil {
		return fmt.Errorf("signing: %w", err)
	}
	ok := false
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(public, digest[:], sig)
	case *rsa.PublicKey:
		ok = rsa.VerifyPSS(public, crypto.SHA256, digest[:], sig, nil) == nil
	case ed25519.PublicKey:
		ok = ed25519.Verify(public, message, sig)
	default:
		return fmt.Errorf("public key is a %T", public)
	}
	if !ok {
		return errors.New("the signature does not verify")
	}
	return nil
}

func create(t *testing.T, ks hwkey.Keystore, alg hwkey.Algorithm, label string) hwkey.Key {
	t.Helper()
	key, err := ks.Create(t.Context(), hwkey.CreateOptions{Algorithm: alg, Label: label})
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return key
}

func closeKey(t *testing.T, key hwkey.Key) {
	t.Helper()
	if err := key.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

// wantIDs checks that the keystore lists these keys and no others, oldest
// first. Keys made within one second may come in any order, but always the same.
func wantIDs(t *testing.T, ks hwkey.Keystore, ids ...string) {
	t.Helper()
	infos, err := ks.List(t.Context())
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	if !slices.IsSortedFunc(infos, func(a, b hwkey.Info) int { return a.Created.Compare(b.Created) }) {
		t.Errorf("List is not oldest first: %v", infos)
	}
	again, err := ks.List(t.Context())
	if err != nil || !slices.EqualFunc(infos, again, sameInfo) {
		t.Errorf("List changed from %v to %v, error %v", infos, again, err)
	}
	var got []string
	for _, info := range infos {
		got = append(got, info.ID)
	}
	slices.Sort(got)
	want := slices.Sorted(slices.Values(ids))
	if !slices.Equal(got, want) {
		t.Errorf("List has %q, want %q", got, want)
	}
}

func sameInfo(a, b hwkey.Info) bool {
	same := a.Created.Equal(b.Created)
	a.Created, b.Created = time.Time{}, time.Time{}
	return same && a == b
}

func isAlphanumeric(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}
