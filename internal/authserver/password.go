package authserver

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"
)

// The cost of a password: Argon2id (RFC 9106) with 19 MiB in two passes, which
// is OWASP's recommendation for a server that many log in to at once.
const (
	argonTime    = 2
	argonMemory  = 19 << 10 // KiB
	argonThreads = 1

	hashSlots    = 4  // at once: 76 MiB
	hashWaiting  = 64 // in the queue
	hashPatience = 5 * time.Second

	saltSize, hashSize = 16, 32
)

// passwordVersion is the first byte of a record: version, salt, hash. Another
// cost takes the next number.
const passwordVersion = 1

var errBusy = errors.New("too many logins at once")

// passwords hashes passwords, a few at a time.
type passwords struct {
	slots   chan struct{}
	waiting *atomic.Int32
}

func newPasswords() passwords {
	return passwords{make(chan struct{}, hashSlots), new(atomic.Int32)}
}

// hash makes the record of a password.
func (p passwords) hash(ctx context.Context, password string) ([]byte, error) {
	rec := make([]byte, 1+saltSize, 1+saltSize+hashSize)
	rec[0] = passwordVersion
	rand.Read(rec[1:]) // never fails
	sum, err := p.argon2id(ctx, password, rec[1:])
	return append(rec, sum...), err
}

// match reports whether password is the one of a record. A record that is no
// record takes as long and matches nothing.
func (p passwords) match(ctx context.Context, password string, rec []byte) (bool, error) {
	known := len(rec) == 1+saltSize+hashSize && rec[0] == passwordVersion
	if !known {
		rec = make([]byte, 1+saltSize+hashSize)
	}
	sum, err := p.argon2id(ctx, password, rec[1:1+saltSize])
	if err != nil {
		return false, err
	}
	return subtle.ConstantTimeCompare(sum, rec[1+saltSize:]) == 1 && known, nil
}

func (p passwords) argon2id(ctx context.Context, password string, salt []byte) ([]byte, error) {
	if p.waiting.Add(1) > hashWaiting {
		p.waiting.Add(-1)
		return nil, errBusy
	}
	patience := time.NewTimer(hashPatience)
	defer patience.Stop()
	select {
	case p.slots <- struct{}{}:
		p.waiting.Add(-1)
	case <-patience.C:
		p.waiting.Add(-1)
		return nil, errBusy
	case <-ctx.Done():
		p.waiting.Add(-1)
		return nil, ctx.Err()
	}
	defer func() { <-p.slots }()
	return argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonThreads, hashSize), nil
}
