package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

const (
	maxWellKnown = 16 << 10         // bytes of what a server says of itself
	maxAsking    = 10 * time.Second // for it to say so
	askAgain     = time.Minute      // between attempts to have a newer key
	maxChallenge = 256              // characters
)

// errNoLimpet means that an origin's server says nothing of itself: it binds no
// sessions on the httpsig wire.
var errNoLimpet = errors.New("the server does not say what it is")

// tokenPlace is where a server looks for session tokens.
type tokenPlace struct{ cookie string } // its name; "" for a bearer token

// learn notes what a server says of itself.
func (s *site) learn(server *proof.Server) {
	s.server.Store(server)
	s.covers(server.Challenge)
}

// covers notes the challenge that proofs must cover.
func (s *site) covers(challenge string) {
	if challenge == "" || len(challenge) > maxChallenge {
		return
	}
	for i := range len(challenge) {
		if challenge[i] <= ' ' || challenge[i] > '~' { // no header can carry it
			return
		}
	}
	s.challenge.Store(&challenge)
}

// moved reports whether there is another challenge than one that was covered.
func (s *site) moved(covered string) bool {
	c := s.challenge.Load()
	return c != nil && *c != covered
}

// read takes from any answer what is there for the next proof.
func (s *site) read(resp *http.Response) {
	if challenge, err := header(resp.Header, httpsig.ChallengeField); err == nil {
		s.covers(challenge)
	}
	if resp.StatusCode != http.StatusUnauthorized {
		return
	}
	for _, text := range resp.Header["Www-Authenticate"] {
		key, challenge := refusalOf(text)
		if server, _, err := httpsig.ParseServer(key); key != "" && err == nil {
			s.learn(server)
		}
		s.covers(challenge)
	}
}

// refusalOf returns the parameters that follow the reason in a guard's
// WWW-Authenticate. None of their values has quotes or backslashes in it.
func refusalOf(text string) (key, challenge string) {
	_, rest, _ := strings.Cut(text, `Limpet error="`)
	_, rest, _ = strings.Cut(rest, `"`)
	for {
		var name, value string
		var found bool
		if rest, found = strings.CutPrefix(rest, ", "); !found {
			return key, challenge
		}
		if name, rest, found = strings.Cut(rest, `="`); !found {
			return key, challenge
		}
		if value, rest, found = strings.Cut(rest, `"`); !found {
			return key, challenge
		}
		switch name {
		case "key":
			key = value
		case "challenge":
			challenge = value
		}
	}
}

// describe returns what is known of the server, and asks it if that is nothing,
// its key is over or, where that matters, it is not known where it looks for
// tokens. Of several requests one asks.
func (s *site) describe(out *try, place bool) (*proof.Server, error) {
	enough := func() (*proof.Server, bool) {
		known := s.server.Load()
		return known, known != nil && s.now().Before(known.KeyExpires) && (!place || s.token.Load() != nil)
	}
	known, ok := enough()
	if ok {
		return known, nil
	}
	begin := time.Now()
	select {
	case s.asking <- struct{}{}:
	case <-out.Context().Done():
		return nil, out.Context().Err()
	}
	defer func() { <-s.asking }()
	if known, ok = enough(); ok || known != nil && time.Since(s.asked) < askAgain {
		return known, nil
	}
	if s.askedErr != nil && !s.asked.Before(begin) {
		return nil, s.askedErr // it was asked while this request waited
	}
	err := s.ask(out)
	if out.Context().Err() == nil {
		s.asked, s.askedErr = time.Now(), err
	}
	if known = s.server.Load(); known != nil {
		return known, nil // an old key is better than none: the server says so if it is too old
	}
	return nil, err
}

// ask has the server say what it is, at the origin of out. The error wraps
// errNoLimpet if it answered something else.
func (s *site) ask(out *try) error {
	ctx, cancel := context.WithTimeout(out.Context(), maxAsking)
	defer cancel()
	u := url.URL{Scheme: out.URL.Scheme, Host: out.URL.Host, Path: httpsig.WellKnownPath}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Host = out.Host
	req.Header.Set("Accept", "application/json")
	resp, err := out.base.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 500 {
		return fmt.Errorf("GET %s: status %d", httpsig.WellKnownPath, resp.StatusCode)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: status %d", errNoLimpet, resp.StatusCode)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxWellKnown+1))
	if err != nil {
		return err
	}
	var says struct{ Key, Session, Cookie, Challenge string }
	if len(text) > maxWellKnown || json.Unmarshal(text, &says) != nil {
		return fmt.Errorf("%w: not JSON of at most %d bytes", errNoLimpet, maxWellKnown)
	}
	server, _, err := httpsig.ParseServer(says.Key)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoLimpet, err)
	}
	s.learn(server)
	s.covers(says.Challenge)
	switch {
	case says.Session == "bearer":
		s.token.Store(&tokenPlace{})
	case says.Session == "cookie" && says.Cookie != "":
		s.token.Store(&tokenPlace{cookie: says.Cookie})
	}
	return nil
}
