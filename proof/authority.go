package proof

import "strings"

// Authority returns a request's authority as both ends write it when they sign
// it: in lower case, without the port that is the scheme's default (RFC 9421,
// 2.2.3). If the scheme is not known, "", neither default port is kept.
func Authority(scheme, host string) string {
	for i := range len(host) {
		if 'A' <= host[i] && host[i] <= 'Z' {
			host = strings.ToLower(host)
			break
		}
	}
	if scheme != "http" {
		host = strings.TrimSuffix(host, ":443")
	}
	if scheme != "https" {
		host = strings.TrimSuffix(host, ":80")
	}
	return host
}
