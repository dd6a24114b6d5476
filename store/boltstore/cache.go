package boltstore

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// cache keeps records that were read, decoded, since a read of the database
// costs some microseconds. It is bounded: at most a given number of records, of at
// most maxCachedValue bytes each.
//
// It never answers with what a finished commit has changed. The writer drops
// the keys of a commit after it is done and before it is acknowledged. A reader
// notes the key's version before it turns to the database, and what it found there
// is kept only if that is still the version.
type cache struct {
	seed   maphash.Seed
	max    int // records in a shard
	shards [64]cacheShard

	versions [1 << 16]atomic.Uint64
}

type cacheShard struct {
	mu      sync.RWMutex
	records map[string]cached
}

type cached struct {
	val     []byte
	expires int64
}

const maxCachedValue = 1024

func newCache(max int) *cache {
	c := &cache{seed: maphash.MakeSeed()}
	c.max = max/len(c.shards) + 1
	for i := range c.shards {
		c.shards[i].records = make(map[string]cached)
	}
	return c
}

func (c *cache) shard(key string) *cacheShard {
	return &c.shards[maphash.String(c.seed, key)%uint64(len(c.shards))]
}

// version returns the number that grows whenever key, or a few others, is dropped.
func (c *cache) version(key string) *atomic.Uint64 {
	return &c.versions[maphash.String(c.seed, key)>>8%uint64(len(c.versions))]
}

func (c *cache) get(key string) (r cached, found bool, version uint64) {
	s := c.shard(key)
	s.mu.RLock()
	defer s.mu.RUnlock()
	r, found = s.records[key]
	return r, found, c.version(key).Load()
}

func (c *cache) put(key string, r cached, version uint64) {
	if len(r.val) > maxCachedValue {
		return
	}
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.version(key).Load() != version {
		return
	}
	if len(s.records) >= c.max {
		n, now := 0, time.Now().UnixNano()
		for k, old := range s.records { // begins anywhere
			// One goes, and of a few more those that are dead.
			if n == 0 || old.expires <= now {
				delete(s.records, k)
			}
			if n++; n == 4 {
				break
			}
		}
	}
	s.records[key] = r
}

func (c *cache) drop(key string) {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.records, key)
	c.version(key).Add(1)
}

// outdate changes all versions.
func (c *cache) outdate() {
	for i := range c.versions {
		c.versions[i].Add(1)
	}
}
