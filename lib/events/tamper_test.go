//go:build unix

package events

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/accessd/accessd/lib/fault"
)

// F28: what changes no byte is no tampering: a copy has other times and modes.
func TestF28TimesDoNotMatter(t *testing.T) {
	s := newSpecimen(t)
	dir := s.copy(t)
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return errors.Join(os.Chtimes(name, time.Unix(0, 0), time.Unix(1, 0)), os.Chmod(name, 0o444))
	})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := Verify(t.Context(), dir, s.key.verifier); err != nil || r.Size != specimenSize {
		t.Errorf("Verify = %+v, %v", r, err)
	}
}

// F28: files of the log's own past in place of today's, one by one and in groups,
// are found; only all of them together need a checkpoint that was kept.
func TestF28OlderFiles(t *testing.T) {
	s := newSpecimen(t)
	kept := read(t, s.dir, "checkpoint")
	bring := func(dir string, names ...string) {
		for _, name := range names {
			write(t, filepath.Join(dir, name), read(t, s.older, name))
		}
	}
	// The older log ended with a partial bundle of entries 256 to 299.
	const oldBundle, oldTile = "tile/entries/001.p/44", "tile/0/001.p/44"
	dir := s.copy(t)
	write(t, filepath.Join(dir, bundle1), read(t, s.older, oldBundle))
	_, err := Verify(t.Context(), dir, s.key.verifier)
	if wrong, ok := errors.AsType[*TamperedError](err); !ok || wrong.File != bundle1 || wrong.Entry != 256 {
		t.Errorf("an older bundle: Verify = %v", err)
	}
	write(t, filepath.Join(dir, "tile/0/001"), read(t, s.older, oldTile))
	_, err = Verify(t.Context(), dir, s.key.verifier)
	if wrong, ok := errors.AsType[*TamperedError](err); !ok || wrong.File != bundle1 {
		t.Errorf("an older bundle and its tile: Verify = %v", err)
	}
	bring(dir, "checkpoint", treeState)
	for _, name := range []string{oldBundle, oldTile, "tile/1/000.p/1"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		bring(dir, name)
	}
	if _, err := Verify(t.Context(), dir, s.key.verifier); err != nil {
		t.Errorf("a whole older state: Verify = %v, want nothing found without a checkpoint", err)
	}
	_, err = Verify(t.Context(), dir, s.key.verifier, kept)
	if wrong, ok := errors.AsType[*TamperedError](err); !ok || wrong.Entry != olderSize || !strings.Contains(wrong.Reason, "earlier checkpoint 1 signed 700 entries") {
		t.Errorf("a whole older state, and a kept checkpoint: Verify = %v", err)
	}
}

// F28: who edits an entry is told which event stands there now.
func TestF28TheWrongEventIsNamed(t *testing.T) {
	s := newSpecimen(t)
	dir := s.copy(t)
	replace(t, filepath.Join(dir, bundle1), `"command":"300"`, `"command":"301"`)
	ev, err := ParseEvent(s.events[300])
	if err != nil {
		t.Fatal(err)
	}
	_, err = Verify(t.Context(), dir, s.key.verifier)
	if want := "entry 300 (" + bundle1 + "): it is exec " + ev.UID + " now: its hash is not the one in tile/0/001"; fault.Public(err) != want {
		t.Errorf("Verify = %q, want %q", fault.Public(err), want)
	}
}

// F28: the index proves nothing, so lies in it end nowhere: a proof of another
// event is not made, an index of another log is refused, and without an index
// everything is found again.
func TestF28IndexTampering(t *testing.T) {
	s := newSpecimen(t)
	dir := s.copy(t)
	uid := func(i int) uuid.UUID {
		e, err := parseEntry(s.events[i])
		if err != nil {
			t.Fatal(err)
		}
		return e.uid
	}
	change := func(statement string, args ...any) {
		t.Helper()
		db, err := sql.Open("sqlite", filepath.Join(dir, indexName))
		if err == nil {
			_, err = db.ExecContext(t.Context(), statement, args...)
		}
		if err = errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	first, second := uid(3), uid(4)
	change("UPDATE uids SET entry = 4 WHERE uid = ?", first[:])
	change("DELETE FROM uids WHERE uid = ?", second[:])
	l := openTestLog(t, dir, s.key)
	mustVerify(t, l, specimenSize)
	if err := l.VerifyIndex(t.Context()); !strings.HasPrefix(fmt.Sprint(err), "entry 3 (index.db): event "+first.String()+" is not where the index says") {
		t.Errorf("VerifyIndex = %v", err)
	}
	if _, err := l.Prove(t.Context(), first.String()); !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), "which it is not") {
		t.Errorf("a proof by an index that lies: %v", err)
	}
	if _, err := l.Prove(t.Context(), second.String()); !fault.Is(err, fault.NotFound) {
		t.Errorf("a proof by an index that hides: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.RemoveAll(filepath.Join(dir, indexName+suffix)); err != nil {
			t.Fatal(err)
		}
	}
	l = openTestLog(t, dir, s.key)
	for _, i := range []int{3, 4} {
		if p, err := CheckProof(mustProve(t, l, s.events[i]), s.key.verifier); err != nil || p.Entry != uint64(i) {
			t.Errorf("after the index was made anew: %+v, %v", p, err)
		}
	}
	if err := l.VerifyIndex(t.Context()); err != nil {
		t.Errorf("VerifyIndex = %v", err)
	}

	// Events are hidden from queries, block by block.
	for _, c := range []struct{ undo, statement, want string }{
		{"CREATE TABLE kept AS SELECT * FROM blocks", "DELETE FROM blocks WHERE block = 1", "entry 256 (index.db): its block is missing"},
		{"INSERT OR REPLACE INTO blocks SELECT * FROM kept", "UPDATE blocks SET terms = zeroblob(1984) WHERE block = 2", "entry 512 (index.db): exec "},
		{"INSERT OR REPLACE INTO blocks SELECT * FROM kept", "UPDATE blocks SET latest = earliest WHERE block = 0", "entry 1 (index.db): exec "},
		{"INSERT OR REPLACE INTO blocks SELECT * FROM kept", "UPDATE texts SET grams = zeroblob(4032) WHERE block = 1", "entry 256 (index.db): exec "},
	} {
		change(c.undo)
		change(c.statement)
		if err := l.VerifyIndex(t.Context()); !strings.HasPrefix(fmt.Sprint(err), c.want) {
			t.Errorf("%s: VerifyIndex = %v, want %q", c.statement, err, c.want)
		}
	}
}

// F29: a file of the log is moved away while it is open, as a rotation by rename
// would do. What is acknowledged then is in the log, what is not is taken again, and
// when the file is back the log is whole.
func TestF29LogFilesMovedAway(t *testing.T) {
	for _, name := range []string{
		"checkpoint", treeState, "tile/entries/001.p/44", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/000", "tile", ".state",
	} {
		t.Run(name, func(t *testing.T) {
			key := newTestKey(t, "example.com/audit")
			dir := t.TempDir()
			l := openTestLog(t, dir, key)
			events := numbered(t, 0, 310)
			mustAppend(t, l, events[:olderSize]...)
			mustVerify(t, l, olderSize)
			kept := read(t, dir, "checkpoint")
			file := filepath.Join(dir, filepath.FromSlash(name))
			if err := os.Rename(file, file+".away"); err != nil {
				t.Fatal(err)
			}
			err := l.Append(t.Context(), events[olderSize:])
			if err != nil && !fault.Is(err, fault.Unavailable) {
				t.Errorf("Append = %v", err)
			}
			if _, made := os.Stat(file); made != nil || err != nil {
				if err := os.RemoveAll(file); err != nil { // of .state what was made anew
					t.Fatal(err)
				}
				if err := os.Rename(file+".away", file); err != nil {
					t.Fatal(err)
				}
			}
			mustAppend(t, l, events[olderSize:]...) // as a spool does; the log knows the uids
			mustVerify(t, l, len(events))
			if _, err := l.Verify(t.Context(), kept); err != nil {
				t.Errorf("Verify = %v", err)
			}
			checkSame(t, "query", contents(t, l, Filter{}), events)
		})
	}
}
