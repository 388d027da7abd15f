package auth

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
)

// shipped writes an event into logs, as a member does that ships it twice.
func shipped(t *testing.T, name, uid string, logs ...*hub) []byte {
	t.Helper()
	ev := events.Event{
		Name: events.UserCreate, Code: "A5000I", Time: logs[0].clock.Now().UTC(), UID: uid, Success: true, Fields: map[string]any{"name": name},
	}
	data, err := ev.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range logs {
		if err := h.log.Append(t.Context(), [][]byte{data}); err != nil {
			t.Fatal(err)
		}
	}
	return data
}

func uid(n int) string { return fmt.Sprintf("0195510c-9a40-7bb2-8c51-%012d", n) }

// An event that its member shipped to two authorities stands in an export and in a
// tail once, whichever log has it first; one that only has the uid of another is
// an event of its own.
func TestShippedTwice(t *testing.T) {
	one, two := newHubs(t)
	shipped(t, "both", uid(1), one, two)
	shipped(t, "mine", uid(2), one)
	shipped(t, "forged", uid(2), two)
	export := func(after string) (users []string, place string) {
		t.Helper()
		stream, err := one.admin().ExportEvents(t.Context(), connect.NewRequest(&accessdv1.ExportEventsRequest{Filter: whoWasAdded, After: after}))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = stream.Close() }()
		for stream.Receive() {
			users, place = append(users, made(t, stream.Msg().GetEvents())...), stream.Msg().GetAfter()
		}
		if err := stream.Err(); err != nil {
			t.Fatal(err)
		}
		return users, place
	}
	users, place := export("")
	if !slices.Equal(slices.Sorted(slices.Values(users)), []string{"both", "forged", "mine", "one", "two"}) {
		t.Errorf("exported %q, want each once", users)
	}
	// What this authority's log got later than the other's comes when it is there.
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	tail, err := one.admin().TailEvents(ctx, connect.NewRequest(&accessdv1.TailEventsRequest{Filter: whoWasAdded, Backlog: 100}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tail.Close() }()
	var seen []string
	until := func(name string) {
		t.Helper()
		for !slices.Contains(seen, name) {
			if !tail.Receive() {
				t.Fatalf("the tail ended before %q: %v", name, tail.Err())
			}
			seen = append(seen, made(t, tail.Msg().GetEvents())...)
		}
	}
	until("two")
	late := shipped(t, "late", uid(3), two)
	until("late")
	if err := one.log.Append(t.Context(), [][]byte{late}); err != nil {
		t.Fatal(err)
	}
	shipped(t, "last", uid(4), one)
	until("last")
	shipped(t, "again", uid(5), one)
	until("again")
	shipped(t, "again", uid(5), two)
	shipped(t, "end", uid(6), two)
	until("end")
	if want := []string{"again", "both", "end", "forged", "last", "late", "mine", "one", "two"}; !slices.Equal(slices.Sorted(slices.Values(seen)), want) {
		t.Errorf("the tail told %q, want each of %q once", seen, want)
	}
	if users, _ = export(place); !slices.Equal(slices.Sorted(slices.Values(users)), []string{"again", "end", "last", "late"}) {
		t.Errorf("behind the first export came %q", users)
	}
}

// What a tour remembers is bounded.
func TestToldIsBounded(t *testing.T) {
	var d told
	data := func(n int) [][]byte { return [][]byte{fmt.Appendf(nil, "%d", n)} }
	for n := range 2*maxTold + 10 {
		if len(d.fresh(data(n))) != 1 || len(d.fresh(data(n))) != 0 {
			t.Fatalf("event %d is not told exactly once", n)
		}
	}
	if len(d.at) != maxTold || len(d.last) != maxTold || len(d.fresh(data(0))) != 1 {
		t.Errorf("%d and %d are remembered, want %d", len(d.at), len(d.last), maxTold)
	}
}
