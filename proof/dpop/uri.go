package dpop

import (
	"bytes"
	"strings"

	"github.com/limpet-auth/limpet/proof"
)

// sameURI reports whether htu names the request's target, query and fragment
// aside (RFC 9449, 4.3), after the normalization of RFC 3986, 6.2.2 and 6.2.3 on
// both sides. Where the request's scheme is not known, either will do.
func sameURI(m *proof.Message, htu string) bool {
	for i := range len(htu) {
		if htu[i] <= ' ' || htu[i] > '~' {
			return false
		}
	}
	scheme, rest, ok := strings.Cut(htu, "://")
	switch {
	case !ok:
		return false
	case m.Scheme != "":
		ok = strings.EqualFold(scheme, m.Scheme)
	default:
		ok = strings.EqualFold(scheme, "https") || strings.EqualFold(scheme, "http")
	}
	if i := strings.IndexAny(rest, "?#"); i >= 0 {
		rest = rest[:i]
	}
	authority, path := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	// Both lose ports that are the scheme's default, or empty. User information
	// has no place in a target (RFC 9110, 4.2.4).
	if !ok || authority == "" || strings.IndexByte(authority, '@') >= 0 ||
		proof.Authority(m.Scheme, strings.TrimSuffix(authority, ":")) != strings.TrimSuffix(m.Authority, ":") {
		return false
	}
	if path == m.Path {
		return true
	}
	want, ok := normalPath(m.Path)
	if !ok {
		return false
	}
	got, ok := normalPath(path)
	return ok && got == want
}

// normalPath returns the normal form of a path; not ok if that is none, for
// percent signs that encode nothing.
func normalPath(path string) (normal string, ok bool) {
	if strings.IndexByte(path, '%') >= 0 {
		if path, ok = normalPercent(path); !ok {
			return "", false
		}
	}
	if path == "" {
		return "/", true
	}
	if strings.Contains(path, "/.") {
		path = removeDots(path)
	}
	return path, true
}

// normalPercent decodes what needs no percent-encoding and writes the rest in
// upper case (RFC 3986, 6.2.2.1 and 6.2.2.2).
func normalPercent(path string) (string, bool) {
	const upper = "0123456789ABCDEF"
	b := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		if path[i] != '%' {
			b = append(b, path[i])
			continue
		}
		if i+2 >= len(path) {
			return "", false
		}
		hi, lo := unhex(path[i+1]), unhex(path[i+2])
		if hi > 15 || lo > 15 {
			return "", false
		}
		if c := hi<<4 | lo; unreserved(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', upper[hi], upper[lo])
		}
		i += 2
	}
	return string(b), true
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

// unreserved characters (RFC 3986, 2.3).
func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

// removeDots removes the segments "." and ".." of a path that begins with a
// slash, as a client does before it sends it (RFC 3986, 5.2.4).
func removeDots(path string) string {
	b := make([]byte, 0, len(path))
	for rest := path; rest != ""; {
		segment := rest // with its slash
		if i := strings.IndexByte(rest[1:], '/'); i >= 0 {
			segment = rest[:i+1]
		}
		rest = rest[len(segment):]
		switch segment {
		case "/.", "/..":
			if segment == "/.." {
				b = b[:max(0, bytes.LastIndexByte(b, '/'))]
			}
			if rest == "" {
				b = append(b, '/')
			}
		default:
			b = append(b, segment...)
		}
	}
	return string(b)
}
