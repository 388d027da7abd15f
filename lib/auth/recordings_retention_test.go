package auth

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// kept returns which of ids the archive lists and the store has parts of, as
// digits. Where these differ the test fails.
func (w *world) kept(tapes []*tape) string {
	w.t.Helper()
	w.archive.turn <- struct{}{} // nobody is about to remove one
	defer func() { <-w.archive.turn }()
	list := w.listed(&accessdv1.ListRecordingsRequest{})
	var out strings.Builder
	for i, tp := range tapes {
		_, err := os.Stat(filepath.Join(w.dir, "recordings", "recordings", string(tp.id)))
		if listed := slices.Contains(list, tp.id); listed {
			out.WriteByte(byte('0' + i))
			if err != nil {
				w.t.Errorf("recording %d is listed without parts: %v", i, err)
			}
		} else if !os.IsNotExist(err) {
			w.t.Errorf("recording %d is not listed but has parts", i)
		}
	}
	return out.String()
}

// retained makes recordings a day apart: 0 on hold, 1 going on, 2 to 5 complete.
func retained(w *world) []*tape {
	m := w.join(sshca.KindNode, "web-1")
	var tapes []*tape
	for i := range 6 {
		tp := w.newTape(m, strings.Repeat(string(names.NewSessionID()), 10))
		tapes = append(tapes, tp)
		if i == 1 {
			must(w.t, m.UploadPart, tp.part(1))
		} else {
			w.upload(m, tp)
		}
		if i == 0 {
			must(w.t, w.admin().HoldRecording, &accessdv1.HoldRecordingRequest{Session: string(tp.id), Reason: "case 7"})
		}
		w.clock.advance(24 * time.Hour)
	}
	w.rec.take()
	return tapes
}

func (w *world) tend() {
	w.t.Helper()
	if err := w.archive.tend(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// What is older than the configuration allows goes, the event first; what is on
// hold and what goes on stays.
func TestRetentionByAge(t *testing.T) {
	w := newWorld(t, plan{change: func(c *Config) { c.Recordings.Retain = 74 * time.Hour }})
	tapes := retained(w)
	w.tend()
	if got := w.kept(tapes); got != "01345" {
		t.Errorf("kept are %s, want 01345", got)
	}
	evs := named(w.rec.take(), events.RecordingDelete)
	if len(evs) != 1 {
		t.Fatalf("events %+v, want one", evs)
	}
	ev, end := evs[0], tapes[2].end()
	if !ev.Success || ev.SID != tapes[2].id || ev.Fields["recording_root"] != end.GetRoot() || ev.Fields["recording_parts"] != int64(1) ||
		ev.Fields["recording_bytes"] != int64(len(tapes[2].parts[0])) || ev.Fields["by"] != "authority" || ev.Fields["reason"] != "older than 74h0m0s" {
		t.Errorf("event %+v", ev)
	}
	must(t, w.admin().HoldRecording, &accessdv1.HoldRecordingRequest{Session: string(tapes[0].id)}) // lets it go
	w.tend()
	if got := w.kept(tapes); got != "1345" {
		t.Errorf("kept are %s, want 1345 without the hold", got)
	}
}

// When all are too large together, the oldest that may go do, and no more than
// needed.
func TestRetentionBySize(t *testing.T) {
	var most int64
	w := newWorld(t, plan{change: func(c *Config) { c.Recordings.MaxSize = 1 << 30 }})
	tapes := retained(w)
	w.tend()
	if got := w.kept(tapes); got != "012345" {
		t.Errorf("kept are %s, want all", got)
	}
	for _, i := range []int{0, 1, 4, 5} {
		most += int64(len(tapes[i].parts[0]))
	}
	w.archive.cfg.Recordings.MaxSize = most
	w.tend()
	if got := w.kept(tapes); got != "0145" {
		t.Errorf("kept are %s, want 0145", got)
	}
	w.archive.cfg.Recordings.MaxSize = 1
	w.tend()
	if got := w.kept(tapes); got != "01" {
		t.Errorf("kept are %s, want 01: on hold, and going on", got)
	}
}

// Without its event nothing is removed.
func TestNoRemovalUnrecorded(t *testing.T) {
	w := newWorld(t, plan{change: func(c *Config) { c.Recordings.Retain = time.Hour }})
	w.rec.breakFor(events.RecordingDelete)
	tapes := retained(w)
	w.tend()
	if got := w.kept(tapes); got != "012345" {
		t.Errorf("kept are %s, want all", got)
	}
}

// A removal that ended midway leaves a recording that nobody sees, nobody adds to,
// and that is gone when its time has come.
func TestRemovalGoesOn(t *testing.T) {
	f := &failing{}
	w := newWorld(t, plan{change: withFailing(f)})
	m := w.join(sshca.KindNode, "web-1")
	tp := w.newTape(m, "one", "two")
	w.upload(m, tp)
	f.fail(fault.New(fault.Unavailable, "the store is away"))
	w.rec.take()
	if _, err := call(t, w.admin().RemoveRecording, &accessdv1.RemoveRecordingRequest{Session: string(tp.id), Reason: "by law"}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("removal without a store: %v", err)
	}
	evs := named(w.rec.take(), events.RecordingDelete)
	if len(evs) != 2 || !evs[0].Success || evs[1].Success || evs[0].Fields["reason"] != "by law" || evs[0].Fields["by"] != "local:0" {
		t.Errorf("events %+v, want one before and one that says that it failed", evs)
	}
	f.fail(nil)
	w.tend()
	if _, err := w.cfg.Store.Recording(t.Context(), tp.id); err != nil {
		t.Errorf("who began the removal may still be at it: %v", err)
	}
	if got := w.listed(&accessdv1.ListRecordingsRequest{}); len(got) != 0 {
		t.Errorf("listed are %v, want none", got)
	}
	if _, _, err := read(t.Context(), w.admin(), &accessdv1.ReadRecordingRequest{Session: string(tp.id)}); !fault.Is(err, fault.NotFound) {
		t.Errorf("reading it: %v, want not found", err)
	}
	if _, err := call(t, w.admin().HoldRecording, &accessdv1.HoldRecordingRequest{Session: string(tp.id), Reason: "late"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("holding it: %v, want not found", err)
	}
	tp.parts = append(tp.parts, []byte("three"))
	if _, err := call(t, m.UploadPart, tp.part(3)); !fault.Is(err, fault.Conflict) {
		t.Errorf("adding to it: %v, want a conflict", err)
	}
	w.clock.advance(removalTime)
	w.tend()
	if _, err := w.cfg.Store.Recording(t.Context(), tp.id); !fault.Is(err, fault.NotFound) {
		t.Errorf("in the end it is %v, want not found", err)
	}
	if got := w.kept([]*tape{tp}); got != "" {
		t.Errorf("kept %q", got)
	}
	evs = named(w.rec.take(), events.RecordingDelete)
	if len(evs) != 1 || !evs[0].Success || evs[0].Fields["reason"] != "by law" {
		t.Errorf("events %+v, want one of the removal that was done", evs)
	}
}

func TestRemoveRecordingRefused(t *testing.T) {
	w := newWorld(t, plan{})
	m := w.join(sshca.KindNode, "web-1")
	tp := w.newTape(m, "one")
	must(t, m.UploadPart, tp.part(1))
	remove := func() error {
		_, err := call(t, w.admin().RemoveRecording, &accessdv1.RemoveRecordingRequest{Session: string(tp.id)})
		return err
	}
	if err := remove(); !fault.Is(err, fault.Conflict) {
		t.Errorf("one that goes on: %v, want a conflict", err)
	}
	must(t, w.admin().HoldRecording, &accessdv1.HoldRecordingRequest{Session: string(tp.id), Reason: "case 7"})
	w.clock.advance(25 * time.Hour)
	if err := remove(); !fault.Is(err, fault.Conflict) || !strings.HasSuffix(fault.Public(err), "is on hold: case 7") {
		t.Errorf("one on hold: %v, want a conflict", err)
	}
	must(t, w.admin().HoldRecording, &accessdv1.HoldRecordingRequest{Session: string(tp.id)})
	if err := remove(); err != nil {
		t.Errorf("one whose recorder has not come back for a day: %v", err)
	}
	if _, err := call(t, w.admin().HoldRecording, &accessdv1.HoldRecordingRequest{Session: string(tp.id), Reason: strings.Repeat("x", 257)}); !fault.Is(err, fault.BadInput) {
		t.Errorf("a long reason: %v", err)
	}
}

func TestSearchRecordings(t *testing.T) {
	dir, me := t.TempDir(), names.NewNodeID()
	w := newWorld(t, plan{dir: dir, id: me})
	m := w.join(sshca.KindNode, "web-1")
	first := w.newTape(m, "\x1b[31mroot\x1b[0m:x:0:0\r\nnothing here\nhal", "f a line\nUnfinished Grüße")
	w.upload(m, first)
	newer := w.newTape(m, "ROOT was \"here\"; DROP TABLE lines\n")
	newer.of.User = "bob"
	w.upload(m, newer)
	sealed := w.newTape(m)
	sealed.parts = [][]byte{[]byte("age-encryption.org/v1\nroot")}
	w.upload(m, sealed)
	typed := w.newTape(m, "x")
	going := w.newTape(m, "root goes on\n")
	must(t, m.UploadPart, going.part(1))
	w.upload(m, typed)
	w.tend()

	search := func(req *accessdv1.SearchRecordingsRequest) string {
		t.Helper()
		res := must(t, w.admin().SearchRecordings, req)
		if res.GetSealed() != 1 && req.GetUser() != "bob" {
			t.Errorf("%v: %d are sealed, want 1", req, res.GetSealed())
		}
		var out []string
		for _, f := range res.GetMatches() {
			who := map[string]string{string(first.id): "first", string(newer.id): "newer"}[f.GetRecording().GetSession()]
			out = append(out, who+" "+f.GetAt().AsDuration().String()+" "+f.GetLine())
		}
		return strings.Join(out, " | ")
	}
	for _, tc := range []struct {
		req  *accessdv1.SearchRecordingsRequest
		want string
	}{
		{&accessdv1.SearchRecordingsRequest{Words: "root"}, `newer 0s ROOT was "here"; DROP TABLE lines | first 0s root:x:0:0`},
		{&accessdv1.SearchRecordingsRequest{Words: "root", Limit: 1}, `newer 0s ROOT was "here"; DROP TABLE lines`},
		{&accessdv1.SearchRecordingsRequest{Words: "root", User: "bob"}, `newer 0s ROOT was "here"; DROP TABLE lines`},
		{&accessdv1.SearchRecordingsRequest{Words: "root", Node: "web-1", User: "alice"}, `first 0s root:x:0:0`},
		{&accessdv1.SearchRecordingsRequest{Words: "half line"}, `first 0s half a line`},
		{&accessdv1.SearchRecordingsRequest{Words: "grusse unfinished"}, ``},
		{&accessdv1.SearchRecordingsRequest{Words: "gruße unfinished"}, `first 1s Unfinished Grüße`},
		{&accessdv1.SearchRecordingsRequest{Words: "root nothing"}, ``},
		{&accessdv1.SearchRecordingsRequest{Words: `"here"; drop`}, `newer 0s ROOT was "here"; DROP TABLE lines`},
		{&accessdv1.SearchRecordingsRequest{Words: `line:x OR NOT root*`}, ``},
	} {
		if got := search(tc.req); got != tc.want {
			t.Errorf("%v:\n got %s\nwant %s", tc.req, got, tc.want)
		}
	}
	for _, words := range []string{"", "  ", `" * ( )`, "a\x00b", strings.Repeat("a ", 33), strings.Repeat("a", 1025)} {
		if _, err := call(t, w.admin().SearchRecordings, &accessdv1.SearchRecordingsRequest{Words: words}); !fault.Is(err, fault.BadInput) {
			t.Errorf("words %q: %v, want bad input", words, err)
		}
	}
	if got := named(w.rec.take(), events.RecordingSearch); len(got) != 10 || got[0].Fields["words"] != "root" {
		t.Errorf("%d events of searches, want 10", len(got))
	}

	must(t, w.admin().RemoveRecording, &accessdv1.RemoveRecordingRequest{Session: string(newer.id)})
	if got := search(&accessdv1.SearchRecordingsRequest{Words: "root"}); got != "first 0s root:x:0:0" {
		t.Errorf("after the removal %s, want the other one", got)
	}
	index := filepath.Join(dir, "lines-"+string(me))
	for _, f := range []string{linesName, linesName + "-wal"} {
		data, err := os.ReadFile(filepath.Join(index, f))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte("DROP TABLE")) {
			t.Errorf("%s still has a line of the recording that was removed", f)
		}
	}

	// The index is derived: without it, or with one that is damaged, all is found
	// again.
	for what, harm := range map[string]func() error{
		"removed": func() error { return os.RemoveAll(index) },
		"damaged": func() error {
			return os.WriteFile(filepath.Join(index, linesName), bytes.Repeat([]byte("not a database"), 1000), 0o600)
		},
	} {
		w.stop()
		if err := harm(); err != nil {
			t.Fatal(err)
		}
		w = newWorld(t, plan{dir: dir, id: me})
		w.tend()
		if got := search(&accessdv1.SearchRecordingsRequest{Words: "root"}); got != "first 0s root:x:0:0" {
			t.Errorf("with the index %s: %s", what, got)
		}
	}
}

// A flood of output costs the index no more than its bound, and what came before
// is found.
func TestLinesOfAFlood(t *testing.T) {
	w := newWorld(t, plan{})
	m := w.join(sshca.KindNode, "web-1")
	tp := w.newTape(m, "before\n"+strings.Repeat("accessd\n", 20_000))
	for i := range 30 { // of 200 KB each, in lines that differ
		var text strings.Builder
		for n := range 50 {
			text.WriteString(strings.Repeat("x", 4000) + " " + string(rune('a'+i)) + string(rune('a'+n%26)) + string(rune('a'+n/26)) + "\n")
		}
		tp.parts = append(tp.parts, w.newTape(m, text.String()).parts...)
	}
	tp.parts = append(tp.parts, w.newTape(m, "after\n").parts...)
	w.upload(m, tp)
	w.tend()
	for words, want := range map[string]int{"before": 1, "accessd": 1, "after": 0} {
		if got := len(must(t, w.admin().SearchRecordings, &accessdv1.SearchRecordingsRequest{Words: words}).GetMatches()); got != want {
			t.Errorf("%q is found %d times, want %d", words, got, want)
		}
	}
	info, err := os.Stat(filepath.Join(w.cfg.Recordings.Dir, linesName))
	if err != nil || info.Size() > 8*maxLines {
		t.Errorf("the index has %d bytes, %v; want its bound, about", info.Size(), err)
	}
}
