package bench

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/proof/hwsign"
	"github.com/limpet-auth/limpet/store/boltstore"
	"github.com/limpet-auth/limpet/store/memstore"
)

// BenchmarkSession reports what a bound session and an ephemeral key, made by
// real logins and introductions, take up: live heap, and the bytes of their
// records. What a guard keeps of a session in use, it keeps of 16,384 at most.
func BenchmarkSession(b *testing.B) {
	const sessions, keys = 20_000, 16_000 // as many keys as a guard keeps sessions in use
	for _, kind := range []string{"memstore", "boltstore"} {
		b.Run(kind, func(b *testing.B) {
			for range b.N {
				store := limpet.Store(memstore.New(nil))
				if kind == "boltstore" {
					bolt, err := boltstore.Open(filepath.Join(b.TempDir(), "store.db"), nil)
					if err != nil {
						b.Fatal(err)
					}
					defer bolt.Close()
					store = bolt
				}
				guard, err := limpet.New(limpet.Config{Session: limpet.Bearer(), Store: store, Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					b.Fatal(err)
				}
				app := guard.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
				device, pub := newKey(b)

				empty := live()
				together(sessions, func(i int) { bind(b, guard, pub, i) })
				bound := live()
				together(keys, func(i int) { introduce(b, app, device, fmt.Sprint("token", i)) })
				used := live()
				guard, app = nil, nil // and with them what they remember of the sessions in use
				introduced := live()
				records := map[string]int{}
				store.(limpet.Lister).List(b.Context(), "", func(key string, val []byte) bool {
					records[key[:2]] += len(key) + len(val)
					return true
				})
				report(b, map[string]float64{
					"heap-B/session":         float64(bound-empty) / sessions,
					"heap-B/ephemeral-key":   float64(introduced-bound) / keys,
					"heap-B/session-in-use":  float64(used-introduced) / keys,
					"record-B/session":       float64(records["b:"]+records["u:"]) / sessions,
					"record-B/ephemeral-key": float64(records["e:"]+records["d:"]) / keys,
				})
			}
		})
	}
}

// BenchmarkMillion logs a million users in on a boltstore, closes it, opens it
// anew, and has one in a thousand of them introduce an ephemeral key.
func BenchmarkMillion(b *testing.B) {
	if os.Getenv("LIMPET_BENCH_LARGE") == "" {
		b.Skip("set LIMPET_BENCH_LARGE=1: a million logins take minutes")
	}
	const sessions = 1_000_000
	device, pub := newKey(b)
	path := filepath.Join(b.TempDir(), "store.db")
	open := func() (*boltstore.Store, *limpet.Guard) {
		store, err := boltstore.Open(path, nil)
		if err != nil {
			b.Fatal(err)
		}
		guard, err := limpet.New(limpet.Config{Session: limpet.Bearer(), Store: store, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		return store, guard
	}
	for range b.N {
		os.Remove(path)
		store, guard := open()
		began := time.Now()
		together(sessions, func(i int) { bind(b, guard, pub, i) })
		bound := time.Since(began)
		if err := store.Close(); err != nil {
			b.Fatal(err)
		}
		began = time.Now()
		store, guard = open()
		opened := time.Since(began)
		app := guard.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		together(sessions/1000, func(i int) { introduce(b, app, device, fmt.Sprint("token", i*1000)) })
		info, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		report(b, map[string]float64{
			"ns/op":          each(bound, sessions),
			"ms/open":        float64(opened.Microseconds()) / 1000,
			"file-B/session": float64(info.Size()) / sessions,
		})
		store.Close()
	}
}

// bind logs the i-th user in.
func bind(b *testing.B, guard *limpet.Guard, pub string, i int) {
	r := httptest.NewRequest("POST", "/login", nil)
	r.Header.Set(hwsign.BoundToken.DeviceKey, pub)
	r.Header.Set(hwsign.BoundToken.DeviceKeyType, hwsign.TypeECDSA)
	if err := guard.Bind(httptest.NewRecorder(), r, fmt.Sprint("token", i), fmt.Sprint("user", i)); err != nil {
		b.Error(err)
	}
}

// together does n things, many at a time, so that they share commits.
func together(n int, do func(i int)) {
	const workers = 64
	done := make(chan struct{})
	for w := range workers {
		go func() {
			for i := w; i < n; i += workers {
				do(i)
			}
			done <- struct{}{}
		}()
	}
	for range workers {
		<-done
	}
}

// live returns the bytes of live objects on the heap.
func live() int64 {
	runtime.GC()
	runtime.GC() // the first one only empties the pools
	return heap()
}

func newKey(b *testing.B) (key *ecdsa.PrivateKey, public string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		b.Fatal(err)
	}
	return key, base64.StdEncoding.EncodeToString(point)
}

func introduce(b *testing.B, app http.Handler, device *ecdsa.PrivateKey, token string) {
	_, pub := newKey(b)
	value := fmt.Sprintf("%d-%s", time.Now().Unix(), rand.Text())
	r := httptest.NewRequest("GET", "/", nil)
	n := hwsign.BoundToken
	r.Header = http.Header{
		"Authorization": {"Bearer " + token},
		n.EphemeralKey:  {pub}, n.EphemeralType: {hwsign.TypeECDHShort}, n.EphemeralSig: {sign(b, device, pub)},
		n.Data: {value}, n.DataSig: {sign(b, device, value)},
	}
	w := httptest.NewRecorder()
	app.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		b.Error(w.Code, w.Body)
	}
}

func sign(b *testing.B, key *ecdsa.PrivateKey, message string) string {
	sum := sha256.Sum256([]byte(message))
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		b.Error(err)
	}
	return base64.StdEncoding.EncodeToString(sig)
}
