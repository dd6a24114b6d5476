// Package incoming has what those who check signed requests need of them: the
// message as it was sent, whether it can be read in one way only, and the digest
// of its body.
package incoming

import (
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/limpet-auth/limpet/proof"
)

// Message returns a request as it was sent. It shares the request's header.
func Message(r *http.Request) proof.Message {
	scheme := ""
	if r.TLS != nil {
		scheme = "https"
	}
	return proof.Message{
		Method:    r.Method,
		Scheme:    scheme,
		Authority: proof.Authority(scheme, r.Host),
		Path:      pathAsSent(r.URL),
		RawQuery:  r.URL.RawQuery,
		Header:    r.Header,
		HasBody:   r.ContentLength != 0,
	}
}

// pathAsSent returns the path before any decoding (RFC 9421, 2.2.6). EscapedPath
// would escape what clients should have, and some have not.
func pathAsSent(u *url.URL) string {
	if u.RawPath != "" {
		if path, err := url.PathUnescape(u.RawPath); err == nil && path == u.Path {
			return u.RawPath
		}
	}
	return u.EscapedPath()
}

// Told returns what logs are told of a path: segments without their parameters (RFC
// 3986, 3.3), where some apps have the session's token, as in ";jsessionid=". The
// ";" stays, to show that there were some.
func Told(path string) string {
	if !strings.Contains(path, ";") && !strings.Contains(path, "%3b") && !strings.Contains(path, "%3B") {
		return path
	}
	segments := strings.Split(path, "/")
	for i, segment := range segments {
		for j := range len(segment) {
			if segment[j] == ';' || len(segment)-j >= 3 && strings.EqualFold(segment[j:j+3], "%3b") {
				segments[i] = segment[:j] + ";"
				break
			}
		}
	}
	return strings.Join(segments, "/")
}

// Plain reports whether a request's target is the path that guard and app both
// see. net/http also admits "GET x:anything", which a reverse proxy sends on as
// it is, and leaves the paths of CONNECT uncleaned.
func Plain(r *http.Request) bool {
	u := r.URL
	if u.Opaque != "" || u.Host != "" && u.Host != r.Host {
		return false
	}
	return r.Method != http.MethodConnect || strings.TrimSuffix(path.Clean(u.Path), "/") == strings.TrimSuffix(u.Path, "/")
}
