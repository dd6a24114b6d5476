package client

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

const (
	// patience is how long requests wait for another's introduction to be
	// answered before the next of them introduces the same key. That one may be
	// a long poll.
	patience = 3 * time.Second

	maxRoutes = 256 // routes of a session known to want the hash of the body
)

// hwsignWire is a session on the hw-sign wire. A lease begins in two steps: the
// device key signs a delegation; then one request introduces it to the server,
// while the others wait or, if there is a lease still, use that.
type hwsignWire struct {
	*session
	on    Wire
	names *hwsign.Names

	// Guarded by session.mu.
	lease       *lease          // nil before the first and after a refusal
	delegation  *delegation     // signed, and not answered; nil if there is none
	introducing *introduction   // on its way; nil if there is none
	mute        bool            // the last introduction got no answer: nobody waits for the next
	hashed      map[string]bool // routes that want the hash of the body
	futile      time.Time       // when a guess at a 401's reason last failed
}

// introduction is a request that introduces an ephemeral key.
type introduction struct {
	*delegation
	done chan struct{} // closed when the server has answered, or will not
}

// hwsignProof is the proof of one sending.
type hwsignProof struct {
	wire    *hwsignWire
	req     *http.Request
	lease   *lease        // what proves the request,
	intro   *introduction // or introduces itself with it
	answer  bool          // the introduction got a lease
	hashed  bool          // the proof is for the hash of the body
	prehash bool          // the site's, when the proof was made
}

func (w *hwsignWire) digests() bool { return false }

func (w *hwsignWire) offer(out *try, old *session) (sent, error) {
	alg, typeName := deviceAlgorithm(w.device.Info().Algorithm)
	public, err := proof.NewPublicKey(alg, w.device.Public())
	if err != nil {
		return nil, fmt.Errorf("limpet: client: device key: %w", err)
	}
	enc, err := encodeKey(public)
	if err != nil {
		return nil, fmt.Errorf("limpet: client: device key: %w", err)
	}
	out.Header[w.names.DeviceKey] = []string{base64.StdEncoding.EncodeToString(enc)}
	out.Header[w.names.DeviceKeyType] = []string{typeName}
	out.Header[w.names.DeviceKeyLevel] = []string{string(w.device.Info().Level)}
	if old == nil {
		return nil, nil
	}
	return old.wire.prove(out)
}

// bound: the wire does not say.
func (w *hwsignWire) bound(_ *try, _ *http.Response, tokens []tokenHash) []tokenHash { return tokens }

func (w *hwsignWire) describe(saved *Session) { saved.Wire = w.on.String() }

func (w *hwsignWire) end() { w.lease, w.delegation = nil, nil }

// prove adds the proof to a request.
func (w *hwsignWire) prove(out *try) (sent, error) {
	p := &hwsignProof{wire: w, req: out.Request, prehash: w.site.prehash.Load()}
	var err error
	if p.lease, p.intro, err = w.key(out.Context()); err != nil {
		return nil, err
	}
	var value, sig []byte
	if value, err = p.value(); err == nil {
		if p.intro != nil {
			sig, err = p.intro.prove(value)
		} else {
			sig, err = p.lease.prove(value)
		}
	}
	if err != nil {
		if p.intro != nil {
			w.settle(p.intro, nil, false)
		}
		return nil, fmt.Errorf("limpet: client: %s: %w", w.origin, err)
	}
	h, names := out.Header, w.names
	h[names.Data] = []string{string(value)}
	h[names.DataSig] = []string{base64.StdEncoding.EncodeToString(sig)}
	if p.intro == nil {
		h[names.EphemeralID] = []string{p.lease.id}
		return p, nil
	}
	h[names.EphemeralKey] = []string{p.intro.key}
	h[names.EphemeralType] = []string{p.intro.typeName}
	h[names.EphemeralSig] = []string{p.intro.sig}
	return p, nil
}

// value returns what the proof is made for: the server's time in seconds, "-",
// and 32 random bytes or the hash of the body, in hex.
func (p *hwsignProof) value() ([]byte, error) {
	var tail [sha256.Size]byte
	rand.Read(tail[:]) // never fails
	if p.hashed = rewindable(p.req) && p.wire.wantsHash(p.req); p.hashed {
		h := sha256.New()
		if p.req.GetBody != nil {
			body, err := p.req.GetBody()
			if err != nil {
				return nil, fmt.Errorf("body for its hash: %w", err)
			}
			_, err = io.Copy(h, body)
			body.Close()
			if err != nil {
				return nil, fmt.Errorf("body for its hash: %w", err)
			}
		}
		h.Sum(tail[:0])
	}
	value := strconv.AppendInt(nil, p.wire.site.now().Unix(), 10)
	return hex.AppendEncode(append(value, '-'), tail[:]), nil
}

// key returns what a request proves itself with: the lease, or a key that it
// introduces, which the caller then settles.
func (w *hwsignWire) key(ctx context.Context) (*lease, *introduction, error) {
	for {
		w.mu.Lock()
		now := time.Now()
		live := w.lease != nil && !w.lease.over(now, 5)
		if live && !w.lease.over(now, 4) {
			defer w.mu.Unlock()
			return w.lease, nil, nil
		}
		if w.ended {
			w.mu.Unlock()
			return nil, nil, w.gone()
		}
		if d := w.delegation; d != nil && d.prehash != w.site.prehash.Load() {
			w.delegation = nil
		}
		if w.delegation != nil && (w.introducing == nil || w.mute) {
			defer w.mu.Unlock()
			w.introducing = &introduction{w.delegation, make(chan struct{})}
			return nil, w.introducing, nil
		}
		if w.delegation == nil && w.mayStart() {
			w.startDelegation()
		}
		if live {
			defer w.mu.Unlock()
			return w.lease, nil, nil
		}
		signing, introducing := w.signing, w.introducing
		w.mu.Unlock()

		if signing != nil {
			if err := w.wait(ctx, signing); err != nil {
				return nil, nil, err
			}
			continue
		}
		timer := time.NewTimer(patience)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, nil, w.waited(ctx)
		case <-introducing.done:
			timer.Stop()
		case <-timer.C:
			w.mu.Lock()
			if w.introducing == introducing {
				w.introducing = nil
			}
			w.mu.Unlock()
		}
	}
}

// startDelegation has the device key sign a new delegation. w.mu is held.
func (w *hwsignWire) startDelegation() {
	prehash := w.site.prehash.Load()
	w.start(func(device hwkey.Key) (func(), error) {
		d, err := delegate(device, w.client.Ephemeral, prehash)
		return func() { w.delegation = d }, err
	})
}

// settle ends an introduction: with the lease it got, or nil. The delegation is
// kept for the next request then, even if the server has seen it: introduced
// again it is the same key.
func (w *hwsignWire) settle(in *introduction, l *lease, mute bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(in.done)
	if w.introducing == in {
		w.introducing = nil
	}
	w.mute = mute
	if l == nil || w.ended {
		return
	}
	if w.delegation == in.delegation {
		w.delegation = nil
	}
	// A late answer to an early introduction does not replace a newer lease.
	if w.lease == nil || l.start.After(w.lease.start) {
		w.lease = l
	}
}

// answered settles the introduction, if there was one.
func (p *hwsignProof) answered(resp *http.Response, err error, start time.Time) error {
	w := p.wire
	if p.intro == nil {
		return err
	}
	if err != nil {
		w.settle(p.intro, nil, false)
		return err
	}
	a, err := parseAnswer(resp.Header, w.names, w.site.now(), time.Since(start))
	var l *lease
	if err == nil && a != nil {
		l = &lease{id: a.id, prove: p.intro.prove, term: term{start, a.life}}
		if p.intro.agree != nil && a.server == nil {
			err = errors.New("the server's half of the key agreement is missing")
		} else if p.intro.agree != nil {
			l.prove, err = p.intro.agree(a.server)
		}
	}
	if err != nil {
		w.settle(p.intro, nil, false)
		resp.Body.Close()
		return fmt.Errorf("limpet: client: %s: the server's answer to a new ephemeral key: %w", w.origin, err)
	}
	p.answer = l != nil
	w.settle(p.intro, l, l == nil)
	return nil
}

func (p *hwsignProof) remedy(reason proof.Reason, resp *http.Response, before sent) bool {
	if before != nil {
		if reason == "" {
			p.wire.misguessed(before.(*hwsignProof).prehash)
		}
		return false
	}
	switch reason {
	case proof.KeyUnknown:
		p.drop()
		return true
	case proof.ClockSkew:
		return p.wire.site.adjust(resp.Header.Get("Date"))
	case proof.BodyDiffer:
		if !p.hashed {
			p.wire.rememberHash(p.req)
			return true
		}
	case proof.NonceSpent:
		return harmless(p.req)
	case "":
		return p.guess()
	}
	return false
}

// drop gives up the key that a request was proven by.
func (p *hwsignProof) drop() {
	w := p.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.lease != nil && w.lease == p.lease {
		w.lease = nil
	}
	if p.intro != nil && w.delegation == p.intro.delegation {
		w.delegation = nil
	}
}

// guess is the remedy for a 401 without a reason. hw-sign servers give none,
// and may have forgotten the ephemeral key, or verify Ed25519 in another form.
// But it may be the app's own as well. Each guess costs the device key a
// signature, so after a wrong one there is none for a minute.
func (p *hwsignProof) guess() bool {
	w := p.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Since(w.futile) < time.Minute {
		return false
	}
	if p.lease != nil {
		if w.lease == p.lease {
			w.lease = nil
		}
		if !rewindable(p.req) {
			w.futile = time.Now() // nobody will know whether it was right
		}
		return true
	}
	ed25519 := p.intro.typeName == hwsign.TypeEd25519 || w.device != nil && w.device.Info().Algorithm == hwkey.Ed25519
	if p.answer || !ed25519 || !rewindable(p.req) {
		return false
	}
	w.site.prehash.Store(!p.intro.prehash)
	return true
}

// misguessed notes that a guess did not help, and what prehash was before it.
func (w *hwsignWire) misguessed(prehash bool) {
	w.site.prehash.Store(prehash)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.futile = time.Now()
}

// wantsHash reports whether the proof of a request is to be for the hash of its
// body.
func (w *hwsignWire) wantsHash(req *http.Request) bool {
	if w.client.BodyHash != nil && w.client.BodyHash(req) {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hashed[route(req)]
}

func (w *hwsignWire) rememberHash(req *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hashed == nil {
		w.hashed = make(map[string]bool)
	}
	for other := range w.hashed { // any one will do: map order is random
		if len(w.hashed) < maxRoutes {
			break
		}
		delete(w.hashed, other)
	}
	w.hashed[route(req)] = true
}

func route(req *http.Request) string { return req.Method + " " + req.URL.EscapedPath() }
