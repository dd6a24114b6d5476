package replay

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

func mustAdd(t *testing.T, tab *Table, fp uint64, expires, now int64, want bool) {
	t.Helper()
	if fresh, err := tab.Add(fp, expires, now); err != nil || fresh != want {
		t.Fatalf("Add(%#x, %d, %d) = %v, %v; want %v", fp, expires, now, fresh, err, want)
	}
}

func TestOnce(t *testing.T) {
	for _, fp := range []uint64{0, 2, 1 << 63, 1<<64 - 1} {
		tab := New(100)
		mustAdd(t, tab, fp, 1060, 1000, true)
		mustAdd(t, tab, fp, 1060, 1000, false)
		mustAdd(t, tab, fp, 1060, 1059, false)
		mustAdd(t, tab, fp, 1060, 1060, false) // passed
	}
}

func TestClockSetBack(t *testing.T) {
	tab := New(100)
	mustAdd(t, tab, 7, 1060, 1000, true)
	mustAdd(t, tab, 8, 1200, 1100, true) // drops the bucket of 7
	if n := tab.Len(); n != 1 {
		t.Fatalf("Len = %d, want 1", n)
	}
	mustAdd(t, tab, 7, 1060, 1000, false)
	mustAdd(t, tab, 7, 1100, 1000, false)
	mustAdd(t, tab, 9, 1101, 1000, true)
}

func TestHorizon(t *testing.T) {
	tab := New(100)
	mustAdd(t, tab, 7, 1000+MaxHorizon, 1000, true)
	for _, expires := range []int64{1001 + MaxHorizon, 1<<63 - 1} {
		if fresh, err := tab.Add(8, expires, 1000); fresh || !errors.Is(err, ErrHorizon) {
			t.Errorf("Add in the far future = %v, %v", fresh, err)
		}
	}
}

func TestFull(t *testing.T) {
	const n = 1000
	tab := New(n)
	r := rand.New(rand.NewPCG(1, 2))
	fps := make([]uint64, n)
	for i := range fps {
		fps[i] = r.Uint64()
		mustAdd(t, tab, fps[i], 1010+int64(i%50), 1000, true)
	}
	if fresh, err := tab.Add(r.Uint64(), 1060, 1000); fresh || err != ErrFull {
		t.Fatalf("Add to a full table = %v, %v", fresh, err)
	}
	for i, fp := range fps {
		mustAdd(t, tab, fp, 1010+int64(i%50), 1000, false) // nothing evicted
	}
	// All are dead, in shards the next values may not touch: room again.
	for range n {
		mustAdd(t, tab, r.Uint64(), 1200, 1100, true)
	}
}

func TestForget(t *testing.T) {
	tab := New(100)
	tab.Forget(7, 1060)
	mustAdd(t, tab, 7, 1060, 1000, true)
	tab.Forget(7, 1060)
	tab.Forget(7, 1060)
	if n := tab.Len(); n != 0 {
		t.Fatalf("Len = %d", n)
	}
	mustAdd(t, tab, 7, 1060, 1000, true)
}

// TestModel compares the table with a plain map over a long random run.
func TestModel(t *testing.T) {
	type value struct {
		fp      uint64
		expires int64
	}
	r := rand.New(rand.NewPCG(3, 4))
	tab := New(1 << 20)
	model := map[value]bool{}
	var seen []value
	now, high := int64(5000), int64(5000)
	for i := range 400_000 {
		switch r.IntN(2000) {
		case 0:
			now += r.Int64N(20)
		case 1:
			now -= r.Int64N(30)
		}
		if now > high {
			high = now
			tab.Advance(now)
		}
		v := value{r.Uint64() &^ (0x3e << 58), now + r.Int64N(90) - 5} // two shards only, so that buckets fill
		if r.IntN(10) == 0 {
			v.expires = now + r.Int64N(2000)
		}
		if len(seen) > 0 && r.IntN(3) == 0 {
			v = seen[r.IntN(len(seen))]
		}
		want := v.expires > high && !model[v]
		fresh, err := tab.Add(v.fp, v.expires, now)
		if err != nil || fresh != want {
			t.Fatalf("step %d: Add(%#x, %d) at %d (high %d) = %v, %v; want %v", i, v.fp, v.expires, now, high, fresh, err, want)
		}
		if fresh {
			model[v] = true
			seen = append(seen, v)
			if r.IntN(10) == 0 {
				tab.Forget(v.fp, v.expires)
				delete(model, v)
			}
		}
	}
	tab.Advance(high + 3000)
	if tab.Len() != 0 {
		t.Errorf("Len = %d after all died", tab.Len())
	}
}

func TestOneWinner(t *testing.T) {
	tab := New(1 << 20)
	var fresh atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(5, 6)) // the same values for all
			for range 2000 {
				ok, err := tab.Add(r.Uint64(), 1060+r.Int64N(30), 1000)
				if err != nil {
					t.Error(err)
				}
				if ok {
					fresh.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if fresh.Load() != 2000 || tab.Len() != 2000 {
		t.Errorf("%d fresh and %d held, want 2000", fresh.Load(), tab.Len())
	}
}

// TestSpread shows that the bits which choose the shard do not choose the
// slot: all values of one shard spread over the whole bucket.
func TestSpread(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	b := &bucket{slots: make([]uint64, 8)}
	for range 10_000 {
		fp := uint64(0b10110)<<(64-shardBits) | r.Uint64()>>shardBits
		at, _ := b.find(fp)
		b.insert(fp, at)
	}
	const parts = 16
	var used [parts]int
	for i, fp := range b.slots {
		if fp != 0 {
			used[i*parts/len(b.slots)]++
		}
	}
	for i, n := range used {
		if n < 10_000/parts*3/4 || n > 10_000/parts*5/4 {
			t.Errorf("part %d of the bucket holds %d of 10000", i, n)
		}
	}
	if perValue := float64(len(b.slots)*8) / float64(b.n); perValue > 15.1 {
		t.Errorf("%.1f bytes a value", perValue)
	}
}
