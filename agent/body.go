package agent

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
)

const (
	maxMemory = 1 << 20 // bytes of a body that are kept in memory
	maxBody   = 1 << 30 // bytes of a session's; those over maxMemory are in a file
	maxLogin  = 1 << 20 // bytes of a login's, which anybody can send
)

var errBodyLarge = errors.New("a body over the limit")

// kept is a body that was read before the request goes out: a proof covers its
// digest, which stands before it, and a refused request is sent again.
type kept struct {
	bytes []byte
	file  *os.File // in place of bytes; nobody can open it
	size  int64
}

// keepBody reads the request's body and puts it back as one that can be read
// again.
func (x *exchange) keepBody(r *http.Request) error {
	limit := int64(maxBody)
	if x.login {
		limit = maxLogin
	}
	if r.ContentLength > limit {
		return errBodyLarge
	}
	var start bytes.Buffer
	n, err := io.Copy(&start, io.LimitReader(r.Body, maxMemory))
	if err != nil {
		return err
	}
	x.kept = &kept{bytes: start.Bytes(), size: n}
	if n == maxMemory {
		if err := x.kept.spill(r.Body, limit); err != nil {
			return err
		}
	}
	r.Body.Close()
	delete(r.Header, "Expect") // the program was told to go on
	if len(r.Trailer) == 0 {   // which only go behind a body of unknown length
		r.ContentLength, r.TransferEncoding = x.kept.size, nil
		if x.kept.size == 0 {
			r.Body = http.NoBody
			return nil
		}
	}
	r.GetBody = func() (io.ReadCloser, error) { return x.kept.reader(), nil }
	r.Body = x.kept.reader()
	return nil
}

// spill moves the bytes to a file, and what is left of the body with them: limit
// bytes in all.
func (k *kept) spill(rest io.Reader, limit int64) (err error) {
	if k.file, err = os.CreateTemp("", "limpet-body-*"); err != nil { // mode 0600
		return err
	}
	os.Remove(k.file.Name()) // where an open file cannot be removed, Close does it
	k.size, err = io.Copy(k.file, io.MultiReader(bytes.NewReader(k.bytes), io.LimitReader(rest, limit+1-k.size)))
	k.bytes = nil
	if err == nil && k.size > limit {
		err = errBodyLarge
	}
	return err
}

func (k *kept) reader() io.ReadCloser {
	if k.file == nil {
		return io.NopCloser(bytes.NewReader(k.bytes))
	}
	return io.NopCloser(io.NewSectionReader(k.file, 0, k.size))
}

// Close lets go of the file, if there is one.
func (k *kept) Close() error {
	if k == nil || k.file == nil {
		return nil
	}
	err := k.file.Close()
	if gone := os.Remove(k.file.Name()); !errors.Is(gone, os.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}
