// Package web has Limpet's own pages: the operator's console and the demo page.
// They are files in the program, plain HTML, CSS and ES modules, and load nothing
// from anywhere else.
package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed look.css limpet.svg console demo uplot
var files embed.FS

// Console serves the console's files: the page at the path "/", and what belongs to
// it beside it. It knows no secrets; the page asks for them elsewhere, see package
// internal/admin.
func Console() http.Handler {
	return newSite("frame-ancestors 'none'", map[string]string{
		"/":                  "console/index.html",
		"/console.js":        "console/console.js",
		"/chart.js":          "console/chart.js",
		"/console.css":       "console/console.css",
		"/look.css":          "look.css",
		"/limpet.svg":        "limpet.svg",
		"/uplot.js":          "uplot/uPlot.esm.js",
		"/uplot.css":         "uplot/uPlot.min.css",
		"/uplot-license.txt": "uplot/LICENSE",
	})
}

// Demo serves the demo page at the path "/", and what belongs to it below /demo/. sdk
// is the browser SDK, an ES module.
//
// The thief is a page in a frame, without an origin: as far from the page's keys as
// one on another machine.
func Demo(sdk []byte) http.Handler {
	page := newSite("frame-src 'self'; frame-ancestors 'none'", map[string]string{
		"/":                "demo/index.html",
		"/demo/demo.js":    "demo/demo.js",
		"/demo/demo.css":   "demo/demo.css",
		"/demo/look.css":   "look.css",
		"/demo/limpet.svg": "limpet.svg",
		"/demo/thief.js":   "demo/thief.js",
	})
	page.add("/demo/limpet.js", "limpet.js", sdk)
	mux := http.NewServeMux()
	mux.Handle("/", page)
	mux.Handle("/demo/thief.html", newSite("sandbox allow-scripts; frame-ancestors 'self'", map[string]string{"/demo/thief.html": "demo/thief.html"}))
	return mux
}

// strict is what every page here may do: nothing but what comes from its own server.
const strict = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "

// site is a few files that are served under one policy.
type site struct {
	policy string
	files  map[string]file
}

type file struct {
	kind, tag string // Content-Type, ETag
	content   []byte
}

// kinds are spelled out: the system's table of types may say something else.
var kinds = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
	"":      "text/plain; charset=utf-8",
}

func newSite(policy string, names map[string]string) *site {
	s := &site{strict + policy, make(map[string]file, len(names))}
	for at, name := range names {
		content, err := files.ReadFile(name)
		if err != nil {
			panic(err) // a name that is not embedded, above
		}
		s.add(at, name, content)
	}
	return s
}

func (s *site) add(at, name string, content []byte) {
	sum := sha256.Sum256(content)
	s.files[at] = file{kinds[path.Ext(name)], `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`, content}
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", s.policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	f, ok := s.files[r.URL.Path]
	switch {
	case !ok:
		http.Error(w, "there is nothing here", http.StatusNotFound)
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "this is a file: GET it", http.StatusMethodNotAllowed)
		return
	}
	h.Set("Content-Type", f.kind)
	h.Set("Cache-Control", "no-cache") // ask each time: an upgrade counts at once
	h.Set("ETag", f.tag)
	http.ServeContent(w, r, strings.TrimPrefix(r.URL.Path, "/"), time.Time{}, bytes.NewReader(f.content))
}
