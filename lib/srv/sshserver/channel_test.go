package sshserver

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/sshca"
)

// openErr opens a channel and returns the reason of its refusal.
func openErr(c ssh.Conn, kind string) (ssh.RejectionReason, error) {
	ch, reqs, err := c.OpenChannel(kind, nil)
	if err == nil {
		go ssh.DiscardRequests(reqs)
		ch.Close()
		return 0, nil
	}
	if refused, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
		return refused.Reason, err
	}
	return 0, err
}

func mustChannel(t *testing.T, c ssh.Conn, kind string) ssh.Channel {
	t.Helper()
	ch, reqs, err := c.OpenChannel(kind, nil)
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(reqs)
	return ch
}

func TestEcho(t *testing.T) {
	w := newWorld(t, nil)
	c := w.login()
	ch := mustChannel(t, c, "echo")
	message := strings.Repeat("hello ", 100_000)
	go func() {
		io.WriteString(ch, message)
		ch.CloseWrite()
	}()
	got, err := io.ReadAll(ch)
	if err != nil || string(got) != message {
		t.Errorf("the echo has %d bytes, %v, want %d", len(got), err, len(message))
	}
	if ok, payload, err := c.SendRequest("hello", true, []byte("x")); !ok || string(payload) != "x" || err != nil {
		t.Errorf("hello = %v, %q, %v", ok, payload, err)
	}
	conn := w.conn()
	if got, want := string(conn.ClientVersion()), "SSH-2.0-Go"; got != want {
		t.Errorf("ClientVersion = %q, want %q", got, want)
	}
	if conn.User() != "alice" || conn.Remote.Addr().String() != "127.0.0.1" || conn.Relay.IsValid() {
		t.Errorf("user %q from %v via %v", conn.User(), conn.Remote, conn.Relay)
	}
	c.Close()
	if err := <-w.errs; err != nil {
		t.Errorf("ServeConn = %v, want nil when the peer left", err)
	}
	<-conn.Context().Done()
	if len(w.closed) != 1 || w.closed[0] != nil {
		t.Errorf("Closed was called with %v, want once with nil", w.closed)
	}
}

// TestAllowList: OpenSSH CVE-2026-59999's class, DESIGN 15: what has no handler is
// refused and counted, whatever it is called.
func TestAllowList(t *testing.T) {
	w := newWorld(t, nil)
	c := w.login()
	kinds := []string{"session", "x11", "direct-tcpip", "forwarded-tcpip", "tun@openssh.com", "auth-agent@openssh.com", "default", "", "\x1b[2J"}
	for _, kind := range kinds {
		if reason, err := openErr(c, kind); reason != ssh.UnknownChannelType {
			t.Errorf("channel %q: %v, want unknown channel type", kind, err)
		}
		if ok, _, err := c.SendRequest(kind, true, nil); ok || err != nil {
			t.Errorf("request %q: %v, %v, want a refusal", kind, ok, err)
		}
	}
	if ok, _, err := c.SendRequest("hello", true, nil); !ok || err != nil {
		t.Errorf("the connection does not live on: %v, %v", ok, err)
	}
}

// TestMaxChannels: THREATS 1.1, the limit is refused with a reason, the
// connection lives, and a closed channel frees its slot.
func TestMaxChannels(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Limits.MaxChannels = 3 })
	c := w.login()
	var open []ssh.Channel
	for range 3 {
		open = append(open, mustChannel(t, c, "echo"))
	}
	if reason, err := openErr(c, "echo"); reason != ssh.ResourceShortage {
		t.Errorf("one too many: %v, want resource shortage", err)
	}
	open[0].Close()
	io.Copy(io.Discard, open[0]) // until the server has closed it too
	for {                        // the slot is free soon after
		reason, err := openErr(c, "echo")
		if err == nil {
			break
		}
		if reason != ssh.ResourceShortage {
			t.Fatal(err)
		}
	}
}

// TestProxyHasAChannelPerNode: a proxy carries the ways of all its nodes to the
// authority on one connection; with the bound of a person's connection the 129th
// node could not join.
func TestProxyHasAChannelPerNode(t *testing.T) {
	srv := &Server{cfg: Config{Limits: Limits{}.withDefaults()}}
	for kind, want := range map[sshca.Kind]int{sshca.KindProxy: 20000, sshca.KindNode: 128, sshca.KindUser: 128} {
		c := &Conn{server: srv, Identity: &sshca.Identity{Kind: kind}}
		if got := c.maxChannels(); got != want {
			t.Errorf("a %s may open %d channels, want %d", kind, got, want)
		}
	}
	if got := (&Conn{server: srv}).maxChannels(); got != 128 {
		t.Errorf("a joiner may open %d channels, want 128", got)
	}
}

// TestSlotNeedsBothCloses: x/crypto keeps a channel until the peer closes it too;
// one that never does keeps its slot, and cannot fill the table.
func TestSlotNeedsBothCloses(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Limits.MaxChannels = 3
		c.Channels["brief"] = func(_ *Conn, nc ssh.NewChannel) {
			if ch, _, err := nc.Accept(); err == nil {
				ch.Close()
			}
		}
	})
	c := w.rawLogin()
	for i := range uint32(3) {
		c.mustOpen("brief", i)
		c.expect(msgChannelClose)
	}
	for i := range uint32(10) {
		if _, err := c.open("brief", i, 1); err == nil {
			t.Fatal("a channel was opened beyond the limit")
		}
	}
	// What still comes on a closed channel goes nowhere.
	c.mustSend(cat(msgChannelData, u32(0), str("hello")))
	c.mustSend(cat(msgChannelClose, u32(0)))
	for {
		if _, err := c.open("brief", 9, 1); err == nil {
			break
		}
	}
}

func TestLargeOpenIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	c := w.login()
	_, _, err := c.OpenChannel("echo", make([]byte, maxOpenData+1))
	if err == nil {
		t.Error("a channel with 16 KiB of extra data was opened")
	}
}

// TestPanicInHandlers: a bug ends the connection it is in, with a stack in the
// log, and no other.
func TestPanicInHandlers(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Channels["bug"] = func(*Conn, ssh.NewChannel) { panic("a bug") }
		c.Channels["late bug"] = func(_ *Conn, nc ssh.NewChannel) {
			nc.Accept()
			panic("a bug")
		}
		c.Requests["bug"] = func(*Conn, *ssh.Request) (bool, []byte) { panic("a bug") }
	})
	other := w.login()
	for _, do := range []func(c ssh.Conn){
		func(c ssh.Conn) { openErr(c, "bug") },
		func(c ssh.Conn) { openErr(c, "late bug") },
		func(c ssh.Conn) { c.SendRequest("bug", true, nil) },
	} {
		c := w.login()
		do(c)
		c.Wait()
		if err := <-w.errs; !errors.Is(err, errPanic) {
			t.Errorf("ServeConn = %v, want %v", err, errPanic)
		}
	}
	if ok, _, err := other.SendRequest("hello", true, nil); !ok || err != nil {
		t.Errorf("the other connection: %v, %v", ok, err)
	}
}

func TestPanicInOpened(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Opened = func(*Conn) error { panic("a bug") } })
	c := w.login()
	c.Wait()
	if err := <-w.errs; !errors.Is(err, errPanic) {
		t.Errorf("ServeConn = %v, want %v", err, errPanic)
	}
	if len(w.closed) != 0 {
		t.Error("Closed was called for a connection that was not opened")
	}
}

// TestOpenedComesFirst: gliderlabs has no hook between authentication and the
// first handler; ours is called once, there, also for a client that opens
// nothing, and its refusal keeps every handler from running.
func TestOpenedComesFirst(t *testing.T) {
	var handled atomic.Int32
	opened := make(chan *Conn, 1)
	refuse := errors.New("not today")
	w := newWorld(t, func(c *Config) {
		c.Requests["hello"] = func(*Conn, *ssh.Request) (bool, []byte) { handled.Add(1); return true, nil }
		c.Opened = func(c *Conn) error {
			opened <- c
			if c.User() == "late" {
				return refuse
			}
			return nil
		}
	})
	c := w.login() // and it opens nothing
	if conn := <-opened; conn.ServerConn == nil || conn.Identity.User != "alice" {
		t.Errorf("Opened has %+v", conn.Identity)
	}
	c.Close()
	<-w.errs

	late, err := w.dial(w.serve(), w.clientConfig("late", w.alice))
	if err != nil {
		t.Fatal(err)
	}
	if ok, _, _ := late.SendRequest("hello", true, nil); ok || handled.Load() != 0 {
		t.Error("a handler ran though Opened had refused")
	}
	if err := <-w.errs; !errors.Is(err, refuse) {
		t.Errorf("ServeConn = %v, want %v", err, refuse)
	}
	if len(w.closed) != 1 {
		t.Errorf("Closed was called %d times, want once, for the first", len(w.closed))
	}
}

// TestUndecided: a handler that returns without a decision has refused.
func TestUndecided(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Channels["lazy"] = func(*Conn, ssh.NewChannel) {} })
	if reason, err := openErr(w.login(), "lazy"); reason != ssh.Prohibited {
		t.Errorf("open = %v, want prohibited", err)
	}
}

// TestRequestsAreAlwaysTaken: a handler that does not look at requests stalls
// neither the connection nor itself; what does not fit is refused.
func TestRequestsAreAlwaysTaken(t *testing.T) {
	read := make(chan struct{})
	got := make(chan int, 1)
	w := newWorld(t, func(c *Config) {
		c.Channels["deaf"] = func(_ *Conn, nc ssh.NewChannel) {
			_, reqs, err := nc.Accept()
			if err != nil {
				return
			}
			<-read
			n := 0
			for r := range reqs {
				n++
				r.Reply(true, nil)
				if n == maxQueued {
					break
				}
			}
			got <- n
		}
	})
	c := w.login()
	ch := mustChannel(t, c, "deaf")
	for range 3 * maxQueued {
		if _, err := ch.SendRequest("window-change", false, make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
	}
	if ok, err := ch.SendRequest("env", true, make([]byte, 16)); ok || err != nil {
		t.Errorf("a request beyond the bound: %v, %v, want a refusal", ok, err)
	}
	if ok, _, err := c.SendRequest("hello", true, nil); !ok || err != nil {
		t.Errorf("the connection is stalled: %v, %v", ok, err)
	}
	close(read)
	if n := <-got; n != maxQueued {
		t.Errorf("the handler got %d requests, want %d", n, maxQueued)
	}
	ch.Close()
}

// TestRequestsAfterReturn: requests on a channel whose handler has returned are
// refused until the peer closes it.
func TestRequestsAfterReturn(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Channels["brief"] = func(_ *Conn, nc ssh.NewChannel) { nc.Accept() }
	})
	c := w.rawLogin()
	n := c.mustOpen("brief", 0)
	c.expect(msgChannelClose)
	c.mustSend(cat(msgChannelRequest, u32(n), str("env"), []byte{1}))
	c.mustSend(cat(msgGlobalRequest, str("hello"), []byte{1}))
	c.expect(msgRequestSuccess)
}

// TestOpenChannel: channels of ours have the same care, and a connection that
// stops waits for them.
func TestOpenChannel(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Requests["call me"] = func(c *Conn, _ *ssh.Request) (bool, []byte) {
			c.spawn(func() {
				ch, reqs, err := c.OpenChannel("back", []byte("x"))
				if err != nil {
					return
				}
				c.spawn(func() { ssh.DiscardRequests(reqs) })
				io.Copy(ch, ch)
				ch.Close()
			})
			return true, nil
		}
	})
	conn, chans, reqs, err := ssh.NewClientConn(w.serve(), "", w.clientConfig("alice", w.alice))
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(reqs)
	if ok, _, err := conn.SendRequest("call me", true, nil); !ok || err != nil {
		t.Fatal(ok, err)
	}
	nc := <-chans
	if nc.ChannelType() != "back" || string(nc.ExtraData()) != "x" {
		t.Errorf("got %q with %q", nc.ChannelType(), nc.ExtraData())
	}
	ch, creqs, err := nc.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(creqs)
	ch.SendRequest("nobody reads this", true, nil)
	io.WriteString(ch, "hello")
	ch.CloseWrite()
	if got, err := io.ReadAll(ch); string(got) != "hello" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	conn.Close()
	if err := <-w.errs; err != nil {
		t.Errorf("ServeConn = %v", err)
	}
}

// TestStopInOrder: STYLE 16, in a bubble: handlers are told, have the grace
// period, and are cut.
func TestStopInOrder(t *testing.T) {
	for name, row := range map[string]struct {
		handler func(c *Conn, ch ssh.Channel)
		want    time.Duration
	}{
		"handler minds": {func(c *Conn, _ ssh.Channel) {
			<-c.Draining()
			<-time.After(2 * time.Second)
		}, 2 * time.Second},
		"handler does not": {func(c *Conn, ch ssh.Channel) { io.Copy(io.Discard, ch) }, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				running := make(chan struct{})
				w := newWorld(t, func(c *Config) {
					c.Grace = 10 * time.Second
					c.Channels["work"] = func(c *Conn, nc ssh.NewChannel) {
						ch, reqs, err := nc.Accept()
						if err != nil {
							return
						}
						c.spawn(func() { ssh.DiscardRequests(reqs) })
						close(running)
						row.handler(c, ch)
					}
				})
				ctx, stop := context.WithCancel(t.Context())
				client, server := memPair()
				go func() { w.errs <- w.server.ServeConn(ctx, server) }()
				c, err := w.dial(client, w.clientConfig("alice", w.alice))
				if err != nil {
					t.Fatal(err)
				}
				mustChannel(t, c, "work")
				<-running
				start := time.Now()
				stop()
				synctest.Wait()
				if _, err := openErr(c, "work"); err == nil {
					t.Error("a channel was opened while the server stops")
				}
				if err := <-w.errs; err != nil {
					t.Errorf("ServeConn = %v, want nil after an orderly stop", err)
				}
				if got := time.Since(start); got != row.want {
					t.Errorf("stopped after %v, want %v", got, row.want)
				}
				if cause := context.Cause(w.conn().Context()); !errors.Is(cause, ErrShutdown) {
					t.Errorf("the cause is %v, want %v", cause, ErrShutdown)
				}
				c.Close()
			})
		})
	}
}

// TestStopIdle: connections on which nothing is open, authenticated or not, do
// not wait for the grace period.
func TestStopIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		ctx, stop := context.WithCancel(t.Context())
		ln := &memListener{conns: make(chan net.Conn), done: make(chan struct{})}
		done := make(chan error, 1)
		go func() { done <- w.server.Serve(ctx, ln) }()
		silent, quiet := ln.dial(), ln.dial()
		c, err := w.dial(quiet, w.clientConfig("alice", w.alice))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		start := time.Now()
		stop()
		if err := <-done; err != nil || time.Since(start) != 0 {
			t.Errorf("Serve = %v after %v, want nil at once", err, time.Since(start))
		}
		io.Copy(io.Discard, silent)
		c.Wait()
	})
}

// TestServeEndsWithItsListener: when the listener breaks, Serve stops what it
// serves and says why.
func TestServeEndsWithItsListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		ln := &memListener{conns: make(chan net.Conn), done: make(chan struct{})}
		done := make(chan error, 1)
		go func() { done <- w.server.Serve(t.Context(), ln) }()
		c := ln.dial()
		ln.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve = %v, want ErrClosed", err)
		}
		io.Copy(io.Discard, c)
	})
}

type memListener struct {
	conns  chan net.Conn
	done   chan struct{}
	closed atomic.Bool
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	if !l.closed.Swap(true) {
		close(l.done)
	}
	return nil
}

func (l *memListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *memListener) dial() net.Conn {
	client, server := memPair()
	l.conns <- server
	return client
}

func TestBadConfig(t *testing.T) {
	good := Config{
		Name: "x", HostKeys: func() []ssh.Signer { return nil },
		Authenticate: func(*Conn, *ssh.ServerConfig) error { return nil },
	}
	for name, harm := range map[string]func(*Config){
		"name":           func(c *Config) { c.Name = "" },
		"host keys":      func(c *Config) { c.HostKeys = nil },
		"authentication": func(c *Config) { c.Authenticate = nil },
		"none":           func(c *Config) { c.Algorithms.Ciphers = []string{"none"} },
		"CBC":            func(c *Config) { c.Algorithms.Ciphers = []string{"aes128-cbc"} },
		"3DES":           func(c *Config) { c.Algorithms.Ciphers = []string{ssh.CipherAES128GCM, "3des-cbc"} },
	} {
		cfg := good
		harm(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: New = nil, want an error", name)
		}
	}
	if _, err := New(good); err != nil {
		t.Errorf("New = %v", err)
	}
}

// TestStreamRefusesRequests: what a handler takes as a mere stream carries bytes, and
// no request waits for anybody.
func TestStreamRefusesRequests(t *testing.T) {
	w := newWorld(t, func(cfg *Config) {
		cfg.Channels["stream"] = func(_ *Conn, nc ssh.NewChannel) {
			ch, err := AcceptStream(nc)
			if err != nil {
				t.Error(err)
				return
			}
			io.Copy(ch, ch)
		}
	})
	c := w.login()
	ch := mustChannel(t, c, "stream")
	for range 2 * maxQueued { // more than would be kept for a handler
		if ok, err := ch.SendRequest("shell", true, nil); ok || err != nil {
			t.Fatalf("a request on a stream = %v, %v, want a refusal", ok, err)
		}
	}
	go func() {
		io.WriteString(ch, "hello")
		ch.CloseWrite()
	}()
	if got, err := io.ReadAll(ch); err != nil || string(got) != "hello" {
		t.Errorf("the stream has %q, %v", got, err)
	}
	ch.Close()
	c.Close()
	if err := <-w.errs; err != nil {
		t.Errorf("ServeConn = %v, want nil when the peer left", err)
	}
}
