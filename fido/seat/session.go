package seat

import (
	"context"
	"fmt"
)

// Session is a user's session.
type Session struct {
	ID     string // each login has another
	UID    int
	Leader uint32 // the process that began it, and is there for as long as it is
}

// ActiveSession returns the session of the user whom [ActiveUser] returns.
func ActiveSession(ctx context.Context) (Session, error) {
	s, err := activeSession(ctx)
	if err != nil {
		return Session{}, fmt.Errorf("limpet: seat: %w", err)
	}
	return s, nil
}
