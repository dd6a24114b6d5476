// Package keyring keeps the keys that a server knows its peers by: for each peer
// a secret shared with it, or a public key of its own. A peer has up to two live
// keys, so that it can go from one to the next without an interruption.
//
// The keys lie in one file that only its owner can read. Programs edit it while
// servers have it open (see [Edit]); a server sees the change within a second.
// A secret in the file is as it is, base64url, unless it lies in the server's TPM:
// then the file holds what only that TPM can read.
package keyring

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
)

const (
	MinSecret = 16 // bytes of a shared secret, at least: 128 bits
	MaxSecret = 128
	MaxID     = 128 // bytes of a peer's name

	live = 2 // keys of a peer at a time
)

// Secret is a shared secret. It does not print.
type Secret []byte

// NewSecret returns 32 random bytes.
func NewSecret() Secret {
	s := make(Secret, 32)
	rand.Read(s) // never fails
	return s
}

const printed = "[secret]"

// String keeps the secret out of formatted text.
func (Secret) String() string { return printed }

// Format is String for every verb: some show bytes.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, printed) }

// LogValue keeps the secret out of logs.
func (Secret) LogValue() slog.Value { return slog.StringValue(printed) }

// MarshalText keeps the secret out of JSON, which logs use too.
func (Secret) MarshalText() ([]byte, error) { return []byte(printed), nil }

// Key is one key of a peer. One of Secret and Public is set, or neither: then
// the secret is in the server's TPM.
type Key struct {
	ID      string // the peer
	Version int    // 1, 2, …, in the order in which the peer got its keys
	Created time.Time
	Secret  Secret
	Public  *ecdsa.PublicKey // on P-256

	tpm []byte // a TSS2 private key in PEM
	key *opened
}

// String names the key.
func (k *Key) String() string { return fmt.Sprintf("key %d of %s", k.Version, k.ID) }

// Format is String for every verb.
func (k *Key) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// LogValue is String: no log shows the secret.
func (k *Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// opened is a key in the TPM, loaded when it is first needed.
type opened struct {
	open func(ctx context.Context, pem []byte) (hwkey.HMACKey, error)
	lock chan struct{} // held while it is loaded; guards what follows

	key    hwkey.HMACKey // nil while it is not loaded
	users  int
	closed bool
	unfit  error // why it never will be
}

// InTPM reports whether the secret is in the server's TPM.
func (k *Key) InTPM() bool { return k.tpm != nil }

// HMAC returns the HMAC-SHA256 of message under the key's secret, 32 bytes. It
// fails for a public key, and with the TPM.
func (k *Key) HMAC(ctx context.Context, message []byte) ([]byte, error) {
	switch {
	case k.Secret != nil:
		mac := hmac.New(sha256.New, k.Secret)
		mac.Write(message)
		return mac.Sum(nil), nil
	case k.tpm == nil:
		return nil, errors.New("limpet: keyring: a public key has no HMAC")
	}
	if k.key == nil || k.key.open == nil {
		return nil, errors.New("limpet: keyring: the secret is in a TPM, and this program uses none")
	}
	sum, err := k.key.hmac(ctx, k.tpm, message)
	if err != nil {
		return nil, fmt.Errorf("limpet: keyring: %w", err)
	}
	return sum, nil
}

// hmac asks the TPM. Others who use the key meanwhile queue at the TPM, where
// they can be called off.
func (o *opened) hmac(ctx context.Context, pem, message []byte) ([]byte, error) {
	key, err := o.load(ctx, pem)
	if err != nil {
		return nil, err
	}
	defer o.release()
	return key.HMAC(ctx, message)
}

// load returns the key, loaded, to one more who uses it.
func (o *opened) load(ctx context.Context, pem []byte) (hwkey.HMACKey, error) {
	select {
	case o.lock <- struct{}{}:
		defer func() { <-o.lock }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if o.unfit != nil {
		return nil, o.unfit
	}
	if o.key == nil {
		key, err := o.open(ctx, pem)
		if errors.Is(err, hwkey.ErrUnsupported) {
			// As one with a password, of which each try counts towards the TPM's
			// lockout, and strangers can have keys tried.
			o.unfit = err
		}
		if err != nil {
			return nil, err
		}
		o.key = key
	}
	o.users++
	return o.key, nil
}

// release ends a use.
func (o *opened) release() {
	o.lock <- struct{}{}
	defer func() { <-o.lock }()
	o.users--
	o.unload()
}

// close unloads the key from the TPM when nobody uses it any more. From then on
// it is loaded for each use.
func (o *opened) close() {
	o.lock <- struct{}{}
	defer func() { <-o.lock }()
	o.closed = true
	o.unload()
}

func (o *opened) unload() {
	if o.closed && o.users == 0 && o.key != nil {
		o.key.Close()
		o.key = nil
	}
}

// Options are what a [Ring] can be given. The zero value will do without a TPM.
type Options struct {
	// OpenTPM loads a secret that lies in the server's TPM, such as
	// tpmkey.Keystore.OpenHMAC.
	OpenTPM func(ctx context.Context, pem []byte) (hwkey.HMACKey, error)

	Logger *slog.Logger // told when the file cannot be read again; default slog.Default()
}

// Ring is the keys of one file. It is safe for concurrent use.
type Ring struct {
	path string
	opts Options

	keys       atomic.Pointer[map[string][]*Key]
	inTPM      atomic.Pointer[Key]
	generation atomic.Uint64
	looked     atomic.Int64 // when the file was last looked at, ns since start
	start      time.Time

	mu    sync.Mutex
	seen  os.FileInfo // of what was read last
	wrong string      // with what is there now; that is logged
}

// Open reads a file of keys. On Unix nobody but its owner may have access to it.
func Open(path string, opts Options) (*Ring, error) {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	r := &Ring{path: path, opts: opts, start: time.Now()}
	if err := r.Reload(); err != nil {
		return nil, err
	}
	return r, nil
}

// Lookup returns the live keys of a peer, newest first; none if it has none.
func (r *Ring) Lookup(id string) []*Key {
	r.refresh()
	return (*r.keys.Load())[id]
}

// InTPM returns a key of somebody's whose secret is in the server's TPM, nil if
// there is none: its use takes the time that those take who have theirs there.
func (r *Ring) InTPM() *Key {
	r.refresh()
	return r.inTPM.Load()
}

// Generation changes whenever a key may have: what was decided with an older one
// is to be decided anew.
func (r *Ring) Generation() uint64 {
	r.refresh()
	return r.generation.Load()
}

// interval is how often the file is looked at.
const interval = time.Second

// refresh reads the file again if it was replaced. What cannot be read leaves the
// keys as they were, and is logged: an edit goes wrong more often than it means
// to lock everybody out.
func (r *Ring) refresh() {
	now, looked := int64(time.Since(r.start)), r.looked.Load()
	if now-looked < int64(interval) || !r.looked.CompareAndSwap(looked, now) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	fi, err := os.Stat(r.path)
	if err == nil {
		if r.wrong == "" && os.SameFile(fi, r.seen) && fi.ModTime().Equal(r.seen.ModTime()) && fi.Size() == r.seen.Size() && fi.Mode() == r.seen.Mode() {
			return
		}
		// What went wrong is tried again each time: it may have been the file's mode.
		err = r.read(fi)
	}
	wrong := ""
	if err != nil {
		wrong = err.Error()
	}
	if wrong != "" && wrong != r.wrong {
		r.opts.Logger.Error("limpet: keyring not reloaded; the keys stay as they were", "why", wrong)
	}
	r.wrong = wrong
}

// Reload reads the file now.
func (r *Ring) Reload() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	fi, err := os.Stat(r.path)
	if err != nil {
		return prefix(err)
	}
	return r.read(fi)
}

// read replaces the keys by those of the file, which fi was before. r.mu is
// held.
func (r *Ring) read(fi os.FileInfo) error {
	list, err := readFile(r.path)
	if err != nil {
		return prefix(err)
	}
	r.seen, r.wrong = fi, ""
	loaded, kept := r.loaded(), make(map[*opened]bool)
	keys := make(map[string][]*Key)
	var inTPM *Key
	for _, k := range list {
		if k.tpm != nil {
			inTPM = k
			pem := string(k.tpm)
			if loaded[pem] == nil {
				loaded[pem] = &opened{open: r.opts.OpenTPM, lock: make(chan struct{}, 1)}
			}
			k.key = loaded[pem]
			kept[k.key] = true
		}
		keys[k.ID] = append(keys[k.ID], k)
	}
	for _, of := range keys {
		newestFirst(of)
	}
	r.keys.Store(&keys)
	r.inTPM.Store(inTPM)
	r.generation.Add(1)
	for _, key := range loaded {
		if !kept[key] {
			go key.close() // which waits for a TPM that is at it
		}
	}
	return nil
}

func newestFirst(keys []*Key) {
	slices.SortFunc(keys, func(a, b *Key) int { return cmp.Compare(b.Version, a.Version) })
}

// loaded returns what the ring may have in the TPM, by its PEM.
func (r *Ring) loaded() map[string]*opened {
	m := make(map[string]*opened)
	if keys := r.keys.Load(); keys != nil {
		for _, of := range *keys {
			for _, k := range of {
				if k.tpm != nil {
					m[string(k.tpm)] = k.key
				}
			}
		}
	}
	return m
}

// Close unloads what the ring holds in the TPM.
func (r *Ring) Close() error {
	for _, key := range r.loaded() {
		key.close()
	}
	return nil
}
