package boltstore

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/limpet-auth/limpet/internal/replay"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Keys of the bucket meta.
var (
	metaFormat = []byte("format")      // of the whole file, see format
	metaKey    = []byte("key")         // of the fingerprints, 32 bytes
	metaMark   = []byte("spent-until") // the watermark, a Unix second
	metaSealed = []byte("sealed")      // turn and size of the journal of a store closed in order
)

const (
	format      = "limpet 1"
	lockTimeout = time.Second
	checkTime   = 250 * time.Millisecond // spent on looking at records when a store is opened
)

// Open opens the store at path, or makes it if there is no file. opts may be
// nil. Beside it are PATH.spent0 and PATH.spent1, which belong to it.
//
// Opening does not read all records: it looks at as many as a quarter of a
// second allows, and at the others when they are asked for. Spent values that
// are still alive are read back, some million a second. Open fails if another
// process has the store open, if the file is of another kind or format, or if
// it is damaged; it changes nothing then.
func Open(path string, opts *Options) (*Store, error) {
	s, err := open(path, opts)
	if err != nil {
		return nil, fmt.Errorf("limpet: boltstore: %s: %w", path, err)
	}
	return s, nil
}

func open(path string, opts *Options) (*Store, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := create(path); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	// Without the lock a write of another process may be seen half done.
	for range 3 {
		if err = checkPages(path); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		return nil, err
	}
	o := Options{MaxSpent: 1 << 24, MaxCached: 1 << 16}
	if opts != nil && opts.MaxSpent > 0 {
		o.MaxSpent = opts.MaxSpent
	}
	if opts != nil && opts.MaxCached > 0 {
		o.MaxCached = opts.MaxCached
	}
	s := &Store{
		cache:   newCache(o.MaxCached),
		spent:   replay.New(o.MaxSpent),
		raising: make(chan struct{}, 1),
		ops:     make(chan op),
		quit:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	err = guard(func() error {
		if s.db, err = openBolt(path); err != nil {
			return err
		}
		return s.load(path)
	})
	if err != nil {
		if s.db != nil {
			guard(s.db.Close)
		}
		return nil, err
	}
	go s.write()
	return s, nil
}

func openBolt(path string) (*bolt.DB, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout:      lockTimeout,
		FreelistType: bolt.FreelistMapType,
		NoStatistics: true,
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, errors.New("another process has it open; use that server's admin socket while it runs")
	}
	return db, err
}

// create makes an empty store at path. It comes under its name whole or not at
// all; if another process makes one at the same time, there is one.
func create(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new*") // mode 0600
	if err != nil {
		return err
	}
	f.Close()
	defer os.Remove(f.Name())
	db, err := openBolt(f.Name())
	if err != nil {
		return err
	}
	key := make([]byte, 32)
	rand.Read(key)
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketRecords, bucketExpiry, bucketSpent} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		return errors.Join(meta.Put(metaFormat, []byte(format)), meta.Put(metaKey, key))
	})
	if e := db.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err = os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		err = os.Rename(f.Name(), path) // no hard links here
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(path)
}

// syncDir makes the names beside path durable.
func syncDir(path string) error {
	if runtime.GOOS == "windows" { // has no such call
		return nil
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// checkPages reads the two meta pages that every bbolt file starts with. The
// database would fall back from a damaged one to the other, which is the state
// before the last commit; a file shorter than its pages would be read until it
// crashed.
func checkPages(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		return errors.New("the file is empty; if nothing is to be saved, remove it to start anew")
	}
	// page header 16 | magic 4 | version 4 | page size 4 | flags 4 | root 16 |
	// freelist 8 | pages 8 | transaction 8 | checksum 8, in the machine's order
	const start, size = 16, 64
	u32, u64 := binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
	read := func(at int64) ([]byte, bool) {
		b := make([]byte, start+size)
		if _, err := f.ReadAt(b, at); err != nil || u32(b[start:]) != 0xED0CDAED {
			return nil, false
		}
		m := b[start:]
		sum := fnv.New64a()
		sum.Write(m[:size-8])
		return m, u64(m[size-8:]) == sum.Sum64()
	}
	first, ok := read(0)
	if first == nil {
		return errors.New("is not a limpet store, or its beginning is damaged")
	}
	pageSize := int64(u32(first[8:]))
	if ok && u32(first[4:]) != 2 {
		return fmt.Errorf("is a database of version %d; only 2 is known", u32(first[4:]))
	}
	if !ok || pageSize < 512 || pageSize > 1<<16 {
		return errors.New("the file is damaged: its first page")
	}
	second, ok := read(pageSize)
	if !ok {
		return errors.New("the file is damaged: its second page")
	}
	last := first
	if u64(second[48:]) > u64(first[48:]) {
		last = second
	}
	if pages := u64(last[40:]); pages > uint64(info.Size()/pageSize) {
		return fmt.Errorf("the file is cut short: %d bytes, of %d pages of %d", info.Size(), pages, pageSize)
	}
	return nil
}

// load reads what an opened store has to know.
func (s *Store) load(path string) error {
	boot, now := bootID(), time.Now().Unix()
	// The time never goes back behind what a spent value shows to have been.
	spent := func(fp uint64, exp int64) error {
		_, err := s.spent.Add(fp, exp, max(now, exp-replay.MaxHorizon))
		return err
	}
	var sealed []byte
	err := s.db.Update(func(tx *bolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if meta == nil || meta.Get(metaFormat) == nil {
			return errors.New("is a bbolt database, but not a limpet store")
		}
		if f := string(meta.Get(metaFormat)); f != format {
			return fmt.Errorf("has the format %.20q; this version of limpet knows %q", f, format)
		}
		for _, name := range [][]byte{bucketRecords, bucketExpiry, bucketSpent} {
			if tx.Bucket(name) == nil {
				return errors.New("the file is damaged: a bucket is missing")
			}
		}
		s.key = bytes.Clone(meta.Get(metaKey))
		if mark := meta.Get(metaMark); len(mark) == 8 {
			s.mark.Store(int64(binary.BigEndian.Uint64(mark)))
		}
		sealed = bytes.Clone(meta.Get(metaSealed))
		if err := checkRecords(tx, time.Now().Add(checkTime)); err != nil {
			return err
		}
		c := tx.Bucket(bucketSpent).Cursor()
		for k, _ := c.Seek(spentKey(0, now)); len(k) == 16; k, _ = c.Next() {
			if err := spent(binary.BigEndian.Uint64(k[8:]), int64(binary.BigEndian.Uint64(k))); err != nil {
				return err
			}
		}
		// The seal is broken before anything is admitted.
		return meta.Delete(metaSealed)
	})
	if err != nil {
		return err
	}

	hash := sha256.Sum256(append([]byte("limpet boltstore owner\x00"), s.key...))
	owner := [16]byte(hash[:16])
	s.journal = &journal{path: path}
	head, size, err := readJournal(path, owner, spent)
	known := err == nil && (bytes.Equal(sealed, sealOf(head.turn, size)) ||
		head.boot == boot && boot != [16]byte{})
	if errors.Is(err, replay.ErrFull) {
		return err
	}
	if known {
		// What expired before this turn began may have been dropped.
		s.floor = max(head.floor, head.start)
		return s.journal.resume(head, size, boot)
	}
	s.floor = s.mark.Load()
	for turn := range uint64(2) {
		if err := os.Remove(journalFile(path, turn)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return s.journal.begin(header{owner: owner, boot: boot, turn: 1, first: 1, start: now, floor: s.floor})
}

func sealOf(turn uint64, size int64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, turn), uint64(size))
}

// checkRecords reads records until deadline, and looks each of them up: a
// damaged page may hide a record from one way of reading and not from the other.
func checkRecords(tx *bolt.Tx, deadline time.Time) error {
	records := tx.Bucket(bucketRecords)
	c := records.Cursor()
	for k, rec := c.First(); k != nil; k, rec = c.Next() {
		if _, _, err := decodeRecord(k, rec); err != nil {
			return err
		}
		if !bytes.Equal(records.Get(k), rec) {
			return errors.New("the file is damaged: a record cannot be found")
		}
		if time.Now().After(deadline) {
			return nil
		}
	}
	return nil
}

// bootID identifies the boot of the machine; it is zero where that is unknown.
func bootID() (id [16]byte) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(b) == 0 {
		return id
	}
	sum := sha256.Sum256(b)
	return [16]byte(sum[:16])
}

// Close waits for the commit under way and closes the store. Calls that wait or
// come later fail.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return errClosed
	}
	s.cache.outdate()
	close(s.quit)
	<-s.done
	if s.broken != nil { // the database would wait for its own locks
		return s.broken
	}
	turn, size, err := s.journal.seal()
	if err == nil {
		err = guard(func() error {
			return s.db.Update(func(tx *bolt.Tx) error {
				return tx.Bucket(bucketMeta).Put(metaSealed, sealOf(turn, size))
			})
		})
	}
	if e := guard(s.db.Close); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("limpet: boltstore: closing: %w", err)
	}
	return nil
}
