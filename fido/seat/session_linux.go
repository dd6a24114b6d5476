package seat

import "context"

func activeSession(ctx context.Context) (s Session, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	l, err := connect(ctx)
	if err != nil {
		return s, err
	}
	defer l.bus.Close()
	var active session
	if err := l.get(ctx, seat0, "Seat", "ActiveSession", &active); err != nil {
		return s, err
	}
	s.ID = active.ID
	if s.UID, err = l.userOf(ctx, active); err != nil {
		return s, err
	}
	return s, l.get(ctx, active.Path, "Session", "Leader", &s.Leader)
}
