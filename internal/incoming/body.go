package incoming

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"hash"
	"io"
	"math"
	"net/http"

	"github.com/limpet-auth/limpet/proof"
)

// HashBody reads the body, at most limit bytes of it, and puts it back.
func HashBody(r *http.Request, limit int64) (sum [sha256.Size]byte, err error) {
	limit = min(limit, math.MaxInt64-1)
	if r.ContentLength > limit {
		return sum, &proof.Refusal{Reason: proof.BodyLarge, Detail: "a body over the limit"}
	}
	if r.Body == nil { // a request made by hand
		return sha256.Sum256(nil), nil
	}
	var buf bytes.Buffer
	buf.Grow(int(min(max(0, r.ContentLength), 64<<10)) + bytes.MinRead) // the length is only promised
	h := sha256.New()
	_, err = buf.ReadFrom(io.TeeReader(io.LimitReader(r.Body, limit+1), h))
	body := buf.Bytes()
	r.Body = struct { // whole, for mode Observe
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), r.Body), r.Body}
	if err != nil {
		return sum, &proof.Refusal{Reason: proof.Malformed, Detail: "body", Err: err}
	}
	if int64(len(body)) > limit {
		return sum, &proof.Refusal{Reason: proof.BodyLarge, Detail: "a body over the limit"}
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// DigestedBody is a body that fails to end if it is not the one with the digest.
// Its last byte is held back until that is known: some read only as far as they
// must, as a JSON decoder does, and would never see the error behind it. A body
// that is not read to its end is not checked.
type DigestedBody struct {
	io.ReadCloser
	hash hash.Hash
	want [sha256.Size]byte

	last byte // read and held back, if held
	held bool
	end  error // what the body ended with; nil before

	// Differs is told of another body, and says if it passes nonetheless. If it is
	// nil it does not.
	Differs func(*proof.Refusal) (pass bool)
}

// NewDigestedBody returns body, which must have the SHA-256 want.
func NewDigestedBody(body io.ReadCloser, want [sha256.Size]byte) *DigestedBody {
	return &DigestedBody{ReadCloser: body, hash: sha256.New(), want: want}
}

// Read implements [io.Reader]. In place of the last byte of another body it
// returns a *[proof.Refusal].
func (b *DigestedBody) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for b.end == nil {
		n, err := b.ReadCloser.Read(p)
		b.hash.Write(p[:n])
		b.end = err
		if err == io.EOF && !b.right() {
			b.held = false
			return 0, b.end
		}
		if n == 0 {
			continue
		}
		// The byte held back goes first, the last one of these stays.
		last := p[n-1]
		if b.held {
			copy(p[1:n], p[:n-1])
			p[0] = b.last
		} else {
			n--
		}
		b.last, b.held = last, true
		if n > 0 {
			return n, nil
		}
	}
	if b.held {
		p[0], b.held = b.last, false
		return 1, nil
	}
	return 0, b.end
}

// right reports whether the body, read to its end, may end.
func (b *DigestedBody) right() bool {
	if subtle.ConstantTimeCompare(b.hash.Sum(nil), b.want[:]) == 1 {
		return true
	}
	refusal := &proof.Refusal{Reason: proof.BodyDiffer, Detail: "the body is not the one with the digest"}
	if b.Differs != nil && b.Differs(refusal) {
		return true
	}
	b.end = refusal
	return false
}
