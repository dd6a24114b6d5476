package httpsig

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// maxComponents is how many components a signature may cover.
const maxComponents = 32

// component is a component identifier (RFC 9421, 2): the content of its string,
// and the one parameter that it may have here.
type component struct {
	id    string // its canonical text
	name  string
	param string // "", "name" or "bs"
	value string // of name
}

// parameter is a signature parameter (RFC 9421, 2.3); value is its canonical
// text, of a string with the quotes.
type parameter struct{ name, value string }

// input is a member of Signature-Input (RFC 9421, 4.1).
type input struct {
	label      string
	components [maxComponents]component
	covers     cover
	n          int // of components
	params     [5]parameter
	np         int

	created                int64 // 0 if absent
	nonce, keyID, alg, tag string
	flaw                   string // why it cannot be a signature of ours, "" if it can
}

// inputs are for requests: two kilobytes on the stack of each connection, to be
// cleared as a whole, would be in nobody's cache.
var inputs = sync.Pool{New: func() any { return new(input) }}

func (in *input) release() {
	in.reset()
	inputs.Put(in)
}

// reset makes in as new, by clearing what was set.
func (in *input) reset() {
	clear(in.components[:in.n])
	clear(in.params[:in.np])
	in.label, in.n, in.np, in.covers = "", 0, 0, 0
	in.created, in.nonce, in.keyID, in.alg, in.tag, in.flaw = 0, "", "", "", "", ""
}

// cover is a set of components that matter to us.
type cover uint16

const (
	method cover = 1 << iota
	authority
	path
	query
	digestField
	credential // authorization
	sessionField
	deviceField
	challengeField
	channelField

	target = method | authority | path | query
)

// covered returns the member of the set that a component is.
func covered(name string) cover {
	switch name {
	case "@method":
		return method
	case "@authority":
		return authority
	case "@path":
		return path
	case "@query":
		return query
	case "content-digest":
		return digestField
	case "authorization":
		return credential
	case "limpet-session":
		return sessionField
	case "limpet-device":
		return deviceField
	case "limpet-challenge":
		return challengeField
	case "limpet-channel":
		return channelField
	}
	return 0
}

// find reads the one member of a Signature-Input field that has our tag into in.
func find(field string, in *input) (found bool, err error) {
	s := scanner{s: field}
	for first := true; ; first = false {
		done, ok := in.next(&s)
		switch {
		case !ok:
			return false, malformed("Signature-Input is no dictionary")
		case done:
			return false, nil
		case in.tag != Tag:
		case first && s.end():
			return true, nil
		default:
			return true, alone(field, in.label)
		}
	}
}

// alone makes sure that a field has one member with our tag, and one with its
// label.
func alone(field, label string) error {
	var in input
	s, n := scanner{s: field}, 0
	for {
		done, ok := in.next(&s)
		if !ok {
			return malformed("Signature-Input is no dictionary")
		}
		if done {
			break
		}
		if in.tag == Tag || in.label == label {
			n++
		}
	}
	if n > 1 {
		return malformed("two signatures that may be ours")
	}
	return nil
}

// next reads the next member of Signature-Input; done tells that there is none.
// What is wrong with it beyond the grammar is a flaw: nobody's concern if the
// signature is someone else's.
func (in *input) next(s *scanner) (done, ok bool) {
	label, done, ok := s.member()
	if done || !ok {
		return done, ok
	}
	in.reset()
	in.label = label
	switch {
	case !s.skip('='):
		in.flawed("a member of Signature-Input that is no inner list")
	case !s.at('('):
		in.flawed("a member of Signature-Input that is no inner list")
		if _, ok := s.item(); !ok {
			return false, false
		}
	default:
		if !in.list(s) {
			return false, false
		}
	}
	return false, in.readParams(s)
}

func (in *input) flawed(detail string) {
	if in.flaw == "" {
		in.flaw = detail
	}
}

// list reads the covered components.
func (in *input) list(s *scanner) bool {
	for open := s.skip('('); open; {
		s.spaces()
		if s.skip(')') {
			return true
		}
		if !in.component(s) {
			return false
		}
		open = s.at(' ') || s.at(')')
	}
	return false
}

func (in *input) component(s *scanner) bool {
	from := s.i
	v, ok := s.item()
	if !ok {
		return false
	}
	if v.kind != text {
		in.flawed("a covered component that is no string")
	}
	c := component{id: s.s[from:s.i], name: v.raw}
	for {
		key, v, done, ok := s.param()
		if !ok {
			return false
		}
		if done {
			break
		}
		switch {
		case c.param == "" && key == "name" && v.kind == text:
			c.param, c.value = "name", v.raw
			c.id += `;name="` + v.raw + `"`
		case c.param == "" && key == "bs" && v == (item{boolean, "1"}):
			c.param = "bs"
			c.id += ";bs"
		default:
			in.flawed("a covered component with a parameter that is not known here")
		}
	}
	in.add(c)
	return true
}

func (in *input) add(c component) {
	if in.n == maxComponents {
		in.flawed("more than 32 covered components")
		return
	}
	var bit cover
	if c.param == "" {
		bit = covered(c.name)
	}
	if in.covers&bit != 0 || bit == 0 && in.has(c.id) {
		in.flawed("a component that is covered twice")
		return
	}
	in.components[in.n] = c
	in.n++
	in.covers |= bit
}

func (in *input) has(id string) bool {
	for i := range in.n {
		if in.components[i].id == id {
			return true
		}
	}
	return false
}

// readParams reads the signature parameters. Those that are not known here must
// not be ignored: "expires" would be one.
func (in *input) readParams(s *scanner) bool {
	for {
		key, v, done, ok := s.param()
		if done || !ok {
			return ok
		}
		var to *string
		switch key {
		case "created":
			n, err := strconv.ParseInt(v.raw, 10, 64)
			if v.kind != integer || err != nil || n < 1 || n > maxTime || in.created != 0 {
				in.flawed("created is no time, or occurs twice")
				continue
			}
			in.created = n
			in.set(key, strings.TrimLeft(v.raw, "0"))
			continue
		case "nonce":
			to = &in.nonce
		case "keyid":
			to = &in.keyID
		case "alg":
			to = &in.alg
		case "tag":
			to = &in.tag
		default:
			in.flawed("a signature parameter that is not known here")
			continue
		}
		if v.kind != text || v.raw == "" || *to != "" {
			in.flawed("a signature parameter that is no string, or occurs twice")
			continue
		}
		*to = v.raw
		in.set(key, s.s[s.i-len(v.raw)-2:s.i])
	}
}

// set adds a signature parameter, given its canonical text.
func (in *input) set(name, value string) {
	in.params[in.np] = parameter{name, value}
	in.np++
}

// algorithmOf returns the algorithm of a name in the HTTP Signature Algorithms
// registry (RFC 9421, 6.2), 0 if it is not known here.
func algorithmOf(name string) proof.Algorithm {
	switch name {
	case "hmac-sha256":
		return proof.HMACSHA256
	case "ecdsa-p256-sha256":
		return proof.ECDSAP256
	case "ed25519":
		return proof.Ed25519
	case "rsa-pss-sha512":
		return proof.RSAPSSSHA512
	case "rsa-v1_5-sha256":
		return proof.RSAPKCS1
	}
	return 0
}

// nameOf returns the algorithm's name there, "" if it has none.
func nameOf(alg proof.Algorithm) string {
	switch alg {
	case proof.HMACSHA256:
		return "hmac-sha256"
	case proof.ECDSAP256:
		return "ecdsa-p256-sha256"
	case proof.Ed25519:
		return "ed25519"
	case proof.RSAPSSSHA512:
		return "rsa-pss-sha512"
	case proof.RSAPKCS1:
		return "rsa-v1_5-sha256"
	}
	return ""
}

// unfit says what keeps the parameters from being those of a signature of ours;
// "" if nothing does. No string of them can have an escape in it.
func (in *input) unfit() string {
	switch {
	case in.flaw != "":
		return in.flaw
	case in.created < 1 || in.created > maxTime:
		return "the signature does not say when it was made"
	case len(in.nonce) < 16 || len(in.nonce) > 64 || !all(in.nonce, nonceOK):
		return "the nonce is not 16 to 64 plain characters"
	case len(in.keyID) != 43 || !all(in.keyID, urlByte):
		return "keyid is no JWK thumbprint"
	case in.alg != "" && algorithmOf(in.alg) == 0:
		return "an algorithm that is not known here"
	}
	return ""
}

// read reads the parts of our signature of m into p that every message's has,
// and in. found is false if there is none.
func read(m *proof.Message, p *proof.Proof, in *input) (found bool, err error) {
	field, err := value(m.Header, "Signature-Input")
	if err != nil || field == "" {
		return false, err
	}
	if found, err = find(field, in); !found || err != nil {
		return false, err
	}
	if detail := in.unfit(); detail != "" {
		return false, malformed(detail)
	}
	p.Scratch = append(p.Scratch[:0], in.nonce...)
	p.Nonce, p.Random = p.Scratch, len(in.nonce)
	p.KeyID, p.Algorithm, p.Time = in.keyID, algorithmOf(in.alg), time.Unix(in.created, 0)
	if err := readSignature(m, p, in.label); err != nil {
		return false, err
	}
	digest, err := value(m.Header, DigestField)
	if err != nil {
		return false, err
	}
	channel, err := value(m.Header, ChannelField)
	if err != nil {
		return false, err
	}
	if p.Challenge, err = value(m.Header, ChallengeField); err != nil {
		return false, err
	}
	must := target
	if digest != "" || m.HasBody {
		must |= digestField
	}
	if p.Challenge != "" {
		must |= challengeField
	}
	if p.Channel = channel != ""; p.Channel {
		must |= channelField
	}
	switch {
	case in.covers&must != must:
		return false, malformed("the signature does not cover all that it must")
	case p.Channel && channel != Channel:
		return false, malformed("a channel of another kind")
	}
	if err := readDigest(p, digest); err != nil {
		return false, err
	}
	p.Signed, err = in.appendBase(p.Signed[:0], m)
	return err == nil, err
}

// readSignature reads the member of Signature (RFC 9421, 4.2) with the label.
func readSignature(m *proof.Message, p *proof.Proof, label string) error {
	field, err := value(m.Header, "Signature")
	if err != nil {
		return err
	}
	found := false
	for s := (scanner{s: field}); ; {
		key, done, ok := s.member()
		switch {
		case ok && done && found:
			return nil
		case ok && done:
			return malformed("no signature under the label")
		case ok && key != label:
			ok = s.rest()
		case ok && found:
			return malformed("two signatures under one label")
		case ok:
			found = true
			var b []byte
			if b, ok = s.bytes(p); ok {
				p.Signature = append(p.Signature[:0], b...)
			}
		}
		if !ok {
			return malformed("Signature is no dictionary of byte sequences")
		}
	}
}

// readDigest reads the sha-256 of Content-Digest (RFC 9530, 2) into p. A request
// without the field claims that its body is empty.
func readDigest(p *proof.Proof, field string) error {
	p.Digest, p.BodyClaim = true, nil
	if field == "" {
		n := len(p.Scratch)
		p.Scratch = append(p.Scratch, emptySum[:]...)
		p.BodyClaim = p.Scratch[n:]
		return nil
	}
	for s := (scanner{s: field}); ; {
		key, done, ok := s.member()
		switch {
		case ok && done && p.BodyClaim != nil:
			return nil
		case ok && done:
			return malformed("Content-Digest has no sha-256")
		case ok && key != "sha-256":
			ok = s.rest()
		case ok && p.BodyClaim != nil:
			return malformed("two digests of one algorithm")
		case ok:
			p.BodyClaim, ok = s.bytes(p)
			ok = ok && len(p.BodyClaim) == len(emptySum)
		}
		if !ok {
			return malformed("Content-Digest is no dictionary of byte sequences")
		}
	}
}

// bytes reads the value of a member: a byte sequence without parameters. It is
// in p.Scratch.
func (s *scanner) bytes(p *proof.Proof) ([]byte, bool) {
	if !s.skip('=') || !s.at(':') {
		return nil, false
	}
	v, ok := s.item()
	if !ok || s.at(';') {
		return nil, false
	}
	n := len(p.Scratch)
	p.Scratch = append(p.Scratch, v.raw...)
	from := len(p.Scratch)
	var err error
	p.Scratch, err = strict.AppendDecode(p.Scratch, p.Scratch[n:])
	return p.Scratch[from:], err == nil
}
