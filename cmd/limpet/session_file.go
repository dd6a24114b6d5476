package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/hwkey"
)

// savedSession is what a login leaves behind for later calls: one file for each
// server and user. The token in it is worthless without the device key.
type savedSession struct {
	URL      string         `json:"url"` // what was given at login
	User     string         `json:"user"`
	Token    string         `json:"token"`
	Keystore string         `json:"keystore"` // keyTPM or keySoftware
	TPM      string         `json:"tpm,omitempty"`
	Created  time.Time      `json:"created"`
	Session  client.Session `json:"session"`
}

const maxSession = 32 << 10 // bytes of a session file

// serverURL reads the base URL of a server.
func serverURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return nil, usage("not a URL of the form https://host/path")
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

// origin returns scheme://host[:port] as client.Session has it.
func origin(u *url.URL) string {
	host := strings.ToLower(u.Host)
	host = strings.TrimSuffix(host, map[string]string{"http": ":80", "https": ":443"}[u.Scheme])
	return u.Scheme + "://" + strings.TrimSuffix(host, ":")
}

func sessionsDir(state string) string { return filepath.Join(state, "sessions") }

func (s *savedSession) path(state string) string {
	sum := sha256.Sum256([]byte(s.Session.Origin + "\n" + s.User))
	return filepath.Join(sessionsDir(state), base64.RawURLEncoding.EncodeToString(sum[:16])+".json")
}

func (s *savedSession) save(state string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("saving the session: %w", err)
	}
	if err := writeFile(s.path(state), append(text, '\n')); err != nil {
		return fmt.Errorf("saving the session: %w", err)
	}
	return nil
}

// savedSessions returns all sessions, the newest first. Files that cannot be
// read are told and passed over.
func savedSessions(state string) ([]*savedSession, error) {
	entries, err := os.ReadDir(sessionsDir(state))
	if err != nil && !missing(err) {
		return nil, fmt.Errorf("sessions: %w", err)
	}
	var list []*savedSession
	for _, entry := range entries {
		if filepath.Ext(entry.Name()) != ".json" {
			continue
		}
		path := filepath.Join(sessionsDir(state), entry.Name())
		s := new(savedSession)
		text, err := readBounded(path, maxSession)
		if err == nil {
			err = json.Unmarshal(text, s)
		}
		if err != nil {
			note("session file %s: not readable, log in again", path)
			continue
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *savedSession) int { return b.Created.Compare(a.Created) })
	return list, nil
}

// findSession returns the newest session at an origin, of one user if user is
// set; at any if origin is "", but then there must be only one.
func findSession(state, origin, user string) (*savedSession, error) {
	all, err := savedSessions(state)
	if err != nil {
		return nil, err
	}
	fit := slices.DeleteFunc(all, func(s *savedSession) bool {
		return origin != "" && s.Session.Origin != origin || user != "" && s.User != user
	})
	switch {
	case len(fit) == 0 && origin == "":
		return nil, fmt.Errorf("not logged in anywhere")
	case len(fit) == 0:
		return nil, withHint(fmt.Errorf("not logged in at %s", origin), "limpet login --url %s --user %s", origin, cmp.Or(user, "NAME"))
	case len(fit) > 1 && origin == "":
		return nil, usage("logged in at several servers, or as several users: say which with --url and --user")
	}
	return fit[0], nil
}

// keystore opens the keystore that the session's device key is in.
func (s *savedSession) keystore(ctx context.Context, k *keeper) (hwkey.Keystore, error) {
	if k.tpm == "" {
		k.tpm = s.TPM
	}
	return k.open(ctx, s.Keystore)
}

// open returns an HTTP client that proves the session, and what closes it.
func (s *savedSession) open(ctx context.Context, k *keeper) (*http.Client, func(), error) {
	keys, err := s.keystore(ctx, k)
	if err != nil {
		return nil, nil, err
	}
	c := client.New(keys)
	if err := c.Restore(ctx, s.Session); err != nil {
		closeKeystore(keys)
		return nil, nil, err
	}
	return newHTTPClient(c.Transport(newTransport())), func() { c.Close(); closeKeystore(keys) }, nil
}

// forget deletes the session's device key and its file.
func (s *savedSession) forget(ctx context.Context, state string, keys hwkey.Keystore) error {
	if err := client.New(keys).Forget(ctx, s.Session); err != nil {
		return err
	}
	if err := os.Remove(s.path(state)); err != nil && !missing(err) {
		return fmt.Errorf("deleting the session: %w", err)
	}
	return nil
}

func newTransport() *http.Transport {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = 5 * time.Minute
	return transport
}

// newHTTPClient returns a client that follows no redirects: as with curl, the
// caller sees them.
func newHTTPClient(transport http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
