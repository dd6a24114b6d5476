package authserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/limpet-auth/limpet"
)

// Admin returns the admin API, for a listener that only the operator reaches:
//
//	GET  /sessions             live sessions, one JSON object a line
//	POST /revoke?session=ID    {"revoked":1}; 404 if there is no such session
//	POST /revoke?user=NAME     {"revoked":n}
func (s *Server) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /sessions", s.serveSessions)
	mux.HandleFunc("POST /revoke", s.serveRevoke)
	return mux
}

// adminSession is a session on the admin API. Times are unix seconds.
type adminSession struct {
	Session string       `json:"session"`
	User    string       `json:"user"`
	Level   limpet.Level `json:"level"`
	Key     string       `json:"key,omitempty"`
	Created int64        `json:"created"`
	Expires int64        `json:"expires"`
}

func (s *Server) serveSessions(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	err := s.Sessions(r.Context(), func(b *limpet.Binding) bool {
		return enc.Encode(adminSession{Session: b.Session.String(), User: b.User, Level: b.Level, Key: b.Key,
			Created: b.Created.Unix(), Expires: b.Expires.Unix()}) == nil
	})
	if err != nil {
		s.log.ErrorContext(r.Context(), "limpet: listing sessions", "why", err)
		panic(http.ErrAbortHandler) // the list must not look complete
	}
}

func (s *Server) serveRevoke(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	n, err := 0, error(nil)
	switch {
	case q.Get("user") != "":
		n, err = s.RevokeUser(r.Context(), q.Get("user"))
	default:
		var id limpet.ID
		if id, err = limpet.ParseID(q.Get("session")); err != nil {
			refuse(w, http.StatusBadRequest, "bad_request", "not a session ID")
			return
		}
		n, err = 1, s.Revoke(r.Context(), id)
	}
	switch {
	case errors.Is(err, limpet.ErrNoSession):
		refuse(w, http.StatusNotFound, "not_found", "there is no such session")
	case err != nil:
		s.unavailable(w, r, err)
	default:
		s.log.InfoContext(r.Context(), "limpet: revoked", "sessions", n)
		answer(w, http.StatusOK, map[string]any{"revoked": n})
	}
}

// Admin asks a running server's admin API. It has the methods of
// [limpet.Guard] that list and revoke.
type Admin struct{ http *http.Client }

// DialAdmin returns the admin API on a Unix socket. It connects once, so that
// no server is an error now.
func DialAdmin(path string) (*Admin, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, fmt.Errorf("limpet: admin socket: %w", err)
	}
	conn.Close()
	return &Admin{&http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}},
	}}, nil
}

func (a *Admin) do(ctx context.Context, method, target string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://admin"+target, nil)
	if err != nil {
		return nil, fmt.Errorf("limpet: admin socket: %w", err)
	}
	resp, err := a.http.Do(req)
	if e := (*url.Error)(nil); errors.As(err, &e) {
		err = e.Err // without the URL, which is not the user's
	}
	if err != nil {
		return nil, fmt.Errorf("limpet: admin socket: %w", err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return resp, nil
	case http.StatusNotFound:
		err = limpet.ErrNoSession
	default:
		err = fmt.Errorf("limpet: admin socket: the server answers %s", resp.Status)
	}
	resp.Body.Close()
	return nil, err
}

// Sessions is [limpet.Guard.Sessions].
func (a *Admin) Sessions(ctx context.Context, yield func(*limpet.Binding) bool) error {
	resp, err := a.do(ctx, http.MethodGet, "/sessions")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(bufio.NewReader(resp.Body))
	for {
		var s adminSession
		err := dec.Decode(&s)
		if err == io.EOF {
			return nil
		}
		var id limpet.ID
		if err == nil {
			id, err = limpet.ParseID(s.Session)
		}
		if err != nil {
			return fmt.Errorf("limpet: admin socket: %w", err)
		}
		if !yield(&limpet.Binding{Session: id, User: s.User, Level: s.Level, Key: s.Key,
			Created: time.Unix(s.Created, 0), Expires: time.Unix(s.Expires, 0)}) {
			return nil
		}
	}
}

// Revoke is [limpet.Guard.Revoke].
func (a *Admin) Revoke(ctx context.Context, session limpet.ID) error {
	_, err := a.revoke(ctx, "session", session.String())
	return err
}

// RevokeUser is [limpet.Guard.RevokeUser].
func (a *Admin) RevokeUser(ctx context.Context, user string) (int, error) {
	return a.revoke(ctx, "user", user)
}

func (a *Admin) revoke(ctx context.Context, what, which string) (int, error) {
	resp, err := a.do(ctx, http.MethodPost, "/revoke?"+what+"="+url.QueryEscape(which))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var n struct{ Revoked int }
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4096)).Decode(&n); err != nil {
		return 0, fmt.Errorf("limpet: admin socket: %w", err)
	}
	return n.Revoked, nil
}
