//go:build unix

package events

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"
)

const (
	// clockLook is how often the clocks are compared while nobody emits anything.
	clockLook = 10 * time.Second
	// clockTolerance is by how much the clock may move at once: a leap second, and
	// what passes between one and the other clock's reading of a file's time.
	clockTolerance = 2 * time.Second
	// clockSlew is the part of the time that passed by which the clock may have been
	// brought right bit by bit: twice what adjtimex(2) does.
	clockSlew = 1000
	// maxMarks bounds the events of an hour that tell of jumps. What comes beyond is
	// told of in one when the hour is over.
	maxMarks = 10
)

// clockWatch finds jumps of the wall clock by a steady one. Whoever has the spool's
// turn owns it.
type clockWatch struct {
	now    func() time.Time
	steady func() time.Duration // nil finds none

	last   time.Duration // what the steady clock said at the last look
	origin time.Time     // what the wall clock says when the steady one says 0

	// Of the jumps that no event tells of yet.
	jumps   int
	before  time.Time // origin before the first of them
	stopped bool      // one came while the process did not run

	hour  time.Duration // when an hour began, by the steady clock
	marks int           // the events in it
}

// newClockWatch begins with the clocks as they are. written is when an earlier
// process wrote last: the clock that gave that time cannot be behind it now.
func newClockWatch(cfg EmitterConfig, written time.Time) *clockWatch {
	w := &clockWatch{now: cfg.Now, steady: cfg.Steady}
	if w.steady == nil {
		return w
	}
	w.last = w.steady()
	w.hour = w.last
	now := w.now().Round(0)
	w.origin = now.Add(-w.last)
	if written.Sub(now) > clockTolerance {
		w.jumps, w.stopped, w.before = 1, true, written.Add(-w.last)
	}
	return w
}

// look compares the clocks and reports whether there is something to tell.
func (w *clockWatch) look() bool {
	if w.steady == nil {
		return false
	}
	before := w.steady()
	wall := w.now().Round(0) // without Go's own steady clock, which stands still while the machine sleeps
	after := w.steady()
	// wall was read in between, and that may have taken any time.
	moved := inside(0, wall.Add(-after).Sub(w.origin), wall.Add(-before).Sub(w.origin))
	slew := (after - w.last) / clockSlew
	slewed := inside(moved, -slew, slew)
	w.last = after
	if (moved - slewed).Abs() <= clockTolerance {
		w.origin = w.origin.Add(slewed)
	} else {
		if w.jumps == 0 {
			w.before = w.origin
		}
		w.jumps++
		w.origin = w.origin.Add(moved)
	}
	if after-w.hour >= time.Hour {
		w.hour, w.marks = after, 0
	}
	return w.jumps > 0 && w.marks < maxMarks
}

// inside returns what is nearest to d from lo to hi.
func inside(d, lo, hi time.Duration) time.Duration { return max(lo, min(d, hi)) }

// mark returns the event that tells of the jumps.
func (w *clockWatch) mark() Event {
	before, after := w.before.Add(w.last), w.origin.Add(w.last)
	moved, way := after.Sub(before), "forward"
	if moved < 0 {
		way = "back"
	}
	text := fmt.Sprintf("the clock went %s by %s", way, moved.Abs().Round(time.Millisecond))
	if w.jumps > 1 {
		text = fmt.Sprintf("the clock jumped %d times: in all it went %s by %s", w.jumps, way, moved.Abs().Round(time.Millisecond))
	}
	return Event{Name: ClockJump, Time: after, Error: text, Fields: map[string]any{
		"moved_ms": moved, "before": before.UTC().Format(timeForm), "after": after.UTC().Format(timeForm),
		"jumps": w.jumps, "stopped": w.stopped,
	}}
}

// told notes that an event tells of the jumps so far.
func (w *clockWatch) told() {
	w.jumps, w.stopped = 0, false
	w.marks++
}

// write makes records durable. When the clock has jumped, an event that says so
// comes first: all of these, and none that carries the new time was before.
func (e *Emitter) write(callers [][][]byte) error {
	jumped := e.clock.look()
	if jumped {
		record, err := e.encode(e.clock.mark())
		if err != nil { // a clock that says no time an event could carry
			e.cfg.Log.Error("a jump of the clock is not in the audit log", zap.Error(err))
			e.clock.told()
			jumped = false
		} else {
			callers = append([][][]byte{{record}}, callers...)
		}
	}
	if err := e.spool.write(callers); err != nil {
		return err
	}
	if jumped {
		e.clock.told()
	}
	return nil
}

// watchClock looks at the clock until ctx ends, whether anybody emits or not. A
// spool that takes nothing is told of the jump with its next event.
func (e *Emitter) watchClock(ctx context.Context) {
	for e.clock.steady != nil {
		if wait(ctx, clockLook); ctx.Err() != nil {
			return
		}
		_ = e.spool.records.do(ctx.Done(), nil, e.write)
	}
}
