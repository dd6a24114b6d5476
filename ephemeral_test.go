package limpet

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

func TestLease(t *testing.T) {
	s := newSite(t, Config{Lease: time.Minute})
	d := s.login("token", "alice")
	captured := d.introduction(newECDH(t), s.value())
	d.introduce()
	s.pass(59 * time.Second)
	expect(t, "inside the lease", d.get(), "")
	s.pass(2 * time.Second)
	expect(t, "after the lease", d.get(), proof.KeyUnknown)
	expect(t, "an introduction made before", d.send("GET", "/", "", captured), proof.ClockSkew)
	expect(t, "a new key", d.introduce(), "")
	expect(t, "proof by the new key", d.get(), "")
}

// A delegation has no expiry on this wire. Whoever holds an old ephemeral key
// and its delegation must not get another lease with them.
func TestDelegationIsUsedOnce(t *testing.T) {
	s := newSite(t, Config{Lease: time.Minute})
	d := s.login("token", "alice")
	n := hwsign.BoundToken
	stolen := newECDSA(t)
	point, err := stolen.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	text := b64(point)
	introduce := func() *httptest.ResponseRecorder {
		value := s.value()
		h := http.Header{}
		h.Set(n.EphemeralKey, text)
		h.Set(n.EphemeralType, "ecdh-p256") // the ephemeral key signs the value
		h.Set(n.EphemeralSig, d.sign([]byte(text)))
		h.Set(n.Data, value)
		h.Set(n.DataSig, sign(t, stolen, []byte(value)))
		return d.send("GET", "/", "", h)
	}
	first := introduce()
	expect(t, "first introduction", first, "")
	again := introduce()
	expect(t, "again within the lease", again, "")
	for _, name := range []string{n.EphemeralID, n.EphemeralKey, n.EphemeralExpire} {
		if first.Header().Get(name) != again.Header().Get(name) {
			t.Errorf("%s: %q, then %q", name, first.Header().Get(name), again.Header().Get(name))
		}
	}
	s.pass(2 * time.Minute)
	expect(t, "after the lease", introduce(), proof.KeyUnknown)
}

// The device key itself may renew: the browser introduces the same key again.
func TestDeviceKeyRenews(t *testing.T) {
	s := newSite(t, Config{Lease: time.Minute})
	d := s.login("token", "alice")
	d.introduce()
	w := d.send("GET", "/", "", d.introduction(d.ephemeral, s.value()))
	expect(t, "again within the lease", w, "")
	d.take(w)
	expect(t, "proof", d.get(), "")
	s.pass(2 * time.Minute)
	w = d.send("GET", "/", "", d.introduction(d.ephemeral, s.value()))
	expect(t, "again after the lease", w, "")
	d.take(w)
	expect(t, "proof", d.get(), "")
}

func TestEphemeralKeysAreBounded(t *testing.T) {
	s := newSite(t, Config{})
	d := s.login("token", "alice")
	var all []device
	for range slots + 2 {
		d.introduce()
		all = append(all, *d)
		s.pass(time.Second)
	}
	for i := range all {
		want := proof.Reason("")
		if i < 2 {
			want = proof.KeyUnknown // the newest keys stay
		}
		expect(t, fmt.Sprintf("key %d", i), all[i].get(), want)
	}
	for range maxIntroductions - slots - 2 {
		d.introduce()
	}
	w := d.introduce()
	expect(t, "too many introductions", w, proof.TooMany)
	if w.Code != 429 {
		t.Errorf("status %d, want 429", w.Code)
	}
	s.pass(16 * time.Minute)
	expect(t, "a lease later", d.introduce(), "")
}
