package httpsig_test

import (
	"fmt"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

// A client signs a request with the key that it has agreed with the server.
func ExampleSign() {
	key := proof.NewMACKey([]byte("what ECDH and HKDF gave"))
	m := &proof.Message{
		Method: "GET", Scheme: "https", Authority: "app.example.com", Path: "/me",
		Header: map[string][]string{"Authorization": {"Bearer 5UbLkmIlm0nEvlGjPCMbpvDnbjRxjLnF"}},
	}
	err := httpsig.Sign(m, &httpsig.Signing{
		KeyID:     "poqkLGiymh_W0uP6PZFw-dvez3QJT5SolqXBCW38r0U",
		Algorithm: proof.HMACSHA256,
		Created:   time.Unix(1764000000, 0),
		Nonce:     "mP8yZ0yCkq2b1xQ7Yw3jUA",
	}, func(base []byte) ([]byte, error) {
		fmt.Printf("%s\n\n", base)
		return key.Append(nil, base), nil
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(m.Header["Signature"][0])
	// Output:
	// "@method": GET
	// "@authority": app.example.com
	// "@path": /me
	// "@query": ?
	// "authorization": Bearer 5UbLkmIlm0nEvlGjPCMbpvDnbjRxjLnF
	// "@signature-params": ("@method" "@authority" "@path" "@query" "authorization");created=1764000000;nonce="mP8yZ0yCkq2b1xQ7Yw3jUA";keyid="poqkLGiymh_W0uP6PZFw-dvez3QJT5SolqXBCW38r0U";alg="hmac-sha256";tag="limpet"
	//
	// limpet=:bmueQfjekT+LFp8TZhcFHvpxYMkw/D7vI2bnF059JfQ=:
}
