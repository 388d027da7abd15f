//go:build unix

package events

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	return o
}

func startOf(sid names.SessionID) Event {
	return Event{
		Name: SessionStart, SID: sid, User: "alice", Login: "root", AddrRemote: "203.0.113.7:50122", Proto: "ssh", Time: testTime,
		Fields: map[string]any{"kind": "exec", "connection": "c-1", "command": strings.Repeat("x", 2*maxCommand)},
	}
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
	if err := o.Begin(startOf(lost)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("second Begin of a session = %v, want it refused", err)
	}
	if err := errors.Join(o.End(ended), o.End(ended)); err != nil {
		t.Fatal(err)
	}
	if err := o.Recover(t.Context(), func(context.Context, Event) error { t.Error("own session recovered"); return nil }); err != nil {
		t.Fatal(err)
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
	e := newTestEmitter(t, EmitterConfig{ServerID: "id"})
	if err := o.Recover(t.Context(), e.Emit); err != nil {
		t.Fatal(err)
	}
	if err := o.Recover(t.Context(), e.Emit); err != nil {
		t.Fatal(err)
	}
	var got []Event
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Run(ctx, func(_ context.Context, events [][]byte) error {
		for _, data := range events {
			ev, err := ParseEvent(data)
			if err != nil {
				return err
			}
			got = append(got, ev)
		}
		return nil
	}); err != nil || len(got) != 2 {
		t.Fatalf("%v, %d events, want a start and an end", err, len(got))
	}
	start, end := got[0], got[1]
	if start.Name != SessionStart || start.SID != lost || start.UID != sessionUID(lost, "start") || !start.Time.Equal(testTime) || start.ServerID != "id" {
		t.Errorf("start = %+v", start)
	}
	if cut, _ := start.Fields[truncatedField].([]string); !slices.Equal(cut, []string{"command"}) {
		t.Errorf("start is not marked as cut: %v", start.Fields[truncatedField])
	}
	if end.Name != SessionEnd || end.SID != lost || end.UID != sessionUID(lost, "end") || end.User != "alice" || end.Login != "root" ||
		end.Fields["recovered"] != true || end.Fields["kind"] != "exec" || end.Fields["connection"] != "c-1" || end.Fields["reason"] == "" {
		t.Errorf("end = %+v", end)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*"+openSuffix)); len(left) != 1 || !strings.Contains(left[0], string(live)) {
		t.Errorf("%v is left, want the live session", left)
	}
}

// F34, F04: files that are not the ledger's, or that a crash cut off, end nothing.
func TestF34LedgerTakesOnlyItsOwn(t *testing.T) {
	dir := t.TempDir()
	o := openLedger(t, dir)
	sid := names.NewSessionID()
	if err := errors.Join(o.Begin(startOf(sid)), o.Close()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, string(sid)+openSuffix))
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, whole)
	if err := os.Remove(filepath.Join(dir, string(sid)+openSuffix)); err != nil {
		t.Fatal(err)
	}
	at := func() string { return filepath.Join(dir, string(names.NewSessionID())+openSuffix) }
	for i := 0; i < len(whole); i += 97 {
		write(t, at(), whole[:i])
	}
	write(t, at(), []byte(strings.Repeat("x", 2*MaxEvent)))
	write(t, filepath.Join(dir, "x"+openSuffix), whole)
	if err := os.Symlink(secret, at()); err != nil {
		t.Fatal(err)
	}
	o = openLedger(t, dir)
	defer o.Close()
	if err := o.Recover(t.Context(), func(_ context.Context, e Event) error { t.Errorf("emitted %+v", e); return nil }); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*"+openSuffix)); len(left) != 1 {
		t.Errorf("left %v, want only what is none of its own", left)
	}
	if _, err := os.Stat(secret); err != nil {
		t.Errorf("a link's target is gone: %v", err)
	}
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
	if err := o.End("../x"); !fault.Is(err, fault.BadInput) {
		t.Errorf("End(../x) = %v, want bad input", err)
	}
}
