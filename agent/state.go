package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/internal/private"
)

const (
	maxIdle  = 30 * 24 * time.Hour // that a session is not used until it is forgotten
	useAgain = 24 * time.Hour      // until another use is written down
	maxState = 4 << 20             // bytes of the file
)

// state is what is remembered of sessions across restarts.
type state struct {
	lock *private.Locked

	mu      sync.Mutex
	written []byte               // what the file has
	used    map[string]time.Time // by device key, to the day
	resting []record             // whose keystore does not open
}

// record is a session in the file.
type record struct {
	Keystore string         `json:"keystore"` // Config.Kind
	Used     time.Time      `json:"used"`     // last, to the day
	Session  client.Session `json:"session"`
}

type stateFile struct {
	Version  int      `json:"version"`
	App      string   `json:"app"`
	Sessions []record `json:"sessions"` // least recently used first
}

const stateVersion = 1

// open takes up the sessions of before.
func (a *Agent) open(ctx context.Context) (err error) {
	a.state.used = make(map[string]time.Time)
	if a.state.lock, err = private.Lock(a.cfg.State + ".lock"); err != nil {
		if errors.Is(err, private.ErrLocked) {
			return fmt.Errorf("another agent for %s is running", a.origin())
		}
		return fmt.Errorf("the file of sessions: %w", err)
	}
	records, err := a.read()
	if err != nil {
		a.state.lock.Close()
		return err
	}
	for _, r := range records {
		w := a.walletOf(r.Keystore)
		if w == nil {
			a.state.resting = append(a.state.resting, r)
			continue
		}
		if err := w.client.Restore(ctx, r.Session); err != nil {
			a.log.Warn("limpet: agent: a session is lost: log in again", "why", err)
			continue
		}
		a.state.used[r.Session.Key] = r.Used
	}
	a.expire(ctx)
	return nil
}

// expire forgets the sessions that nobody uses.
func (a *Agent) expire(ctx context.Context) {
	for _, w := range a.wallets {
		for _, s := range w.client.Sessions() {
			a.state.mu.Lock()
			used, ok := a.state.used[s.Key]
			a.state.mu.Unlock()
			if ok && time.Since(used) > maxIdle {
				a.end(ctx, w, s, "nobody has used it for long")
			}
		}
	}
}

func (a *Agent) read() ([]record, error) {
	text, err := os.ReadFile(a.cfg.State)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the file of sessions: %w", err)
	}
	var f stateFile
	switch err := json.Unmarshal(text, &f); {
	case err != nil || len(text) > maxState:
		a.log.Warn("limpet: agent: the file of sessions is damaged: log in again", "file", a.cfg.State)
		return nil, nil
	case f.Version != stateVersion:
		return nil, fmt.Errorf("%s is of version %d, which this agent does not know", a.cfg.State, f.Version)
	case f.App != a.origin():
		return nil, fmt.Errorf("%s is of another app", a.cfg.State)
	}
	a.state.written = bytes.TrimSuffix(text, []byte("\n"))
	return f.Sessions, nil
}

// walletOf returns the wallet of a kind of keystore, nil if that does not open.
func (a *Agent) walletOf(kind string) *wallet {
	for _, w := range a.wallets {
		if w.kind == kind {
			return w
		}
	}
	for _, r := range a.state.resting {
		if r.Keystore == kind {
			return nil // it was tried
		}
	}
	if a.cfg.Open == nil {
		return nil
	}
	keys, err := a.cfg.Open(kind)
	if err != nil {
		a.log.Warn("limpet: agent: sessions rest: their keystore does not open", "keystore", kind, "why", err)
		return nil
	}
	w := a.newWallet(kind, keys)
	a.wallets = append(a.wallets, w)
	return w
}

// use notes that a session was used.
func (a *Agent) use(key string) {
	a.state.mu.Lock()
	again := time.Since(a.state.used[key]) > useAgain
	if again {
		a.state.used[key] = today()
	}
	a.state.mu.Unlock()
	if again { // once a day, if anybody is there
		a.expire(context.Background())
		a.note()
	}
}

// today is all that the file tells of when a session was used.
func today() time.Time { return time.Now().UTC().Truncate(useAgain) }

// note is save for those who go on whatever comes of it.
func (a *Agent) note() {
	if err := a.save(); err != nil {
		a.log.Error("limpet: agent: sessions are not written down: they end with this process", "why", err)
	}
}

// save writes down the sessions that there are, if the file has others. Of those
// who wait for it while it writes, the next writes for all.
func (a *Agent) save() error {
	s := &a.state
	s.mu.Lock()
	defer s.mu.Unlock()
	f := stateFile{Version: stateVersion, App: a.origin(), Sessions: slices.Clone(s.resting)}
	used := make(map[string]time.Time)
	for _, w := range a.wallets {
		for _, session := range slices.Backward(w.client.Sessions()) {
			at, ok := s.used[session.Key]
			if !ok {
				at = today()
				a.log.Info("limpet: agent: a login is bound to a device key", "key", session.Key)
			}
			used[session.Key] = at
			f.Sessions = append(f.Sessions, record{w.kind, at, session})
		}
	}
	s.used = used
	slices.SortStableFunc(f.Sessions, func(a, b record) int { return a.Used.Compare(b.Used) })
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("limpet: agent: %w", err)
	}
	if bytes.Equal(text, s.written) || len(f.Sessions) == 0 && s.written == nil {
		return nil
	}
	if err := private.Write(a.cfg.State, append(text, '\n')); err != nil {
		return fmt.Errorf("limpet: agent: %w", err)
	}
	s.written = text
	return nil
}
