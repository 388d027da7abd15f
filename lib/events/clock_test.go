//go:build unix

package events

import (
	"fmt"
	"testing"
	"time"
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
