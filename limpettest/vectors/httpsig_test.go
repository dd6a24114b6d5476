package vectors_test

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

func sum512(s string) []byte {
	d := sha512.Sum512([]byte(s))
	return d[:]
}

// TestHTTPSigFile makes every value of the file anew.
func TestHTTPSigFile(t *testing.T) {
	var stored httpsigFile
	b := read(t, "httpsig.json", &stored)
	compare(t, "httpsig.json", b, makeHTTPSig(t, &stored, b))
}

func readHTTPSig(t testing.TB) *httpsigFile {
	t.Helper()
	f := new(httpsigFile)
	read(t, "httpsig.json", f)
	return f
}

func (f *httpsigFile) delegation(t testing.TB, name string) *delegation {
	t.Helper()
	return named(t, f.Delegations, func(d *delegation) string { return d.Name }, name)
}

// check is what a server makes of a request or login.
func (f *httpsigFile) check(t testing.TB, r *request, m message, at at) *checked {
	t.Helper()
	policy := proof.Policy{
		Freshness: proof.StrictNonce, Window: time.Duration(f.Window) * time.Second, Skew: time.Duration(f.Skew) * time.Second,
		Lease: time.Duration(f.Server.Lease) * time.Second, Channel: at.Channel,
	}
	if r.Delegation == "" {
		return checkLogin(t, httpsig.Wire{}, &m, at.Now, policy)
	}
	if at.Challenge != "" {
		policy.Challenges = []string{at.Challenge}
	}
	serverKey := keyNamed(t, f.Keys, f.Server.Key)
	policy.Agree = func(d *proof.Delegation, ephemeral *proof.PublicKey) (*proof.MACKey, error) {
		if hex.EncodeToString(d.Scope.Server[:]) != f.Server.ID {
			return nil, &proof.Refusal{Reason: proof.KeyUnknown}
		}
		private, err := ecdh.P256().NewPrivateKey(unhex(t, serverKey.Private))
		if err != nil {
			return nil, err
		}
		z, err := proof.Agree(private, ephemeral)
		if err != nil {
			return nil, err
		}
		return proof.NewMACKey(proof.RequestSecret(z, d.Signed, ephemeral, serverKey.publicKey(t))), nil
	}
	d := f.delegation(t, r.Delegation)
	var known *proof.EphemeralKey
	if at.Known {
		k := keyNamed(t, f.Keys, d.Key)
		known = &proof.EphemeralKey{ID: k.KeyID, Public: k.publicKey(t), Expires: time.Unix(d.Expires, 0)}
		if d.Agreement != nil {
			known.MAC = proof.NewMACKey(unhex(t, d.Agreement.Secret))
		}
	}
	msg := m.proofMessage(false)
	if at.Exported != "" {
		msg.ChannelKey = func(k *proof.EphemeralKey) (*proof.MACKey, error) { return k.MAC.OnChannel(unhex(t, at.Exported)), nil }
	}
	c := checkRequest(t, httpsig.Wire{}, &m, msg, keyNamed(t, f.Keys, at.Device).publicKey(t), known, at.Now, policy)
	if c.stage == atBody {
		sum := [32]byte(sum(m.Body))
		msg.Body, policy.Freshness = &sum, proof.BodyHash
		if _, err := proof.Verify(msg, c.proof, keyNamed(t, f.Keys, at.Device).publicKey(t), known, time.Unix(at.Now, 0), policy); err == nil {
			t.Error("admitted where the body's hash is wanted")
		}
	}
	return c
}

func TestHTTPSigKeys(t *testing.T) {
	f := readHTTPSig(t)
	for _, k := range f.Keys {
		if b64url(sum(k.JWK)) != k.KeyID {
			t.Errorf("%s: keyid is not the hash of its JWK", k.Name)
		}
		alg := algorithms[k.Algorithm]
		pub, err := proof.ParsePublicKey(alg, unhex(t, k.Public))
		if weak := k.Name == "device p384" || k.Name == "device rsa-1024"; weak {
			if err == nil {
				t.Errorf("%s is admitted", k.Name)
			}
			continue
		}
		if err != nil {
			t.Fatal(k.Name, err)
		}
		spki, err := pub.SPKI()
		if thumbprint := pub.Thumbprint(); err != nil || hex.EncodeToString(spki) != k.SPKI || b64url(thumbprint[:]) != k.KeyID {
			t.Errorf("%s: another SPKI or thumbprint, %v", k.Name, err)
		}
	}
}

func TestHTTPSigServer(t *testing.T) {
	f := readHTTPSig(t)
	id := [32]byte(sum(f.Session.Token))
	if hex.EncodeToString(id[:]) != f.Session.ID || httpsig.FormatSession(id) != f.Session.Field {
		t.Errorf("session %+v", f.Session)
	}
	pub := keyNamed(t, f.Keys, f.Server.Key).publicKey(t)
	s := &proof.Server{Key: pub, KeyExpires: time.Unix(f.Server.Expires, 0), Lease: time.Duration(f.Server.Lease) * time.Second}
	if httpsig.FormatServer(s, nil) != f.Server.Text || httpsig.FormatServer(s, &id) != f.Server.LoginText {
		t.Errorf("Limpet-Key: %s", httpsig.FormatServer(s, &id))
	}
	if own := pub.ID(); hex.EncodeToString(own[:]) != f.Server.ID || f.Server.Label != httpsig.ExporterLabel {
		t.Errorf("%+v", f.Server)
	}
	for _, text := range []string{f.Server.Text, f.Server.LoginText} {
		got, session, err := httpsig.ParseServer(text)
		if err != nil || !got.Key.SameKey(pub) || session != nil && *session != id {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestHTTPSigDelegations(t *testing.T) {
	f := readHTTPSig(t)
	m := &maker{newSigner(t, f.Keys, nil), f}
	for _, d := range f.Delegations {
		k := keyNamed(t, f.Keys, d.Key)
		scope := m.scopeOf(d)
		statement := httpsig.Statement(algorithms[d.Algorithm], unhex(t, k.Public), scope)
		sig := unhex(t, d.Signature)
		if hex.EncodeToString(statement) != d.Statement || statement[20] != d.Code || d.Session != f.Session.ID {
			t.Errorf("%s: another statement", d.Name)
		}
		device := keyNamed(t, f.Keys, d.Device)
		if !device.publicKey(t).VerifyExact(algorithms[device.Algorithm], statement, sig) {
			t.Errorf("%s: not the device key's signature", d.Name)
		}
		if text := httpsig.FormatDelegation(&proof.Delegation{Algorithm: algorithms[d.Algorithm], Signed: statement, Signature: sig, Scope: scope}); text != d.Text {
			t.Errorf("%s: %s", d.Name, text)
		}
	}
}

func TestHTTPSigAdmitted(t *testing.T) {
	f := readHTTPSig(t)
	var list []string
	for _, r := range slices.Concat(f.Logins, f.Requests) {
		list = append(list, r.Name)
		t.Run(r.Name, func(t *testing.T) {
			c := f.check(t, r, r.message, r.At)
			c.is(t, admitted, "")
			if c.stage != admitted {
				return
			}
			if base := strings.Join(r.Base, "\n"); string(c.proof.Signed) != base {
				t.Errorf("base\n%s\nwant\n%s", c.proof.Signed, base)
			}
			if !strings.HasSuffix(r.Signature, "=:"+b64(c.proof.Signature)+":") || string(c.proof.Nonce) != r.Nonce || c.proof.Time.Unix() != r.Created {
				t.Errorf("%+v", c.proof)
			}
			if in, sig := r.lines("Signature-Input"), r.lines("Signature"); len(in) != 1 || in[0] != r.Input || len(sig) != 1 || sig[0] != r.Signature {
				t.Errorf("fields %v, %v", in, sig)
			}
			f.resign(t, r)
		})
	}
	names(t, list)
	if len(f.Logins) < 5 || len(f.Requests) < 20 {
		t.Errorf("only %d logins and %d requests", len(f.Logins), len(f.Requests))
	}
}

// resign makes the request with our own client's function, which covers what it
// must in its own order.
func (f *httpsigFile) resign(t *testing.T, r *request) {
	switch r.Name {
	case "components in another order", "parameters in another order", "another label", "more covered than must be":
		return
	}
	m := r.clone()
	for _, name := range []string{"Signature-Input", "Signature"} {
		text := m.lines(name)[0]
		if i := strings.Index(text, "limpet="); i > 0 {
			m.set(name, strings.TrimSuffix(text[:i], ", "))
		} else {
			m.remove(name)
		}
	}
	msg := m.proofMessage(r.Delegation == "")
	k := keyNamed(t, f.Keys, r.Key)
	mk := &maker{newSigner(t, f.Keys, nil), f}
	base := ""
	err := httpsig.Sign(msg, &httpsig.Signing{KeyID: k.KeyID, Algorithm: algorithms[r.Algorithm], Created: time.Unix(r.Created, 0), Nonce: r.Nonce}, func(b []byte) ([]byte, error) {
		base = string(b)
		return mk.by(&request{Algorithm: r.Algorithm, Delegation: r.Delegation, At: r.At, message: r.message}, k)(b), nil
	})
	switch {
	case err != nil:
		t.Error(err)
	case base != strings.Join(r.Base, "\n") || msg.Header["Signature-Input"][0] != r.Input:
		t.Errorf("our client signs\n%s", base)
	case !strings.HasPrefix(r.Algorithm, "rsa-pss") && msg.Header["Signature"][0] != r.Signature:
		t.Errorf("our client's %s", msg.Header["Signature"][0])
	}
	if r.Device != "" {
		level := proof.Level(r.Level)
		if text, err := httpsig.FormatDevice(k.publicKey(t), level); err != nil || r.Level != "" && text != r.Device {
			t.Errorf("%s, %v", text, err)
		}
	}
}

func TestHTTPSigRefused(t *testing.T) {
	f := readHTTPSig(t)
	var list []string
	for _, v := range f.Refused {
		list = append(list, v.Name)
		t.Run(v.Name, func(t *testing.T) {
			of := named(t, slices.Concat(f.Logins, f.Requests), func(r *request) string { return r.Name }, v.Of)
			at := of.At
			if v.At != nil {
				at = *v.At
			}
			c := f.check(t, of, of.apply(t, v.Changes), at)
			if v.Stage != atSpend {
				c.is(t, v.Stage, v.Reason)
				return
			}
			c.is(t, admitted, "")
			if c.stage == admitted && c.replayID() != f.check(t, of, of.message, of.At).replayID() {
				t.Error("another value is spent")
			}
		})
	}
	names(t, list)
	if len(list) < 40 {
		t.Errorf("only %d are refused", len(list))
	}
}

// TestByHand computes one chain without package proof: from the private keys to
// the tag of a request, and of one on a TLS connection.
func TestByHand(t *testing.T) {
	f := readHTTPSig(t)
	d := f.delegation(t, "agreement")
	client, srv := keyNamed(t, f.Keys, "ephemeral agreement"), keyNamed(t, f.Keys, "server")
	private, err := ecdh.P256().NewPrivateKey(unhex(t, client.Private))
	if err != nil {
		t.Fatal(err)
	}
	peer, err := ecdh.P256().NewPublicKey(unhex(t, srv.Public))
	if err != nil {
		t.Fatal(err)
	}
	z, err := private.ECDH(peer)
	if err != nil {
		t.Fatal(err)
	}
	statement := sha256.Sum256(unhex(t, d.Statement))
	info := "limpet request key 1\x00" + string(statement[:]) + string(unhex(t, client.Public)) + string(unhex(t, srv.Public))
	secret, err := hkdf.Key(sha256.New, z, nil, info, 32)
	if err != nil {
		t.Fatal(err)
	}
	a := d.Agreement
	if hex.EncodeToString(z) != a.Z || hex.EncodeToString(statement[:]) != a.Statement || hex.EncodeToString([]byte(info)) != a.Info || hex.EncodeToString(secret) != a.Secret {
		t.Errorf("%+v", a)
	}
	if !private.PublicKey().Equal(mustPoint(t, client.Public)) || srv.Public[:2] != "04" {
		t.Error("the points are not those of the scalars")
	}
	tag := func(key, message []byte) []byte {
		mac := hmac.New(sha256.New, key)
		mac.Write(message)
		return mac.Sum(nil)
	}
	for _, name := range []string{"GET", "channel"} {
		r := named(t, f.Requests, func(r *request) string { return r.Name }, name)
		key := secret
		if name == "channel" {
			key = tag(secret, append([]byte("limpet channel key 1\x00"), unhex(t, r.At.Exported)...))
			if hex.EncodeToString(key) != r.ChannelKey {
				t.Errorf("channel key %x", key)
			}
		}
		if sig := "limpet=:" + b64(tag(key, []byte(strings.Join(r.Base, "\n")))) + ":"; sig != r.Signature {
			t.Errorf("%s: %s, want %s", name, sig, r.Signature)
		}
	}
}

func mustPoint(t *testing.T, text string) *ecdh.PublicKey {
	t.Helper()
	pub, err := ecdh.P256().NewPublicKey(unhex(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return pub
}
