package boltstore

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzJournal reads journals as a crash or a stranger may have left them.
func FuzzJournal(f *testing.F) {
	good := header{turn: 2, first: 2, start: 1_764_000_000}
	var rec [journalRecord]byte
	encodeSpent(&rec, good.seed(), 7, 1_764_000_060)
	f.Add(good.encode())
	f.Add(append(good.encode(), rec[:]...))
	f.Add(append(good.encode(), rec[:9]...))
	path := filepath.Join(f.TempDir(), "store")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(journalFile(path, 0), data, 0o600); err != nil {
			t.Fatal(err)
		}
		n := int64(0)
		_, size, err := readJournal(path, good.owner, func(uint64, int64) error { n++; return nil })
		if err == nil && size != journalHeader+n*journalRecord {
			t.Fatalf("%d values in %d bytes", n, size)
		}
	})
}
