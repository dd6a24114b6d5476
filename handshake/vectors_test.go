package handshake

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"flag"
	"math/big"
	"os"
	"testing"

	"github.com/limpet-auth/limpet/keyring"
	"github.com/limpet-auth/limpet/limpettest/vectors"
)

var update = flag.Bool("update", false, "write limpettest/vectors/handshake.json anew")

// vectorFile is handshake.json; the package's comment explains the members.
type vectorFile struct {
	Comment    []string         `json:"comment"`
	Handshakes []*vector        `json:"handshakes"`
	Refused    []*refusedVector `json:"refused"`
}

type vector struct {
	Name     string      `json:"name"`
	Suite    suite       `json:"suite"`
	Flags    byte        `json:"flags"`
	Client   string      `json:"client"`
	Server   string      `json:"server"`
	Secret   string      `json:"secret,omitempty"`
	Version  int         `json:"version,omitempty"`
	Keys     *vectorKeys `json:"keys,omitempty"`
	Exported string      `json:"exported,omitempty"`

	Greeting   string          `json:"greeting"`
	Hello      string          `json:"hello"`
	Answer     string          `json:"answer"`
	Transcript string          `json:"transcript"`
	Z          string          `json:"z,omitempty"`
	Key        string          `json:"key"`
	Session    string          `json:"session"`
	Records    []*recordVector `json:"records,omitempty"`
}

type vectorKeys struct {
	ClientAlgorithm string `json:"client_algorithm"`
	ClientPrivate   string `json:"client_private"`
	ClientPublic    string `json:"client_public"`
	ServerAlgorithm string `json:"server_algorithm"`
	ServerPrivate   string `json:"server_private"`
	ServerPublic    string `json:"server_public"`
	ClientEphemeral string `json:"client_ephemeral"`
	ServerEphemeral string `json:"server_ephemeral"`
}

type recordVector struct {
	From   string `json:"from"`
	Data   string `json:"data"`
	Record string `json:"record"`
}

type refusedVector struct {
	Name  string `json:"name"`
	Of    string `json:"of"`
	Hello string `json:"hello"`
}

func seed(name string) []byte {
	sum := sha256.Sum256([]byte("limpet test handshake: " + name))
	return sum[:]
}

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func framed(body []byte) []byte {
	return cat([]byte{byte(len(body) >> 8), byte(len(body))}, body)
}

// makeVectors says what is on the wire from docs/wire.md alone, with nothing of
// this package.
func makeVectors(t *testing.T) *vectorFile {
	f := &vectorFile{Comment: []string{
		"Test vectors of Limpet's handshake. The documentation of the Go package limpettest/vectors explains every member.",
		"The secrets and private keys are public: never use them for anything but tests.",
	}}
	for _, v := range []*vector{
		{Name: "HMAC-SHA256", Suite: 1, Client: "web", Server: "db", Version: 1},
		{Name: "HMAC-SHA512", Suite: 2, Client: "web", Server: "db", Version: 2},
		{Name: "HMAC-SHA256, records and channel", Suite: 1, Flags: 3, Client: "web-1@cluster.example", Server: "db", Version: 7},
		{Name: "HMAC-SHA512, records", Suite: 2, Flags: 1, Client: "web", Server: "db", Version: 1},
		{Name: "signatures, Ed25519 and ECDSA", Suite: 3, Flags: 1, Client: "web", Server: "db", Keys: &vectorKeys{ClientAlgorithm: "ed25519", ServerAlgorithm: "ecdsa-p256-sha256"}},
		{Name: "signatures, ECDSA and Ed25519, channel", Suite: 3, Flags: 2, Client: "web", Server: "db", Keys: &vectorKeys{ClientAlgorithm: "ecdsa-p256-sha256", ServerAlgorithm: "ed25519"}},
	} {
		f.Handshakes = append(f.Handshakes, v)
		f.make(t, v)
	}
	return f
}

// make fills in a handshake, and what is like it and must be refused.
func (f *vectorFile) make(t *testing.T, v *vector) {
	h := sha256.New
	if v.Suite == 2 {
		h = sha512.New
	}
	expand := func(key []byte, info string, n int) []byte {
		out, err := hkdf.Expand(h, key, info, n)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	var exported []byte
	if v.Flags&2 != 0 {
		exported = seed(v.Name + ", exported")
		v.Exported = hex.EncodeToString(exported)
	}
	greeting := framed(cat([]byte{1, 1}, seed(v.Name+", server nonce")))
	keyID := []byte{0, 0, 0, 0, 0, 0, 0, byte(v.Version)}
	var clientKey, serverKey *vectorKey
	var ce, se *ecdh.PrivateKey
	var point []byte
	secret := seed(v.Name + ", secret")
	if k := v.Keys; k != nil {
		clientKey, serverKey = newVectorKey(t, k.ClientAlgorithm, v.Name+", client"), newVectorKey(t, k.ServerAlgorithm, v.Name+", server")
		k.ClientPrivate, k.ClientPublic = hex.EncodeToString(clientKey.private), hex.EncodeToString(clientKey.public)
		k.ServerPrivate, k.ServerPublic = hex.EncodeToString(serverKey.private), hex.EncodeToString(serverKey.public)
		ce, se = newX25519(t, v.Name+", client ephemeral"), newX25519(t, v.Name+", server ephemeral")
		k.ClientEphemeral, k.ServerEphemeral = hex.EncodeToString(ce.Bytes()), hex.EncodeToString(se.Bytes())
		keyID, point = clientKey.id(), ce.PublicKey().Bytes()
	} else {
		v.Secret = hex.EncodeToString(secret)
	}
	transcriptOf := func(signed []byte) []byte { return cat([]byte("limpet handshake 1\x00"), greeting, signed, exported) }
	prove := func(signed []byte) (proof, key []byte) {
		if clientKey != nil {
			return clientKey.sign(t, cat([]byte("limpet handshake 1 client\x00"), transcriptOf(signed))), nil
		}
		key = expand(secret, string(transcriptOf(signed)), h().Size())
		return expand(key, "limpet handshake 1 client", 32), key
	}
	// hello makes the message, with something changed before it is proven.
	hello := func(change func(body []byte) []byte, client, server string) (message, signed, proof, key []byte) {
		size := 32
		if clientKey != nil {
			size = 64
		}
		body := cat([]byte{1, 2, byte(v.Suite), v.Flags}, seed(v.Name+", client nonce"), keyID,
			[]byte{byte(len(client))}, []byte(client), []byte{byte(len(server))}, []byte(server), point)
		body = change(body)
		signed = framed(cat(body, make([]byte, size)))
		signed = signed[:len(signed)-size]
		proof, key = prove(signed)
		return cat(signed, proof), signed, proof, key
	}
	same := func(b []byte) []byte { return b }
	message, signed, proof, key := hello(same, v.Client, v.Server)
	transcript := transcriptOf(signed)
	body := []byte{1, 3}
	if clientKey != nil {
		body = cat(body, serverKey.id(), se.PublicKey().Bytes())
		whole := framed(cat(body, make([]byte, 64+32)))
		transcript = cat(transcript, proof, whole[:len(whole)-64-32])
		z, err := se.ECDH(ce.PublicKey())
		if err != nil {
			t.Fatal(err)
		}
		v.Z = hex.EncodeToString(z)
		if key, err = hkdf.Key(h, z, nil, string(transcript), 32); err != nil {
			t.Fatal(err)
		}
		body = cat(body, serverKey.sign(t, cat([]byte("limpet handshake 1 server\x00"), transcript)))
	}
	answer := framed(cat(body, expand(key, "limpet handshake 1 server", 32)))
	for to, b := range map[*string][]byte{&v.Greeting: greeting, &v.Hello: message, &v.Answer: answer, &v.Transcript: transcript,
		&v.Key: key, &v.Session: expand(key, "limpet handshake 1 session", 32)} {
		*to = hex.EncodeToString(b)
	}
	if v.Flags&1 != 0 {
		for _, from := range []string{"client", "server"} {
			tag := newGMAC(t, expand(key, "limpet handshake 1 "+from+" records", 32))
			for i, data := range []string{"hello", "world", ""} {
				kind := byte(0)
				if data == "" {
					kind = 1
				}
				record := cat([]byte{kind, 0, 0, byte(len(data))}, []byte(data))
				v.Records = append(v.Records, &recordVector{from, data, hex.EncodeToString(cat(record, tag(byte(i), record)))})
			}
		}
	}
	if v.Flags != 0 && v.Suite != 3 {
		return
	}
	refuse := func(name string, message []byte) {
		f.Refused = append(f.Refused, &refusedVector{name, v.Name, hex.EncodeToString(message)})
	}
	again := func(name string, change func([]byte) []byte, client, server string) {
		message, _, _, _ := hello(change, client, server)
		refuse(name, message)
	}
	again("another server is meant", same, v.Client, "cache")
	again("the server's own name", same, v.Server, v.Server)
	again("unknown client", same, "other", v.Server)
	again("an odd name", same, "we b", v.Server)
	again("no name", same, "", v.Server)
	again("another version of the protocol", func(b []byte) []byte { b[0] = 2; return b }, v.Client, v.Server)
	again("another kind of message", func(b []byte) []byte { b[1] = 3; return b }, v.Client, v.Server)
	again("unknown suite", func(b []byte) []byte { b[2] = 4; return b }, v.Client, v.Server)
	again("records not wanted here, or wanted", func(b []byte) []byte { b[3] ^= 1; return b }, v.Client, v.Server)
	again("unknown flag", func(b []byte) []byte { b[3] |= 4; return b }, v.Client, v.Server)
	again("another key's name", func(b []byte) []byte { b[4+32+7] ^= 1; return b }, v.Client, v.Server)
	refuse("a byte more", cat(message, []byte{0}))
	refuse("a byte less", message[:len(message)-1])
	wrong := bytes.Clone(message)
	wrong[len(wrong)-1] ^= 1
	refuse("a wrong proof", wrong)
	if clientKey != nil {
		again("a point of small order", func(b []byte) []byte { clear(b[len(b)-32:]); return b }, v.Client, v.Server)
	}
}

// newGMAC makes tags of AES-256-GMAC by GHASH as SP 800-38D, 6.4, writes it down.
func newGMAC(t *testing.T, key []byte) func(counter byte, message []byte) []byte {
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	encrypt := func(b []byte) *big.Int {
		out := make([]byte, 16)
		block.Encrypt(out, b)
		return new(big.Int).SetBytes(out)
	}
	h := encrypt(make([]byte, 16))
	r := new(big.Int).Lsh(big.NewInt(0xe1), 120)
	multiply := func(x, y *big.Int) *big.Int {
		z, v := new(big.Int), new(big.Int).Set(y)
		for i := 127; i >= 0; i-- {
			if x.Bit(i) == 1 {
				z.Xor(z, v)
			}
			odd := v.Bit(0) == 1
			if v.Rsh(v, 1); odd {
				v.Xor(v, r)
			}
		}
		return z
	}
	return func(counter byte, message []byte) []byte {
		padded := append(bytes.Clone(message), make([]byte, (16-len(message)%16)%16)...)
		padded = append(padded, make([]byte, 16)...)
		padded[len(padded)-9] = byte(len(message) * 8) // bits of what is authenticated; nothing is encrypted
		y := new(big.Int)
		for ; len(padded) > 0; padded = padded[16:] {
			y = multiply(y.Xor(y, new(big.Int).SetBytes(padded[:16])), h)
		}
		first := make([]byte, 16)
		first[11], first[15] = counter, 1
		return y.Xor(y, encrypt(first)).FillBytes(make([]byte, 16))
	}
}

type vectorKey struct {
	signer          crypto.Signer
	private, public []byte
}

func newVectorKey(t *testing.T, algorithm, name string) *vectorKey {
	s := seed(name)
	if algorithm == "ed25519" {
		k := ed25519.NewKeyFromSeed(s)
		return &vectorKey{k, s, k.Public().(ed25519.PublicKey)}
	}
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), s)
	if err != nil {
		t.Fatal(err)
	}
	public, err := k.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return &vectorKey{k, s, public}
}

func (k *vectorKey) id() []byte {
	sum := sha256.Sum256(k.public)
	return sum[:8]
}

// sign is deterministic for ECDSA too (RFC 6979).
func (k *vectorKey) sign(t *testing.T, message []byte) []byte {
	digest, opts := message, crypto.Hash(0)
	if _, ok := k.signer.(*ecdsa.PrivateKey); ok {
		sum := sha256.Sum256(message)
		digest, opts = sum[:], crypto.SHA256
	}
	sig, err := k.signer.Sign(nil, digest, opts)
	if err != nil {
		t.Fatal(err)
	}
	if opts == crypto.SHA256 {
		var rs struct{ R, S *big.Int }
		if _, err := asn1.Unmarshal(sig, &rs); err != nil {
			t.Fatal(err)
		}
		sig = append(rs.R.FillBytes(make([]byte, 32)), rs.S.FillBytes(make([]byte, 32))...)
	}
	return sig
}

func newX25519(t *testing.T, name string) *ecdh.PrivateKey {
	k, err := ecdh.X25519().NewPrivateKey(seed(name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

const vectorPath = "../limpettest/vectors/handshake.json"

func readVectors(t *testing.T) *vectorFile {
	t.Helper()
	b, err := vectors.Files.ReadFile("handshake.json")
	if err != nil {
		t.Fatal(err)
	}
	f := new(vectorFile)
	if err := json.Unmarshal(b, f); err != nil {
		t.Fatal(err)
	}
	return f
}

// The stored file is what docs/wire.md says.
func TestVectorsAreTheDocumentedOnes(t *testing.T) {
	want, err := json.MarshalIndent(makeVectors(t), "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if got, err := os.ReadFile(vectorPath); err == nil && bytes.Equal(got, want) {
		return
	}
	if !*update {
		t.Fatal("handshake.json is another one: run the test with -update")
	}
	if err := os.WriteFile(vectorPath, want, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Log("handshake.json is written anew; run the tests again")
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// configs are those of both ends of a vector.
func (v *vector) configs(t *testing.T) (srv, cli *Config) {
	srv, cli = pair()
	srv.ID, cli.ID, cli.Peer = v.Server, v.Client, v.Server
	for _, c := range []*Config{srv, cli} {
		c.Records, c.Channel, c.SHA512 = v.Flags&1 != 0, v.Flags&2 != 0, v.Suite == 2
	}
	if v.Keys == nil {
		key := Key{Version: v.Version, Secret: keyring.Secret(unhex(t, v.Secret))}
		srv.Keys, cli.Keys = only(v.Client, key), only(v.Server, key)
		return srv, cli
	}
	c, s := newVectorKey(t, v.Keys.ClientAlgorithm, v.Name+", client"), newVectorKey(t, v.Keys.ServerAlgorithm, v.Name+", server")
	srv.Signer, srv.Keys = s.signer, only(v.Client, Key{Public: c.signer.Public()})
	cli.Signer, cli.Keys = c.signer, only(v.Server, Key{Public: s.signer.Public()})
	return srv, cli
}

// Both ends of ours do what the vectors say, and refuse what they refuse.
func TestVectors(t *testing.T) {
	f := readVectors(t)
	byName := map[string]*vector{}
	for _, v := range f.Handshakes {
		byName[v.Name] = v
		srv, cli := v.configs(t)
		greeting, hello, answer := unhex(t, v.Greeting), unhex(t, v.Hello), unhex(t, v.Answer)
		s := &server{cfg: srv, exported: unhex(t, v.Exported)}
		copy(s.greeting[:], greeting)
		got, err := s.answer(context.Background(), nil, hello)
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
			continue
		}
		c := &client{cfg: cli, exported: s.exported}
		h, err := parseHello(hello)
		if err != nil {
			t.Fatal(err)
		}
		c.suite = h.suite
		c.begin(greeting, h.signed, c.exported)
		if v.Keys == nil {
			// The same secret and nonces, so the same answer.
			if !bytes.Equal(got, answer) {
				t.Errorf("%s: the answer is %x", v.Name, got)
			}
			if err := s.cfg.Keys(v.Client)[0].derive(t.Context(), cli, c.suite, c.bytes(), &c.secret); err != nil {
				t.Fatal(err)
			}
		} else {
			c.add(h.proof)
			c.ephemeral = newX25519(t, v.Name+", client ephemeral")
		}
		if err := c.confirm(answer); err != nil {
			t.Errorf("%s: the client: %v", v.Name, err)
			continue
		}
		session := c.expand(forSession)
		if hex.EncodeToString(c.bytes()) != v.Transcript || hex.EncodeToString(c.secret[:c.suite.secretSize()]) != v.Key || hex.EncodeToString(session[:]) != v.Session {
			t.Errorf("%s: transcript, key or session", v.Name)
		}
		for from, purpose := range map[string]string{"client": forClientRecords, "server": forServerRecords} {
			key := c.expand(purpose)
			d, err := newDirection(&key)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range v.Records {
				if r.From != from {
					continue
				}
				if data, err := d.open(unhex(t, r.Record)); err != nil || string(data) != r.Data {
					t.Errorf("%s: a record of the %s: %q, %v", v.Name, from, data, err)
				}
			}
		}
	}
	for _, r := range f.Refused {
		v := byName[r.Of]
		srv, _ := v.configs(t)
		s := &server{cfg: srv, exported: unhex(t, v.Exported)}
		copy(s.greeting[:], unhex(t, v.Greeting))
		if _, err := s.answer(t.Context(), nil, unhex(t, r.Hello)); err == nil {
			t.Errorf("%s: %s: admitted", r.Of, r.Name)
		}
	}
	if len(f.Handshakes) < 6 || len(f.Refused) < 40 {
		t.Errorf("%d handshakes and %d refusals", len(f.Handshakes), len(f.Refused))
	}
}
