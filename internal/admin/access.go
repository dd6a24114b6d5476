package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/limpet-auth/limpet/internal/incoming"
)

// OnSocket serves the whole API, for a Unix socket that only the operator can
// connect to.
func (a *API) OnSocket() http.Handler { return a.all }

// OnLoopback serves metrics and health to everybody on this machine, and the rest
// to those with the token, in the console too; to nobody if that is "".
func (a *API) OnLoopback(token string) http.Handler {
	want := sha256.Sum256([]byte(token))
	api := noBrowser(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := a.health.Handler(r); pattern != "/" {
			a.health.ServeHTTP(w, r)
			return
		}
		given, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		sum := sha256.Sum256([]byte(given))
		if token == "" || subtle.ConstantTimeCompare(sum[:], want[:]) == 0 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			incoming.Answer(w, http.StatusUnauthorized, "token_required", "this needs the admin token")
			return
		}
		a.all.ServeHTTP(w, r)
	}))
	console := a.newConsole(token)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !isConsole(r.URL.Path):
			api.ServeHTTP(w, r)
		case token == "":
			incoming.Answer(w, http.StatusNotFound, "not_found", "there is no console without an admin token: --admin-token-file")
		default:
			console.ServeHTTP(w, r)
		}
	})
}

// noBrowser refuses what a web page may have sent: one of this machine, or one of a
// site whose owner lets its name resolve to this machine.
func noBrowser(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		site := r.Header.Get("Sec-Fetch-Site")
		if r.Header["Origin"] != nil || site != "" && site != "none" || !isLoopback(r.Host) {
			incoming.Answer(w, http.StatusForbidden, "forbidden", "this is no place for web pages: ask localhost, without Origin")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// isLoopback reports whether a Host names this machine, by address or as localhost.
func isLoopback(hostport string) bool {
	name := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		name = h
	}
	if strings.EqualFold(name, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return err == nil && addr.IsLoopback()
}
