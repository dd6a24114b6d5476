//go:build unix

// Package bench measures what Limpet costs. Its figures are lines in Go's
// benchmark format, on which nothing is asserted.
//
//	go test -bench . -benchtime 1x
//
// LIMPET_BENCH_LARGE=1 adds the sizes that take gigabytes. Times are CPU time
// of the process, garbage collection included, where the unit begins with cpu,
// and otherwise what a clock on the wall shows.
package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/internal/replay"
	"github.com/limpet-auth/limpet/store/boltstore"
	"github.com/limpet-auth/limpet/store/memstore"
	"github.com/maypok86/otter/v2"
)

const window = 60 // seconds that a nonce lives

// nonces is a memory of nonces: spend reports whether nonce was new.
type nonces interface {
	spend(nonce *[16]byte, expires, now int64) bool
	held() int
}

var memories = []struct {
	name string
	new  func(live int) nonces
}{
	{"limpet", func(live int) nonces { return &table{maphash.MakeSeed(), replay.New(2 * live)} }},
	{"map+sweep", func(int) nonces { return &sweptMap{m: map[string]int64{}} }},
	{"otter-v2", newOtter},
}

type table struct {
	seed maphash.Seed
	*replay.Table
}

func (t *table) spend(nonce *[16]byte, expires, now int64) bool {
	fresh, err := t.Add(maphash.Bytes(t.seed, nonce[:]), expires, now)
	return fresh && err == nil
}

func (t *table) held() int { return t.Len() }

// sweptMap is what a middleware usually has: one map, one lock, and every ten
// seconds a look at all of it.
type sweptMap struct {
	mu    sync.Mutex
	m     map[string]int64
	swept int64
}

func (s *sweptMap) spend(nonce *[16]byte, expires, now int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now >= s.swept+10 {
		s.swept = now
		for k, expires := range s.m {
			if expires <= now {
				delete(s.m, k)
			}
		}
	}
	if e, found := s.m[string(nonce[:])]; found && e > now {
		return false
	}
	s.m[string(nonce[:])] = expires
	return true
}

func (s *sweptMap) held() int { return len(s.m) }

type otterCache struct {
	now atomic.Int64
	c   *otter.Cache[string, struct{}]
}

func newOtter(live int) nonces {
	o := &otterCache{}
	o.c = otter.Must(&otter.Options[string, struct{}]{
		MaximumSize:      2 * live,
		ExpiryCalculator: otter.ExpiryWriting[string, struct{}](window * time.Second),
		Clock:            o,
	})
	return o
}

func (o *otterCache) NowNano() int64                      { return o.now.Load() }
func (o *otterCache) Tick(time.Duration) <-chan time.Time { return nil }
func (o *otterCache) held() int                           { return o.c.EstimatedSize() }

func (o *otterCache) spend(nonce *[16]byte, _, now int64) bool {
	if ns := now * int64(time.Second); o.now.Load() != ns {
		o.now.Store(ns)
	}
	_, set := o.c.SetIfAbsent(string(nonce[:]), struct{}{})
	return set
}

// BenchmarkReplay runs each memory on a simulated clock at a steady number of
// live nonces: one window to fill it, and half a window that is measured.
// max-B/nonce is the highest the heap stood at, with what was not yet collected.
func BenchmarkReplay(b *testing.B) {
	for _, millions := range []int{2, 16, 50} {
		if millions > 2 && os.Getenv("LIMPET_BENCH_LARGE") == "" {
			continue
		}
		for _, m := range memories {
			if millions > 2 && m.name != "limpet" {
				continue // minutes and many gigabytes
			}
			b.Run(fmt.Sprintf("%s/live=%dM", m.name, millions), func(b *testing.B) {
				for range b.N {
					runReplay(b, m.new, millions*1_000_000)
				}
			})
		}
	}
}

func runReplay(b *testing.B, newMemory func(int) nonces, live int) {
	debug.FreeOSMemory()
	before, emptyGC := heap(), gcCPU()
	m := newMemory(live)
	rate := live / window
	const start = 1_000_000 // when the first nonce was signed
	// The i-th nonce, which was signed in second start + i/rate.
	var nonce [16]byte
	spend := func(i int, now int64) bool {
		binary.LittleEndian.PutUint64(nonce[:], uint64(i)*0x9e3779b97f4a7c15)
		binary.LittleEndian.PutUint64(nonce[8:], uint64(i))
		return m.spend(&nonce, start+int64(i/rate)+window, now)
	}
	refused, missed, highest := 0, 0, before
	run := func(from, to int) (cpu, wall time.Duration) {
		began, beganCPU := time.Now(), cpuTime()
		for i := from; i < to; i++ {
			if !spend(i, start+int64(i/rate)) {
				refused++
			}
			if i%rate == 0 {
				highest = max(highest, heap())
			}
		}
		return cpuTime() - beganCPU, time.Since(began)
	}
	total := window * rate * 3 / 2
	run(0, total*2/3)
	cpu, wall := run(total*2/3, total)
	now := start + int64((total-1)/rate)

	runtime.GC()
	runtime.GC()
	used := heap() - before
	gc := gcCPU()
	for i := max(0, total-(window-1)*rate); i < total; i += 7 {
		if spend(i, now) {
			missed++
		}
	}
	report(b, map[string]float64{
		"cpu-ns/op":       each(cpu, total-total*2/3),
		"ns/op":           each(wall, total-total*2/3),
		"B/nonce":         float64(used) / float64(live),
		"max-B/nonce":     float64(highest-before) / float64(live),
		"cpu-gc-ms":       gc,
		"cpu-gc-ms-empty": emptyGC,
		"missed":          float64(missed),
		"refused":         float64(refused),
		"held/live":       float64(m.held()) / float64(live),
		"live-nonces":     float64(live),
		"window-sec":      window,
		"spend/window":    float64(rate * window),
	})
	runtime.KeepAlive(m)
}

func report(b *testing.B, figures map[string]float64) {
	for unit, v := range figures {
		b.ReportMetric(v, unit)
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// heap returns the bytes of objects on the heap, dead ones included.
func heap() int64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64())
}

// gcCPU returns the milliseconds of CPU that one full collection takes: the
// least of five, since a collection uses what is idle as well.
func gcCPU() float64 {
	s := []metrics.Sample{{Name: "/cpu/classes/gc/total:cpu-seconds"}}
	least := math.Inf(1)
	for range 5 {
		metrics.Read(s)
		before := s[0].Value.Float64()
		runtime.GC()
		metrics.Read(s)
		least = min(least, (s[0].Value.Float64()-before)*1000)
	}
	return least
}

const records = 1_000_000

func recordKey(i int) string { return fmt.Sprintf("binding/%043d", uint64(i)*0x9e3779b97f4a7c15) }

// BenchmarkMemstore: a million records of 200 bytes under keys of 51.
func BenchmarkMemstore(b *testing.B) {
	ctx := context.Background()
	for range b.N {
		debug.FreeOSMemory()
		before := heap()
		s := memstore.New(nil)
		val := make([]byte, 200)
		began := cpuTime()
		for i := range records {
			if err := s.Put(ctx, recordKey(i), val, time.Hour); err != nil {
				b.Fatal(err)
			}
		}
		put := cpuTime() - began
		runtime.GC()
		runtime.GC()
		used := heap() - before
		report(b, map[string]float64{
			"B/record":      float64(used) / records,
			"cpu-gc-ms":     gcCPU(),
			"cpu-ns/put":    each(put, records),
			"cpu-ns/get":    each(gets(b, s), records),
			"cpu-ns/spend":  each(spends(b, s, 1), records),
			"cpu-ns/spend2": each(spends(b, s, 2), records),
		})
		runtime.KeepAlive(s)
	}
}

// BenchmarkBoltstore: the same on disk, put by 256 goroutines, then opened
// anew after a close in order.
func BenchmarkBoltstore(b *testing.B) {
	ctx := context.Background()
	for range b.N {
		dir := b.TempDir()
		path := filepath.Join(dir, "store")
		s, err := boltstore.Open(path, nil)
		if err != nil {
			b.Fatal(err)
		}
		val := make([]byte, 200)
		began := time.Now()
		var next atomic.Int64
		var wg sync.WaitGroup
		for range 256 {
			wg.Go(func() {
				for i := int(next.Add(1)) - 1; i < records; i = int(next.Add(1)) - 1 {
					if err := s.Put(ctx, recordKey(i), val, time.Hour); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		put := time.Since(began)
		alone := time.Now()
		for i := range 200 {
			if err := s.Put(ctx, recordKey(i), val, time.Hour); err != nil {
				b.Fatal(err)
			}
		}
		putAlone := time.Since(alone)
		get, spend1, spend2 := gets(b, s), spends(b, s, 1), spends(b, s, 2)
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		began = time.Now()
		if s, err = boltstore.Open(path, nil); err != nil {
			b.Fatal(err)
		}
		opened := time.Since(began)
		report(b, map[string]float64{
			"B/record":      float64(info.Size()) / records,
			"ns/op":         each(put, records),
			"us/put-alone":  each(putAlone, 200) / 1000,
			"cpu-ns/get":    each(get, records),
			"cpu-ns/spend":  each(spend1, records),
			"cpu-ns/spend2": each(spend2, records),
			"ms/open":       float64(opened.Microseconds()) / 1000,
		})
		s.Close()
	}
}

func each(d time.Duration, n int) float64 { return float64(d.Nanoseconds()) / float64(n) }

func gets(b *testing.B, s interface {
	Get(context.Context, string) ([]byte, bool, error)
}) time.Duration {
	keys := make([]string, 1<<16)
	for i := range keys {
		keys[i] = recordKey(i * 15)
	}
	began := cpuTime()
	for i := range records {
		if _, found, err := s.Get(context.Background(), keys[i%len(keys)]); err != nil || !found {
			b.Fatal(found, err)
		}
	}
	return cpuTime() - began
}

// spends has n goroutines spend a million values, of 90 seconds, between them.
func spends(b *testing.B, s interface {
	Spend(context.Context, []byte, time.Time) (bool, error)
}, n int) time.Duration {
	began := cpuTime()
	var wg sync.WaitGroup
	for g := range n {
		wg.Go(func() {
			id := fmt.Appendf(nil, "%16d%16d", n, g)
			for i := range records / n {
				binary.BigEndian.PutUint64(id, uint64(i))
				if fresh, err := s.Spend(context.Background(), id, time.Now().Add(90*time.Second)); err != nil || !fresh {
					b.Error(fresh, err)
					return
				}
			}
		})
	}
	wg.Wait()
	return cpuTime() - began
}
