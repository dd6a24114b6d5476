package handshake

import (
	"encoding/binary"
	"errors"

	"github.com/limpet-auth/limpet/keyring"
)

// Each message begins with the length of what follows, in two bytes, the
// version and what it is.
const (
	version = 1

	kindGreeting = 1
	kindHello    = 2
	kindAnswer   = 3

	headerSize    = 4
	nonceSize     = 32
	keyIDSize     = 8
	pointSize     = 32 // X25519 (RFC 7748)
	proofSize     = 32
	signatureSize = 64 // r‖s, or Ed25519
	sessionSize   = 32
	exportedSize  = 32

	greetingSize = headerSize + nonceSize
	maxHello     = headerSize + 2 + nonceSize + keyIDSize + 2*(1+keyring.MaxID) + pointSize + signatureSize
	maxMessage   = maxHello // the others are shorter
)

// errMessage is all that is told of a message that breaks the rules.
var errMessage = errors.New("malformed message")

// suite is how both ends prove themselves.
type suite byte

const (
	hmacSHA256 suite = 1
	hmacSHA512 suite = 2
	signatures suite = 3 // ECDSA P-256 over SHA-256, or Ed25519, as each end's key is; agreement on X25519
)

// answerSize is the length of the server's answer.
func (s suite) answerSize() int {
	if s == signatures {
		return headerSize + keyIDSize + pointSize + signatureSize + proofSize
	}
	return headerSize + proofSize
}

// Bits of a hello's flags.
const (
	flagRecords = 1 << iota
	flagChannel
)

func (cfg *Config) flags() (f byte) {
	if cfg.Records {
		f |= flagRecords
	}
	if cfg.Channel {
		f |= flagChannel
	}
	return f
}

// messageSize returns the whole length of the message that b begins with.
func messageSize(b []byte) int { return 2 + int(binary.BigEndian.Uint16(b)) }

func appendHeader(b []byte, size int, kind byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(size-2))
	return append(b, version, kind)
}

// parseHeader returns what follows the header of a whole message.
func parseHeader(b []byte, kind byte) ([]byte, bool) {
	if len(b) < headerSize || len(b) > maxMessage || messageSize(b) != len(b) || b[2] != version || b[3] != kind {
		return nil, false
	}
	return b[headerSize:], true
}

// parseGreeting returns the server's nonce.
func parseGreeting(b []byte) (nonce []byte, err error) {
	rest, ok := parseHeader(b, kindGreeting)
	if !ok || len(rest) != nonceSize {
		return nil, errMessage
	}
	return rest, nil
}

// hello is the client's message. Its parts lie in the message.
type hello struct {
	suite  suite
	flags  byte
	nonce  []byte
	keyID  [keyIDSize]byte
	client []byte
	server []byte
	point  []byte // the client's ephemeral key, with signatures
	signed []byte // all before the proof
	proof  []byte // a tag or a signature
}

func parseHello(b []byte) (h hello, err error) {
	rest, ok := parseHeader(b, kindHello)
	if !ok || len(rest) < 2+nonceSize+keyIDSize {
		return h, errMessage
	}
	h.suite, h.flags, rest = suite(rest[0]), rest[1], rest[2:]
	h.nonce, rest = rest[:nonceSize], rest[nonceSize:]
	copy(h.keyID[:], rest)
	rest = rest[keyIDSize:]
	if h.client, rest, ok = cutName(rest); !ok {
		return h, errMessage
	}
	if h.server, rest, ok = cutName(rest); !ok {
		return h, errMessage
	}
	size := proofSize
	switch h.suite {
	case hmacSHA256, hmacSHA512:
	case signatures:
		if len(rest) < pointSize {
			return h, errMessage
		}
		h.point, rest = rest[:pointSize], rest[pointSize:]
		size = signatureSize
	default:
		return h, errMessage
	}
	if len(rest) != size || h.flags&^(flagRecords|flagChannel) != 0 {
		return h, errMessage
	}
	h.signed, h.proof = b[:len(b)-size], rest
	return h, nil
}

// cutName reads a length and a name.
func cutName(b []byte) (name, rest []byte, ok bool) {
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		return nil, nil, false
	}
	name, rest = b[1:1+b[0]], b[1+b[0]:]
	return name, rest, keyring.CheckID(string(name)) == nil
}

func appendName(b []byte, name string) []byte {
	return append(append(b, byte(len(name))), name...)
}

// appendHello appends the message but for its proof.
func (h *hello) append(b []byte, client, server string) []byte {
	size := headerSize + 2 + nonceSize + keyIDSize + 1 + len(client) + 1 + len(server) + len(h.point) + proofSize
	if h.suite == signatures {
		size += signatureSize - proofSize
	}
	b = appendHeader(b, size, kindHello)
	b = append(b, byte(h.suite), h.flags)
	b = append(b, h.nonce...)
	b = append(b, h.keyID[:]...)
	b = appendName(b, client)
	b = appendName(b, server)
	return append(b, h.point...)
}

// answer is the server's last message. Its parts lie in the message.
type answer struct {
	// With signatures.
	keyID     [keyIDSize]byte
	point     []byte
	signed    []byte // all before the signature
	signature []byte

	proof []byte
}

func parseAnswer(s suite, b []byte) (a answer, err error) {
	rest, ok := parseHeader(b, kindAnswer)
	if !ok || len(b) != s.answerSize() {
		return a, errMessage
	}
	if s == signatures {
		copy(a.keyID[:], rest)
		rest = rest[keyIDSize:]
		a.point, rest = rest[:pointSize], rest[pointSize:]
		a.signed = b[:headerSize+keyIDSize+pointSize]
		a.signature, rest = rest[:signatureSize], rest[signatureSize:]
	}
	a.proof = rest
	return a, nil
}
