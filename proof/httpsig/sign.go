package httpsig

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// label is the label of our signatures. Those who check go by the tag.
const label = "limpet"

// Signing is what a signature says of itself.
type Signing struct {
	KeyID     string          // the key's JWK thumbprint, base64url without padding: 43 characters
	Algorithm proof.Algorithm // what sign makes; 0 or RSAPSS, which has no name there: no alg parameter
	Created   time.Time       // to the second
	Nonce     string          // 16 to 64 letters, digits and -._~+/=, never used before with the key
}

// Sign adds our signature to m.Header (Signature-Input, Signature), in place of
// one that it has under our label; those of others stay. It covers @method,
// @authority, @path, @query and those of these fields that m.Header has:
// content-digest, authorization (unless m.InCookie), limpet-device,
// limpet-session, limpet-challenge, limpet-channel.
//
// sign returns the signature of the signature base (RFC 9421, 2.5), which it
// does not keep. Its error is returned as it is; another one says that the
// message or s cannot be signed. m.Header is then as it was.
func Sign(m *proof.Message, s *Signing, sign func(base []byte) ([]byte, error)) error {
	var in input
	for _, name := range [...]string{"@method", "@authority", "@path", "@query"} {
		in.cover(name)
	}
	for _, f := range signedFields {
		if len(m.Header[f.field]) > 0 && !(f.name == "authorization" && m.InCookie) {
			in.cover(f.name)
		}
	}
	in.created, in.nonce, in.keyID = s.Created.Unix(), s.Nonce, s.KeyID
	in.set("created", strconv.FormatInt(in.created, 10))
	in.set("nonce", quote(s.Nonce))
	in.set("keyid", quote(s.KeyID))
	if s.Algorithm != 0 && s.Algorithm != proof.RSAPSS {
		if in.alg = nameOf(s.Algorithm); in.alg == "" {
			return errors.New("limpet: httpsig: sign: unknown algorithm")
		}
		in.set("alg", quote(in.alg))
	}
	in.set("tag", quote(Tag))
	if detail := in.unfit(); detail != "" {
		return errors.New("limpet: httpsig: sign: " + detail)
	}
	inputs, ok := others(m.Header["Signature-Input"])
	if !ok {
		return errors.New("limpet: httpsig: sign: Signature-Input is no dictionary")
	}
	signatures, ok := others(m.Header["Signature"])
	if !ok {
		return errors.New("limpet: httpsig: sign: Signature is no dictionary")
	}
	base, err := in.appendBase(make([]byte, 0, 1024), m)
	if err != nil {
		return err
	}
	sig, err := sign(base)
	if err != nil {
		return err
	}
	m.Header["Signature-Input"] = []string{string(in.append([]byte(inputs + label + "=")))}
	m.Header["Signature"] = []string{signatures + label + "=" + formatBytes(sig)}
	return nil
}

// cover adds a component without parameters.
func (in *input) cover(name string) { in.add(component{id: quote(name), name: name}) }

// quote returns a string that needs no escapes as text.
func quote(s string) string { return `"` + s + `"` }

// signedFields are the fields that a signature of ours covers where they are, by
// both their names.
var signedFields = [...]struct{ name, field string }{
	{"content-digest", DigestField},
	{"authorization", "Authorization"},
	{"limpet-device", DeviceField},
	{"limpet-session", SessionField},
	{"limpet-challenge", ChallengeField},
	{"limpet-channel", ChannelField},
}

// others returns the members of a dictionary that do not have our label, as
// text to write ours after. A verifier of ours wants the field on one line.
func others(lines []string) (string, bool) {
	var b strings.Builder
	for _, line := range lines {
		for s := (scanner{s: line}); ; {
			key, done, ok := s.member()
			if !ok {
				return "", false
			}
			if done {
				break
			}
			from := s.i - len(key)
			if !s.rest() {
				return "", false
			}
			if key != label {
				b.WriteString(line[from:s.i])
				b.WriteString(", ")
			}
		}
	}
	return b.String(), true
}
