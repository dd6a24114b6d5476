package limpet

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/hwsign"
	"github.com/limpet-auth/limpet/store/memstore"
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
	live := 0
	s.store.(Lister).List(t.Context(), "e:", func(string, []byte) bool { live++; return true })
	if live != slots {
		t.Errorf("%d records of ephemeral keys, want %d", live, slots)
	}
}

func TestUsedIsBounded(t *testing.T) {
	var u used
	what := func(i int) []byte { return fmt.Append(nil, i) }
	for i := range maxUsed + 10 {
		if !u.add(what(i), int64(i)) || u.add(what(i), int64(i)) {
			t.Fatalf("entry %d: added twice or not at all", i)
		}
	}
	if len(u) != maxUsed*usedEntry {
		t.Errorf("%d bytes, want %d", len(u), maxUsed*usedEntry)
	}
	if _, found := u.until(what(9)); found {
		t.Error("the oldest entries are still there")
	}
	if until, found := u.until(what(10)); !found || until.Unix() != 10 {
		t.Errorf("entry 10: %v, %v", until, found)
	}
}

// introEC makes the headers that introduce a signing key, which signs the value.
func (d *device) introEC(key *ecdsa.PrivateKey, value string) http.Header {
	point, err := key.PublicKey.Bytes()
	if err != nil {
		d.site.t.Fatal(err)
	}
	n, text := hwsign.BoundToken, b64(point)
	return http.Header{
		n.EphemeralKey: {text}, n.EphemeralType: {"ecdsa"}, n.EphemeralSig: {d.sign([]byte(text))},
		n.Data: {value}, n.DataSig: {sign(d.site.t, key, []byte(value))},
	}
}

func proofEC(t testing.TB, key *ecdsa.PrivateKey, id, value string) http.Header {
	n := hwsign.BoundToken
	return http.Header{n.EphemeralID: {id}, n.Data: {value}, n.DataSig: {sign(t, key, []byte(value))}}
}

func TestSpentProofIsNoIntroduction(t *testing.T) {
	for name, store := range map[string]Store{"spender": memstore.New(nil), "four methods": plainStore{memstore.New(nil)}} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, Config{Store: store})
			d, key := s.login("token", "alice"), newECDSA(t)
			intro := d.introEC(key, s.value())
			w := d.send("GET", "/", "", intro)
			spent := proofEC(t, key, w.Header().Get(hwsign.BoundToken.EphemeralID), `{"amount":1}`)
			expect(t, "proof", d.send("POST", "/", "", spent), "")
			n := hwsign.BoundToken
			intro[n.Data], intro[n.DataSig] = spent[n.Data], spent[n.DataSig]
			expect(t, "the same as an introduction", d.send("POST", "/", "", intro), proof.NonceSpent)
		})
	}
}

// What a device key delegated to is remembered beyond the last session that can
// have been bound to it in the meantime.
func TestUsedOutlivesSessions(t *testing.T) {
	store := ttlStore{memstore.New(nil), map[string]time.Duration{}}
	s := newSite(t, Config{Store: store})
	d := s.login("token", "alice")
	d.introduce()
	b, err := s.session(t.Context(), Bearer().ID("token"))
	if err != nil {
		t.Fatal(err)
	}
	if ttl := store.ttl[usedKey(b.binding.device)]; ttl < s.cfg.Lifetime+retention {
		t.Errorf("forgotten after %v", ttl)
	}
}

type ttlStore struct {
	Store
	ttl map[string]time.Duration // of the last Put of each key
}

func (s ttlStore) Put(ctx context.Context, key string, val []byte, ttl time.Duration) error {
	s.ttl[key] = ttl
	return s.Store.Put(ctx, key, val, ttl)
}

// A value without a time is one use, in whichever of a device's sessions.
func TestUntimedValueInTwoSessions(t *testing.T) {
	s := newSite(t, Config{Lifetime: time.Hour})
	old, key := s.login("old", "alice"), newECDSA(t)
	s.pass(55 * time.Minute)
	young := &device{site: s, token: "young", key: old.key}
	if err := young.bind("alice"); err != nil {
		t.Fatal(err)
	}
	id := func(w *httptest.ResponseRecorder) string { return w.Header().Get(hwsign.BoundToken.EphemeralID) }
	inYoung := id(young.send("GET", "/", "", young.introEC(key, s.value())))
	inOld := id(old.send("GET", "/", "", old.introEC(key, s.value())))
	h := proofEC(t, key, inOld, "pay 1")
	expect(t, "here", old.send("GET", "/", "", h), "")
	h.Set(hwsign.BoundToken.EphemeralID, inYoung)
	expect(t, "there", young.send("GET", "/", "", h), proof.NonceSpent)
}
