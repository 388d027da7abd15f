//go:build unix

package events

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// childEnv tells this test binary which process that a test starts it is to be.
const childEnv = "ACCESSD_EVENTS_TEST_CHILD"

func child(what string) int {
	var err error
	switch what { // in its working directory
	case "crash":
		err = crashChild(".")
	case "sink":
		err = sinkChild(".")
	case "rotate":
		if err = rotateChild("."); err == nil {
			return 0
		}
	case "archive":
		if err = archiveChild("."); err == nil {
			return 0
		}
	case "full":
		err = fullChild(".")
	case "steps":
		if err = stepsChild("."); err == nil {
			return 0
		}
	default:
		err = fmt.Errorf("unknown child %q", what)
	}
	fmt.Fprintln(os.Stderr, err)
	return 2
}

// startChild starts a child, behind other words such as strace's.
func startChild(t *testing.T, what, dir string, before ...string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	words := append(before, self)
	cmd := exec.CommandContext(t.Context(), words[0], words[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}

// crashParts are what a process with the roles auth and node holds.
type crashParts struct {
	emitter *Emitter
	log     *Log
	ledger  *OpenSessions
}

func openCrashParts(ctx context.Context, dir string) (crashParts, error) {
	secret, err := os.ReadFile(filepath.Join(dir, "skey"))
	if err != nil {
		return crashParts{}, err
	}
	public, err := os.ReadFile(filepath.Join(dir, "vkey"))
	if err != nil {
		return crashParts{}, err
	}
	signer, err := note.NewSigner(string(secret))
	if err != nil {
		return crashParts{}, err
	}
	var p crashParts
	if p.emitter, err = NewEmitter(EmitterConfig{Dir: filepath.Join(dir, "spool")}); err != nil {
		return p, err
	}
	if p.log, err = OpenLog(ctx, LogConfig{Dir: filepath.Join(dir, "log"), Signer: signer, VerifierKey: string(public)}); err != nil {
		return p, err
	}
	p.ledger, err = NewOpenSessions(filepath.Join(dir, "sessions"))
	return p, err
}

// crashChild records sessions from several goroutines, and says on stdout what
// was acknowledged, until it is killed.
func crashChild(dir string) error {
	ctx := context.Background()
	p, err := openCrashParts(ctx, dir)
	if err != nil {
		return err
	}
	if err := p.ledger.Recover(ctx, p.emitter.Emit); err != nil {
		return err
	}
	failed := make(chan error, 1)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	go func() { fail(p.emitter.Run(ctx, p.log.Append)) }()
	for range 4 {
		go func() {
			for {
				if err := crashSession(ctx, p); err != nil {
					fail(err)
				}
			}
		}()
	}
	fmt.Println("ready")
	return <-failed
}

// crashSession is one session, as a node records it.
func crashSession(ctx context.Context, p crashParts) error {
	sid := names.NewSessionID()
	start := Event{Name: SessionStart, SID: sid, User: "alice"}
	if err := p.ledger.Begin(start); err != nil {
		return err
	}
	ev := Event{Name: Exec, SID: sid, UID: string(names.NewSessionID()), Fields: map[string]any{"command": strings.Repeat("x", rand.IntN(2000))}}
	if err := p.emitter.EmitAll(ctx, start, ev); err != nil {
		return err
	}
	fmt.Printf("start %s\nexec %s\n", sid, ev.UID)
	if err := p.emitter.Emit(ctx, Event{Name: SessionEnd, SID: sid}); err != nil {
		return err
	}
	fmt.Println("end", sid)
	return p.ledger.End(sid)
}

// F04: kill -9 at any moment, again and again. No acknowledged event is lost, none
// is in the log twice, each session that began has one end, and the log verifies.
func TestF04CrashLoop(t *testing.T) {
	rounds := 50
	if n, err := strconv.Atoi(os.Getenv("ACCESSD_FAULT_ROUNDS")); err == nil {
		rounds = 10 * n
	}
	dir := crashDir(t)
	acked := map[string]string{} // uid to what it is
	for range rounds {
		cmd, out := startChild(t, "crash", dir)
		var timer *time.Timer
		readAcks(out, acked, func() {
			timer = time.AfterFunc(rand.N(40*time.Millisecond), func() { _ = cmd.Process.Kill() })
		})
		if timer == nil {
			t.Fatal("the child ended by itself")
		}
		_ = cmd.Wait()
	}
	checkAfterCrashes(t, dir, acked)
}

// crashDir returns a directory for [crashParts].
func crashDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	secret, public, err := NewAuditKey("example.com/audit")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "skey"), []byte(secret))
	write(t, filepath.Join(dir, "vkey"), []byte(public))
	return dir
}

// readAcks notes in acked what a child says was acknowledged, uid to what it is,
// until it ends.
func readAcks(out *bufio.Reader, acked map[string]string, ready func()) {
	for {
		line, err := out.ReadString('\n')
		if err != nil {
			return
		}
		switch what, id, _ := strings.Cut(strings.TrimSpace(line), " "); what {
		case "ready":
			ready()
		case "start", "end":
			acked[sessionUID(names.SessionID(id), what)] = line
		case "exec":
			acked[id] = line
		}
	}
}

// stepsChild recovers, records a few sessions one after the other, brings them
// into the log, and ends in order.
func stepsChild(dir string) error {
	ctx := context.Background()
	p, err := openCrashParts(ctx, dir)
	if err != nil {
		return err
	}
	if err := p.ledger.Recover(ctx, p.emitter.Emit); err != nil {
		return err
	}
	over, stop := context.WithCancel(ctx)
	stop()
	for range 3 {
		for range 2 {
			if err := crashSession(ctx, p); err != nil {
				return err
			}
		}
		if err := p.emitter.Run(over, p.log.Append); err != nil { // drains
			return err
		}
	}
	if err := errors.Join(p.ledger.Close(), p.emitter.Close(), p.log.Close()); err != nil {
		return err
	}
	fmt.Println("ready")
	return nil
}

// F04: kill -9 when a thread enters its first sync, its second, and so on, until
// there are no more, each time on what the kill before left; the same for renames.
func TestF04KilledAtEverySync(t *testing.T) {
	dir := crashDir(t)
	acked := map[string]string{}
	for _, calls := range []string{"fsync,fdatasync", "rename,renameat,renameat2"} {
		killed, ended := 0, false
		for n := 1; !ended && n < 500; n++ {
			cmd, out := startChild(t, "steps", dir, "strace", "-f", "-qq", "-o", os.DevNull,
				"-e", "trace="+calls, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", calls, n))
			readAcks(out, acked, func() { ended = true })
			if err := cmd.Wait(); err != nil && ended {
				t.Fatalf("the child ended with %v", err)
			}
			killed++
		}
		t.Logf("%s: %d kills", calls, killed-1)
		if !ended || killed < 5 {
			t.Fatalf("%s: %d children were killed, and the last did not end", calls, killed)
		}
	}
	checkAfterCrashes(t, dir, acked)
}

// checkAfterCrashes opens what crashes left, lets it recover, and compares it with
// what was acknowledged.
func checkAfterCrashes(t *testing.T, dir string, acked map[string]string) {
	t.Helper()
	p, err := openCrashParts(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.ledger.Recover(t.Context(), p.emitter.Emit); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.emitter.Run(ctx, p.log.Append); err != nil || p.emitter.Stats().Damaged > 0 {
		t.Fatalf("Run = %v, %+v", err, p.emitter.Stats())
	}
	checkCrashed(t, p.log, acked)
	if err := errors.Join(p.ledger.Close(), p.emitter.Close(), p.log.Close()); err != nil {
		t.Error(err)
	}
	if left := segmentsIn(t, filepath.Join(dir, "spool")); len(left) > 0 {
		t.Errorf("%v is left in the spool", left)
	}
	if again := openLedger(t, filepath.Join(dir, "sessions")); len(again.left) > 0 {
		t.Errorf("%d sessions are left in the ledger", len(again.left))
	}
}

func checkCrashed(t *testing.T, l *Log, acked map[string]string) {
	t.Helper()
	all := contents(t, l, Filter{})
	mustVerify(t, l, len(all))
	seen := map[string]int{}
	starts, ends, recovered := map[names.SessionID]int{}, map[names.SessionID]int{}, 0
	for _, data := range all {
		e, err := ParseEvent(data)
		if err != nil {
			t.Fatal(err)
		}
		seen[e.UID]++
		switch e.Name {
		case SessionStart:
			starts[e.SID]++
		case SessionEnd:
			ends[e.SID]++
			if e.Fields["recovered"] == true {
				recovered++
			}
		default:
		}
	}
	for uid, n := range seen {
		if n != 1 {
			t.Errorf("uid %s is in the log %d times", uid, n)
		}
	}
	for uid, what := range acked {
		if seen[uid] == 0 {
			t.Errorf("acknowledged %s is not in the log", strings.TrimSpace(what))
		}
	}
	for sid, n := range starts {
		if n != 1 || ends[sid] != 1 {
			t.Errorf("session %s has %d starts and %d ends", sid, n, ends[sid])
		}
	}
	for sid := range ends {
		if starts[sid] == 0 {
			t.Errorf("session %s has no start", sid)
		}
	}
	if len(acked) == 0 || recovered == 0 {
		t.Errorf("%d acknowledged events, %d recovered sessions: nothing was tested", len(acked), recovered)
	}
	t.Logf("%d events, %d acknowledged, %d sessions, of which %d recovered", len(all), len(acked), len(starts), recovered)
}

// F05: on a disk that is full Emit and Append say so, nothing that was
// acknowledged is lost, nothing is recorded that was refused, and both recover by
// themselves.
func TestF05DiskIsFull(t *testing.T) {
	dir := t.TempDir()
	if err := mountSmall(dir); err != nil {
		t.Logf("cannot mount a small file system (%v): only TestF05FilesAreTooLarge tells", err)
		return
	}
	t.Cleanup(func() {
		if err := unmount(dir); err != nil {
			t.Error(err)
		}
	})
	e, err := NewEmitter(EmitterConfig{Dir: filepath.Join(dir, "spool")})
	if err != nil {
		t.Fatal(err)
	}
	l := openTestLog(t, filepath.Join(dir, "log"), newTestKey(t, "example.com/audit"))
	defer l.Close()
	mustAppend(t, l, numbered(t, 0, 100)...)
	mustVerify(t, l, 100)

	release := fill(t, filepath.Join(dir, "ballast"))
	var want []string
	refused := 0
	for i := range 200 {
		text := fmt.Sprint(i, strings.Repeat("x", 500))
		if err := e.Emit(t.Context(), run(text)); err == nil {
			want = append(want, text)
		} else if refused++; !fault.Is(err, fault.Unavailable) {
			t.Errorf("Emit = %v, want unavailable", err)
		}
	}
	if refused < 100 || e.Healthy() == nil {
		t.Errorf("%d of 200 refused, healthy: %v", refused, e.Healthy())
	}
	more := numbered(t, 100, 500)
	if err := l.Append(t.Context(), more); !fault.Is(err, fault.Unavailable) || l.Healthy() == nil {
		t.Errorf("Append = %v, healthy: %v; want unavailable", err, l.Healthy())
	}
	checkSame(t, "query of the full disk", contents(t, l, Filter{}), numbersOf(t, l, 100))

	release()
	mustEmit(t, e, "after")
	if got := ship(t, e); !slices.Equal(got, append(want, "after")) {
		t.Errorf("shipped %d events, want %d", len(got), len(want)+1)
	}
	mustAppend(t, l, more...)
	mustVerify(t, l, 600)
	if err := errors.Join(e.Healthy(), l.Healthy(), e.Close(), l.Close()); err != nil {
		t.Error(err)
	}
}

// numbersOf returns the first n entries of l.
func numbersOf(t *testing.T, l *Log, n int) [][]byte {
	t.Helper()
	all := contents(t, l, Filter{})
	return all[:min(n, len(all))]
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
	return func() { remove(t, path) }
}

// fullChild forbids itself files larger than a few bytes, which needs no rights.
func fullChild(dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	ctx := context.Background()
	e, err := NewEmitter(EmitterConfig{Dir: filepath.Join(dir, "spool")})
	if err != nil {
		return err
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	small := limit
	small.Cur = 100
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small); err != nil {
		return err
	}
	for range 3 {
		if err := e.Emit(ctx, run("refused")); !fault.Is(err, fault.Unavailable) {
			return fmt.Errorf("Emit = %w, want unavailable", err)
		}
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	if err := e.Emit(ctx, run("after")); err != nil {
		return err
	}
	var s sink
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := e.Run(ended, s.drain); err != nil || !slices.Equal(s.got, []string{"after"}) {
		return fmt.Errorf("shipped %v, %w", s.got, err)
	}
	fmt.Println("recovered")
	return nil
}

// F05: the same for the spool, where nobody may mount a small disk.
func TestF05FilesAreTooLarge(t *testing.T) {
	cmd, out := startChild(t, "full", t.TempDir())
	text, _ := out.ReadString('\n')
	if err := cmd.Wait(); text != "recovered\n" {
		t.Errorf("the child says %q, %v", text, err)
	}
}

// F05: a log whose file system becomes read-only refuses, and goes on when it is
// writable again. It must not reach Tessera, which panics then.
func TestF05LogWithoutItsLockFile(t *testing.T) {
	dir := t.TempDir()
	l := openTestLog(t, dir, newTestKey(t, "example.com/audit"))
	mustAppend(t, l, numbered(t, 0, 10)...)
	lock := filepath.Join(dir, treeState+".lock")
	remove(t, lock)
	if err := os.Mkdir(lock, 0o700); err != nil { // cannot be opened for writing, even by root
		t.Fatal(err)
	}
	for range 3 {
		if err := l.Append(t.Context(), numbered(t, 10, 10)); !fault.Is(err, fault.Unavailable) {
			t.Errorf("Append = %v, want unavailable", err)
		}
	}
	if l.Healthy() == nil {
		t.Error("the log is healthy though it cannot be written")
	}
	remove(t, lock)
	mustAppend(t, l, numbered(t, 10, 10)...)
	mustVerify(t, l, 20)
}

// A burst from many members at once.
func TestLogManyMembers(t *testing.T) {
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	var wg sync.WaitGroup
	var n atomic.Int64
	for i := range 50 {
		e := newTestEmitter(t, EmitterConfig{ServerID: fmt.Sprint(i)})
		wg.Go(func() {
			mustEmit(t, e, numbers(0, 20)...)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := e.Run(ctx, l.Append); err != nil {
				t.Errorf("Run = %v", err)
			}
			n.Add(int64(e.Stats().Shipped))
		})
	}
	wg.Wait()
	mustVerify(t, l, 1000)
	if n.Load() != 1000 {
		t.Errorf("shipped %d", n.Load())
	}
}
