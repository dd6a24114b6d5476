//go:build !race

package httpsig

import (
	"testing"

	"github.com/limpet-auth/limpet/proof"
)

// Reading the usual proof, an HMAC by a known key, allocates nothing once the
// Proof has its buffers.
func TestExtractAllocates(t *testing.T) {
	s := newSigner(t, proof.HMACSHA256)
	for _, inCookie := range []bool{false, true} {
		m := s.signed(t, inCookie, true)
		var p proof.Proof
		n := testing.AllocsPerRun(1000, func() {
			p.Reset()
			if found, err := (Wire{}).Extract(m, &p); !found || err != nil {
				t.Fatal(found, err)
			}
		})
		if n > 0 {
			t.Errorf("Extract allocates %v times", n)
		}
	}
}
