package limpettest

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
)

// knownHMACs are the cases of RFC 4231, section 4, whose keys are neither too
// short nor too long to be imported, and others about the size of SHA-256's
// block, 64 bytes, above which a key is hashed first.
var knownHMACs = []struct {
	name            string
	secret, message []byte
	want            string
}{
	{"RFC 4231 case 1", bytes.Repeat([]byte{0x0b}, 20), []byte("Hi There"), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
	{"RFC 4231 case 3", bytes.Repeat([]byte{0xaa}, 20), bytes.Repeat([]byte{0xdd}, 50), "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"},
	{"RFC 4231 case 4", count(1, 25), bytes.Repeat([]byte{0xcd}, 50), "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"},
	{"shortest", count(0, 16), []byte("message"), "a3e24a124c1900e52c406c42351252b0d07b751bbaa9a44ce6690158ff6f032b"},
	{"a block", count(0, 64), []byte("message"), "eb97f15211c02e38e3213edb045e8301601867c1cd49df01c687eb04f8909e98"},
	{"longer than a block", count(0, 65), []byte("message"), "2d55f05a56fff8d5ba47a50eb1c006240377002f70e09d8862f8a5cb1c880e4a"},
	{"longest", count(0, 128), []byte("message"), "1f35d140ad4e844e42f6521610e2b89f4ef6da56d91965486875ff828970574f"},
	{"zeros at the end", append(count(1, 16), 0, 0), []byte("message"), "8ded1ec1df243bd2d8b0926a8dac5dc30f59c4a4dd472b781f7a8095c27f6a97"},
	{"no message", count(0, 32), nil, "d38b42096d80f45f826b44a9d5607de72496a415d3f4a1a8c88e3bb9da8dc1cb"},
	{"longest message", count(0, 32), bytes.Repeat([]byte{0x5a}, hwkey.MaxHMACMessage), "93c0fa7802473dce2ac616c3fa785fb466591f90ef07c4d16bc714ff65082bf1"},
}

// count returns n bytes that count up from first.
func count(first, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(first + i)
	}
	return b
}

// hmacKeystore tests that a keystore keeps the promises of hwkey.HMACKeystore.
func hmacKeystore(t *testing.T, fresh func(*testing.T) (hwkey.Keystore, func() hwkey.Keystore)) {
	as := func(t *testing.T, ks hwkey.Keystore) hwkey.HMACKeystore {
		t.Helper()
		h, ok := ks.(hwkey.HMACKeystore)
		if !ok {
			t.Fatalf("%T is not an HMACKeystore", ks)
		}
		return h
	}
	createHMAC := func(t *testing.T, ks hwkey.Keystore) hwkey.HMACKey {
		t.Helper()
		key, err := as(t, ks).CreateHMAC(t.Context(), "")
		if err != nil {
			t.Fatalf("CreateHMAC: %v", err)
		}
		return key
	}

	t.Run("import", func(t *testing.T) {
		for _, tt := range knownHMACs {
			t.Run(tt.name, func(t *testing.T) {
				ks, reopen := fresh(t)
				secret := bytes.Clone(tt.secret)
				key, err := as(t, ks).ImportHMAC(t.Context(), secret, "peer")
				if err != nil {
					t.Fatalf("ImportHMAC: %v", err)
				}
				if !bytes.Equal(secret, tt.secret) {
					t.Error("the caller's secret was changed")
				}
				clear(secret) // the keystore has its own
				wantHMAC(t, key, tt.message, tt.want)
				info := key.Info()
				closeHMACKey(t, key)
				ks = reopen()
				if key, err = as(t, ks).LoadHMAC(t.Context(), info.ID); err != nil {
					t.Fatalf("LoadHMAC after reopening: %v", err)
				}
				defer closeHMACKey(t, key)
				wantHMAC(t, key, tt.message, tt.want)
				if got := key.Info(); !sameInfo(got, info) || !got.Imported {
					t.Errorf("info after reopening %+v, want %+v, imported", got, info)
				}
			})
		}
	})

	t.Run("create", func(t *testing.T) {
		ks, reopen := fresh(t)
		before := time.Now().Truncate(time.Second)
		key, err := as(t, ks).CreateHMAC(t.Context(), "channel to api.example.com")
		if err != nil {
			t.Fatal(err)
		}
		info := key.Info()
		if info.Algorithm != hwkey.HMACSHA256 || info.Label != "channel to api.example.com" || info.Level == "" || info.Detail == "" || info.Imported {
			t.Errorf("info %+v does not describe the key", info)
		}
		if info.Created.Before(before) || info.Created.After(time.Now()) {
			t.Errorf("created %v, want about %v", info.Created, before)
		}
		mac := computeHMAC(t, key, []byte("message"))
		if again := computeHMAC(t, key, []byte("message")); !bytes.Equal(mac, again) {
			t.Error("two HMACs of one message differ")
		}
		if other := computeHMAC(t, key, []byte("Message")); bytes.Equal(mac, other) {
			t.Error("HMACs of two messages are the same")
		}
		other := createHMAC(t, ks)
		if bytes.Equal(mac, computeHMAC(t, other, []byte("message"))) {
			t.Error("two keys are the same")
		}
		closeHMACKey(t, other)
		closeHMACKey(t, key)
		again, err := as(t, reopen()).LoadHMAC(t.Context(), info.ID)
		if err != nil {
			t.Fatalf("LoadHMAC after reopening: %v", err)
		}
		defer closeHMACKey(t, again)
		if got := again.Info(); !sameInfo(got, info) {
			t.Errorf("info after reopening %+v, want %+v", got, info)
		}
		if !bytes.Equal(mac, computeHMAC(t, again, []byte("message"))) {
			t.Error("the key changed with reopening")
		}
	})

	t.Run("sizes", func(t *testing.T) {
		ks, _ := fresh(t)
		for _, n := range []int{0, 1, 15, 129, 4096} {
			if _, err := as(t, ks).ImportHMAC(t.Context(), make([]byte, n), ""); err == nil {
				t.Errorf("imported a secret of %d bytes", n)
			}
		}
		if _, err := as(t, ks).ImportHMAC(t.Context(), nil, ""); err == nil {
			t.Error("imported no secret")
		}
		wantIDs(t, ks)
		key := createHMAC(t, ks)
		defer closeHMACKey(t, key)
		for _, n := range []int{hwkey.MaxHMACMessage + 1, 1 << 16, 1 << 20} {
			if _, err := key.HMAC(t.Context(), make([]byte, n)); err == nil {
				t.Errorf("took a message of %d bytes", n)
			}
		}
		computeHMAC(t, key, []byte("message"))
	})

	t.Run("labels", func(t *testing.T) {
		ks, _ := fresh(t)
		for _, bad := range []string{strings.Repeat("x", 257), "two\nlines", "\xff"} {
			if _, err := as(t, ks).CreateHMAC(t.Context(), bad); err == nil {
				t.Errorf("created with the label %.20q", bad)
			}
			if _, err := as(t, ks).ImportHMAC(t.Context(), count(0, 32), bad); err == nil {
				t.Errorf("imported with the label %.20q", bad)
			}
		}
		wantIDs(t, ks)
	})

	t.Run("list and delete", func(t *testing.T) {
		ks, reopen := fresh(t)
		signing := create(t, ks, hwkey.ECDSAP256, "")
		hmacKey := createHMAC(t, ks)
		id := hmacKey.Info().ID
		wantIDs(t, ks, signing.Info().ID, id)
		closeHMACKey(t, hmacKey)
		closeKey(t, signing)
		ks = reopen()
		infos, err := ks.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if i := slices.IndexFunc(infos, func(info hwkey.Info) bool { return info.ID == id }); i < 0 || infos[i].Algorithm != hwkey.HMACSHA256 {
			t.Errorf("List is %+v, want %s with the algorithm %s", infos, id, hwkey.HMACSHA256)
		}
		if err := ks.Delete(t.Context(), id); err != nil {
			t.Errorf("Delete: %v", err)
		}
		wantIDs(t, ks, signing.Info().ID)
		_, err = as(t, ks).LoadHMAC(t.Context(), id)
		wantError(t, "LoadHMAC after Delete", err, hwkey.ErrNotFound)
	})

	t.Run("the other kind of key", func(t *testing.T) {
		ks, _ := fresh(t)
		signing := create(t, ks, hwkey.ECDSAP256, "")
		defer closeKey(t, signing)
		key := createHMAC(t, ks)
		defer closeHMACKey(t, key)
		_, err := as(t, ks).LoadHMAC(t.Context(), signing.Info().ID)
		wantError(t, "LoadHMAC of a key that signs", err, hwkey.ErrUnsupported)
		if errors.Is(err, hwkey.ErrLost) {
			t.Errorf("LoadHMAC of a key that signs: error %v says that it is lost", err)
		}
		_, err = ks.Load(t.Context(), key.Info().ID)
		wantError(t, "Load of an HMAC key", err, hwkey.ErrUnsupported)
		if errors.Is(err, hwkey.ErrLost) {
			t.Errorf("Load of an HMAC key: error %v says that it is lost", err)
		}
		if _, ok := key.(hwkey.Key); ok {
			t.Errorf("an HMAC key, %T, is a Key too", key)
		}
	})

	t.Run("hostile ids", func(t *testing.T) {
		ks, _ := fresh(t)
		key := createHMAC(t, ks)
		defer closeHMACKey(t, key)
		for _, bad := range []string{"", ".", "..", "../" + key.Info().ID, "a/b", "\x00", strings.Repeat("a", 65), "\xff", "nobody"} {
			_, err := as(t, ks).LoadHMAC(t.Context(), bad)
			wantError(t, fmt.Sprintf("LoadHMAC(%.20q)", bad), err, hwkey.ErrNotFound)
		}
	})

	t.Run("closed key", func(t *testing.T) {
		ks, _ := fresh(t)
		key := createHMAC(t, ks)
		second, err := as(t, ks).LoadHMAC(t.Context(), key.Info().ID)
		if err != nil {
			t.Fatal(err)
		}
		closeHMACKey(t, key)
		if _, err := key.HMAC(t.Context(), []byte("message")); err == nil {
			t.Error("a closed key computed an HMAC")
		}
		closeHMACKey(t, key)
		computeHMAC(t, second, []byte("message"))
		closeHMACKey(t, second)
	})

	t.Run("cancelled context", func(t *testing.T) {
		ks, _ := fresh(t)
		key := createHMAC(t, ks)
		defer closeHMACKey(t, key)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := as(t, ks).CreateHMAC(ctx, "")
		wantError(t, "CreateHMAC", err, context.Canceled)
		_, err = as(t, ks).ImportHMAC(ctx, count(0, 32), "")
		wantError(t, "ImportHMAC", err, context.Canceled)
		_, err = as(t, ks).LoadHMAC(ctx, key.Info().ID)
		wantError(t, "LoadHMAC", err, context.Canceled)
		_, err = key.HMAC(ctx, nil)
		wantError(t, "HMAC", err, context.Canceled)
		wantIDs(t, ks, key.Info().ID)
	})

	t.Run("nothing secret prints", func(t *testing.T) {
		ks, _ := fresh(t)
		secret := []byte("AbCdEfGhIjKlMnOpQrStUvWxYz")
		key, err := as(t, ks).ImportHMAC(t.Context(), secret, "")
		if err != nil {
			t.Fatal(err)
		}
		defer closeHMACKey(t, key)
		var out bytes.Buffer
		for _, handler := range []slog.Handler{slog.NewJSONHandler(&out, nil), slog.NewTextHandler(&out, nil)} {
			slog.New(handler).Info("key", "key", key, "nested", []any{key}, "struct", struct{ Key hwkey.HMACKey }{key})
		}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%c", "%U"} {
			fmt.Fprintf(&out, verb+" "+verb+" "+verb+"\n", key, []any{key}, struct{ key hwkey.HMACKey }{key})
		}
		printed := strings.ToLower(out.String())
		for form, s := range map[string]string{"text": string(secret[:8]), "hex": hex.EncodeToString(secret[:8]),
			"numbers": "65 98 67 100", "Go": "0x41, 0x62, 0x43", "octal": "101 142 103", "JSON": "QWJDZEVmR2"} {
			if strings.Contains(printed, strings.ToLower(s)) {
				t.Errorf("printed the secret as %s: %s", form, printed)
			}
		}
	})

	t.Run("64 goroutines", func(t *testing.T) {
		ks, _ := fresh(t)
		signing := create(t, ks, hwkey.ECDSAP256, "")
		defer closeKey(t, signing)
		secrets := make([][]byte, 5) // more than a TPM holds
		keys := make([]hwkey.HMACKey, len(secrets))
		for i := range keys {
			secrets[i] = count(i, 32)
			var err error
			if keys[i], err = as(t, ks).ImportHMAC(t.Context(), secrets[i], ""); err != nil {
				t.Fatal(err)
			}
			defer closeHMACKey(t, keys[i])
		}
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				n := i % len(keys)
				for j := range 3 {
					message := fmt.Append(nil, i, j)
					mac, err := keys[n].HMAC(context.Background(), message)
					if want := hmacSHA256(secrets[n], message); err != nil || !bytes.Equal(mac, want) {
						t.Errorf("HMAC is %x, error %v; want %x", mac, err, want)
					}
				}
				if i%16 == 0 { // other calls in between
					if err := SignAndVerify(signing, signing.Public(), []byte("message")); err != nil {
						t.Error(err)
					}
					loaded, err := as(t, ks).LoadHMAC(context.Background(), keys[n].Info().ID)
					if err != nil {
						t.Error(err)
						return
					}
					closeHMACKey(t, loaded)
				}
			})
		}
		wg.Wait()
	})
}

func hmacSHA256(secret, message []byte) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write(message)
	return mac.Sum(nil)
}

func computeHMAC(t *testing.T, key hwkey.HMACKey, message []byte) []byte {
	t.Helper()
	mac, err := key.HMAC(t.Context(), message)
	if err != nil {
		t.Fatalf("HMAC: %v", err)
	}
	if len(mac) != sha256.Size {
		t.Fatalf("an HMAC of %d bytes, want %d", len(mac), sha256.Size)
	}
	return mac
}

func wantHMAC(t *testing.T, key hwkey.HMACKey, message []byte, want string) {
	t.Helper()
	if got := hex.EncodeToString(computeHMAC(t, key, message)); got != want {
		t.Errorf("HMAC is %s, want %s", got, want)
	}
}

func closeHMACKey(t *testing.T, key hwkey.HMACKey) {
	t.Helper()
	if err := key.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}
