package channel_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"

	"github.com/limpet-auth/limpet/channel"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/keyring"
)

// exampleServer is a server that knows one client, and that client's secret.
func exampleServer(dir string) (*httptest.Server, keyring.Secret) {
	path := filepath.Join(dir, "clients.json")
	secret := keyring.NewSecret()
	err := keyring.Edit(path, func(l *keyring.List) error { return l.Add("billing", &keyring.Key{Secret: secret}) })
	if err != nil {
		log.Fatal(err)
	}
	ring, err := keyring.Open(path, keyring.Options{})
	if err != nil {
		log.Fatal(err)
	}
	s, err := channel.NewServer(channel.ServerConfig{Keys: ring})
	if err != nil {
		log.Fatal(err)
	}
	return httptest.NewTLSServer(s.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s", channel.FromContext(r.Context()).ID)
	}))), secret
}

// A client whose secret is in a keystore. What it sends on one connection is
// worthless on any other.
func ExampleTransport() {
	dir, err := os.MkdirTemp("", "channel-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	srv, secret := exampleServer(dir)
	defer srv.Close()

	// On a machine with a TPM: keys := tpmkey.Open("")
	keys, err := softkey.Open(context.Background(), filepath.Join(dir, "keys"), softkey.KeyFile(""))
	if err != nil {
		log.Fatal(err)
	}
	key, err := keys.ImportHMAC(context.Background(), secret, "billing at the example")
	if err != nil {
		log.Fatal(err)
	}
	t, err := channel.NewTransport(channel.Config{ID: "billing", HMAC: key, Base: srv.Client().Transport})
	if err != nil {
		log.Fatal(err)
	}
	resp, err := (&http.Client{Transport: t}).Get(srv.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fmt.Println(string(body), err)
	// Output: hello billing <nil>
}

// A server that admits the clients of a file, and nobody else.
func ExampleServer() {
	dir, err := os.MkdirTemp("", "channel-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "clients.json")
	err = keyring.Edit(path, func(l *keyring.List) error { return l.Add("billing", &keyring.Key{Secret: keyring.NewSecret()}) })
	if err != nil {
		log.Fatal(err)
	}

	ring, err := keyring.Open(path, keyring.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer ring.Close()
	s, err := channel.NewServer(channel.ServerConfig{Keys: ring, Forms: []channel.Form{channel.Token}})
	if err != nil {
		log.Fatal(err)
	}
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s", channel.FromContext(r.Context()).ID)
	})
	srv := httptest.NewTLSServer(s.Protect(app))
	defer srv.Close()

	resp, err := srv.Client().Get(srv.URL) // by somebody without a token
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
	// Output: 401 Bearer
}
