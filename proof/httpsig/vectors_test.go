package httpsig

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet/proof"
)

// TestRFC9421 rebuilds the signature bases of the RFC's requests, under any
// label and without what our profile demands, and checks its signatures.
func TestRFC9421(t *testing.T) {
	b, err := os.ReadFile("testdata/rfc9421.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Keys     map[string]struct{ Alg, Key string }
		Requests map[string]*struct {
			Method, Scheme, Authority, Path, Query string
			Fields                                 map[string][]string
		}
		Vectors []struct {
			Name, Request, Key, Input, Signature string
			Base                                 []string
		}
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) < 8 {
		t.Errorf("only %d vectors", len(file.Vectors))
	}
	for _, v := range file.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			var in input
			s := scanner{s: v.Input}
			if done, ok := in.next(&s); done || !ok || in.flaw != "" {
				t.Fatalf("input: %v, %v, %s", done, ok, in.flaw)
			}
			want := strings.Join(v.Base, "\n")
			if r := file.Requests[v.Request]; r != nil {
				m := &proof.Message{Method: r.Method, Scheme: r.Scheme, Authority: r.Authority, Path: r.Path, RawQuery: r.Query, Header: r.Fields}
				base, err := in.appendBase(nil, m)
				if err != nil || string(base) != want {
					t.Fatalf("%v, base\n%s\nwant\n%s", err, base, want)
				}
			}
			var p proof.Proof
			m := &proof.Message{Header: header("Signature", v.Signature)}
			if err := readSignature(m, &p, in.label); err != nil {
				t.Fatal(err)
			}
			key, err := base64.StdEncoding.DecodeString(file.Keys[v.Key].Key)
			if err != nil {
				t.Fatal(err)
			}
			alg := algorithmOf(file.Keys[v.Key].Alg)
			if alg == proof.HMACSHA256 {
				if !proof.NewMACKey(key).Verify([]byte(want), p.Signature) {
					t.Error("the tag is not the secret's")
				}
				return
			}
			pub, err := proof.ParsePublicKey(alg, key)
			if err != nil {
				t.Fatal(err)
			}
			if !pub.VerifyExact(alg, []byte(want), p.Signature) {
				t.Error("the signature is not the key's")
			}
		})
	}
}
