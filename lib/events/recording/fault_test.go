//go:build unix

package recording

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// faultSession is the session that faultChild records.
const faultSession names.SessionID = "00000000-0000-4000-8000-000000000001"

// faultChild records a session on a disk that fails for a while, and says what
// became of each print.
func faultChild() error {
	runtime.LockOSThread() // strace counts by thread
	r, err := New(Config{Dir: "spool"})
	if err != nil {
		return err
	}
	failures := 0
	failed := func(err error) error {
		failures++
		if !fault.Is(err, fault.Unavailable) || !strings.HasPrefix(fault.Public(err), "the recording cannot be written: ") {
			return fmt.Errorf("the error is %w", err)
		}
		fmt.Println("error", strings.ReplaceAll(fault.Public(err), " ", "_"))
		return nil
	}
	var w *Recording
	for w == nil {
		if w, err = r.Begin(Header{Session: faultSession}); err != nil {
			if err := failed(err); err != nil {
				return err
			}
		}
	}
	for i, after := 0, 0; after < 40 && i < 2000; i++ {
		text := line(i, 20_000)
		err := w.Print(stdout, text)
		if err == nil {
			fmt.Println("print", i)
		} else {
			fmt.Println("lost", len(text))
			if err := failed(err); err != nil {
				return err
			}
		}
		if failures > 0 {
			after++
		}
	}
	sum, err := w.Close()
	for err != nil {
		if err := failed(err); err != nil {
			return err
		}
		sum, err = w.Close()
	}
	fmt.Println("end", sum.Parts, sum.Root, sum.Bytes)
	return r.Close()
}

// F05: each write of the recorder fails for a while. Begin, Print and Close say so
// and why; nothing that was acknowledged is lost, what was lost is a gap of as many
// bytes, and the recording goes on by itself.
func TestF05FailingDisk(t *testing.T) {
	reasons := map[string]string{"EIO": "input/output_error", "ENOSPC": "no_space_left_on_device", "EROFS": "read-only_file_system"}
	for _, c := range []struct{ file, call, fault string }{
		{"state", "write", "error=ENOSPC:when=1"},
		{"state", "write", "error=EIO:when=2..4"},
		{"000001.journal", "write", "error=ENOSPC:when=1..3"},
		{"000001.journal", "write", "error=EIO:when=1..3"},
		{"000001.journal", "write", "error=EROFS:when=3..5"},
		{"000002.journal", "write", "error=ENOSPC:when=5..7"},
		{"000002.journal", "write", "error=EIO:when=1..4"},
		{"000002.journal", "write", "error=EIO:when=4"},
		{"000002.journal", "ftruncate", "error=EIO:when=1"},
		{"000001.part.tmp", "write", "error=ENOSPC:when=1"},
		{"000001.part.tmp", "write", "error=EIO:when=1"},
		{"000001.part.tmp", "fsync", "error=EIO:when=1"},
		{"000001.part.tmp", "close", "error=EIO:when=1"},
		{"000002.part.tmp", "renameat,renameat2", "error=EROFS:when=1"},
		{"000001.journal", "unlinkat", "error=EIO:when=1..2"},
		{"000002.journal", "openat", "error=EROFS:when=1..3"},
	} {
		t.Run(c.file+" "+c.call+" "+c.fault, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "spool", string(faultSession), c.file)
			trace := filepath.Join(t.TempDir(), "trace")
			words := []string{"strace", "-f", "-qq", "-o", trace, "-P", path, "-P", c.file, "-e", "trace=" + c.call, "-e", "inject=" + c.call + ":" + c.fault}
			if c.call == "ftruncate" { // which needs a reason
				words = append(words, "-e", "trace=write,ftruncate", "-e", "inject=write:error=ENOSPC:when=3")
			}
			cmd, out := startChild(t, "fault", dir, words...)
			said, err := io.ReadAll(out)
			if err := errors.Join(err, cmd.Wait()); err != nil {
				t.Fatalf("%v\n%s", err, said)
			}
			if log, err := os.ReadFile(trace); err != nil || !strings.Contains(string(log), "INJECTED") {
				t.Fatalf("nothing failed: %v", err)
			}
			checkFaulty(t, filepath.Join(dir, "spool"), string(said), reasons)
		})
	}
}

// checkFaulty compares a recording with what its process said of it.
func checkFaulty(t *testing.T, spool, said string, reasons map[string]string) {
	t.Helper()
	var want strings.Builder
	var lost uint64
	var sum Summary
	failures := 0
	for text := range strings.Lines(said) {
		var n int
		switch words := strings.Fields(text); words[0] {
		case "print":
			fmt.Sscan(words[1], &n)
			want.Write(line(n, 20_000))
		case "lost":
			fmt.Sscan(words[1], &n)
			lost += uint64(n)
		case "error":
			failures++
			known := false
			for _, reason := range reasons {
				known = known || words[1] == "the_recording_cannot_be_written:_"+reason
			}
			if !known {
				t.Errorf("a person reads %q", words[1])
			}
		case "end":
			fmt.Sscan(strings.Join(words[1:], " "), &sum.Parts, &sum.Root, &sum.Bytes)
		}
	}
	frames := playDir(t, spool, faultSession, sum)
	var missing uint64
	for _, f := range frames {
		missing += f.GetGap().GetBytes()
	}
	got := printed(frames, stdout)
	if failures == 0 {
		t.Log("no caller noticed: it was mended before the next print")
	}
	if got != want.String() || missing != lost {
		t.Errorf("%d bytes are recorded and %d missing; %d were acknowledged and %d refused", len(got), missing, want.Len(), lost)
	}
	for _, name := range spooled(t, spool) {
		if strings.HasSuffix(name, tmpSuffix) || strings.HasSuffix(name, journalSuffix) {
			t.Errorf("%s stays", name)
		}
	}
}

// F05: a disk of 1 MB is full. Live recordings and new ones are refused with the
// cause; the part that cannot be closed ends a quiet session; then the disk has
// room again and everything goes on without a restart.
func TestF05DiskFull(t *testing.T) {
	disk := t.TempDir()
	if err := mountSmall(disk); err != nil {
		t.Logf("cannot mount a small file system (%v): TestF05FailingDisk alone tells", err)
		return
	}
	t.Cleanup(func() {
		if err := unmount(disk); err != nil {
			t.Error(err)
		}
	})
	r := newRecorder(t, Config{Dir: filepath.Join(disk, "spool")})
	told := make(chan error, 10)
	h := header()
	h.OnFail = func(err error) { told <- err }
	w, err := r.Begin(h)
	if err != nil {
		t.Fatal(err)
	}
	show(t, w, "before")
	second, secondHeader := begin(t, r)
	release := fill(t, filepath.Join(disk, "other"))

	const full = "the recording cannot be written: no space left on device"
	if err := w.Print(stdout, make([]byte, maxData)); fault.Public(err) != full {
		t.Errorf("Print = %v", err)
	}
	if _, err := r.Begin(header()); fault.Public(err) != full || !fault.Is(err, fault.Unavailable) {
		t.Errorf("Begin = %v", err)
	}
	w.mu.Lock()
	w.fullLocked() // as after 5 s
	w.mu.Unlock()
	if err := <-told; fault.Public(err) != full {
		t.Errorf("OnFail got %v", err)
	}
	sum := closed(t, w) // in the room that was kept for it
	playDir(t, r.cfg.Dir, secondHeader.Session, closed(t, second))
	if _, err := r.Begin(header()); fault.Public(err) != full {
		t.Errorf("Begin without the reserve = %v", err)
	}
	frames := playDir(t, r.cfg.Dir, h.Session, sum)
	if got := printed(frames, stdout); got != "before" {
		t.Errorf("%q is recorded", got)
	}
	if gap := frames[len(frames)-2].GetGap(); gap.GetBytes() != maxData || gap.GetReason() != full {
		t.Errorf("the gap is %v", gap)
	}
	if len(told) > 0 {
		t.Errorf("OnFail was called again: %v", <-told)
	}
	release()
	again, _ := begin(t, r)
	show(t, again, "after")
	closed(t, again)
}

// A recording that could not be closed when its session ended is closed once that
// is possible, without a restart.
func TestCloseIsTriedAgain(t *testing.T) {
	store := newMemory()
	r := newRecorder(t, Config{Upload: store})
	printed, printedHeader := begin(t, r)
	show(t, printed, "x")
	silent, silentHeader := begin(t, r)
	for _, h := range []Header{printedHeader, silentHeader} {
		dir := filepath.Join(r.cfg.Dir, string(h.Session))
		if err := os.Rename(dir, dir+".away"); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range []*Recording{printed, silent} {
		if _, err := w.Close(); fault.Public(err) != "the recording cannot be written: no such file or directory" {
			t.Errorf("Close = %v", err)
		}
	}
	for _, h := range []Header{printedHeader, silentHeader} {
		dir := filepath.Join(r.cfg.Dir, string(h.Session))
		if err := os.Rename(dir+".away", dir); err != nil {
			t.Fatal(err)
		}
	}
	runUntil(t, r, func() bool {
		return store.complete(printedHeader.Session) != nil && store.complete(silentHeader.Session) != nil
	})
	for _, w := range []*Recording{printed, silent} {
		play(t, store.recording(t, w.session.id), closed(t, w).Root)
	}
}

// fill writes to path until the disk is full, and returns what makes room again.
func fill(t *testing.T, path string) (release func()) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{64 << 10, 4 << 10, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// A store that is away, hangs, or answers after it has kept a part: uploads are
// tried again, and nothing goes from the spool before it is confirmed.
func TestStoreFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		r, err := New(Config{Dir: filepath.Join(t.TempDir(), "spool"), Upload: store})
		if err != nil {
			t.Fatal(err)
		}
		w, h := begin(t, r)
		show(t, w, "x")
		sum := closed(t, w)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		store.before = func(ctx context.Context) error { // it hangs
			<-ctx.Done()
			return context.Cause(ctx)
		}
		go func() { ended <- r.Run(ctx) }()
		<-time.After(uploadTimeout + time.Millisecond)
		synctest.Wait()
		if n := store.calls; n != 1 {
			t.Errorf("%d uploads after one timed out", n)
		}
		store.mu.Lock()
		store.before = func(context.Context) error { return errors.New("away") }
		store.mu.Unlock()
		<-time.After(time.Hour)
		synctest.Wait()
		if n := store.calls; n < 100 || n > 250 {
			t.Errorf("%d uploads in an hour", n)
		}
		if len(spooled(t, r.cfg.Dir)) != 3 { // directory, state, part
			t.Errorf("the spool has %v", spooled(t, r.cfg.Dir))
		}
		if got := testutil.ToFloat64(r.metrics.uploadFailures); got != float64(store.calls) {
			t.Errorf("%v failures are counted of %d", got, store.calls)
		}
		kept := false
		store.mu.Lock()
		store.before = func(context.Context) error { // it keeps the part, and the answer is lost
			if kept {
				return nil
			}
			kept = true
			data, err := os.ReadFile(filepath.Join(r.cfg.Dir, string(h.Session), partName(1)))
			store.parts[string(h.Session)] = map[uint32][]byte{1: data}
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		store.mu.Unlock()
		<-time.After(2 * maxBackoff)
		synctest.Wait()
		if c := store.complete(h.Session); c.GetRoot() != sum.Root {
			t.Errorf("Complete got %v", c)
		}
		play(t, store.recording(t, h.Session), sum.Root)
		cancel()
		if err := errors.Join(<-ended, r.Close()); err != nil {
			t.Error(err)
		}
	})
}

// One recording that the store never takes delays no other.
func TestRefusedRecordingBlocksNothing(t *testing.T) {
	store := newMemory()
	dir := filepath.Join(t.TempDir(), "spool")
	r := newRecorder(t, Config{Dir: dir, Upload: store})
	bad, badHeader := begin(t, r)
	closed(t, bad)
	store.parts[string(badHeader.Session)] = map[uint32][]byte{1: []byte("somebody else's")}
	var others []names.SessionID
	for range 10 {
		w, h := begin(t, r)
		closed(t, w)
		others = append(others, h.Session)
	}
	runUntil(t, r, func() bool {
		for _, id := range append(others, badHeader.Session) {
			if store.complete(id) == nil {
				return false
			}
		}
		return true
	})
	if _, err := os.Stat(filepath.Join(dir, string(badHeader.Session)+"."+partName(1)+keptSuffix)); err != nil {
		t.Error(err)
	}
	if got := testutil.ToFloat64(r.metrics.setAside); got != 1 {
		t.Errorf("%v files are counted as set aside", got)
	}
}

// wound is a recording of three parts and a journal, whose process is gone.
func wound(t *testing.T, dir string) (names.SessionID, Summary) {
	t.Helper()
	r, err := New(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	w, h := begin(t, r)
	for i := range 3 {
		show(t, w, fmt.Sprintf("part %d;", i+1))
		w.mu.Lock()
		w.fullLocked()
		w.awaitLocked()
		w.mu.Unlock()
	}
	show(t, w, "journal;")
	show(t, w, "tail;")
	w.open.timer.Stop()
	sum := w.session.summary()
	if err := errors.Join(w.open.journal.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	return h.Session, sum
}

// Damage of each file of a recording: what is whole is played, the damage is set
// aside and reported, and the recording is closed.
func TestDamagedSpool(t *testing.T) {
	flip := func(at int64) func(t *testing.T, name string) {
		return func(t *testing.T, name string) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if at < 0 {
				at += int64(len(data))
			}
			data[at] ^= 0x40
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	cutTo := func(size int64) func(t *testing.T, name string) {
		return func(t *testing.T, name string) {
			if info, err := os.Stat(name); err == nil && size < 0 {
				size += info.Size()
			}
			if err := os.Truncate(name, size); err != nil {
				t.Fatal(err)
			}
		}
	}
	link := func(t *testing.T, name string) {
		if err := errors.Join(os.Remove(name), os.Symlink("/etc/passwd", name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, file string
		damage     func(t *testing.T, name string)
		want       string
		kept       int
		missing    bool // the store lacks a part
	}{
		{"nothing", "state", func(*testing.T, string) {}, "part 1;part 2;part 3;journal;tail;", 0, false},
		{"a bit of a part", partName(2), flip(20), "part 1;part 3;journal;tail;", 1, true},
		{"half a part", partName(2), cutTo(9), "part 1;part 3;journal;tail;", 1, true},
		{"an empty part", partName(3), cutTo(0), "part 1;part 2;journal;tail;", 1, true},
		{"a link for a part", partName(2), link, "part 1;part 3;journal;tail;", 1, true},
		{"a link for the journal", journalName(4), link, "part 1;part 2;part 3;", 1, false},
		{"a link for the state", stateName, link, "part 1;part 2;part 3;journal;tail;", 1, false},
		{"a torn journal", journalName(4), cutTo(recordHeader + 12), "part 1;part 2;part 3;", 0, false},
		{"a damaged length", journalName(4), flip(0), "part 1;part 2;part 3;", 1, false},
		{"a damaged record", journalName(4), flip(recordHeader + 10), "part 1;part 2;part 3;tail;", 1, false},
		{"a damaged tail", journalName(4), flip(-1), "part 1;part 2;part 3;journal;", 1, false},
		{"an empty journal", journalName(4), cutTo(0), "part 1;part 2;part 3;", 0, false},
		{"a torn state", stateName, cutTo(-5), "part 1;part 2;part 3;journal;tail;", 0, false},
		{"no state", stateName, cutTo(0), "part 1;part 2;part 3;journal;tail;", 0, false},
		{"a damaged start", journalName(4), flip(1), "part 1;part 2;part 3;", 1, false},
		{"a damaged state", stateName, flip(12), "part 1;part 2;part 3;journal;tail;", 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "spool")
			id, before := wound(t, dir)
			whole, _ := wound(t, dir)
			c.damage(t, filepath.Join(dir, string(id), c.file))
			store := newMemory()
			r := newRecorder(t, Config{Dir: dir, Upload: store})
			left, err := r.Recover()
			if err != nil || len(left) != 2 {
				t.Fatalf("Recover = %v, %v", left, err)
			}
			if again, err := r.Recover(); err != nil || again[id] != left[id] {
				t.Fatalf("Recover again = %v, %v", again, err)
			}
			sum := left[id]
			if sum.Parts != before.Parts+1 || sum.Parts != 4 {
				t.Errorf("it has %d parts", sum.Parts)
			}
			runUntil(t, r, func() bool { return store.complete(id) != nil && store.complete(whole) != nil })
			play(t, store.recording(t, whole), left[whole].Root)

			reader := NewReader(nil)
			var frames []*accessdv1.Frame
			for n := range sum.Parts {
				part, ok := store.parts[string(id)][n+1]
				if !ok {
					continue
				}
				opened, err := reader.Part(n+1, part)
				if err != nil {
					t.Fatal(err)
				}
				frames = append(frames, opened...)
			}
			if got := printed(frames, stdout); got != c.want {
				t.Errorf("it plays %q, want %q", got, c.want)
			}
			if err := reader.Verify(sum.Root); (err != nil) != c.missing || frames[len(frames)-1].GetEnd() == nil {
				t.Errorf("Verify = %v, the last frame is %v", err, frames[len(frames)-1])
			}
			if complete := store.complete(id); !complete.GetRecovered() || complete.GetRoot() != sum.Root {
				t.Errorf("Complete got %v", complete)
			}
			if got := int(testutil.ToFloat64(r.metrics.setAside)); got != c.kept {
				t.Errorf("%d files were set aside, want %d: %v", got, c.kept, spooled(t, dir))
			}
			for id := range left {
				r.Release(id)
			}
			if got := spooled(t, dir); len(got) != c.kept {
				t.Errorf("in the spool stays %v", got)
			}
		})
	}
}

// F34: links and other things planted in the spool are followed by nothing, and
// keep nothing from being recorded.
func TestF34PlantedInSpool(t *testing.T) {
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "spool")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	linked, foreign, h := names.NewSessionID(), names.NewSessionID(), header()
	err := errors.Join(
		os.Symlink(outside, filepath.Join(dir, string(linked))),
		os.Symlink(victim, filepath.Join(dir, "x")),
		os.Mkdir(filepath.Join(dir, string(foreign)), 0o700),
		os.Symlink(victim, filepath.Join(dir, string(foreign), stateName)),
		os.Mkdir(filepath.Join(dir, string(foreign), journalName(1)), 0o700),
		os.Symlink(outside, filepath.Join(dir, string(h.Session))),
	)
	if err != nil {
		t.Fatal(err)
	}
	r := newRecorder(t, Config{Dir: dir})
	left, err := r.Recover()
	if err != nil || len(left) != 0 {
		t.Errorf("Recover = %v, %v", left, err)
	}
	if _, err := r.Begin(h); !fault.Is(err, fault.Conflict) {
		t.Errorf("Begin of a session whose name is a link = %v", err)
	}
	w, live := begin(t, r)
	show(t, w, "x")
	// Somebody plants links at the names that come next.
	for _, name := range []string{partName(1) + tmpSuffix, partName(1), journalName(2)} {
		if err := os.Symlink(victim, filepath.Join(dir, string(live.Session), name)); err != nil {
			t.Fatal(err)
		}
	}
	w.mu.Lock()
	w.fullLocked()
	w.mu.Unlock()
	show(t, w, "y")
	if got := printed(playDir(t, dir, live.Session, closed(t, w)), stdout); got != "xy" {
		t.Errorf("%q is recorded", got)
	}
	if data, err := os.ReadFile(victim); string(data) != "precious" || err != nil {
		t.Errorf("the victim has %q, %v", data, err)
	}
	if entries, err := os.ReadDir(outside); len(entries) != 1 || err != nil {
		t.Errorf("outside has %v, %v", entries, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the spool has mode %v, %v", info.Mode(), err)
	}
}
