package srv

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
)

// output collects what a session prints.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// remote is a session as its client sees it.
type remote struct {
	*ssh.Session
	stdout, stderr output
	process        *fakeProcess
	stdin          io.WriteCloser // stays open
}

// start starts a command that the test must end.
func (w *world) start(x *executor, c *ssh.Client) *remote {
	w.t.Helper()
	s, err := c.NewSession()
	if err != nil {
		w.t.Fatal(err)
	}
	r := &remote{Session: s}
	s.Stdout, s.Stderr = &r.stdout, &r.stderr
	if r.stdin, err = s.StdinPipe(); err != nil {
		w.t.Fatal(err)
	}
	if err := s.Start("work"); err != nil {
		w.t.Fatal(err)
	}
	select {
	case r.process = <-x.started:
	default:
		w.t.Fatalf("the command was not started: %v, stderr %q", s.Wait(), &r.stderr)
	}
	return r
}

// bubble runs f with a world and one client in a synctest bubble.
func bubble(t *testing.T, options services.RoleOptions, f func(w *world, x *executor, c *ssh.Client), settings ...setting) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		x := newExecutor()
		w := newWorld(t, x, settings...)
		w.policy.options.Options = options
		c := w.dial(identity(time.Now().Add(4 * time.Hour)))
		f(w, x, c)
		_ = c.Close()
		w.finish()
	})
}

// wantCut waits for the end of r and checks what its person reads.
func (r *remote) wantCut(t *testing.T, w *world, reason string) {
	t.Helper()
	err := r.Wait()
	if exit, ok := errors.AsType[*ssh.ExitError](err); !ok || exit.Signal() != "HUP" || exit.Msg() != reason {
		t.Errorf("Wait = %v, want exit-signal HUP and %q", err, reason)
	}
	if got, want := r.stderr.String(), "accessd: session ended: "+reason+"\n"; got != want {
		t.Errorf("stderr %q, want %q", got, want)
	}
	select {
	case <-r.process.closed:
	default:
		t.Error("the process was not hung up")
	}
	synctest.Wait()
	list := w.journal.named(events.SessionEnd)
	if len(list) == 0 || list[len(list)-1].Fields["reason"] != reason {
		t.Errorf("session.end %v, want reason %q", list, reason)
	}
}

func TestLimits(t *testing.T) {
	tests := []struct {
		name    string
		options services.RoleOptions
		act     func(w *world, r *remote)
		after   time.Duration
		reason  string
	}{
		{
			name: "role's time", options: services.RoleOptions{SessionTTL: time.Hour},
			after: time.Hour, reason: "the session lasted 1h0m0s, as long as the role allows",
		},
		{
			name: "idle", options: services.RoleOptions{IdleTimeout: time.Minute},
			after: time.Minute, reason: "idle for 1m0s",
		},
		{
			name: "idle after output", options: services.RoleOptions{IdleTimeout: time.Minute},
			act: func(_ *world, r *remote) {
				<-time.After(50 * time.Second)
				_, _ = r.process.stdout.Write([]byte("x"))
				<-time.After(50 * time.Second)
				_, _ = r.process.stdout.Write([]byte("y"))
			},
			after: 160 * time.Second, reason: "idle for 1m0s",
		},
		{name: "certificate's end", after: 4 * time.Hour, reason: "the certificate has expired"},
		{
			name: "killed",
			act: func(w *world, _ *remote) {
				if err := w.manager.Kill(w.manager.List()[0].ID, "lunch\x1b[31m", "bob"); err != nil {
					w.t.Error(err)
				}
			},
			reason: `ended by bob: lunch\x1b[31m`,
		},
		{
			name: "role removed",
			act: func(w *world, _ *remote) {
				w.policy.set(func(p *policy) { p.deny[authz.ActionExec] = "no role grants it" })
			},
			reason: "the policy no longer allows this session: no role grants it",
		},
		{
			name: "command no longer listed",
			act: func(w *world, _ *remote) {
				w.policy.set(func(p *policy) { p.commands = map[string]bool{} })
			},
			reason: "the policy no longer allows this session: no role lists the command \"work\"",
		},
		{
			name: "role made stricter",
			act: func(w *world, _ *remote) {
				w.policy.set(func(p *policy) { p.options.Options.IdleTimeout = time.Minute })
			},
			after: time.Minute, reason: "idle for 1m0s",
		},
		{
			name:  "server stops",
			act:   func(w *world, _ *remote) { w.stop() },
			after: 10 * time.Second, reason: "this node is stopping",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, test.options, func(w *world, x *executor, c *ssh.Client) {
				begun := time.Now()
				r := w.start(x, c)
				if test.act != nil {
					test.act(w, r)
				}
				r.wantCut(w.t, w, test.reason)
				if got := time.Since(begun); got != test.after {
					w.t.Errorf("ended after %v, want %v", got, test.after)
				}
			})
		})
	}
}

// F24: a session ends with its certificate or, where the configuration says so,
// lives on; a new channel on the connection is refused in both cases.
func TestF24CertificateExpires(t *testing.T) {
	outlive := func(cfg *Config) { cfg.OutliveCertificate = true }
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		r := w.start(x, c)
		<-time.After(5 * time.Hour)
		s, err := c.NewSession()
		if err != nil {
			w.t.Fatal(err)
		}
		if got, err := s.CombinedOutput("true"); err == nil || string(got) != "accessd: the certificate has expired\n" {
			w.t.Errorf("a new session after the certificate's end: %v, output %q, want a refusal", err, got)
		}
		r.process.end(w.t, Exit{})
		if err := r.Wait(); err != nil {
			w.t.Errorf("Wait = %v, want a session that outlives its certificate", err)
		}
	}, outlive)
	bubble(t, services.RoleOptions{}, func(w *world, _ *executor, c *ssh.Client) {
		<-time.After(4 * time.Hour) // the connection is cut a second later
		s, err := c.NewSession()
		if err != nil {
			w.t.Fatal(err)
		}
		got, err := s.CombinedOutput("true")
		if exit, ok := errors.AsType[*ssh.ExitError](err); !ok || exit.ExitStatus() != 255 {
			w.t.Errorf("a new session after the certificate's end: %v, want exit status 255", err)
		}
		if want := "accessd: the certificate has expired\n"; string(got) != want {
			w.t.Errorf("output %q, want %q", got, want)
		}
		begun := time.Now()
		_ = c.Wait()
		if got := time.Since(begun); got != 500*time.Millisecond {
			w.t.Errorf("the connection was cut after %v, want half a second", got)
		}
	})
}

// F26: a role is taken away while two channels of one connection are busy. Both
// end at once and no new one begins.
func TestF26RevokedWhileConnected(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		first, second := w.start(x, c), w.start(x, c)
		begun := time.Now()
		w.policy.set(func(p *policy) {
			for _, a := range services.Actions() {
				p.deny[authz.Action(a)] = "user alice is gone"
			}
		})
		first.wantCut(w.t, w, "the policy no longer allows this session: user alice is gone")
		second.wantCut(w.t, w, "the policy no longer allows this session: user alice is gone")
		if got := time.Since(begun); got > time.Second {
			w.t.Errorf("the sessions ended after %v, want a second at most", got)
		}
		s, err := c.NewSession()
		if err != nil {
			w.t.Fatal(err)
		}
		if got, err := s.CombinedOutput("true"); err == nil || string(got) != "accessd: user alice is gone\n" {
			w.t.Errorf("a new session: %v, output %q, want a refusal", err, got)
		}
		_ = c.Wait()
		if got := time.Since(begun); got != 500*time.Millisecond {
			w.t.Errorf("the connection was cut after %v, want half a second", got)
		}
	})
}

func TestMaxSessions(t *testing.T) {
	bubble(t, services.RoleOptions{MaxSessions: 2}, func(w *world, x *executor, c *ssh.Client) {
		first, second := w.start(x, c), w.start(x, c)
		s, err := c.NewSession()
		if err != nil {
			w.t.Fatal(err)
		}
		got, err := s.CombinedOutput("third")
		if want := "accessd: at most 2 sessions of one person on this node\n"; err == nil || string(got) != want {
			w.t.Errorf("third session: %v, output %q, want %q", err, got, want)
		}
		if e := w.journal.named(events.SessionRejected); len(e) != 1 || e[0].Fields["maximum"] != 2 || e[0].Fields["command"] != "third" {
			w.t.Errorf("session.rejected %v, want one with the limit and the command", e)
		}
		first.process.end(w.t, Exit{})
		if err := first.Wait(); err != nil {
			w.t.Error(err)
		}
		// The place is free as soon as the client knows that the session ended.
		third := w.start(x, c)
		third.process.end(w.t, Exit{})
		second.process.end(w.t, Exit{})
		_, _ = third.Wait(), second.Wait()
	})
}

func TestMaxSessionsOfNode(t *testing.T) {
	few := func(cfg *Config) { cfg.MaxSessions = 1 }
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		first := w.start(x, c)
		s, _ := c.NewSession()
		if got, err := s.CombinedOutput("x"); err == nil || string(got) != "accessd: at most 1 sessions on this node\n" {
			w.t.Errorf("second session: %v, output %q, want a refusal", err, got)
		}
		first.process.end(w.t, Exit{})
		_ = first.Wait()
	}, few)
}

// F05: what cannot be recorded does not happen, and the person reads why.
func TestF05AuditLogCannotBeWritten(t *testing.T) {
	for _, name := range []events.Name{events.AccessDecision, events.SessionStart, events.Exec} {
		t.Run(string(name), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newExecutor()
				w := newWorld(t, x)
				w.journal.breakEvents(name)
				c := w.dial(identity(time.Now().Add(time.Hour)))
				s, err := c.NewSession()
				if err != nil {
					t.Fatal(err)
				}
				got, err := s.CombinedOutput("rm -rf /")
				if exit, ok := errors.AsType[*ssh.ExitError](err); !ok || exit.ExitStatus() != 255 {
					t.Errorf("Run = %v, want exit status 255", err)
				}
				if want := "accessd: the audit log cannot be written, so no session can begin\n"; string(got) != want {
					t.Errorf("output %q, want %q", got, want)
				}
				if len(x.started) != 0 {
					t.Error("the command was started all the same")
				}
				_ = c.Close()
				synctest.Wait()
				if name == events.SessionStart {
					if n := len(w.journal.open); n != 1 {
						t.Errorf("%d sessions in the ledger, want the one that the next start must end", n)
					}
					clear(w.journal.open)
				}
				w.finish()
			})
		})
	}
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name   string
		set    func(w *world, x *executor)
		output string
		code   int
	}{
		{
			name:   "denied",
			set:    func(w *world, _ *executor) { w.policy.deny[authz.ActionExec] = "role tester denies it" },
			output: "accessd: role tester denies it\n", code: 255,
		},
		{
			name: "a command that no role lists",
			set: func(w *world, _ *executor) {
				w.policy.commands = map[string]bool{"uptime": true}
			},
			output: "accessd: no role lists the command \"id\"\n", code: 255,
		},
		{
			name: "no account",
			set: func(_ *world, x *executor) {
				x.checked = fault.New(fault.Denied, "there is no account %q on this node", "root")
			},
			output: "accessd: there is no account \"root\" on this node\n", code: 255,
		},
		{
			name: "not started",
			set: func(_ *world, x *executor) {
				x.failed = fault.Wrap(fault.Unavailable, &fs.PathError{Err: syscall.E2BIG}, "/bin/sh: Argument list too long")
			},
			output: "/bin/sh: Argument list too long\n", code: 1, // as sshd
		},
		{
			name: "no way there",
			set: func(_ *world, x *executor) {
				x.failed = fault.Wrap(fault.Unavailable, errDisk, "the sshd does not answer")
			},
			output: "accessd: the sshd does not answer\n", code: 255,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
				test.set(w, x)
				s, err := c.NewSession()
				if err != nil {
					w.t.Fatal(err)
				}
				got, err := s.CombinedOutput("id")
				if exit, ok := errors.AsType[*ssh.ExitError](err); !ok || exit.ExitStatus() != test.code {
					w.t.Errorf("Run = %v, want exit status %d", err, test.code)
				}
				if string(got) != test.output {
					w.t.Errorf("output %q, want %q", got, test.output)
				}
			})
		})
	}
}

// Every session leaves its decision, its start, its command and its end, in this
// order, with what an auditor asks for.
func TestEvents(t *testing.T) {
	bubble(t, services.RoleOptions{SessionTTL: time.Hour}, func(w *world, x *executor, c *ssh.Client) {
		r := w.start(x, c)
		if n := len(w.journal.named(events.SessionStart)); n != 1 {
			w.t.Errorf("%d events session.start when the process runs, want 1", n)
		}
		if _, err := r.process.stdout.Write([]byte("12345")); err != nil {
			w.t.Error(err)
		}
		<-time.After(3 * time.Second)
		r.process.end(w.t, Exit{Code: 7})
		_ = r.Wait()
		synctest.Wait()
		var order []string
		for _, e := range w.journal.list {
			order = append(order, string(e.Name))
			if e.User != "alice" || e.Login != "root" || e.Fields["connection"] != "c-1" {
				w.t.Errorf("%s says user %q, login %q, connection %v", e.Name, e.User, e.Login, e.Fields["connection"])
			}
		}
		if got, want := strings.Join(order, " "), "access.decision session.start exec session.end"; got != want {
			w.t.Errorf("events %s, want %s", got, want)
		}
		start, end := w.journal.named(events.SessionStart)[0], w.journal.named(events.SessionEnd)[0]
		if start.SID == "" || end.SID != start.SID {
			w.t.Errorf("session ids %q and %q, want one", start.SID, end.SID)
		}
		if start.Fields["rule"] != "tester.allow[0]" || start.Fields["command"] != "work" || start.Fields["session_ttl"] != time.Hour {
			w.t.Errorf("session.start %v", start.Fields)
		}
		if end.Fields["exit_code"] != 7 || end.Fields["bytes_out"] != int64(5) || end.Fields["duration_ms"] != int64(3000) {
			w.t.Errorf("session.end %v", end.Fields)
		}
	})
}

func TestListAndChanged(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		changed := w.manager.Changed()
		r := w.start(x, c)
		<-changed
		list := w.manager.List()
		if len(list) != 1 || list[0].User != "alice" || list[0].Login != "root" || list[0].Kind != "exec" || list[0].NodeName != "n1" {
			w.t.Errorf("List = %+v", list)
		}
		changed = w.manager.Changed()
		r.process.end(w.t, Exit{})
		_ = r.Wait()
		<-changed
		if list := w.manager.List(); len(list) != 0 {
			w.t.Errorf("List = %+v, want none", list)
		}
		if err := w.manager.Kill("gone", "", "bob"); !fault.Is(err, fault.NotFound) {
			w.t.Errorf("Kill of an unknown session = %v, want not found", err)
		}
	})
}

// A stopping server lets sessions finish and begins no new ones.
func TestDrain(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		r := w.start(x, c)
		w.stop()
		synctest.Wait()
		s, _ := c.NewSession()
		if got, err := s.CombinedOutput("true"); err == nil || string(got) != "accessd: this node is stopping\n" {
			w.t.Errorf("a new session: %v, output %q, want a refusal", err, got)
		}
		<-time.After(5 * time.Second)
		r.process.end(w.t, Exit{})
		if err := r.Wait(); err != nil {
			w.t.Errorf("Wait = %v, want a session that finished within the grace", err)
		}
		<-w.done
	})
}

// F01: the connection is lost in the middle of a session: its process is hung
// up and its end is recorded.
func TestF01ConnectionLost(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		r := w.start(x, c)
		_ = c.Close()
		<-r.process.closed
		synctest.Wait()
		if e := w.journal.named(events.SessionEnd); len(e) != 1 || e[0].Fields["reason"] == nil || e[0].Fields["exit_code"] != nil {
			w.t.Errorf("session.end %v, want one with a reason and no exit code", e)
		}
	})
}

// The process's streams end only when it closes them; its status does not wait
// for that, and comes before the end of the output when both are near.
func TestStatusBeforeEOF(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		ch, requests, err := c.OpenChannel("session", nil)
		if err != nil {
			w.t.Fatal(err)
		}
		if ok, err := ch.SendRequest("exec", true, ssh.Marshal(struct{ S string }{"x"})); !ok || err != nil {
			w.t.Fatal(ok, err)
		}
		p := <-x.started
		_ = p.stdout.Close()
		_ = p.stderr.Close()
		synctest.Wait()
		p.exit <- Exit{Code: 3}
		if r := <-requests; r.Type != "exit-status" {
			w.t.Errorf("first request %q, want exit-status", r.Type)
		}
		if n, err := ch.Read(make([]byte, 1)); n != 0 || err == nil {
			w.t.Errorf("Read = %d, %v, want EOF", n, err)
		}
		_ = ch.Close()
	})
}
