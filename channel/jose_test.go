package channel

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"runtime"
	"testing"

	"github.com/limpet-auth/limpet/hwkey"
)

func newJTI() string { return rand.Text() }

// payload returns a string as it is and other claims as JSON.
func payload(t testing.TB, claims any) []byte {
	t.Helper()
	if s, ok := claims.(string); ok {
		return []byte(s)
	}
	b, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func signingInput(t testing.TB, header string, claims any) string {
	t.Helper()
	return base64URL.EncodeToString([]byte(header)) + "." + base64URL.EncodeToString(payload(t, claims))
}

// jws signs whatever it is given with HMAC-SHA256, without a library that would
// mind (RFC 7515, 5.1).
func jws(t testing.TB, header string, claims any, key []byte) string {
	t.Helper()
	input := signingInput(t, header, claims)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(input))
	return input + "." + base64URL.EncodeToString(mac.Sum(nil))
}

// es256 signs whatever it is given with a key pair.
func es256(t testing.TB, header string, claims any, key hwkey.Key) string {
	t.Helper()
	input := signingInput(t, header, claims)
	sig, err := signP256(key, []byte(input))
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + base64URL.EncodeToString(sig)
}

// jwe encrypts whatever it is given with AES-GCM (RFC 7516, 5.1).
func jwe(t testing.TB, header, inner string, key []byte) string {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	iv := make([]byte, aead.NonceSize())
	rand.Read(iv)
	protected := base64URL.EncodeToString([]byte(header))
	sealed := aead.Seal(nil, iv, []byte(inner), []byte(protected))
	body, tag := sealed[:len(inner)], sealed[len(inner):]
	return protected + ".." + base64URL.EncodeToString(iv) + "." + base64URL.EncodeToString(body) + "." + base64URL.EncodeToString(tag)
}

func publicOf(key hwkey.Key) *ecdsa.PublicKey { return key.Public().(*ecdsa.PublicKey) }

func gc() { runtime.GC() }
