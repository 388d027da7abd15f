//go:build unix

package recording

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// childEnv tells this test binary which process that a test starts it is to be.
const childEnv = "ACCESSD_RECORDING_TEST_CHILD"

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		os.Exit(child(what))
	}
	goleak.VerifyTestMain(m)
}

func child(what string) int {
	var err error
	switch what { // in its working directory
	case "crash":
		err = crashChild()
	case "steps":
		err = stepsChild()
	case "fault":
		err = faultChild()
	case "stall":
		err = stallChild()
	default:
		err = fmt.Errorf("unknown child %q", what)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	return 0
}

// startChild starts this binary as a child, behind other words such as strace's.
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
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}

// folder is a store that outlives its process: write-once files.
type folder string

func (f folder) put(name string, data []byte) error {
	path := filepath.Join(string(f), name)
	if have, err := os.ReadFile(path); err == nil {
		if !bytes.Equal(have, data) {
			return fault.New(fault.Conflict, "%s is there", name)
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (f folder) UploadPart(_ context.Context, req *accessdv1.UploadPartRequest) error {
	return f.put(filepath.Join(req.GetSession(), partName(req.GetPart())), req.GetData())
}

func (f folder) Complete(_ context.Context, req *accessdv1.CompleteRecordingRequest) error {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		return err
	}
	return f.put(filepath.Join(req.GetSession(), "complete"), data)
}

func (f folder) complete(id names.SessionID) *accessdv1.CompleteRecordingRequest {
	data, err := os.ReadFile(filepath.Join(string(f), string(id), "complete"))
	req := new(accessdv1.CompleteRecordingRequest)
	if err != nil || proto.Unmarshal(data, req) != nil {
		return nil
	}
	return req
}

func (f folder) parts(t *testing.T, id names.SessionID) (parts [][]byte) {
	t.Helper()
	for n := uint32(1); ; n++ {
		part, err := os.ReadFile(filepath.Join(string(f), string(id), partName(n)))
		if errors.Is(err, fs.ErrNotExist) {
			return parts
		}
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, part)
	}
}

// crashChild records sessions from several goroutines, and says on stdout what was
// acknowledged, until it is killed.
func crashChild() error {
	r, err := New(Config{Dir: "spool", Upload: folder("store")})
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	go func() { fail(r.Run(context.Background())) }()
	left, err := r.Recover()
	if err != nil {
		return err
	}
	for id, sum := range left {
		fmt.Println("end", id, sum.Root)
		r.Release(id)
	}
	for range 3 {
		go func() {
			for {
				if err := crashSession(r, rand.IntN(40)*rand.IntN(2), rand.IntN(60_000)); err != nil {
					fail(err)
				}
			}
		}()
	}
	fmt.Println("ready")
	return <-failed
}

// crashSession is one session with some prints of some size.
func crashSession(r *Recorder, prints, size int) error {
	h := Header{Session: names.NewSessionID(), User: "alice"}
	w, err := r.Begin(h)
	if err != nil {
		return err
	}
	fmt.Println("begin", h.Session)
	for i := range prints {
		if err := w.Print(stdout, line(i, size)); err != nil {
			return err
		}
		fmt.Println("print", h.Session, i+1)
	}
	sum, err := w.Close()
	if err != nil {
		return err
	}
	fmt.Println("end", h.Session, sum.Root)
	r.Release(h.Session)
	return nil
}

// line is the text of print i.
func line(i, size int) []byte {
	return append(fmt.Appendf(nil, "%d:", i), append(bytes.Repeat([]byte{'a' + byte(i%26)}, size), '\n')...)
}

// acked is what a child said.
type acked struct {
	prints map[names.SessionID]int
	roots  map[names.SessionID]string
}

func newAcked() acked {
	return acked{prints: map[names.SessionID]int{}, roots: map[names.SessionID]string{}}
}

// read takes what a child said until it is dead or says "ready".
func (a acked) read(t *testing.T, out *bufio.Reader) (ready bool) {
	t.Helper()
	for {
		text, err := out.ReadString('\n')
		if err != nil {
			return false
		}
		words := strings.Fields(text)
		if words[0] == "ready" {
			return true
		}
		id := names.SessionID(words[1])
		switch words[0] {
		case "begin":
			a.prints[id] = 0
		case "print":
			if a.prints[id], err = strconv.Atoi(words[2]); err != nil {
				t.Fatal(err)
			}
		case "end":
			if root, ok := a.roots[id]; ok && root != words[2] {
				t.Fatalf("session %s had the root %s and now %s", id, root, words[2])
			}
			a.roots[id] = words[2]
		}
	}
}

// check recovers what the last child left, uploads everything, and compares.
func (a acked) check(t *testing.T, dir string) {
	t.Helper()
	store := folder(filepath.Join(dir, "store"))
	r := newRecorder(t, Config{Dir: filepath.Join(dir, "spool"), Upload: store})
	left, err := r.Recover()
	if err != nil {
		t.Fatal(err)
	}
	for id, sum := range left {
		if root, ok := a.roots[id]; ok && root != sum.Root {
			t.Fatalf("session %s had the root %s and now %s", id, root, sum.Root)
		}
		a.roots[id] = sum.Root
		if _, ok := a.prints[id]; !ok {
			a.prints[id] = 0 // killed between Begin and saying so
		}
		r.Release(id)
	}
	runUntil(t, r, func() bool { return len(spooled(t, filepath.Join(dir, "spool"))) == 0 })
	if n := a.compare(t, store); n == 0 {
		t.Fatal("nothing was recorded")
	}
}

// compare checks that each recording in the store holds at least what was
// acknowledged, in order, has the root that was told, and one end.
func (a acked) compare(t *testing.T, store folder) (recordings int) {
	t.Helper()
	for id, prints := range a.prints {
		root, ok := a.roots[id]
		complete := store.complete(id)
		if !ok || complete == nil || complete.GetRoot() != root {
			t.Fatalf("session %s has the root %q in the log, and in the store %v", id, root, complete)
		}
		frames := play(t, store.parts(t, id), root)
		ends, next := 0, 0
		for _, f := range frames {
			if f.GetEnd() != nil {
				ends++
			}
			if f.GetGap() != nil {
				t.Fatalf("session %s has a gap: %v", id, f)
			}
		}
		text := printed(frames, stdout)
		for text != "" {
			number, rest, ok := strings.Cut(text, ":")
			if !ok || number != strconv.Itoa(next) {
				break
			}
			body, rest, whole := strings.Cut(rest, "\n")
			if strings.Trim(body, string(rune('a'+next%26))) != "" {
				t.Fatalf("session %s: print %d is not what was printed", id, next)
			}
			if text = rest; !whole {
				break
			}
			next++
		}
		if next < prints || ends != 1 {
			t.Fatalf("session %s has %d prints and %d ends; %d prints were acknowledged", id, next, ends, prints)
		}
		recordings++
	}
	return recordings
}

// F01, F04: kill -9 at any moment, again and again. No acknowledged byte is lost,
// each recording that began is closed once, and its root is the chain over what
// the store has.
func TestF04CrashLoop(t *testing.T) {
	rounds := 25
	if n, err := strconv.Atoi(os.Getenv("ACCESSD_FAULT_ROUNDS")); err == nil {
		rounds = 10 * n
	}
	dir := t.TempDir()
	a := newAcked()
	for range rounds {
		cmd, out := startChild(t, "crash", dir)
		if !a.read(t, out) {
			t.Fatalf("the child ended by itself: %v", cmd.Wait())
		}
		timer := time.AfterFunc(rand.N(60*time.Millisecond), func() { _ = cmd.Process.Kill() })
		a.read(t, out)
		_ = cmd.Wait()
		timer.Stop()
	}
	a.check(t, dir)
}

// stepsChild records two sessions, uploads them, and ends.
func stepsChild() error {
	r, err := New(Config{Dir: "spool", Upload: folder("store")})
	if err != nil {
		return err
	}
	if _, err := r.Recover(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	for _, prints := range []int{2, 12} {
		if err := crashSession(r, prints, 60_000); err != nil {
			return err
		}
	}
	for {
		entries, err := os.ReadDir("spool")
		if err != nil {
			return err
		}
		if len(entries) == 2 { // the lock and the reserve
			cancel()
			return <-ended
		}
		runtime.Gosched()
	}
}

// F04: kill -9 at each system call by which the recorder changes the disk.
func TestF04KilledAtEachSystemCall(t *testing.T) {
	for _, call := range []string{"write", "fsync", "openat", "renameat,renameat2", "unlinkat", "mkdirat", "close"} {
		t.Run(call, func(t *testing.T) {
			for n, step := 1, 1; ; n += step {
				dir := t.TempDir()
				a := newAcked()
				cmd, out := startChild(t, "steps", dir, "strace", "-f", "-qq", "-o", filepath.Join(t.TempDir(), "trace"), "-e", "trace="+call,
					"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n))
				a.read(t, out)
				err := cmd.Wait()
				if err == nil { // it makes no more of these
					if n == 1 {
						t.Fatal("it was never killed")
					}
					return
				}
				if len(a.prints) > 0 {
					a.check(t, dir)
				}
				if n >= 12 {
					step = 7 // most are alike
				}
			}
		})
	}
}
