// Package hwsign reads the x-rpc-sec-* headers of hw-sign clients, in every
// dialect that they speak, and names them for clients.
//
// A login brings the device key (P-hw-pub, P-hw-pub-type). A request brings a
// value and its signature (P-data, P-data-sig) and either introduces the
// ephemeral key that signed (P-accel-pub, -type, -sig) or names one introduced
// before (P-accel-pub-id). P- is one of two prefixes, see [Names].
//
// The wire signs the value and nothing else: method, target and headers are
// not covered, and the body only where the value is its hash.
package hwsign

import (
	"crypto/sha256"
	"encoding/base64"
	"math"
	"strconv"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// maxValue bounds a header's value, in bytes. The largest honest one is the
// JSON body that the browser client repeats in P-data.
const maxValue = 8 << 10

// Wire is the hw-sign wire.
type Wire struct{}

// Offer reads P-hw-pub. Key agreement keys are no device keys: they cannot sign.
func (Wire) Offer(m *proof.Message) (*proof.Offer, error) {
	n, err := spelling(m.Header)
	if err != nil {
		return nil, err
	}
	if len(m.Header[BoundToken.DeviceKey]) > 0 && len(m.Header[DBCS.DeviceKey]) > 0 {
		return nil, malformed("a device key under each header prefix")
	}
	text, err := value(m.Header, n.DeviceKey)
	if text == "" || err != nil {
		return nil, err
	}
	typeName, err := value(m.Header, n.DeviceKeyType)
	if err != nil {
		return nil, err
	}
	d, ok := dialectOf(typeName)
	if !ok || d.alg == proof.HMACSHA256 {
		return nil, &proof.Refusal{Reason: proof.Malformed, Detail: "device key of unknown or unfit type"}
	}
	b, err := decode(nil, []byte(text))
	if err != nil {
		return nil, err
	}
	key, err := proof.ParsePublicKey(d.alg, b)
	if err != nil {
		return nil, &proof.Refusal{Reason: proof.Malformed, Detail: "device key", Err: err}
	}
	claim, err := value(m.Header, n.DeviceKeyLevel)
	if err != nil {
		return nil, err
	}
	level := proof.Software // a client that does not say is not taken for hardware
	if claim == string(proof.Hardware) {
		level = proof.Hardware
	}
	return &proof.Offer{Key: key, Level: level}, nil
}

// Extract reads P-data and what comes with it. If a request both introduces
// and names an ephemeral key, the introduction counts.
func (Wire) Extract(m *proof.Message, p *proof.Proof) (found bool, err error) {
	n, err := spelling(m.Header)
	if err != nil {
		return false, err
	}
	data, err := value(m.Header, n.Data)
	if err != nil {
		return false, err
	}
	key, err := value(m.Header, n.EphemeralKey)
	if err != nil {
		return false, err
	}
	id, err := value(m.Header, n.EphemeralID)
	if err != nil {
		return false, err
	}
	sig, err := value(m.Header, n.DataSig)
	if err != nil {
		return false, err
	}
	if data == "" && sig == "" && key == "" && id == "" {
		return false, nil
	}
	if data == "" || sig == "" || key == "" && id == "" {
		return false, malformed("an incomplete set of headers")
	}
	p.Scratch = append(p.Scratch[:0], sig...)
	if p.Signature, err = decode(p.Signature[:0], p.Scratch); err != nil {
		return false, err
	}
	p.Signed = append(p.Signed[:0], data...)
	p.Time, p.Random, p.BodyClaim = parseData(p.Signed)
	if key == "" {
		p.KeyID = id
		return true, nil
	}
	p.Delegation, err = delegation(m.Header, n, key)
	return err == nil, err
}

func delegation(h map[string][]string, n *Names, key string) (*proof.Delegation, error) {
	typeName, err := value(h, n.EphemeralType)
	if err != nil {
		return nil, err
	}
	d, ok := dialectOf(typeName)
	if !ok {
		return nil, malformed("ephemeral key of unknown type")
	}
	sigText, err := value(h, n.EphemeralSig)
	if err != nil {
		return nil, err
	}
	sig, err := decode(nil, []byte(sigText))
	if err != nil {
		return nil, err
	}
	enc, err := decode(nil, []byte(key))
	if err != nil {
		return nil, err
	}
	// The device key signs the base64 text as sent, not the key it stands for.
	return &proof.Delegation{Algorithm: d.alg, Key: enc, Signed: []byte(key), Signature: sig, ProofBy: d.proofBy}, nil
}

// Admitted tells the client its key's id, its expiry and, after a key agreement,
// the server's half in the encoding of the client's dialect.
func (Wire) Admitted(m *proof.Message, response map[string][]string, k *proof.Introduced, _ string) {
	n, err := spelling(m.Header)
	if k == nil || err != nil {
		return // Extract refused a request with an error
	}
	response[n.EphemeralID] = []string{k.ID}
	response[n.EphemeralExpire] = []string{strconv.FormatInt(k.Expires.Unix(), 10)}
	if k.Server == nil {
		return
	}
	typeName, _ := value(m.Header, n.EphemeralType) // Extract read it before
	enc := k.Server.Bytes()
	if d, _ := dialectOf(typeName); d.spki {
		if enc, err = k.Server.SPKI(); err != nil {
			return // a key of ours always encodes
		}
	}
	response[n.EphemeralKey] = []string{base64.StdEncoding.EncodeToString(enc)}
}

// Bound adds nothing: the wire has no word for it.
func (Wire) Bound(map[string][]string, [sha256.Size]byte, *proof.Server) {}

// Refused adds nothing: the wire has no word for it.
func (Wire) Refused(*proof.Message, map[string][]string, proof.Reason, *proof.Server) {}

// spelling tells which prefix a request uses; the newer one if neither. A
// value under each prefix could be read in two ways and is refused.
func spelling(h map[string][]string) (*Names, error) {
	bound, dbcs := len(h[BoundToken.Data]) > 0, len(h[DBCS.Data]) > 0
	switch {
	case bound && dbcs:
		return nil, malformed("both header prefixes in one request")
	case bound:
		return &BoundToken, nil
	case dbcs, len(h[DBCS.DeviceKey]) > 0, len(h[DBCS.EphemeralKey]) > 0, len(h[DBCS.EphemeralID]) > 0:
		return &DBCS, nil
	}
	return &BoundToken, nil
}

// value returns the one value of a header, "" if it is absent.
func value(h map[string][]string, name string) (string, error) {
	switch v := h[name]; {
	case len(v) == 0:
		return "", nil
	case len(v) > 1:
		return "", malformed("a header that occurs twice")
	case len(v[0]) > maxValue:
		return "", &proof.Refusal{Reason: proof.TooLarge, Detail: "a header over 8 KiB"}
	default:
		return v[0], nil
	}
}

// decode appends the bytes of a header's base64 text.
func decode(dst, text []byte) ([]byte, error) {
	dst, err := proof.AppendBase64(dst, text)
	if err != nil {
		return dst[:0], malformed("text that is not base64")
	}
	return dst, nil
}

// parseData reads what clients put into P-data:
//
//	time            unix seconds, milli-, micro- or nanoseconds
//	time "-" rest   rest being random, or the hash of the body
//	anything else   the hash of the body, or the body
func parseData(b []byte) (t time.Time, random int, claim []byte) {
	var n uint64
	digits := 0
	for digits < len(b) && digits < 19 && b[digits]-'0' <= 9 {
		n = 10*n + uint64(b[digits]-'0') // 19 digits fit
		digits++
	}
	if digits == 0 || n > math.MaxInt64 || digits < len(b) && b[digits] != '-' {
		return time.Time{}, 0, b
	}
	if digits < len(b) {
		claim = b[digits+1:]
	}
	return unixTime(int64(n)), len(claim), claim
}

// unixTime infers the unit from the magnitude: each threshold is a date before
// 1974 in the unit above it and after 5000 in the unit below.
func unixTime(n int64) time.Time {
	switch {
	case n < 1e11:
		return time.Unix(n, 0)
	case n < 1e14:
		return time.UnixMilli(n)
	case n < 1e17:
		return time.UnixMicro(n)
	}
	return time.Unix(0, n)
}

func malformed(detail string) error {
	return &proof.Refusal{Reason: proof.Malformed, Detail: detail}
}
