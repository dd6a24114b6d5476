package limpet

import (
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/dbsc"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

// What a guard with Config.Browsers answers itself.
const (
	dbscPath   = httpsig.WellKnownPath + "/dbsc"       // where browsers register keys, and refresh
	cookiePath = httpsig.WellKnownPath + "/cookie"     // where clients with a proof get the bound cookie
	forgetPath = httpsig.WellKnownPath + "/forget"     // where a browser loses the cookies of a session it has no key for
	scriptPath = httpsig.WellKnownPath + "/browser.js" // the SDK, for the page of comeback.go
)

// boundCookie shows that a browser has proven the key of its session in the last
// minutes: to requests that cannot carry a proof.
var boundCookie = dbsc.Cookie{Name: "__Host-limpet", Attributes: "Path=/; Secure; HttpOnly; SameSite=Lax"}

const (
	cookieLife  = 10 * time.Minute // under 5 minutes Chromium would refresh all the time
	cookieSpare = time.Minute      // more at the server, for requests on their way

	// cookieField tells a client in how many seconds its bound cookie is over, as
	// "max-age=600": scripts cannot read the cookie.
	cookieField = "Limpet-Cookie"
)

// browsers makes and checks what browsers bring. All of it is derived from the
// seal key; nothing is stored.
type browsers struct {
	cookies    [16]*proof.MACKey // the same key, so that requests do not wait for each other
	challenges *proof.MACKey
	paces      paces
}

func newBrowsers(s *server) *browsers {
	b := &browsers{challenges: proof.NewMACKey(s.derive("browser challenge", 0))}
	for i := range b.cookies {
		b.cookies[i] = proof.NewMACKey(s.derive("bound cookie", 0))
	}
	return b
}

// A bound cookie is version, expiry in unix seconds and an HMAC over those and
// the session's root.
const (
	cookieVersion = 1
	cookieHead    = 1 + 8
	cookieSize    = cookieHead + 32
	cookieText    = (cookieSize*8 + 5) / 6 // in base64url
)

var cookieEncoding = base64.RawURLEncoding.Strict()

func (b *browsers) mac(root ID) *proof.MACKey { return b.cookies[int(root[0])%len(b.cookies)] }

// cookie returns the value of a bound cookie that was proven for at a time.
func (b *browsers) cookie(root ID, proven time.Time) string {
	head := append(make([]byte, 0, cookieSize+len(root)), cookieVersion)
	head = binary.BigEndian.AppendUint64(head, uint64(proven.Add(cookieLife+cookieSpare).Unix()))
	return cookieEncoding.EncodeToString(b.mac(root).Append(head, append(head, root[:]...)))
}

// cookieRoom is what it takes to read a bound cookie.
type cookieRoom struct {
	text   [cookieText]byte
	raw    [cookieSize]byte
	signed [cookieHead + len(ID{})]byte
}

// holds reports whether a request has a bound cookie, and whether it is one of
// this session that is not over.
func (b *browsers) holds(header map[string][]string, root ID, now time.Time, room *cookieRoom) (there, holds bool) {
	text, there := findBoundCookie(header)
	if len(text) != cookieText {
		return there, false
	}
	copy(room.text[:], text)
	raw := &room.raw
	// Of line ends, which are skipped, fewer bytes come, and the rest is an earlier request's.
	if n, err := cookieEncoding.Decode(raw[:], room.text[:]); n != cookieSize || err != nil {
		return there, false
	}
	copy(room.signed[copy(room.signed[:], raw[:cookieHead]):], root[:])
	if !b.mac(root).Verify(room.signed[:], raw[cookieHead:]) || raw[0] != cookieVersion {
		return there, false
	}
	return there, now.Unix() < int64(binary.BigEndian.Uint64(raw[1:]))
}

// findBoundCookie returns the value of the first one. A browser has one: its prefix
// keeps subdomains and other paths from setting more.
func findBoundCookie(header map[string][]string) (value string, there bool) {
	for _, line := range header["Cookie"] {
		for line != "" {
			var pair string
			pair, line, _ = strings.Cut(line, ";")
			if name, value, ok := strings.Cut(strings.Trim(pair, " \t"), "="); ok && name == boundCookie.Name {
				return value, true
			}
		}
	}
	return "", false
}

// cookieSuffices reports whether a rule admits requests that show a bound cookie
// and nothing more. The cookie says that the browser had the key minutes ago, so it
// is as good as a time, and no more than that.
func (r Rule) cookieSuffices() bool {
	return (r.Freshness == Nonce || r.Freshness == Timestamp) && !r.Challenge && !r.Channel
}

// byCookie decides over a request of a bound session that carries no proof.
func (g *Guard) byCookie(r *Request, s *session, rule Rule, now time.Time, response map[string][]string, room *cookieRoom) error {
	there, holds := false, false
	asked := g.browsers != nil && !r.proofOnly && s.rec.found
	if asked {
		there, holds = g.browsers.holds(r.Header, s.rootID(), now, room)
	}
	if holds && rule.cookieSuffices() {
		r.format = ByCookie
		return nil
	}
	required := &proof.Refusal{Reason: proof.Required, Detail: "a bound session without a proof"}
	if holds {
		required.Detail = "a bound cookie, and the rule wants a proof"
	}
	if holds || !asked {
		return required
	}
	if there && response != nil && !s.justRegistered(now) {
		// A browser that has a cookie does not refresh.
		http.Header(response).Add("Set-Cookie", boundCookie.Set("", 0))
	}
	if s.registered() {
		if why := dbsc.Skipped(r.Header, s.rootID().String()); why != "" {
			r.skipped = why
			// It is not for want of a key: 401 would cost the app's page its session.
			required = &proof.Refusal{Reason: proof.Unavailable, Detail: "the browser could not refresh its cookie: " + why}
		}
	}
	if isNavigation(&r.Message) {
		required.Err = &comeBack{bySDK: !s.registered()}
	}
	return required
}

// browser answers what a guard with Config.Browsers answers itself, below
// [httpsig.WellKnownPath], and reports whether it has.
func (g *Guard) browser(w http.ResponseWriter, r *http.Request) bool {
	if g.browsers == nil {
		return false
	}
	method, serve := http.MethodPost, g.serveDBSC
	switch r.URL.Path {
	case dbscPath:
	case cookiePath:
		serve = g.serveCookie
	case forgetPath:
		serve = g.serveForget
	case scriptPath:
		method, serve = http.MethodGet, serveScript
	default:
		if strings.HasPrefix(r.URL.Path, httpsig.WellKnownPath+"/") {
			incoming.Answer(w, http.StatusNotFound, "not_found", "there is nothing here")
			return true
		}
		return false
	}
	if r.Method != method && !(r.Method == http.MethodHead && method == http.MethodGet) {
		w.Header().Set("Allow", method)
		incoming.Answer(w, http.StatusMethodNotAllowed, "method_not_allowed", "this path takes "+method+" only")
		return true
	}
	serve(w, r)
	return true
}

// serveCookie gives the bound cookie to a client that proves its key on Limpet's
// own wire. Who does not ask does not get it: native clients have cookie jars too.
func (g *Guard) serveCookie(w http.ResponseWriter, r *http.Request) {
	admitted, err := g.admitRequest(w.Header(), r, Rule{Mode: Require}, true)
	if err != nil {
		Refuse(w, err)
		return
	}
	b := FromContext(admitted.Context())
	h := w.Header()
	h.Add("Set-Cookie", boundCookie.Set(g.browsers.cookie(b.rootID(), g.now()), int(cookieLife/time.Second)))
	h.Set(cookieField, "max-age=600")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
}

// serveForget has a browser forget the cookies of a session that it has no key for,
// and sends it back to where it came from: it would be refused on every page, those
// included that lead to the login. Only pages of this origin can ask for that.
func (g *Guard) serveForget(w http.ResponseWriter, r *http.Request) {
	if site := r.Header["Sec-Fetch-Site"]; len(site) != 1 || site[0] != "same-origin" {
		incoming.Answer(w, http.StatusForbidden, "forbidden", "only pages of this site can ask for this")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, 16<<10)
	from := r.PostFormValue("from")
	if len(from) > 2<<10 || !strings.HasPrefix(from, "/") || strings.HasPrefix(from, "//") || strings.ContainsAny(from, "\\\r\n\t") {
		from = "/"
	}
	path, _, _ := strings.Cut(from, "?")
	h := w.Header()
	g.cfg.Session.Forget(h, r, path)
	h.Add("Set-Cookie", boundCookie.Set("", 0))
	h.Set("Cache-Control", "no-store")
	h.Set("Location", from)
	w.WriteHeader(http.StatusSeeOther)
}
