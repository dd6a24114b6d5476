package authserver

import (
	"crypto/sha256"
	"sync"
	"time"
)

// Failed logins of one user name: ten at once, then one every ten seconds. That
// slows down guessing, and an attacker who keeps failing for alice on purpose
// delays her, but never locks her out.
const (
	failureBurst = 10
	failurePause = 10 * time.Second
	maxFailures  = 4096 // names remembered
)

// failures remembers, for a bounded number of user names, until when their
// failed logins count. Names that exist and names that do not are alike.
type failures struct {
	*sync.Mutex
	until map[[sha256.Size]byte]time.Time // by the hash of the name; each failure adds a pause
	now   func() time.Time
}

func newFailures() failures {
	return failures{new(sync.Mutex), make(map[[sha256.Size]byte]time.Time), time.Now}
}

// wait returns how long a user must wait before the next login, 0 if not at all.
func (f failures) wait(name string) time.Duration {
	f.Lock()
	defer f.Unlock()
	until, known := f.until[sha256.Sum256([]byte(name))]
	if !known {
		return 0
	}
	return max(0, until.Sub(f.now())-(failureBurst-1)*failurePause)
}

// add counts a failed login.
func (f failures) add(name string) {
	f.Lock()
	defer f.Unlock()
	id, now := sha256.Sum256([]byte(name)), f.now()
	until, known := f.until[id]
	if !known {
		f.makeRoom(now)
	}
	counting := failurePause
	if until.After(now) {
		counting += until.Sub(now)
	}
	f.until[id] = now.Add(min(counting, failureBurst*failurePause)) // more when many fail together
}

// clear forgets a user's failed logins.
func (f failures) clear(name string) {
	f.Lock()
	defer f.Unlock()
	delete(f.until, sha256.Sum256([]byte(name)))
}

// makeRoom forgets names whose failures no longer count and, if that is not
// enough, any one: to push a name out costs its attacker thousands of failures.
func (f failures) makeRoom(now time.Time) {
	if len(f.until) < maxFailures {
		return
	}
	for id, until := range f.until {
		if !now.Before(until) {
			delete(f.until, id)
		}
	}
	for id := range f.until {
		if len(f.until) < maxFailures {
			break
		}
		delete(f.until, id)
	}
}
