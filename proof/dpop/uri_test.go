package dpop

import (
	"testing"

	"github.com/limpet-auth/limpet/proof"
)

func TestSameURI(t *testing.T) {
	for _, tt := range []struct {
		htu                     string
		scheme, authority, path string
		same                    bool
	}{
		{"https://h.example/a", "https", "h.example", "/a", true},
		{"https://h.example/a", "", "h.example", "/a", true},
		{"http://h.example/a", "", "h.example", "/a", true},
		{"http://h.example/a", "http", "h.example", "/a", true},
		{"http://h.example/a", "https", "h.example", "/a", false},
		{"https://h.example/a", "http", "h.example", "/a", false},
		{"HTTPS://H.EXAMPLE/a", "https", "h.example", "/a", true},
		{"https://h.example/A", "https", "h.example", "/a", false},
		{"ftp://h.example/a", "", "h.example", "/a", false},
		{"ws://h.example/a", "", "h.example", "/a", false},
		{"httpss://h.example/a", "", "h.example", "/a", false},
		{"//h.example/a", "", "h.example", "/a", false},
		{"/a", "", "h.example", "/a", false},
		{"h.example/a", "", "h.example", "/a", false},
		{"", "", "", "", false},
		{"https://", "", "", "/", false},
		{"https:///a", "https", "", "/a", false},

		// Ports.
		{"https://h.example:443/a", "https", "h.example", "/a", true},
		{"https://h.example:443/a", "", "h.example", "/a", true},
		{"https://h.example:/a", "https", "h.example", "/a", true},
		{"https://h.example:80/a", "https", "h.example", "/a", false},
		{"https://h.example:80/a", "https", "h.example:80", "/a", true},
		{"http://h.example:80/a", "http", "h.example", "/a", true},
		{"http://h.example:443/a", "http", "h.example", "/a", false},
		{"https://h.example:8443/a", "https", "h.example:8443", "/a", true},
		{"https://h.example:8443/a", "https", "h.example", "/a", false},
		{"https://h.example/a", "https", "h.example:8443", "/a", false},
		{"https://[2001:db8::1]/a", "https", "[2001:db8::1]", "/a", true},
		{"https://[2001:DB8::1]:443/a", "https", "[2001:db8::1]", "/a", true},
		{"https://[2001:db8::1]:8443/a", "https", "[2001:db8::1]", "/a", false},

		// Other hosts.
		{"https://evil.example/a", "https", "h.example", "/a", false},
		{"https://h.example.evil.example/a", "https", "h.example", "/a", false},
		{"https://h.example./a", "https", "h.example", "/a", false},
		{"https://user@h.example/a", "https", "h.example", "/a", false},
		{"https://user:pw@h.example/a", "https", "h.example", "/a", false},
		{"https://h.example@evil.example/a", "https", "h.example", "/a", false},
		{"https://h.example\\@evil.example/a", "https", "evil.example", "/a", false},
		{"https://h.example?@evil.example/a", "https", "evil.example", "/a", false},
		{"https://h.example#@evil.example/a", "https", "evil.example", "/a", false},

		// Query and fragment.
		{"https://h.example/a?x=1", "https", "h.example", "/a", true},
		{"https://h.example/a#x", "https", "h.example", "/a", true},
		{"https://h.example/a?x#y?z", "https", "h.example", "/a", true},
		{"https://h.example/a#x?y", "https", "h.example", "/a", true},
		{"https://h.example?x", "https", "h.example", "/", true},
		{"https://h.example/a%3Fx", "https", "h.example", "/a", false},
		{"https://h.example/a%3fx", "https", "h.example", "/a%3Fx", true},
		{"https://h.example/?x=https://h.example/a", "https", "h.example", "/a", false},

		// Empty paths.
		{"https://h.example", "https", "h.example", "/", true},
		{"https://h.example", "https", "h.example", "", true},
		{"https://h.example/", "https", "h.example", "", true},
		{"https://h.example/a", "https", "h.example", "", false},
		{"https://h.example/a/", "https", "h.example", "/a", false},
		{"https://h.example//a", "https", "h.example", "/a", false},
		{"https://h.example", "https", "h.example", "*", false},

		// Percent-encoding (RFC 3986, 6.2.2.1 and 6.2.2.2).
		{"https://h.example/a%2fb", "https", "h.example", "/a%2Fb", true},
		{"https://h.example/a%2Fb", "https", "h.example", "/a/b", false},
		{"https://h.example/%7Euser", "https", "h.example", "/~user", true},
		{"https://h.example/~user", "https", "h.example", "/%7euser", true},
		{"https://h.example/%61%2D%5f%2e9", "https", "h.example", "/a-_.9", true},
		{"https://h.example/%41", "https", "h.example", "/a", false},
		{"https://h.example/%2561", "https", "h.example", "/a", false},
		{"https://h.example/%2561", "https", "h.example", "/%61", false},
		{"https://h.example/a+b", "https", "h.example", "/a%20b", false},
		{"https://h.example/a;b", "https", "h.example", "/a%3Bb", false},
		{"https://h.example/%zz", "https", "h.example", "/%ZZ", false},
		{"https://h.example/a%2", "https", "h.example", "/a", false},
		{"https://h.example/a%", "https", "h.example", "/a", false},
		{"https://h.example/a", "https", "h.example", "/%61%", false},
		{"https://h.example/a b", "https", "h.example", "/a%20b", false},
		{"https://h.example/ä", "https", "h.example", "/%C3%A4", false},
		{"https://h.example/%c3%a4", "https", "h.example", "/%C3%A4", true},
		{"https://h.example/a\x00", "https", "h.example", "/a", false},
		{"https://h.example/a\n", "https", "h.example", "/a", false},

		// Dot segments (RFC 3986, 6.2.2.3).
		{"https://h.example/a/../b", "https", "h.example", "/b", true},
		{"https://h.example/./b", "https", "h.example", "/b", true},
		{"https://h.example/b", "https", "h.example", "/x/%2e%2E/b", true},
		{"https://h.example/../../b", "https", "h.example", "/b", true},
		{"https://h.example/b/.", "https", "h.example", "/b/", true},
		{"https://h.example/b/..", "https", "h.example", "/", true},
		{"https://h.example/b/..", "https", "h.example", "/b", false},
		{"https://h.example/.b", "https", "h.example", "/b", false},
		{"https://h.example/..b/...", "https", "h.example", "/..b/...", true},
		{"https://h.example/..b/...", "https", "h.example", "/", false},
		{"https://h.example/a//../b", "https", "h.example", "/a/b", true},
		{"https://h.example/a%2F../b", "https", "h.example", "/b", false},
		{"https://h.example/a/..%2Fb", "https", "h.example", "/b", false},
	} {
		m := &proof.Message{Scheme: tt.scheme, Authority: tt.authority, Path: tt.path}
		if got := sameURI(m, tt.htu); got != tt.same {
			t.Errorf("htu %q, request %s %s %s: %v", tt.htu, tt.scheme, tt.authority, tt.path, got)
		}
	}
}

// The examples of RFC 3986, 5.4, resolved against /b/c/d.
func TestRemoveDots(t *testing.T) {
	for path, want := range map[string]string{
		"/b/c/./g": "/b/c/g", "/b/c/g/": "/b/c/g/", "/b/c/.": "/b/c/", "/b/c/./": "/b/c/", "/b/c/..": "/b/", "/b/c/../": "/b/",
		"/b/c/../g": "/b/g", "/b/c/../..": "/", "/b/c/../../": "/", "/b/c/../../g": "/g", "/b/c/../../../g": "/g", "/./g": "/g", "/../g": "/g",
		"/b/c/g.": "/b/c/g.", "/b/c/.g": "/b/c/.g", "/b/c/g..": "/b/c/g..", "/b/c/..g": "/b/c/..g", "/b/c/./../g": "/b/g", "/b/c/./g/.": "/b/c/g/",
		"/b/c/g/./h": "/b/c/g/h", "/b/c/g/../h": "/b/c/h", "/a/b/c/./../../g": "/a/g",
	} {
		if got := removeDots(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

// What is normal stays as it is.
func FuzzNormalPath(f *testing.F) {
	for _, path := range []string{"", "/", "/a/./b/../c%2f%7E", "/..", "//", "*", "%2e%2e/%2e", "/%2e%2e%2f"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		normal, ok := normalPath(path)
		if !ok {
			return
		}
		if again, ok := normalPath(normal); path != "" && path[0] == '/' && (!ok || again != normal) {
			t.Errorf("%q: %q, then %q", path, normal, again)
		}
	})
}
