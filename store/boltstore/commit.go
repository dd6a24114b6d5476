package boltstore

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
)

const (
	maxBatch   = 1024 // operations in one commit
	maxCleared = 256  // expired records removed by one commit, at most
)

// op is a piece of a commit, and where to say what became of it. apply may run
// after the caller has gone.
type op struct {
	key   string // whose record it changes, if not empty
	apply func(*bolt.Tx) error
	reply chan<- error // has room for one
}

// commit has the writer apply f, which changes the record of key or, if that is
// empty, none, and waits until that is durable.
func (s *Store) commit(ctx context.Context, key string, f func(*bolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	reply := make(chan error, 1)
	select {
	case s.ops <- op{key, f, reply}:
	case <-s.quit:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write is the one writer. It commits together all that came while it was busy
// with the commit before, so nobody waits for company.
func (s *Store) write() {
	defer close(s.done)
	idle := time.NewTimer(0) // when to clear up though nobody writes
	defer idle.Stop()
	for {
		var batch []op
		select {
		case o := <-s.ops:
			batch = append(batch, o)
		case <-idle.C:
		case <-s.quit:
			return
		}
		for more := len(batch) > 0; more && len(batch) < maxBatch; {
			select {
			case o := <-s.ops:
				batch = append(batch, o)
			default:
				more = false
			}
		}
		cleared, err := s.writeBatch(batch)
		for i, o := range batch {
			opErr := err
			if err != nil && len(batch) > 1 { // one must not spoil it for the others
				_, opErr = s.writeBatch(batch[i : i+1])
			}
			if o.key != "" {
				s.cache.drop(o.key) // whatever became of it
			}
			o.reply <- opErr
		}
		if cleared == maxCleared && err == nil {
			idle.Reset(50 * time.Millisecond)
		} else {
			idle.Reset(time.Minute)
		}
	}
}

// writeBatch applies batch in one transaction: all of it or nothing.
func (s *Store) writeBatch(batch []op) (cleared int, err error) {
	if s.broken != nil {
		return 0, s.broken
	}
	finished := false
	err = guard(func() error {
		tx, err := s.db.Begin(true)
		if err != nil {
			finished = true
			return err
		}
		err = func() error {
			for _, o := range batch {
				if err := o.apply(tx); err != nil {
					return err
				}
			}
			cleared, err = clearExpired(tx, time.Now())
			return err
		}()
		if err != nil || len(batch) == 0 && cleared == 0 {
			tx.Rollback()
		} else {
			err = tx.Commit()
		}
		finished = true
		return err
	})
	if !finished { // a panic: the database's locks and pages are in no known state
		s.broken = err
	}
	if err != nil {
		return 0, fmt.Errorf("limpet: boltstore: writing: %w", err)
	}
	return cleared, nil
}

// clearExpired removes a bounded number of what has expired.
func clearExpired(tx *bolt.Tx, now time.Time) (n int, err error) {
	records, expiry, spent := tx.Bucket(bucketRecords), tx.Bucket(bucketExpiry), tx.Bucket(bucketSpent)
	for _, k := range expiredKeys(expiry, now.UnixNano(), maxCleared) {
		key := k[8:]
		// The record is newer than its trace only if the trace was left over.
		if rec := records.Get(key); len(rec) >= 8 && string(rec[:8]) == string(k[:8]) {
			if err := records.Delete(key); err != nil {
				return n, err
			}
		}
		if err := expiry.Delete(k); err != nil {
			return n, err
		}
		n++
	}
	// Spent values stay an hour longer, in case the clock is set back.
	for _, k := range expiredKeys(spent, now.Unix()-3600, maxCleared-n) {
		if err := spent.Delete(k); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// expiredKeys returns copies of the first keys of b, at most n, that start with
// a time up to now.
func expiredKeys(b *bolt.Bucket, now int64, n int) (keys [][]byte) {
	c := b.Cursor()
	for k, _ := c.First(); len(k) >= 8 && int64(binary.BigEndian.Uint64(k)) <= now && len(keys) < n; k, _ = c.Next() {
		keys = append(keys, append([]byte(nil), k...))
	}
	return keys
}

// guard turns a panic of the database, or a fault when its file has shrunk
// under the mapping, into an error: a damaged file must not stop the program.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("limpet: boltstore: the file is damaged: %v", r)
		}
	}()
	return f()
}
