//go:build unix

package events

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/accessd/accessd/lib/fault"
)

func TestPeriodNames(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "2026", "2026-00", "2026-13", "2026-1", "2026-11.", "2026-11.1", "2026-11.0", "2026-11.02", "x2026-11", "2026-11/", "2026-11.1000000", "２026-11"} {
		if p, ok := parsePeriod(text); ok {
			t.Errorf("%q is taken as %v", text, p)
		}
	}
	sorted := []string{"", "0001-01", "2026-09", "2026-11", "2026-11.2", "2026-11.10", "2026-12", "2027-01"}
	for i, text := range sorted {
		if p, ok := parsePeriod(text); i > 0 && (!ok || p.String() != text) {
			t.Errorf("%q is %v, %v", text, p, ok)
		}
		for j := range sorted {
			if got := comparePeriods(text, sorted[j]); got < 0 != (i < j) || got > 0 != (i > j) {
				t.Errorf("compare %q with %q = %d", text, sorted[j], got)
			}
		}
	}
	now := time.Date(2026, 11, 30, 23, 30, 0, 0, time.FixedZone("", -3600)) // December in UTC
	for last, want := range map[string]string{"": "2026-12", "2026-11.7": "2026-12", "2026-12": "2026-12.2", "2026-12.2": "2026-12.3", "2031-05": "2031-05.2"} {
		if got := nextPeriod(last, now); got != want {
			t.Errorf("behind %q: %q, want %q", last, got, want)
		}
	}
	began := time.Date(2026, 12, 31, 23, 30, 0, 0, time.FixedZone("", 3600))
	for r, want := range map[Rotation]string{"": "0001-01-01", Never: "0001-01-01", Monthly: "2027-01-01", Yearly: "2027-01-01"} {
		if got := r.due(began).Format(time.DateOnly); got != want {
			t.Errorf("%q is due at %s, want %s", r, got, want)
		}
	}
	if !Monthly.due(time.Time{}).IsZero() {
		t.Error("an empty log is due")
	}
}

// The log is rotated by the calendar, also when the month ended while it was
// stopped, and only then.
func TestRotationByTheCalendar(t *testing.T) {
	t.Parallel()
	dir, key, c := t.TempDir(), newTestKey(t, testOrigin), newClock("2026-03-31")
	run := func(r Rotation, until string) *Log {
		t.Helper()
		l, err := OpenLog(t.Context(), LogConfig{Dir: dir, Signer: key.signer, VerifierKey: key.verifier, Now: c.read, Rotate: r, By: "authority:one"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		for l.view().newest().name != until {
			_, _, changed := l.state()
			select {
			case <-changed:
			case <-time.After(publishPoll):
			}
		}
		stop()
		if err := errors.Join(<-done, l.Close()); err != nil {
			t.Error(err)
		}
		return l
	}
	l := openClockedLog(t, dir, key, c)
	mustAppend(t, l, numbered(t, 0, 3)...) // on 2026-03-01
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	run(Monthly, "") // still March
	c.set("2026-04-01")
	run(Never, "")
	run(Yearly, "")
	run(Monthly, "2026-04")
	run(Monthly, "2026-04")
	c.set("2027-01-02")
	run(Yearly, "2027-01")
	c.set("2026-12-31") // the clock goes back
	run(Monthly, "2027-01")
	l = openClockedLog(t, dir, key, c)
	r, err := l.Verify(t.Context())
	if want := []string{"/2027-01 1", "/2026-04 1", " 3"}; err != nil || !slices.Equal(sizes(r), want) {
		t.Errorf("Verify = %q, %v; want %q", sizes(r), err, want)
	}
	list := contents(t, l, Filter{Event: "audit.rotate"})
	for i, want := range []string{`"period":"2026-04","reason":"a new period began: audit.rotate is monthly"`, `"period":"2027-01","reason":"a new period began: audit.rotate is yearly"`} {
		if i >= len(list) || !strings.Contains(string(list[i]), want) || !strings.Contains(string(list[i]), `"by":"authority:one"`) {
			t.Errorf("%s; want %s", list, want)
		}
	}
}

// What fails while a period is closed leaves the log as it was, and it goes on.
func TestRotationFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openClockedLog(t, dir, newTestKey(t, testOrigin), newClock("2026-11-30"))
	refused := func(kind fault.Kind) {
		t.Helper()
		if _, err := l.Rotate(t.Context(), "local:0", ""); !fault.Is(err, kind) {
			t.Errorf("Rotate = %v, want %v", err, kind)
		}
	}
	refused(fault.Conflict) // nothing in it
	forged := encode(t, Event{Name: AuditRotate, UID: uuid.NewString(), Fields: map[string]any{"period": "2026-11"}})
	if err := l.Append(t.Context(), [][]byte{forged}); !fault.Is(err, fault.BadInput) {
		t.Errorf("Append of a rotation = %v, want it refused", err)
	}
	events := numbered(t, 0, 9)
	mustAppend(t, l, events[:3]...)
	write(t, filepath.Join(dir, "2026-11"), []byte("in the way")) // Rename fails
	refused(fault.Unavailable)
	mustAppend(t, l, events[3:6]...)
	mustVerify(t, l, 6)
	if _, err := os.Stat(filepath.Join(dir, nextTree)); err == nil {
		t.Error("what was begun is still there")
	}
	remove(t, filepath.Join(dir, "2026-11"))
	lock := filepath.Join(dir, treeState+".lock") // a disk that takes nothing
	remove(t, lock)
	if err := os.Mkdir(lock, 0o700); err != nil {
		t.Fatal(err)
	}
	refused(fault.Unavailable)
	remove(t, lock)
	mustRotate(t, l)
	mustAppend(t, l, events[6:]...)
	checkSame(t, "query", withoutRotations(t, contents(t, l, Filter{})), events)

	// The new period is there, but cannot be opened: nothing goes into the old one any
	// more, until it can.
	size := int(l.view().newest().size)
	l.pending = func(context.Context) error { return errors.New("no descriptors left") }
	if err := l.Append(t.Context(), numbered(t, 9, 1)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Append = %v, want unavailable", err)
	}
	refused(fault.Unavailable)
	mustVerify(t, l, size)
	l.pending = nil
	mustAppend(t, l, numbered(t, 9, 1)...)
	mustVerify(t, l, size+1)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	refused(fault.Unavailable)
}

// A mirror has each period below its name, the older ones first: what is there is a
// log at every moment, and more than the log has when periods were archived.
func testMirroring(t *testing.T, p periods) {
	l := p.open(t, p.dir)
	s := &folderStore{dir: t.TempDir()}
	m, _ := newTestMirror(t, l, s)
	at := filepath.Join(s.dir, "audit", "one")
	round := func(want ...string) {
		t.Helper()
		broken := errors.New("the bucket is away")
		for n, done := 0, false; !done; n += 5 {
			left := n
			s.refuse = func(string) error {
				if left--; left < 0 {
					return broken
				}
				return nil
			}
			m.round(t.Context())
			done = !m.failing
			if _, err := os.Stat(filepath.Join(at, "checkpoint")); err == nil {
				if r, err := Verify(t.Context(), at, p.key.verifier); err != nil {
					t.Fatalf("after %d objects: Verify = %q, %v", n, sizes(r), err)
				}
			}
		}
		if r, err := Verify(t.Context(), at, p.key.verifier); err != nil || !slices.Equal(sizes(r), want) {
			t.Errorf("the mirror: %q, %v; want %q", sizes(r), err, want)
		}
	}
	round("/2026-12 401", "/2026-11 201", " 300")
	mustAppend(t, l, numbered(t, 2000, 10)...)
	mustRotate(t, l)
	mustAppend(t, l, numbered(t, 3000, 10)...)
	waitSigned(t, l, 11)
	m, _ = newTestMirror(t, l, s) // by the next process
	s.took = nil
	round("/2026-12.2 11", "/2026-12 411", "/2026-11 201", " 300")
	for _, name := range s.took {
		if !strings.HasPrefix(name, "audit/one/2026-12") {
			t.Errorf("what was there was brought again: %s", name)
		}
	}
	for _, name := range []string{"tile", "checkpoint", ".state"} {
		remove(t, filepath.Join(p.dir, name))
	}
	mustAppend(t, l, numbered(t, 4000, 1)...)
	waitSigned(t, l, 12)
	round("/2026-12.2 12", "/2026-12 411", "/2026-11 201", " 300")
}

// Each period is a log of its own for a witness, from its first checkpoint on; the
// one that was closed meanwhile is cosigned to its end.
func TestF28WitnessesOfPeriods(t *testing.T) {
	t.Parallel()
	key := newTestKey(t, testOrigin)
	dir, c := t.TempDir(), newClock("2026-11-30")
	l := openClockedLog(t, dir, key, c)
	mustAppend(t, l, numbered(t, 0, 300)...)
	mustVerify(t, l, 300)
	next, err := l.key.as(testOrigin + "/2026-11")
	if err != nil {
		t.Fatal(err)
	}
	list := startWitnesses(t, testKey{verifier: key.verifier + "\n" + next.text}, "one.example/witness")
	w := newWatched(t, l, list...)
	w.round(t.Context())
	mustAppend(t, l, numbered(t, 300, 50)...)
	mustRotate(t, l)
	mustAppend(t, l, numbered(t, 1000, 20)...)
	waitSigned(t, l, 21)
	w.round(t.Context())
	r, err := l.Verify(t.Context())
	if err != nil || len(r.Cosigned) != 2 {
		t.Fatalf("Verify = %d cosigned checkpoints, %v", len(r.Cosigned), err)
	}
	var covered []uint64
	for _, raw := range r.Cosigned {
		got, err := Cosignatures([][]byte{raw}, key.verifier, keysOf(list))
		if err != nil || len(got) != 1 {
			t.Fatalf("Cosignatures = %+v, %v", got, err)
		}
		covered = append(covered, got[0].Size)
	}
	if !slices.Equal(covered, []uint64{21, 350}) || len(w.said()) != 0 {
		t.Errorf("cosigned %d entries of the periods, want 21 and 350; %q", covered, w.said())
	}
	w = newWatched(t, l, list...) // the next process asks for nothing
	w.client.Transport = refuseAll{t}
	w.round(t.Context())

	// A proof of the closed period bears the cosignature of its last checkpoint.
	page, err := l.Query(t.Context(), Filter{}, 1, "1")
	if err != nil || len(page.Events) != 1 {
		t.Fatal(page, err)
	}
	e, err := ParseEvent(page.Events[0])
	if err != nil {
		t.Fatal(err)
	}
	proof, err := l.Prove(t.Context(), e.UID)
	if err != nil {
		t.Fatal(err)
	}
	p, err := CheckProof(proof, key.verifier)
	if err != nil || !slices.Equal(Cosigners(p.Checkpoint), []string{"one.example/witness"}) {
		t.Errorf("a proof of the closed period: %+v, %v", p, err)
	}

	// The owner begins the new period anew; what the witness cosigned tells.
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again := t.TempDir()
	if err := os.CopyFS(again, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	rename(t, filepath.Join(again, "2026-11", cosignedDir), filepath.Join(again, "x"))
	remove(t, filepath.Join(again, "2026-11"), filepath.Join(again, indexName))
	l = openClockedLog(t, again, key, c)
	mustRotate(t, l)
	mustAppend(t, l, numbered(t, 5000, 30)...)
	waitSigned(t, l, 31)
	rename(t, filepath.Join(again, "x"), filepath.Join(again, "2026-11", cosignedDir))
	_, err = l.Verify(t.Context())
	if wrong, ok := errors.AsType[*TamperedError](err); !ok || wrong.File != "2026-11/checkpoint" || !strings.Contains(wrong.Reason, "not those that were signed") {
		t.Errorf("a period begun anew: Verify = %v", err)
	}
	w = newWatched(t, l, list...)
	remove(t, filepath.Join(again, "2026-11", cosignedDir))
	w.round(t.Context())
	if said := w.said(); len(said) != 1 {
		t.Errorf("the witness of a period begun anew: %q", said)
	}
}

// refuseAll is a client that must not be used.
type refuseAll struct{ t *testing.T }

func (r refuseAll) RoundTrip(req *http.Request) (*http.Response, error) {
	r.t.Errorf("a request to %s", req.URL)
	return nil, errors.New("refused")
}
