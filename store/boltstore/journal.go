package boltstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"
)

// A journal is two files that take turns. Each has a header and, after it,
// records of 16 bytes: fingerprint, Unix second of expiry, checksum. The
// checksum covers owner and turn as well, so that a record of another file is
// none.
//
// header: magic 8 | owner 16 | boot 16 | turn 8 | first 8 | start 8 | floor 8 | zero 4 | crc 4
const (
	journalMagic  = "limpetS1"
	journalHeader = 80
	journalRecord = 16
)

type header struct {
	owner [16]byte // the database it belongs to
	boot  [16]byte // the boot of the machine it was written in; zero if unknown
	turn  uint64   // counts up; its parity names the file
	first uint64   // the turn this journal began with; what came before is unknown
	start int64    // Unix second this turn began
	floor int64    // what expires up to here was unknown when the journal began
}

func (h *header) encode() []byte {
	b := make([]byte, 0, journalHeader)
	b = append(b, journalMagic...)
	b = append(b, h.owner[:]...)
	b = append(b, h.boot[:]...)
	for _, v := range []uint64{h.turn, h.first, uint64(h.start), uint64(h.floor)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = append(b, 0, 0, 0, 0)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// seed is what the checksums of the file's records begin with.
func (h *header) seed() uint32 {
	return crc32.Checksum(binary.BigEndian.AppendUint64(h.owner[:], h.turn), castagnoli)
}

func (h *header) decode(b []byte) bool {
	n := len(b) - 4
	if string(b[:8]) != journalMagic || binary.BigEndian.Uint32(b[n:]) != crc32.Checksum(b[:n], castagnoli) {
		return false
	}
	copy(h.owner[:], b[8:])
	copy(h.boot[:], b[24:])
	h.turn = binary.BigEndian.Uint64(b[40:])
	h.first = binary.BigEndian.Uint64(b[48:])
	h.start = int64(binary.BigEndian.Uint64(b[56:]))
	h.floor = int64(binary.BigEndian.Uint64(b[64:]))
	return true
}

// journal is the one being written.
type journal struct {
	path string // of the store

	mu   sync.Mutex
	head header
	now  int64 // the latest second seen
	file *os.File
	size int64 // of what is good in file
}

func journalFile(path string, turn uint64) string {
	return fmt.Sprintf("%s.spent%d", path, turn%2)
}

// begin starts the turn that head describes, with the file of the turn before
// the last one replaced by an empty one.
func (j *journal) begin(head header) error {
	name := journalFile(j.path, head.turn)
	// The file appears under its name whole, with its header, or not at all.
	// It is closed before that for systems that do not rename open files.
	b := head.encode()
	temp := name + ".new"
	err := os.WriteFile(temp, b, 0o600)
	if err == nil {
		err = os.Rename(temp, name)
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if j.file != nil {
		j.file.Close()
	}
	j.head, j.file, j.size = head, f, journalHeader
	j.now = max(j.now, head.start)
	return nil
}

// resume goes on with the journal that readJournal found, in this boot.
func (j *journal) resume(head header, size int64, boot [16]byte) error {
	for turn := max(head.first, head.turn-1); turn <= head.turn && head.boot != boot; turn++ {
		// It was sealed in another boot.
		if err := setBoot(journalFile(j.path, turn), boot); err != nil {
			return err
		}
	}
	head.boot = boot
	f, err := os.OpenFile(journalFile(j.path, head.turn), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	j.head, j.file, j.size, j.now = head, f, size, head.start
	return nil
}

func setBoot(name string, boot [16]byte) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, journalHeader)
	if _, err := io.ReadFull(f, b); err != nil {
		return err
	}
	var head header
	if !head.decode(b) {
		return errors.New("the journal is damaged")
	}
	head.boot = boot
	_, err = f.WriteAt(head.encode(), 0)
	return err
}

// append hands a record to the kernel. Its value expires at most shortLife
// after now; so when a file has been written to for that long and then lain for
// as long, all it holds has expired.
func (j *journal) append(fp uint64, exp, now int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return errClosed
	}
	if j.now = max(j.now, now); j.now >= j.head.start+shortLife {
		next := j.head
		next.turn++
		next.start = j.now
		if err := j.begin(next); err != nil {
			return fmt.Errorf("limpet: boltstore: journal of spent values: %w", err)
		}
	}
	var rec [journalRecord]byte
	encodeSpent(&rec, j.head.seed(), fp, exp)
	// A write that failed half-way is overwritten by the next.
	if _, err := j.file.WriteAt(rec[:], j.size); err != nil {
		return fmt.Errorf("limpet: boltstore: journal of spent values: %w", err)
	}
	j.size += journalRecord
	return nil
}

func encodeSpent(rec *[journalRecord]byte, seed uint32, fp uint64, exp int64) {
	binary.BigEndian.PutUint64(rec[:], fp)
	binary.BigEndian.PutUint32(rec[8:], uint32(exp)) // good until 2106
	binary.BigEndian.PutUint32(rec[12:], crc32.Update(seed, castagnoli, rec[:12]))
}

// seal makes the journal durable, closes it and returns what a later start has
// to find: the turn and the size of its file.
func (j *journal) seal() (turn uint64, size int64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return 0, 0, errClosed
	}
	err = j.file.Truncate(j.size)
	if err == nil {
		err = j.file.Sync()
	}
	if e := j.file.Close(); err == nil {
		err = e
	}
	j.file = nil
	if err == nil && j.head.turn > j.head.first {
		var f *os.File
		if f, err = os.OpenFile(journalFile(j.path, j.head.turn-1), os.O_RDWR, 0); err == nil {
			err = f.Sync()
			f.Close()
		}
	}
	if err == nil {
		err = syncDir(j.path)
	}
	return j.head.turn, j.size, err
}

// readJournal gives add every value that the journal beside the store at path
// holds, and returns the header and size of the file to go on with. An error
// means that something is missing or damaged; what add was given is good.
func readJournal(path string, owner [16]byte, add func(fp uint64, exp int64) error) (head header, size int64, err error) {
	var heads [2]header
	var found [2]bool
	for i := range heads {
		f, err := os.Open(journalFile(path, uint64(i)))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return header{}, 0, err
		}
		b := make([]byte, journalHeader)
		_, err = io.ReadFull(f, b)
		f.Close()
		found[i] = err == nil && heads[i].decode(b) && heads[i].owner == owner && heads[i].turn%2 == uint64(i)
	}
	last := 0
	if !found[0] || found[1] && heads[1].turn > heads[0].turn {
		last = 1
	}
	if !found[last] {
		return header{}, 0, errors.New("no journal")
	}
	head = heads[last]
	if head.turn > head.first {
		if before := heads[1-last]; !found[1-last] || before.turn != head.turn-1 || before.first != head.first || before.boot != head.boot {
			return header{}, 0, errors.New("one file of the journal is missing")
		}
		if _, err := readSpent(path, heads[1-last], add); err != nil {
			return header{}, 0, err
		}
	}
	size, err = readSpent(path, head, add)
	return head, size, err
}

// readSpent gives add the values in the file of head and returns the size of
// what is good. Half a record at the end was never acknowledged.
func readSpent(path string, head header, add func(fp uint64, exp int64) error) (size int64, err error) {
	f, err := os.Open(journalFile(path, head.turn))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<16)
	if _, err := r.Discard(journalHeader); err != nil {
		return 0, err
	}
	seed := head.seed()
	size = journalHeader
	for {
		var rec, want [journalRecord]byte
		switch _, err := io.ReadFull(r, rec[:]); {
		case err == io.EOF, err == io.ErrUnexpectedEOF:
			return size, nil
		case err != nil:
			return 0, err
		}
		fp, exp := binary.BigEndian.Uint64(rec[:]), int64(binary.BigEndian.Uint32(rec[8:]))
		if encodeSpent(&want, seed, fp, exp); rec != want {
			return 0, errors.New("the journal is damaged")
		}
		if err := add(fp, exp); err != nil {
			return 0, err
		}
		size += journalRecord
	}
}
