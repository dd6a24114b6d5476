package limpet

import (
	"crypto/subtle"
	"net/http"

	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/proof"
)

// StreamBody is the [Rule].Body of routes whose app reads the body as it comes.
const StreamBody = -1

// CheckBody returns a handler that compares the body of login requests with the
// digest that their proof of possession covers, and hands only those to next
// that have it; the rest it answers with [Refuse]. It reads at most
// Config.MaxBody. Put it before the handler of the login: when that calls
// [Guard.Bind], which verifies the proof, it has read the body.
func (g *Guard) CheckBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := g.CheckLogin(r); err != nil {
			g.Report(r.Context(), &Decision{Result: Refused, Err: err, Method: r.Method, Path: incoming.Message(r).Path})
			Refuse(w, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// CheckLogin is what [Guard.CheckBody] does before it hands a login on. The body
// is read and put back. A request that has a bound session's token in its URL is
// refused as well. The error is a *[proof.Refusal], and the caller's to report.
func (g *Guard) CheckLogin(r *http.Request) error {
	m := incoming.Message(r)
	token, _ := g.cfg.Session.Token(r.Header) // what else is wrong with it is the login's affair
	if err := g.notElsewhere(r.Context(), &m, token); err != nil {
		return err
	}
	for _, wire := range wires {
		offer, err := wire.Offer(&m)
		if err != nil {
			return err
		}
		if offer == nil || offer.Proof == nil || !offer.Proof.Digest || !m.HasBody {
			continue
		}
		sum, err := incoming.HashBody(r, g.cfg.MaxBody)
		if err != nil {
			return err
		}
		if subtle.ConstantTimeCompare(sum[:], offer.Proof.BodyClaim) == 0 {
			return &proof.Refusal{Reason: proof.BodyDiffer, Detail: "the login's body is not the one with the digest"}
		}
	}
	return nil
}
