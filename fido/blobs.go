package fido

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
)

const maxFragment = maxMessage - 64

// noBlobs is the array of large blobs that is there at first: an empty one, and the
// beginning of its hash.
var noBlobs = withHash([]byte{0x80})

func withHash(array []byte) []byte {
	sum := sha256.Sum256(array)
	return append(bytes.Clone(array), sum[:16]...)
}

// upload is an array of large blobs of which a part has come.
type upload struct {
	channel uint32
	length  int
	data    []byte
}

// largeBlobs answers CTAP 2.1, section 6.10.
func (t *Token) largeBlobs(x *transaction, a *args) (map[int]any, error) {
	get, isGet := optional[int64](a, 1)
	set, isSet := optional[[]byte](a, 2)
	offset := required[int64](a, 3)
	length, hasLength := optional[int64](a, 4)
	param, has, protocol, err := t.pinParams(a, 5, 6)
	switch {
	case *a.err != nil:
		return nil, *a.err
	case isGet == isSet, offset < 0:
		return nil, statusInvalidParameter
	}
	if isGet {
		_, hasProtocol := optional[int64](a, 6)
		switch {
		case hasLength, has, hasProtocol, get < 0:
			return nil, statusInvalidParameter
		case get > maxFragment:
			return nil, statusInvalidLength
		}
		t.blob = nil
		blobs := t.state.Blobs
		if blobs == nil {
			blobs = noBlobs
		}
		if offset > int64(len(blobs)) {
			return nil, statusInvalidParameter
		}
		rest := blobs[offset:]
		return map[int]any{1: rest[:min(get, int64(len(rest)))]}, nil
	}
	if len(set) > maxFragment {
		return nil, statusInvalidLength
	}
	if offset == 0 {
		switch {
		case !hasLength, length < int64(len(noBlobs)):
			return nil, statusInvalidParameter
		case length > maxBlobs:
			return nil, statusLargeBlobFull
		}
		t.blob = &upload{channel: x.channel, length: int(length)}
	} else if hasLength {
		return nil, statusInvalidParameter
	}
	b := t.blob
	if b == nil || b.channel != x.channel || offset != int64(len(b.data)) {
		t.blob = nil
		return nil, statusInvalidSequence
	}
	if t.pinSet || t.state.AlwaysUV {
		switch {
		case !has:
			return nil, statusPINRequired
		case err != nil:
			return nil, err
		}
		sum := sha256.Sum256(set)
		message := append(bytes.Repeat([]byte{0xff}, 32), cmdLargeBlobs, 0)
		message = binary.LittleEndian.AppendUint32(message, uint32(offset))
		if err := t.authorize(protocol, param, append(message, sum[:]...), mayWriteBlobs); err != nil {
			return nil, err
		}
	}
	if len(b.data)+len(set) > b.length {
		t.blob = nil
		return nil, statusInvalidParameter
	}
	b.data = append(b.data, set...)
	if len(b.data) < b.length {
		return nil, nil
	}
	t.blob = nil
	array := b.data[:b.length-16]
	if !bytes.Equal(withHash(array), b.data) {
		return nil, statusIntegrity
	}
	next := t.state
	next.Blobs = b.data
	return nil, t.save(x.ctx, next)
}
