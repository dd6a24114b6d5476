package limpet

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/proof"
)

// Decision is what a guard decided: over a request, or over a session that it
// bound, carried over or ended. A request gets one, but for those that only begin
// well; see BrokenOff. A login gets one when its session is bound or not.
type Decision struct {
	Result Result
	Reason proof.Reason // why not; "" if nothing was refused
	Err    error        // the same at length, for the operator; nil if Reason is ""
	Format Format       // what carried the proof
	Cause  string       // of Skipped and Ended, in a word of a small set; see those

	Method string // "" where no request was there
	Path   string // as the client sent it, without the query and, in its segments, what follows a ";": tokens may be there

	// Session is the session's ID, of its login if the token was replaced since. Of
	// a request that proves nothing it is that of the token it came with, zero if it
	// came without: a thief's says the same.
	Session ID

	// Who is there. All of these are empty if nothing was proven.
	User   string
	Level  Level
	Key    string // see [Binding].Key
	Client string // see [Binding].Client

	// Took is how long the guard worked on a request, with the store's time and, where
	// the rule reads bodies, the body's; 0 for decisions over sessions.
	Took time.Duration
}

// Result is how a decision came out, in a word for logs and metrics.
type Result string

// The results. A request is one of the first three; Refused is also a login whose
// session could not be bound.
const (
	Admitted    Result = "admitted"
	Refused     Result = "refused"
	WouldRefuse Result = "would-refuse" // admitted in mode Observe, and not in another

	// BrokenOff is a request that was admitted, and then not to its end: its body
	// turned out to be another one, its answer was not fit to be handed out, or the
	// gateway refused what the guard had admitted.
	BrokenOff     Result = "broken-off"
	WouldBreakOff Result = "would-break-off" // the same in mode Observe

	Bound   Result = "bound"   // a login's session, to a device key or at level None
	Rebound Result = "rebound" // to the token that the app replaced its own by
	Revoked Result = "revoked"

	// Of what browsers do where Config.Browsers is set. Whether a browser can do it
	// at all shows in how many of the offered sessions are completed.
	Offered   Result = "offered"   // the browser of a login may register a key for its session
	Completed Result = "completed" // it has
	Refreshed Result = "refreshed" // it has got a new bound cookie
	Skipped   Result = "skipped"   // it has sent a request without: "unreachable", "server_error", "quota_exceeded", "other"
	Ended     Result = "ended"     // it was told to forget the session: "ended", "other-login", "unknown"
)

// Format says what carried a proof.
type Format string

// The formats.
const (
	NoProof       Format = "none" // none was there, or nobody came to look for one
	RFC9421       Format = "rfc9421"
	HWSign        Format = "hw-sign"
	DPoP          Format = "dpop"
	ByCertificate Format = "certificate" // of the TLS client (RFC 8705)
	ByChannel     Format = "channel"     // a client of package channel, instead of a session
	ByCookie      Format = "cookie"      // the bound cookie, by which a browser has proven its key in the last minutes
	DBSC          Format = "dbsc"        // a registration or refresh of a browser's key
)

// internalError is the reason of errors that are no refusals. [Refuse] answers
// them with 500.
const internalError proof.Reason = "internal_error"

// reasonFor returns why something was refused.
func reasonFor(err error) proof.Reason {
	var refusal *proof.Refusal
	if errors.As(err, &refusal) {
		return refusal.Reason
	}
	return internalError
}

// Report tells the log and Config.Decided of a decision that the caller took in
// the guard's place: before it asked the guard, or after. What is empty of Reason and
// Format follows from the rest.
func (g *Guard) Report(ctx context.Context, d *Decision) {
	if d.Reason == "" && d.Err != nil {
		d.Reason = reasonFor(d.Err)
	}
	d.Format, d.Path = cmp.Or(d.Format, NoProof), incoming.Told(d.Path)
	if level := d.Result.level(); g.cfg.Logger.Enabled(ctx, level) {
		g.cfg.Logger.LogAttrs(ctx, level, "limpet: "+strings.ReplaceAll(string(d.Result), "-", " "), d.attrs()...)
	}
	if g.cfg.Decided != nil {
		g.cfg.Decided(ctx, d)
	}
}

// level returns the level that a decision is logged at: what happens all the time
// is for those who ask.
func (r Result) level() slog.Level {
	switch r {
	case Admitted, Rebound, Offered, Refreshed:
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

const hashPrefix = 12 // characters of a hash in the log, 72 bits

// attrs returns what the log says of a decision.
func (d *Decision) attrs() []slog.Attr {
	attrs := make([]slog.Attr, 0, 12)
	text := func(name, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(name, value))
		}
	}
	text("reason", string(d.Reason))
	text("cause", d.Cause)
	if d.Err != nil {
		text("why", d.Err.Error())
	}
	text("method", d.Method)
	text("path", d.Path)
	if d.Method != "" {
		text("format", string(d.Format))
	}
	if d.Session != (ID{}) {
		text("session", d.Session.String()[:hashPrefix])
	}
	text("key", d.Key[:min(hashPrefix, len(d.Key))])
	text("user", d.User)
	text("level", string(d.Level))
	text("client", d.Client)
	if d.Took > 0 {
		attrs = append(attrs, slog.Float64("took", d.Took.Seconds()))
	}
	return attrs
}

// identify fills in who a session belongs to.
func (d *Decision) identify(b *Binding) {
	d.Session, d.User, d.Level, d.Key, d.Client = b.rootID(), b.User, b.Level, b.Key, b.Client
}

// listens reports whether somebody wants to know of requests that are admitted.
func (g *Guard) listens(ctx context.Context) bool {
	return g.cfg.Decided != nil || g.cfg.Logger.Enabled(ctx, Admitted.level())
}

// decisions holds Decisions between uses.
var decisions = sync.Pool{New: func() any { return new(Decision) }}

// decided reports the decision over a request: admitted with a binding, or refused
// with an error. start is when its check began, zero if nobody asks.
func (g *Guard) decided(ctx context.Context, r *Request, b *Binding, err error, result Result, start time.Time) {
	d := decisions.Get().(*Decision)
	*d = Decision{Result: result, Err: err, Format: r.format, Method: r.Method, Path: r.Path, Session: r.Session}
	switch {
	case err != nil:
	case b.Session != (ID{}):
		d.identify(b)
	default:
		d.Level, d.Client = b.Level, b.Client
	}
	if !start.IsZero() {
		d.Took = time.Since(start)
	}
	g.Report(ctx, d)
	*d = Decision{}
	decisions.Put(d)
}

// refuses returns the result of what a rule refuses, or would.
func (r Rule) refuses() Result {
	if r.Mode == Observe {
		return WouldRefuse
	}
	return Refused
}

func formatOf(w proof.Wire) Format {
	for i, wire := range wires {
		if wire == w {
			return formats[i]
		}
	}
	return NoProof
}
