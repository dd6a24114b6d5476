package proof

// Reason says why a request was refused, in a word a program can branch on.
// The set is small on purpose: a peer learns what it must do next, not which
// check it failed.
type Reason string

const (
	Required   Reason = "proof_required"     // a bound session came without a proof: send one
	Malformed  Reason = "proof_malformed"    // the proof or key cannot be read: a bug in the client
	Invalid    Reason = "proof_invalid"      // the proof does not hold: log in again
	KeyUnknown Reason = "key_unknown"        // the ephemeral key is not known, or its lease is over: introduce one
	ClockSkew  Reason = "clock_skew"         // the proof's time is outside the window: set the clock
	NonceSpent Reason = "nonce_spent"        // this value was used before: make a new one
	NonceWeak  Reason = "nonce_required"     // the route wants a time and a random part in the value
	BodyDiffer Reason = "body_mismatch"      // the proof does not cover this body
	BodyLarge  Reason = "body_too_large"     // the body is over what the route reads to hash it
	Stale      Reason = "challenge_required" // the proof must cover the server's current challenge
	NoChannel  Reason = "channel_required"   // the proof must be made with the key of its TLS connection
	TooLarge   Reason = "header_too_large"   // a proof's header or the session token is over 8 KiB

	SessionRequired Reason = "session_required" // no session token, and the route wants a bound session
	SessionUnbound  Reason = "session_unbound"  // the session is not bound, and the route wants a bound one
	SessionEnded    Reason = "session_ended"    // the session was revoked or is over: log in again
	LevelTooLow     Reason = "level_too_low"    // the route wants a stronger keeper of the device key
	NoClient        Reason = "client_required"  // the route wants a client with a token of its TLS connection
	Unavailable     Reason = "unavailable"      // the guard's store cannot answer: try again later
)

// Refusal is the error of a request that is not admitted.
type Refusal struct {
	Reason Reason // for the peer
	Detail string // for the log; never repeats what the peer sent
	Err    error  // the cause, if there is one; for the log
}

// Error returns the words for the log.
func (r *Refusal) Error() string {
	s := "limpet: " + string(r.Reason)
	if r.Detail != "" {
		s += ": " + r.Detail
	}
	if r.Err != nil {
		s += ": " + r.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Err }

// Message returns a sentence for the person at the client, the same for
// every refusal of this reason.
func (r Reason) Message() string {
	switch r {
	case Required:
		return "this session is bound to a device: the request needs a proof of its key"
	case Malformed:
		return "the proof, key or session token cannot be read"
	case Invalid:
		return "the proof does not hold for this session"
	case KeyUnknown:
		return "the ephemeral key is not known or its lease is over: introduce a new one"
	case ClockSkew:
		return "the proof's time is too far from the server's clock: check the device's clock"
	case NonceSpent:
		return "this proof was used before: every request needs its own"
	case NonceWeak:
		return "this route needs a nonce: a time and a random part in the signed value"
	case BodyDiffer:
		return "the proof does not cover this body"
	case Stale:
		return "the proof must cover the server's current challenge"
	case NoChannel:
		return "the proof must be bound to its TLS connection"
	case BodyLarge:
		return "the body is larger than this route reads"
	case TooLarge:
		return "a header is too large"
	case SessionRequired:
		return "log in first"
	case SessionUnbound:
		return "this route needs a session that is bound to a device"
	case SessionEnded:
		return "this session is over: log in again"
	case LevelTooLow:
		return "this route needs a device key that is kept by hardware"
	case NoClient:
		return "this route needs a client with a token of its TLS connection"
	case Unavailable:
		return "this cannot be checked at the moment: try again"
	}
	return "refused"
}
