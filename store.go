package limpet

import (
	"context"
	"sync/atomic"
	"time"
)

// Store keeps a guard's records: bindings, ephemeral keys and, where it offers
// nothing better, spent nonces. It knows nothing of their meaning: bytes in,
// bytes out. Keys are printable ASCII of at most 256 bytes; values are at most
// 64 KiB. All methods are safe for concurrent use.
//
// An error means that the store could not do its work. The guard then answers
// 503 and admits nothing. That a key is absent is not an error.
type Store interface {
	// Get returns the live value of key. The caller does not modify it, and
	// what the store does later does not change it: the guard keeps it, to see
	// by it whether the next one is the same.
	Get(ctx context.Context, key string) (val []byte, found bool, err error)

	// Put sets key to val for ttl, replacing what was there. ttl is positive.
	// The store keeps its own copy of val.
	Put(ctx context.Context, key string, val []byte, ttl time.Duration) error

	// Add is Put if key has no live value, and otherwise changes nothing and
	// returns false. Of any number of concurrent calls for a key exactly one
	// returns true.
	Add(ctx context.Context, key string, val []byte, ttl time.Duration) (added bool, err error)

	// Delete removes key. Removing an absent key is no error.
	Delete(ctx context.Context, key string) error
}

// Lister is a Store that can enumerate. The guard needs it to list sessions
// and to revoke all sessions of a user.
type Lister interface {
	// List calls yield with every live key that starts with prefix and its
	// value, in no particular order, until yield returns false. Records put or
	// deleted meanwhile may or may not be seen. yield may call the store.
	List(ctx context.Context, prefix string, yield func(key string, val []byte) bool) error
}

// Spender is a Store with a memory made for values that may be used once and
// whose expiry is part of the value: it costs a fraction of what Add does.
type Spender interface {
	// Spend remembers id until expires and reports whether it was new. The
	// same id always comes with the same expires. An id whose expiry has
	// passed is never new. When the memory is full Spend returns an error and
	// forgets nothing.
	Spend(ctx context.Context, id []byte, expires time.Time) (fresh bool, err error)
}

// Versioner is a Store all of whose changes pass through this process. It lets the
// guard see without a Get that a record is still the one it has read.
type Versioner interface {
	// Version returns a number that grows with each change of key's record, before
	// the Put, Add or Delete that makes the change returns; it may grow with changes
	// of other records too. While it stays the same, Get returns what it returned
	// after the number was read, until the record's lifetime is over. The caller only
	// loads it.
	//
	// of is the store that the caller asks for its records. Version returns nil if that
	// is another one: a type that embeds a store to have a Get of its own has its
	// Version too, which says nothing of what that Get returns.
	Version(of any, key string) *atomic.Uint64
}
