package reversetunnel

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// stock is a machine that has only stock ssh, which is required.
type stock struct {
	t    *testing.T
	id   names.NodeID
	args []string
}

// newStock returns a machine with a member certificate for the node "stock1".
func (w *world) newStock(id names.NodeID) *stock {
	t := w.t.(*testing.T)
	t.Helper()
	dir := t.TempDir()
	private, signer := sshca.Generate()
	cert, err := sshca.MintMember(w.node, sshca.MemberRequest{
		Key: signer.PublicKey(), ID: id, Name: "stock1", Kind: sshca.KindNode, Serial: 7,
		ValidAfter: time.Now().Add(-time.Minute), ValidBefore: time.Now().Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, "key")
	for name, data := range map[string][]byte{
		key: pem.EncodeToMemory(block), key + "-cert.pub": ssh.MarshalAuthorizedKey(cert),
		filepath.Join(dir, "known_hosts"): []byte("@cert-authority * " + string(ssh.MarshalAuthorizedKey(w.host.PublicKey()))),
	} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &stock{t: t, id: id, args: []string{
		"-F", "none", "-i", key, "-o", "UserKnownHostsFile=" + filepath.Join(dir, "known_hosts"), "-o", "StrictHostKeyChecking=yes",
		"-o", "BatchMode=yes", "-o", "IdentityAgent=none", "-o", "ExitOnForwardFailure=yes", "-l", "stock1",
	}}
}

// dialling is a running "ssh -N -R".
type dialling struct {
	stop   func() int // ends it and returns its exit code
	done   <-chan struct{}
	stderr *bytes.Buffer // to be read when it is done
}

// dial runs "ssh -N" with the forward r to the proxy at addr.
func (s *stock) dial(addr, r string) *dialling {
	s.t.Helper()
	host, port, _ := strings.Cut(addr, ":")
	ctx, cancel := context.WithCancel(s.t.Context())
	cmd := exec.CommandContext(ctx, "ssh", append(s.args, "-p", port, "-N", "-R", r, host)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	d := &dialling{stderr: &bytes.Buffer{}}
	cmd.Stderr = d.stderr
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	d.done = done
	d.stop = sync.OnceValue(func() int {
		cancel()
		<-done
		return cmd.ProcessState.ExitCode()
	})
	s.t.Cleanup(func() { d.stop() })
	return d
}

// echoServer repeats what it hears, until the end of it.
func echoServer(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _, _ = io.Copy(c, c); c.Close() })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// reach sends a megabyte through id's tunnel, ends its side, and expects all of it
// back.
func (p *proxy) reach(id names.NodeID) error {
	conn, err := p.server.Dial(p.t.Context(), id, client1)
	if err != nil {
		return err
	}
	defer conn.Close()
	data := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		sent <- errors.Join(err, conn.(interface{ CloseWrite() error }).CloseWrite())
	}()
	got, err := io.ReadAll(conn)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	if !bytes.Equal(got, data) {
		return fmt.Errorf("%d bytes came back, want %d", len(got), len(data))
	}
	return nil
}

// TestStockTunnel is "ssh -N -R": the tunnel is up with the forward, whatever
// address and port were asked for, and goes with it.
func TestStockTunnel(t *testing.T) {
	for _, bind := range []string{"22", "0", "localhost:22", "*:2222", "127.0.0.1:22", "n7.example:1"} {
		t.Run(bind, func(t *testing.T) {
			w := newWorld(t)
			p := w.startProxy(nil)
			s := w.newStock(names.NewNodeID())
			d := s.dial(p.addr, bind+":"+echoServer(t))
			p.holds(s.id)
			// Of a port that the server chose the client hears only afterwards, and
			// refuses what comes before.
			for began := time.Now(); p.reach(s.id) != nil && time.Since(began) < 5*time.Second; {
				runtime.Gosched()
			}
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					if err := p.reach(s.id); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			d.stop()
			if words := d.stderr.String(); strings.Contains(words, "rror") || strings.Contains(words, "fail") {
				t.Errorf("ssh says %q", words)
			}
			p.holds()
			p.events.expect(t, "tunnel.up tunnel.down")
			if ev := p.events.list[0]; ev.Fields["node_id"] != string(s.id) || ev.Fields["node_name"] != "stock1" {
				t.Errorf("tunnel.up = %+v", ev)
			}
		})
	}
}

// TestStockServiceAway: a node whose sshd does not answer says so, and stays.
func TestStockServiceAway(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(nil)
	s := w.newStock(names.NewNodeID())
	s.dial(p.addr, "22:127.0.0.1:1")
	p.holds(s.id)
	if err := p.reach(s.id); !fault.Is(err, fault.Unavailable) {
		t.Errorf("reach = %v, want it unavailable", err)
	}
	p.holds(s.id)
}

// TestStockSecondIsRefused is F08 for a node without software of ours: the second
// of two live hosts is told at once, and the first is undisturbed.
func TestStockSecondIsRefused(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(nil)
	s := w.newStock(names.NewNodeID())
	target := echoServer(t)
	s.dial(p.addr, "22:"+target)
	p.holds(s.id)
	second := s.dial(p.addr, "22:"+target)
	<-second.done
	if code := second.stop(); code != 255 || !strings.Contains(second.stderr.String(), "remote port forwarding failed") {
		t.Errorf("the second ended with %d: %s", code, second.stderr)
	}
	p.events.expect(t, "tunnel.up tunnel.up!")
	if err := p.reach(s.id); err != nil {
		t.Errorf("the first: %v", err)
	}
}

// TestStockReplacesDead: a connection that is dead without anybody having been
// told gives way after a second.
func TestStockReplacesDead(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(nil) // its own keepalive would need 45 s
	s := w.newStock(names.NewNodeID())
	target := echoServer(t)
	first := newGap(t, p.addr)
	s.dial(first.addr, "22:"+target)
	p.holds(s.id)
	first.freeze()
	began := time.Now()
	s.dial(p.addr, "22:"+target)
	// Each connection tells of its own end, which the other does not wait for.
	p.events.expect(t, "tunnel.up tunnel.down tunnel.up", strings.Repeat("tunnel.up ", 2)+"tunnel.down")
	if took := time.Since(began); took < stockProbe || took > stockProbe+5*time.Second {
		t.Errorf("replaced after %v, want a little over %v", took, stockProbe)
	}
	p.holds(s.id)
	if err := p.reach(s.id); err != nil {
		t.Error(err)
	}
}

// gap carries bytes between a client and an address until it is frozen.
type gap struct {
	addr   string
	freeze func()
}

func newGap(t *testing.T, to string) *gap {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	frozen := make(chan struct{})
	var conns sync.Map
	var wg sync.WaitGroup
	carry := func(dst, src net.Conn) {
		b := make([]byte, 32<<10)
		for {
			n, err := src.Read(b)
			if err != nil {
				return
			}
			select {
			case <-frozen:
			default:
				_, _ = dst.Write(b[:n])
			}
		}
	}
	wg.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				t.Error(err)
				return
			}
			conns.Store(near, far)
			wg.Go(func() { carry(far, near) })
			wg.Go(func() { carry(near, far) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		conns.Range(func(near, far any) bool {
			near.(net.Conn).Close()
			far.(net.Conn).Close()
			return true
		})
		wg.Wait()
	})
	return &gap{ln.Addr().String(), sync.OnceFunc(func() { close(frozen) })}
}

// TestStockCancel: its own forward a node can cancel, and ask for again; there is
// never more than one.
func TestStockCancel(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(nil)
	id, other := names.NewNodeID(), names.NewNodeID()
	client := func(id names.NodeID, name names.NodeName) *ssh.Client {
		c, err := ssh.Dial("tcp", p.addr, &ssh.ClientConfig{
			User: string(name), Auth: []ssh.AuthMethod{ssh.PublicKeys(w.member(id, name, sshca.KindNode))},
			HostKeyCallback: w.trust().HostKeyCallback("127.0.0.1", time.Now),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	n, o := client(id, "stock1"), client(other, "stock2")
	ask := func(c *ssh.Client, kind string, f sshwire.TCPIPForward) bool {
		ok, _, err := c.SendRequest(kind, true, f.Marshal())
		return ok && err == nil
	}
	f := sshwire.TCPIPForward{Addr: "localhost", Port: 22}
	if !ask(n, sshwire.RequestTCPIPForward, f) {
		t.Fatal("the forward was refused")
	}
	p.holds(id) // before anything else was asked for
	if ask(n, sshwire.RequestTCPIPForward, sshwire.TCPIPForward{Addr: "localhost", Port: 23}) {
		t.Error("a second forward on one connection")
	}
	if ask(o, sshwire.RequestCancelTCPIPForward, f) || ask(n, sshwire.RequestCancelTCPIPForward, sshwire.TCPIPForward{Addr: "localhost", Port: 23}) {
		t.Error("another's forward, or none, was cancelled")
	}
	if ok, _, _ := n.SendRequest(sshwire.RequestTCPIPForward, true, []byte{0, 0, 0, 9}); ok {
		t.Error("a malformed request was granted")
	}
	p.holds(id)
	if !ask(n, sshwire.RequestCancelTCPIPForward, f) {
		t.Error("the node's own forward was not cancelled")
	}
	p.holds()
	p.events.expect(t, "tunnel.up tunnel.down")
}

// TestStockIsRecordedFirst: a tunnel that cannot be recorded is none.
func TestStockIsRecordedFirst(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(nil)
	p.events.mu.Lock()
	p.events.fail = io.ErrShortWrite
	p.events.mu.Unlock()
	s := w.newStock(names.NewNodeID())
	d := s.dial(p.addr, "22:"+echoServer(t))
	<-d.done
	if code := d.stop(); code != 255 || !strings.Contains(d.stderr.String(), "remote port forwarding failed") {
		t.Errorf("ssh ended with %d: %s", code, d.stderr)
	}
	if up := p.server.Up(); len(up) > 0 {
		t.Errorf("tunnels up: %v", up)
	}
}
