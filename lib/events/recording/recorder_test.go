//go:build unix

package recording

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"filippo.io/age"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/lockdir"
	"github.com/accessd/accessd/lib/names"
)

const (
	stdout = accessdv1.Stream_STREAM_STDOUT
	stderr = accessdv1.Stream_STREAM_STDERR
)

// memory is a store: write-once, and it fails when told to.
type memory struct {
	mu        sync.Mutex
	parts     map[string]map[uint32][]byte
	completed map[string]*accessdv1.CompleteRecordingRequest
	of        map[string]*accessdv1.RecordingOf
	before    func(ctx context.Context) error // of each call
	calls     int
}

func newMemory() *memory {
	return &memory{
		parts: map[string]map[uint32][]byte{}, completed: map[string]*accessdv1.CompleteRecordingRequest{},
		of: map[string]*accessdv1.RecordingOf{},
	}
}

func (m *memory) enter(ctx context.Context) error {
	m.mu.Lock()
	m.calls++
	before := m.before
	m.mu.Unlock()
	if before != nil {
		return before(ctx)
	}
	return nil
}

func (m *memory) UploadPart(ctx context.Context, req *accessdv1.UploadPartRequest) error {
	if err := m.enter(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	parts := m.parts[req.GetSession()]
	if parts == nil {
		parts = map[uint32][]byte{}
		m.parts[req.GetSession()] = parts
		m.of[req.GetSession()] = req.GetOf()
	}
	if have, ok := parts[req.GetPart()]; ok && !bytes.Equal(have, req.GetData()) {
		return fault.New(fault.Conflict, "part %d is there", req.GetPart())
	}
	parts[req.GetPart()] = bytes.Clone(req.GetData())
	return nil
}

func (m *memory) Complete(ctx context.Context, req *accessdv1.CompleteRecordingRequest) error {
	if err := m.enter(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.completed[req.GetSession()] = req
	return nil
}

func (m *memory) complete(id names.SessionID) *accessdv1.CompleteRecordingRequest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.completed[string(id)]
}

// recording returns the parts of a recording in order; it fails on a hole.
func (m *memory) recording(t *testing.T, id names.SessionID) [][]byte {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	var parts [][]byte
	for n := range len(m.parts[string(id)]) {
		part, ok := m.parts[string(id)][uint32(n)+1]
		if !ok {
			t.Fatalf("the store has no part %d", n+1)
		}
		parts = append(parts, part)
	}
	return parts
}

func newRecorder(t *testing.T, cfg Config) *Recorder {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(t.TempDir(), "spool")
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func header() Header {
	return Header{
		Session: names.NewSessionID(), Cluster: "example.com", User: "alice", Login: "root", NodeID: names.NewNodeID(),
		NodeName: "db-1", Kind: "shell", Terminal: true, Term: "xterm", Columns: 80, Rows: 24,
	}
}

func begin(t *testing.T, r *Recorder) (*Recording, Header) {
	t.Helper()
	h := header()
	w, err := r.Begin(h)
	if err != nil {
		t.Fatal(err)
	}
	return w, h
}

func closed(t *testing.T, w *Recording) Summary {
	t.Helper()
	s, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func show(t *testing.T, w *Recording, text string) {
	t.Helper()
	if err := w.Print(stdout, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// runUntil runs r until done says so, or the test is over.
func runUntil(t *testing.T, r *Recorder, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	waitFor(t, done)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// waitFor waits for a state that files and other goroutines bring about.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	over := time.After(20 * time.Second)
	for !done() {
		select {
		case <-tick.C:
		case <-over:
			t.Fatal("it did not come to this in 20 s")
		}
	}
}

// play opens parts in order, and checks that the frames' times never go back and
// that they have the root.
func play(t *testing.T, parts [][]byte, root string, ids ...age.Identity) []*accessdv1.Frame {
	t.Helper()
	var frames []*accessdv1.Frame
	reader := NewReader(ids)
	for i, part := range parts {
		opened, err := Open(part, ids)
		if err != nil {
			t.Fatalf("part %d: %v", i+1, err)
		}
		got, err := reader.Part(uint32(i)+1, part)
		if err != nil || len(got) != len(opened) {
			t.Fatalf("part %d: %d frames of %d, %v", i+1, len(got), len(opened), err)
		}
		frames = append(frames, got...)
	}
	if err := reader.Verify(root); err != nil {
		t.Fatal(err)
	}
	if frames[len(frames)-1].GetEnd() == nil {
		t.Fatal("the recording has no end")
	}
	if frames[0].GetStart() == nil {
		t.Fatalf("the first frame is %v", frames[0])
	}
	return frames
}

// printed returns all bytes of a stream.
func printed(frames []*accessdv1.Frame, s accessdv1.Stream) string {
	var b strings.Builder
	for _, f := range frames {
		if p := f.GetPrint(); p.GetStream() == s {
			b.Write(p.GetData())
		}
	}
	return b.String()
}

// spooled lists the files of the spool, with their directories.
func spooled(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); err == nil && !slices.Contains([]string{".", lockdir.LockName, reserveName}, rel) {
			files = append(files, rel)
		}
		if errors.Is(err, fs.ErrNotExist) { // it went meanwhile
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestRecordUploadVerify(t *testing.T) {
	store := newMemory()
	dir := filepath.Join(t.TempDir(), "spool")
	r := newRecorder(t, Config{Dir: dir, Upload: store})
	w, h := begin(t, r)
	show(t, w, "$ ")
	if err := w.Print(stderr, []byte("oops")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Resize(132, 43), w.Gap("suspended", 7), w.Print(stdout, nil)); err != nil {
		t.Fatal(err)
	}
	sum := closed(t, w)
	if again := closed(t, w); again != sum || sum.Parts != 1 || sum.Sealed || sum.Bytes == 0 {
		t.Fatalf("Close = %+v, then %+v", sum, again)
	}
	if err := w.Print(stdout, []byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Fatalf("Print after Close = %v", err)
	}
	runUntil(t, r, func() bool { return store.complete(h.Session) != nil })

	frames := play(t, store.recording(t, h.Session), sum.Root)
	var kinds []string
	for _, f := range frames {
		kinds = append(kinds, strings.TrimPrefix(fmt.Sprintf("%T", f.GetWhat()), "*accessdv1.Frame_"))
	}
	if want := []string{"Start", "Print", "Print", "Resize", "Gap", "End"}; !slices.Equal(kinds, want) {
		t.Errorf("frames are %v, want %v", kinds, want)
	}
	start := frames[0].GetStart()
	if start.GetSession() != string(h.Session) || start.GetUser() != "alice" || start.GetColumns() != 80 || start.GetVersion() != 1 {
		t.Errorf("start is %v", start)
	}
	if r := frames[3].GetResize(); r.GetColumns() != 132 || r.GetRows() != 43 {
		t.Errorf("resize is %v", r)
	}
	if g := frames[4].GetGap(); g.GetReason() != "suspended" || g.GetBytes() != 7 {
		t.Errorf("gap is %v", g)
	}
	if c := store.complete(h.Session); c.GetRoot() != sum.Root || c.GetParts() != 1 || c.GetRecovered() || c.GetOf().GetNodeName() != "db-1" {
		t.Errorf("Complete got %v", c)
	}
	if got := spooled(t, dir); len(got) != 2 {
		t.Errorf("before Release the spool has %v, want the state alone", got)
	}
	r.Release(h.Session)
	if got := spooled(t, dir); len(got) != 0 {
		t.Errorf("after Release the spool has %v", got)
	}
	if used := r.used.Load(); used != 0 {
		t.Errorf("%d bytes are counted in an empty spool", used)
	}
}

// A part covers 5 s at most, also of a session that falls silent, and a session
// that is silent for longer holds no timer, file or goroutine.
func TestQuietPartClosesAfterFiveSeconds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	synctest.Test(t, func(t *testing.T) {
		r, err := New(Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		w, h := begin(t, r)
		part := filepath.Join(dir, string(h.Session), partName(1))
		<-time.After(partTime - time.Millisecond)
		synctest.Wait()
		if _, err := os.Stat(part); err == nil {
			t.Error("a part is closed too early")
		}
		<-time.After(time.Millisecond)
		synctest.Wait()
		if _, err := os.Stat(part); err != nil {
			t.Error(err)
		}
		w.mu.Lock()
		if w.open != nil || w.full != nil || w.sealing {
			t.Error("a silent session holds something")
		}
		w.mu.Unlock()
		before := spooled(t, dir)
		<-time.After(time.Hour)
		if after := spooled(t, dir); !slices.Equal(before, after) || slices.ContainsFunc(after, func(s string) bool { return strings.HasSuffix(s, journalSuffix) }) {
			t.Errorf("the spool of a silent session went from %v to %v", before, after)
		}
		show(t, w, "awake")
		sum := closed(t, w)
		frames := playDir(t, dir, h.Session, sum)
		if at := frames[1].GetAtUs(); at != uint64((time.Hour + partTime).Microseconds()) {
			t.Errorf("the print is at %d µs", at)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}

// playDir plays what is in the spool.
func playDir(t *testing.T, dir string, id names.SessionID, sum Summary, ids ...age.Identity) []*accessdv1.Frame {
	t.Helper()
	var parts [][]byte
	for n := range sum.Parts {
		part, err := os.ReadFile(filepath.Join(dir, string(id), partName(n+1)))
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, part)
	}
	return play(t, parts, sum.Root, ids...)
}

// F30: much output becomes many parts, none of which holds more than 2 MiB of
// frames, in the order in which it was printed.
func TestF30PartsAreBounded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	r := newRecorder(t, Config{Dir: dir})
	w, h := begin(t, r)
	var want bytes.Buffer
	for i := range 300 {
		chunk := bytes.Repeat(fmt.Appendf(nil, "%07d\n", i), 1+i*53%12000)
		want.Write(chunk)
		if err := w.Print(stdout, chunk); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint32(30_000) {
		if err := w.Resize(i, i); err != nil {
			t.Fatal(err)
		}
	}
	sum := closed(t, w)
	for n := range sum.Parts {
		part, err := os.ReadFile(filepath.Join(dir, string(h.Session), partName(n+1)))
		if err != nil {
			t.Fatal(err)
		}
		if plain, err := unseal(part, nil); err != nil || len(plain) > partBytes {
			t.Fatalf("part %d has %d bytes, %v", n+1, len(plain), err)
		}
	}
	frames := playDir(t, dir, h.Session, sum)
	if got := printed(frames, stdout); got != want.String() {
		t.Errorf("%d bytes were recorded of %d, or in another order", len(got), want.Len())
	}
}

// Several goroutines print at once: nothing is lost, and each one's order stays.
func TestPrintFromSeveralGoroutines(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	r := newRecorder(t, Config{Dir: dir})
	w, h := begin(t, r)
	var wg sync.WaitGroup
	for _, s := range []accessdv1.Stream{stdout, stderr, accessdv1.Stream_STREAM_STDIN} {
		wg.Go(func() {
			for i := range 2000 {
				if err := w.Print(s, fmt.Appendf(nil, "%0500d\n", i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	frames := playDir(t, dir, h.Session, closed(t, w))
	var want strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&want, "%0500d\n", i)
	}
	for _, s := range []accessdv1.Stream{stdout, stderr, accessdv1.Stream_STREAM_STDIN} {
		if printed(frames, s) != want.String() {
			t.Errorf("%v is not what was printed", s)
		}
	}
}

// F31, F34: what a client chooses may be anything and of any length.
func TestF31HostileHeader(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	r := newRecorder(t, Config{Dir: dir})
	h := header()
	h.Command = "\xff\x1b]52;c;x\a\n" + strings.Repeat("é", 200_000)
	h.Term = "\x00\x80" + strings.Repeat("x", 1<<20)
	w, err := r.Begin(h)
	if err != nil {
		t.Fatal(err)
	}
	start := playDir(t, dir, h.Session, closed(t, w))[0].GetStart()
	if len(start.GetCommand()) > maxCommand || !strings.HasPrefix(start.GetCommand(), "\ufffd\x1b]52;c;x\a\né") || len(start.GetTerm()) > maxText {
		t.Errorf("command of %d bytes, TERM of %d", len(start.GetCommand()), len(start.GetTerm()))
	}
	for _, id := range []names.SessionID{"", "../x", "/etc", "con", "a\x00b", names.SessionID(strings.Repeat("x", 300)), "..", "lock"} {
		h := header()
		h.Session = id
		if _, err := r.Begin(h); !fault.Is(err, fault.BadInput) {
			t.Errorf("Begin of session %q = %v", id, err)
		}
	}
	if _, err := r.Begin(h); !fault.Is(err, fault.Conflict) {
		t.Errorf("Begin of a session that has a recording = %v", err)
	}
}

// A clock that jumps back never makes a frame's time go back.
func TestF30ClockJumps(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := newRecorder(t, Config{Dir: dir, Now: func() time.Time { return now }})
	w, h := begin(t, r)
	var want []uint64
	for _, jump := range []time.Duration{time.Second, -time.Hour, 500 * time.Millisecond, 2 * time.Hour} {
		now = now.Add(jump)
		show(t, w, "x")
	}
	want = []uint64{0, 1e6, 1e6, 1e6, 3601.5e6, 3601.5e6}
	var got []uint64
	for _, f := range playDir(t, dir, h.Session, closed(t, w)) {
		got = append(got, f.GetAtUs())
	}
	if !slices.Equal(got, want) {
		t.Errorf("times are %v, want %v", got, want)
	}
}

// F30: a policy may bound what is recorded of a session. Beyond it prints fail, and
// what was recorded is closed as ever.
func TestF30MaxSession(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	limit := int64(0)
	r := newRecorder(t, Config{Dir: dir, MaxSession: func() int64 { return limit }, Cluster: func() string { return "c" }})
	h := header()
	h.Cluster = ""
	w, err := r.Begin(h)
	if err != nil {
		t.Fatal(err)
	}
	show(t, w, strings.Repeat("x", 10_000))
	limit = 15_000
	show(t, w, "a little")
	if err := w.Print(stdout, make([]byte, 5000)); fault.Public(err) != "the recording has reached the 15000 bytes that are allowed" || !fault.Is(err, fault.Unavailable) {
		t.Errorf("Print = %v", err)
	}
	frames := playDir(t, dir, h.Session, closed(t, w))
	if frames[0].GetStart().GetCluster() != "c" || len(printed(frames, stdout)) != 10_008 {
		t.Errorf("start is %v, %d bytes were printed", frames[0], len(printed(frames, stdout)))
	}
	if gap := frames[len(frames)-2].GetGap(); gap.GetBytes() != 5000 || !strings.Contains(gap.GetReason(), "allowed") {
		t.Errorf("the last but one frame is not a gap of 5000 bytes: %v", gap)
	}
}

func TestSecondRecorderIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	newRecorder(t, Config{Dir: dir})
	if _, err := New(Config{Dir: dir}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second recorder on a spool: %v", err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the spool has mode %v, %v", info.Mode(), err)
	}
}

// The store is away and the spool is full: prints fail with the cause, and work
// again by themselves once the store is back.
func TestQuota(t *testing.T) {
	store := newMemory()
	away := fault.New(fault.Unavailable, "the store is away")
	store.before = func(context.Context) error { return away }
	reg := prometheus.NewRegistry()
	r := newRecorder(t, Config{Upload: store, Quota: 1 << 20, Registerer: reg})
	w, _ := begin(t, r)
	noise := make([]byte, maxData)
	rand.Read(noise)
	var err error
	for n := 0; err == nil && n < 100; n++ {
		err = w.Print(stdout, noise)
		rand.Read(noise)
	}
	if !fault.Is(err, fault.Unavailable) || fault.Public(err) != "the recording cannot be written: the spool of recordings is full" {
		t.Fatalf("Print into a full spool = %v", err)
	}
	if _, err := r.Begin(header()); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("Begin in a full spool = %v", err)
	}
	if n, err := testutil.GatherAndCount(reg, "accessd_recording_failures_total", "accessd_recording_spool_bytes"); n != 2 || err != nil {
		t.Errorf("%d counters, %v", n, err)
	}
	if got := testutil.ToFloat64(r.metrics.lost); got != maxData {
		t.Errorf("%v bytes are counted as lost", got)
	}
	store.mu.Lock()
	store.before = nil
	store.mu.Unlock()
	runUntil(t, r, func() bool { return w.Print(stdout, []byte("back")) == nil })
	sum := closed(t, w)
	runUntil(t, r, func() bool { return store.complete(w.session.id) != nil })
	frames := play(t, store.recording(t, w.session.id), sum.Root)
	i := slices.IndexFunc(frames, func(f *accessdv1.Frame) bool { return f.GetGap() != nil })
	if i < 0 || frames[i].GetGap().GetBytes() < maxData || !strings.Contains(frames[i].GetGap().GetReason(), "spool of recordings is full") {
		t.Fatalf("the gap is frame %d", i)
	}
	if string(frames[i+1].GetPrint().GetData()) != "back" {
		t.Errorf("behind the gap is %v", frames[i+1])
	}
}

// An idle recording costs next to nothing, an open one no more than its part.
func TestMemoryOfRecordings(t *testing.T) {
	r := newRecorder(t, Config{})
	const n = 200
	all := make([]*Recording, 0, n)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := heap()
	for range n {
		w, _ := begin(t, r)
		show(t, w, "$ ")
		all = append(all, w)
	}
	if each := (int64(heap()) - int64(before)) / n; each > 300<<10 {
		t.Errorf("an open recording takes %d bytes", each)
	}
	for _, w := range all {
		w.mu.Lock()
		w.fullLocked()
		w.mu.Unlock()
	}
	r.running.Wait()
	if each := (int64(heap()) - int64(before)) / n; each > 16<<10 {
		t.Errorf("an idle recording takes %d bytes", each)
	}
	for _, w := range all {
		closed(t, w)
	}
}
