package limpet

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/store/memstore"
)

// askedStore counts what it is asked for.
type askedStore struct {
	Store
	gets *atomic.Int64
}

func (s askedStore) Get(ctx context.Context, key string) ([]byte, bool, error) {
	s.gets.Add(1)
	return s.Store.Get(ctx, key)
}

// aroundStore has a Get of its own, and the versions of the store that it embeds.
type aroundStore struct {
	*memstore.Store
	gets *atomic.Int64
}

func (s aroundStore) Get(ctx context.Context, key string) ([]byte, bool, error) {
	s.gets.Add(1)
	return s.Store.Get(ctx, key)
}

// versionedStore is one with versions.
type versionedStore struct {
	askedStore
	mem *memstore.Store
}

func (s versionedStore) Version(_ any, key string) *atomic.Uint64 { return s.mem.Version(s.mem, key) }

// TestMemo: what a guard made of records is used while they are the same and no longer,
// whether versions tell that or the records themselves.
func TestMemo(t *testing.T) {
	for name, each := range map[string]int64{"with versions": 0, "without": 2, "with those of another store": 2} {
		t.Run(name, func(t *testing.T) {
			mem := memstore.New(nil)
			asked := askedStore{mem, new(atomic.Int64)}
			store := map[string]Store{
				"with versions":               versionedStore{asked, mem},
				"without":                     asked,
				"with those of another store": aroundStore{mem, asked.gets},
			}[name]
			s := newSite(t, Config{Store: store})
			ctx, id := t.Context(), Bearer().ID("token")
			d := s.login("token", "alice")
			d.introduce()
			gets := func(what string, want int64) {
				t.Helper()
				before := asked.gets.Load()
				expect(t, what, d.get(), "")
				if n := asked.gets.Load() - before; n != want {
					t.Errorf("%s: the store was asked %d times, want %d", what, n, want)
				}
			}
			d.get()
			known := s.memo.at(id).Load()
			for range 3 {
				gets("as before", each)
			}
			again := func(key string) {
				t.Helper()
				rec, found, err := mem.Get(ctx, key)
				if err != nil || !found {
					t.Fatal(key, found, err)
				}
				if err := mem.Put(ctx, key, rec, time.Hour); err != nil {
					t.Fatal(err)
				}
			}
			again(bindingKey(id))
			gets("the same binding put again", max(1, each))
			gets("after that", each)
			again(slotKey(id, 0))
			gets("the same key put again", max(1, each))
			gets("after that", each)
			if s.memo.at(id).Load() != known {
				t.Error("what was made of the records was made anew")
			}

			other := *d
			other.introduce() // takes a slot of its own
			expect(t, "the other key", other.get(), "")
			if err := mem.Delete(ctx, slotKey(id, 0)); err != nil {
				t.Fatal(err)
			}
			expect(t, "a key that was deleted", d.get(), proof.KeyUnknown)
			expect(t, "the other key", other.get(), "")
			if err := s.Revoke(ctx, id); err != nil {
				t.Fatal(err)
			}
			expect(t, "revoked", other.get(), proof.SessionEnded)
			if err := mem.Delete(ctx, bindingKey(id)); err != nil {
				t.Fatal(err)
			}
			if expect(t, "deleted", other.get(), ""); s.seen.Level != None {
				t.Errorf("deleted: level %s", s.seen.Level)
			}
		})
	}
}

// TestLeaseEndsInTheStore: that a record's life is over is no change of it.
func TestLeaseEndsInTheStore(t *testing.T) {
	mem := memstore.New(nil)
	asked := askedStore{mem, new(atomic.Int64)}
	s := newSite(t, Config{Store: versionedStore{asked, mem}, Lease: time.Minute})
	d := s.login("token", "alice")
	d.introduce()
	expect(t, "within the lease", d.get(), "")
	s.pass(2 * time.Minute)
	before := asked.gets.Load()
	if w := d.get(); w.Code != 401 {
		t.Errorf("after the lease: %d", w.Code)
	}
	if asked.gets.Load() == before {
		t.Error("the store was not asked")
	}
}
