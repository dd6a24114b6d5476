package limpet

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// Binding is the record that a session belongs to a device key. Requests share
// it: it is not to be modified.
type Binding struct {
	Session ID
	User    string    // who logged in
	Level   Level     // what keeps the device key; None if there is none
	Key     string    // the device key's JWK thumbprint (RFC 7638), base64url; "" if there is none
	Created time.Time // the login, to the second
	Expires time.Time // when the binding is over, to the second
	Ended   time.Time // when the session was revoked; zero if it was not

	// Root is the session of the login, if the app has replaced its token since;
	// see [Guard.Rebind]. It is zero for the login's own.
	Root ID

	// Client is the client that the request's TLS connection belongs to, where the
	// route asks for one. It is the request's, not the session's.
	Client string

	device  *proof.PublicKey // nil for Level None
	offered bool             // a browser may register a key for it, see registration
}

// rootID returns the session of the login.
func (b *Binding) rootID() ID {
	if b.Root != (ID{}) {
		return b.Root
	}
	return b.Session
}

// registered returns the binding to the key that a browser registered.
func (b *Binding) registered(r *registration) *Binding {
	with := *b
	with.Level, with.Key, with.device = Browser, thumbprintOf(r.key), r.key
	return &with
}

// alive reports whether the session is neither over nor revoked.
func (b *Binding) alive(now time.Time) bool {
	return b.Ended.IsZero() && now.Before(b.Expires)
}

// recordVersion is the first byte of every record. That of a binding is more with a
// root, and more again if a browser was offered to register a key. A change of
// layout takes a number of its own.
const (
	recordVersion = 1
	withRoot      = 1
	withOffer     = 2
)

var errRecord = errors.New("limpet: unreadable record in the store")

var levelBytes = [...]Level{None, Software, Browser, Hardware, HardwareAttested}

// encode writes the record: version, level, algorithm of the device key,
// created, expires, ended, user, device key and, if there is one, the root. Times
// are unix seconds.
func (b *Binding) encode() []byte {
	level := 0
	for i, l := range levelBytes {
		if l == b.Level {
			level = i
		}
	}
	var alg proof.Algorithm
	var key []byte
	if b.device != nil {
		alg, key = b.device.Algorithm(), b.device.Bytes()
	}
	rooted := b.Root != ID{}
	version := byte(recordVersion)
	if rooted {
		version += withRoot
	}
	if b.offered {
		version += withOffer
	}
	out := make([]byte, 0, 24+len(b.User)+len(key)+len(b.Root))
	out = append(out, version, byte(level), byte(alg))
	out = appendTime(out, b.Created)
	out = appendTime(out, b.Expires)
	out = appendTime(out, b.Ended)
	out = appendBytes(out, []byte(b.User))
	out = appendBytes(out, key)
	if rooted {
		out = append(out, b.Root[:]...)
	}
	return out
}

func decodeBinding(session ID, rec []byte) (*Binding, error) {
	r := reader{rest: rec}
	version, level, alg := r.byte(), r.byte(), proof.Algorithm(r.byte())
	b := &Binding{Session: session, Created: r.time(), Expires: r.time(), Ended: r.time(), User: string(r.bytes())}
	key := r.bytes()
	with := version - recordVersion
	b.offered = with&withOffer != 0
	if with&withRoot != 0 {
		copy(b.Root[:], r.take(uint64(len(b.Root))))
	}
	if r.failed || len(r.rest) > 0 || with > withRoot+withOffer || int(level) >= len(levelBytes) {
		return nil, errRecord
	}
	b.Level = levelBytes[level]
	if b.Level == None {
		return b, nil
	}
	var err error
	if b.device, err = proof.ParsePublicKey(alg, key); err != nil {
		return nil, errRecord
	}
	b.Key = thumbprintOf(b.device)
	return b, nil
}

// thumbprintOf returns a key's JWK thumbprint as [Binding].Key has it.
func thumbprintOf(key *proof.PublicKey) string {
	sum := key.Thumbprint()
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func appendTime(dst []byte, t time.Time) []byte {
	if t.IsZero() {
		return binary.AppendUvarint(dst, 0)
	}
	return binary.AppendUvarint(dst, uint64(t.Unix()))
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

// reader takes a record apart. After a failure everything it returns is zero.
type reader struct {
	rest   []byte
	failed bool
}

func (r *reader) byte() byte {
	b := r.take(1)
	if b == nil {
		return 0
	}
	return b[0]
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.failed, r.rest = true, nil
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *reader) time() time.Time {
	s := r.uvarint()
	if s == 0 || s > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(s), 0)
}

func (r *reader) bytes() []byte { return r.take(r.uvarint()) }

func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.rest)) {
		r.failed, r.rest = true, nil
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}
