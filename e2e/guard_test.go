package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/store/memstore"
)

// guarded is an app behind a guard in this process, for what the command's
// defaults do not show.
type guarded struct {
	*limpet.Guard
	url   string
	store *fallible
}

// newGuarded serves /login, which asks for no password, /register, and every
// other path behind the guard.
func newGuarded(t testing.TB, cfg limpet.Config) *guarded {
	t.Helper()
	store := &fallible{Store: memstore.New(nil)}
	cfg.Store, cfg.Logger = store, slog.New(slog.DiscardHandler)
	if cfg.Session == (limpet.Session{}) {
		cfg.Session = limpet.Bearer()
	}
	guard, err := limpet.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /register", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusCreated) })
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		token := randomHex(16)
		if err := guard.Bind(w, r, token, "alice"); err != nil {
			limpet.Refuse(w, err)
			return
		}
		fmt.Fprintf(w, `{"token":%q}`, token)
	})
	mux.Handle("/", guard.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, `{"authenticated":true,"level":%q}`, limpet.FromContext(r.Context()).Level)
	})))
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return &guarded{guard, srv.URL, store}
}

// fallible is a memstore that can be made to fail.
type fallible struct {
	*memstore.Store
	down atomic.Bool
}

var errDown = errors.New("the store is down")

func (f *fallible) Get(ctx context.Context, key string) ([]byte, bool, error) {
	if f.down.Load() {
		return nil, false, errDown
	}
	return f.Store.Get(ctx, key)
}

func (f *fallible) Put(ctx context.Context, key string, val []byte, ttl time.Duration) error {
	if f.down.Load() {
		return errDown
	}
	return f.Store.Put(ctx, key, val, ttl)
}

func (f *fallible) Add(ctx context.Context, key string, val []byte, ttl time.Duration) (bool, error) {
	if f.down.Load() {
		return false, errDown
	}
	return f.Store.Add(ctx, key, val, ttl)
}

func (f *fallible) Delete(ctx context.Context, key string) error {
	if f.down.Load() {
		return errDown
	}
	return f.Store.Delete(ctx, key)
}

func (f *fallible) Spend(ctx context.Context, id []byte, expires time.Time) (bool, error) {
	if f.down.Load() {
		return false, errDown
	}
	return f.Store.Spend(ctx, id, expires)
}
