//go:build unix

package events

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

func openLedger(t testing.TB, dir string) *OpenSessions {
	t.Helper()
	o, err := NewOpenSessions(dir)
	if err != nil {
		t.Fatalf("NewOpenSessions: %v", err)
	}
	t.Cleanup(func() { o.Close() })
	return o
}

func startOf(sid names.SessionID) Event {
	return Event{
		Name: SessionStart, SID: sid, User: "alice", Login: "root", AddrRemote: "203.0.113.7:50122", Proto: "ssh", Time: testTime,
		Fields: map[string]any{"kind": "exec", "connection": "c-1", "command": strings.Repeat("x", 2*maxCommand)},
	}
}

// recovered returns what Recover emits.
func recovered(t testing.TB, o *OpenSessions) []Event {
	t.Helper()
	var got []Event
	if err := o.Recover(t.Context(), func(_ context.Context, e Event) error { got = append(got, e); return Check(e) }); err != nil {
		t.Fatalf("Recover: %v", err)
	}
	return got
}

// F02: a session that a crash left open ends at the next start, once, and others
// do not.
func TestF02LedgerEndsWhatACrashLeftOpen(t *testing.T) {
	dir := t.TempDir()
	o := openLedger(t, dir)
	lost, ended := names.NewSessionID(), names.NewSessionID()
	for _, sid := range []names.SessionID{lost, ended} {
		if err := o.Begin(startOf(sid)); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Begin(startOf(lost)); err == nil {
		t.Error("a session began twice")
	}
	if err := errors.Join(o.End(ended), o.End(ended)); err != nil {
		t.Fatal(err)
	}
	if got := recovered(t, o); len(got) != 0 {
		t.Errorf("own sessions recovered: %+v", got)
	}
	if _, err := NewOpenSessions(dir); !fault.Is(err, fault.Conflict) {
		t.Errorf("second ledger = %v, want a conflict", err)
	}
	if err := o.Close(); err != nil { // the crash
		t.Fatal(err)
	}

	o = openLedger(t, dir)
	live := names.NewSessionID()
	if err := o.Begin(startOf(live)); err != nil {
		t.Fatal(err)
	}
	away := fault.New(fault.Unavailable, "away")
	if err := o.Recover(t.Context(), func(context.Context, Event) error { return away }); !errors.Is(err, away) {
		t.Errorf("Recover = %v, want %v", err, away)
	}
	got := recovered(t, o)
	if again := recovered(t, o); len(got) != 2 || len(again) != 0 {
		t.Fatalf("%d events, then %d; want a start and an end", len(got), len(again))
	}
	start, end := got[0], got[1]
	if start.Name != SessionStart || start.SID != lost || start.UID != sessionUID(lost, "start") || !start.Time.Equal(testTime) {
		t.Errorf("start = %+v", start)
	}
	if cut, _ := start.Fields[truncatedField].([]string); !slices.Equal(cut, []string{"command"}) {
		t.Errorf("start is not marked as cut: %v", start.Fields[truncatedField])
	}
	if end.Name != SessionEnd || end.SID != lost || end.User != "alice" || end.Login != "root" ||
		end.Fields["recovered"] != true || end.Fields["kind"] != "exec" || end.Fields["connection"] != "c-1" || end.Fields["reason"] == "" {
		t.Errorf("end = %+v", end)
	}
	for i, want := range []string{sessionUID(lost, "start"), sessionUID(lost, "end")} {
		line, err := newSchema().encode(got[i], MaxEvent)
		if err != nil || !bytes.Contains(line, []byte(want)) {
			t.Errorf("event %d does not have uid %s: %s, %v", i, want, line, err)
		}
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if got := recovered(t, openLedger(t, dir)); len(got) != 2 || got[0].SID != live {
		t.Errorf("left %+v, want the live session", got)
	}
}

func TestLedgerUsesSlotsAgain(t *testing.T) {
	dir := t.TempDir()
	o := openLedger(t, dir)
	open := map[names.SessionID]bool{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for j := range 20 {
				sid := names.NewSessionID()
				if err := o.Begin(startOf(sid)); err != nil {
					t.Errorf("Begin = %v", err)
				}
				if i == j {
					mu.Lock()
					open[sid] = true
					mu.Unlock()
				} else if err := o.End(sid); err != nil {
					t.Errorf("End = %v", err)
				}
			}
		})
	}
	wg.Wait()
	if o.next > 60 {
		t.Errorf("%d slots for at most 40 sessions at once", o.next)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	o = openLedger(t, dir)
	got := recovered(t, o)
	for _, e := range got {
		if !open[e.SID] {
			t.Errorf("session %s was not open", e.SID)
		}
	}
	if len(got) != 2*len(open) {
		t.Errorf("%d events for %d open sessions", len(got), len(open))
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	openLedger(t, dir)
	if info, err := os.Stat(filepath.Join(dir, ledgerName)); err != nil || info.Size() != int64(len(ledgerMagic)) {
		t.Errorf("the file of a ledger without sessions: %v, %v", info, err)
	}
}

// F31: hostile text fits into a slot, and its session is found again.
func TestF31LedgerTakesHostileText(t *testing.T) {
	dir := t.TempDir()
	o := openLedger(t, dir)
	for _, text := range append([]string{strings.Repeat("\x01", 64<<10), strings.Repeat("🔑", 16<<10)}, hostile...) {
		start := Event{
			Name: SessionStart, SID: names.NewSessionID(), User: names.UserName(text), Login: names.Login(text), AddrRemote: text, Proto: text,
			Error: text, ServerID: text, ServerHostname: text, ClusterName: text,
			Fields: map[string]any{"command": text, "term": text, "env": map[string]string{text: text}, "key_id": text},
		}
		if err := o.Begin(start); err != nil {
			t.Errorf("Begin of %q = %v", clip(text), err)
		}
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if got := recovered(t, openLedger(t, dir)); len(got) != 2*(len(hostile)+2) {
		t.Errorf("recovered %d events, want %d", len(got), 2*(len(hostile)+2))
	}
}

// F04: a slot cut off or damaged at any byte stands for no session, and does not
// harm its neighbours.
func TestF04LedgerSlotsAreWhole(t *testing.T) {
	dir := t.TempDir()
	o := openLedger(t, dir)
	first, second := names.NewSessionID(), names.NewSessionID()
	short := func(sid names.SessionID) Event { return Event{Name: SessionStart, SID: sid, Time: testTime} }
	if err := errors.Join(o.Begin(short(first)), o.Begin(short(second)), o.Close()); err != nil {
		t.Fatal(err)
	}
	whole := read(t, dir, ledgerName)
	record, n, err := nextFrame(whole[slotBytes:])
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "ledger.start", bytes.ReplaceAll(bytes.ReplaceAll(record, []byte(first), []byte("SID")), []byte(sessionUID(first, "start")), []byte("UID")))
	for at := range n {
		harmed := bytes.Clone(whole)
		if at%2 == 0 {
			clear(harmed[slotBytes+at : slotBytes+n]) // cut off
		} else {
			harmed[slotBytes+at] ^= 0x10
		}
		write(t, filepath.Join(dir, ledgerName), harmed)
		o := openLedger(t, dir)
		if len(o.left) != 1 || o.left[second].SID != second {
			t.Errorf("byte %d: sessions %v are open, want only %s", at, o.left, second)
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, ledgerName), whole[:slotBytes/2])
	if got := recovered(t, openLedger(t, dir)); len(got) != 0 {
		t.Errorf("a ledger cut off: %+v", got)
	}
}

// F34: the ledger opens only its own file, and takes only sessions' ids.
func TestF34LedgerTakesOnlyItsOwn(t *testing.T) {
	for name, plant := range map[string]func(path string) error{
		"link":      func(path string) error { return os.Symlink(filepath.Join(t.TempDir(), "secret"), path) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"pipe":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"foreign":   func(path string) error { return os.WriteFile(path, []byte("something else"), 0o600) },
	} {
		dir := t.TempDir()
		if err := plant(filepath.Join(dir, ledgerName)); err != nil {
			t.Fatal(err)
		}
		if o, err := NewOpenSessions(dir); err == nil {
			o.Close()
			t.Errorf("%s: the ledger opened it", name)
		}
	}
	o := openLedger(t, t.TempDir())
	sid := names.NewSessionID()
	for _, bad := range []Event{
		{Name: SessionStart},
		{Name: SessionStart, SID: "../x"},
		{Name: SessionStart, SID: "x\x00"},
		{Name: SessionEnd, SID: sid},
		{Name: SessionStart, SID: sid, Fields: map[string]any{"no_field": 1}},
	} {
		if err := o.Begin(bad); err == nil || !fault.Is(err, fault.Internal) {
			t.Errorf("Begin(%+v) = %v, want an internal error", bad, err)
		}
	}
	if err := o.Begin(startOf(sid)); err != nil {
		t.Errorf("Begin = %v", err)
	}
}

// brokenFile fails to write, or to sync.
type brokenFile struct {
	ledgerFile

	write, sync error
}

func (f *brokenFile) WriteAt(p []byte, at int64) (int, error) {
	if f.write != nil {
		return 0, f.write
	}
	return f.ledgerFile.WriteAt(p, at)
}

func (f *brokenFile) Sync() error {
	if f.sync != nil {
		return f.sync
	}
	return f.ledgerFile.Sync()
}

// F05: a session that cannot be noted must not begin, and is not recovered.
func TestF05LedgerDiskFails(t *testing.T) {
	for name, broken := range map[string]brokenFile{"full": {write: syscall.ENOSPC}, "sync": {sync: syscall.EIO}} {
		dir := t.TempDir()
		o := openLedger(t, dir)
		whole := o.file
		broken.ledgerFile = whole
		o.file = &broken
		for range 3 {
			if err := o.Begin(startOf(names.NewSessionID())); !fault.Is(err, fault.Unavailable) {
				t.Errorf("%s: Begin = %v, want unavailable", name, err)
			}
		}
		o.file = whole
		sid := names.NewSessionID()
		if err := errors.Join(o.Begin(startOf(sid)), o.Close()); err != nil {
			t.Errorf("%s: Begin = %v once the disk is well", name, err)
		}
		if got := recovered(t, openLedger(t, dir)); len(got) != 2 || got[0].SID != sid {
			t.Errorf("%s: recovered %+v", name, got)
		}
	}
}

func BenchmarkBegin(b *testing.B) {
	o := openLedger(b, b.TempDir())
	for b.Loop() {
		sid := names.NewSessionID()
		if err := errors.Join(o.Begin(startOf(sid)), o.End(sid)); err != nil {
			b.Fatal(err)
		}
	}
}
