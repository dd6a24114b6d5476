package limpet

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

// StreamBody is the [Rule].Body of routes whose app reads the body as it comes.
const StreamBody = -1

// hashBody reads the body, at most limit bytes of it, and puts it back.
func hashBody(r *http.Request, limit int64) (sum [sha256.Size]byte, err error) {
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

// digestedBody is a body that fails to end if it is not the one with the digest.
// Its last byte is held back until that is known: some read only as far as they
// must, as a JSON decoder does, and would never see the error behind it. A body
// that is not read to its end is not checked.
type digestedBody struct {
	io.ReadCloser
	hash hash.Hash
	want [sha256.Size]byte

	last byte // read and held back, if held
	held bool
	end  error // what the body ended with; nil before

	observe func(*proof.Refusal) // told of another body, which then passes; nil: it does not pass
}

func newDigestedBody(body io.ReadCloser, want [sha256.Size]byte) *digestedBody {
	return &digestedBody{ReadCloser: body, hash: sha256.New(), want: want}
}

func (b *digestedBody) Read(p []byte) (int, error) {
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
func (b *digestedBody) right() bool {
	if subtle.ConstantTimeCompare(b.hash.Sum(nil), b.want[:]) == 1 {
		return true
	}
	refusal := &proof.Refusal{Reason: proof.BodyDiffer, Detail: "the body is not the one with the digest"}
	if b.observe != nil {
		b.observe(refusal)
		return true
	}
	b.end = refusal
	return false
}

// CheckBody returns a handler that compares the body of login requests with the
// digest that their proof of possession covers, and hands only those to next
// that have it; the rest it answers with [Refuse]. It reads at most
// Config.MaxBody. Put it before the handler of the login: when that calls
// [Guard.Bind], which verifies the proof, it has read the body.
func (g *Guard) CheckBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := g.checkBody(r); err != nil {
			Refuse(w, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (g *Guard) checkBody(r *http.Request) error {
	m := messageOf(r)
	for _, wire := range wires {
		offer, err := wire.Offer(&m)
		if err != nil {
			return err
		}
		if offer == nil || offer.Proof == nil || !offer.Proof.Digest || !m.HasBody {
			continue
		}
		sum, err := hashBody(r, g.cfg.MaxBody)
		if err != nil {
			return err
		}
		if subtle.ConstantTimeCompare(sum[:], offer.Proof.BodyClaim) == 0 {
			return &proof.Refusal{Reason: proof.BodyDiffer, Detail: "the login's body is not the one with the digest"}
		}
	}
	return nil
}
