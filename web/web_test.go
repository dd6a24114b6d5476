package web

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strings"
	"testing"
)

func get(h http.Handler, method, path string, header ...string) *http.Response {
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

// TestPolicy: nothing but what the server itself has is loaded, run or framed.
func TestPolicy(t *testing.T) {
	for name, h := range map[string]http.Handler{"console": Console(), "demo": Demo([]byte("export {};"))} {
		for _, at := range []string{"/", "/nothing", "/demo/thief.html"} {
			resp := get(h, "GET", at)
			policy := resp.Header.Get("Content-Security-Policy")
			directives := make(map[string]string)
			for part := range strings.SplitSeq(policy, ";") {
				name, value, _ := strings.Cut(strings.TrimSpace(part), " ")
				directives[name] = value
			}
			for directive, want := range map[string]string{"default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "connect-src": "'self'", "base-uri": "'none'", "form-action": "'none'"} {
				if directives[directive] != want {
					t.Errorf("%s %s: %s is %q, want %q", name, at, directive, directives[directive], want)
				}
			}
			ancestors := "'none'"
			if name == "demo" && at == "/demo/thief.html" { // which is framed, and has no origin, wherever it is opened
				if ancestors = "'self'"; directives["sandbox"] != "allow-scripts" {
					t.Errorf("the thief's sandbox is %q", directives["sandbox"])
				}
			}
			if directives["frame-ancestors"] != ancestors || resp.Header.Get("X-Content-Type-Options") != "nosniff" || resp.Header.Get("Referrer-Policy") != "no-referrer" {
				t.Errorf("%s %s: %v", name, at, resp.Header)
			}
		}
	}
}

func TestFiles(t *testing.T) {
	console, demo := Console(), Demo([]byte("export const sdk = 1;"))
	for _, tt := range []struct {
		h      http.Handler
		method string
		path   string
		code   int
		kind   string
	}{
		{console, "GET", "/", 200, "text/html; charset=utf-8"},
		{console, "HEAD", "/", 200, "text/html; charset=utf-8"},
		{console, "GET", "/console.js", 200, "text/javascript; charset=utf-8"},
		{console, "GET", "/uplot.js", 200, "text/javascript; charset=utf-8"},
		{console, "GET", "/uplot-license.txt", 200, "text/plain; charset=utf-8"},
		{console, "GET", "/look.css", 200, "text/css; charset=utf-8"},
		{console, "GET", "/limpet.svg", 200, "image/svg+xml"},
		{console, "POST", "/", 405, ""},
		{console, "GET", "/index.html", 404, ""},
		{console, "GET", "/../web.go", 404, ""},
		{console, "GET", "", 404, ""},
		{demo, "GET", "/", 200, "text/html; charset=utf-8"},
		{demo, "GET", "/demo/limpet.js", 200, "text/javascript; charset=utf-8"},
		{demo, "GET", "/demo/thief.html", 200, "text/html; charset=utf-8"},
		{demo, "GET", "/demo/", 404, ""},
		{demo, "DELETE", "/demo/demo.js", 405, ""},
	} {
		r := httptest.NewRequest(tt.method, "/", nil)
		r.URL.Path = tt.path
		w := httptest.NewRecorder()
		tt.h.ServeHTTP(w, r)
		if w.Code != tt.code || tt.kind != "" && w.Header().Get("Content-Type") != tt.kind {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, w.Code, w.Header().Get("Content-Type"))
		}
	}
	resp := get(console, "GET", "/console.js")
	if tag := resp.Header.Get("ETag"); get(console, "GET", "/console.js", "If-None-Match", tag).StatusCode != 304 || get(console, "GET", "/console.js", "If-None-Match", `"x"`).StatusCode != 200 {
		t.Errorf("tag %s", tag)
	}
}

// TestNothingInline: a page that had scripts or styles in it, or anything from
// elsewhere, would break under the policy; text is never made into markup.
func TestNothingInline(t *testing.T) {
	elsewhere := regexp.MustCompile(`(?i)(src|href|action|from|import\()\s*[=(]?\s*["'](https?:)?//`)
	inline := regexp.MustCompile(`(?i)<style|\sstyle=|\son[a-z]+=|javascript:|<script(?:[^>]*)>[^<]`)
	markup := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function`)
	n := 0
	err := fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := files.ReadFile(name)
		text := string(b)
		switch path.Ext(name) {
		case ".html":
			n++
			if found := inline.FindString(text); found != "" {
				t.Errorf("%s: %q is inline", name, found)
			}
			if !strings.Contains(text, `<html lang="en">`) {
				t.Errorf("%s: in no language", name)
			}
		case ".js":
			if found := markup.FindString(text); found != "" {
				t.Errorf("%s: %q", name, found)
			}
		}
		if found := elsewhere.FindString(text); found != "" {
			t.Errorf("%s: %q is from elsewhere", name, found)
		}
		return err
	})
	if err != nil || n < 3 {
		t.Errorf("%d pages, %v", n, err)
	}
}
