package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/internal/incoming"
)

// Decision is a decision as the API has it.
type Decision struct {
	Time    time.Time     `json:"time"`
	Result  limpet.Result `json:"result"`
	Reason  string        `json:"reason,omitempty"`
	Why     string        `json:"why,omitempty"`
	Cause   string        `json:"cause,omitempty"`
	Format  limpet.Format `json:"format"`
	Method  string        `json:"method,omitempty"`
	Path    string        `json:"path,omitempty"`
	Session string        `json:"session,omitempty"`
	User    string        `json:"user,omitempty"`
	Level   limpet.Level  `json:"level,omitempty"`
	Key     string        `json:"key,omitempty"`
	Client  string        `json:"client,omitempty"`
	Took    float64       `json:"took,omitempty"` // seconds

	// Lost is how many decisions fell between the one before and this one that the
	// reader was too slow for.
	Lost int `json:"lost,omitempty"`
}

const (
	maxWatchers = 16   // at a time
	waiting     = 1024 // decisions that may wait for a watcher
	maxText     = 1024 // bytes of a path and of an error
)

// Decisions hands decisions on to those who watch, and costs nothing while nobody
// does. The zero value is ready.
type Decisions struct {
	watched  atomic.Bool
	mu       sync.Mutex
	watchers []*watcher
}

type watcher struct {
	filter Filter
	quiet  bool // but for admissions
	queue  chan Decision
	lost   int
}

// Decided is a [limpet.Config].Decided. It does not wait for watchers.
func (d *Decisions) Decided(_ context.Context, of *limpet.Decision) {
	if !d.watched.Load() {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var seen *Decision
	for _, w := range d.watchers {
		if w.quiet && of.Result == limpet.Admitted || !w.filter.matches(of.User, of.Key, of.Level) {
			continue
		}
		if seen == nil {
			seen = decision(of)
		}
		seen.Lost = w.lost
		select {
		case w.queue <- *seen:
			w.lost = 0
		default:
			w.lost++
		}
	}
}

func decision(of *limpet.Decision) *Decision {
	d := &Decision{Time: time.Now(), Result: of.Result, Reason: string(of.Reason), Cause: of.Cause, Format: of.Format, Method: bounded(of.Method), Path: bounded(of.Path),
		User: of.User, Level: of.Level, Key: of.Key, Client: of.Client, Took: of.Took.Seconds()}
	if of.Err != nil {
		d.Why = bounded(of.Err.Error())
	}
	if of.Session != (limpet.ID{}) {
		d.Session = of.Session.String()
	}
	return d
}

// bounded returns a copy: what waits must not hold the request that it is a part of.
func bounded(s string) string { return strings.Clone(s[:min(len(s), maxText)]) }

// watch returns a new watcher, nil if there are enough; a quiet one is not told of
// admissions.
func (d *Decisions) watch(f Filter, quiet bool) *watcher {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.watchers) == maxWatchers {
		return nil
	}
	w := &watcher{filter: f, quiet: quiet, queue: make(chan Decision, waiting)}
	d.watchers = append(d.watchers, w)
	d.watched.Store(true)
	return w
}

func (d *Decisions) leave(w *watcher) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watchers = slices.DeleteFunc(d.watchers, func(other *watcher) bool { return other == w })
	d.watched.Store(len(d.watchers) > 0)
}

func (a *API) serveDecisions(w http.ResponseWriter, r *http.Request) {
	admitted := "yes"
	filter, ok := readFilter(w, r, map[string]*string{"admitted": &admitted})
	if !ok {
		return
	}
	if admitted != "yes" && admitted != "no" {
		incoming.Answer(w, http.StatusBadRequest, "bad_request", "admitted is yes or no")
		return
	}
	watcher := a.cfg.Decisions.watch(filter, admitted == "no")
	if watcher == nil {
		incoming.Answer(w, http.StatusTooManyRequests, "too_many_watchers", "16 are watching already")
		return
	}
	defer a.cfg.Decisions.leave(watcher)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	control, enc := unhurried(w), json.NewEncoder(w)
	if control.Flush() != nil {
		return
	}
	for {
		select {
		case <-r.Context().Done():
			return
		case d := <-watcher.queue:
			control.SetWriteDeadline(time.Now().Add(patience))
			if enc.Encode(d) != nil || len(watcher.queue) == 0 && control.Flush() != nil {
				return
			}
		}
	}
}
