package handshake

import (
	"context"
	"testing"
)

// BenchmarkMessages is all that both ends compute for one handshake.
func BenchmarkMessages(b *testing.B) {
	cfgs, cfgc := pair()
	ctx := context.Background()
	x, y := new(exchange), new(exchange)
	b.ReportAllocs()
	for b.Loop() {
		x.server, y.client = server{cfg: cfgs}, client{cfg: cfgc}
		hello, err := y.client.prove(ctx, y.out[:0], x.server.greet(x.out[:0]))
		if err != nil {
			b.Fatal(err)
		}
		answer, err := x.server.answer(ctx, x.out[:0], hello)
		if err != nil {
			b.Fatal(err)
		}
		if err := y.client.confirm(answer); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRecord is the tag of one full record.
func BenchmarkRecord(b *testing.B) {
	keys := make([]byte, 64)
	data := make([]byte, maxRecord)
	r, err := newRecords(nil, (*[32]byte)(keys), (*[32]byte)(keys[32:]))
	if err != nil {
		b.Fatal(err)
	}
	buf := append(make([]byte, 0, 2*maxRecord), data...)
	b.SetBytes(maxRecord)
	for b.Loop() {
		r.sealer.seal(buf)
	}
}
