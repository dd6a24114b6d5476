package oauth

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4/json"

	"github.com/limpet-auth/limpet/proof"
)

const (
	rememberAnswer = 30 * time.Second // how long an answer holds
	maxAnswer      = 64 << 10         // bytes of one
	maxAsking      = 256              // tokens asked about at once
)

// IntrospectionConfig is what an [Introspection] is made from. URL, ClientID and
// ClientSecret must be set.
type IntrospectionConfig struct {
	URL          string // the issuer's introspection endpoint; https:// unless it is on this machine
	ClientID     string // this resource server, as the issuer knows it
	ClientSecret string

	// Issuer and Audience, if they are set, must be in an answer's iss and aud.
	// Leave Audience unset only if the issuer tells nobody about tokens that are
	// meant for others.
	Issuer   string
	Audience string

	Client *http.Client // to ask with; nil for one of its own. At most 5 s are waited, no redirect is followed
}

// LogValue leaves out the secret.
func (c IntrospectionConfig) LogValue() slog.Value {
	return slog.GroupValue(slog.String("url", c.URL), slog.String("client_id", c.ClientID))
}

// String leaves out the secret.
func (c IntrospectionConfig) String() string { return c.LogValue().String() }

// GoString leaves out the secret.
func (c IntrospectionConfig) GoString() string { return c.String() }

// Introspection knows the access tokens that an issuer says are active (RFC
// 7662). It is safe for concurrent use.
//
// An answer holds for 30 s, or until the token's exp if that is sooner; for that
// long a revoked token goes on. Only good tokens are remembered. Requests with one
// token ask once, and about no more than 256 tokens is asked at the same time.
type Introspection struct {
	url       string
	issuer    string
	audience  string
	client    *http.Client
	authorize func(*http.Request) // holds the secret where nothing prints it
	memory    memory
	now       func() time.Time

	mu     sync.Mutex
	asking map[[sha256.Size]byte]*question // by the SHA-256 of the token
}

type question struct {
	done      chan struct{} // closed when the other two are set
	confirmed *proof.Confirmation
	err       error
}

// NewIntrospection returns an Introspection.
func NewIntrospection(cfg IntrospectionConfig) (*Introspection, error) {
	if err := endpoint("IntrospectionConfig.URL", cfg.URL); err != nil {
		return nil, err
	}
	if cfg.ClientID == "" || cfg.ClientSecret == "" {
		return nil, errors.New("limpet: oauth: IntrospectionConfig.ClientID or ClientSecret is not set")
	}
	// Both are encoded before they are joined (RFC 6749, 2.3.1).
	id, secret := url.QueryEscape(cfg.ClientID), url.QueryEscape(cfg.ClientSecret)
	return &Introspection{
		url:       cfg.URL,
		issuer:    cfg.Issuer,
		audience:  cfg.Audience,
		client:    limited(cfg.Client),
		authorize: func(r *http.Request) { r.SetBasicAuth(id, secret) },
		now:       time.Now,
		asking:    make(map[[sha256.Size]byte]*question),
	}, nil
}

// Confirm returns whom a token belongs to and what it is bound to. The caller
// does not modify it. An error is a *[proof.Refusal].
func (i *Introspection) Confirm(ctx context.Context, token string) (*proof.Confirmation, error) {
	if err := read(token); err != nil {
		return nil, err
	}
	id := sha256.Sum256([]byte(token))
	if c := i.memory.get(id, i.now(), nil); c != nil {
		return c, nil
	}
	i.mu.Lock()
	q := i.asking[id]
	if q == nil {
		if len(i.asking) >= maxAsking {
			i.mu.Unlock()
			return nil, refuse(proof.Unavailable, "too many tokens are asked about")
		}
		q = &question{done: make(chan struct{})}
		i.asking[id] = q
		go func() { // it outlives the request that asks: others wait for it too
			q.confirmed, q.err = i.introspect(id, token)
			i.mu.Lock()
			delete(i.asking, id)
			i.mu.Unlock()
			close(q.done)
		}()
	}
	i.mu.Unlock()
	if err := wait(ctx, q.done); err != nil {
		return nil, err
	}
	return q.confirmed, q.err
}

// introspect asks the issuer about a token and remembers a good one.
func (i *Introspection) introspect(id [sha256.Size]byte, token string) (*proof.Confirmation, error) {
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}
	r, err := http.NewRequest(http.MethodPost, i.url, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, unavailable(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	i.authorize(r)
	now := i.now() // the answer is no older than this
	b, err := ask(i.client, r, maxAnswer)
	if err != nil {
		return nil, unavailable(err)
	}
	var answer struct {
		Active *bool `json:"active"`
	}
	if json.Unmarshal(b, &answer) != nil || answer.Active == nil {
		return nil, unavailable(errors.New("limpet: oauth: not an answer about a token"))
	}
	if !*answer.Active {
		return nil, refuse(proof.SessionEnded, "the issuer says that the token is not active")
	}
	var c claims
	if json.Unmarshal(b, &c) != nil {
		return nil, unavailable(errors.New("limpet: oauth: an answer with claims of the wrong type"))
	}
	if i.issuer != "" && c.Issuer != i.issuer {
		return nil, refuse(proof.SessionUnbound, "a token of another issuer")
	}
	confirmed, err := c.confirm(i.audience, now)
	if err != nil {
		return nil, err
	}
	until := now.Add(rememberAnswer)
	if c.Expiry == nil {
		confirmed.Expires = until
	}
	i.memory.put(id, remembered{confirmed, earlier(confirmed.Expires, until), nil})
	return confirmed, nil
}

func unavailable(err error) error {
	return &proof.Refusal{Reason: proof.Unavailable, Detail: "the issuer's introspection endpoint", Err: err}
}
