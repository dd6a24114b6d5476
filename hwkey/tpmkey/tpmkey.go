// Package tpmkey keeps device keys and HMAC keys in a TPM 2.0, the security chip
// of most PCs and servers: level hwkey.Hardware.
//
// The TPM makes the key and encrypts it with a storage key that never leaves
// the chip. What is left on disk is a file in the TSS2 PEM format that no other
// TPM can use. A key is loaded once; after that a signature or an HMAC is one
// TPM command.
//
// An HMAC key is made in the TPM too, or its secret is imported: then it is
// shared with a peer, and the TPM keeps it from being copied here.
// [Keystore.OpenHMAC] uses HMAC keys that other software left in files.
//
// # What protects what
//
// Commands travel in sessions, salted with the storage key and checked with
// HMAC both ways: who listens on the bus to the chip sees no digest, no
// imported secret, no message for an HMAC and no HMAC, and a changed bit in a
// command or answer is an error. The storage key is pinned in
// each key's file: another in its place makes its keys hwkey.ErrLost. At
// Create, the storage key that the TPM shows is trusted on first use.
// The keys have no password of their own: whoever may use the TPM on this
// machine and reads a key's file can sign with it, here, for as long as they
// are here.
//
// # Sharing
//
// The default on Linux, /dev/tpmrm0, is shared with other programs by the
// kernel. Keys beyond the few that a TPM holds at a time are swapped, least
// recently used first.
package tpmkey

import (
	"cmp"
	"context"
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/internal/keydir"
	"github.com/limpet-auth/limpet/internal/tpm"
)

const detail = "tpm2" // hwkey.Info.Detail of every key

// Config says which TPM and which key files to use. The zero value means the
// defaults.
type Config struct {
	// Addr is the address of the TPM: "/dev/..." for a device, "unix:PATH" or
	// "tcp:HOST:PORT" for swtpm or whatever takes TPM commands on a socket.
	// The default is /dev/tpmrm0, or /dev/tpm0 where there is no other.
	Addr string

	// Dir is the directory of the key files. The default is
	// $XDG_STATE_HOME/limpet/keys/tpm, with the default of ~/.local/state.
	Dir string

	// Dial, if set, connects to the TPM in place of Addr. It is called again
	// when a connection broke.
	Dial func(context.Context) (io.ReadWriteCloser, error)
}

// Keystore keeps keys in one TPM and their files in one directory. It connects
// to the TPM when it is first needed.
type Keystore struct {
	conn   *tpm.Conn
	dir    keydir.Dir
	dirErr error

	// Guarded by conn, which runs one sequence of commands at a time.
	sessions   [ways]*session // nil while not started
	parents    map[tpm2.TPMHandle]*parent
	resident   []*object // loaded, least recently used first
	generation int       // changes when saved contexts stop being good
}

// Open returns the keystore of the TPM at addr (see Config.Addr; "" for this
// machine's) with its key files in the default directory. It never fails: what
// is wrong with the TPM comes out of the calls that need it.
func Open(addr string) *Keystore { return New(Config{Addr: addr}) }

// New is Open with all there is to configure.
func New(c Config) *Keystore {
	ks := &Keystore{parents: make(map[tpm2.TPMHandle]*parent)}
	ks.conn = tpm.New(c.Addr, c.Dial, (*loaded)(ks))
	ks.dir = keydir.Dir{Name: c.Dir, Ext: ".tpm"}
	if c.Dir == "" {
		var state string
		state, ks.dirErr = keydir.State()
		ks.dir.Name = filepath.Join(state, "keys", "tpm")
	}
	return ks
}

// candidateWait bounds how long Candidate waits for the TPM. Making the storage
// key takes slow chips some seconds.
const candidateWait = 15 * time.Second

// Candidate returns the keystore for hwkey.Auto. It is chosen if the TPM
// answers and has or makes a storage key.
func Candidate(c Config) hwkey.Candidate {
	return hwkey.Candidate{
		Name:  "TPM 2.0",
		Level: hwkey.Hardware,
		Open: func(ctx context.Context) (hwkey.Keystore, string, error) {
			ctx, cancel := context.WithTimeout(ctx, candidateWait)
			defer cancel()
			ks := New(c)
			about, err := ks.check(ctx)
			if err != nil {
				ks.Close()
				return nil, "", err
			}
			return ks, about, nil
		},
	}
}

// check proves that keys could be made, without making one.
func (ks *Keystore) check(ctx context.Context) (about string, err error) {
	err = ks.conn.Do(ctx, func() error {
		about = tpm.MakerAndModel(ks.conn.Properties)
		h, err := ks.chooseParent()
		if err != nil {
			return err
		}
		return ks.withParent(h, "", in, func(*parent, tpm2.TPMHandle) error { return nil })
	})
	return about, prefix(cmp.Or(ks.dirErr, err))
}

// Create makes a new key in the TPM. See hwkey.Keystore. ECDSAP256 works on
// every TPM; RSA2048 takes seconds to a minute, and is ErrUnsupported if a trial
// signature does not verify. No TPM does Ed25519.
func (ks *Keystore) Create(ctx context.Context, opts hwkey.CreateOptions) (hwkey.Key, error) {
	k, err := ks.create(ctx, opts)
	if err != nil {
		return nil, prefix(err)
	}
	return k, nil
}

func (ks *Keystore) create(ctx context.Context, opts hwkey.CreateOptions) (*key, error) {
	alg := cmp.Or(opts.Algorithm, hwkey.ECDSAP256)
	if alg == hwkey.HMACSHA256 {
		return nil, fmt.Errorf("%w: an HMAC key does not sign: CreateHMAC makes it", hwkey.ErrUnsupported)
	}
	parms, ok := parameters(alg)
	if !ok {
		return nil, fmt.Errorf("%w: %q", hwkey.ErrUnsupported, alg)
	}
	k := &key{object{ks: ks, id: keydir.NewID()}}
	err := k.make(ctx, opts.Label, tpm.SigningKey(parms), nil, func() error {
		if alg == hwkey.RSA2048 {
			return k.trial(ctx)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return k, nil
}

// Load returns a stored key, loaded in the TPM. See hwkey.Keystore. A key of
// another or a cleared TPM, or a damaged file, gives hwkey.ErrLost; trouble in
// reaching the TPM does not.
func (ks *Keystore) Load(ctx context.Context, id string) (hwkey.Key, error) {
	r, err := ks.read(ctx, id)
	if err != nil {
		return nil, prefix(err)
	}
	if r.algorithm == hwkey.HMACSHA256 {
		return nil, prefix(fmt.Errorf("%s: %w: it is an HMAC key and does not sign: LoadHMAC loads it", ks.dir.Path(id), hwkey.ErrUnsupported))
	}
	k := &key{object{ks: ks, id: id, record: r}}
	if err := ks.conn.Do(ctx, func() error { return ks.bring(&k.object) }); err != nil {
		return nil, prefix(fmt.Errorf("%s: %w", ks.dir.Path(id), err))
	}
	return k, nil
}

// read returns what a key's file holds.
func (ks *Keystore) read(ctx context.Context, id string) (*record, error) {
	if err := cmp.Or(ctx.Err(), ks.dirErr); err != nil {
		return nil, err
	}
	data, err := ks.dir.Read(id)
	if err != nil {
		return nil, fmt.Errorf("loading a key: %w", err)
	}
	r, err := parseRecord(data)
	if err != nil {
		if !errors.Is(err, hwkey.ErrUnsupported) {
			err = lost("the file is damaged: %w", err)
		}
		return nil, fmt.Errorf("%s: %w", ks.dir.Path(id), err)
	}
	return r, nil
}

// List describes all keys, oldest first, without asking the TPM. A damaged file
// is listed with its ID alone.
func (ks *Keystore) List(ctx context.Context) ([]hwkey.Info, error) {
	if ks.dirErr != nil {
		return nil, prefix(ks.dirErr)
	}
	ids, err := ks.dir.IDs()
	if err != nil {
		return nil, prefix(fmt.Errorf("listing the keys: %w", err))
	}
	var infos []hwkey.Info
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		data, err := ks.dir.Read(id)
		if errors.Is(err, hwkey.ErrNotFound) {
			continue // deleted meanwhile
		}
		info := hwkey.Info{ID: id, Level: hwkey.Hardware, Detail: detail}
		if err == nil {
			if r, err := parseRecord(data); err == nil {
				info = r.info(id)
			}
		}
		infos = append(infos, info)
	}
	slices.SortFunc(infos, func(a, b hwkey.Info) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return infos, ctx.Err()
}

// Delete removes a key's file; nothing of the key is in the TPM but when it is
// loaded. See hwkey.Keystore. Keys that are loaded go on signing until they are
// closed.
func (ks *Keystore) Delete(ctx context.Context, id string) error {
	if err := cmp.Or(ctx.Err(), ks.dirErr); err != nil {
		return prefix(err)
	}
	if err := ks.dir.Remove(id); err != nil {
		return prefix(fmt.Errorf("deleting a key: %w", err))
	}
	return nil
}

// Close frees all that is loaded in the TPM and closes the connection. A later
// call of the keystore or of one of its keys connects anew.
func (ks *Keystore) Close() error {
	ks.conn.Close()
	return nil
}

// Commands returns how many commands of each name were sent to the TPM since
// the keystore was opened, such as "Sign" or "Load", repeats included.
func (ks *Keystore) Commands() map[string]int {
	return ks.conn.Commands()
}

func (r *record) info(id string) hwkey.Info {
	return hwkey.Info{ID: id, Level: hwkey.Hardware, Detail: detail, Algorithm: r.algorithm, Label: r.meta.Label,
		Created: r.meta.Created, Imported: r.imported}
}

// object is a key that the TPM keeps, of any kind. It holds nothing secret.
type object struct {
	ks     *Keystore
	id     string // empty if it has no file in the keystore's directory
	record *record

	// Guarded by the keystore's lock.
	handle     tpm2.TPMHandle    // while in ks.resident
	saved      *tpm2.TPMSContext // loads without the parent
	generation int               // of saved
	closed     bool
}

// make makes a new key of this template in the TPM, loads it, tries it and
// writes its file. secret is as for makeKey.
func (o *object) make(ctx context.Context, label string, template tpm2.TPMTPublic, secret []byte, try func() error) error {
	ks := o.ks
	if ks.dirErr != nil {
		return ks.dirErr
	}
	if err := keydir.CheckLabel(label); err != nil {
		return err
	}
	err := ks.conn.Do(ctx, func() (err error) {
		o.record, err = ks.makeKey(template, secret)
		return err
	})
	if err != nil {
		return err
	}
	o.record.meta.Label = label
	o.record.meta.Created = time.Now().UTC().Truncate(time.Second)
	// Loaded in a sequence of its own: its recovery must not make a second key.
	if err := ks.conn.Do(ctx, func() error { return ks.bring(o) }); err != nil {
		return err
	}
	err = try()
	var data []byte
	if err == nil {
		data, err = o.record.marshal()
	}
	if err == nil {
		err = ks.dir.Write(o.id, data)
	}
	if err != nil {
		o.Close()
	}
	return err
}

func (o *object) Info() hwkey.Info { return o.record.info(o.id) }

func (o *object) String() string {
	return "tpmkey " + o.id + " (" + hex.EncodeToString(o.record.name.Buffer) + ")"
}

// Close unloads the key.
func (o *object) Close() error {
	o.ks.conn.Locked(func() {
		o.closed, o.saved = true, nil
		if i := slices.Index(o.ks.resident, o); i >= 0 {
			o.ks.resident = slices.Delete(o.ks.resident, i, i+1)
			o.ks.conn.Flush(o.handle)
		}
	})
	return nil
}

// key is a key that signs.
type key struct{ object }

func (k *key) Public() crypto.PublicKey { return k.record.key }

func prefix(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("limpet: tpmkey: %w", err)
}
