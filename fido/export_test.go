package fido

import "time"

// StartedAt makes the token one that appeared at another time.
func (t *Token) StartedAt(at time.Time) { t.appeared.Store(&at) }
