//go:build unix

package events

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/accessd/accessd/lib/fault"
)

// F06: clocks jump, of one member by an hour, ten years back, over a leap second.
// The log keeps the order in which events came, says what each clock said, gives
// out each of them to who asks for a time, and verifies.
func TestF06ClockJumps(t *testing.T) {
	key, dir := newTestKey(t, "example.com/audit"), t.TempDir()
	l := openTestLog(t, dir, key)
	leap := time.Date(2016, 12, 31, 23, 59, 59, 999_999_000, time.UTC)
	var lines [][]byte
	var times []time.Time
	for i, at := range []time.Time{
		testTime, testTime.Add(time.Hour), testTime.Add(time.Second), testTime.Add(-time.Hour), testTime.Add(2 * time.Second),
		testTime.AddDate(-10, 0, 0), leap, leap.Add(time.Microsecond), testTime.AddDate(10, 0, 0), testTime.Add(3 * time.Second), time.Unix(0, 0).UTC(), testTime,
	} {
		times = append(times, at)
		lines = append(lines, encode(t, Event{Name: Exec, User: "alice", Success: true, Time: at, Fields: map[string]any{"command": fmt.Sprint(i)}}))
		mustAppend(t, l, lines[i]) // a batch each, as members send them
	}
	check := func(l *Log, when string) {
		t.Helper()
		checkSame(t, when+", all", contents(t, l, Filter{}), lines)
		checkSame(t, when+", read", readAll(t, l, Filter{}), lines)
		for i, since := range times {
			var want [][]byte
			for j, at := range times {
				if !at.Before(since) && at.Before(since.Add(time.Minute)) {
					want = append(want, lines[j])
				}
			}
			checkSame(t, fmt.Sprintf("%s, the minute from event %d", when, i), contents(t, l, Filter{Since: since, Until: since.Add(time.Minute)}), want)
		}
	}
	check(l, "as they came")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	check(openTestLog(t, dir, key), "opened again")
	if r, err := Verify(t.Context(), dir, key.verifier); err != nil || r.Size != uint64(len(lines)) {
		t.Errorf("Verify = %+v, %v", r, err)
	}
}

// clocks are a wall clock that can be set and a steady one.
type clocks struct {
	start  time.Time
	mu     sync.Mutex
	passed time.Duration
	set    time.Duration // by how much the wall clock was set
	stalls time.Duration // how long each look at the steady clock takes
}

// newClocks returns clocks that are not behind those of the file system.
func newClocks() *clocks {
	return &clocks{start: time.Now().UTC().Truncate(time.Microsecond).Add(time.Minute)}
}

func (c *clocks) move(passed, set time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.passed += passed
	c.set += set
}

func (c *clocks) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.start.Add(c.passed + c.set)
}

func (c *clocks) steady() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.passed += c.stalls
	return c.passed
}

// shipped returns what e has not shipped yet.
func shipped(t *testing.T, e *Emitter) [][]byte {
	t.Helper()
	var got [][]byte
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := e.Run(ctx, func(_ context.Context, events [][]byte) error {
		got = append(got, events...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// marksIn returns the events of lines that tell of a jump.
func marksIn(t *testing.T, lines [][]byte) []Event {
	t.Helper()
	var marks []Event
	for _, line := range lines {
		ev, err := ParseEvent(line)
		if err != nil {
			t.Fatal(err)
		}
		if ev.Name == ClockJump {
			marks = append(marks, ev)
		}
	}
	return marks
}

// now is an event at the time that it is emitted.
func now(text string) Event {
	ev := run(text)
	ev.Time = time.Time{}
	return ev
}

const years = 10 * 365 * 24 * time.Hour

func TestF06ClockJumpIsMarked(t *testing.T) {
	t.Parallel()
	type step struct{ passed, set time.Duration }
	repeat := func(n int, s step) []step { return slices.Repeat([]step{s}, n) }
	for _, tt := range []struct {
		name   string
		steps  []step
		stalls time.Duration
		want   []int64 // moved_ms of each mark
	}{
		{name: "an hour forward", steps: []step{{time.Second, time.Hour}}, want: []int64{3_600_000}},
		{name: "an hour back", steps: []step{{time.Second, -time.Hour}}, want: []int64{-3_600_000}},
		{name: "ten years back", steps: []step{{time.Second, -years}}, want: []int64{-years.Milliseconds()}},
		{name: "ten years forward and back", steps: []step{{time.Second, years}, {time.Second, -years}}, want: []int64{years.Milliseconds(), -years.Milliseconds()}},
		{name: "while nobody looked for a day", steps: []step{{24 * time.Hour, -time.Hour}}, want: []int64{-3_600_000}},
		{name: "a leap second", steps: []step{{time.Second, -time.Second}}},
		{name: "a leap second forward", steps: []step{{time.Second, time.Second}}},
		{name: "slewed for a day", steps: repeat(8640, step{clockLook, -clockLook / 2000})},
		{name: "slewed for a day and nobody looked", steps: []step{{24 * time.Hour, 24 * time.Hour / 2000}}},
		{name: "nothing for a year, as after sleep", steps: []step{{years / 10, 0}}},
		{name: "bit by bit faster than slewed", steps: repeat(5, step{time.Second, -time.Second}), want: []int64{-3000}},
		{name: "a process that hardly runs", steps: repeat(5, step{time.Second, 0}), stalls: time.Minute},
		{name: "a process that hardly runs, an hour back", steps: []step{{time.Second, -time.Hour}}, stalls: 10 * time.Second, want: []int64{-3_600_000}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newClocks()
			c.stalls = tt.stalls
			w := newClockWatch(EmitterConfig{Now: c.now, Steady: c.steady}, time.Time{})
			var got []int64
			for _, s := range tt.steps {
				c.move(s.passed, s.set)
				if !w.look() {
					continue
				}
				ev := w.mark()
				if err := Check(ev); err != nil {
					t.Fatal(err)
				}
				moved, ok := ev.Fields["moved_ms"].(time.Duration)
				if !ok {
					t.Fatalf("moved_ms is %v", ev.Fields["moved_ms"])
				}
				got = append(got, moved.Milliseconds())
				w.told()
			}
			near := func(a, b int64) bool { return max(a-b, b-a) <= 2*tt.stalls.Milliseconds()+10 }
			if !slices.EqualFunc(got, tt.want, near) {
				t.Errorf("marked %d, want %d", got, tt.want)
			}
		})
	}
}

// The mark of a jump is in the log before the first event with the new time, once,
// whoever emits; the order is that in which things happened, the log verifies, and
// who asks for a time finds what carries it on either side.
func TestF06JumpsInTheLog(t *testing.T) {
	t.Parallel()
	c := newClocks()
	e := newTestEmitter(t, EmitterConfig{Now: c.now, Steady: c.steady, ServerID: "id", ServerHostname: "web-1"})
	var want []string
	emit := func(text string) {
		t.Helper()
		var wg sync.WaitGroup
		for range 8 { // whose write is the first with the new time is anybody's luck
			wg.Go(func() {
				if err := e.Emit(t.Context(), now(text)); err != nil {
					t.Error(err)
				}
			})
			want = append(want, text)
		}
		wg.Wait()
	}
	jumps := []time.Duration{time.Hour, -2 * time.Hour, -years, years + time.Hour}
	emit("0")
	for i, d := range jumps {
		c.move(time.Second, d)
		want = append(want, "jump")
		emit(fmt.Sprint(i + 1))
		c.move(time.Second, time.Second) // a leap second
		emit("leap")
	}
	key, dir := newTestKey(t, "example.com/audit"), t.TempDir()
	l := openTestLog(t, dir, key)
	mustAppend(t, l, shipped(t, e)...)
	got := contents(t, l, Filter{})
	var texts []string
	var at time.Time
	for _, line := range got {
		ev, err := ParseEvent(line)
		if err != nil {
			t.Fatal(err)
		}
		text, ok := ev.Fields["command"].(string)
		if !ok {
			text = "jump"
			before, err := time.Parse(timeForm, fmt.Sprint(ev.Fields["before"]))
			if off := before.Sub(at.Add(time.Second)); err != nil || off.Abs() > time.Second { // of the leap seconds
				t.Errorf("%s\nis off by %s, %v", line, off, err)
			}
			if ev.Code != "A4011W" || ev.ServerID != "id" || ev.ServerHostname != "web-1" || ev.Fields["after"] != ev.Time.UTC().Format(timeForm) ||
				ev.Fields["jumps"] != int64(1) || ev.Fields["stopped"] != false {
				t.Errorf("%s\nwant all that is known of the jump", line)
			}
		}
		texts, at = append(texts, text), ev.Time
	}
	if !slices.Equal(texts, want) {
		t.Errorf("the log has\n%q, want\n%q", texts, want)
	}
	marks := contents(t, l, Filter{Event: string(ClockJump)})
	if len(marks) != len(jumps) {
		t.Errorf("%d marks by name, want %d", len(marks), len(jumps))
	}
	for _, mark := range marksIn(t, got) { // what carries the time before, and after
		for _, field := range []string{"before", "after"} {
			at, err := time.Parse(timeForm, fmt.Sprint(mark.Fields[field]))
			if err != nil {
				t.Fatal(err)
			}
			if found := contents(t, l, Filter{Since: at.Add(-2 * time.Second), Until: at.Add(2 * time.Second)}); len(found) < 8 {
				t.Errorf("%d events around %s, %s a jump", len(found), at, field)
			}
		}
	}
	if r, err := Verify(t.Context(), dir, key.verifier); err != nil || r.Size != uint64(len(want)) {
		t.Errorf("Verify = %+v, %v", r, err)
	}
}

// A clock that jumps all the time fills no log.
func TestF06FlappingClock(t *testing.T) {
	t.Parallel()
	c := newClocks()
	e := newTestEmitter(t, EmitterConfig{Now: c.now, Steady: c.steady})
	for i := range 100 {
		c.move(time.Second, []time.Duration{time.Hour, -time.Hour}[i%2])
		if err := e.Emit(t.Context(), now("x")); err != nil {
			t.Fatal(err)
		}
	}
	if got := marksIn(t, shipped(t, e)); len(got) != maxMarks {
		t.Errorf("%d marks of 100 jumps, want %d", len(got), maxMarks)
	}
	c.move(time.Hour, -time.Minute)
	if err := e.Emit(t.Context(), now("x")); err != nil {
		t.Fatal(err)
	}
	got := marksIn(t, shipped(t, e))
	if len(got) != 1 || got[0].Fields["jumps"] != int64(91) || got[0].Fields["moved_ms"] != int64(-60_000) {
		t.Errorf("the hour after: %+v, want one mark of 91 jumps", got)
	}
}

// A spool that takes nothing loses no jump, and tells of it once.
func TestF06JumpWhileTheDiskFails(t *testing.T) {
	t.Parallel()
	c := newClocks()
	e := newTestEmitter(t, EmitterConfig{Now: c.now, Steady: c.steady})
	create := e.spool.create
	e.spool.create = func(string) (file, error) { return nil, syscall.ENOSPC }
	for range 3 {
		c.move(time.Second, time.Hour)
		if err := e.Emit(t.Context(), now("refused")); !fault.Is(err, fault.Unavailable) {
			t.Errorf("Emit = %v, want unavailable", err)
		}
	}
	e.spool.create = create
	for range 2 {
		if err := e.Emit(t.Context(), now("taken")); err != nil {
			t.Fatal(err)
		}
	}
	lines := shipped(t, e)
	got := marksIn(t, lines[:1])
	if len(lines) != 3 || len(got) != 1 || got[0].Fields["jumps"] != int64(3) || got[0].Fields["moved_ms"] != int64(3*3_600_000) {
		t.Errorf("shipped %s, want one mark of three jumps first", lines)
	}
}

// Nobody emits anything, and the jump is told of all the same.
func TestF06JumpOfAnIdleProcess(t *testing.T) {
	dir, c := t.TempDir(), newClocks()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		e, err := NewEmitter(EmitterConfig{
			Dir: dir, Now: func() time.Time { return c.now().Add(time.Since(start)) },
			Steady: func() time.Duration { return time.Since(start) },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		ctx, cancel := context.WithCancel(t.Context())
		var got [][]byte
		done := make(chan error, 1)
		go func() {
			done <- e.Run(ctx, func(_ context.Context, events [][]byte) error {
				got = append(got, events...)
				return nil
			})
		}()
		<-time.After(time.Hour)
		c.move(0, -time.Hour)
		<-time.After(clockLook + time.Second)
		synctest.Wait()
		if marks := marksIn(t, got); len(got) != 1 || len(marks) != 1 || marks[0].Fields["moved_ms"] != int64(-3_600_000) {
			t.Errorf("shipped %s, want the mark of one jump", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// The clock is set while the process does not run: what it wrote before is younger
// than now. How it ended and what it left to ship does not matter.
func TestF06JumpOverARestart(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		set  time.Duration
		want bool
	}{
		{"not at all", 0, false},
		{"a leap second back", -time.Second, false},
		{"an hour back", -time.Hour, true},
		{"ten years back", -years, true},
		{"an hour forward", time.Hour, false}, // as if it had not run for that long
	} {
		for _, how := range []string{"stopped", "stopped, not shipped", "killed", "killed, not shipped"} {
			t.Run(tt.name+", "+how, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				start := time.Now()
				set := time.Duration(0)
				open := func() *Emitter {
					e, err := NewEmitter(EmitterConfig{
						Dir: dir, Now: func() time.Time { return time.Now().Add(set) },
						Steady: func() time.Duration { return time.Since(start) },
					})
					if err != nil {
						t.Fatal(err)
					}
					return e
				}
				e := open()
				if err := e.Emit(t.Context(), now("before")); err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(how, "not shipped") {
					shipped(t, e)
				}
				if strings.Contains(how, "killed") {
					e.spool.records.acquire() // the directory is unlocked, and that is all
					e.spool.seal()
					if err := e.spool.dir.Close(); err != nil {
						t.Fatal(err)
					}
				} else if err := e.Close(); err != nil {
					t.Fatal(err)
				}
				set = tt.set
				written := time.Now()
				e = open()
				if err := e.Emit(t.Context(), now("after")); err != nil {
					t.Fatal(err)
				}
				marks := marksIn(t, shipped(t, e))
				if (len(marks) == 1) != tt.want || len(marks) > 1 {
					t.Fatalf("%d marks, want one: %v", len(marks), tt.want)
				}
				for _, m := range marks {
					moved, _ := m.Fields["moved_ms"].(int64)
					if off := time.Duration(moved)*time.Millisecond - tt.set; m.Fields["stopped"] != true || off < -time.Second || off > time.Since(written)+time.Minute {
						t.Errorf("moved by %d ms, stopped %v; want %v", moved, m.Fields["stopped"], tt.set)
					}
				}
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
				// What that process wrote has the times of its clock.
				for _, path := range append(segmentsIn(t, dir), dir) {
					if err := os.Chtimes(path, time.Time{}, time.Now().Add(set)); err != nil {
						t.Fatal(err)
					}
				}
				e = open()
				if err := e.Emit(t.Context(), now("again")); err != nil {
					t.Fatal(err)
				}
				if marks := marksIn(t, shipped(t, e)); len(marks) != 0 {
					t.Errorf("the next start marks it again: %+v", marks)
				}
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}
