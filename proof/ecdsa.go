package proof

import (
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"math/bits"
)

// ecdsaSignature is a P-256 signature: r and s, 32 bytes each, big-endian.
type ecdsaSignature [64]byte

// p256Order is the order n of the P-256 group (SP 800-186, 3.2.1.3).
var p256Order = func() (n [4]uint64) {
	b, err := hex.DecodeString("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551")
	if err != nil {
		panic(err)
	}
	return words(b)
}()

// RawECDSA returns a P-256 signature as the 64 bytes r‖s that standards of the
// web want (RFC 7518, 3.4; RFC 9421, 3.3.4), given the DER that keys write.
func RawECDSA(der []byte) ([]byte, error) {
	rs, ok := parseDER(der)
	if zero := [32]byte{}; !ok || [32]byte(rs[:32]) == zero || [32]byte(rs[32:]) == zero {
		return nil, errors.New("limpet: proof: not an ECDSA P-256 signature in DER")
	}
	return rs[:], nil
}

// parseECDSA reads a signature in either form that peers send: 64 bytes r‖s,
// or DER. DER is 64 bytes long for about one signature in 2^48; that one is read
// as r‖s and fails.
func parseECDSA(sig []byte) (rs ecdsaSignature, ok bool) {
	if len(sig) == len(rs) {
		copy(rs[:], sig)
		return rs, true
	}
	return parseDER(sig)
}

// parseDER reads SEQUENCE { INTEGER r, INTEGER s } (RFC 3279, 2.2.3).
func parseDER(sig []byte) (rs ecdsaSignature, ok bool) {
	// All lengths fit in one byte: at most 2+33+2+33.
	if len(sig) < 8 || len(sig) > 72 || sig[0] != 0x30 || int(sig[1]) != len(sig)-2 {
		return rs, false
	}
	rest, ok := derInteger(rs[:32], sig[2:])
	if !ok {
		return rs, false
	}
	rest, ok = derInteger(rs[32:], rest)
	return rs, ok && len(rest) == 0
}

// derInteger reads a positive, minimally encoded INTEGER of at most len(dst)
// bytes into dst, right-aligned.
func derInteger(dst, b []byte) (rest []byte, ok bool) {
	if len(b) < 3 || b[0] != 0x02 {
		return nil, false
	}
	n := int(b[1])
	if n == 0 || n > 33 || len(b) < 2+n {
		return nil, false
	}
	v, rest := b[2:2+n], b[2+n:]
	if v[0]&0x80 != 0 { // negative
		return nil, false
	}
	if v[0] == 0 {
		if n > 1 && v[1]&0x80 == 0 { // not minimal
			return nil, false
		}
		v = v[1:]
	}
	if len(v) > len(dst) {
		return nil, false
	}
	copy(dst[len(dst)-len(v):], v)
	return rest, true
}

func (rs *ecdsaSignature) verify(pub *ecdsa.PublicKey, digest []byte) bool {
	var der [72]byte
	return ecdsa.VerifyASN1(pub, digest, rs.appendDER(der[:0]))
}

func (rs *ecdsaSignature) appendDER(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, 0x30, 0)
	for _, v := range [2][]byte{rs[:32], rs[32:]} {
		for len(v) > 1 && v[0] == 0 {
			v = v[1:]
		}
		if v[0]&0x80 != 0 {
			dst = append(dst, 0x02, byte(len(v)+1), 0)
		} else {
			dst = append(dst, 0x02, byte(len(v)))
		}
		dst = append(dst, v...)
	}
	dst[start+1] = byte(len(dst) - start - 2)
	return dst
}

// appendCanonical appends r ‖ min(s, n−s): (r, s) and (r, n−s) are both valid
// for the same message, and whoever holds one can compute the other.
func (rs *ecdsaSignature) appendCanonical(dst []byte) []byte {
	s := words(rs[32:])
	var neg [4]uint64
	var borrow uint64
	for i := range neg {
		neg[i], borrow = bits.Sub64(p256Order[i], s[i], borrow)
	}
	// borrow != 0: s > n, which no verification admits; it stays as it is.
	dst = append(dst, rs[:32]...)
	if borrow == 0 && less(neg, s) {
		s = neg
	}
	for i := 3; i >= 0; i-- {
		for shift := 56; shift >= 0; shift -= 8 {
			dst = append(dst, byte(s[i]>>shift))
		}
	}
	return dst
}

// words reads 32 big-endian bytes as four 64-bit words, least significant first.
func words(b []byte) (w [4]uint64) {
	for i := range w {
		for _, c := range b[32-8*(i+1) : 32-8*i] {
			w[i] = w[i]<<8 | uint64(c)
		}
	}
	return w
}

func less(a, b [4]uint64) bool {
	for i := 3; i >= 0; i-- {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}
