package sshserver

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/srv/listener"
)

// guarded serves w behind a real listener and returns its address.
func (w *world) guarded(t *testing.T, limits listener.Limits) string {
	t.Helper()
	l, err := listener.New(listener.Config{Bind: listener.Bind{Addr: "127.0.0.1:0"}, Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- l.Run(ctx) }()
	go func() { done <- w.server.Serve(ctx, l.SSH()) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, <-done); err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// from connects from an address of this machine.
func from(t *testing.T, local, addr string) (net.Conn, error) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	return d.DialContext(t.Context(), "tcp", addr)
}

// TestHalfOpen: F11 and THREATS 1.1, two thousand connections that say nothing
// from one address do not keep another's login waiting.
func TestHalfOpen(t *testing.T) {
	w := newWorld(t, quiet)
	addr := w.guarded(t, listener.Limits{Penalties: listener.Penalties{Off: true}})
	base := heap()
	var held []net.Conn
	for range 2000 {
		c, err := from(t, "127.0.0.1", addr)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	start := time.Now()
	nc, err := from(t, "127.0.0.2", addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.dial(nc, w.clientConfig("alice", w.alice))
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("the login took %v, want less than a second", took)
	}
	if ok, _, err := c.SendRequest("hello", true, nil); !ok || err != nil {
		t.Errorf("hello = %v, %v", ok, err)
	}
	grows(t, "half-open connections", base, 32<<20)
	c.Close()
	for _, h := range held {
		h.Close()
	}
	// From the same address too, once they are gone.
	for {
		nc, err := from(t, "127.0.0.1", addr)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := w.dial(nc, w.clientConfig("alice", w.alice)); err == nil {
			c.Close()
			break
		}
	}
}

// TestOpenThenReset: F11, connections opened and reset in the middle of anything
// leave nothing behind.
func TestOpenThenReset(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("resets", func(t *testing.T) {
		w := newWorld(t, quiet)
		addr := w.guarded(t, listener.Limits{PerSource: 90, Penalties: listener.Penalties{Off: true}})
		good := flight(t)
		for i := range 1000 {
			c, err := from(t, "127.0.0.1", addr)
			if err != nil {
				t.Fatal(err)
			}
			c.Write(good[:i%len(good)])
			c.(*net.TCPConn).SetLinger(0) // close with RST
			c.Close()
		}
	})
}

// TestPenaltiesEndToEnd: THREATS 1.1, four fast failures and the next connection
// is refused, another address is served; an exempt one always.
func TestPenaltiesEndToEnd(t *testing.T) {
	w := newWorld(t, quiet)
	addr := w.guarded(t, listener.Limits{})
	try := func(local string, key ssh.Signer) error {
		nc, err := from(t, local, addr)
		if err != nil {
			t.Fatal(err)
		}
		c, err := w.dial(nc, w.clientConfig("alice", key))
		if err == nil {
			c.Close()
		}
		return err
	}
	stranger := newSigner(t)
	for range 4 {
		if err := try("127.0.0.3", stranger); err == nil {
			t.Fatal("a stranger got in")
		}
	}
	// The offence is booked just after the client sees the end.
	for try("127.0.0.3", w.alice) == nil {
	}
	nc, err := from(t, "127.0.0.3", addr)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(nc); len(got) != 0 {
		t.Errorf("a penalised source is told %q, want nothing", got)
	}
	if err := try("127.0.0.4", w.alice); err != nil {
		t.Errorf("another address: %v", err)
	}
}
