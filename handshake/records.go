package handshake

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// A record is a header, data and a tag: AES-256-GMAC (SP 800-38D) over header
// and data, that is GCM with nothing to encrypt. Each direction has a key of its
// own. The nonce is the number of the record in its direction, so that none can
// be left out, repeated or moved; it is not sent.
const (
	recordHeader = 4 // what it is, and the length of the data in three bytes
	recordTag    = 16
	maxRecord    = 64 << 10 // bytes of data

	recordData = 0
	recordEnd  = 1 // no data; nothing follows
)

var (
	// ErrTampered means that what came is not what the peer has sent. The
	// connection is closed.
	ErrTampered = errors.New("limpet: handshake: a record was changed on its way")

	// ErrTruncated means that the connection ended without the peer saying so.
	ErrTruncated = errors.New("limpet: handshake: the connection was cut off")

	errEnded = errors.New("limpet: handshake: write after CloseWrite or Close")
)

// records is what Config.Records adds to a connection.
type records struct {
	conn net.Conn

	reading sync.Mutex
	opener  direction
	in      []byte // in[start:end] has come and was not looked at yet
	start   int
	limit   int
	data    []byte // what has been checked and was not read yet; lies in in
	readErr error  // for good

	writing  sync.Mutex
	sealer   direction
	out      []byte
	writeErr error // for good
}

// direction is one direction's key and counter.
type direction struct {
	gmac    cipher.AEAD
	counter uint64
	nonce   [12]byte
}

func newRecords(conn net.Conn, ours, theirs *[32]byte) (_ *records, err error) {
	r := &records{conn: conn}
	if r.sealer, err = newDirection(ours); err != nil {
		return nil, err
	}
	r.opener, err = newDirection(theirs)
	return r, err
}

// newDirection wipes the key.
func newDirection(key *[32]byte) (d direction, err error) {
	defer clear(key[:])
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return d, err
	}
	d.gmac, err = cipher.NewGCM(block)
	return d, err
}

// next returns the nonce of the next record.
func (d *direction) next() []byte {
	binary.BigEndian.PutUint64(d.nonce[4:], d.counter)
	d.counter++
	return d.nonce[:]
}

// seal appends the tag of a header and data.
func (d *direction) seal(b []byte) []byte { return d.gmac.Seal(b, d.next(), nil, b) }

// open checks a whole record and returns its data.
func (d *direction) open(record []byte) ([]byte, error) {
	tagged := record[:len(record)-recordTag]
	if _, err := d.gmac.Open(nil, d.next(), record[len(tagged):], tagged); err != nil {
		return nil, ErrTampered
	}
	return tagged[recordHeader:], nil
}

// parseRecordHeader returns what a record is, and its whole size.
func parseRecordHeader(b []byte) (kind byte, size int, err error) {
	n := int(b[1])<<16 | int(b[2])<<8 | int(b[3])
	switch {
	case b[0] == recordData && n > 0 && n <= maxRecord:
	case b[0] == recordEnd && n == 0:
	default:
		return 0, 0, ErrTampered
	}
	return b[0], recordHeader + n + recordTag, nil
}

func (r *records) read(p []byte) (int, error) {
	r.reading.Lock()
	defer r.reading.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.data) == 0 {
		if r.readErr != nil {
			return 0, r.readErr
		}
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}

// fill reads one record. After a deadline it goes on where it was.
func (r *records) fill() error {
	if err := r.need(recordHeader); err != nil {
		return err
	}
	kind, size, err := parseRecordHeader(r.in[r.start:])
	if err != nil {
		return r.broken(err)
	}
	if err := r.need(size); err != nil {
		return err
	}
	data, err := r.opener.open(r.in[r.start : r.start+size])
	if err != nil {
		return r.broken(err)
	}
	r.start += size
	r.data = data
	if kind == recordEnd {
		r.readErr = io.EOF
		return io.EOF
	}
	return nil
}

// broken ends a connection that somebody meddles with.
func (r *records) broken(err error) error {
	r.readErr = err
	abort(r.conn)
	return err
}

// need reads until n bytes are there that were not looked at yet.
func (r *records) need(n int) error {
	for r.limit-r.start < n {
		if r.start == r.limit {
			r.start, r.limit = 0, 0
		}
		if r.start+n > len(r.in) {
			r.makeRoom(n)
		}
		m, err := r.conn.Read(r.in[r.limit:])
		r.limit += m
		if m > 0 || err == nil {
			continue // an error comes again
		}
		if err == io.EOF {
			r.readErr = ErrTruncated
			return ErrTruncated
		}
		return err
	}
	return nil
}

// makeRoom moves what is there to the beginning of a buffer that n bytes fit
// into. It starts small, since most connections that wait are idle, and for large
// records is no larger than one and the next one's header, so that little has to
// be moved.
func (r *records) makeRoom(n int) {
	to := r.in
	if n > len(to) {
		to = make([]byte, max(n+recordHeader, 4<<10))
	}
	r.limit = copy(to, r.in[r.start:r.limit])
	r.start, r.in = 0, to
}

func (r *records) write(p []byte) (n int, err error) {
	r.writing.Lock()
	defer r.writing.Unlock()
	for len(p) > 0 {
		size := min(len(p), maxRecord)
		if err := r.send(recordData, p[:size]); err != nil {
			return n, err
		}
		n += size
		p = p[size:]
	}
	return n, r.writeErr
}

// send sends one record. A record that was sent in part ends the direction.
func (r *records) send(kind byte, data []byte) error {
	if r.writeErr != nil {
		return r.writeErr
	}
	n := len(data)
	if size := recordHeader + n + recordTag; cap(r.out) < size {
		r.out = make([]byte, 0, size)
	}
	b := append(r.out[:0], kind, byte(n>>16), byte(n>>8), byte(n))
	b = append(b, data...)
	b = r.sealer.seal(b)
	if _, err := r.conn.Write(b); err != nil {
		r.writeErr = err
		return err
	}
	return nil
}

// end tells the peer that this direction is over.
func (r *records) end() error {
	r.writing.Lock()
	defer r.writing.Unlock()
	if r.writeErr == errEnded {
		return nil
	}
	err := r.send(recordEnd, nil)
	if err == nil {
		r.writeErr = errEnded
	}
	return err
}

// farewell is how long Close waits for the last record to leave.
const farewell = time.Second

// endNow is end for Close: it does not wait for a Write that is going on, nor for
// a peer that does not read.
func (r *records) endNow() {
	if !r.writing.TryLock() {
		return
	}
	defer r.writing.Unlock()
	if r.writeErr == nil {
		r.conn.SetWriteDeadline(time.Now().Add(farewell))
		r.send(recordEnd, nil)
	}
	r.writeErr = errEnded
}
