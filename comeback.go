package limpet

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/sdk/js"
)

// comeBack is the cause of a refusal that a browser can do something about: it
// followed a link, and came without its bound cookie. [Refuse] then answers with a
// page of our own that has the browser come again, as a request of this origin.
//
// Browsers do not refresh for a link on another site: what that finds out by the
// time it takes is whether somebody is logged in.
type comeBack struct {
	bySDK bool // the session's key is the SDK's; else the browser's own
	waits bool // it has none yet, and its browser may be making one
}

func (*comeBack) Error() string { return "the browser is asked to come again" }

// isNavigation reports whether a request is for a page that a person is to see.
func isNavigation(m *proof.Message) bool {
	return m.Method == http.MethodGet && is(m.Header, "Sec-Fetch-Mode", "navigate") && is(m.Header, "Sec-Fetch-Dest", "document")
}

func is(header map[string][]string, name, value string) bool {
	values := header[name]
	return len(values) == 1 && values[0] == value
}

// awaited adds to the refusal of a session whose browser may be registering a key
// at this moment that it is worth to come again.
func (g *Guard) awaited(r *Request, s *session, refusal *proof.Refusal, now time.Time) *proof.Refusal {
	young := s.binding.offered && (!s.registered() && now.Sub(s.binding.Created) < offerLife || s.justRegistered(now))
	if g.browsers != nil && young && isNavigation(&r.Message) {
		refusal.Err = &comeBack{waits: true}
	}
	return refusal
}

//go:embed comeback.html
var comeBackPage string

// A page has one style and one script, and nothing else is to be run on it.
var (
	comeBackByBrowser = []byte(strings.Replace(comeBackPage, "{{data}}", "", 1))
	comeBackBySDK     = []byte(strings.Replace(comeBackPage, "{{data}}", ` data-sdk="yes"`, 1))
	comeBackWhenBound = []byte(strings.Replace(comeBackPage, "{{data}}", ` data-waits="yes"`, 1))

	comeBackPolicy = "default-src 'none'; style-src " + hashOf(comeBackPage, "style") + "; script-src 'self' " + hashOf(comeBackPage, "script") +
		"; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

func hashOf(page, element string) string {
	_, rest, _ := strings.Cut(page, "<"+element+">")
	text, _, _ := strings.Cut(rest, "</"+element+">")
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// sendBack answers with the page, if err asks for that.
func sendBack(w http.ResponseWriter, code int, err error) bool {
	var back *comeBack
	if !errors.As(err, &back) {
		return false
	}
	page := comeBackByBrowser
	switch {
	case back.bySDK:
		page = comeBackBySDK
	case back.waits:
		page = comeBackWhenBound
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", comeBackPolicy)
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	w.Write(page)
	return true
}

var scriptTag = func() string {
	sum := sha256.Sum256(js.Source)
	return `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
}()

func serveScript(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Etag", scriptTag)
	h.Set("Cache-Control", "max-age=3600")
	h.Set("X-Content-Type-Options", "nosniff")
	if is(r.Header, "If-None-Match", scriptTag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", "text/javascript; charset=utf-8")
	w.Write(js.Source)
}
