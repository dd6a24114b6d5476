package seat

import "time"

// SetEvery has Watch ask as often as that, and returns what it was.
func SetEvery(d time.Duration) time.Duration {
	defer func() { every = d }()
	return every
}
