package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/proof"
)

// door knows by which names programs may call the agent. Web pages in the user's
// browser reach it too: under a name of theirs that leads to this machine (DNS
// rebinding), or from another origin.
type door struct {
	agent   *Agent
	hosts   []string // authorities
	origins []string
}

// On returns the handler for a listener: one of TCP on the loopback interface, or
// a Unix socket. It refuses, with 403, requests to any other host than the
// listener's address or localhost, and those of web pages of other origins. At a
// Unix socket the host may also be the app's.
func (a *Agent) On(addr net.Addr) (http.Handler, error) {
	d := &door{agent: a}
	switch addr := addr.(type) {
	case *net.TCPAddr:
		ip := addr.AddrPort()
		if !ip.Addr().Unmap().IsLoopback() {
			return nil, fmt.Errorf("limpet: agent: %s is not on the loopback interface", addr)
		}
		ip = netip.AddrPortFrom(ip.Addr().Unmap().WithZone(""), ip.Port())
		d.add("http", ip.String())
		d.add("http", fmt.Sprintf("localhost:%d", ip.Port()))
	case *net.UnixAddr:
		d.add("http", "localhost")
		d.hosts = append(d.hosts, a.to) // by whatever scheme the program speaks of it
		d.origins = append(d.origins, "http://"+a.to, "https://"+a.to)
	default:
		return nil, errors.New("limpet: agent: neither TCP nor a Unix socket")
	}
	return d, nil
}

func (d *door) add(scheme, host string) {
	name := proof.Authority(scheme, host)
	d.hosts, d.origins = append(d.hosts, name), append(d.origins, scheme+"://"+name)
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if why := d.refuses(r); why != "" {
		d.agent.log.LogAttrs(r.Context(), slog.LevelWarn, "limpet: agent: refused", slog.String("why", why),
			slog.String("method", r.Method), slog.String("path", incoming.Told(r.URL.EscapedPath())))
		incoming.Answer(w, http.StatusForbidden, "forbidden", "the agent is for programs of this machine; its log says why not for this request")
		return
	}
	d.agent.serve(w, r)
}

// refuses says why a request is refused, "" if it is not.
func (d *door) refuses(r *http.Request) string {
	if !slices.Contains(d.hosts, proof.Authority("http", r.Host)) {
		return "the host is not this agent"
	}
	for _, origin := range r.Header["Origin"] {
		scheme, host, _ := strings.Cut(strings.ToLower(origin), "://")
		if !slices.Contains(d.origins, scheme+"://"+proof.Authority(scheme, host)) {
			return "it is from a web page of another origin"
		}
	}
	for _, site := range r.Header["Sec-Fetch-Site"] {
		if site != "same-origin" && site != "none" { // none: the user typed it
			return "it is from a web page of another site"
		}
	}
	return ""
}
