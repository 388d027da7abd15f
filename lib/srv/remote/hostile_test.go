package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// rogue is an SSH server that does as a test pleases, in memory.
type rogue struct {
	*world

	host ssh.Signer

	// serve has the connection, once the login was let in; nil closes it.
	serve func(c *ssh.ServerConn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request)
	// raw has the connection instead, before anything was said.
	raw func(c net.Conn)

	wg sync.WaitGroup
}

func newRogue(t *testing.T) *rogue {
	t.Helper()
	r := &rogue{world: newWorld(t)}
	_, r.host = sshca.Generate()
	r.node.HostKeys = []string{string(ssh.MarshalAuthorizedKey(r.host.PublicKey()))}
	r.node.Address = "192.0.2.1:22"
	return r
}

// connect serves one more connection.
func (r *rogue) connect(context.Context, services.Node, netip.AddrPort) (net.Conn, error) {
	r.mu.Lock()
	r.dials++
	r.mu.Unlock()
	near, far := memoryPipe()
	r.wg.Go(func() {
		defer far.Close()
		if r.raw != nil {
			r.raw(far)
			return
		}
		cfg := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
			return nil, nil
		}}
		cfg.AddHostKey(r.host)
		conn, channels, requests, err := ssh.NewServerConn(far, cfg)
		if err != nil {
			return
		}
		defer conn.Close()
		if r.serve != nil {
			r.serve(conn, channels, requests)
		}
	})
	return near, nil
}

// executor returns one that reaches r. The test must close it.
func (r *rogue) executor(settings ...func(*Config)) *Executor {
	r.t.Helper()
	return r.world.executor(append([]func(*Config){func(c *Config) { c.Dial = r.connect }}, settings...)...)
}

// sessions serves each session channel with f and refuses all else. It returns
// when the connection has ended.
func sessions(f func(c *ssh.ServerConn, ch ssh.Channel, requests <-chan *ssh.Request)) func(*ssh.ServerConn, <-chan ssh.NewChannel, <-chan *ssh.Request) {
	return func(c *ssh.ServerConn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { ssh.DiscardRequests(requests) })
		for nc := range channels {
			if nc.ChannelType() != sshwire.ChannelSession {
				nc.Reject(ssh.Prohibited, "no")
				continue
			}
			ch, requests, err := nc.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { f(c, ch, requests) })
		}
	}
}

// begun answers requests until the session begins, and refuses those after.
func begun(requests <-chan *ssh.Request) *ssh.Request {
	for r := range requests {
		r.Reply(true, nil)
		switch r.Type {
		case sshwire.RequestShell, sshwire.RequestExec, sshwire.RequestSubsystem:
			go ssh.DiscardRequests(requests) // ends with the channel
			return r
		}
	}
	return nil
}

// TestMalformedExit: payloads of every length but the right one are as none
// (x/crypto's own client once panicked on them), and a session that ends without
// a good one has the code -1.
func TestMalformedExit(t *testing.T) {
	for _, c := range []struct {
		name    string
		payload []byte
		exit    srv.Exit
	}{
		{sshwire.RequestExitStatus, nil, srv.Exit{Code: -1}},
		{sshwire.RequestExitStatus, []byte{0, 0, 0}, srv.Exit{Code: -1}},
		{sshwire.RequestExitStatus, []byte{0, 0, 0, 1, 0}, srv.Exit{Code: -1}},
		{sshwire.RequestExitStatus, []byte{0, 0, 0, 9}, srv.Exit{Code: 9}},
		{sshwire.RequestExitSignal, nil, srv.Exit{Code: -1}},
		{sshwire.RequestExitSignal, []byte{0, 0, 0, 255, 'T'}, srv.Exit{Code: -1}},
		{sshwire.RequestExitSignal, sshwire.ExitSignal{}.Marshal(), srv.Exit{Code: -1}},
		{sshwire.RequestExitSignal, sshwire.ExitSignal{Name: strings.Repeat("T", 100)}.Marshal(), srv.Exit{Code: -1}},
		{sshwire.RequestExitSignal, sshwire.ExitSignal{Name: "SEGV", CoreDumped: true}.Marshal(), srv.Exit{Signal: "SEGV", Core: true}},
		{"nonsense", bytes.Repeat([]byte{0xff}, 1000), srv.Exit{Code: -1}},
	} {
		r := newRogue(t)
		r.serve = sessions(func(_ *ssh.ServerConn, ch ssh.Channel, requests <-chan *ssh.Request) {
			begun(requests)
			_, _ = ch.SendRequest(c.name, false, c.payload)
			ch.Close()
		})
		x := r.executor()
		got := r.run(x, r.command(srv.KindShell, ""), nil)
		if got.exit != c.exit || len(got.stdout)+len(got.stderr) > 0 {
			t.Errorf("%s %q: %+v, want %+v", c.name, c.payload, got, c.exit)
		}
		x.Close()
		r.wg.Wait()
	}
}

// TestOnlyOneExit: a second status is none, whatever it says.
func TestOnlyOneExit(t *testing.T) {
	r := newRogue(t)
	r.serve = sessions(func(_ *ssh.ServerConn, ch ssh.Channel, requests <-chan *ssh.Request) {
		begun(requests)
		for i := range 1000 {
			_, _ = ch.SendRequest(sshwire.RequestExitStatus, false, sshwire.ExitStatus{Code: uint32(i)}.Marshal())
		}
		ch.Close()
	})
	x := r.executor()
	p, err := x.Start(t.Context(), r.command(srv.KindShell, ""))
	if err != nil {
		t.Fatal(err)
	}
	if got := finish(t, p, nil).exit; got != (srv.Exit{}) {
		t.Errorf("exit = %+v", got)
	}
	select {
	case e := <-p.Exited():
		t.Errorf("a second exit: %+v", e)
	default:
	}
	x.Close()
	r.wg.Wait()
}

// TestSignal: a signal is asked for by its name; unknown ones and dead processes
// are errors.
func TestSignal(t *testing.T) {
	r := newRogue(t)
	r.serve = sessions(func(_ *ssh.ServerConn, ch ssh.Channel, requests <-chan *ssh.Request) {
		for q := range requests {
			q.Reply(true, nil)
			if q.Type == sshwire.RequestSignal {
				x, err := sshwire.ParseSignal(q.Payload)
				if err != nil {
					t.Error(err)
				}
				_, _ = ch.SendRequest(sshwire.RequestExitSignal, false, sshwire.ExitSignal(struct {
					Name       string
					CoreDumped bool
					Message    string
					Lang       string
				}{Name: x.Name}).Marshal())
				ch.Close()
			}
		}
	})
	x := r.executor()
	p, err := x.Start(t.Context(), r.command(srv.KindShell, ""))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal("BOGUS"); err == nil {
		t.Error("an unknown signal was sent")
	}
	if err := p.Signal("USR1"); err != nil {
		t.Error(err)
	}
	if got := finish(t, p, nil).exit; got != (srv.Exit{Signal: "USR1"}) {
		t.Errorf("exit = %+v", got)
	}
	if err := p.Signal("TERM"); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal to a process that has ended: %v", err)
	}
	x.Close()
	r.wg.Wait()
}

// TestEOW: when the sshd says that the process reads no more, what is written to
// it fails.
func TestEOW(t *testing.T) {
	r := newRogue(t)
	r.serve = sessions(func(_ *ssh.ServerConn, ch ssh.Channel, requests <-chan *ssh.Request) {
		begun(requests)
		_, _ = ch.SendRequest(sshwire.RequestEOW, false, nil)
		_, _ = io.Copy(io.Discard, ch) // until the other side has hung up
	})
	x := r.executor()
	p, err := x.Start(t.Context(), r.command(srv.KindShell, ""))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = p.Pipes().Stdin.Write([]byte("x"))
	}
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Write = %v", err)
	}
	x.Close()
	r.wg.Wait()
}

// TestUnaskedChannels: whatever the sshd opens is refused, but for what this
// session was granted.
func TestUnaskedChannels(t *testing.T) {
	kinds := []string{
		sshwire.ChannelAgent, sshwire.ChannelX11, sshwire.ChannelForwardedTCPIP, sshwire.ChannelForwardedStreamlocal,
		sshwire.ChannelDirectTCPIP, sshwire.ChannelDirectStreamlocal, sshwire.ChannelSession, sshwire.ChannelAPI,
		sshwire.ChannelAuthority, "tun@openssh.com", strings.Repeat("x", 10000),
	}
	r := newRogue(t)
	var mu sync.Mutex
	var taken []string
	r.serve = sessions(func(c *ssh.ServerConn, ch ssh.Channel, requests <-chan *ssh.Request) {
		begun(requests)
		for _, kind := range kinds {
			_, _, err := c.OpenChannel(kind, sshwire.X11Open{OriginAddr: "127.0.0.1", OriginPort: 1}.Marshal())
			if err == nil {
				mu.Lock()
				taken = append(taken, kind)
				mu.Unlock()
			}
		}
		for _, q := range []string{sshwire.RequestTCPIPForward, sshwire.RequestStreamlocalForward, sshwire.RequestKeepalive, "nonsense"} {
			if ok, _, err := c.SendRequest(q, true, nil); ok || err != nil {
				t.Errorf("request %s: %v, %v", q, ok, err)
			}
		}
		ch.Close()
	})
	open, opened := opener(t, func(net.Conn) {})
	for _, grant := range []struct {
		set  func(c *srv.Command)
		want []string
	}{
		{func(*srv.Command) {}, nil},
		{func(c *srv.Command) { c.Agent = true }, []string{sshwire.ChannelAgent}},
		{func(c *srv.Command) { c.X11 = &sshwire.X11Request{Protocol: "X", Cookie: "00"} }, []string{sshwire.ChannelX11}},
	} {
		mu.Lock()
		taken = nil
		mu.Unlock()
		before := len(opened())
		x := r.executor()
		c := r.command(srv.KindShell, "")
		c.Open = open
		grant.set(&c)
		r.run(x, c, nil)
		mu.Lock()
		if !slices.Equal(taken, grant.want) || !slices.Equal(opened()[before:], grant.want) {
			t.Errorf("taken were %q, the client was asked for %q, want %q", taken, opened()[before:], grant.want)
		}
		mu.Unlock()
		x.Close()
	}
	r.wg.Wait()
}

// TestUnaskedForwards: a connection that belongs to no listener is refused.
func TestUnaskedForwards(t *testing.T) {
	r := newRogue(t)
	refused := make(chan error, 4)
	r.serve = func(c *ssh.ServerConn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
		q := <-requests
		q.Reply(true, sshwire.TCPIPForwardReply{Port: 4000}.Marshal())
		go ssh.DiscardRequests(requests) // ends with the connection
		for kind, payload := range map[string][]byte{
			sshwire.ChannelForwardedTCPIP:       sshwire.ForwardedTCPIP{Addr: "localhost", Port: 4001, OriginAddr: "127.0.0.1", OriginPort: 1}.Marshal(),
			sshwire.ChannelForwardedStreamlocal: sshwire.ForwardedStreamlocal{Path: "localhost"}.Marshal(),
			sshwire.ChannelAgent:                nil,
			sshwire.ChannelX11:                  sshwire.X11Open{OriginAddr: "127.0.0.1", OriginPort: 1}.Marshal(),
		} {
			_, _, err := c.OpenChannel(kind, payload)
			refused <- err
		}
		for range channels {
		}
	}
	x := r.executor()
	ln, err := x.Listen(t.Context(), srv.Account{Login: r.account}, srv.Endpoint{Host: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	if got := ln.Addr().String(); got != "127.0.0.1:4000" {
		t.Errorf("listens on %s", got)
	}
	for range 4 {
		if err := <-refused; err == nil {
			t.Error("a channel that nobody asked for was taken")
		}
	}
	x.Close()
	r.wg.Wait()
}

// heap returns the bytes that live.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestFlood: nobody reads, and the sshd sends all that it can: both outputs in
// packets of one byte, requests, channels.
func TestFlood(t *testing.T) {
	const (
		most    = 64 << 20
		packets = 600000
	)
	for name, flood := range map[string]func(c *ssh.ServerConn, ch ssh.Channel) error{
		"output": func(_ *ssh.ServerConn, ch ssh.Channel) error { _, err := ch.Write([]byte("x")); return err },
		"stderr": func(_ *ssh.ServerConn, ch ssh.Channel) error { _, err := ch.Stderr().Write([]byte("x")); return err },
		"requests": func(_ *ssh.ServerConn, ch ssh.Channel) error {
			_, err := ch.SendRequest("nonsense", false, nil)
			return err
		},
		"global": func(c *ssh.ServerConn, _ ssh.Channel) error {
			_, _, err := c.SendRequest("nonsense", false, nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRogue(t)
			before := heap()
			over := make(chan struct{})
			r.serve = sessions(func(c *ssh.ServerConn, ch ssh.Channel, requests <-chan *ssh.Request) {
				begun(requests)
				sent := make(chan struct{})
				go func() { // ends with the connection
					defer close(sent)
					for range packets {
						if flood(c, ch) != nil {
							return
						}
					}
				}()
				select {
				case <-sent:
				case <-time.After(time.Second): // it is held back
				}
				close(over)
				<-sent
			})
			x := r.executor(func(c *Config) {
				c.Dialer = dialer(t, sshserver.Keepalive{}, sshserver.Limits{})
			})
			p, err := x.Start(t.Context(), r.command(srv.KindShell, ""))
			if err != nil {
				t.Fatal(err)
			}
			<-over
			if after := heap(); after > before+most {
				t.Errorf("%d MiB are held", (after-before)>>20)
			} else {
				t.Logf("%d KiB are held", (int64(after)-int64(before))>>10)
			}
			p.Close()
			x.Close()
			r.wg.Wait()
		})
	}
}

// TestSilence: an sshd that says nothing any more is found within 45 seconds, at
// each step.
func TestSilence(t *testing.T) {
	hold := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) } // until it is cut
	mute := func(_ *ssh.ServerConn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
		var wg sync.WaitGroup
		wg.Go(func() {
			for range requests { // a keepalive has no answer, either
			}
		})
		for range channels {
		}
		wg.Wait()
	}
	for name, c := range map[string]struct {
		prepare func(r *rogue)
		within  time.Duration
		want    string
	}{
		"at once":      {func(r *rogue) { r.raw = hold }, loginTimeout, `the SSH server of node "db-1" does not answer`},
		"identified":   {func(r *rogue) { r.raw = func(c net.Conn) { _, _ = io.WriteString(c, "SSH-2.0-x\r\n"); hold(c) } }, loginTimeout, `the SSH server of node "db-1" does not answer`},
		"channel open": {func(r *rogue) { r.serve = mute }, startTimeout, `the sshd of node "db-1" does not answer`},
		"shell request": {func(r *rogue) {
			r.serve = sessions(func(_ *ssh.ServerConn, _ ssh.Channel, q <-chan *ssh.Request) {
				for range q {
				}
			})
		}, startTimeout, `the sshd of node "db-1" does not answer`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRogue(t)
				c.prepare(r)
				x := r.executor()
				begin := time.Now()
				_, err := x.Start(t.Context(), r.command(srv.KindShell, ""))
				if fault.Public(err) != c.want || !fault.Is(err, fault.Unavailable) {
					t.Errorf("Start = %v, public %q, want %q", err, fault.Public(err), c.want)
				}
				if took := time.Since(begin); took != c.within {
					t.Errorf("it took %v, want %v", took, c.within)
				}
				x.Close()
				r.wg.Wait()
			})
		})
	}
	t.Run("session", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRogue(t)
			silent := make(chan struct{})
			r.serve = sessions(func(c *ssh.ServerConn, _ ssh.Channel, requests <-chan *ssh.Request) {
				begun(requests)
				<-silent
			})
			x := r.executor(func(c *Config) {
				inner := c.Dial
				c.Dial = func(ctx context.Context, n services.Node, from netip.AddrPort) (net.Conn, error) {
					near, err := inner(ctx, n, from)
					return &freezer{Conn: near, frozen: silent}, err
				}
			})
			p, err := x.Start(t.Context(), r.command(srv.KindShell, ""))
			if err != nil {
				t.Fatal(err)
			}
			close(silent)
			begin := time.Now()
			got := finish45(p)
			if took := time.Since(begin); took > 46*time.Second {
				t.Errorf("it was found after %v", took)
			}
			if want := "accessd: the connection to node \"db-1\" is lost\n"; string(got.stderr) != want || got.exit != (srv.Exit{Code: -1}) {
				t.Errorf("stderr %q, exit %+v", got.stderr, got.exit)
			}
			x.Close()
			r.wg.Wait()
		})
	})
}

// finish45 returns what came of p, in a bubble's time.
func finish45(p srv.Process) (r result) {
	r.stdout, _ = io.ReadAll(p.Pipes().Stdout)
	r.stderr, _ = io.ReadAll(p.Pipes().Stderr)
	r.exit = <-p.Exited()
	return r
}

// freezer is a connection over which nothing goes any more once frozen is
// closed.
type freezer struct {
	net.Conn

	frozen chan struct{}
}

func (f *freezer) Write(b []byte) (int, error) {
	select {
	case <-f.frozen:
		return len(b), nil
	default:
		return f.Conn.Write(b)
	}
}

// TestStuckForward: an sshd that does not answer the end of a channel loses its
// connection, so that nobody waits for it for ever.
func TestStuckForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRogue(t)
		r.serve = func(c *ssh.ServerConn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
			// x/crypto answers always, so what we send does not arrive.
			var wg sync.WaitGroup
			wg.Go(func() { ssh.DiscardRequests(requests) })
			for nc := range channels {
				_, reqs, err := nc.Accept()
				if err != nil {
					break
				}
				wg.Go(func() { ssh.DiscardRequests(reqs) })
			}
			wg.Wait()
		}
		frozen := make(chan struct{})
		x := r.executor(func(c *Config) {
			inner := c.Dial
			c.Dial = func(ctx context.Context, n services.Node, from netip.AddrPort) (net.Conn, error) {
				near, err := inner(ctx, n, from)
				return &freezer{Conn: near, frozen: frozen}, err
			}
		})
		c, err := x.Dial(t.Context(), srv.Account{Login: r.account}, srv.Endpoint{Host: "localhost", Port: 1}, anywhere)
		if err != nil {
			t.Fatal(err)
		}
		close(frozen)
		l := x.shared(r.account).live()
		begin := time.Now()
		c.Close()
		<-l.Context().Done()
		if took := time.Since(begin); took != closeTimeout {
			t.Errorf("the connection was cut after %v, want %v", took, closeTimeout)
		}
		x.Close()
		r.wg.Wait()
	})
}
