package handshake

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"
)

// A stranger can fail as often as they like, and must not fill the disk by it:
// so many lines at once, then one a second.
const (
	logBurst    = 10
	logInterval = time.Second
)

// refusals logs what was refused. It tells nothing that a peer has said of
// itself.
type refusals struct {
	logger *slog.Logger

	mu       sync.Mutex
	left     int       // lines that may be written now
	filled   time.Time // when left last grew
	unlogged int
}

func newRefusals(logger *slog.Logger) *refusals {
	return &refusals{logger: logger, left: logBurst, filled: time.Now()}
}

func (r *refusals) log(ctx context.Context, remote net.Addr, why error) {
	now := time.Now()
	r.mu.Lock()
	if n := int(now.Sub(r.filled) / logInterval); n > 0 {
		r.left = min(r.left+n, logBurst)
		r.filled = now
	}
	if r.left == 0 {
		r.unlogged++
		r.mu.Unlock()
		return
	}
	r.left--
	unlogged := r.unlogged
	r.unlogged = 0
	r.mu.Unlock()
	r.logger.LogAttrs(ctx, slog.LevelWarn, "limpet: handshake refused", slog.Any("remote", remote),
		slog.Any("why", why), slog.Int("unlogged", unlogged))
}

// lacks is what an operator who opts in to a wire has to know.
var lacks = map[Wire]string{
	Classic:       "the client never learns who the server is, challenge and answer can be relayed, and it is HMAC-MD5",
	ClassicSHA256: "the client never learns who the server is, and challenge and answer can be relayed",
	Python:        "it names nobody, so challenges and answers can be relayed between any two that share the secret",
}

func warn(cfg *Config) {
	what := lacks[cfg.Wire]
	if what == "" {
		return
	}
	if cfg.MD5 {
		what += "; and it may be HMAC-MD5"
	}
	cfg.logger().Warn("limpet: handshake: a wire that proves less than Limpet's own is in use", "lacks", what)
}

var (
	warnMu sync.Mutex
	warned = make(map[Wire]time.Time)
)

// warnRarely warns at most once a minute for each wire: strangers decide how
// often a server runs.
func warnRarely(cfg *Config) {
	if cfg.Wire == Limpet {
		return
	}
	warnMu.Lock()
	last, ok := warned[cfg.Wire]
	again := !ok || time.Since(last) >= time.Minute
	if again {
		warned[cfg.Wire] = time.Now()
	}
	warnMu.Unlock()
	if again {
		warn(cfg)
	}
}
