package admin

import (
	"context"
	"encoding/binary"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/proof"
)

const (
	span  = 5 * time.Second
	spans = 360 // half an hour

	rows   = 1 << 15 // for sessions that were seen: 2 MiB
	places = 8       // in each: a line of a processor's cache
)

// Recent is what this process decided of late: when it last admitted a session, to
// a span of five seconds, and how many decisions of each kind fell in each span of
// the last half hour. It begins with the process and knows nothing of other servers.
//
// A request pays a few reads for it, and no lock. Sessions share a line of places by
// their IDs. Where more are active than it has places, the one that was not seen for
// the longest time is forgotten: of a hundred thousand about one in five hundred.
type Recent struct {
	started time.Time
	now     atomic.Uint32           // unix seconds, of the last span's beginning
	seen    [][places]atomic.Uint64 // unix seconds, what proved it, and more of the session's ID

	totals func(yield func(limpet.Result, proof.Reason, uint64))
	mu     sync.Mutex
	kinds  map[kind]*counts
	taken  int       // spans that were counted so far
	until  time.Time // end of the last one
}

type kind struct {
	result limpet.Result
	reason proof.Reason
}

type counts struct {
	total uint64
	spans [spans]uint64 // a ring: the span after taken%spans is the oldest
}

// vias are what a place can say of a proof, by their number.
var vias = []limpet.Format{"", limpet.NoProof, limpet.RFC9421, limpet.HWSign, limpet.DPoP, limpet.ByCertificate, limpet.ByChannel, limpet.ByCookie, limpet.DBSC}

const (
	viaBits, tagBits = 4, 28
	tagMask          = 1<<tagBits - 1
)

// NewRecent returns one that counts what totals tells: how many decisions of each
// kind fell since the process started.
func NewRecent(totals func(yield func(limpet.Result, proof.Reason, uint64))) *Recent {
	r := &Recent{started: time.Now(), seen: make([][places]atomic.Uint64, rows), totals: totals, kinds: make(map[kind]*counts)}
	r.until = r.started
	r.now.Store(uint32(r.started.Unix()))
	return r
}

// Run counts until ctx is done.
func (r *Recent) Run(ctx context.Context) {
	tick := time.NewTicker(span)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			r.step(now)
		}
	}
}

// step ends a span.
func (r *Recent) step(now time.Time) {
	r.now.Store(uint32(now.Unix()))
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.taken % spans
	for _, c := range r.kinds {
		c.spans[at] = 0
	}
	r.totals(func(result limpet.Result, reason proof.Reason, total uint64) {
		k := kind{result, reason}
		c := r.kinds[k]
		if c == nil {
			if total == 0 {
				return
			}
			c = new(counts)
			r.kinds[k] = c
		}
		c.spans[at], c.total = total-c.total, total
	})
	r.taken++
	r.until = now
}

// Decided is a [limpet.Config].Decided.
func (r *Recent) Decided(_ context.Context, d *limpet.Decision) {
	if d.Result != limpet.Admitted && d.Result != limpet.Bound || d.Session == (limpet.ID{}) {
		return
	}
	via := max(0, slices.Index(vias, d.Format))
	// Whoever makes up tokens is admitted in mode prefer, as nobody. Of those only
	// who was seen before is noted, or strangers would have all others forgotten.
	nobody := d.Result == limpet.Admitted && d.Level == limpet.None && d.User == ""
	line, tag := r.line(d.Session)
	now := uint64(r.now.Load())<<(viaBits+tagBits) | uint64(via)<<tagBits | tag
	known, oldest := false, &line[0]
	for i := range line {
		at := line[i].Load()
		if at == now {
			return // to write it again would take the line away from other processors
		}
		if at&tagMask == tag {
			known, oldest = at != 0, &line[i]
			break
		}
		if at < oldest.Load() {
			oldest = &line[i]
		}
	}
	if known || !nobody {
		oldest.Store(now)
	}
}

// line returns a session's line, and what tells it from others there. An ID is a
// hash, so any of its bits will do.
func (r *Recent) line(id limpet.ID) (line *[places]atomic.Uint64, tag uint64) {
	bits := binary.BigEndian.Uint64(id[:])
	return &r.seen[bits%rows], bits >> (64 - tagBits)
}

// of returns when a session was last admitted and how it proved itself; zero if
// that is not known.
func (r *Recent) of(id limpet.ID) (unix int64, via limpet.Format) {
	line, tag := r.line(id)
	for i := range line {
		if at := line[i].Load(); at != 0 && at&tagMask == tag {
			return int64(at >> (viaBits + tagBits)), vias[at>>tagBits&(1<<viaBits-1)]
		}
	}
	return 0, ""
}

// history is what GET /history answers. Counts are the newest last, one a span.
type history struct {
	Started int64    `json:"started"` // unix seconds
	Until   int64    `json:"until"`   // the end of the last span
	Span    int      `json:"span"`    // seconds
	Series  []series `json:"series"`
}

type series struct {
	Result limpet.Result `json:"result"`
	Reason proof.Reason  `json:"reason,omitempty"`
	Total  uint64        `json:"total"` // since the start, up to until
	Counts []uint64      `json:"counts"`
}

func (r *Recent) history() history {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := history{Started: r.started.Unix(), Until: r.until.Unix(), Span: int(span / time.Second), Series: []series{}}
	for k, c := range r.kinds {
		s := series{Result: k.result, Reason: k.reason, Total: c.total}
		for i := max(0, r.taken-spans); i < r.taken; i++ {
			s.Counts = append(s.Counts, c.spans[i%spans])
		}
		h.Series = append(h.Series, s)
	}
	return h
}

func (a *API) serveHistory(w http.ResponseWriter, _ *http.Request) { answer(w, a.cfg.Recent.history()) }
