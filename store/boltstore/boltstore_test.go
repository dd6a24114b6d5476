package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/limpettest"
	bolt "go.etcd.io/bbolt"
)

var (
	_ limpet.Store     = (*Store)(nil)
	_ limpet.Lister    = (*Store)(nil)
	_ limpet.Spender   = (*Store)(nil)
	_ limpet.Versioner = (*Store)(nil)
)

func openTest(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestStore(t *testing.T) {
	limpettest.Store(t, func(t *testing.T) limpet.Store {
		return openTest(t, filepath.Join(t.TempDir(), "store"))
	})
}

func TestDurableStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	limpettest.DurableStore(t, func(t *testing.T) limpet.Store { return openTest(t, path) })
}

func TestModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes")
	}
	dir := t.TempDir()
	s := openTest(t, filepath.Join(dir, "store"))
	if _, err := s.Spend(t.Context(), []byte("id"), time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Errorf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", f.Name(), info.Mode(), err)
		}
	}
}

func TestClosed(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "store"))
	ctx := t.Context()
	if err := s.Put(ctx, "read", []byte("1"), time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, found, err := s.Get(ctx, "read"); err != nil || !found {
		t.Fatal(found, err)
	}
	version := s.Version(s, "read").Load()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s.Version(s, "read").Load() == version {
		t.Error("a version of a closed store stays the same")
	}
	_, _, get := s.Get(ctx, "a")
	_, _, again := s.Get(ctx, "read")
	_, short := s.Spend(ctx, []byte("id"), time.Now().Add(time.Minute))
	_, long := s.Spend(ctx, []byte("id"), time.Now().Add(time.Hour))
	for name, err := range map[string]error{
		"Get": get, "Get of what was read before": again,
		"Put":    s.Put(ctx, "a", nil, time.Hour),
		"Delete": s.Delete(ctx, "a"),
		"List":   s.List(ctx, "", func(string, []byte) bool { return true }),
		"Spend":  short, "Spend of long life": long,
		"Close": s.Close(),
	} {
		if !errors.Is(err, errClosed) {
			t.Errorf("%s of a closed store: %v", name, err)
		}
	}
}

func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	s := openTest(t, path)
	if err := s.Put(t.Context(), "a", []byte("1"), time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, nil); err == nil || !strings.Contains(err.Error(), "another process has it open") {
		t.Errorf("Open of an open store: %v", err)
	}
	if _, found, err := s.Get(t.Context(), "a"); err != nil || !found {
		t.Errorf("Get after that: %v, %v", found, err)
	}
}

// fill makes a store of n records at path and returns its bytes.
func fill(t *testing.T, path string, n int) []byte {
	t.Helper()
	s := openTest(t, path)
	reply := make(chan error, n)
	for i := range n {
		go func() { reply <- s.Put(t.Context(), fmt.Sprint("key", i), fmt.Appendf(nil, "%0200d", i), time.Hour) }()
	}
	for range n {
		if err := <-reply; err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	good := fill(t, filepath.Join(dir, "good"), 500)
	pageSize := os.Getpagesize()
	flipped := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 0x40
		return b
	}
	foreign := filepath.Join(dir, "foreign")
	db, err := bolt.Open(foreign, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	foreignBytes, _ := os.ReadFile(foreign)
	other := filepath.Join(dir, "other")
	os.WriteFile(other, good, 0o600)
	if db, err = bolt.Open(other, 0o600, nil); err != nil {
		t.Fatal(err)
	}
	db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(metaFormat, []byte("limpet 2")) })
	db.Close()
	otherBytes, _ := os.ReadFile(other)

	cases := map[string]struct {
		b    []byte
		want string
	}{
		"empty":               {nil, "empty"},
		"garbage":             {bytes.Repeat([]byte("garbage\n"), 4096), "not a limpet store"},
		"one byte":            {good[:1], "not a limpet store"},
		"foreign":             {foreignBytes, "not a limpet store"},
		"other format":        {otherBytes, `has the format "limpet 2"`},
		"half":                {good[:len(good)/2], "cut short"},
		"two pages":           {good[:2*pageSize], "cut short"},
		"one page and a half": {good[:pageSize*3/2], ""},
		"zeros in the middle": {append(append(bytes.Clone(good[:4*pageSize]), make([]byte, len(good)/2)...), good[4*pageSize+len(good)/2:]...), "damaged"},
	}
	for i := 16; i < 80; i += 3 { // both meta pages
		cases[fmt.Sprint("meta 0 byte ", i)] = struct {
			b    []byte
			want string
		}{flipped(i), ""}
		cases[fmt.Sprint("meta 1 byte ", i)] = struct {
			b    []byte
			want string
		}{flipped(pageSize + i), ""}
	}
	for name, c := range cases {
		path := filepath.Join(t.TempDir(), "bad")
		if err := os.WriteFile(path, c.b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path, nil)
		if err == nil {
			s.Close()
			t.Errorf("%s: opened", name)
		} else if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, c.b) {
			t.Errorf("%s: the refused file has changed, %v", name, err)
		}
	}
	if s, err := Open(dir, nil); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v, %v", s, err)
	}
	if _, err := Open(filepath.Join(dir, "none", "store"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	secret := filepath.Join(dir, "secret")
	os.WriteFile(secret, good, 0)
	if f, err := os.Open(secret); err == nil {
		f.Close() // root, or no modes here
	} else if _, err := Open(secret, nil); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("an unreadable file: %v", err)
	}
}

// TestFlipped damages one byte anywhere. The store is refused, or fails the
// calls that meet the damage, or did not need the byte; it gives no wrong
// answer and does not panic.
func TestFlipped(t *testing.T) {
	const n = 300
	good := fill(t, filepath.Join(t.TempDir(), "good"), n)
	path := filepath.Join(t.TempDir(), "bad")
	step := len(good) / 80
	var refused, failed int
	for at := 2 * os.Getpagesize(); at < len(good); at += step {
		b := bytes.Clone(good)
		b[at] ^= 1 << (at % 8)
		os.Remove(path)
		os.Remove(journalFile(path, 0))
		os.Remove(journalFile(path, 1))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path, nil)
		if err != nil {
			refused++
			continue
		}
		for i := range n {
			val, found, err := s.Get(context.Background(), fmt.Sprint("key", i))
			if err != nil {
				failed++
			} else if !found || string(val) != fmt.Sprintf("%0200d", i) {
				t.Errorf("byte %d: Get = %.20q, %v", at, val, found)
			}
		}
		s.Close()
	}
	t.Logf("%d files refused, %d calls failed", refused, failed)
}

// TestDamagedRecord: one record that cannot be read fails the calls for it, and
// none that are committed with them.
func TestDamagedRecord(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "store"))
	ctx := t.Context()
	damage := func() {
		t.Helper()
		err := s.commit(ctx, "bad", func(tx *bolt.Tx) error {
			return tx.Bucket(bucketRecords).Put([]byte("bad"), []byte("not a record of ours"))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	damage()
	if _, found, err := s.Get(ctx, "bad"); !errors.Is(err, errDamaged) || found {
		t.Errorf("Get = %v, %v", found, err)
	}
	for round := range 5 {
		bad, good := make(chan error, 20), make(chan error, 20)
		for i := range 20 {
			go func() {
				_, err := s.Add(ctx, "bad", nil, time.Hour)
				bad <- err
			}()
			go func() { good <- s.Put(ctx, fmt.Sprint("good", round, i), nil, time.Hour) }()
		}
		for range 20 {
			if err := <-bad; !errors.Is(err, errDamaged) {
				t.Errorf("Add = %v", err)
			}
			if err := <-good; err != nil {
				t.Errorf("Put of another = %v", err)
			}
		}
	}
	if err := s.Put(ctx, "bad", []byte("1"), time.Hour); err != nil {
		t.Errorf("Put over it = %v", err)
	}
	if val, _, err := s.Get(ctx, "bad"); err != nil || string(val) != "1" {
		t.Errorf("Get after Put = %q, %v", val, err)
	}
	damage()
	if err := s.Delete(ctx, "bad"); err != nil {
		t.Errorf("Delete = %v", err)
	}
}

// TestCleared: what has expired leaves the file, a bounded part with each commit.
func TestCleared(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "store"))
	count := func() (n int) {
		s.view(func(tx *bolt.Tx) error {
			for _, b := range [][]byte{bucketRecords, bucketExpiry, bucketSpent} {
				tx.Bucket(b).ForEach(func(_, _ []byte) error { n++; return nil })
			}
			return nil
		})
		return n
	}
	err := s.commit(t.Context(), "", func(tx *bolt.Tx) error {
		old := time.Now().Add(-time.Hour)
		for i := range maxCleared {
			key := fmt.Sprint("dead", i)
			tx.Bucket(bucketRecords).Put([]byte(key), encodeRecord(key, nil, old.UnixNano()))
			tx.Bucket(bucketExpiry).Put(expiryKey(old.UnixNano(), []byte(key)), nil)
			tx.Bucket(bucketSpent).Put(spentKey(uint64(i), old.Unix()-10), nil)
		}
		// A trace left over from a record that was replaced.
		tx.Bucket(bucketRecords).Put([]byte("live"), encodeRecord("live", nil, time.Now().Add(time.Hour).UnixNano()))
		return tx.Bucket(bucketExpiry).Put(expiryKey(old.UnixNano(), []byte("live")), nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := count(); n > maxCleared+2 {
		t.Errorf("%d left after one commit", n)
	}
	for i := range 4 {
		if err := s.Put(t.Context(), fmt.Sprint("other", i), nil, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(); n != 1+2*4 {
		t.Errorf("%d left, want 9", n)
	}
	if _, found, err := s.Get(t.Context(), "live"); err != nil || !found {
		t.Errorf("Get of the live one = %v, %v", found, err)
	}
}

// TestCacheFollows: once a write is acknowledged no reader sees what was before
// it, however reads and writes meet.
func TestCacheFollows(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "store"), &Options{MaxCached: 64})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := t.Context()
	const keys = 4
	var acked [keys]atomic.Int64
	var readers, writers sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				i := n % keys
				atLeast := acked[i].Load()
				val, found, err := s.Get(ctx, fmt.Sprint("key", i))
				if got, _ := strconv.ParseInt(string(val), 10, 64); err != nil || !found && atLeast > 0 || got < atLeast {
					t.Errorf("Get = %q, %v, %v after %d was acknowledged", val, found, err, atLeast)
					return
				}
			}
		})
	}
	for i := range keys {
		writers.Go(func() {
			for v := int64(1); v <= 300; v++ {
				if err := s.Put(ctx, fmt.Sprint("key", i), strconv.AppendInt(nil, v, 10), time.Hour); err != nil {
					t.Error(err)
					return
				}
				acked[i].Store(v)
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
}

// TestCacheBounded: it holds what it may, and none of the large.
func TestCacheBounded(t *testing.T) {
	c := newCache(1000)
	for i := range 10_000 {
		key := fmt.Sprint("key", i)
		_, _, version := c.get(key)
		c.put(key, cached{make([]byte, 1), int64(i)}, version)
	}
	c.put("large", cached{make([]byte, maxCachedValue+1), 0}, 0)
	n := 0
	for i := range c.shards {
		n += len(c.shards[i].records)
	}
	if _, found, _ := c.get("large"); found || n < 500 || n > 1100 {
		t.Errorf("%d records, the large one %v", n, found)
	}
}

func BenchmarkGet(b *testing.B) {
	for _, cached := range []int{1, 1 << 16} {
		b.Run(fmt.Sprint("cached=", cached), func(b *testing.B) {
			s, err := Open(filepath.Join(b.TempDir(), "store"), &Options{MaxCached: cached})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			ctx := b.Context()
			keys := make([]string, 1000)
			for i := range keys {
				keys[i] = fmt.Sprintf("binding/%043d", i)
				if err := s.Put(ctx, keys[i], make([]byte, 200), time.Hour); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, found, err := s.Get(ctx, keys[i%len(keys)]); err != nil || !found {
					b.Fatal(found, err)
				}
			}
		})
	}
}
