// Package admin is the operator's side of a running server: its sessions, its
// decisions as they fall, its metrics and health. It is served where only the
// operator gets to: on a Unix socket, or on a loopback port with a token, where the
// console is too.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/proof"
)

// Config is what the admin API is made from. All of it but TPM must be set.
type Config struct {
	Guard     func() *limpet.Guard // the one that decides now
	Store     limpet.Store         // which readiness asks for
	Decisions *Decisions           // those of the guard
	Recent    *Recent              // the same
	Metrics   http.Handler
	Logger    *slog.Logger

	Service   string // what runs, as limpet-gateway
	Version   string
	StoreKind string // a word, as bolt

	// TPM has the server's TPM do what the server needs of it, and reports whether
	// anything in the server needs one now. It may be nil.
	TPM func(context.Context) (used bool, err error)
}

// API is the admin API.
//
//	GET    /sessions              live sessions, one JSON object a line; ?user=, ?key= and ?level= choose
//	GET    /sessions/ID           one session, also if it is over
//	DELETE /sessions/ID           {"revoked":1}
//	DELETE /sessions?user= ?key=  {"revoked":n}; ?level= narrows it
//	GET    /decisions             decisions as they fall, one JSON object a line; ?user=, ?key= and ?level= choose, ?admitted=no leaves out what was admitted
//	GET    /history               how many decisions of each kind fell, see [Recent]
//	GET    /status                what runs since when, and how store and TPM fare
//	GET    /metrics               for Prometheus
//	GET    /livez                 200 if the server runs
//	GET    /readyz                200 if its store answers, else 503
//
// What goes wrong is answered with JSON {"message","reason"}.
type API struct {
	cfg    Config
	health *http.ServeMux // metrics too: what names nobody
	all    *http.ServeMux
}

// New returns the admin API.
func New(cfg Config) *API {
	a := &API{cfg: cfg, health: http.NewServeMux(), all: http.NewServeMux()}
	for _, mux := range []*http.ServeMux{a.health, a.all} {
		mux.Handle("GET /metrics", cfg.Metrics)
		mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]any{"status": "alive"}) })
		mux.HandleFunc("GET /readyz", a.serveReady)
		mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
			incoming.Answer(w, http.StatusNotFound, "not_found", "there is nothing here that is asked for in this way")
		})
	}
	a.all.HandleFunc("GET /sessions", a.serveList)
	a.all.HandleFunc("DELETE /sessions", a.serveRevokeAll)
	a.all.HandleFunc("GET /sessions/{id}", a.serveShow)
	a.all.HandleFunc("DELETE /sessions/{id}", a.serveRevoke)
	a.all.HandleFunc("GET /decisions", a.serveDecisions)
	a.all.HandleFunc("GET /history", a.serveHistory)
	a.all.HandleFunc("GET /status", a.serveStatus)
	return a
}

// session is a session as the API has it. Times are unix seconds.
type session struct {
	Session string       `json:"session"`
	User    string       `json:"user"`
	Level   limpet.Level `json:"level"`
	Key     string       `json:"key,omitempty"`
	Created int64        `json:"created"`
	Expires int64        `json:"expires"`
	Ended   int64        `json:"ended,omitempty"`
	Root    string       `json:"root,omitempty"`

	// When this process last admitted it, to a few seconds, and by which proof; see [Recent].
	Seen int64         `json:"seen,omitempty"`
	Via  limpet.Format `json:"via,omitempty"`
}

// Describe returns a session as JSON, the same that the API serves.
func Describe(b *limpet.Binding) ([]byte, error) { return json.Marshal(describe(b)) }

func describe(b *limpet.Binding) session {
	s := session{Session: b.Session.String(), User: b.User, Level: b.Level, Key: b.Key, Created: b.Created.Unix(), Expires: b.Expires.Unix()}
	if !b.Ended.IsZero() {
		s.Ended = b.Ended.Unix()
	}
	if b.Root != (limpet.ID{}) {
		s.Root = b.Root.String()
	}
	return s
}

// describe also says what is known of the session here.
func (a *API) describe(b *limpet.Binding) session {
	s := describe(b)
	s.Seen, s.Via = a.cfg.Recent.of(b.Session)
	return s
}

func (s *session) binding() (*limpet.Binding, error) {
	id, err := limpet.ParseID(s.Session)
	if err != nil {
		return nil, err
	}
	b := &limpet.Binding{Session: id, User: s.User, Level: s.Level, Key: s.Key, Created: time.Unix(s.Created, 0), Expires: time.Unix(s.Expires, 0)}
	if s.Ended != 0 {
		b.Ended = time.Unix(s.Ended, 0)
	}
	if s.Root != "" {
		if b.Root, err = limpet.ParseID(s.Root); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// patience is how long a reader of a stream may take for what it has been sent.
const patience = 30 * time.Second

// unhurried takes a request out of the server's limits of time: to look through a
// large store takes as long as it takes.
func unhurried(w http.ResponseWriter) *http.ResponseController {
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Time{}) // which would end the request's context
	control.SetWriteDeadline(time.Time{})
	return control
}

func (a *API) serveList(w http.ResponseWriter, r *http.Request) {
	filter, ok := readFilter(w, r, nil)
	if !ok {
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	control, enc, n := unhurried(w), json.NewEncoder(w), 0
	err := Sessions{a.cfg.Guard()}.List(r.Context(), filter, func(b *limpet.Binding) bool {
		n++
		control.SetWriteDeadline(time.Now().Add(patience))
		return enc.Encode(a.describe(b)) == nil
	})
	control.SetWriteDeadline(time.Now().Add(patience)) // for what is still in the buffer
	if err != nil && n == 0 {
		a.fail(w, r, err)
		return
	}
	if err != nil {
		if r.Context().Err() == nil { // else the reader has seen enough
			a.cfg.Logger.ErrorContext(r.Context(), "limpet: admin: listing sessions", "why", err)
		}
		panic(http.ErrAbortHandler) // the list must not look complete
	}
}

func (a *API) serveShow(w http.ResponseWriter, r *http.Request) {
	id, ok := readID(w, r)
	if !ok {
		return
	}
	b, err := Sessions{a.cfg.Guard()}.Show(r.Context(), id)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	answer(w, a.describe(b))
}

func (a *API) serveRevoke(w http.ResponseWriter, r *http.Request) {
	id, ok := readID(w, r)
	if !ok {
		return
	}
	// Begun is done, whoever goes away meanwhile: the client, or the server.
	if err := (Sessions{a.cfg.Guard()}).Revoke(context.WithoutCancel(r.Context()), id); err != nil {
		a.fail(w, r, err)
		return
	}
	answer(w, revoked{1})
}

func (a *API) serveRevokeAll(w http.ResponseWriter, r *http.Request) {
	filter, ok := readFilter(w, r, nil)
	if !ok {
		return
	}
	if filter.User == "" && filter.Key == "" {
		incoming.Answer(w, http.StatusBadRequest, "bad_request", "say whose sessions, with user or key")
		return
	}
	unhurried(w)
	n, err := Sessions{a.cfg.Guard()}.RevokeAll(context.WithoutCancel(r.Context()), filter)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	answer(w, revoked{n})
}

type revoked struct {
	Revoked int `json:"revoked"`
}

// readyTime is how long the store may take before it counts as not there.
const readyTime = 2 * time.Second

// serveReady asks the store, without which every request of a bound session is
// refused. It does not ask the app: if that is away the gateway says so itself,
// and is of no use elsewhere either.
func (a *API) serveReady(w http.ResponseWriter, r *http.Request) {
	if a.ready(r.Context()) != nil {
		incoming.Answer(w, http.StatusServiceUnavailable, proof.Unavailable, "the store does not answer")
		return
	}
	answer(w, map[string]any{"status": "ready"})
}

// ready asks the store for something, and logs why if it does not answer.
func (a *API) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	_, _, err := a.cfg.Store.Get(ctx, "ready")
	if err != nil {
		a.cfg.Logger.WarnContext(ctx, "limpet: admin: not ready", "why", err)
	}
	return err
}

const noSuchSession = "no_such_session"

// fail answers what a guard could not do.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, limpet.ErrNoSession) {
		incoming.Answer(w, http.StatusNotFound, noSuchSession, "there is no such session")
		return
	}
	a.cfg.Logger.ErrorContext(r.Context(), "limpet: admin", "method", r.Method, "why", err)
	incoming.Answer(w, http.StatusServiceUnavailable, proof.Unavailable, "the store does not answer")
}

func readID(w http.ResponseWriter, r *http.Request) (limpet.ID, bool) {
	id, err := limpet.ParseID(r.PathValue("id"))
	if err != nil {
		incoming.Answer(w, http.StatusBadRequest, "bad_request", "not a session ID")
	}
	return id, err == nil
}

// readFilter reads the query, with what else may be in it. What is no filter is
// refused: a misspelled one would choose everything.
func readFilter(w http.ResponseWriter, r *http.Request, more map[string]*string) (f Filter, ok bool) {
	query, err := url.ParseQuery(r.URL.RawQuery) // URL.Query leaves out what it cannot read
	if err != nil {
		incoming.Answer(w, http.StatusBadRequest, "bad_request", "the query cannot be read")
		return f, false
	}
	fields := map[string]*string{"user": &f.User, "key": &f.Key, "level": (*string)(&f.Level)}
	maps.Copy(fields, more)
	for name, values := range query {
		to := fields[name]
		if to == nil || len(values) != 1 || values[0] == "" {
			incoming.Answer(w, http.StatusBadRequest, "bad_request", "the query takes "+strings.Join(slices.Sorted(maps.Keys(fields)), ", ")+", each once")
			return f, false
		}
		*to = values[0]
	}
	if !f.valid() {
		incoming.Answer(w, http.StatusBadRequest, "bad_request", "there is no such level")
		return f, false
	}
	return f, true
}

func answer(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	json.NewEncoder(w).Encode(body)
}
