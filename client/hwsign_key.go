package client

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

// prover makes the proof of a value. Keys live only inside of provers, where
// nothing that prints can reach them.
type prover func(value []byte) ([]byte, error)

// delegation is a new ephemeral key that the device key signed.
type delegation struct {
	typeName string // of the key, on the wire
	key      string // its public half as sent, base64
	sig      string // the device key's signature over that text, base64
	prehash  bool   // Ed25519 signs SHA-256 of the message, see site
	prove    prover // for the introduction

	// agree makes the prover for later from the server's half of the
	// agreement. It is nil for a key that goes on signing.
	agree func(server *proof.PublicKey) (prover, error)
}

// delegate makes an ephemeral key and has the device key sign it.
func delegate(device hwkey.Key, alg proof.Algorithm, prehash bool) (*delegation, error) {
	d := &delegation{prehash: prehash}
	public, err := d.generate(alg)
	if err != nil {
		return nil, err
	}
	enc, err := encodeKey(public)
	if err != nil {
		return nil, err
	}
	d.key = base64.StdEncoding.EncodeToString(enc)
	sig, err := signDevice(device, []byte(d.key), prehash)
	if err != nil {
		return nil, err
	}
	d.sig = base64.StdEncoding.EncodeToString(sig)
	return d, nil
}

func (d *delegation) generate(alg proof.Algorithm) (*proof.PublicKey, error) {
	switch alg {
	case proof.Ed25519:
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		d.typeName = hwsign.TypeEd25519
		d.prove = func(value []byte) ([]byte, error) {
			return ed25519.Sign(private, edMessage(value, d.prehash)), nil
		}
		return proof.NewPublicKey(alg, public)
	case proof.ECDSAP256, proof.HMACSHA256, 0:
	default:
		return nil, fmt.Errorf("no ephemeral keys of algorithm %s", alg)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	d.typeName = hwsign.TypeECDSA
	d.prove = func(value []byte) ([]byte, error) {
		sum := sha256.Sum256(value)
		return ecdsa.SignASN1(rand.Reader, private, sum[:])
	}
	if alg != proof.ECDSAP256 {
		d.typeName = hwsign.TypeECDHLong
		d.agree = func(server *proof.PublicKey) (prover, error) {
			own, err := private.ECDH()
			if err != nil {
				return nil, err
			}
			secret, err := proof.Agree(own, server)
			if err != nil {
				return nil, err
			}
			mac := proof.NewMACKey(secret)
			clear(secret)
			return func(value []byte) ([]byte, error) { return mac.Append(nil, value), nil }, nil
		}
	}
	return proof.NewPublicKey(proof.ECDSAP256, private.Public())
}

func signDevice(device hwkey.Key, message []byte, prehash bool) ([]byte, error) {
	if device.Info().Algorithm == hwkey.Ed25519 {
		return device.Sign(rand.Reader, edMessage(message, prehash), crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	return device.Sign(rand.Reader, sum[:], crypto.SHA256)
}

// edMessage returns what Ed25519 signs for message.
func edMessage(message []byte, prehash bool) []byte {
	if !prehash {
		return message
	}
	sum := sha256.Sum256(message)
	return sum[:]
}

// lease is an ephemeral key that the server knows.
type lease struct {
	id    string
	prove prover
	term  // from when it was asked for
}

// answer is what a server says about the key that a request introduced.
type answer struct {
	id     string
	server *proof.PublicKey // its half of a key agreement; nil if it sent none
	life   time.Duration    // of the lease, from when the request was sent
}

// parseAnswer reads an answer's headers, and returns nil if they say nothing of
// a key. The request was sent took ago; now stands in for the Date header.
func parseAnswer(h http.Header, n *hwsign.Names, now time.Time, took time.Duration) (*answer, error) {
	id, err := header(h, n.EphemeralID)
	if id == "" || err != nil {
		return nil, err
	}
	a := &answer{id: id, life: defaultLife}
	key, err := header(h, n.EphemeralKey)
	if err != nil {
		return nil, err
	}
	if key != "" {
		enc, err := decodeBase64([]byte(key))
		if err != nil {
			return nil, fmt.Errorf("%s is not base64", n.EphemeralKey)
		}
		if a.server, err = proof.ParsePublicKey(proof.HMACSHA256, enc); err != nil {
			return nil, fmt.Errorf("%s: %w", n.EphemeralKey, err)
		}
	}
	expire, err := header(h, n.EphemeralExpire)
	if expire == "" || err != nil {
		return a, err
	}
	seconds, err := strconv.ParseInt(expire, 10, 64)
	if err != nil || seconds < 0 || seconds > 1<<40 {
		return nil, fmt.Errorf("%s is not a time in seconds", n.EphemeralExpire)
	}
	// The server's clock against itself: this machine's may be off.
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	life := took + time.Unix(seconds, 0).Sub(now)
	if life <= 0 {
		return nil, fmt.Errorf("%s says that the lease was over before it began", n.EphemeralExpire)
	}
	life = min(life, maxLife)
	a.life = life - min(time.Second, life/2) // whole seconds were subtracted
	return a, nil
}

// header returns the one value of a header, "" if it is absent.
func header(h http.Header, name string) (string, error) {
	switch v := h[name]; {
	case len(v) == 0:
		return "", nil
	case len(v) > 1:
		return "", errors.New(name + " occurs twice")
	case len(v[0]) > 2<<10:
		return "", errors.New(name + " is over 2 KiB")
	default:
		return v[0], nil
	}
}

// decodeBase64 reads either alphabet, padded or not.
func decodeBase64(text []byte) ([]byte, error) {
	text = bytes.TrimRight(text, "=")
	enc := base64.RawStdEncoding
	if bytes.ContainsAny(text, "-_") {
		enc = base64.RawURLEncoding
	}
	return enc.AppendDecode(nil, text)
}
