// Package replay remembers values that may be used once, until they expire.
//
// A value is known by a 64-bit fingerprint and the second it expires. Both come
// with it each time, so one look into one bucket decides. Fingerprints are the
// output of a keyed 64-bit hash: the table takes them as uniform. At a million
// values a second, about one honest value in 10^13 meets a fingerprint equal to
// its own and is refused.
//
// The tables hold no pointers and a bucket is dropped whole, so that neither
// garbage collection nor expiry grows with the number of values.
package replay

import (
	"errors"
	"math/bits"
	"sync"
	"sync/atomic"
)

// MaxHorizon is how far ahead an expiry may lie, in seconds.
const MaxHorizon = 24 * 60 * 60

var (
	// ErrFull means that the table holds as many live values as it may.
	ErrFull = errors.New("memory of spent values is full")
	// ErrHorizon means that an expiry lies further ahead than MaxHorizon.
	ErrHorizon = errors.New("expiry of a value to spend is too far ahead")
)

// Table is a memory of spent values. It is safe for concurrent use.
type Table struct {
	max    int64
	held   atomic.Int64
	swept  atomic.Int64 // the latest second at which all shards were swept
	shards [1 << shardBits]shard
}

const shardBits = 5

type shard struct {
	mu  sync.Mutex
	now int64 // the latest second seen; never goes back
	// A bucket holds what expires in one second: near[second modulo its length]
	// or, where that place is taken, far[second]. So the usual values, which die
	// within two minutes, cost the collector one object a bucket, without a
	// pointer in it.
	near [128]bucket
	far  map[int64]*bucket
	// A new bucket is made for as many values as the one that died last, in the
	// memory that it leaves. So a steady flow neither grows tables nor makes
	// garbage.
	last  int
	spare []uint64
}

// New returns an empty table for at most maxEntries values.
func New(maxEntries int) *Table {
	return &Table{max: int64(maxEntries)}
}

// Len returns the number of values held, dead ones not yet dropped included.
func (t *Table) Len() int { return int(t.held.Load()) }

// Add remembers fp until the Unix second expires and reports whether it was
// new. A value is never new when expires is at or before now, or before any
// now seen earlier: its bucket may be gone, so a clock set back must not let
// it in again. An error is ErrFull or ErrHorizon and changes nothing.
func (t *Table) Add(fp uint64, expires, now int64) (fresh bool, err error) {
	fresh, err = t.add(fp, expires, now)
	// What fills the table may be dead values in shards that nobody has
	// touched since. Look once a second.
	if last := t.swept.Load(); err == ErrFull && now > last && t.swept.CompareAndSwap(last, now) {
		t.Advance(now)
		fresh, err = t.add(fp, expires, now)
	}
	return fresh, err
}

func (t *Table) add(fp uint64, expires, now int64) (bool, error) {
	s, fp := t.shard(fp)
	s.mu.Lock()
	defer s.mu.Unlock()
	t.advance(s, now)
	if expires <= s.now {
		return false, nil
	}
	if expires-s.now > MaxHorizon {
		return false, ErrHorizon
	}
	b, at := s.bucket(expires), 0
	if b != nil {
		var found bool
		if at, found = b.find(fp); found {
			return false, nil
		}
	}
	if t.held.Add(1) > t.max {
		t.held.Add(-1)
		return false, ErrFull
	}
	if b == nil {
		b = s.newBucket(expires)
		at, _ = b.find(fp)
	}
	b.insert(fp, at)
	return true, nil
}

// Forget takes back an Add that returned true.
func (t *Table) Forget(fp uint64, expires int64) {
	s, fp := t.shard(fp)
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.bucket(expires)
	if b == nil {
		return
	}
	if i, found := b.find(fp); found {
		b.remove(i)
		t.held.Add(-1)
	}
}

// Advance tells every shard the time and drops what has died.
func (t *Table) Advance(now int64) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		t.advance(s, now)
		s.mu.Unlock()
	}
}

// shard returns the shard of fp, chosen by its top bits, and fp as it is
// kept: 0 marks a free slot.
func (t *Table) shard(fp uint64) (*shard, uint64) {
	return &t.shards[fp>>(64-shardBits)], max(fp, 1)
}

// bucket returns the bucket of a second, or nil.
func (s *shard) bucket(second int64) *bucket {
	if b := &s.near[uint64(second)%uint64(len(s.near))]; b.second == second && b.slots != nil {
		return b
	}
	return s.far[second]
}

func (s *shard) newBucket(second int64) *bucket {
	b := &s.near[uint64(second)%uint64(len(s.near))]
	if b.slots != nil {
		if s.far == nil {
			s.far = make(map[int64]*bucket)
		}
		b = new(bucket)
		s.far[second] = b
	}
	*b = bucket{second: second, slots: s.room(8 + s.last*4/3)}
	return b
}

// room returns n free slots.
func (s *shard) room(n int) []uint64 {
	if spare := s.spare; len(spare) >= n && len(spare) <= 2*n {
		s.spare = nil
		clear(spare)
		return spare
	}
	return make([]uint64, n)
}

// retire takes over from a bucket that has died.
func (s *shard) retire(b *bucket) {
	s.last, s.spare = b.n, b.slots
}

func (t *Table) advance(s *shard, now int64) {
	if now <= s.now {
		return
	}
	last := s.now
	s.now = now
	for i := range s.near {
		if b := &s.near[i]; b.slots != nil && b.second <= now {
			t.held.Add(-int64(b.n))
			s.retire(b)
			*b = bucket{}
		}
	}
	if now-last > int64(len(s.far)) {
		for second := range s.far {
			t.dropFar(s, second)
		}
		return
	}
	for second := last + 1; second <= now; second++ {
		t.dropFar(s, second)
	}
}

func (t *Table) dropFar(s *shard, second int64) {
	if b := s.far[second]; b != nil && second <= s.now {
		t.held.Add(-int64(b.n))
		delete(s.far, second)
	}
}

// bucket is an open-addressing table with linear probing.
type bucket struct {
	second int64 // at which all it holds expires
	n      int
	slots  []uint64 // 0 is free; at least a fifth is
}

// home maps the bits of fp that did not choose the shard onto n slots.
func home(fp uint64, n int) int {
	hi, _ := bits.Mul64(fp<<shardBits, uint64(n))
	return int(hi)
}

// find returns the slot that holds fp, or else the slot where it belongs.
func (b *bucket) find(fp uint64) (i int, found bool) {
	for i = home(fp, len(b.slots)); b.slots[i] != 0; {
		if b.slots[i] == fp {
			return i, true
		}
		if i++; i == len(b.slots) {
			i = 0
		}
	}
	return i, false
}

// insert adds fp, which belongs in slot at, where find did not see it. Growing
// by half, and not to a power of two, keeps between 10 and 15 bytes a value.
func (b *bucket) insert(fp uint64, at int) {
	if (b.n+1)*5 > len(b.slots)*4 {
		old := b.slots
		b.slots = make([]uint64, len(old)*3/2)
		for _, f := range old {
			if f != 0 {
				i, _ := b.find(f)
				b.slots[i] = f
			}
		}
		at, _ = b.find(fp)
	}
	b.slots[at] = fp
	b.n++
}

// remove frees slot i and moves up those behind it that it had pushed away.
func (b *bucket) remove(i int) {
	n := len(b.slots)
	for j := (i + 1) % n; b.slots[j] != 0; j = (j + 1) % n {
		if h := home(b.slots[j], n); (j-h+n)%n >= (j-i+n)%n {
			b.slots[i] = b.slots[j]
			i = j
		}
	}
	b.slots[i] = 0
	b.n--
}
