package boltstore

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
)

const (
	// shortLife is how far ahead, in seconds, a value may expire to go to the
	// journal. It is also how long one of the journal's files is written to.
	shortLife = 120
	// markLead is by how many seconds more than needed the watermark is
	// raised: the price is one fsync in so many seconds, and after power loss
	// so many more seconds of values that cannot be judged.
	markLead = 10
)

// Spend implements limpet.Spender. It gives an error for an id that may have
// been spent before a power loss, see the package's documentation, and for an
// expiry more than 24 hours ahead. If the clock is set back, values that had
// expired on the old time stay refused; if it was far ahead, so does everything
// until it catches up or the store is opened anew.
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
	exp, sec, fp := expires.Add(time.Second-1).Unix(), now.Unix(), s.fingerprint(id)
	if exp <= s.floor {
		return false, fmt.Errorf("limpet: boltstore: what was spent before the last crash cannot be known for values that expire up to %v",
			time.Unix(s.floor, 0).UTC())
	}
	fresh, err = s.spent.Add(fp, exp, sec)
	if err != nil {
		return false, fmt.Errorf("limpet: boltstore: %w", err)
	}
	if !fresh {
		return false, nil
	}
	// The value is ours now. What cannot be recorded was not spent.
	if err := s.record(ctx, fp, exp, sec); err != nil {
		s.spent.Forget(fp, exp)
		return false, err
	}
	return true, nil
}

func (s *Store) record(ctx context.Context, fp uint64, exp, now int64) error {
	if exp > now+shortLife {
		return s.commit(ctx, "", func(tx *bolt.Tx) error {
			return tx.Bucket(bucketSpent).Put(spentKey(fp, exp), nil)
		})
	}
	if exp > s.mark.Load() {
		if err := s.raiseMark(ctx, exp); err != nil {
			return err
		}
	}
	return s.journal.append(fp, exp, now)
}

func spentKey(fp uint64, exp int64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(exp)), fp)
}

// raiseMark makes sure that the watermark on the medium is at exp or beyond.
func (s *Store) raiseMark(ctx context.Context, exp int64) error {
	select {
	case s.raising <- struct{}{}:
		defer func() { <-s.raising }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if exp <= s.mark.Load() { // somebody else was here
		return nil
	}
	mark := exp + markLead
	err := s.commit(ctx, "", func(tx *bolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(metaMark, binary.BigEndian.AppendUint64(nil, uint64(mark)))
	})
	if err == nil {
		s.mark.Store(mark)
	}
	return err
}
