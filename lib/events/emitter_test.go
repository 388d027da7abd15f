//go:build unix

package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
)

// run returns an exec event that carries text.
func run(text string) Event {
	return Event{Name: Exec, User: "alice", Success: true, Time: testTime, Fields: map[string]any{"command": text}}
}

func mustEmit(t testing.TB, e *Emitter, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if err := e.Emit(t.Context(), run(text)); err != nil {
			t.Fatalf("Emit(%s): %v", text, err)
		}
	}
}

// sink takes what a spool ships.
type sink struct {
	mu   sync.Mutex
	got  []string
	fail func(events [][]byte) error
}

func (s *sink) drain(_ context.Context, events [][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		if err := s.fail(events); err != nil {
			return err
		}
	}
	for _, data := range events {
		e, err := ParseEvent(data)
		if err != nil {
			return err
		}
		text, _ := e.Fields["command"].(string)
		s.got = append(s.got, text)
	}
	return nil
}

func (s *sink) texts() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

// ship runs e until it has shipped what it can, and returns that.
func ship(t testing.TB, e *Emitter) []string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var s sink
	if err := e.Run(ctx, s.drain); err != nil {
		t.Fatalf("Run: %v", err)
	}
	return s.got
}

func numbers(first, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint(first + i)
	}
	return out
}

func segmentsIn(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestEmitFillsWhatItKnows(t *testing.T) {
	e := newTestEmitter(t, EmitterConfig{
		Cluster: func() string { return "example" }, ServerID: "id", ServerHostname: "web-1", Now: func() time.Time { return testTime },
	})
	if err := e.Emit(t.Context(), Event{Name: TunnelUp, Success: true}); err != nil {
		t.Fatal(err)
	}
	if err := e.Emit(t.Context(), Event{Name: TunnelUp, ServerID: "other", ServerHostname: "db-1", ClusterName: "c", Time: testTime.Add(1e9)}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var got []Event
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
		t.Fatalf("Run = %v with %d events, want 2", err, len(got))
	}
	if e := got[0]; e.ClusterName != "example" || e.ServerID != "id" || e.ServerHostname != "web-1" || !e.Time.Equal(testTime) || e.UID == "" || e.Code != "A4003I" {
		t.Errorf("first event is %+v", e)
	}
	if e := got[1]; e.ClusterName != "c" || e.ServerID != "other" || e.ServerHostname != "db-1" || !e.Time.Equal(testTime.Add(1e9)) || e.Code != "A4003W" {
		t.Errorf("second event is %+v", e)
	}
}

func TestEmitRefusesMistakes(t *testing.T) {
	e := newTestEmitter(t, EmitterConfig{})
	for _, ev := range []Event{{Name: "no.event"}, {Name: Exec, Fields: map[string]any{"no_field": "x"}}} {
		if err := e.Emit(t.Context(), ev); err == nil || !fault.Is(err, fault.Internal) {
			t.Errorf("Emit(%+v) = %v, want an internal error", ev, err)
		}
	}
	if got := ship(t, e); len(got) != 0 {
		t.Errorf("shipped %v", got)
	}
}

// Events emitted together stay together and in order, and are recorded all or
// none.
func TestEmitAll(t *testing.T) {
	e := newTestEmitter(t, EmitterConfig{})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := e.EmitAll(t.Context(), run(fmt.Sprint(3*i)), run(fmt.Sprint(3*i+1)), run(fmt.Sprint(3*i+2))); err != nil {
				t.Errorf("EmitAll = %v", err)
			}
		})
	}
	wg.Wait()
	if err := e.EmitAll(t.Context(), run("none"), Event{Name: "no.event"}); err == nil {
		t.Error("EmitAll took an event that the table does not have")
	}
	if err := e.EmitAll(t.Context()); err != nil {
		t.Errorf("EmitAll of nothing = %v", err)
	}
	got := ship(t, e)
	for i := 0; i+2 < len(got); i += 3 {
		var n int
		if _, err := fmt.Sscan(got[i], &n); err != nil || n%3 != 0 || !slices.Equal(got[i:i+3], numbers(n, 3)) {
			t.Errorf("shipped %v together", got[i:i+3])
		}
	}
	if len(got) != 60 || e.Stats().Emitted != 60 {
		t.Errorf("shipped %d, %+v", len(got), e.Stats())
	}
}

// What happened is recorded, also when the one it happened to has gone.
func TestEmitIgnoresTheEndOfItsContext(t *testing.T) {
	e := newTestEmitter(t, EmitterConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 50 {
		if err := e.Emit(ctx, run(fmt.Sprint(i))); err != nil {
			t.Fatalf("Emit = %v", err)
		}
	}
	if got := ship(t, e); !slices.Equal(got, numbers(0, 50)) {
		t.Errorf("shipped %v", got)
	}
}

func TestSpoolShipsInOrderAndRemoves(t *testing.T) {
	dir := t.TempDir()
	e := newTestEmitter(t, EmitterConfig{Dir: dir})
	want := numbers(0, 3000)
	mustEmit(t, e, want[:1500]...)
	ctx, cancel := context.WithCancel(t.Context())
	var s sink
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx, s.drain) }()
	mustEmit(t, e, want[1500:]...)
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.texts(); !slices.Equal(got, want) {
		t.Errorf("shipped %d events, want %d in order", len(got), len(want))
	}
	if err := e.Run(t.Context(), s.drain); err == nil || !fault.Is(err, fault.Internal) {
		t.Errorf("second Run = %v, want an internal error", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
	if got := e.Stats(); got.Emitted != 3000 || got.Shipped != 3000 || got.Refused != 0 || got.Damaged != 0 || got.Bytes > idleSegmentBytes {
		t.Errorf("Stats = %+v", got)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if left := segmentsIn(t, dir); len(left) != 0 {
		t.Errorf("%v is left of a spool that shipped everything", left)
	}
}

func TestSpoolSurvivesRestarts(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for i := range 5 {
		e, err := NewEmitter(EmitterConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		part := numbers(100*i, 100)
		mustEmit(t, e, part...)
		want = append(want, part...)
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := ship(t, newTestEmitter(t, EmitterConfig{Dir: dir})); !slices.Equal(got, want) {
		t.Errorf("shipped %d events, want %d in order", len(got), len(want))
	}
}

// F29: nothing is lost, split or doubled where one segment ends and the next
// begins, and only what was shipped is removed.
func TestF29SegmentsRotate(t *testing.T) {
	dir := t.TempDir()
	e := newTestEmitter(t, EmitterConfig{Dir: dir})
	long := strings.Repeat("x", maxCommand-10)
	want := make([]string, 700) // about 11 MB
	for i := range want {
		want[i] = fmt.Sprint(i, long)
	}
	var wg sync.WaitGroup // concurrent, or it takes long; so the order is free
	for part := range slices.Chunk(want, 50) {
		wg.Go(func() { mustEmit(t, e, part...) })
	}
	wg.Wait()
	if n := len(segmentsIn(t, dir)); n < 3 {
		t.Fatalf("%d segments, want at least 3", n)
	}
	failed := errors.New("away")
	var s sink
	calls := 0
	s.fail = func([][]byte) error { // takes half of it
		if calls++; calls > 6 {
			return failed
		}
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Run(ctx, s.drain); err != nil {
		t.Fatal(err)
	}
	if n := len(segmentsIn(t, dir)); n < 2 {
		t.Errorf("%d segments are left though not all was shipped", n)
	}
	got := append(s.got, ship(t, e)...)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("shipped %d events, want %d", len(got), len(want))
	}
	if n := len(segmentsIn(t, dir)); n > 1 {
		t.Errorf("%d segments are left", n)
	}
}

// F29: a segment that somebody removed or cut is a loss that is counted, and holds
// up nothing.
func TestF29SegmentsRemovedByOthers(t *testing.T) {
	for name, harm := range map[string]func(path string) error{
		"removed":      os.Remove,
		"copytruncate": func(path string) error { return os.Truncate(path, 0) },
		"cut":          func(path string) error { return os.Truncate(path, 1000) },
	} {
		for _, live := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", live: ", live), func(t *testing.T) {
				dir := t.TempDir()
				e, err := NewEmitter(EmitterConfig{Dir: dir})
				if err != nil {
					t.Fatal(err)
				}
				mustEmit(t, e, numbers(0, 20)...)
				if !live {
					if err := e.Close(); err != nil {
						t.Fatal(err)
					}
					if e, err = NewEmitter(EmitterConfig{Dir: dir}); err != nil {
						t.Fatal(err)
					}
				}
				if err := harm(segmentsIn(t, dir)[0]); err != nil {
					t.Fatal(err)
				}
				first := ship(t, e)
				mustEmit(t, e, "after")
				if got := ship(t, e); !slices.Equal(got, []string{"after"}) || len(first) > 10 || !slices.Equal(first, numbers(0, len(first))) {
					t.Errorf("shipped %v and %v", first, got)
				}
				if got := e.Stats().Damaged; got != 1 {
					t.Errorf("%d losses are counted, want 1", got)
				}
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
				if left := segmentsIn(t, dir); len(left) > 0 {
					t.Errorf("%v is left", left)
				}
			})
		}
	}
}

func TestRunTriesAgain(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		e, err := NewEmitter(EmitterConfig{Dir: dir, Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		mustEmit(t, e, numbers(0, 10)...)
		var attempts []time.Time
		start := time.Now()
		s := sink{fail: func([][]byte) error {
			attempts = append(attempts, time.Now())
			if time.Since(start) < 5*time.Minute {
				return fault.New(fault.Unavailable, "away")
			}
			return nil
		}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- e.Run(ctx, s.drain) }()
		if err := e.Flush(ctx); err != nil {
			t.Error(err)
		}
		if !slices.Equal(s.texts(), numbers(0, 10)) {
			t.Errorf("shipped %v", s.texts())
		}
		if n := len(attempts); n < 12 || n > 40 {
			t.Errorf("%d attempts in five minutes, want some 20", n)
		}
		for i := range attempts[1:] {
			if pause := attempts[i+1].Sub(attempts[i]); pause < firstBackoff/2 || pause > lastBackoff {
				t.Errorf("pause %d is %v", i, pause)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// A busy member gathers events for a moment; a single one goes at once.
func TestRunGathersWhenBusy(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		e, err := NewEmitter(EmitterConfig{Dir: dir, Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		ctx, cancel := context.WithCancel(t.Context())
		var s sink
		done := make(chan error, 1)
		flushed := func(texts ...string) time.Duration {
			start := time.Now()
			mustEmit(t, e, texts...)
			if err := e.Flush(ctx); err != nil {
				t.Error(err)
			}
			return time.Since(start)
		}
		mustEmit(t, e, numbers(0, busyBatch)...)
		go func() { done <- e.Run(ctx, s.drain) }()
		if err := e.Flush(ctx); err != nil {
			t.Error(err)
		}
		if d := flushed("after a busy batch"); d != busyPause {
			t.Errorf("shipped after %v, want %v", d, busyPause)
		}
		if d := flushed("alone"); d != 0 {
			t.Errorf("shipped after %v, want at once", d)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestFlushEndsWithItsContext(t *testing.T) {
	e := newTestEmitter(t, EmitterConfig{})
	if err := e.Flush(t.Context()); err != nil {
		t.Errorf("Flush of nothing = %v", err)
	}
	mustEmit(t, e, "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Flush(ctx); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Flush = %v, want unavailable", err)
	}
}

// An event that the authority can never take does not hold up the others, and is
// kept.
func TestRefusedEventIsSetAside(t *testing.T) {
	dir := t.TempDir()
	e := newTestEmitter(t, EmitterConfig{Dir: dir})
	mustEmit(t, e, numbers(0, 100)...)
	s := sink{fail: func(events [][]byte) error {
		for _, data := range events {
			if bytes.Contains(data, []byte(`"command":"42"`)) {
				return fault.New(fault.BadInput, "no")
			}
		}
		return nil
	}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Run(ctx, s.drain); err != nil {
		t.Fatal(err)
	}
	if want := slices.Delete(numbers(0, 100), 42, 43); !slices.Equal(s.got, want) {
		t.Errorf("shipped %v", s.got)
	}
	if got := e.Stats(); got.Damaged != 1 {
		t.Errorf("Stats = %+v, want 1 damaged", got)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	again := newTestEmitter(t, EmitterConfig{Dir: dir})
	s = sink{fail: s.fail}
	if err := again.Run(ctx, s.drain); err != nil { // the kept segment of a process that ended is read once more
		t.Fatal(err)
	}
	kept, _ := filepath.Glob(filepath.Join(dir, "*"+keptSuffix))
	if len(kept) != 1 || len(segmentsIn(t, dir)) != 0 || again.Stats().Bytes == 0 {
		t.Errorf("kept %v, segments %v, %+v", kept, segmentsIn(t, dir), again.Stats())
	}
}

func TestGoldenSegment(t *testing.T) {
	dir := t.TempDir()
	e := newTestEmitter(t, EmitterConfig{Dir: dir})
	for i, text := range []string{"ls", "日本\n", ""} {
		ev := run(text)
		ev.UID = fmt.Sprintf("0195510c-9a40-7bb2-8c51-0b5e6f1f2a%02d", i)
		if err := e.Emit(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(segmentsIn(t, dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "segment.events", data)

	old := t.TempDir() // a spool of an earlier version drains
	if data, err = os.ReadFile("testdata/segment.events"); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(old, segment{number: 7}.name()), data)
	if got := ship(t, newTestEmitter(t, EmitterConfig{Dir: old})); !slices.Equal(got, []string{"ls", "日本\n", ""}) {
		t.Errorf("shipped %q", got)
	}
}

// F04: a write cut off at any byte gives the records before it, and none halfway.
func TestF04TornTail(t *testing.T) {
	whole, ends := segmentOf(t, numbers(0, 5))
	dir := t.TempDir()
	for size := range len(whole) + 1 {
		write(t, filepath.Join(dir, segment{number: 1}.name()), whole[:size])
		want, _ := slices.BinarySearch(ends, size+1)
		e, err := NewEmitter(EmitterConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		mustEmit(t, e, "after")
		if got := ship(t, e); !slices.Equal(got, append(numbers(0, want), "after")) {
			t.Errorf("cut at %d: shipped %v, want %d", size, got, want)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if left := segmentsIn(t, dir); len(left) != 0 {
			t.Fatalf("cut at %d: %v is left", size, left)
		}
	}
}

// segmentOf returns a segment of commands and where each record ends.
func segmentOf(t testing.TB, texts []string) (data []byte, ends []int) {
	t.Helper()
	data = []byte(segmentMagic)
	for _, text := range texts {
		data = appendFrame(data, encode(t, run(text)))
		ends = append(ends, len(data))
	}
	return data, ends
}

// F05: a damaged record costs itself alone, is counted, and its segment is kept.
func TestF05DamagedRecord(t *testing.T) {
	whole, ends := segmentOf(t, numbers(0, 5))
	dir := t.TempDir()
	for at := range whole {
		harmed := bytes.Clone(whole)
		harmed[at] ^= 0x20
		write(t, filepath.Join(dir, segment{number: 1}.name()), harmed)
		e, err := NewEmitter(EmitterConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		got := ship(t, e)
		victim, _ := slices.BinarySearch(ends, at+1)
		for _, text := range got {
			if text == fmt.Sprint(victim) && at >= len(segmentMagic) {
				t.Errorf("flip at %d: the damaged record %s was shipped", at, text)
			}
		}
		start := len(segmentMagic)
		if victim > 0 {
			start = ends[victim-1]
		}
		if inBody := at >= start+4 && at >= len(segmentMagic); inBody && victim < 4 {
			if want := slices.Delete(numbers(0, 5), victim, victim+1); !slices.Equal(got, want) {
				t.Errorf("flip at %d: shipped %v, want %v", at, got, want)
			}
			if e.Stats().Damaged != 1 {
				t.Errorf("flip at %d: %+v", at, e.Stats())
			}
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		for _, name := range segmentsIn(t, dir) {
			t.Errorf("flip at %d: %s is left", at, name)
		}
		kept, _ := filepath.Glob(filepath.Join(dir, "*"+keptSuffix))
		for _, name := range kept {
			_ = os.Remove(name)
		}
	}
}

// Whatever a segment holds, reading it ends, and gives records that are in it, in
// their order.
func FuzzSegment(f *testing.F) {
	whole, _ := segmentOf(f, numbers(0, 3))
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add(slices.Concat(whole, make([]byte, 64)))
	f.Add([]byte(segmentMagic))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &spool{log: zap.NewNop()}
		seg := segment{number: 1, size: int64(len(data))}
		rest := data
		for at := 0; at < len(data); {
			n, events := s.decode(seg, int64(at), data[at:min(len(data), at+batchBytes+maxFrame)])
			if n <= 0 || at+n > len(data) {
				t.Fatalf("%d bytes at %d of %d", n, at, len(data))
			}
			for _, ev := range events {
				i := bytes.Index(rest, appendFrame(nil, ev))
				if i < 0 {
					t.Fatalf("%q is no record of %q", ev, data)
				}
				rest = rest[i+frameHeader+len(ev):]
			}
			at += n
		}
	})
}

// fakeFile fails as it is told to.
type fakeFile struct {
	file

	write func(f file, p []byte) (int, error)
	sync  func(f file) error
}

func (f *fakeFile) Write(p []byte) (int, error) {
	if f.write != nil {
		return f.write(f.file, p)
	}
	return f.file.Write(p)
}

func (f *fakeFile) Sync() error {
	if f.sync != nil {
		return f.sync(f.file)
	}
	return f.file.Sync()
}

// F05: whatever the disk does wrong, Emit says so, no half record is taken, and
// the next one goes as soon as the disk does.
func TestF05DiskFails(t *testing.T) {
	var broken atomic.Bool
	fails := func(err error) func(file) error {
		return func(f file) error {
			if broken.Load() {
				return err
			}
			return f.Sync()
		}
	}
	part := func(n func(int) int, err error) func(file, []byte) (int, error) {
		return func(f file, p []byte) (int, error) {
			if !broken.Load() {
				return f.Write(p)
			}
			_, _ = f.Write(p[:n(len(p))])
			return n(len(p)), err
		}
	}
	for _, tt := range []struct {
		name   string
		create error
		file   fakeFile
	}{
		{name: "cannot create", create: syscall.ENOSPC},
		{name: "read-only", create: syscall.EROFS},
		{name: "no descriptors", create: syscall.EMFILE},
		{name: "full", file: fakeFile{write: part(func(int) int { return 0 }, syscall.ENOSPC)}},
		{name: "full halfway", file: fakeFile{write: part(func(n int) int { return n / 2 }, syscall.ENOSPC)}},
		{name: "full at the last byte", file: fakeFile{write: part(func(n int) int { return n - 1 }, syscall.ENOSPC)}},
		{name: "write error", file: fakeFile{write: part(func(n int) int { return 3 }, syscall.EIO)}},
		{name: "sync error", file: fakeFile{sync: fails(syscall.EIO)}},
	} {
		for _, when := range []string{"first", "later"} {
			t.Run(tt.name+" "+when, func(t *testing.T) {
				e := newTestEmitter(t, EmitterConfig{})
				create := e.spool.create
				e.spool.create = func(name string) (file, error) {
					if broken.Load() && tt.create != nil {
						return nil, tt.create
					}
					f, err := create(name)
					return &fakeFile{file: f, write: tt.file.write, sync: tt.file.sync}, err
				}
				var want []string
				if when == "later" {
					mustEmit(t, e, "0", "1")
					want = []string{"0", "1"}
					if tt.create != nil {
						e.spool.seal()
					}
				}
				broken.Store(true)
				for range 3 {
					if err := e.Emit(t.Context(), run("refused")); !fault.Is(err, fault.Unavailable) {
						t.Errorf("Emit = %v, want unavailable", err)
					}
				}
				if e.Healthy() == nil || e.Stats().Refused != 3 {
					t.Errorf("Healthy = %v, %+v", e.Healthy(), e.Stats())
				}
				broken.Store(false)
				write(t, filepath.Join(e.cfg.Dir, probeName), nil) // left by a crash
				_ = e.Healthy()
				if err := e.Healthy(); err != nil {
					t.Errorf("Healthy = %v once the disk is well", err)
				}
				mustEmit(t, e, "2", "3")
				if err := e.Healthy(); err != nil {
					t.Errorf("Healthy = %v after it recovered", err)
				}
				if got := ship(t, e); !slices.Equal(got, append(want, "2", "3")) {
					t.Errorf("shipped %v", got)
				}
			})
		}
	}
}

// A disk that hangs refuses instead of hanging everybody.
func TestF05DiskHangs(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		e, err := NewEmitter(EmitterConfig{Dir: dir, Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		release := make(chan struct{})
		create := e.spool.create
		e.spool.create = func(name string) (file, error) {
			f, err := create(name)
			return &fakeFile{file: f, sync: func(f file) error { <-release; return f.Sync() }}, err
		}
		first := make(chan error, 1)
		go func() { first <- e.Emit(t.Context(), run("slow")) }()
		synctest.Wait()
		start := time.Now()
		if err := e.Emit(t.Context(), run("waits")); !fault.Is(err, fault.Unavailable) || time.Since(start) != writeTimeout {
			t.Errorf("Emit = %v after %v", err, time.Since(start))
		}
		close(release)
		if err := <-first; err != nil {
			t.Errorf("Emit = %v", err)
		}
	})
}

func TestSpoolIsBounded(t *testing.T) {
	e := newTestEmitter(t, EmitterConfig{MaxBytes: 100_000})
	n := 0
	for ; n < 10_000; n++ {
		if err := e.Emit(t.Context(), run(fmt.Sprint(n))); err != nil {
			if !fault.Is(err, fault.Unavailable) || fault.Hint(err) == "" {
				t.Errorf("Emit = %v, want unavailable with a hint", err)
			}
			break
		}
	}
	if n < 20 || n == 10_000 || e.Stats().Bytes > 100_000 || e.Stats().Refused != 1 || e.Healthy() == nil {
		t.Errorf("%d events, %+v", n, e.Stats())
	}
	if got := ship(t, e); !slices.Equal(got, numbers(0, n)) {
		t.Errorf("shipped %v", got)
	}
	if err := e.Healthy(); err != nil {
		t.Errorf("Healthy = %v though there is room again", err)
	}
	mustEmit(t, e, "again")
}

// Concurrent callers share one fsync.
func TestGroupCommit(t *testing.T) {
	e := newTestEmitter(t, EmitterConfig{})
	entered, release := make(chan struct{}), make(chan struct{})
	var syncs atomic.Int32
	create := e.spool.create
	e.spool.create = func(name string) (file, error) {
		f, err := create(name)
		return &fakeFile{file: f, sync: func(f file) error {
			if syncs.Add(1) == 1 {
				close(entered)
				<-release
			}
			return f.Sync()
		}}, err
	}
	var wg sync.WaitGroup
	emit := func(i int) {
		wg.Go(func() {
			if err := e.Emit(t.Context(), run(fmt.Sprint(i))); err != nil {
				t.Errorf("Emit = %v", err)
			}
		})
	}
	emit(0)
	<-entered
	for i := range 100 {
		emit(1 + i)
	}
	for gathered := 0; gathered < 100; {
		e.spool.records.mu.Lock()
		gathered = len(e.spool.records.next.items)
		e.spool.records.mu.Unlock()
	}
	close(release)
	wg.Wait()
	if got := syncs.Load(); got != 2 {
		t.Errorf("%d syncs for 1 and then 100 callers, want 2", got)
	}
	if got := len(ship(t, e)); got != 101 {
		t.Errorf("shipped %d", got)
	}
}

// F34: the spool is ours alone, and follows no link.
func TestF34SpoolFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "spool")
	e := newTestEmitter(t, EmitterConfig{Dir: dir})
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.Symlink(outside, filepath.Join(dir, segment{number: 1}.name())); err != nil { // planted
		t.Fatal(err)
	}
	if err := e.Emit(t.Context(), run("0")); err == nil {
		t.Error("Emit went through a planted link")
	}
	mustEmit(t, e, "1")
	if _, err := os.Lstat(outside); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the link's target exists: %v", err)
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, segment{number: 2}.name()): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %v", path, info, err, want)
		}
	}
	if _, err := NewEmitter(EmitterConfig{Dir: dir}); !fault.Is(err, fault.Conflict) {
		t.Errorf("second NewEmitter = %v, want a conflict", err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if got := ship(t, newTestEmitter(t, EmitterConfig{Dir: dir})); !slices.Equal(got, []string{"1"}) {
		t.Errorf("shipped %v", got)
	}

	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	write(t, plain, nil)
	for _, path := range []string{link, plain} {
		if _, err := NewEmitter(EmitterConfig{Dir: path}); !fault.Is(err, fault.BadInput) {
			t.Errorf("NewEmitter(%s) = %v, want bad input", path, err)
		}
	}
	loose := t.TempDir()
	if err := os.Chmod(loose, 0o755); err != nil {
		t.Fatal(err)
	}
	newTestEmitter(t, EmitterConfig{Dir: loose})
	if info, err := os.Stat(loose); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("a loose directory stays %v, %v", info.Mode(), err)
	}
}

func TestEmitAfterClose(t *testing.T) {
	e := newTestEmitter(t, EmitterConfig{})
	mustEmit(t, e, "0")
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := e.Emit(t.Context(), run("1")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Emit = %v, want unavailable", err)
	}
	if err := e.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
}

// A member that has reached no authority for too long takes no more events: it
// would go on for ever where nobody sees it, and ship what the log may not know any
// more by its uid. What it has it keeps, over a restart, too, and ships it.
func TestSpoolIsTooOld(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	open := func() *Emitter {
		t.Helper()
		e, err := NewEmitter(EmitterConfig{Dir: dir, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	emit := func(e *Emitter, text string) error {
		ev := run(text)
		ev.Time = now
		return e.Emit(t.Context(), ev)
	}
	must := func(e *Emitter, text string) {
		t.Helper()
		if err := emit(e, text); err != nil {
			t.Fatal(err)
		}
	}
	away := func(e *Emitter) {
		t.Helper()
		_, _, err := e.step(t.Context(), func(context.Context, [][]byte) error { return errors.New("away") })
		if err == nil {
			t.Fatal("nothing was shipped in vain")
		}
	}
	e := open()
	must(e, "shipped")
	if got := ship(t, e); len(got) != 1 {
		t.Fatalf("shipped %q", got)
	}
	now = now.Add(40 * 24 * time.Hour) // idle for long is no fault
	must(e, "first")
	away(e)
	now = now.Add(29 * 24 * time.Hour)
	must(e, "second")
	away(e)
	now = now.Add(2 * 24 * time.Hour)
	if err := emit(e, "too late"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "since 2026-12-11T00:00:00Z") {
		t.Errorf("Emit = %v, want it refused", err)
	}
	if e.Healthy() == nil {
		t.Error("a spool that refuses is healthy")
	}
	e.spool.records.acquire() // killed: the directory is unlocked, and that is all
	if err := e.spool.dir.Close(); err != nil {
		t.Fatal(err)
	}
	e = open()
	must(e, "after a restart") // the authority may be a moment away
	away(e)
	must(e, "soon after")
	now = now.Add(time.Hour)
	if err := emit(e, "too late"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Emit after a restart = %v, want it refused", err)
	}
	if got := ship(t, e); !slices.Contains(got, "first") || !slices.Contains(got, "soon after") || slices.Contains(got, "too late") {
		t.Errorf("shipped %q", got)
	}
	must(e, "well again")
	if err := errors.Join(e.Healthy(), e.Close()); err != nil {
		t.Error(err)
	}
}
