//go:build unix && !linux

package events

import "time"

var started = time.Now() //nolint:gochecknoglobals // never changes

// steadyClock returns the time since this process started. It may stand still
// while the machine sleeps, which then looks like a jump of the clock.
func steadyClock() time.Duration { return time.Since(started) }
