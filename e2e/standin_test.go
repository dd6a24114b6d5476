package e2e

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/store/memstore"
)

func standin() string {
	guard, err := limpet.New(limpet.Config{Store: memstore.New(nil), Session: limpet.Bearer(), Logger: slog.New(slog.DiscardHandler), Rule: limpet.Rule{Mode: limpet.Require}})
	if err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /register", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusCreated) })
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		token := randomHex(16)
		if err := guard.Bind(w, r, token, "alice"); err != nil {
			limpet.Refuse(w, err)
			return
		}
		fmt.Fprintf(w, `{"token":%q}`, token)
	})
	mux.Handle("/authenticated", guard.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, `{"authenticated":true,"level":%q}`, limpet.FromContext(r.Context()).Level)
	})))
	return httptest.NewServer(mux).URL
}
