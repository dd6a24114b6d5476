package memstore_test

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/limpettest"
	"github.com/limpet-auth/limpet/store/memstore"
)

func TestStore(t *testing.T) {
	limpettest.Store(t, func(*testing.T) limpet.Store { return memstore.New(nil) })
}

// TestFull: a full store takes nothing new, keeps what it has, takes a new
// value for a key it has, and has room again when records die.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		const n = 1000
		s := memstore.New(&memstore.Options{MaxRecords: n})
		for i := range n {
			if err := s.Put(ctx, fmt.Sprint("key", i), []byte("1"), time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		for i := range n {
			if err := s.Put(ctx, fmt.Sprint("more", i), []byte("1"), time.Minute); err == nil {
				t.Fatal("Put to a full store gave no error")
			}
			if added, err := s.Add(ctx, fmt.Sprint("more", i), []byte("1"), time.Minute); err == nil || added {
				t.Fatalf("Add to a full store = %v, %v", added, err)
			}
		}
		for i := range n {
			key := fmt.Sprint("key", i)
			if err := s.Put(ctx, key, []byte("2"), time.Minute); err != nil {
				t.Fatal(err)
			}
			if val, found, err := s.Get(ctx, key); err != nil || !found || string(val) != "2" {
				t.Fatalf("Get = %q, %v, %v", val, found, err)
			}
		}
		if err := s.Delete(ctx, "key0"); err != nil {
			t.Fatal(err)
		}
		if added, err := s.Add(ctx, "key0", nil, time.Minute); err != nil || !added {
			t.Fatalf("Add after Delete = %v, %v", added, err)
		}
		time.Sleep(time.Minute)
		for i := range n {
			if added, err := s.Add(ctx, fmt.Sprint("later", i), nil, time.Minute); err != nil || !added {
				t.Fatalf("Add after all died = %v, %v", added, err)
			}
		}
	})
}

// TestDeadGo: without anybody asking for them again, dead records make way.
func TestDeadGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		const n = 10_000
		s := memstore.New(&memstore.Options{MaxRecords: n})
		for i := range 5 * n {
			if err := s.Put(ctx, fmt.Sprint("key", i), nil, n/2*time.Millisecond); err != nil {
				t.Fatalf("record %d: %v", i, err)
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// TestChurn: however often records are replaced and deleted, memory stays in
// proportion to what is there, and what a reader holds stays as it was.
func TestChurn(t *testing.T) {
	ctx := context.Background()
	s := memstore.New(nil)
	const n, size = 1000, 1000
	held := map[string][]byte{}
	var before, after runtime.MemStats
	for round := range 40 {
		for i := range n {
			key := fmt.Sprint("key", i)
			if i%10 == round%10 {
				if err := s.Delete(ctx, key); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if err := s.Put(ctx, key, bytes.Repeat([]byte{byte(round)}, size), time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		for i := range n {
			key := fmt.Sprint("key", i)
			val, found, err := s.Get(ctx, key)
			if err != nil || found == (i%10 == round%10) || found && !bytes.Equal(val, bytes.Repeat([]byte{byte(round)}, size)) {
				t.Fatalf("round %d: Get(%s) = %d bytes, %v, %v", round, key, len(val), found, err)
			}
			if round == 5 && i < 20 && found {
				held[key] = val
			}
		}
		runtime.GC()
		if runtime.ReadMemStats(&after); round == 2 {
			before = after
		}
	}
	for key, val := range held {
		if !bytes.Equal(val, bytes.Repeat([]byte{5}, size)) {
			t.Errorf("what was read of %s has changed", key)
		}
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

func TestSpendFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		s := memstore.New(&memstore.Options{MaxSpent: 100})
		for round := range 3 {
			expires := time.Now().Add(time.Minute)
			for i := range 100 {
				if fresh, err := s.Spend(ctx, fmt.Append(nil, round, i), expires); err != nil || !fresh {
					t.Fatalf("Spend = %v, %v", fresh, err)
				}
			}
			if fresh, err := s.Spend(ctx, []byte("more"), expires); err == nil || fresh {
				t.Fatalf("Spend when full = %v, %v", fresh, err)
			}
			if fresh, err := s.Spend(ctx, fmt.Append(nil, round, 0), expires); err != nil || fresh {
				t.Fatalf("Spend of a spent value when full = %v, %v", fresh, err)
			}
			time.Sleep(2 * time.Minute)
		}
		if fresh, err := s.Spend(ctx, []byte("far"), time.Now().Add(25*time.Hour)); err == nil || fresh {
			t.Fatalf("Spend far ahead = %v, %v", fresh, err)
		}
	})
}

func TestGetDoesNotAllocate(t *testing.T) {
	s := memstore.New(nil)
	ctx := context.Background()
	if err := s.Put(ctx, "key", make([]byte, 200), time.Hour); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { s.Get(ctx, "key") }); n != 0 {
		t.Errorf("Get allocates %v times", n)
	}
	id, expires := make([]byte, 32), time.Now().Add(time.Minute)
	s.Spend(ctx, id, expires)
	if n := testing.AllocsPerRun(100, func() { s.Spend(ctx, id, expires) }); n != 0 {
		t.Errorf("Spend of a spent value allocates %v times", n)
	}
}

func BenchmarkGet(b *testing.B) {
	s := memstore.New(nil)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = fmt.Sprintf("binding/%064d", i)
		s.Put(ctx, keys[i], make([]byte, 200), time.Hour)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Get(ctx, keys[i%len(keys)])
	}
}
