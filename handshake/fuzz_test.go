package handshake

import (
	"bytes"
	"testing"
)

func FuzzGreeting(f *testing.F) {
	f.Add((&server{}).greet(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		nonce, err := parseGreeting(b)
		if err == nil && !bytes.Equal(append(appendHeader(nil, greetingSize, kindGreeting), nonce...), b) {
			t.Error("two spellings of one greeting")
		}
	})
}

func FuzzHello(f *testing.F) {
	srv, cli := pair()
	for range 2 {
		c := &client{cfg: cli}
		b, err := c.prove(f.Context(), nil, (&server{cfg: srv}).greet(nil))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		srv, cli = signed(newEd25519(f), newECDSA(f))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err != nil {
			return
		}
		if again := append(h.append(nil, string(h.client), string(h.server)), h.proof...); !bytes.Equal(again, b) {
			t.Errorf("two spellings of one hello: %x and %x", b, again)
		}
		s := &server{cfg: srv}
		s.greet(nil)
		if _, err := s.answer(t.Context(), nil, b); err == nil {
			t.Error("admitted")
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for _, s := range []suite{hmacSHA256, signatures} {
		f.Add(byte(s), append(appendHeader(nil, s.answerSize(), kindAnswer), make([]byte, s.answerSize()-headerSize)...))
	}
	srv, cli := pair()
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		a, err := parseAnswer(suite(kind), b)
		if err != nil {
			return
		}
		again := appendHeader(nil, suite(kind).answerSize(), kindAnswer)
		if suite(kind) == signatures {
			again = append(append(append(again, a.keyID[:]...), a.point...), a.signature...)
		}
		if again = append(again, a.proof...); !bytes.Equal(again, b) {
			t.Error("two spellings of one answer")
		}
		c := &client{cfg: cli}
		if _, err := c.prove(t.Context(), nil, (&server{cfg: srv}).greet(nil)); err != nil {
			t.Fatal(err)
		}
		if c.confirm(b) == nil {
			t.Error("admitted")
		}
	})
}

func FuzzRecord(f *testing.F) {
	var key [32]byte
	d, err := newDirection(&key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(d.seal([]byte("\x00\x00\x00\x04data")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < recordHeader {
			return
		}
		kind, size, err := parseRecordHeader(b)
		if err != nil || size != len(b) {
			return
		}
		if size > recordHeader+maxRecord+recordTag || kind > recordEnd {
			t.Errorf("kind %d, %d bytes", kind, size)
		}
		d, err := newDirection(&[32]byte{1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.open(b); err == nil {
			t.Error("admitted")
		}
	})
}

func FuzzClassicChallenge(f *testing.F) {
	f.Add([]byte("iIFO2H2vHpSrwB6S"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if checkChallenge(b) == nil && (len(b) != 16 || bytes.ContainsAny(b, "\x00 \n-_{#")) {
			t.Errorf("%q", b)
		}
	})
}

func FuzzPythonChallenge(f *testing.F) {
	f.Add([]byte("#CHALLENGE#{sha256}0123456789012345678901234567890123456789"))
	f.Add([]byte("#CHALLENGE#01234567890123456789"))
	f.Fuzz(func(t *testing.T, b []byte) {
		digest, message, err := parsePythonChallenge(b)
		if err == nil && (digests[digest] == nil || len(message) < pythonOld || !bytes.HasSuffix(b, message)) {
			t.Errorf("%q of %q", digest, b)
		}
	})
}

func FuzzPythonResponse(f *testing.F) {
	f.Add([]byte("{sha256}01234567890123456789012345678901"))
	f.Add([]byte("0123456789012345"))
	_, cli := pair()
	f.Fuzz(func(t *testing.T, b []byte) {
		digest, tag, err := parsePythonDigest(b)
		if err == nil && (digests[digest] == nil || !bytes.HasSuffix(b, tag)) {
			t.Errorf("%q of %q", digest, b)
		}
		if checkPython(t.Context(), &Config{Peer: "web", Keys: cli.Keys, Wire: Python, MD5: true}, []byte("{sha256}0123456789012345678901234567890123456789"), b) == nil {
			t.Error("admitted")
		}
	})
}
