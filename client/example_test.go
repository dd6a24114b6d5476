package client_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/store/memstore"
)

// A program logs in, and from then on its cookie is good on this device only.
func Example() {
	srv := httptest.NewServer(exampleApp())
	defer srv.Close()
	dir, err := os.MkdirTemp("", "keys-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	// On a machine with a TPM: keys := tpmkey.Open("")
	keys, err := softkey.Open(context.Background(), dir, softkey.KeyFile(""))
	if err != nil {
		log.Fatal(err)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	c := &http.Client{Transport: client.New(keys).Transport(nil), Jar: jar}

	if _, err := c.PostForm(srv.URL+"/login", url.Values{"user": {"alice"}}); err != nil { // binds
		log.Fatal(err)
	}
	resp, err := c.Get(srv.URL + "/me") // proves
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fmt.Println(string(body), err)

	thief := &http.Client{Jar: jar} // has the cookie, and not the key
	resp, err = thief.Get(srv.URL + "/me")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.StatusCode, client.Reason(resp))
	// Output:
	// hello alice, your key is kept by software <nil>
	// 401 proof_required
}

func exampleApp() http.Handler {
	guard, err := limpet.New(limpet.Config{Session: limpet.Cookie("sid"), Store: memstore.New(nil), Logger: quiet()})
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		token := "made-by-the-app"
		if err := guard.Bind(w, r, token, r.FormValue("user")); err != nil {
			limpet.Refuse(w, err)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "sid", Value: token, HttpOnly: true})
	})
	mux.HandleFunc("GET /me", func(w http.ResponseWriter, r *http.Request) {
		b := limpet.FromContext(r.Context())
		fmt.Fprintf(w, "hello %s, your key is kept by %s", b.User, b.Level)
	})
	return guard.Protect(mux)
}
