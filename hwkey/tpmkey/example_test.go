package tpmkey_test

import (
	"context"
	"crypto"
	"crypto/sha256"
	"fmt"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
)

// The TPM of this machine, or an encrypted file where there is none.
func ExampleCandidate() {
	ctx := context.Background()
	keys, findings, err := hwkey.Auto(ctx, tpmkey.Candidate(tpmkey.Config{}), softkey.Candidate(""))
	for _, f := range findings {
		fmt.Println(f)
	}
	if err != nil {
		return
	}
	key, err := keys.Create(ctx, hwkey.CreateOptions{Label: "api.example.com"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer key.Close()
	digest := sha256.Sum256([]byte("message"))
	sig, err := key.Sign(nil, digest[:], crypto.SHA256)
	fmt.Println(len(sig) > 0, err)
}

// Open never fails: what is wrong with the TPM comes out of the calls.
func ExampleOpen() {
	keys := tpmkey.Open("unix:/nonexistent/socket")
	defer keys.Close()
	_, err := keys.Create(context.Background(), hwkey.CreateOptions{})
	fmt.Println(err)
	// Output:
	// limpet: tpmkey: no TPM listens on unix:/nonexistent/socket: is swtpm running? (dial unix /nonexistent/socket: connect: no such file or directory)
}
