package hwsign

import (
	"crypto/ecdh"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

// TestVectors takes what other implementations made (see the file's comment)
// from login to proof, and refuses each proof with one character changed.
func TestVectors(t *testing.T) {
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Now           int64
		ServerPrivate string
		Vectors       []struct {
			Name                       string
			Login, Introduction, Proof map[string]string
		}
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	scalar, err := hex.DecodeString(file.ServerPrivate)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ecdh.P256().NewPrivateKey(scalar)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(file.Now, 0)
	policy := proof.Policy{Window: time.Minute, Skew: 30 * time.Second}
	if len(file.Vectors) < 10 {
		t.Errorf("only %d vectors", len(file.Vectors))
	}
	for _, v := range file.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			offer, err := Wire{}.Offer(request(v.Login))
			if err != nil || offer == nil {
				t.Fatalf("login: %v, %v", offer, err)
			}
			verify := func(headers map[string]string, known *proof.EphemeralKey) (*proof.EphemeralKey, error) {
				var p proof.Proof
				m := request(headers)
				if found, err := (Wire{}).Extract(m, &p); !found || err != nil {
					t.Fatalf("extract: %v, %v", found, err)
				}
				return proof.Verify(m, &p, offer.Key, known, now, policy)
			}
			key, err := verify(v.Introduction, nil)
			if err != nil {
				t.Fatalf("introduction: %v", err)
			}
			key.Expires = now.Add(time.Hour)
			if key.Public.Algorithm() == proof.HMACSHA256 {
				secret, err := proof.Agree(server, key.Public)
				if err != nil {
					t.Fatal(err)
				}
				key.MAC = proof.NewMACKey(secret)
			}
			if _, err := verify(v.Proof, key); err != nil {
				t.Fatalf("proof: %v", err)
			}
			for name, value := range v.Proof {
				if name == "x-rpc-sec-dbcs-data" || name == "x-rpc-sec-bound-token-data" {
					v.Proof[name] = value[:len(value)-1] + string(value[len(value)-1]^1)
				}
			}
			if _, err := verify(v.Proof, key); reasonOf(err) != proof.Invalid {
				t.Errorf("proof with another value: %v", err)
			}
		})
	}
}

func request(headers map[string]string) *proof.Message {
	h := http.Header{}
	for name, v := range headers {
		h.Set(name, v)
	}
	return &proof.Message{Method: "GET", Path: "/", Header: h}
}
