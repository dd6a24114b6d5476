package handshake

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// withRecords returns both ends of a connection with records, whose bytes from
// client to server pass through edit, one write each.
func withRecords(t *testing.T, edit func(wire net.Conn, record []byte)) (cli, srv *Conn) {
	t.Helper()
	a, inner := net.Pipe()
	outer, b := net.Pipe()
	ours, theirs := [32]byte{1}, [32]byte{2}
	o, th := ours, theirs
	cr, err := newRecords(a, &o, &th)
	if err != nil {
		t.Fatal(err)
	}
	sr, err := newRecords(b, &theirs, &ours)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer outer.Close()
		buf := make([]byte, recordHeader+maxRecord+recordTag)
		for {
			n, err := inner.Read(buf)
			if err != nil {
				return
			}
			if edit == nil {
				outer.Write(buf[:n])
			} else {
				edit(outer, bytes.Clone(buf[:n]))
			}
		}
	}()
	t.Cleanup(func() { a.Close(); inner.Close(); outer.Close(); b.Close() })
	return &Conn{Conn: a, records: cr}, &Conn{Conn: b, records: sr}
}

func TestRecords(t *testing.T) {
	for _, size := range []int{0, 1, 100, 4096, maxRecord - 1, maxRecord, maxRecord + 1, 3*maxRecord + 5} {
		data := make([]byte, size)
		rand.Read(data)
		for name, reader := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "by bytes": iotest.OneByteReader, "by halves": iotest.HalfReader,
		} {
			cli, srv := withRecords(t, nil)
			go func() {
				cli.Write(data)
				cli.CloseWrite() // which waits for a slow reader longer than Close
				cli.Close()
			}()
			got, err := io.ReadAll(reader(srv))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %s: %d, %v", size, name, len(got), err)
			}
		}
	}
}

// Records that come in pieces, or many at once.
func TestRecordsInPieces(t *testing.T) {
	data := make([]byte, 3*maxRecord)
	rand.Read(data)
	for _, piece := range []int{1, 3, 1000, 5000} {
		var held []byte
		cli, srv := withRecords(t, func(wire net.Conn, record []byte) {
			held = append(held, record...)
			if len(record) > recordHeader+recordTag {
				return // until the last one
			}
			for len(held) > 0 {
				n := min(piece*len(held)/3000+1, len(held))
				wire.Write(held[:n])
				held = held[n:]
			}
		})
		go func() {
			for rest := data; len(rest) > 0; {
				n := min(len(rest), 777)
				cli.Write(rest[:n])
				rest = rest[n:]
			}
			cli.Close()
		}()
		got, err := io.ReadAll(srv)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("pieces of %d: %d bytes, %v", piece, len(got), err)
		}
	}
}

// Whatever is done to records on their way, what comes out is a part from the
// beginning of what was sent, and an error.
func TestRecordsAttacked(t *testing.T) {
	var first []byte
	for name, c := range map[string]struct {
		edit func(i int, wire net.Conn, record []byte)
		want error
	}{
		"cut between records": {func(i int, wire net.Conn, r []byte) {
			if i == 1 {
				wire.Close()
			}
			wire.Write(r)
		}, ErrTruncated},
		"cut in a record": {func(i int, wire net.Conn, r []byte) { wire.Write(r[:len(r)-1]); wire.Close() }, ErrTruncated},
		"cut in a header": {func(i int, wire net.Conn, r []byte) { wire.Write(r[:2]); wire.Close() }, ErrTruncated},
		"nothing":         {func(i int, wire net.Conn, r []byte) { wire.Close() }, ErrTruncated},
		"one left out":    {func(i int, wire net.Conn, r []byte) { writeIf(wire, r, i != 1) }, ErrTampered},
		"one repeated":    {func(i int, wire net.Conn, r []byte) { wire.Write(r); writeIf(wire, r, i == 1) }, ErrTampered},
		"two exchanged": {func(i int, wire net.Conn, r []byte) {
			if i == 0 {
				first = r
				return
			}
			wire.Write(r)
			writeIf(wire, first, i == 1)
		}, ErrTampered},
		"an end of another's": {func(i int, wire net.Conn, r []byte) {
			writeIf(wire, append([]byte{recordEnd, 0, 0, 0}, r[len(r)-recordTag:]...), i == 1)
		}, ErrTampered},
		"a length too long":   {func(i int, wire net.Conn, r []byte) { wire.Write([]byte{0, 0xff, 0xff, 0xff}) }, ErrTampered},
		"a record of nothing": {func(i int, wire net.Conn, r []byte) { wire.Write(make([]byte, recordHeader+recordTag)) }, ErrTampered},
		"another kind":        {func(i int, wire net.Conn, r []byte) { r[0] = 2; wire.Write(r) }, ErrTampered},
		"inserted": {func(i int, wire net.Conn, r []byte) {
			writeIf(wire, append([]byte{0, 0, 0, 1, 'x'}, make([]byte, recordTag)...), i == 1)
			wire.Write(r)
		}, ErrTampered},
	} {
		i := 0
		cli, srv := withRecords(t, func(wire net.Conn, r []byte) { c.edit(i, wire, r); i++ })
		go func() {
			for _, s := range []string{"one ", "two ", "three "} {
				cli.Write([]byte(s))
			}
			cli.Close()
		}()
		got, err := io.ReadAll(srv)
		if !errors.Is(err, c.want) || !bytes.HasPrefix([]byte("one two three "), got) || len(got) == len("one two three ") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if _, again := srv.Read(make([]byte, 1)); again != err {
			t.Errorf("%s: then %v", name, again)
		}
	}
}

func writeIf(w io.Writer, b []byte, ok bool) {
	if ok {
		w.Write(b)
	}
}

// Every bit of a record counts.
func TestRecordBitFlip(t *testing.T) {
	d, _ := newDirection(&[32]byte{7})
	record := d.seal([]byte("\x00\x00\x00\x04data"))
	for i := range record {
		for bit := range 8 {
			other, _ := newDirection(&[32]byte{7})
			b := bytes.Clone(record)
			b[i] ^= 1 << bit
			_, size, err := parseRecordHeader(b)
			if err != nil || size != len(b) {
				continue
			}
			if _, err := other.open(b); err == nil {
				t.Errorf("bit %d of byte %d does not count", bit, i)
			}
		}
	}
	other, _ := newDirection(&[32]byte{7})
	if got, err := other.open(record); err != nil || string(got) != "data" {
		t.Errorf("%q, %v", got, err)
	}
}

// A record of one direction, or of another session, is none in the other.
func TestRecordDirections(t *testing.T) {
	srv, cli := pair()
	srv.Records, cli.Records = true, true
	e, other := piped(srv, cli), piped(srv, cli)
	if e.clientErr != nil || other.clientErr != nil {
		t.Fatal(e.clientErr, other.clientErr)
	}
	record := e.client.records.sealer.seal([]byte("\x00\x00\x00\x04data"))
	for name, d := range map[string]*direction{"reflected": &e.client.records.opener, "another session": &other.server.records.opener} {
		if _, err := d.open(record); !errors.Is(err, ErrTampered) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := e.server.records.opener.open(record); err != nil {
		t.Error(err)
	}
}

func TestCloseByHalves(t *testing.T) {
	srv, cli := pair()
	for _, records := range []bool{false, true} {
		srv.Records, cli.Records = records, records
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		hl, err := NewListener(l, *srv)
		if err != nil {
			t.Fatal(err)
		}
		c, err := (&Dialer{Config: *cli}).Dial(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := hl.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("question"))
		if err := errors.Join(c.CloseWrite(), c.CloseWrite()); records && err != nil {
			t.Error(err)
		}
		if _, err := c.Write([]byte("more")); err == nil {
			t.Error("a write after CloseWrite")
		}
		if got, err := io.ReadAll(s); string(got) != "question" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		s.Write([]byte("answer"))
		s.Close()
		if got, err := io.ReadAll(c); string(got) != "answer" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		c.Close()
		hl.Close()
	}
	e := piped(srv, cli)
	e.client.records, e.server.records = nil, nil
	if err := e.client.CloseWrite(); err == nil {
		t.Error("half of a pipe was closed")
	}
}

// A deadline in the middle of a record does no harm to what is read; what is
// written in part ends the direction.
func TestRecordDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		cli, srv := withRecords(t, func(wire net.Conn, r []byte) {
			wire.Write(r[:6])
			<-release
			wire.Write(r[6:])
		})
		go cli.Write([]byte("data"))
		srv.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := srv.Read(make([]byte, 9)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		srv.SetReadDeadline(time.Time{})
		close(release)
		got := make([]byte, 9)
		if n, err := srv.Read(got); string(got[:n]) != "data" || err != nil {
			t.Errorf("%q, %v", got, err)
		}

		a, b := net.Pipe()
		r, _ := newRecords(a, &[32]byte{}, &[32]byte{})
		c := &Conn{Conn: a, records: r}
		c.SetWriteDeadline(time.Now().Add(time.Second))
		go io.ReadFull(b, make([]byte, 3))
		if _, err := c.Write([]byte("data")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		c.SetWriteDeadline(time.Time{})
		if _, err := c.Write([]byte("data")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a write after half a record:", err)
		}
		b.Close()
	})
}

// Close does not wait for ever for a peer that does not read.
func TestCloseDoesNotHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, busy := range []bool{false, true} {
			a, b := net.Pipe()
			r, _ := newRecords(a, &[32]byte{}, &[32]byte{})
			c := &Conn{Conn: a, records: r}
			if busy {
				go c.Write(make([]byte, 10))
				synctest.Wait()
			}
			began := time.Now()
			c.Close()
			if d := time.Since(began); d > farewell || busy && d > 0 {
				t.Errorf("Close took %v", d)
			}
			b.Close()
			if _, err := c.Write([]byte("x")); err == nil {
				t.Error("a write after Close")
			}
			synctest.Wait()
		}
	})
}
