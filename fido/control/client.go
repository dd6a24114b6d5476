package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/fido"
)

// Client sends an owner's commands to a running token. Errors are those of
// fido.Token.
type Client struct{ path string }

// Dial returns a client for the socket of a token. It connects once, so that no token
// is an error now.
func Dial(path string) (*Client, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, fmt.Errorf("limpet: fido: control socket: %w", err)
	}
	conn.Close()
	return &Client{path}, nil
}

func (c *Client) call(ctx context.Context, r request) (a answer, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.path)
	if err != nil {
		return a, fmt.Errorf("limpet: fido: control socket: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err = send(conn, r); err == nil {
		lines := scanner(conn, maxAnswer)
		if !lines.Scan() {
			err = errors.Join(lines.Err(), io.ErrUnexpectedEOF)
		} else {
			err = json.Unmarshal(lines.Bytes(), &a)
		}
	}
	switch {
	case ctx.Err() != nil:
		return a, ctx.Err()
	case err != nil:
		return a, fmt.Errorf("limpet: fido: control socket: %w", err)
	case a.Error == "":
		return a, nil
	case mistakes[a.Error] != nil:
		return a, mistakes[a.Error]
	}
	return a, errors.New(a.Error)
}

// Status returns how the token is.
func (c *Client) Status(ctx context.Context) (s fido.Status, err error) {
	a, err := c.call(ctx, request{Do: doStatus})
	if err == nil && a.Status == nil {
		err = errors.New("limpet: fido: control socket: no answer")
	}
	if err != nil {
		return s, err
	}
	return *a.Status, nil
}

// List returns the discoverable credentials. The PIN is nil if there is none.
func (c *Client) List(ctx context.Context, pin []byte) ([]fido.Credential, error) {
	a, err := c.call(ctx, request{Do: doList, PIN: pin})
	return a.Credentials, err
}

// Remove deletes a discoverable credential.
func (c *Client) Remove(ctx context.Context, pin, id []byte) error {
	_, err := c.call(ctx, request{Do: doRemove, PIN: pin, ID: id})
	return err
}

// SetPIN sets the first PIN.
func (c *Client) SetPIN(ctx context.Context, pin []byte) error {
	_, err := c.call(ctx, request{Do: doSetPIN, New: pin})
	return err
}

// ChangePIN replaces the PIN.
func (c *Client) ChangePIN(ctx context.Context, old, pin []byte) error {
	_, err := c.call(ctx, request{Do: doChangePIN, PIN: old, New: pin})
	return err
}

// Reset deletes everything, if the user who is asked allows it.
func (c *Client) Reset(ctx context.Context) error {
	_, err := c.call(ctx, request{Do: doReset})
	return err
}

// Attend asks what the token at path wants to know, by prompt, until ctx is done or
// the token goes. It calls there once the token knows of it.
func Attend(ctx context.Context, path string, prompt fido.Prompt, there func()) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return fmt.Errorf("limpet: fido: control socket: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := send(conn, request{Do: doAttend}); err != nil {
		return fmt.Errorf("limpet: fido: control socket: %w", err)
	}
	conn.SetReadDeadline(time.Now().Add(patience))
	lines := scanner(conn, maxRequest)
	var a answer
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &a) != nil || a.Error != "" {
		return errors.New("limpet: fido: control socket: the token takes no agent")
	}
	conn.SetReadDeadline(time.Time{})
	there()

	var mu sync.Mutex // of the connection's writes, and of what is open
	open := make(map[uint64]context.CancelFunc)
	var asking sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer asking.Wait()
	defer cancel()
	for lines.Scan() {
		var q question
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return fmt.Errorf("limpet: fido: control socket: %w", err)
		}
		if q.Request == nil {
			mu.Lock()
			if withdraw := open[q.Withdraw]; withdraw != nil {
				withdraw()
			}
			mu.Unlock()
			continue
		}
		one, done := context.WithCancel(ctx)
		mu.Lock()
		open[q.Ask] = done
		mu.Unlock()
		asking.Go(func() {
			defer done()
			allowed, err := prompt.Ask(one, *q.Request)
			v := verdict{Answer: q.Ask, Allowed: allowed && err == nil}
			if err != nil {
				v.Error = err.Error()
				v.Error = v.Error[:min(len(v.Error), maxReason)]
			}
			mu.Lock()
			defer mu.Unlock()
			delete(open, q.Ask)
			if one.Err() == nil {
				send(conn, v) // a token that has gone is noticed by the one who reads
			}
		})
	}
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(errors.New("limpet: fido: the token has gone"), lines.Err())
}
