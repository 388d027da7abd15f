package sshserver

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

func newDialer(t *testing.T) *Dialer {
	t.Helper()
	d, err := NewDialer(DialerConfig{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// outgoing is alice's login.
func (w *world) outgoing(channels map[string]func(*Conn, ssh.NewChannel)) Outgoing {
	return Outgoing{Auth: *w.clientConfig("alice", w.alice), Account: "test", Channels: channels}
}

// both writes on both streams of a channel what a test of its size needs.
func both(size int) func(*Conn, ssh.NewChannel) {
	return func(_ *Conn, nc ssh.NewChannel) {
		ch, reqs, err := nc.Accept()
		if err != nil {
			return
		}
		go ssh.DiscardRequests(reqs)
		var wg sync.WaitGroup
		for _, to := range []io.Writer{ch, ch.Stderr()} {
			wg.Go(func() { io.Copy(to, io.LimitReader(zeros{}, int64(size))) })
		}
		wg.Wait()
		ch.CloseWrite()
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestDialer: a session on a server has two outputs, each as long as it is; what
// has extended data that nobody expects does not stall for it; and what the
// server opens has a handler or none.
func TestDialer(t *testing.T) {
	const size = 5 << 20
	w := newWorld(t, func(c *Config) {
		c.Channels["session"] = both(size)
		c.Channels["other"] = both(size)
	})
	served := make(chan string, 1)
	out, err := newDialer(t).Connect(t.Context(), w.serve(), w.outgoing(map[string]func(*Conn, ssh.NewChannel){
		"known": func(c *Conn, nc ssh.NewChannel) {
			served <- nc.ChannelType()
			nc.Reject(ssh.ConnectionFailed, "not now")
		},
	}))
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"session", "other"} {
		ch, reqs, err := out.OpenChannel(kind, nil)
		if err != nil {
			t.Fatal(err)
		}
		go ssh.DiscardRequests(reqs)
		var wg sync.WaitGroup
		if kind == "session" {
			wg.Go(func() {
				if n, err := io.Copy(io.Discard, ch.Stderr()); n != size || err != nil {
					t.Errorf("%s: %d bytes of extended data, %v", kind, n, err)
				}
			})
		}
		if n, err := io.Copy(io.Discard, ch); n != size || err != nil {
			t.Errorf("%s: %d bytes of data, %v", kind, n, err)
		}
		wg.Wait()
		ch.Close()
	}
	server := w.conn()
	for kind, want := range map[string]ssh.RejectionReason{"known": ssh.ConnectionFailed, "unknown": ssh.UnknownChannelType} {
		if got, err := openErr(server, kind); got != want {
			t.Errorf("%s: %v, %v, want %v", kind, got, err, want)
		}
	}
	if got := <-served; got != "known" {
		t.Errorf("served a %s channel", got)
	}
	if ok, _, err := server.SendRequest("tcpip-forward", true, nil); ok || err != nil {
		t.Errorf("a global request: %v, %v", ok, err)
	}
	server.Cut(errors.New("enough"))
	out.Wait()
	if err := context.Cause(out.Context()); err == nil {
		t.Error("the connection has ended without a cause")
	}
}

// TestDialerCut: what is cut here ends with that cause, and nothing is left.
func TestDialerCut(t *testing.T) {
	w := newWorld(t, nil)
	out, err := newDialer(t).Connect(t.Context(), w.serve(), w.outgoing(nil))
	if err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	out.Cut(enough)
	out.Wait()
	if err := context.Cause(out.Context()); !errors.Is(err, enough) {
		t.Errorf("the cause is %v, want %v", err, enough)
	}
	if _, _, err := out.OpenChannel("echo", nil); err == nil {
		t.Error("a connection that was cut opens a channel")
	}
}

// TestDialerContext: the end of the context ends a handshake, and not what came
// of one.
func TestDialerContext(t *testing.T) {
	late := errors.New("too late")
	ctx, cancel := context.WithCancelCause(t.Context())
	client, server := tcpPair(t)
	defer server.Close()
	go func() {
		server.Read(make([]byte, 1)) // the client has begun
		cancel(late)
	}()
	w := newWorld(t, nil)
	if _, err := newDialer(t).Connect(ctx, client, w.outgoing(nil)); err == nil || !errors.Is(context.Cause(ctx), late) {
		t.Errorf("a handshake ended with %v, not with its context", err)
	}
	ctx, leave := context.WithCancel(t.Context())
	out, err := newDialer(t).Connect(ctx, w.serve(), w.outgoing(nil))
	if err != nil {
		t.Fatal(err)
	}
	leave()
	if ok, answer, err := out.SendRequest("hello", true, []byte("x")); !ok || string(answer) != "x" || err != nil {
		t.Errorf("after the end of the context: %v, %q, %v", ok, answer, err)
	}
	out.Close()
	out.Wait()
}

// TestDialerPreAuthBytes: a server may not fill the memory before it is known.
func TestDialerPreAuthBytes(t *testing.T) {
	client, server := tcpPair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer server.Close()
		chunk := []byte(strings.Repeat(strings.Repeat("x", 250)+"\r\n", 100))
		for {
			if _, err := server.Write(chunk); err != nil {
				return
			}
		}
	}()
	if _, err := newDialer(t).Connect(t.Context(), client, Outgoing{Auth: ssh.ClientConfig{
		HostKeyCallback: func(string, net.Addr, ssh.PublicKey) error { return errors.New("no") },
	}}); err == nil {
		t.Error("a server that never says who it is was taken")
	}
	<-done
}

// TestDialerAlgorithms: nothing of SHA-1, CBC or RC4 is offered to a server,
// and AES-GCM comes first where the CPU has it.
func TestDialerAlgorithms(t *testing.T) {
	for _, aes := range []bool{true, false} {
		cfg := clientConfig(aes)
		for _, list := range [][]string{cfg.Ciphers, cfg.KeyExchanges, cfg.MACs} {
			seen := map[string]bool{}
			for _, a := range list {
				if seen[a] || strings.Contains(a, "sha1") || strings.Contains(a, "cbc") || strings.Contains(a, "arcfour") {
					t.Errorf("%s is in %q", a, list)
				}
				seen[a] = true
			}
		}
		if first := cfg.Ciphers[0]; (first == ssh.CipherAES128GCM) != aes {
			t.Errorf("AES instructions %v: %s comes first", aes, first)
		}
	}
	if _, err := NewDialer(DialerConfig{}); err == nil {
		t.Error("a dialer without a name was made")
	}
}
