package boltstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"sync/atomic"
	"time"

	"github.com/limpet-auth/limpet/internal/replay"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Options bound a Store. The zero value means the defaults.
type Options struct {
	// MaxSpent is the number of spent values kept at a time. The default is
	// 16,777,216, enough for 180,000 a second that live 90 seconds. One costs
	// up to 16 bytes of memory and 32 of disk.
	MaxSpent int

	// MaxCached is the number of records kept in memory as well, for reading.
	// The default is 65,536. Records of more than 1 KiB are not kept there.
	MaxCached int
}

const (
	maxKey   = 256
	maxValue = 64 << 10
)

// Store is a limpet.Store, limpet.Lister, limpet.Spender and limpet.Versioner in a file.
// Its methods fail after Close. The number of records is bounded by the disk: one
// takes about 200 bytes besides twice its key and once its value.
//
// When a context ends while a call waits for the disk, the call returns the
// context's error and what it asked for may still happen.
type Store struct {
	db      *bolt.DB
	cache   *cache
	key     []byte // of the fingerprints
	spent   *replay.Table
	journal *journal
	floor   int64        // values that expire up to here cannot be judged
	mark    atomic.Int64 // the watermark: no short-lived value that was admitted expires after it
	raising chan struct{}

	ops    chan op
	closed atomic.Bool
	quit   chan struct{} // closed by Close
	done   chan struct{} // closed when the writer has ended
	// broken is set when the database has failed in a way that leaves its
	// state unknown; there are no writes from then on.
	broken error
}

var (
	bucketMeta    = []byte("meta")
	bucketRecords = []byte("records") // key: header, value
	bucketExpiry  = []byte("expiry")  // when a record expires, key: nothing
	bucketSpent   = []byte("spent")   // when a long-lived value expires, fingerprint: nothing
)

var (
	errClosed  = errors.New("limpet: boltstore: the store is closed")
	errDamaged = errors.New("limpet: boltstore: a record is damaged")
)

// A record's value has a header: when it expires, in nanoseconds of Unix time,
// and a checksum over key, expiry and value.
const headerSize = 12

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeRecord(key string, val []byte, expires int64) []byte {
	rec := make([]byte, headerSize+len(val))
	binary.BigEndian.PutUint64(rec, uint64(expires))
	copy(rec[headerSize:], val)
	binary.BigEndian.PutUint32(rec[8:], checksum([]byte(key), rec))
	return rec
}

func checksum(key, rec []byte) uint32 {
	sum := crc32.Checksum(key, castagnoli)
	sum = crc32.Update(sum, castagnoli, rec[:8])
	return crc32.Update(sum, castagnoli, rec[headerSize:])
}

// decodeRecord checks rec. val is a part of it.
func decodeRecord(key, rec []byte) (val []byte, expires int64, err error) {
	if len(rec) < headerSize || binary.BigEndian.Uint32(rec[8:]) != checksum(key, rec) {
		return nil, 0, errDamaged
	}
	return rec[headerSize:], int64(binary.BigEndian.Uint64(rec)), nil
}

func expiryKey(expires int64, key []byte) []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(key)), uint64(expires)), key...)
}

// Version implements limpet.Versioner.
func (s *Store) Version(of any, key string) *atomic.Uint64 {
	if of != any(s) {
		return nil
	}
	return s.cache.version(key)
}

// Get implements limpet.Store.
func (s *Store) Get(ctx context.Context, key string) (val []byte, found bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	if s.closed.Load() {
		return nil, false, errClosed
	}
	if key == "" || len(key) > maxKey {
		return nil, false, nil
	}
	r, found, version := s.cache.get(key)
	if !found {
		if r, found, err = s.read(key); found {
			s.cache.put(key, r, version)
		}
	}
	if err != nil || !found || r.expires <= time.Now().UnixNano() {
		return nil, false, err
	}
	return r.val, true, nil
}

// read reads a record, live or not, from the database.
func (s *Store) read(key string) (r cached, found bool, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		k := []byte(key)
		rec := tx.Bucket(bucketRecords).Get(k)
		if rec == nil {
			return nil
		}
		val, expires, err := decodeRecord(k, rec)
		if err == nil {
			r, found = cached{append([]byte{}, val...), expires}, true
		}
		return err
	})
	if err != nil {
		return cached{}, false, err
	}
	return r, found, nil
}

// view runs f in a read transaction.
func (s *Store) view(f func(*bolt.Tx) error) error {
	return guard(func() error {
		err := s.db.View(f)
		if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
			return errClosed
		}
		return err
	})
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
	switch {
	case key == "" || len(key) > maxKey:
		return false, fmt.Errorf("limpet: boltstore: a key of %d bytes; 1 to %d are allowed", len(key), maxKey)
	case len(val) > maxValue:
		return false, fmt.Errorf("limpet: boltstore: a value of %d bytes; at most %d are allowed", len(val), maxValue)
	case ttl <= 0:
		return false, errors.New("limpet: boltstore: a lifetime that is not positive")
	}
	now := time.Now().UnixNano()
	expires := now + min(int64(ttl), math.MaxInt64-now)
	rec := encodeRecord(key, val, expires)
	var set bool
	err := s.commit(ctx, key, func(tx *bolt.Tx) error {
		k, records, expiry := []byte(key), tx.Bucket(bucketRecords), tx.Bucket(bucketExpiry)
		set = true
		if old := records.Get(k); old != nil {
			_, oldExpires, err := decodeRecord(k, old)
			if err != nil && !replace {
				return err
			}
			if set = replace || oldExpires <= time.Now().UnixNano(); !set {
				return nil
			}
			// A damaged record's trace is cleared when its time comes.
			if err := expiry.Delete(expiryKey(oldExpires, k)); err != nil {
				return err
			}
		}
		if err := records.Put(k, rec); err != nil {
			return err
		}
		expiry.FillPercent = 0.9 // it grows at its end
		return expiry.Put(expiryKey(expires, k), nil)
	})
	if err != nil {
		return false, err
	}
	return set, nil
}

// Delete implements limpet.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	return s.commit(ctx, key, func(tx *bolt.Tx) error {
		k, records := []byte(key), tx.Bucket(bucketRecords)
		old := records.Get(k)
		if old == nil {
			return nil
		}
		_, expires, _ := decodeRecord(k, old) // a damaged one goes as well
		if err := tx.Bucket(bucketExpiry).Delete(expiryKey(expires, k)); err != nil {
			return err
		}
		return records.Delete(k)
	})
}

// List implements limpet.Lister. It reads a few hundred records at a time, each
// time from a newer state of the store.
func (s *Store) List(ctx context.Context, prefix string, yield func(key string, val []byte) bool) error {
	type pair struct {
		key string
		val []byte
	}
	const pageSize = 256
	from := []byte(prefix)
	for from != nil {
		if err := ctx.Err(); err != nil {
			return err
		}
		var page []pair
		err := s.view(func(tx *bolt.Tx) error {
			now := time.Now().UnixNano()
			c := tx.Bucket(bucketRecords).Cursor()
			k, rec := c.Seek(from)
			for n := 0; n < pageSize; n++ {
				if !bytes.HasPrefix(k, []byte(prefix)) || k == nil {
					from = nil
					return nil
				}
				val, expires, err := decodeRecord(k, rec)
				if err != nil {
					return err
				}
				if expires > now {
					page = append(page, pair{string(k), append([]byte{}, val...)})
				}
				k, rec = c.Next()
			}
			from = append([]byte(nil), k...)
			return nil
		})
		if err != nil {
			return err
		}
		for _, p := range page {
			if !yield(p.key, p.val) {
				return nil
			}
		}
	}
	return nil
}

// fingerprint is a keyed hash that stays the same from one start to the next.
func (s *Store) fingerprint(id []byte) uint64 {
	buf := make([]byte, 0, 160) // on the stack
	sum := sha256.Sum256(append(append(buf, s.key...), id...))
	return binary.BigEndian.Uint64(sum[:])
}
