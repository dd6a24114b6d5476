package limpet

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"testing/fstest"
)

// sendLine sends a request whose first line is written as it is, as no client of
// Go's would, and returns the answer's status and body.
func sendLine(t *testing.T, h http.Handler, line, host, headers string) (int, string) {
	t.Helper()
	server := httptest.NewServer(h)
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: %s\r\n%sConnection: close\r\n\r\n", line, host, headers)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// A target that a reverse proxy behind the guard reads otherwise neither escapes
// its route's rule nor carries a proof to another path.
func TestTargetsThatAreNoPaths(t *testing.T) {
	var reached []string
	backend := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		reached = append(reached, r.Method+" "+r.URL.Path)
	}))
	defer backend.Close()
	u, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, Config{Routes: []Route{{"/admin/", Rule{Mode: Require, MinLevel: Hardware}}}})
	proxy := s.Protect(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }})
	h := s.hold("token")
	var proven strings.Builder
	if err := h.request("GET", "/", "", true).Header.Write(&proven); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"GET x:http://" + u.Host + "/admin/secret",
		"GET x:/admin/secret",
		"CONNECT /public/../admin/secret",
		"CONNECT //admin/secret",
		"CONNECT example.com:443",
	} {
		for _, headers := range []string{"", proven.String()} {
			if code, _ := sendLine(t, proxy, line, "example.com", headers); code != http.StatusBadRequest && code != http.StatusUnauthorized {
				t.Errorf("%s: %d", line, code)
			}
		}
	}
	if len(reached) > 0 {
		t.Errorf("reached %q", reached)
	}
	if code, _ := sendLine(t, proxy, "GET http://example.com/", "example.com", proven.String()); code != http.StatusOK {
		t.Errorf("a target in absolute form: %d", code)
	}
}

func TestConnectIsNotCleaned(t *testing.T) {
	files := http.FileServerFS(fstest.MapFS{"admin/secret.txt": {Data: []byte("the secret")}})
	s := newSite(t, Config{Routes: []Route{{"/admin/", Rule{Mode: Require}}}})
	for _, line := range []string{"CONNECT /public/../admin/secret.txt", "CONNECT //admin/secret.txt", "CONNECT /./admin/secret.txt"} {
		if code, body := sendLine(t, s.Protect(files), line, "example.com", ""); code == 200 || strings.Contains(body, "secret") {
			t.Errorf("%s: %d %q", line, code, body)
		}
	}
}

func TestHostSpellingsWithPorts(t *testing.T) {
	s := newSite(t, Config{Routes: []Route{{"admin.example/", Rule{Mode: Require}}}})
	for _, tt := range [][2]string{
		{"GET /", "admin.example"}, {"GET /", "ADMIN.example.:443"}, {"GET /", "admin.example..:443"}, {"GET /", "admin.example:"},
		{"CONNECT /x", "admin.example:443"}, {"CONNECT admin.example:443", "admin.example:443"},
	} {
		if code, _ := sendLine(t, s.next, tt[0], tt[1], ""); code == 200 {
			t.Errorf("%v escapes its route's rule", tt)
		}
	}
}
