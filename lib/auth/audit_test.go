package auth

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshca"
)

// commands returns the commands of events in canonical form.
func commands(t testing.TB, list [][]byte) []string {
	t.Helper()
	var out []string
	for _, data := range list {
		var ev events.Event
		if err := json.Unmarshal(data, &ev); err != nil {
			t.Fatal(err)
		}
		s, _ := ev.Fields["command"].(string)
		out = append(out, s)
	}
	return out
}

// ran puts events into the log, numbered from first.
func (w *world) ran(m *member, first, n int) (texts []string) {
	w.t.Helper()
	var batch []events.Event
	for i := range n {
		ev := m.own(w, events.Exec, "A3004I")
		ev.Fields = map[string]any{"command": fmt.Sprint("run ", first+i)}
		batch, texts = append(batch, ev), append(texts, fmt.Sprint("run ", first+i))
	}
	req := &accessdv1.AppendEventsRequest{}
	for _, ev := range batch {
		data, err := ev.MarshalJSON()
		if err != nil {
			w.t.Fatal(err)
		}
		req.Events = append(req.Events, data)
	}
	must(w.t, m.AppendEvents, req)
	return texts
}

// An export gives everything once, in order, goes on where it was told to, and
// with follow what comes later.
func TestExportEvents(t *testing.T) {
	w := newWorld(t, plan{})
	n := w.join(sshca.KindNode, "web-1")
	first := w.ran(n, 0, 500)
	filter := &accessdv1.EventFilter{Event: "exec"}
	export := func(after string) (texts []string, last string) {
		s, err := w.admin().ExportEvents(t.Context(), connect.NewRequest(&accessdv1.ExportEventsRequest{Filter: filter, After: after}))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for last = after; s.Receive(); last = s.Msg().GetAfter() {
			texts = append(texts, commands(t, s.Msg().GetEvents())...)
		}
		if s.Err() != nil {
			t.Fatal(s.Err())
		}
		return texts, last
	}
	got, after := export("")
	if !slices.Equal(got, first) {
		t.Errorf("%d events, want %d", len(got), len(first))
	}
	second := w.ran(n, 500, 20)
	if got, after = export(after); !slices.Equal(got, second) {
		t.Errorf("after the first export came %q, want %q", got, second)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := w.admin().ExportEvents(ctx, connect.NewRequest(&accessdv1.ExportEventsRequest{Filter: filter, After: after, Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	defer cancel()
	third := w.ran(n, 520, 5)
	got = nil
	for len(got) < len(third) && s.Receive() {
		got = append(got, commands(t, s.Msg().GetEvents())...)
	}
	if !slices.Equal(got, third) {
		t.Errorf("followed %q, %v; want %q", got, s.Err(), third)
	}
}

// A page says where the pages beside it are.
func TestListEventsGoesBothWays(t *testing.T) {
	w := newWorld(t, plan{})
	n := w.join(sshca.KindNode, "web-1")
	all := w.ran(n, 0, 50)
	list := func(req *accessdv1.ListEventsRequest) (*accessdv1.ListEventsResponse, []string) {
		req.Filter = &accessdv1.EventFilter{Text: "RUN"}
		res := must(t, w.admin().ListEvents, req)
		return res, commands(t, res.GetEvents())
	}
	newest, got := list(&accessdv1.ListEventsRequest{Limit: 10})
	if !slices.Equal(got, all[40:]) {
		t.Errorf("newest = %q", got)
	}
	if _, got := list(&accessdv1.ListEventsRequest{Limit: 10, Before: newest.GetNextBefore()}); !slices.Equal(got, all[30:40]) {
		t.Errorf("older = %q", got)
	}
	if _, got := list(&accessdv1.ListEventsRequest{After: newest.GetNextAfter()}); len(got) != 0 {
		t.Errorf("newer = %q before there was anything", got)
	}
	more := w.ran(n, 50, 7)
	if _, got := list(&accessdv1.ListEventsRequest{Limit: 5, After: newest.GetNextAfter()}); !slices.Equal(got, more[:5]) {
		t.Errorf("newer = %q, want %q", got, more[:5])
	}
	_, err := call(t, w.admin().ListEvents, &accessdv1.ListEventsRequest{After: "1", Before: "1"})
	wantFault(t, err, fault.BadInput, "before and after exclude each other")
}

// What a filter may ask for is bounded, and told apart from what it may not.
func TestFiltersAreChecked(t *testing.T) {
	w := newWorld(t, plan{})
	w.addUser("alice", "access")
	for name, f := range map[string]*accessdv1.EventFilter{
		"user":          {User: "a b"},
		"login":         {Login: "a b"},
		"session":       {Session: "x"},
		"node":          {Node: strings.Repeat("x", 254)},
		"event":         {Event: "user.creat"},
		"address":       {Address: "10.0.0.0/33"},
		"address, name": {Address: "web-1"},
		"label":         {Labels: []string{"=x"}},
		"long label":    {Labels: []string{"k=" + strings.Repeat("x", 1025)}},
		"many labels":   {Labels: slices.Repeat([]string{"k"}, 17)},
		"long text":     {Text: strings.Repeat("x", 1025)},
		"many words":    {Text: strings.Repeat("x ", 17)},
	} {
		if _, err := call(t, w.admin().ListEvents, &accessdv1.ListEventsRequest{Filter: f}); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: %v, want bad input", name, err)
		}
	}
	yes, no := true, false
	for name, c := range map[string]struct {
		f    *accessdv1.EventFilter
		want int
	}{
		"success": {&accessdv1.EventFilter{Event: "user.create", Success: &yes}, 1},
		"failure": {&accessdv1.EventFilter{Event: "user.create", Success: &no}, 0},
		"words":   {&accessdv1.EventFilter{Text: "CREATE alice"}, 1},
		"no":      {&accessdv1.EventFilter{Text: "create mallory"}, 0},
	} {
		if res := must(t, w.admin().ListEvents, &accessdv1.ListEventsRequest{Filter: c.f}); len(res.GetEvents()) != c.want {
			t.Errorf("%s: %d events, want %d", name, len(res.GetEvents()), c.want)
		}
	}
}
