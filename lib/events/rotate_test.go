//go:build unix

package events

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/transparency-dev/tessera"
	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/lib/fault"
)

const testOrigin = "example.com/audit"

// clock is a log's clock in tests.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock(text string) *clock {
	c := &clock{}
	c.set(text)
	return c
}

func (c *clock) set(text string) {
	now, err := time.Parse(time.DateOnly, text)
	if err != nil {
		panic(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = now
}

func (c *clock) read() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func openClockedLog(t testing.TB, dir string, key testKey, c *clock) *Log {
	t.Helper()
	l, err := OpenLog(t.Context(), LogConfig{Dir: dir, Signer: key.signer, VerifierKey: key.verifier, Now: c.read})
	if err != nil {
		t.Fatalf("OpenLog: %v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return l
}

func mustRotate(t testing.TB, l *Log) string {
	t.Helper()
	key, err := l.Rotate(t.Context(), "local:0", "a test")
	if err != nil {
		t.Fatalf("Rotate: %v", err)
	}
	origin, _, _ := strings.Cut(key, "+")
	return origin
}

// withoutRotations returns the events that are not the log's own.
func withoutRotations(t testing.TB, list [][]byte) (out [][]byte) {
	t.Helper()
	for _, data := range list {
		e, err := ParseEvent(data)
		if err != nil {
			t.Fatal(err)
		}
		if e.Name != AuditRotate {
			out = append(out, data)
		}
	}
	return out
}

// sizes returns the origins and the sizes of a report's periods, newest first.
func sizes(r Report) (out []string) {
	for _, p := range append([]Report{r}, r.Before...) {
		out = append(out, fmt.Sprint(strings.TrimPrefix(p.Origin, testOrigin), " ", p.Size))
	}
	return out
}

// periods is a closed log of three trees on disk: 300 entries, then 200 and the
// first entry, then 400 and the first entry.
type periods struct {
	dir    string
	key    testKey
	events [][]byte
	clock  *clock
}

func newPeriods(t *testing.T) periods {
	t.Helper()
	p := periods{dir: t.TempDir(), key: newTestKey(t, testOrigin), events: numbered(t, 0, 900), clock: newClock("2026-11-30")}
	l := openClockedLog(t, p.dir, p.key, p.clock)
	mustAppend(t, l, p.events[:300]...)
	mustRotate(t, l)
	mustAppend(t, l, p.events[300:500]...)
	p.clock.set("2026-12-01")
	mustRotate(t, l)
	mustAppend(t, l, p.events[500:]...)
	mustVerify(t, l, 401)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return p
}

// F28: what is said of one log holds for a log in periods.
func TestF28Periods(t *testing.T) {
	t.Parallel()
	p := newPeriods(t)
	for name, test := range map[string]func(*testing.T, periods){
		"reading": testReading, "tampering": testTampering, "forging": testForging, "going on": testGoingOn,
		"archiving": testArchiving, "mirroring": testMirroring, "archiving with the verb": testArchive,
		"an archive that is refused": testArchiveRefuses, "killed while archiving": testKilledArchiving,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			own := p
			own.dir = p.copy(t)
			test(t, own)
		})
	}
}

func (p periods) open(t *testing.T, dir string) *Log {
	t.Helper()
	return openClockedLog(t, dir, p.key, p.clock)
}

func (p periods) copy(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(p.dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A log in periods is one log to who reads it: nothing is lost or doubled over a
// rotation or a restart, with an index or without one; each period verifies and
// proves under its own origin, with the key that was there from the beginning.
func testReading(t *testing.T, p periods) {
	l := p.open(t, p.dir)
	want := []string{"/2026-12 401", "/2026-11 201", " 300"}
	for _, how := range []string{"reopened", "index deleted"} {
		t.Run(how, func(t *testing.T) {
			if how == "index deleted" {
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				for _, suffix := range []string{"", "-wal", "-shm"} {
					remove(t, filepath.Join(p.dir, indexName+suffix))
				}
				l = p.open(t, p.dir)
			}
			all := contents(t, l, Filter{})
			checkSame(t, "query", withoutRotations(t, all), p.events)
			if len(all) != len(p.events)+2 {
				t.Errorf("%d entries, want two more than %d", len(all), len(p.events))
			}
			mustAppend(t, l, p.events[250:600]...) // of all three, as a spool that was away ships them
			r, err := l.Verify(t.Context())
			if err != nil || !slices.Equal(sizes(r), want) || r.Absent != nil {
				t.Fatalf("Verify = %q, %v; want %q", sizes(r), err, want)
			}
			if err := l.VerifyIndex(t.Context()); err != nil {
				t.Errorf("VerifyIndex = %v", err)
			}
			var read [][]byte
			for after := ""; ; {
				page, err := l.Read(t.Context(), Filter{Event: "exec"}, 97, after)
				if err != nil {
					t.Fatal(err)
				}
				read = append(read, page.Events...)
				if after = page.After; !page.More {
					break
				}
			}
			checkSame(t, "read", read, p.events)
			for i, origin := range map[int]string{0: "", 299: "", 300: "/2026-11", 499: "/2026-11", 500: "/2026-12", 899: "/2026-12"} {
				e, err := ParseEvent(p.events[i])
				if err != nil {
					t.Fatal(err)
				}
				proof, err := l.Prove(t.Context(), e.UID)
				if err != nil {
					t.Fatal(err)
				}
				for _, keys := range []string{p.key.verifier, strings.Join(l.VerifierKeys(), "\n")} {
					got, err := CheckProof(proof, keys)
					if err != nil || got.Origin != testOrigin+origin || string(got.Event) != string(p.events[i]) {
						t.Errorf("event %d: %+v, %v", i, got, err)
					}
				}
			}
		})
	}
	// Each period's key is one that any tool takes for that origin, and for no other.
	keys := l.VerifierKeys()
	if len(keys) != 3 {
		t.Fatalf("%d keys, want 3: %q", len(keys), keys)
	}
	for i, dir := range []string{"", "2026-11", "2026-12"} {
		for j, key := range keys {
			v, err := note.NewVerifier(key)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := note.Open(read(t, p.dir, dir, "checkpoint"), note.VerifierList(v)); (err == nil) != (i == j) {
				t.Errorf("checkpoint of period %q with key %q: %v", dir, key, err)
			}
		}
	}
}

// Who follows the log over a rotation gets each event once.
func TestTailOverARotation(t *testing.T) {
	t.Parallel()
	l := openClockedLog(t, t.TempDir(), newTestKey(t, testOrigin), newClock("2026-11-30"))
	events := numbered(t, 0, 30)
	mustAppend(t, l, events[:10]...)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var got [][]byte
	ready := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- tail(ctx, l, tailed{Filter{Event: "exec"}, 5}, func(list [][]byte) error {
			if got = append(got, list...); len(got) == 5 {
				close(ready)
			}
			if len(got) == 25 {
				stop()
			}
			return nil
		})
	}()
	<-ready
	for _, at := range []int{10, 20} {
		mustRotate(t, l)
		mustAppend(t, l, events[at:at+10]...)
	}
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	checkSame(t, "tail", got, events[5:])
}

// Appends that come while the log is rotated go into one tree or the other.
func TestAppendsWhileRotating(t *testing.T) {
	t.Parallel()
	l := openClockedLog(t, t.TempDir(), newTestKey(t, testOrigin), newClock("2026-11-30"))
	events := numbered(t, 0, 200)
	mustAppend(t, l, events[0])
	var wg sync.WaitGroup
	for chunk := range slices.Chunk(events, 50) {
		wg.Go(func() {
			for few := range slices.Chunk(chunk, 5) {
				if err := l.Append(t.Context(), few); err != nil {
					t.Errorf("Append = %v", err)
				}
			}
		})
	}
	for range 3 {
		mustRotate(t, l)
	}
	wg.Wait()
	seen := map[string]int{}
	for _, data := range withoutRotations(t, contents(t, l, Filter{})) {
		seen[string(data)]++
	}
	for _, data := range events {
		if seen[string(data)] != 1 {
			t.Errorf("%s is there %d times", data, seen[string(data)])
		}
	}
	r, err := l.Verify(t.Context())
	if err != nil || len(r.Before) != 3 {
		t.Errorf("Verify = %q, %v", sizes(r), err)
	}
}

// F28: whatever is done to one period is found, and to the chain of them, and the
// file is named with its period.
func testTampering(t *testing.T, p periods) {
	kept := read(t, p.dir, "checkpoint")
	for _, tt := range []struct {
		name string
		harm func(t *testing.T, at func(...string) string)
		file string
		says string
	}{
		{"edit an entry of the first", func(t *testing.T, at func(...string) string) {
			replace(t, at(bundle0), `"command":"17"`, `"command":"18"`)
		}, bundle0, "entry 17"},
		{"edit an entry of a middle one", func(t *testing.T, at func(...string) string) {
			replace(t, at("2026-11", "tile/entries/000.p/201"), `"command":"317"`, `"command":"318"`)
		}, "2026-11/tile/entries/000.p/201", "entry 18"},
		{"remove the first", func(t *testing.T, at func(...string) string) {
			remove(t, at("tile"), at("checkpoint"), at(".state"))
		}, "checkpoint", "the first period, which had 300 entries, is not here"},
		{"remove the files of the first, but its checkpoint", func(t *testing.T, at func(...string) string) {
			remove(t, at("tile"), at(".state"))
		}, bundle0, "missing"},
		{"remove a middle one", func(t *testing.T, at func(...string) string) { remove(t, at("2026-11")) }, "2026-11/checkpoint", "is not here"},
		{"remove the two oldest", func(t *testing.T, at func(...string) string) {
			remove(t, at("tile"), at("checkpoint"), at(".state"), at("2026-11"))
		}, "2026-11/checkpoint", "period 2026-11, which had 201 entries, is not here"},
		{"swap two", func(t *testing.T, at func(...string) string) {
			rename(t, at("2026-11"), at("x"))
			rename(t, at("2026-12"), at("2026-11"))
			rename(t, at("x"), at("2026-12"))
		}, "2026-12/checkpoint", ""},
		{"a copy of an old one as the newest", func(t *testing.T, at func(...string) string) {
			if err := os.CopyFS(at("2027-01"), os.DirFS(at("2026-11"))); err != nil {
				t.Fatal(err)
			}
		}, "2027-01/checkpoint", "not this period's"},
		{"an older checkpoint of a closed one", func(t *testing.T, at func(...string) string) {
			text := fmt.Sprintf("%s\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n", testOrigin)
			signed, err := note.Sign(&note.Note{Text: text}, p.key.signer)
			if err != nil {
				t.Fatal(err)
			}
			write(t, at("checkpoint"), signed)
		}, "checkpoint", "cut short"},
		{"sign again with another key", func(t *testing.T, at func(...string) string) {
			resign(t, at("2026-11", "checkpoint"), newTestKey(t, testOrigin+"/2026-11"), func(s string) string { return s })
		}, "2026-11/checkpoint", "signed by"},
		{"edit what entry 0 says of the period before", func(t *testing.T, at func(...string) string) {
			replace(t, at("2026-11", "tile/entries/000.p/201"), `\u000a300\u000a`, `\u000a299\u000a`)
		}, "2026-11/tile/entries/000.p/201", "entry 0"},
		{"another log as a period", func(t *testing.T, at func(...string) string) {
			other := newTestKey(t, testOrigin+"/2026-11")
			l := openTestLog(t, filepath.Join(t.TempDir(), "other"), other)
			mustAppend(t, l, numbered(t, 300, 201)...)
			waitSigned(t, l, 201)
			remove(t, at("2026-11"))
			if err := errors.Join(l.Close(), os.CopyFS(at("2026-11"), os.DirFS(l.cfg.Dir))); err != nil {
				t.Fatal(err)
			}
		}, "2026-11/checkpoint", "signed by"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := p.copy(t)
			tt.harm(t, func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) })
			_, err := Verify(t.Context(), dir, p.key.verifier)
			wrong, ok := errors.AsType[*TamperedError](err)
			if !ok || wrong.File != tt.file || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Verify = %v; want %s: %s", err, tt.file, tt.says)
			}
		})
	}
	t.Run("kept checkpoints of each period", func(t *testing.T) {
		earlier := [][]byte{kept, read(t, p.dir, "2026-11", "checkpoint"), read(t, p.dir, "2026-12", "checkpoint")}
		if _, err := Verify(t.Context(), p.dir, p.key.verifier, earlier...); err != nil {
			t.Errorf("Verify = %v", err)
		}
		dir := p.copy(t) // cut back by a whole period, which agrees with itself
		remove(t, filepath.Join(dir, "2026-12"))
		if _, err := Verify(t.Context(), dir, p.key.verifier, earlier[:2]...); err != nil {
			t.Errorf("an honest old copy: Verify = %v", err)
		}
		if _, err := Verify(t.Context(), dir, p.key.verifier, earlier...); err == nil || !strings.Contains(err.Error(), "cut back") {
			t.Errorf("cut back by a period: Verify = %v", err)
		}
		remove(t, filepath.Join(dir, "2026-11"))
		if _, err := Verify(t.Context(), dir, p.key.verifier, earlier[2]); err == nil || !strings.Contains(err.Error(), "cut back") {
			t.Errorf("cut back to the first period: Verify = %v", err)
		}
	})
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// F28: the owner of the key makes a period anew. What goes on from the old one, and
// checkpoints that others keep, tell.
func testForging(t *testing.T, p periods) {
	forge := t.TempDir()
	l := openClockedLog(t, forge, p.key, newClock("2026-11-30"))
	mustAppend(t, l, p.events[:300]...)
	mustRotate(t, l)
	mustAppend(t, l, numbered(t, 5000, 200)...) // other events, the same number
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	dir := p.copy(t)
	remove(t, filepath.Join(dir, "2026-11"))
	if err := os.CopyFS(filepath.Join(dir, "2026-11"), os.DirFS(filepath.Join(forge, "2026-11"))); err != nil {
		t.Fatal(err)
	}
	_, err := Verify(t.Context(), dir, p.key.verifier)
	if wrong, ok := errors.AsType[*TamperedError](err); !ok || wrong.File != "2026-11/checkpoint" || !strings.Contains(wrong.Reason, "goes on from") {
		t.Errorf("a period made anew: Verify = %v", err)
	}
	if _, err := OpenLog(t.Context(), LogConfig{Dir: dir, Signer: p.key.signer, VerifierKey: p.key.verifier}); !fault.Is(err, fault.Internal) {
		t.Errorf("OpenLog = %v, want it refused", err)
	}
	_, err = Verify(t.Context(), forge, p.key.verifier, read(t, p.dir, "2026-11", "checkpoint"))
	if wrong, ok := errors.AsType[*TamperedError](err); !ok || wrong.File != "2026-11/checkpoint" {
		t.Errorf("a kept checkpoint of the period: Verify = %v", err)
	}

	// An entry 0 that does not say where the period before ended, signed all the same.
	for name, first := range map[string][]byte{
		"no rotation":           numbered(t, 1, 1)[0],
		"nothing said":          encode(t, Event{Name: AuditRotate, UID: uuid.NewString(), Fields: map[string]any{"base": 512}}),
		"a later period before": firstEntry(t, read(t, p.dir, "2026-12", "checkpoint")),
		"unsigned":              firstEntry(t, []byte(strings.Split(string(read(t, p.dir, "checkpoint")), "\n\n")[0]+"\n")),
		"another log's": firstEntry(t, func() []byte {
			other := newTestKey(t, "example.com/other")
			signed, err := note.Sign(&note.Note{Text: strings.Replace(strings.Split(string(read(t, p.dir, "checkpoint")), "\n\n")[0], testOrigin, "example.com/other", 1) + "\n"}, other.signer)
			if err != nil {
				t.Fatal(err)
			}
			return signed
		}()),
	} {
		t.Run(name, func(t *testing.T) {
			dir := p.copy(t)
			remove(t, filepath.Join(dir, "2026-11"), filepath.Join(dir, "2026-12"))
			key, err := (logKey{verifierOf(t, p.key.verifier), p.key.verifier}).as(testOrigin + "/2026-11")
			if err != nil {
				t.Fatal(err)
			}
			l := &Log{cfg: LogConfig{Dir: dir, Signer: p.key.signer, Log: zap.NewNop()}}
			a, err := l.startTree(t.Context(), "2026-11", key)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.tree.Add(t.Context(), tessera.NewEntry(first))(); err != nil {
				t.Fatal(err)
			}
			a.stop() // signs it
			_, err = Verify(t.Context(), dir, p.key.verifier)
			if wrong, ok := errors.AsType[*TamperedError](err); !ok || wrong.Entry != 0 || !strings.HasPrefix(wrong.File, "2026-11/tile/entries/") {
				t.Errorf("Verify = %v, want entry 0 refused", err)
			}
			if _, err := OpenLog(t.Context(), LogConfig{Dir: dir, Signer: p.key.signer, VerifierKey: p.key.verifier}); !fault.Is(err, fault.Internal) {
				t.Errorf("OpenLog = %v, want it refused", err)
			}
		})
	}
}

func firstEntry(t *testing.T, checkpoint []byte) []byte {
	t.Helper()
	return encode(t, Event{Name: AuditRotate, UID: uuid.NewString(), Fields: map[string]any{"base": 512, "checkpoint": string(checkpoint)}})
}

func verifierOf(t *testing.T, text string) note.Verifier {
	t.Helper()
	v, err := note.NewVerifier(text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func waitSigned(t *testing.T, l *Log, size uint64) {
	t.Helper()
	if _, _, err := l.view().newest().awaitSignature(t.Context(), size); err != nil {
		t.Fatal(err)
	}
}

// The owner lets a closed period go on, and signs that.
func testGoingOn(t *testing.T, p periods) {
	longer := filepath.Join(t.TempDir(), "longer")
	if err := os.CopyFS(longer, os.DirFS(p.dir)); err != nil {
		t.Fatal(err)
	}
	remove(t, filepath.Join(longer, "2026-11"), filepath.Join(longer, "2026-12"), filepath.Join(longer, indexName))
	l := openTestLog(t, longer, p.key)
	mustAppend(t, l, numbered(t, 7000, 3)...)
	mustVerify(t, l, 303)
	dir := p.copy(t)
	for _, name := range []string{"tile", "checkpoint", ".state"} {
		remove(t, filepath.Join(dir, name))
	}
	if err := errors.Join(l.Close(), os.CopyFS(dir, os.DirFS(longer))); err != nil && !strings.Contains(err.Error(), "exists") {
		t.Fatal(err)
	}
	_, err := Verify(t.Context(), dir, p.key.verifier)
	if wrong, ok := errors.AsType[*TamperedError](err); !ok || wrong.File != "checkpoint" || wrong.Entry != 300 || !strings.Contains(wrong.Reason, "behind the end") {
		t.Errorf("Verify = %v", err)
	}
}

// Archived periods are named where they are looked for; what is left verifies up
// to them, and the log goes on.
func testArchiving(t *testing.T, p periods) {
	l := p.open(t, p.dir) // open when they are moved away
	archive := t.TempDir()
	for _, name := range []string{"tile", "checkpoint", ".state"} {
		rename(t, filepath.Join(p.dir, name), filepath.Join(archive, name))
	}
	check := func(t *testing.T, l *Log) {
		t.Helper()
		page, err := l.Query(t.Context(), Filter{}, maxLimit, "")
		if err != nil || !slices.Equal(page.Archived, []string{testOrigin}) {
			t.Fatalf("Query: archived %q, %v", page.Archived, err)
		}
		checkSame(t, "query", withoutRotations(t, page.Events), p.events[300:])
		if page, err = l.Query(t.Context(), Filter{}, 5, ""); err != nil || len(page.Archived) != 0 {
			t.Errorf("a page that ends before them: archived %q, %v", page.Archived, err)
		}
		since := Filter{Since: p.clock.read().Add(-time.Minute)}
		if page, err = l.Query(t.Context(), since, 0, ""); err != nil || len(page.Archived) != 0 {
			t.Errorf("a window behind them: archived %q, %v", page.Archived, err)
		}
		if page, err = l.Read(t.Context(), Filter{}, maxLimit, ""); err != nil || !slices.Equal(page.Archived, []string{testOrigin}) {
			t.Errorf("Read: archived %q, %v", page.Archived, err)
		}
		checkSame(t, "read", withoutRotations(t, page.Events), p.events[300:])
		if _, err = l.Read(t.Context(), Filter{}, 10, "17"); !fault.Is(err, fault.NotFound) {
			t.Errorf("Read of what was archived = %v, want not found", err)
		}
		if page, err = l.Read(t.Context(), Filter{}, 10, "300"); err != nil || len(page.Events) != 10 {
			t.Errorf("Read from where the archived ends = %d events, %v", len(page.Events), err)
		}
		if _, err := l.Verify(t.Context()); err == nil || !strings.Contains(err.Error(), "the first period, which had 300 entries, is not here") {
			t.Errorf("Verify = %v", err)
		}
		for _, earlier := range [][][]byte{nil, {read(t, archive, "checkpoint"), read(t, p.dir, "2026-11", "checkpoint")}} {
			r, err := VerifyArchived(t.Context(), p.dir, p.key.verifier, earlier...)
			if err != nil || len(r.Before) != 1 || r.Absent == nil || r.Absent.Origin != testOrigin || r.Absent.Size != 300 ||
				string(r.Absent.Checkpoint) != string(read(t, archive, "checkpoint")) {
				t.Errorf("VerifyArchived = %+v, %v", r, err)
			}
		}
		if err := l.VerifyIndex(t.Context()); err != nil {
			t.Errorf("VerifyIndex = %v", err)
		}
	}
	t.Run("while the log is open", func(t *testing.T) {
		check(t, l)
		e, err := ParseEvent(p.events[3])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Prove(t.Context(), e.UID); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "not here") {
			t.Errorf("Prove of what was archived = %v", err)
		}
		mustAppend(t, l, p.events[290:310]...) // their uids are known all the same
		if r, err := VerifyArchived(t.Context(), p.dir, p.key.verifier); err != nil || r.Size != 401 {
			t.Errorf("a uid of the archive was taken again: %d entries, %v", r.Size, err)
		}
	})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = p.open(t, p.dir)
	t.Run("reopened", func(t *testing.T) { check(t, l) })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		remove(t, filepath.Join(p.dir, indexName+suffix))
	}
	l = p.open(t, p.dir)
	t.Run("index deleted", func(t *testing.T) { check(t, l) })
	t.Run("a checkpoint of the middle of the archive", func(t *testing.T) {
		early := []byte(strings.Replace(strings.Split(string(read(t, archive, "checkpoint")), "\n\n")[0], "\n300\n", "\n100\n", 1) + "\n")
		signed, err := note.Sign(&note.Note{Text: string(early)}, p.key.signer)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyArchived(t.Context(), p.dir, p.key.verifier, signed); err == nil || !strings.Contains(err.Error(), "bring it back") {
			t.Errorf("VerifyArchived = %v", err)
		}
	})
	t.Run("the archived one alone", func(t *testing.T) {
		if r, err := Verify(t.Context(), archive, p.key.verifier); err != nil || r.Size != 300 {
			t.Errorf("Verify = %+v, %v", r, err)
		}
		r, err := VerifyArchived(t.Context(), filepath.Join(p.dir, "2026-11"), p.key.verifier)
		if err != nil || r.Origin != testOrigin+"/2026-11" || r.Absent == nil {
			t.Errorf("VerifyArchived = %+v, %v", r, err)
		}
	})
	mustAppend(t, l, numbered(t, 2000, 5)...)
	if got := mustRotate(t, l); got != testOrigin+"/2026-12.2" {
		t.Errorf("the next period is %q", got)
	}
}

// rotateChild appends, rotates, and appends again, and says what is done.
func rotateChild(dir string) error {
	p, err := openCrashParts(context.Background(), dir)
	if err != nil {
		return err
	}
	for range 2 {
		ev := Event{Name: Exec, UID: uuid.NewString(), Time: time.Now(), Fields: map[string]any{"command": "x"}}
		data, err := newSchema().encode(ev, MaxEvent)
		if err != nil {
			return err
		}
		if err := p.log.Append(context.Background(), [][]byte{data}); err != nil {
			return err
		}
		fmt.Println("exec", ev.UID)
		if len(p.log.view().trees) > 1 {
			break
		}
		if _, err := p.log.Rotate(context.Background(), "local:0", "a test"); err != nil {
			return err
		}
	}
	if err := errors.Join(p.ledger.Close(), p.emitter.Close(), p.log.Close()); err != nil {
		return err
	}
	fmt.Println("ready")
	return nil
}

// F04: killed when a thread enters any of the calls that make, sync or name
// something while a period is closed. Each time the next start finds the old period
// or the new one, whole; what was acknowledged is there once, and the log can be
// rotated.
func TestF04KilledWhileRotating(t *testing.T) {
	t.Parallel()
	was := crashDir(t)
	p, err := openCrashParts(t.Context(), was)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, p.log, numbered(t, 0, 3)...)
	mustVerify(t, p.log, 3)
	if err := errors.Join(p.ledger.Close(), p.emitter.Close(), p.log.Close()); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	found := map[int]int{} // periods
	for _, calls := range []string{"fsync", "rename,renameat,renameat2,mkdir,mkdirat,rmdir,unlinkat"} {
		var ended sync.Once
		over := make(chan struct{})
		next := make(chan int)
		go func() {
			defer close(next)
			for n := 1; n < 500; n++ {
				select {
				case next <- n:
				case <-over:
					return
				}
			}
		}()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for n := range next {
					dir := filepath.Join(t.TempDir(), "copy")
					if err := os.CopyFS(dir, os.DirFS(was)); err != nil {
						t.Error(err)
						return
					}
					acked, done := map[string]string{}, false
					cmd, out := startChild(t, "rotate", dir, "strace", "-f", "-qq", "-o", os.DevNull,
						"-e", "trace="+calls, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", calls, n))
					readAcks(out, acked, func() { done = true })
					if err := cmd.Wait(); err != nil && done {
						t.Errorf("the child ended with %v", err)
					}
					trees := checkRotated(t, dir, acked)
					mu.Lock()
					found[trees]++
					mu.Unlock()
					if done {
						ended.Do(func() { close(over) })
						return
					}
				}
			})
		}
		wg.Wait()
	}
	t.Logf("periods after a kill: %v", found)
	if found[1] == 0 || found[2] == 0 || len(found) != 2 {
		t.Errorf("periods after a kill: %v, want one or two, and each at times", found)
	}
}

// checkRotated opens what a kill left, and returns how many periods that is.
func checkRotated(t *testing.T, dir string, acked map[string]string) int {
	t.Helper()
	p, err := openCrashParts(t.Context(), dir)
	if err != nil {
		t.Errorf("after a kill: %v", err)
		return 0
	}
	trees := len(p.log.view().trees)
	seen := map[string]int{}
	for _, data := range contents(t, p.log, Filter{}) {
		e, err := ParseEvent(data)
		if err != nil {
			t.Error(err)
		}
		seen[e.UID]++
	}
	for uid := range acked {
		if seen[uid] != 1 {
			t.Errorf("acknowledged %s is in the log %d times", uid, seen[uid])
		}
	}
	mustAppend(t, p.log, numbered(t, 10, 1)...)
	if _, err := p.log.Rotate(t.Context(), "local:0", "again"); err != nil {
		t.Errorf("Rotate after a kill = %v", err)
	}
	if r, err := p.log.Verify(t.Context()); err != nil || len(r.Before) != trees {
		t.Errorf("Verify after a kill = %q, %v", sizes(r), err)
	}
	if err := errors.Join(p.ledger.Close(), p.emitter.Close(), p.log.Close()); err != nil {
		t.Error(err)
	}
	return trees
}
