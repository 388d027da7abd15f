//go:build unix

package events

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/accessd/accessd/lib/fault"
)

// testArchive moves periods to an archive with the verb's own function.
func testArchive(t *testing.T, p periods) {
	l := p.open(t, p.dir)
	s := &folderStore{dir: t.TempDir()}
	at := filepath.Join(s.dir, "audit", "one")
	var recorded []Archived
	a := Archiving{Period: FirstPeriod, Store: s, Prefix: "audit/one", Young: true, Record: func(a Archived) error {
		recorded = append(recorded, a)
		return nil
	}}
	whole := func(what string) {
		t.Helper()
		if r, err := Verify(t.Context(), p.dir, p.key.verifier); err != nil || len(r.Before) != 2 {
			t.Errorf("%s: the log is %q, %v; want it whole", what, sizes(r), err)
		}
	}
	for what, tt := range map[string]struct {
		change func(*Archiving)
		kind   fault.Kind
	}{
		"one that is not the oldest": {func(a *Archiving) { a.Period = "2026-11" }, fault.Conflict},
		"the newest":                 {func(a *Archiving) { a.Period = "2026-12" }, fault.Conflict},
		"none":                       {func(a *Archiving) { a.Period = "" }, fault.Conflict},
		"one that ended lately":      {func(a *Archiving) { a.Young = false }, fault.Conflict},
		"without its event":          {func(a *Archiving) { a.Record = func(Archived) error { return fault.New(fault.Unavailable, "no") } }, fault.Unavailable},
	} {
		other := a
		tt.change(&other)
		if _, err := l.Archive(t.Context(), other); !fault.Is(err, tt.kind) {
			t.Errorf("%s: %v, want %v", what, err, tt.kind)
		}
		whole(what)
	}

	// A mirror and sinks have a say.
	m, _ := newTestMirror(t, l, &folderStore{dir: t.TempDir()})
	if _, err := l.Archive(t.Context(), a); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "the mirror does not have all") {
		t.Errorf("before the mirror has it: %v", err)
	}
	m.round(t.Context())
	sinks := &Sinks{all: []*outlet{{name: "siem"}}}
	l.watched(sinks.lacks)
	sinks.all[0].moved("299")
	if _, err := l.Archive(t.Context(), a); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "sink siem does not have all") {
		t.Errorf("before a sink has it: %v", err)
	}
	sinks.all[0].moved("2000")
	if whole("before a mirror or sink has it"); len(recorded) != 0 {
		t.Errorf("recorded %+v, and nothing was archived", recorded)
	}

	// The archive fails at each call in turn.
	broken := errors.New("the bucket is away")
	for n := 0; len(recorded) == 0; n++ {
		left := n
		s.refuse = func(string) error {
			if left--; left < 0 {
				return broken
			}
			return nil
		}
		if _, err := l.Archive(t.Context(), a); err != nil {
			whole("after a failure")
		}
	}
	s.refuse = nil
	if got := recorded[0]; got.Origin != testOrigin || got.Size != 300 || len(recorded) != 1 {
		t.Errorf("recorded %+v", recorded)
	}
	if r, err := Verify(t.Context(), at, p.key.verifier); err != nil || r.Size != 300 {
		t.Errorf("the archive is %q, %v", sizes(r), err)
	}
	if r, err := VerifyArchived(t.Context(), p.dir, p.key.verifier); err != nil || len(r.Before) != 1 || r.Absent == nil || r.Absent.Size != 300 {
		t.Errorf("the log is %q, %v", sizes(r), err)
	}
	list, err := os.ReadDir(p.dir)
	if err != nil || slices.ContainsFunc(list, func(f os.DirEntry) bool {
		return slices.Contains([]string{"checkpoint", "tile", ".state", removing}, f.Name())
	}) {
		t.Errorf("left are %v, %v", list, err)
	}

	// The next goes there, too; together they verify.
	a.Period = "2026-11"
	if done, err := l.Archive(t.Context(), a); err != nil || done.Size != 201 || done.Period != "2026-11" {
		t.Fatalf("the second: %+v, %v", done, err)
	}
	if r, err := Verify(t.Context(), at, p.key.verifier); err != nil || len(r.Before) != 1 {
		t.Errorf("the archive is %q, %v", sizes(r), err)
	}
	if _, err := l.Archive(t.Context(), Archiving{Period: "2026-12"}); !fault.Is(err, fault.Conflict) {
		t.Errorf("the only one: %v", err)
	}
	more := numbered(t, 3000, 5)
	mustAppend(t, l, more...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = p.open(t, p.dir)
	page, err := l.Query(t.Context(), Filter{}, maxLimit, "")
	if err != nil || !slices.Equal(page.Archived, []string{testOrigin + "/2026-11"}) {
		t.Errorf("Query: archived %q, %v", page.Archived, err)
	}
	checkSame(t, "what is left", withoutRotations(t, page.Events), append(slices.Clone(p.events[500:]), more...))
}

// A period that was changed here stays here, and so does one whose archive has
// something else already.
func testArchiveRefuses(t *testing.T, p periods) {
	s := &folderStore{dir: t.TempDir()}
	a := Archiving{Period: FirstPeriod, Store: s, Prefix: "x", Young: true, Record: func(Archived) error { t.Error("recorded"); return nil }}
	l := p.open(t, p.dir)
	taken := filepath.Join(s.dir, "x", "tile", "entries", "000")
	if err := os.MkdirAll(filepath.Dir(taken), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, taken, []byte("another's"))
	if _, err := l.Archive(t.Context(), a); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("an archive with something else: %v", err)
	}
	bundle := filepath.Join(p.dir, "tile", "entries", "000")
	data := read(t, bundle)
	data[len(data)/2] ^= 1
	write(t, bundle, data)
	a.Prefix = "y"
	if _, err := l.Archive(t.Context(), a); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "does not verify") {
		t.Errorf("one that was changed: %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "checkpoint")); err != nil {
		t.Errorf("it is gone: %v", err)
	}
}

// Killed at any step of a removal, the next start finishes it; killed before its
// note, nothing happened.
func testKilledArchiving(t *testing.T, p periods) {
	for _, name := range []string{"", "2026-11"} {
		steps := []string{"checkpoint", ".state", "tile/entries/000", "tile/0", "tile", "cosigned"}
		for n := range len(steps) + 1 {
			dir := p.copy(t)
			before := 1
			if name != "" { // the first is gone already
				write(t, filepath.Join(dir, removing), []byte(FirstPeriod+"\n"))
				if err := p.open(t, dir).Close(); err != nil {
					t.Fatal(err)
				}
				before = 0
			}
			write(t, filepath.Join(dir, removing), []byte(calledPeriod(name)+"\n"))
			for _, file := range steps[:n] {
				if err := os.RemoveAll(filepath.Join(dir, name, file)); err != nil {
					t.Fatal(err)
				}
			}
			l := p.open(t, dir)
			if r, err := VerifyArchived(t.Context(), dir, p.key.verifier); err != nil || len(r.Before) != before || r.Absent == nil {
				t.Errorf("%s, after %d steps: %q, %v", calledPeriod(name), n, sizes(r), err)
			}
			if _, err := os.Stat(filepath.Join(dir, removing)); err == nil {
				t.Errorf("%s, after %d steps: the note is still there", calledPeriod(name), n)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	write(t, filepath.Join(p.dir, removing), []byte("../../etc\n"))
	if l, err := OpenLog(t.Context(), LogConfig{Dir: p.dir, Signer: p.key.signer, VerifierKey: p.key.verifier}); err == nil {
		t.Error("a note that names no period is followed")
		_ = l.Close()
	}
}
