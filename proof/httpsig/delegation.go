package httpsig

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// statementPrefix keeps a statement from being taken for anything else that a
// device key signs: a signature base begins with a double quote.
const statementPrefix = "limpet delegation 1\x00"

// maxAudience bounds a delegation's audience, in bytes: a host name is 253 at
// most. maxKey bounds an encoded public key.
const (
	maxAudience = 255
	maxKey      = 1024
)

// codes are the algorithms of ephemeral keys in a statement.
var codes = [...]proof.Algorithm{
	1: proof.Ed25519,
	2: proof.ECDSAP256,
	3: proof.RSAPSSSHA512,
	4: proof.RSAPKCS1,
	5: proof.HMACSHA256,
}

// Statement returns what the device key signs to delegate to an ephemeral key:
//
//	"limpet delegation 1" 0x00
//	algorithm   1 byte: 1 ed25519, 2 ecdsa-p256-sha256, 3 rsa-pss-sha512,
//	            4 rsa-v1_5-sha256, 5 hmac-sha256 by ECDH P-256
//	not before  8 bytes, Unix seconds
//	expires     8 bytes, Unix seconds, after not before
//	session     32 bytes, SHA-256 of the session token
//	audience    2 bytes of length, the authority of the requests: 1 to 255 of visible ASCII
//	key         the rest, in the encoding of proof.PublicKey.Bytes
//
// Numbers are big-endian. Times lose what is less than a second. Scope.Server is
// not part of it. The server refuses a statement whose values are out of range.
func Statement(alg proof.Algorithm, key []byte, scope *proof.Scope) []byte {
	var code byte
	for i, a := range codes {
		if a == alg {
			code = byte(i)
		}
	}
	b := make([]byte, 0, len(statementPrefix)+1+8+8+sha256.Size+2+len(scope.Audience)+len(key))
	b = append(append(b, statementPrefix...), code)
	b = binary.BigEndian.AppendUint64(b, uint64(scope.NotBefore.Unix()))
	b = binary.BigEndian.AppendUint64(b, uint64(scope.Expires.Unix()))
	b = append(b, scope.Session[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(scope.Audience)))
	return append(append(b, scope.Audience...), key...)
}

// parseStatement reads what Statement returns.
func parseStatement(b []byte) (alg proof.Algorithm, key []byte, scope *proof.Scope, ok bool) {
	const fixed = 1 + 8 + 8 + sha256.Size + 2
	b, ok = bytes.CutPrefix(b, []byte(statementPrefix))
	if !ok || len(b) < fixed {
		return 0, nil, nil, false
	}
	if int(b[0]) < len(codes) {
		alg = codes[b[0]]
	}
	from, to := binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint64(b[9:])
	session := [sha256.Size]byte(b[17:])
	n := int(binary.BigEndian.Uint16(b[fixed-2:]))
	b = b[fixed:]
	if alg == 0 || from >= to || to > maxTime || n == 0 || n > maxAudience || n > len(b) {
		return 0, nil, nil, false
	}
	audience, key := string(b[:n]), b[n:]
	for i := range n {
		if audience[i] <= ' ' || audience[i] > '~' {
			return 0, nil, nil, false
		}
	}
	switch alg {
	case proof.Ed25519:
		ok = len(key) == 32
	case proof.ECDSAP256, proof.HMACSHA256:
		ok = len(key) == 65
	default:
		ok = 0 < len(key) && len(key) <= maxKey
	}
	scope = &proof.Scope{NotBefore: time.Unix(int64(from), 0), Expires: time.Unix(int64(to), 0), Session: session, Audience: audience}
	return alg, key, scope, ok
}

// FormatDelegation returns the value of Limpet-Delegation. The delegation's
// Signed is the [Statement]; its Signature, by the device key, is of the one
// form that [proof.PublicKey.VerifyExact] reads, so r‖s for ECDSA. An agreement
// key's Scope names the server's key.
func FormatDelegation(d *proof.Delegation) string {
	s := formatBytes(d.Signed) + ";sig=" + formatBytes(d.Signature)
	if d.Algorithm == proof.HMACSHA256 {
		s += ";server=" + formatBytes(d.Scope.Server[:])
	}
	return s
}

// parseDelegation reads what FormatDelegation writes. Nothing but the statement
// is signed, so nothing else may be there.
func parseDelegation(field string) (*proof.Delegation, error) {
	statement, params, ok := parseBytes(field)
	if !ok {
		return nil, malformed("Limpet-Delegation is no byte sequence")
	}
	d := &proof.Delegation{Signed: statement}
	if d.Algorithm, d.Key, d.Scope, ok = parseStatement(statement); !ok {
		return nil, malformed("the delegation's statement cannot be read")
	}
	var server []byte
	for _, p := range params {
		b, ok := p.bytes()
		switch {
		case p.key == "sig" && ok && len(b) > 0 && d.Signature == nil:
			d.Signature = b
		case p.key == "server" && len(b) == len(d.Scope.Server) && server == nil:
			server = b
		default:
			return nil, malformed("a parameter of Limpet-Delegation that is not known here, or occurs twice")
		}
	}
	if d.Signature == nil || (server != nil) != (d.Algorithm == proof.HMACSHA256) {
		return nil, malformed("the delegation lacks its signature, or names the server's key where none belongs")
	}
	if server != nil {
		d.Scope.Server = proof.KeyID(server)
	}
	return d, nil
}
