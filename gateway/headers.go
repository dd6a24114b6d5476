package gateway

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/proof/dpop"
	"github.com/limpet-auth/limpet/proof/httpsig"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

// Names are those of the headers by which the app learns who is there. A name of
// "-" sends none; "" is the default.
type Names struct {
	User    string // the user's name, if the login gave one; default Remote-User
	Level   string // the session's level, see [limpet.Level]; default Limpet-Level
	Session string // the session's ID: it stays the same if the app replaces the token; default Limpet-Session
	Key     string // the device key's thumbprint; default Limpet-Key
	Client  string // the client that the TLS connection belongs to, where the rule asks for one; default Limpet-Client-Name
}

func (n *Names) setDefaults() error {
	var all []string
	for _, name := range []struct {
		value *string
		usual string
	}{{&n.User, "Remote-User"}, {&n.Level, "Limpet-Level"}, {&n.Session, "Limpet-Session"}, {&n.Key, "Limpet-Key"}, {&n.Client, "Limpet-Client-Name"}} {
		switch *name.value {
		case "":
			*name.value = name.usual
		case "-":
			*name.value = ""
			continue
		}
		*name.value = http.CanonicalHeaderKey(*name.value)
		text := normal(*name.value)
		if len(text) > 64 || strings.Trim(text, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" || slices.Contains(all, text) || reserved(text) {
			return fmt.Errorf("%.40q cannot be the name of a header for the app", *name.value)
		}
		all = append(all, text)
	}
	return nil
}

// all returns those that there are.
func (n *Names) all() []string {
	return slices.DeleteFunc([]string{n.User, n.Level, n.Session, n.Key, n.Client}, func(name string) bool { return name == "" })
}

// reserved reports whether a header has a meaning of its own that an identity
// would spoil.
func reserved(name string) bool {
	return slices.Contains([]string{"host", "cookie", "authorization", "content_length", "content_type", "transfer_encoding",
		"connection", "upgrade", "te", "trailer", "expect"}, name) ||
		begins(name, forwarded) // what proxies in front pass on
}

// normal returns what CGI and its kin make of a header's name: letters of one
// case, and "_" for all that is neither letter nor digit.
func normal(name string) string {
	b := []byte(name)
	for i, c := range b {
		b[i] = normalByte(c)
	}
	return string(b)
}

func normalByte(c byte) byte {
	switch {
	case c >= 'A' && c <= 'Z':
		return c + 'a' - 'A'
	case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c >= 0x80:
		return c
	}
	return '_'
}

// Fields that only the gateway says, or that are for it alone, as normal makes
// them. Proxies in front that are trusted may say those of forwarded.
var (
	proofs    = []string{"limpet_", "x_rpc_sec_", "remote_"} // who believes Remote-User often believes Remote-Groups
	forwarded = []string{"x_forwarded_", "forwarded", "x_real_ip", "x_original_", "x_rewrite_"}
)

// addresses are further fields, as normal makes them, by which proxies in front
// say where a request came from, and apps believe it. They may say it if they are
// trusted.
var addresses = []string{"client_ip", "x_client_ip", "x_clientip", "true_client_ip", "cf_connecting_ip", "cf_connecting_ipv6", "cf_pseudo_ipv4",
	"fastly_client_ip", "x_cluster_client_ip", "x_azure_clientip", "x_azure_socketip", "x_appengine_user_ip", "fly_client_ip", "x_nf_client_connection_ip",
	"do_connecting_ip", "oxygen_client_ip", "x_envoy_external_address", "x_remote_ip", "x_remote_addr", "x_originating_ip", "x_proxyuser_ip",
	"proxy_client_ip", "wl_proxy_client_ip", "x_forwarded"}

// targets are those of forwarded by which some apps take another target than the
// request's own, which has the rule. Proxies hand on a client's, so nobody says them.
var targets = []string{"x_original_url", "x_original_uri", "x_original_path", "x_original_method", "x_rewrite_"}

// filter knows which headers of a client's do not reach the app.
type filter struct {
	exact map[string]bool // whether trusted proxies may say them
	first [256]bool       // bytes that names of such headers begin with, as normal makes them
}

func newFilter(n Names) filter {
	f := filter{exact: map[string]bool{"dpop": false}}
	for _, name := range addresses {
		f.exact[name] = true
	}
	for _, name := range n.all() {
		f.exact[normal(name)] = false
	}
	for _, names := range [][]string{proofs, forwarded, {"signature"}, slices.Collect(maps.Keys(f.exact))} {
		for _, name := range names {
			f.first[name[0]] = true
		}
	}
	return f
}

// wires are the fields that clients prove with: they may reach the app.
var wires = func() map[string]bool {
	all := map[string]bool{"Limpet-Client": true, dpop.Header: true} // the first is of package channel
	for _, name := range slices.Concat([]string{httpsig.DeviceField, httpsig.DelegationField, httpsig.SessionField,
		httpsig.ChallengeField, httpsig.ChannelField}, hwsign.BoundToken.All(), hwsign.DBCS.All()) {
		all[name] = true
	}
	return all
}()

// smuggled returns the name of a header that strip would keep from the app and
// proxies hand on to it, in any spelling that apps may take for it; "" if there is
// none. Of those that proxies in front say, only the ones by which some apps take
// another path than the request's own are left: proxies do not remove those.
func (f *filter) smuggled(h http.Header) string {
	for name := range h {
		if f.drops(name, false, true) && !wires[name] || (name[0] == 'X' || name[0] == 'x') && begins(normal(name), rewriting) {
			return name
		}
	}
	return ""
}

var rewriting = []string{"x_original_", "x_rewrite_"}

// strip removes them, in every spelling.
func (f *filter) strip(h http.Header, trusted bool) {
	signed := isSigned(h)
	for name := range h {
		if f.drops(name, signed, trusted) {
			delete(h, name)
		}
	}
}

// pass removes from a request's own header what does not reach the app. It reports
// whether nothing else is left that is for the connection alone (RFC 9110, 7.6.1):
// the reverse proxy knows what becomes of that.
func (f *filter) pass(h http.Header, trusted bool) (all bool) {
	signed := isSigned(h)
	all = true
	for name, values := range h {
		switch name {
		case "Connection":
			if len(values) == 1 && (strings.EqualFold(values[0], "keep-alive") || strings.EqualFold(values[0], "close")) {
				delete(h, name) // names no other field
			} else {
				all = false
			}
		case "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
			all = false
		default:
			if f.drops(name, signed, trusted) {
				delete(h, name)
			}
		}
	}
	return all
}

func isSigned(h http.Header) bool {
	return slices.ContainsFunc(h["Signature-Input"], func(v string) bool { return strings.Contains(v, `"limpet"`) })
}

// drops tells it of one. Signatures go if they are the client's proof.
func (f *filter) drops(name string, signed, trusted bool) bool {
	if name == "" || !f.first[normalByte(name[0])] {
		return false
	}
	var room [64]byte
	if len(name) > len(room) {
		return begins(normal(name), proofs) || begins(normal(name), forwarded)
	}
	text := room[:len(name)]
	for i := range len(name) {
		text[i] = normalByte(name[i])
	}
	switch text[0] {
	case 'f', 'l', 'r', 'x':
		if begins(string(text), proofs) {
			return true
		}
		if begins(string(text), forwarded) {
			return !trusted || odd(name) || begins(string(text), targets)
		}
	case 's':
		if signed && (string(text) == "signature" || string(text) == "signature_input") {
			return true
		}
	}
	proxys, listed := f.exact[string(text)]
	return listed && !(proxys && trusted && !odd(name))
}

// odd reports whether a name is spelled as proxies do not spell theirs, so that they
// leave a client's alone: CGI takes "." and "_" for "-".
func odd(name string) bool {
	for i := range len(name) {
		if name[i] != '-' && normalByte(name[i]) == '_' {
			return true
		}
	}
	return false
}

func begins(text string, with []string) bool {
	return slices.ContainsFunc(with, func(s string) bool { return strings.HasPrefix(text, s) })
}

// identify tells the app who is there.
func (n *Names) identify(h http.Header, b *limpet.Binding) {
	said := make([]string, 0, 5) // one allocation for all values
	set := func(name, value string) {
		if name != "" && value != "" {
			said = append(said, value)
			h[name] = said[len(said)-1 : len(said) : len(said)]
		}
	}
	set(n.User, sane(b.User))
	set(n.Level, string(b.Level))
	if b.Session != (limpet.ID{}) && n.Session != "" {
		id := b.Session
		if b.Root != (limpet.ID{}) {
			id = b.Root
		}
		set(n.Session, id.String())
	}
	set(n.Key, b.Key)
	set(n.Client, sane(b.Client))
}

// forward sets what says where a request came from. What a trusted proxy says of
// that is kept, and completed.
func forward(out http.Header, in *http.Request, trusted bool) {
	if trusted {
		for name, values := range in.Header {
			if text := normal(name); begins(text, forwarded) && !begins(text, targets) && !odd(name) {
				out[name] = slices.Clone(values)
			}
		}
	}
	from, _, err := net.SplitHostPort(in.RemoteAddr)
	if before := out["X-Forwarded-For"]; len(before) > 0 {
		from = strings.Join(before, ", ") + ", " + from
	}
	proto := "http"
	if in.TLS != nil {
		proto = "https"
	}
	said := [...]string{from, proto, in.Host}
	if out["X-Forwarded-For"] = said[0:1:1]; err != nil {
		delete(out, "X-Forwarded-For")
	}
	if len(out["X-Forwarded-Proto"]) != 1 {
		out["X-Forwarded-Proto"] = said[1:2:2]
	}
	if len(out["X-Forwarded-Host"]) != 1 {
		out["X-Forwarded-Host"] = said[2:3:3]
	}
}

func isTrusted(remote string, proxies []netip.Prefix) bool {
	if len(proxies) == 0 {
		return false
	}
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && slices.ContainsFunc(proxies, func(p netip.Prefix) bool { return p.Contains(addr.Unmap().WithZone("")) })
}
