package limpet_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/store/memstore"
)

// An app with bearer tokens. The client in this example has no device key, so
// its session is of level none, which the rule for /transfer does not admit.
func Example() {
	guard, err := limpet.New(limpet.Config{
		Session: limpet.Bearer(),
		Store:   memstore.New(nil),
		Routes:  []limpet.Route{{Pattern: "POST /transfer", Rule: limpet.Rule{Mode: limpet.Require}}},
		Logger:  slog.New(slog.DiscardHandler),
	})
	if err != nil {
		log.Fatal(err)
	}
	app := http.NewServeMux()
	app.Handle("POST /login", guard.CheckBody(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := "made-by-the-app" // after the password was checked
		if err := guard.Bind(w, r, token, "alice"); err != nil {
			limpet.Refuse(w, err)
			return
		}
		fmt.Fprint(w, token)
	})))
	app.Handle("/", guard.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := limpet.FromContext(r.Context())
		fmt.Fprintf(w, "%s, level %s", b.User, b.Level)
	})))

	send := func(method, path string) {
		r := httptest.NewRequest(method, path, nil)
		if path != "/login" {
			r.Header.Set("Authorization", "Bearer made-by-the-app")
		}
		w := httptest.NewRecorder()
		app.ServeHTTP(w, r)
		fmt.Println(w.Code, w.Body)
	}
	send("POST", "/login")
	send("GET", "/me")
	send("POST", "/transfer")
	// Output:
	// 200 made-by-the-app
	// 200 alice, level none
	// 401 {"message":"this route needs a session that is bound to a device","reason":"session_unbound"}
}

// A stolen phone: all of a user's sessions end with the next request.
func ExampleGuard_RevokeUser() {
	guard, err := limpet.New(limpet.Config{Session: limpet.Cookie("sid"), Store: memstore.New(nil)})
	if err != nil {
		log.Fatal(err)
	}
	for _, token := range []string{"laptop", "phone"} {
		login := httptest.NewRequest("POST", "/login", nil)
		if err := guard.Bind(httptest.NewRecorder(), login, token, "alice"); err != nil {
			log.Fatal(err)
		}
	}
	n, err := guard.RevokeUser(context.Background(), "alice")
	fmt.Println(n, err)
	// Output: 2 <nil>
}
