package srv

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshwire"
)

// ask is one channel request.
type ask struct {
	name    string
	payload []byte
	want    bool
}

func text(s string) []byte { return ssh.Marshal(struct{ S string }{s}) }

func ptyRequest() []byte {
	return sshwire.PtyRequest{Term: "xterm", Columns: 80, Rows: 24}.Marshal()
}

// The state machine of a channel is strict: a client that strays from it hears
// no, and nothing happens.
func TestRequestsInAndOutOfPlace(t *testing.T) {
	window := sshwire.WindowChange{Columns: 1, Rows: 1}.Marshal()
	tests := []struct {
		name string
		asks []ask
	}{
		{"terminal, then shell", []ask{{"pty-req", ptyRequest(), true}, {"shell", nil, true}, {"window-change", window, true}}},
		{"terminal twice", []ask{{"pty-req", ptyRequest(), true}, {"pty-req", ptyRequest(), false}, {"shell", nil, true}}},
		{"terminal after exec", []ask{{"exec", text("x"), true}, {"pty-req", ptyRequest(), false}}},
		{"exec twice", []ask{{"exec", text("x"), true}, {"exec", text("y"), false}}},
		{"shell after exec", []ask{{"exec", text("x"), true}, {"shell", nil, false}, {"subsystem", text("sftp"), false}}},
		{"environment", []ask{
			{"env", sshwire.Env{Name: "LANG", Value: "C"}.Marshal(), true},
			{"env", sshwire.Env{Name: "LC_ALL", Value: "C"}.Marshal(), true},
			{"env", sshwire.Env{Name: "LD_PRELOAD", Value: "/tmp/x"}.Marshal(), false},
			{"env", sshwire.Env{Name: "LANGUAGE", Value: "C"}.Marshal(), false},
			{"env", sshwire.Env{Name: "LC_X\nEVIL", Value: "C"}.Marshal(), false},
			{"env", sshwire.Env{Name: "PATH", Value: "/tmp"}.Marshal(), false},
			{"exec", text("x"), true},
			{"env", sshwire.Env{Name: "LANG", Value: "C"}.Marshal(), false},
		}},
		{"signals", []ask{{"signal", text("TERM"), false}, {"exec", text("x"), true}, {"signal", text("TERM"), true}}},
		{"window without terminal", []ask{{"window-change", window, false}, {"exec", text("x"), true}, {"window-change", window, false}}},
		{"unknown", []ask{
			{"x-y@example.com", nil, false},
			{"break", ssh.Marshal(struct{ N uint32 }{0}), false},
			{"x11-req", []byte("garbage"), false},
			{"exit-status", sshwire.ExitStatus{}.Marshal(), false},
			{"eow@openssh.com", nil, false},
			{"exec", text("x"), true},
		}},
		{"malformed", []ask{
			{"pty-req", []byte{0, 0, 0, 9, 'x'}, false},
			{"env", nil, false},
			{"exec", []byte{0xff, 0xff, 0xff, 0xff}, false},
			{"exec", append(text("x"), 0), false},
			{"exec", text("a\x00b"), false},
			{"shell", []byte{1}, false},
			{"subsystem", nil, false},
			{"window-change", []byte{1, 2, 3}, false},
			{"signal", []byte{0}, false},
			{"exec", text("x"), true},
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
				ch, requests, err := c.OpenChannel("session", nil)
				if err != nil {
					w.t.Fatal(err)
				}
				go ssh.DiscardRequests(requests)
				for _, a := range test.asks {
					if got, err := ch.SendRequest(a.name, true, a.payload); got != a.want || err != nil {
						w.t.Errorf("%s: %v, %v, want %v", a.name, got, err, a.want)
					}
				}
				if n := len(x.started); n != 1 {
					w.t.Errorf("%d processes, want 1", n)
				}
				(<-x.started).end(w.t, Exit{})
				_, _ = io.Copy(io.Discard, ch)
			})
		})
	}
}

// F15: floods of requests on one channel stay bounded: what is taken, what is
// recorded, and the time they cost others.
func TestF15RequestFloods(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		ch, requests, err := c.OpenChannel("session", nil)
		if err != nil {
			w.t.Fatal(err)
		}
		go ssh.DiscardRequests(requests)
		w.policy.set(func(p *policy) {
			p.deny[authz.ActionForwardAgent], p.deny[authz.ActionX11] = "no agents", "no displays"
		})
		x11 := sshwire.X11Request{Protocol: "MIT-MAGIC-COOKIE-1", Cookie: "00"}.Marshal()
		for i := range 10_000 {
			env := sshwire.Env{Name: fmt.Sprintf("LC_%d", i), Value: strings.Repeat("x", 100)}
			_, _ = ch.SendRequest("env", false, env.Marshal())
			_, _ = ch.SendRequest("auth-agent-req@openssh.com", false, nil)
			_, _ = ch.SendRequest("x11-req", false, x11)
		}
		_, _ = ch.SendRequest("pty-req", true, ptyRequest())
		_, _ = ch.SendRequest("exec", true, text("x"))
		p := <-x.started
		if n := len(p.command.Env); n != maxEnv {
			w.t.Errorf("%d variables, want %d", n, maxEnv)
		}
		for i := range 100_000 {
			_, _ = ch.SendRequest("window-change", false, sshwire.WindowChange{Columns: uint32(i)}.Marshal())
			_, _ = ch.SendRequest("signal", false, text("WINCH"))
		}
		if ok, err := ch.SendRequest("signal", true, text("HUP")); !ok || err != nil {
			w.t.Errorf("signal after the flood: %v, %v", ok, err)
		}
		if n := len(w.journal.named(events.SessionRejected)); n != 2 {
			w.t.Errorf("%d events session.rejected, want one for each type", n)
		}
		p.end(w.t, Exit{})
		_, _ = io.Copy(io.Discard, ch)
	})
	big := strings.Repeat("x", 32<<10)
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		ch, requests, _ := c.OpenChannel("session", nil)
		go ssh.DiscardRequests(requests)
		for i := range 100 {
			_, _ = ch.SendRequest("env", false, sshwire.Env{Name: fmt.Sprintf("LC_%d", i), Value: big}.Marshal())
		}
		_, _ = ch.SendRequest("exec", true, text("x"))
		p := <-x.started
		total := 0
		for _, v := range p.command.Env {
			total += len(v.Name) + len(v.Value)
		}
		if total > maxEnvBytes {
			w.t.Errorf("variables of %d bytes, want at most %d", total, maxEnvBytes)
		}
		p.end(w.t, Exit{})
		_, _ = io.Copy(io.Discard, ch)
	})
}

// A client that asks again and again for what it may not have is slowed down, so
// that it cannot fill the audit spool.
func TestF15RefusalsAreSlowedDown(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, _ *executor, c *ssh.Client) {
		w.policy.set(func(p *policy) { p.deny[authz.ActionForwardLocal] = "no role grants it" })
		begun := time.Now()
		const asked = refusalBurst + 10*refusalRate
		for range asked {
			_, _, err := c.OpenChannel("direct-tcpip", sshwire.DirectTCPIP{Host: "db", Port: 5432}.Marshal())
			if open, ok := errors.AsType[*ssh.OpenChannelError](err); !ok || open.Message != "no role grants it" || open.Reason != ssh.Prohibited {
				w.t.Fatalf("OpenChannel = %v, want a refusal with its reason", err)
			}
		}
		if got := time.Since(begun); got < 9*time.Second || got > 11*time.Second {
			w.t.Errorf("%d refusals took %v, want about 10 s", asked, got)
		}
		if got := len(w.journal.named(events.AccessDecision)); got != asked {
			w.t.Errorf("%d events access.decision, want %d", got, asked)
		}
	})
}

// F16: a client that does not read stops the process, and an end from outside
// reaches both all the same.
func TestF16StalledClient(t *testing.T) {
	bubble(t, services.RoleOptions{IdleTimeout: time.Hour}, func(w *world, x *executor, c *ssh.Client) {
		ch, requests, err := c.OpenChannel("session", nil)
		if err != nil {
			w.t.Fatal(err)
		}
		if ok, err := ch.SendRequest("exec", true, text("yes")); !ok || err != nil {
			w.t.Fatal(ok, err)
		}
		p := <-x.started
		written, stopped := 0, make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				n, err := p.stdout.Write(make([]byte, 1<<16))
				written += n
				if err != nil {
					return
				}
			}
		}()
		synctest.Wait() // everything has come to a stop: nobody reads ch
		const window = 2 << 20
		if written < window || written > window+3*bufferSize+1<<16 {
			w.t.Errorf("the process wrote %d bytes before it was stopped, want the window of %d and little more", written, window)
		}
		begun := time.Now()
		if err := w.manager.Kill(w.manager.List()[0].ID, "", "bob"); err != nil {
			w.t.Fatal(err)
		}
		<-p.closed
		<-stopped
		w.journal.await(events.SessionEnd, 1)
		if got := time.Since(begun); got > farewellTime {
			w.t.Errorf("killed after %v, want %v at most", got, farewellTime)
		}
		ssh.DiscardRequests(requests)
	})
}

// F16: a process that does not read stops the client.
func TestF16StalledProcess(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		s, err := c.NewSession()
		if err != nil {
			w.t.Fatal(err)
		}
		in, err := s.StdinPipe()
		if err != nil {
			w.t.Fatal(err)
		}
		if err := s.Start("x"); err != nil {
			w.t.Fatal(err)
		}
		p := <-x.started
		var sent int
		go func() {
			for {
				n, err := in.Write(make([]byte, 1<<16))
				sent += n
				if err != nil {
					return
				}
			}
		}()
		synctest.Wait()
		const window = 2 << 20 // what x/crypto offers for each channel
		if sent > window+4*bufferSize {
			w.t.Errorf("the client could send %d bytes, want %d and little more", sent, window)
		}
		p.end(w.t, Exit{})
		_ = s.Wait()
	})
}

// A client that opens channels and asks for nothing holds nothing.
func TestChannelWithoutRequest(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, _ *executor, c *ssh.Client) {
		for range 100 {
			ch, requests, err := c.OpenChannel("session", nil)
			if err != nil {
				w.t.Fatal(err)
			}
			go ssh.DiscardRequests(requests)
			_ = ch.Close()
		}
		if n := len(w.journal.named(events.SessionStart)); n != 0 {
			w.t.Errorf("%d sessions, want none", n)
		}
	})
}

type panicking struct{}

func (panicking) Read([]byte) (int, error) { panic("a mistake of ours") }

// A panic in a session ends that session, whose end is recorded, and nothing
// else.
func TestPanicEndsOneSession(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		other := w.start(x, c)
		x.stdout = panicking{}
		w.start(x, c).wantCut(w.t, w, "internal error")
		other.process.end(w.t, Exit{})
		if err := other.Wait(); err != nil {
			w.t.Errorf("the other session: %v", err)
		}
	})
}

// Sessions leave no goroutine and little memory behind.
func TestNoGoroutineIsLeft(t *testing.T) {
	x := newExecutor()
	w := newWorld(t, x)
	c := w.dial(identity(time.Now().Add(time.Hour)))
	once := func() {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start("x"); err != nil {
			t.Fatal(err)
		}
		(<-x.started).end(t, Exit{})
		if err := s.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	once()
	w.journal.await(events.SessionEnd, 1)
	before := runtime.NumGoroutine()
	const rounds = 1000
	for range rounds {
		once()
	}
	w.journal.await(events.SessionEnd, rounds+1)
	_ = c.Close()
	w.finish()
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines after %d sessions, %d before", after, rounds, before)
	}
}

// FuzzSession holds the state machine to: whatever requests come, it answers each
// once, starts at most one process, and ends.
func FuzzSession(f *testing.F) {
	frame := func(list ...ask) []byte {
		var b []byte
		for _, a := range list {
			b = append(b, ssh.Marshal(struct{ N, P string }{a.name, string(a.payload)})...)
		}
		return b
	}
	f.Add(frame(ask{"pty-req", ptyRequest(), true}, ask{"shell", nil, true}, ask{"signal", text("HUP"), true}))
	f.Add(frame(ask{"env", sshwire.Env{Name: "LANG", Value: "C"}.Marshal(), true}, ask{"exec", text("x"), true}, ask{"exec", text("x"), true}))
	f.Add(frame(ask{"subsystem", text("sftp"), true}, ask{"x11-req", nil, true}, ask{"window-change", []byte{1}, true}))
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) {
			x := newExecutor()
			w := newWorld(t, x)
			c := w.dial(identity(time.Now().Add(time.Hour)))
			ch, requests, err := c.OpenChannel("session", nil)
			if err != nil {
				t.Fatal(err)
			}
			go ssh.DiscardRequests(requests)
			go func() { _, _ = io.Copy(io.Discard, ch) }()
			for range 50 {
				var a struct {
					N, P string
					Rest []byte `ssh:"rest"`
				}
				if ssh.Unmarshal(data, &a) != nil {
					break
				}
				data = a.Rest
				if _, err := ch.SendRequest(a.N, true, []byte(a.P)); err != nil {
					break // refused sessions close their channel
				}
			}
			if n := len(x.started); n > 1 {
				t.Errorf("%d processes, want at most 1", n)
			}
			_ = c.Close()
			w.finish()
		})
	})
}
