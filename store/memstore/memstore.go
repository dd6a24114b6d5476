// Package memstore keeps a guard's records in memory.
//
// Nothing survives the process. After a restart every binding is forgotten,
// while tokens that outlive the process (a signed cookie, a JWT, a session in
// the app's own database) are still good for the app. In mode require they are
// refused until the user logs in again. In mode prefer they look like sessions
// that were never bound and pass at level none: a stolen one works again. Use
// memstore where tokens die with the process, in mode require, or for tests;
// otherwise use a store that lasts.
package memstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"sync/atomic"
	"time"

	"github.com/limpet-auth/limpet/internal/replay"
)

// Options bound a Store. The zero value means the defaults.
type Options struct {
	// MaxRecords is the number of records kept at a time. The default is
	// 8,388,608. A record costs about 70 bytes besides its key and value, and a
	// third more while others are replaced or expire.
	MaxRecords int

	// MaxSpent is the number of spent values kept at a time. The default is
	// 16,777,216, enough for 180,000 a second that live 90 seconds. One costs
	// up to 16 bytes.
	MaxSpent int
}

const (
	maxKey   = 256
	maxValue = 64 << 10
)

var (
	errFull = errors.New("limpet: memstore: full of records")
	// Of two million keys, two share their hash in one of ten million stores.
	errHash = errors.New("limpet: memstore: the key's hash is that of another")
)

// Store is a limpet.Store, limpet.Lister, limpet.Spender and limpet.Versioner. It holds no
// goroutine and needs no closing.
//
// A Put or Add that would exceed Options.MaxRecords is an error, as is a Spend
// beyond Options.MaxSpent; nothing is ever evicted. Lifetimes of records run on
// the monotonic clock, so setting the clock changes none of them.
type Store struct {
	seed   maphash.Seed
	start  time.Time
	max    int64
	held   atomic.Int64
	swept  atomic.Int64 // when a full store was last swept, as since does
	shards [256]shard
	spent  *replay.Table

	versions [1 << 16]atomic.Uint64
}

// New returns an empty store. opts may be nil.
func New(opts *Options) *Store {
	o := Options{MaxRecords: 1 << 23, MaxSpent: 1 << 24}
	if opts != nil && opts.MaxRecords > 0 {
		o.MaxRecords = opts.MaxRecords
	}
	if opts != nil && opts.MaxSpent > 0 {
		o.MaxSpent = opts.MaxSpent
	}
	s := &Store{
		seed:  maphash.MakeSeed(),
		start: time.Now(),
		max:   int64(o.MaxRecords),
		spent: replay.New(o.MaxSpent),
	}
	s.swept.Store(-int64(time.Second))
	for i := range s.shards {
		s.shards[i].index = make(map[uint64]place)
	}
	return s
}

// since is the time since the store was made, on the monotonic clock.
func (s *Store) since() time.Duration { return time.Since(s.start) }

func (s *Store) shard(key string) (sh *shard, hash uint64) {
	hash = maphash.String(s.seed, key)
	return &s.shards[hash%uint64(len(s.shards))], hash
}

// Version implements limpet.Versioner.
func (s *Store) Version(of any, key string) *atomic.Uint64 {
	if of != any(s) {
		return nil
	}
	return s.version(maphash.String(s.seed, key))
}

// version returns the version of a record by the bits of its hash that have not chosen
// the shard.
func (s *Store) version(hash uint64) *atomic.Uint64 {
	return &s.versions[hash>>8%uint64(len(s.versions))]
}

// Get implements limpet.Store. It neither copies nor allocates.
func (s *Store) Get(ctx context.Context, key string) (val []byte, found bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	sh, hash := s.shard(key)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	p, found := sh.index[hash]
	if !found || p.expires <= s.since() {
		return nil, false, nil
	}
	k, val := p.in(sh.pages)
	if string(k) != key {
		return nil, false, nil
	}
	return val, true, nil
}

// Put implements limpet.Store.
func (s *Store) Put(ctx context.Context, key string, val []byte, ttl time.Duration) error {
	_, err := s.set(ctx, key, val, ttl, true)
	return err
}

// Add implements limpet.Store.
func (s *Store) Add(ctx context.Context, key string, val []byte, ttl time.Duration) (added bool, err error) {
	return s.set(ctx, key, val, ttl, false)
}

func (s *Store) set(ctx context.Context, key string, val []byte, ttl time.Duration, replace bool) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	switch {
	case key == "" || len(key) > maxKey:
		return false, fmt.Errorf("limpet: memstore: a key of %d bytes; 1 to %d are allowed", len(key), maxKey)
	case len(val) > maxValue:
		return false, fmt.Errorf("limpet: memstore: a value of %d bytes; at most %d are allowed", len(val), maxValue)
	case ttl <= 0:
		return false, errors.New("limpet: memstore: a lifetime that is not positive")
	}
	now := s.since()
	expires := now + min(ttl, math.MaxInt64-now)
	done, err := s.trySet(key, val, expires, now, replace)
	// Dead records in other shards may be what fills the store. Look once a
	// second, a shard at a time.
	if last := s.swept.Load(); err == errFull && int64(now)-last >= int64(time.Second) && s.swept.CompareAndSwap(last, int64(now)) {
		for i := range s.shards {
			sh := &s.shards[i]
			sh.mu.Lock()
			s.expire(sh, now, len(sh.index))
			sh.mu.Unlock()
		}
		done, err = s.trySet(key, val, expires, now, replace)
	}
	return done, err
}

func (s *Store) trySet(key string, val []byte, expires, now time.Duration, replace bool) (done bool, err error) {
	sh, hash := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	// Each write looks at a few others, so that the dead never make up more
	// than a small part of the store.
	s.expire(sh, now, 8)
	p, found := sh.index[hash]
	if found && p.expires > now {
		if k, _ := p.in(sh.pages); string(k) != key {
			return false, errHash
		}
		if !replace {
			return false, nil
		}
	}
	if !found && s.held.Add(1) > s.max {
		s.held.Add(-1)
		return false, errFull
	}
	sh.put(hash, key, val, expires)
	s.version(hash).Add(1)
	return true, nil
}

// expire looks at n records of sh, which is locked, and removes those that are
// dead. The iteration starts at random.
func (s *Store) expire(sh *shard, now time.Duration, n int) {
	for hash, p := range sh.index {
		if n--; n < 0 {
			return
		}
		if p.expires <= now {
			sh.remove(hash)
			s.held.Add(-1)
		}
	}
}

// Delete implements limpet.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	sh, hash := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	p, found := sh.index[hash]
	if !found {
		return nil
	}
	if k, _ := p.in(sh.pages); string(k) == key {
		sh.remove(hash)
		s.version(hash).Add(1)
		s.held.Add(-1)
	}
	return nil
}

// List implements limpet.Lister. It copies the keys of one shard at a time.
func (s *Store) List(ctx context.Context, prefix string, yield func(key string, val []byte) bool) error {
	type pair struct {
		key string
		val []byte
	}
	var found []pair
	start := []byte(prefix)
	for i := range s.shards {
		if err := ctx.Err(); err != nil {
			return err
		}
		sh, now := &s.shards[i], s.since()
		found = found[:0]
		sh.mu.RLock()
		for _, p := range sh.index {
			if k, val := p.in(sh.pages); p.expires > now && bytes.HasPrefix(k, start) {
				found = append(found, pair{string(k), val})
			}
		}
		sh.mu.RUnlock()
		for _, p := range found {
			if !yield(p.key, p.val) {
				return nil
			}
		}
	}
	return nil
}

// Spend implements limpet.Spender. An expiry more than 24 hours ahead is an
// error. If the clock is set back, values that had expired on the old time
// stay refused; if it was far ahead, so does everything until it catches up.
func (s *Store) Spend(ctx context.Context, id []byte, expires time.Time) (fresh bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	now := time.Now()
	if !expires.After(now) {
		return false, nil
	}
	// Rounded up to a second: the same expires always gives the same bucket,
	// and the exact comparison is above.
	second := expires.Add(time.Second - 1).Unix()
	fresh, err = s.spent.Add(maphash.Bytes(s.seed, id), second, now.Unix())
	if err != nil {
		return false, fmt.Errorf("limpet: memstore: %w", err)
	}
	return fresh, nil
}
