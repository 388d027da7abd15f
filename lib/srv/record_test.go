package srv

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// shelf is where recordings go.
type shelf struct {
	mu    sync.Mutex
	parts map[string][][]byte
	ends  map[string]*accessdv1.CompleteRecordingRequest
	full  chan struct{} // gets one for each that is complete
}

func newShelf() *shelf {
	return &shelf{parts: map[string][][]byte{}, ends: map[string]*accessdv1.CompleteRecordingRequest{}, full: make(chan struct{}, 100)}
}

// UploadPart implements [recording.Upload].
func (s *shelf) UploadPart(_ context.Context, req *accessdv1.UploadPartRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	sid := req.GetSession()
	if int(req.GetPart()) != len(s.parts[sid])+1 {
		return errors.New("out of order")
	}
	s.parts[sid] = append(s.parts[sid], req.GetData())
	return nil
}

// Complete implements [recording.Upload].
func (s *shelf) Complete(_ context.Context, req *accessdv1.CompleteRecordingRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends[req.GetSession()] = req
	s.full <- struct{}{}
	return nil
}

// taped is a world whose recordings can be looked at.
type taped struct {
	*world
	x        *executor
	c        *ssh.Client
	shelf    *shelf
	recorder *recording.Recorder
}

// tape runs f with a world of one client; options are those of its role.
func tape(t *testing.T, options services.RoleOptions, change func(*recording.Config), f func(w *taped)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &taped{x: newExecutor(), shelf: newShelf()}
		cfg := recording.Config{Dir: t.TempDir() + "/spool", Upload: w.shelf}
		if change != nil {
			change(&cfg)
		}
		var err error
		if w.recorder, err = recording.New(cfg); err != nil {
			t.Fatal(err)
		}
		w.world = newWorld(t, w.x, func(c *Config) { c.Recorder = w.recorder })
		w.policy.options.Options = options
		w.c = w.dial(identity(time.Now().Add(4 * time.Hour)))
		f(w)
		_ = w.c.Close()
		w.finish()
	})
}

// frames returns what the recording of sid holds, once it is on the shelf, and
// checks that session.end vouches for it.
func (w *taped) frames(sid names.SessionID) []*accessdv1.Frame {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error)
	go func() { done <- w.recorder.Run(ctx) }()
	<-w.shelf.full
	cancel()
	if err := <-done; err != nil {
		w.t.Error(err)
	}
	r := recording.NewReader(nil)
	var all []*accessdv1.Frame
	for i, part := range w.shelf.parts[string(sid)] {
		frames, err := r.Part(uint32(i+1), part)
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, frames...)
	}
	end := w.journal.named(events.SessionEnd)
	if len(end) != 1 || end[0].SID != sid {
		w.t.Fatalf("session.end %v, want one of %s", end, sid)
	}
	root, _ := end[0].Fields["recording_root"].(string)
	if err := r.Verify(root); err != nil || all[len(all)-1].GetEnd() == nil {
		w.t.Errorf("Verify(%q) = %v, the last frame is %v", root, err, all[len(all)-1])
	}
	if n, want := end[0].Fields["recording_parts"], int64(len(w.shelf.parts[string(sid)])); n != want {
		w.t.Errorf("session.end says %v parts, want %d", n, want)
	}
	if got := w.shelf.ends[string(sid)]; got.GetRoot() != root {
		w.t.Errorf("completed as %v, want root %s", got, root)
	}
	return all
}

// printed joins what was recorded of a stream.
func printed(frames []*accessdv1.Frame, s accessdv1.Stream) string {
	var b strings.Builder
	for _, f := range frames {
		if p := f.GetPrint(); p.GetStream() == s {
			b.Write(p.GetData())
		}
	}
	return b.String()
}

func write(t *testing.T, w interface{ Write([]byte) (int, error) }, text string) {
	t.Helper()
	if _, err := w.Write([]byte(text)); err != nil {
		t.Error(err)
	}
}

// TestRecord: what a person sees is recorded stream by stream, what they type
// only where the role says so, and session.end vouches for it.
func TestRecord(t *testing.T) {
	for _, input := range []bool{false, true} {
		tape(t, services.RoleOptions{RecordInput: input}, nil, func(w *taped) {
			r := w.start(w.x, w.c)
			write(w.t, r.process.stdout, "seen\n")
			write(w.t, r.process.stderr, "also seen\n")
			write(w.t, r.stdin, "typed\n")
			synctest.Wait()
			buf := make([]byte, 100)
			if n, err := r.process.stdin.Read(buf); err != nil || string(buf[:n]) != "typed\n" {
				w.t.Errorf("the process read %q, %v", buf[:n], err)
			}
			r.process.end(w.t, Exit{})
			if err := r.Wait(); err != nil {
				w.t.Error(err)
			}
			synctest.Wait()
			start := w.journal.named(events.SessionStart)[0]
			if start.Fields["record"] != string(services.RecordStrict) && start.Fields["record"] != services.RecordStrict {
				w.t.Errorf("session.start says %v, want strict", start.Fields["record"])
			}
			frames := w.frames(start.SID)
			want := map[accessdv1.Stream]string{
				accessdv1.Stream_STREAM_STDOUT: "seen\n", accessdv1.Stream_STREAM_STDERR: "also seen\n", accessdv1.Stream_STREAM_STDIN: "",
			}
			if input {
				want[accessdv1.Stream_STREAM_STDIN] = "typed\n"
			}
			for s, text := range want {
				if got := printed(frames, s); got != text {
					w.t.Errorf("%v: %q, want %q", s, got, text)
				}
			}
			if h := frames[0].GetStart(); h.GetUser() != "alice" || h.GetLogin() != "root" || h.GetCommand() != "work" || h.GetNodeName() != "n1" || h.GetTerminal() {
				w.t.Errorf("begins with %v", h)
			}
		})
	}
}

// TestRecordTerminal: the terminal's size is in the recording.
func TestRecordTerminal(t *testing.T) {
	tape(t, services.RoleOptions{}, nil, func(w *taped) {
		s, err := w.c.NewSession()
		if err != nil {
			w.t.Fatal(err)
		}
		if err := s.RequestPty("vt100", 24, 80, ssh.TerminalModes{}); err != nil {
			w.t.Fatal(err)
		}
		if err := s.Shell(); err != nil {
			w.t.Fatal(err)
		}
		p := <-w.x.started
		if err := s.WindowChange(50, 132); err != nil {
			w.t.Fatal(err)
		}
		synctest.Wait()
		p.end(w.t, Exit{})
		if err := s.Wait(); err != nil {
			w.t.Error(err)
		}
		synctest.Wait()
		frames := w.frames(w.journal.named(events.SessionStart)[0].SID)
		if h := frames[0].GetStart(); !h.GetTerminal() || h.GetTerm() != "vt100" || h.GetColumns() != 80 || h.GetRows() != 24 || h.GetKind() != "shell" {
			w.t.Errorf("begins with %v", h)
		}
		if !slices.ContainsFunc(frames, func(f *accessdv1.Frame) bool {
			return f.GetResize().GetColumns() == 132 && f.GetResize().GetRows() == 50
		}) {
			w.t.Errorf("no resize in %v", frames)
		}
	})
}

// TestRecordOff: nothing is recorded where the role says so, and session.start
// tells it.
func TestRecordOff(t *testing.T) {
	tape(t, services.RoleOptions{Record: services.RecordOff}, nil, func(w *taped) {
		r := w.start(w.x, w.c)
		r.process.end(w.t, Exit{})
		if err := r.Wait(); err != nil {
			w.t.Error(err)
		}
		synctest.Wait()
		if e := w.journal.named(events.SessionStart)[0]; e.Fields["record"] != services.RecordOff {
			w.t.Errorf("session.start says %v, want off", e.Fields["record"])
		}
		if e := w.journal.named(events.SessionEnd)[0]; e.Fields["recording_root"] != nil {
			w.t.Errorf("session.end has %v", e.Fields)
		}
	})
}

// TestF05NoRoomToRecord: without room a strict session does not begin, and one
// with best_effort does; both are told in the log.
func TestF05NoRoomToRecord(t *testing.T) {
	full := func(c *recording.Config) { c.Quota = 1 }
	tape(t, services.RoleOptions{}, full, func(w *taped) {
		s, err := w.c.NewSession()
		if err != nil {
			w.t.Fatal(err)
		}
		got, err := s.CombinedOutput("work")
		if exit, ok := errors.AsType[*ssh.ExitError](err); !ok || exit.ExitStatus() != exitRefused || !strings.Contains(string(got), "record") {
			w.t.Errorf("Run = %v, output %q, want a refusal", err, got)
		}
		if len(w.x.started) != 0 {
			w.t.Error("the command was started all the same")
		}
		if e := w.journal.named(events.SessionRejected); len(e) != 1 || e[0].Error == "" {
			w.t.Errorf("session.rejected %v, want one", e)
		}
	})
	tape(t, services.RoleOptions{Record: services.RecordBestEffort}, full, func(w *taped) {
		r := w.start(w.x, w.c)
		r.process.end(w.t, Exit{})
		if err := r.Wait(); err != nil {
			w.t.Error(err)
		}
		synctest.Wait()
		start, gap := w.journal.named(events.SessionStart)[0], w.journal.named(events.RecordingGap)
		if len(gap) != 1 || gap[0].SID != start.SID || gap[0].Success || gap[0].Fields["reason"] == "" {
			w.t.Errorf("recording.gap %v, want one of %s", gap, start.SID)
		}
	})
}

// TestRecordingFails: when there is no room any more a strict session ends with
// the reason before the person sees what is not recorded; with best_effort it
// goes on, and the log says so once.
func TestRecordingFails(t *testing.T) {
	limited := func(c *recording.Config) { c.MaxSession = func() int64 { return 1 << 10 } }
	long := strings.Repeat("x", 4<<10)
	tape(t, services.RoleOptions{}, limited, func(w *taped) {
		r := w.start(w.x, w.c)
		_, _ = r.process.stdout.Write([]byte(long)) // fails when the session is cut
		_ = r.Wait()
		if strings.Contains(r.stdout.String(), "x") {
			w.t.Error("the person saw what is not recorded")
		}
		synctest.Wait()
		end := w.journal.named(events.SessionEnd)
		if reason, _ := end[0].Fields["reason"].(string); !strings.HasPrefix(reason, "the session can be recorded no longer: ") || !strings.Contains(r.stderr.String(), reason) {
			w.t.Errorf("reason %q, person reads %q", reason, &r.stderr)
		}
	})
	tape(t, services.RoleOptions{Record: services.RecordBestEffort}, limited, func(w *taped) {
		r := w.start(w.x, w.c)
		write(w.t, r.process.stdout, long)
		write(w.t, r.process.stdout, long)
		r.process.end(w.t, Exit{})
		if err := r.Wait(); err != nil || r.stdout.String() != long+long {
			w.t.Errorf("Wait = %v, %d bytes seen", err, len(r.stdout.String()))
		}
		synctest.Wait()
		if gap := w.journal.named(events.RecordingGap); len(gap) != 1 {
			w.t.Errorf("%d events recording.gap, want 1", len(gap))
		}
	})
}

// TestUnrecordablePublic: a person reads why, not where.
func TestUnrecordablePublic(t *testing.T) {
	s := &session{recorded: services.RecordStrict, cancel: func(error) {}}
	err := s.unrecordable(t.Context(), fault.Wrap(fault.Unavailable, errors.New("write /var/lib/accessd/x: no space left on device"), "no space left on device"))
	if want := "the session can be recorded no longer: no space left on device"; fault.Public(err) != want {
		t.Errorf("%q, want %q", fault.Public(err), want)
	}
}

// TestStalledRecordingEnds: what a disk keeps ends, whatever the role says; it could
// not go on.
func TestStalledRecordingEnds(t *testing.T) {
	for _, mode := range []services.Recording{services.RecordStrict, services.RecordBestEffort} {
		var cause error
		s := &session{recorded: mode, cancel: func(err error) { cause = err }}
		_ = s.unrecordable(t.Context(), recording.ErrStalled) // cause is the same
		if want := "the session can be recorded no longer: the recording cannot be written: the disk does not answer"; fault.Public(cause) != want {
			t.Errorf("%v: it ended because of %v, want %q", mode, cause, want)
		}
	}
}
