package admin

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

	"github.com/limpet-auth/limpet"
)

// Client asks a running server's admin API. It has the methods of [Sessions].
type Client struct{ http *http.Client }

// Dial returns the admin API on a Unix socket. It connects once, so that no server
// is an error now.
func Dial(path string) (*Client, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, fmt.Errorf("limpet: admin socket: %w", err)
	}
	conn.Close()
	return &Client{&http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}}, nil
}

func (c *Client) do(ctx context.Context, method, path string, f Filter) (*http.Response, error) {
	query := url.Values{}
	for name, value := range map[string]string{"user": f.User, "key": f.Key, "level": string(f.Level)} {
		if value != "" {
			query.Set(name, value)
		}
	}
	u := url.URL{Scheme: "http", Host: host, Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("limpet: admin socket: %w", err)
	}
	resp, err := c.http.Do(req)
	if e := (*url.Error)(nil); errors.As(err, &e) {
		err = e.Err // without the URL, which is not the user's
	}
	if err != nil {
		return nil, fmt.Errorf("limpet: admin socket: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var refusal struct{ Message, Reason string }
	err = json.NewDecoder(io.LimitReader(resp.Body, maxLine)).Decode(&refusal)
	switch {
	case err != nil:
		return nil, fmt.Errorf("limpet: admin socket: the server answers %s", resp.Status)
	case refusal.Reason == noSuchSession:
		return nil, limpet.ErrNoSession
	}
	return nil, fmt.Errorf("limpet: admin socket: the server answers %s: %s", resp.Status, refusal.Message)
}

const (
	host    = "localhost"
	maxLine = 64 << 10 // bytes
)

// lines decodes an answer of JSON lines, until yield returns false.
func lines[T any](resp *http.Response, yield func(*T) (bool, error)) error {
	defer resp.Body.Close()
	dec := json.NewDecoder(bufio.NewReader(resp.Body))
	for {
		line := new(T)
		err := dec.Decode(line)
		if err == io.EOF {
			return nil
		}
		more := false
		if err == nil {
			more, err = yield(line)
		}
		if err != nil {
			return fmt.Errorf("limpet: admin socket: %w", err)
		}
		if !more {
			return nil
		}
	}
}

// List is [Sessions.List].
func (c *Client) List(ctx context.Context, f Filter, yield func(*limpet.Binding) bool) error {
	resp, err := c.do(ctx, http.MethodGet, "/sessions", f)
	if err != nil {
		return err
	}
	return lines(resp, func(s *session) (bool, error) {
		b, err := s.binding()
		return err == nil && yield(b), err
	})
}

// Show is [Sessions.Show].
func (c *Client) Show(ctx context.Context, id limpet.ID) (*limpet.Binding, error) {
	resp, err := c.do(ctx, http.MethodGet, "/sessions/"+id.String(), Filter{})
	if err != nil {
		return nil, err
	}
	var b *limpet.Binding
	err = lines(resp, func(s *session) (bool, error) {
		var err error
		b, err = s.binding()
		return false, err
	})
	if err == nil && b == nil {
		err = errors.New("limpet: admin socket: the server answers nothing")
	}
	return b, err
}

// Revoke is [Sessions.Revoke].
func (c *Client) Revoke(ctx context.Context, id limpet.ID) error {
	_, err := c.revoke(ctx, "/sessions/"+id.String(), Filter{})
	return err
}

// RevokeAll is [Sessions.RevokeAll].
func (c *Client) RevokeAll(ctx context.Context, f Filter) (int, error) {
	return c.revoke(ctx, "/sessions", f)
}

func (c *Client) revoke(ctx context.Context, path string, f Filter) (n int, err error) {
	resp, err := c.do(ctx, http.MethodDelete, path, f)
	if err != nil {
		return 0, err
	}
	err = lines(resp, func(r *revoked) (bool, error) { n = r.Revoked; return false, nil })
	return n, err
}

// Watch calls yield with each decision as it falls, until yield returns false or
// the server ends.
func (c *Client) Watch(ctx context.Context, f Filter, yield func(*Decision) bool) error {
	resp, err := c.do(ctx, http.MethodGet, "/decisions", f)
	if err != nil {
		return err
	}
	return lines(resp, func(d *Decision) (bool, error) { return yield(d), nil })
}
