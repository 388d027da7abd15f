package events

import (
	"time"

	"golang.org/x/sys/unix"
)

// steadyClock returns the time since the machine started. It goes on while the
// machine sleeps, as the wall clock does, so that sleep is no jump.
func steadyClock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("events: internal error: the system has no CLOCK_BOOTTIME: " + err.Error()) // Linux has had it since 2.6.39
	}
	return time.Duration(ts.Nano())
}
