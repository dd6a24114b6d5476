package limpettest

import (
	"crypto"
	"io"
	"sync/atomic"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
)

// SlowKey is a device key that takes its time, as real security chips do, and
// counts how often it was asked. Tests use it to prove that a program asks the
// hardware once for a lease and not once for a request.
type SlowKey struct {
	hwkey.Key
	delay time.Duration
	signs atomic.Int64
}

// Slow wraps key so that each Sign first sleeps for delay.
func Slow(key hwkey.Key, delay time.Duration) *SlowKey {
	return &SlowKey{Key: key, delay: delay}
}

// Sign sleeps, counts and signs. Failed calls count too.
func (k *SlowKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.signs.Add(1)
	time.Sleep(k.delay)
	return k.Key.Sign(rand, digest, opts)
}

// Signs returns how often Sign was called.
func (k *SlowKey) Signs() int { return int(k.signs.Load()) }
