package fido

import "time"

// StartedAt makes the token one that started at another time.
func (t *Token) StartedAt(at time.Time) { t.started = at }
