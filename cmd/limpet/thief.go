package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

// recorder keeps the headers of all requests that pass, proofs included.
type recorder struct {
	base http.RoundTripper
	mu   sync.Mutex
	sent []http.Header
}

// RoundTrip implements http.RoundTripper.
func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.mu.Lock()
	r.sent = append(r.sent, req.Header.Clone())
	r.mu.Unlock()
	return r.base.RoundTrip(req)
}

// last returns the latest recorded request that has a header.
func (r *recorder) last(name string) http.Header {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range slices.Backward(r.sent) {
		if h.Get(name) != "" {
			return h
		}
	}
	return nil
}

func softCandidate(dir string) hwkey.Candidate { return softkey.Candidate(dir, softkey.KeyFile("")) }

// thief tries everything that a stolen token and recorded traffic allow.
func (d *demo) thief(ctx context.Context, dir string) error {
	n := hwsign.BoundToken
	introduced, proven := d.recorder.last(n.EphemeralKey), d.recorder.last(n.EphemeralID)
	if introduced == nil || proven == nil {
		return errors.New("the recorded traffic has no proofs")
	}
	plain := &http.Client{}
	try := func(tried string, reason proof.Reason, method, path string, header http.Header) *http.Response {
		return d.try(ctx, plain, "thief", tried, outcome{401, reason}, method, path, header)
	}
	try("the token alone", proof.Required, http.MethodGet, "/authenticated", nil)

	other, closeOther, err := d.otherDevice(ctx, dir)
	if err != nil {
		return err
	}
	defer closeOther()
	d.try(ctx, other, "thief", "the token, with a device key of the thief's own", outcome{401, proof.Invalid}, http.MethodGet, "/authenticated", nil)

	forged, err := selfSigned()
	if err != nil {
		return err
	}
	try("an ephemeral key that vouches for itself", proof.Invalid, http.MethodGet, "/authenticated", forged)
	try("a recorded introduction, once more", proof.NonceSpent, http.MethodGet, "/authenticated", introduced)
	try("a recorded request, once more", proof.NonceSpent, http.MethodGet, "/authenticated", proven)
	try("its proof, on another method", proof.NonceSpent, http.MethodDelete, "/authenticated", proven)
	try("its proof, on another path", proof.NonceSpent, http.MethodPost, "/logout", proven)

	// The owner's ephemeral key, which the thief does not have.
	guess := http.Header{
		n.EphemeralID: proven[n.EphemeralID],
		n.Data:        {newValue()},
		n.DataSig:     {base64.StdEncoding.EncodeToString(make([]byte, sha256.Size))},
	}
	refusal := try("a new value, with a made-up signature", proof.Invalid, http.MethodGet, "/authenticated", guess)
	d.resubmit(ctx, plain, refusal, guess)
	return nil
}

// otherDevice returns an HTTP client on a device with a keystore of its own,
// which the stolen token has been copied to.
func (d *demo) otherDevice(ctx context.Context, dir string) (*http.Client, func(), error) {
	keys, _, err := softCandidate(dir).Open(ctx)
	if err != nil {
		return nil, nil, err
	}
	key, err := keys.Create(ctx, hwkey.CreateOptions{})
	if err != nil {
		return nil, nil, err
	}
	defer key.Close()
	c := client.New(keys)
	stolen := client.Session{Origin: d.base.String(), Tokens: []string{client.Hash(d.token)}, Key: key.Info().ID}
	if err := c.Restore(ctx, stolen); err != nil {
		return nil, nil, err
	}
	return &http.Client{Transport: c.Transport(nil)}, func() { c.Close() }, nil
}

// selfSigned returns an introduction whose delegation is signed by the
// ephemeral key itself.
func selfSigned() (http.Header, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	public, value := base64.StdEncoding.EncodeToString(der), newValue()
	h := make(http.Header)
	n := hwsign.BoundToken
	for _, f := range []struct{ name, sigName, text string }{
		{n.EphemeralKey, n.EphemeralSig, public},
		{n.Data, n.DataSig, value},
	} {
		digest := sha256.Sum256([]byte(f.text))
		sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil {
			return nil, err
		}
		h.Set(f.name, f.text)
		h.Set(f.sigName, base64.StdEncoding.EncodeToString(sig))
	}
	h.Set(n.EphemeralType, hwsign.TypeECDSA)
	return h, nil
}

// resubmit sends a refused request again, once with each thing that the refusal
// contained as the signature: servers have been known to tell the right one.
func (d *demo) resubmit(ctx context.Context, c *http.Client, refusal *http.Response, refused http.Header) {
	want := outcome{401, proof.Invalid}
	got := want
	sig := hwsign.BoundToken.DataSig
	for _, value := range append(told(refusal), refused.Get(sig)) {
		h := refused.Clone()
		h.Set(sig, value)
		if _, o := d.send(ctx, c, http.MethodGet, "/authenticated", h); o != want {
			got = o
		}
	}
	d.note(result{"thief", "the same, signed with what the refusal told", want, got})
}

// told returns everything in an answer that could be a signature in base64.
func told(resp *http.Response) (values []string) {
	if resp == nil {
		return nil
	}
	var body map[string]any
	text, _ := io.ReadAll(resp.Body)
	json.Unmarshal(text, &body)
	for v := range maps.Values(body) {
		values = append(values, fmt.Sprint(v))
	}
	for header := range maps.Values(resp.Header) {
		values = append(values, header...)
	}
	return slices.DeleteFunc(values, func(v string) bool {
		_, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(v, "="))
		return v == "" || err != nil
	})
}

// newValue returns a value as the client makes them: time and random part.
func newValue() string { return fmt.Sprintf("%d-%s", time.Now().Unix(), rand.Text()) }
