package boltstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/internal/replay"
)

// killed returns the path of a copy of the store at path as it stands, which is
// what a process finds after the one before was killed.
func killed(t *testing.T, path string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "store")
	for _, suffix := range []string{"", ".spent0", ".spent1"} {
		b, err := os.ReadFile(path + suffix)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(to+suffix, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func wantSpend(t *testing.T, s *Store, id string, expires time.Time, want bool) {
	t.Helper()
	if fresh, err := s.Spend(t.Context(), []byte(id), expires); err != nil || fresh != want {
		t.Errorf("Spend(%s) = %v, %v; want %v", id, fresh, err, want)
	}
}

func wantUnknown(t *testing.T, s *Store, id string, expires time.Time) {
	t.Helper()
	fresh, err := s.Spend(t.Context(), []byte(id), expires)
	if err == nil || fresh || !strings.Contains(err.Error(), "cannot be known") {
		t.Errorf("Spend(%s) = %v, %v; want that it cannot be known", id, fresh, err)
	}
}

func TestSpentAfterKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	s := openTest(t, path)
	expires := time.Now().Add(time.Minute)
	n := 0
	for range 4 {
		for range 100 {
			wantSpend(t, s, fmt.Sprint("id", n), expires, true)
			wantSpend(t, s, fmt.Sprint("long", n%200), expires.Add(time.Hour), n < 200)
			n++
		}
		path = killed(t, path)
		s = openTest(t, path)
		for i := range n {
			wantSpend(t, s, fmt.Sprint("id", i), expires, false)
		}
	}
}

// TestTornRecord: half a record at the end was never acknowledged, and what
// comes after it is read back.
func TestTornRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	s := openTest(t, path)
	expires := time.Now().Add(time.Minute)
	wantSpend(t, s, "a", expires, true)
	path = killed(t, path)
	f, err := os.OpenFile(journalFile(path, 1), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte("torn"))
	f.Close()
	s = openTest(t, path)
	wantSpend(t, s, "a", expires, false)
	wantSpend(t, s, "b", expires, true)
	s = openTest(t, killed(t, path))
	wantSpend(t, s, "a", expires, false)
	wantSpend(t, s, "b", expires, false)
}

// TestPowerLoss: what the journal cannot tell is not admitted up to the
// watermark, also after one more crash; what lies beyond it is.
func TestPowerLoss(t *testing.T) {
	damages := map[string]func(t *testing.T, path string){
		"other boot": func(t *testing.T, path string) {
			if err := setBoot(journalFile(path, 1), [16]byte{1}); err != nil {
				t.Fatal(err)
			}
		},
		"unknown boot": func(t *testing.T, path string) {
			if err := setBoot(journalFile(path, 1), [16]byte{}); err != nil {
				t.Fatal(err)
			}
		},
		"no journal":     func(t *testing.T, path string) { os.Remove(journalFile(path, 1)) },
		"empty journal":  func(t *testing.T, path string) { os.Truncate(journalFile(path, 1), 0) },
		"damaged header": func(t *testing.T, path string) { flip(t, journalFile(path, 1), 30) },
		"damaged record": func(t *testing.T, path string) { flip(t, journalFile(path, 1), journalHeader+3) },
		"damaged end":    func(t *testing.T, path string) { flip(t, journalFile(path, 1), journalHeader+17) },
		"another store's": func(t *testing.T, path string) {
			other := filepath.Join(t.TempDir(), "store")
			openTest(t, other).Close()
			os.Rename(journalFile(other, 1), journalFile(path, 1))
		},
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "store")
			s := openTest(t, path)
			expires := time.Now().Add(60 * time.Second)
			long := expires.Add(time.Hour)
			beyond := expires.Add((markLead + 2) * time.Second)
			wantSpend(t, s, "a", expires, true)
			wantSpend(t, s, "b", expires, true)
			wantSpend(t, s, "long", long, true)
			path = killed(t, path)
			damage(t, path)
			s = openTest(t, path)
			wantUnknown(t, s, "a", expires)
			wantUnknown(t, s, "b", expires)
			wantUnknown(t, s, "new", expires)
			wantSpend(t, s, "long", long, false)
			wantSpend(t, s, "beyond", beyond, true)
			wantSpend(t, s, "long beyond", long, true)
			// One more crash, and then a close in order, change nothing.
			for range 2 {
				path = killed(t, path)
				s = openTest(t, path)
				wantUnknown(t, s, "a", expires)
				wantUnknown(t, s, "new", expires)
				wantSpend(t, s, "long", long, false)
				wantSpend(t, s, "beyond", beyond, false)
				wantSpend(t, s, "long beyond", long, false)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func flip(t *testing.T, name string, at int) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		b[at] ^= 1
		err = os.WriteFile(name, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestSealed: a store closed in order knows what was spent in any boot, once.
func TestSealed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	s := openTest(t, path)
	expires := time.Now().Add(time.Minute)
	for i := range 3 {
		wantSpend(t, s, fmt.Sprint("id", i), expires, true)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := setBoot(journalFile(path, 1), [16]byte{byte(i)}); err != nil { // zero: unknown
			t.Fatal(err)
		}
		s = openTest(t, path)
		for j := range i + 1 {
			wantSpend(t, s, fmt.Sprint("id", j), expires, false)
		}
	}
	// The seal does not hold for what came after it.
	path = killed(t, path)
	if err := setBoot(journalFile(path, 1), [16]byte{9}); err != nil {
		t.Fatal(err)
	}
	wantUnknown(t, openTest(t, path), "id0", expires)
}

// TestJournalTurns runs a journal through many turns. At each point all that
// has not expired can be read back, and the files stay small.
func TestJournalTurns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	j := &journal{path: path}
	head := header{owner: [16]byte{1}, boot: [16]byte{2}, turn: 1, first: 1, start: 10_000, floor: 9_000}
	if err := j.begin(head); err != nil {
		t.Fatal(err)
	}
	spent := map[uint64]int64{}
	clock := []int64{7, 11, -9, 1, 30, 250}
	for i, now := 0, int64(10_000); now < 13_000; i++ {
		fp, exp := uint64(i)*0x9e3779b97f4a7c15, now+1+int64(i*37%shortLife)
		if err := j.append(fp, exp, now); err != nil {
			t.Fatal(err)
		}
		spent[fp] = exp
		read := map[uint64]int64{}
		head, size, err := readJournal(path, head.owner, func(fp uint64, exp int64) error {
			read[fp] = exp
			return nil
		})
		if err != nil || head != j.head || size != j.size || head.floor != 9_000 {
			t.Fatalf("at %d: read %+v, %d, %v; want %+v, %d", now, head, size, err, j.head, j.size)
		}
		for fp, exp := range spent {
			if exp > j.now && read[fp] != exp {
				t.Fatalf("at %d: a value that expires at %d is gone", now, exp)
			}
			// What is gone had expired when the turn began: the floor of a restart.
			if _, found := read[fp]; !found && exp > head.start {
				t.Fatalf("at %d: a value that expires at %d is gone and above %d", now, exp, head.start)
			}
		}
		if j.size > 4096 {
			t.Fatalf("at %d: %d bytes", now, j.size)
		}
		now += clock[i%len(clock)]
	}
	if j.head.turn < 10 {
		t.Errorf("%d turns", j.head.turn)
	}
	for _, back := range []uint64{0, 1} {
		name := journalFile(path, j.head.turn-back)
		if err := os.Rename(name, name+".away"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := readJournal(path, head.owner, func(uint64, int64) error { return nil }); err == nil {
			t.Errorf("no error with the file of %d turns ago missing", back)
		}
		os.Rename(name+".away", name)
	}
	if err := j.append(1, 1, 1); err != nil {
		t.Fatal(err)
	}
	if _, _, err := j.seal(); err != nil {
		t.Fatal(err)
	}
	if err := j.append(1, 1, 1); !errors.Is(err, errClosed) {
		t.Errorf("append after seal: %v", err)
	}
}

// TestJournalFails: what cannot be recorded is not spent.
func TestJournalFails(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "store"))
	expires := time.Now().Add(time.Minute)
	wantSpend(t, s, "before", expires, true)
	file := s.journal.file
	s.journal.file, _ = os.Open(file.Name()) // cannot be written to
	if fresh, err := s.Spend(t.Context(), []byte("a"), expires); err == nil || fresh {
		t.Errorf("Spend without a journal = %v, %v", fresh, err)
	}
	s.journal.file.Close()
	s.journal.file = file
	wantSpend(t, s, "before", expires, false)
	wantSpend(t, s, "a", expires, true)
	wantSpend(t, s, "a", expires, false)
}

func TestSpendBounds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	s, err := Open(path, &Options{MaxSpent: 10})
	if err != nil {
		t.Fatal(err)
	}
	expires := time.Now().Add(time.Minute)
	for i := range 10 {
		wantSpend(t, s, fmt.Sprint("id", i), expires, true)
	}
	if fresh, err := s.Spend(t.Context(), []byte("more"), expires); !errors.Is(err, replay.ErrFull) || fresh {
		t.Errorf("Spend when full = %v, %v", fresh, err)
	}
	wantSpend(t, s, "id0", expires, false)
	if fresh, err := s.Spend(t.Context(), []byte("far"), time.Now().Add(25*time.Hour)); !errors.Is(err, replay.ErrHorizon) || fresh {
		t.Errorf("Spend far ahead = %v, %v", fresh, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// Fewer than are spent: forgetting some is no way out.
	if s, err := Open(path, &Options{MaxSpent: 5}); !errors.Is(err, replay.ErrFull) {
		t.Errorf("Open with less room = %v, %v", s, err)
	}
}
