package gateway

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/internal/relay"
	"github.com/limpet-auth/limpet/store/memstore"
)

// TestConnectionsToTheApp: an app that takes no bytes for a minute is let go too.
func TestConnectionsToTheApp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := newTransport(time.Second).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, ok := c.(*relay.Conn); !ok {
		t.Errorf("a connection of type %T, whose writes wait for ever", c)
	}
}

// TestReadings: a path that is read in one way has one reading, and the work for
// the others is bounded.
func TestReadings(t *testing.T) {
	for path, want := range map[string]int{"/a/b": 1, "/%2525": 3, `/a\b;c/%2fd`: 12, "//a/b": 2} {
		r := httptest.NewRequest("GET", "http://x/", nil)
		u, err := r.URL.Parse("http://x" + path)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := readings(u); len(got) > want {
			t.Errorf("%s: %d readings: %q", path, len(got), got)
		}
	}
}

// FuzzMember: whatever the text, what is found in it is valid, and what is there
// twice is not found.
func FuzzMember(f *testing.F) {
	f.Add([]byte(`{"a":{"b":"c"}}`))
	f.Add([]byte(`{"a":{"b":"c","B":"d"}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := member(text, []string{"a", "b"})
		if err == nil && s != "" && !bytes.Contains(text, []byte("a")) && !bytes.Contains(text, []byte(`\u`)) {
			t.Errorf("%q in %q", s, text)
		}
	})
}

// FuzzParse: whatever the file, there is an error that names it, or a
// configuration that a gateway can be made of or not, but that ends nothing.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"upstream: http://x\nsession: {cookie: sid}\nlogin: [{route: POST /in, user: form.u, token: a.b, success: [302]}]\nlogout: [/out]\n",
		"routes:\n- {route: /a/, mode: require, body: 1MiB, min-level: software}\ndefault: {freshness: body-hash}\nheaders: {user: X, key: \"-\"}\ntimeout: 1s",
		"a: &b [*b]", "\ta", "a: 1\n---\nb: 2", "logout: [\"/{a}\", \"/{a...}/b\"]"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		cfg, err := Parse("file", text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "file:") {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		cfg.Store, cfg.Clients = memstore.New(nil), noClients{}
		if g, err := New(cfg); err == nil {
			g.Explain()
		}
	})
}

type noClients struct{}

func (noClients) Client(http.Header, *http.Request) (string, error) { return "", errors.New("none") }

// FuzzReadings: a path that is taken for plain has no further readings, and whatever an
// app makes of another, by decoding it once or twice or not at all, is among the
// readings.
func FuzzReadings(f *testing.F) {
	for _, path := range []string{"/a/b", "/a;b/c", "/%61%2f", "//a", "/a%252e", `/a\b`, "/a%3fb"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.ParseRequestURI(path)
		if err != nil || u.Host != "" || u.Opaque != "" || !strings.HasPrefix(u.Path, "/") {
			return
		}
		all, readable := readings(u)
		if plain, _ := plainPath(u); plain {
			for _, reading := range all {
				if reading != u.Path && reading != u.EscapedPath() || !readable {
					t.Errorf("%q is plain, and has the readings %q, %v", path, all, readable)
				}
			}
		}
		twice, err := url.PathUnescape(u.Path)
		if err != nil {
			twice = u.Path
		}
		for _, reading := range []string{u.EscapedPath(), u.Path, twice} {
			if !slices.Contains(all, reading) {
				t.Errorf("%q is not among the readings of %q", reading, path)
			}
		}
	})
}

// FuzzField: a name that is found once in a form is what net/url finds there.
func FuzzField(f *testing.F) {
	f.Add("user=alice&x=1")
	f.Add("user=alice&%75ser=bob")
	f.Add("user[]=a;user=b")
	f.Fuzz(func(t *testing.T, form string) {
		name, n := field(form, "user")
		values, err := url.ParseQuery(form)
		if err == nil && len(values["user"]) > n {
			t.Errorf("%q: %d times, net/url finds %q", form, n, values["user"])
		}
		if err == nil && n == 1 && len(values["user"]) == 1 && values["user"][0] != name {
			t.Errorf("%q: %q, net/url finds %q", form, name, values["user"][0])
		}
	})
}

// FuzzAnswer: what is read of an answer to a login reaches the client as it was.
func FuzzAnswer(f *testing.F) {
	f.Add("application/json", "", []byte(`{"token":"x"}`))
	f.Add("text/html", "gzip", []byte("<p>"))
	f.Add("", "identity", []byte(" {"))
	f.Fuzz(func(t *testing.T, media, coding string, body []byte) {
		resp := &http.Response{Header: http.Header{"Content-Type": {media}, "Content-Encoding": {coding}}, Body: io.NopCloser(bytes.NewReader(body))}
		text, err := readJSON(resp)
		if err == nil && text != nil && !bytes.Equal(text, body) {
			t.Errorf("%q is read as %q", body, text)
		}
		if left, _ := io.ReadAll(resp.Body); !bytes.Equal(left, body) {
			t.Errorf("%q reaches the client as %q", body, left)
		}
	})
}
