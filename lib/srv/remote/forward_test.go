package remote

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/srv"
)

func anywhere(netip.Addr) error { return nil }

// echo serves ln: what comes goes back, and the end of it too.
func echo(t *testing.T, ln net.Listener) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // what is lost the other side misses
				if half, ok := c.(interface{ CloseWrite() error }); ok {
					_ = half.CloseWrite()
				}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
}

func endpoint(t *testing.T, addr net.Addr) srv.Endpoint {
	t.Helper()
	if addr.Network() == "unix" {
		return srv.Endpoint{Path: addr.String()}
	}
	ap := netip.MustParseAddrPort(addr.String())
	return srv.Endpoint{Host: ap.Addr().String(), Port: ap.Port()}
}

// exchange sends data through c and half-closes; all of it must come back.
func exchange(t *testing.T, c net.Conn, data []byte) {
	t.Helper()
	defer c.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.Write(data); err != nil {
			t.Error(err)
		}
		half, ok := c.(interface{ CloseWrite() error })
		if !ok {
			t.Errorf("a %T has no CloseWrite", c)
			return
		}
		if err := half.CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	got, err := io.ReadAll(c)
	wg.Wait()
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes of %d came back, err %v", len(got), len(data), err)
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// TestDial: connections from the node to a port and a socket, all on one
// connection to the sshd, each with its half-close.
func TestDial(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	x := w.executor()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echo(t, tcp)
	unix, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	echo(t, unix)
	var wg sync.WaitGroup
	for i := range 20 {
		ln := []net.Listener{tcp, unix}[i%2]
		wg.Go(func() {
			c, err := x.Dial(t.Context(), srv.Account{Login: w.account}, endpoint(t, ln.Addr()), anywhere)
			if err != nil {
				t.Error(err)
				return
			}
			if c.RemoteAddr().String() != ln.Addr().String() {
				t.Errorf("RemoteAddr = %v, want %v", c.RemoteAddr(), ln.Addr())
			}
			exchange(t, c, random(300<<10))
		})
	}
	wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dials != 1 || len(w.signed) != 1 || w.signed[0].GetSession() != "01234567-89ab-cdef-0000-000000000000" {
		t.Errorf("%d connections, certificates %v, want one for the client's connection", w.dials, w.signed)
	}
}

// TestDialAsks: the rules are asked about a literal address as such, and about
// what the sshd looks up as unknown, before the sshd hears of it.
func TestDialAsks(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	x := w.executor()
	for e, want := range map[srv.Endpoint]netip.Addr{
		{Host: "127.0.0.1", Port: 1}:         netip.MustParseAddr("127.0.0.1"),
		{Host: "::ffff:10.0.0.1", Port: 1}:   netip.MustParseAddr("10.0.0.1"),
		{Host: "127.1", Port: 1}:             netip.MustParseAddr("127.0.0.1"),
		{Host: "0x7f000001", Port: 1}:        netip.MustParseAddr("127.0.0.1"),
		{Host: "localhost", Port: 1}:         {},
		{Path: "/nonexistent/socket"}:        {},
		{Host: "127.0.0.1", Path: "/a/path"}: {},
	} {
		asked := 0
		refused := errors.New("no")
		_, err := x.Dial(t.Context(), srv.Account{Login: w.account}, e, func(addr netip.Addr) error {
			asked++
			if addr != want {
				t.Errorf("%v: asked about %v, want %v", e, addr, want)
			}
			return refused
		})
		if !errors.Is(err, refused) || asked != 1 {
			t.Errorf("%v: Dial = %v after %d questions", e, err, asked)
		}
	}
	if w.dials != 0 {
		t.Error("the sshd was connected to for what is refused")
	}
	for _, e := range []srv.Endpoint{{Host: "127.0.0.1", Port: 1}, {Path: "/nonexistent/socket"}} {
		_, err := x.Dial(t.Context(), srv.Account{Login: w.account}, e, anywhere)
		if !fault.Is(err, fault.Unavailable) || !strings.HasPrefix(fault.Public(err), `node "db-1" does not reach "`) {
			t.Errorf("%v: %v, public %q", e, err, fault.Public(err))
		}
	}
}

// TestListen: ports of the node that the sshd chooses or is told, on addresses
// in the forms that clients send, and sockets.
func TestListen(t *testing.T) {
	w := newWorld(t)
	w.sshd("GatewayPorts clientspecified")
	x := w.executor()
	a := srv.Account{Login: w.account}
	fixed := netip.MustParseAddrPort(freePort(t)).Port()
	for name, e := range map[string]srv.Endpoint{
		"chosen, localhost": {Host: "localhost"},
		"chosen, any":       {Host: ""},
		"chosen, address":   {Host: "127.0.0.1"},
		"chosen, IPv4 any":  {Host: "0.0.0.0"},
		"fixed":             {Host: "localhost", Port: fixed},
		"socket":            {Path: filepath.Join(t.TempDir(), "s")},
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := x.Listen(t.Context(), a, e)
			if err != nil {
				t.Fatal(err)
			}
			network, addr := "unix", e.Path
			if e.Path == "" {
				port := netip.MustParseAddrPort(ln.Addr().String()).Port()
				if port == 0 || e.Port != 0 && port != e.Port {
					t.Fatalf("listens on port %d, want %d", port, e.Port)
				}
				network, addr = "tcp", "127.0.0.1:"+strconv.Itoa(int(port))
			}
			var origins []string
			var mu sync.Mutex
			echo(t, observed{ln, func(c net.Conn) {
				mu.Lock()
				defer mu.Unlock()
				origins = append(origins, c.RemoteAddr().String())
			}})
			var wg sync.WaitGroup
			for range 5 {
				c, err := net.Dial(network, addr)
				if err != nil {
					t.Fatal(err)
				}
				wg.Go(func() { exchange(t, c, random(100<<10)) })
				if network == "tcp" {
					defer func() {
						mu.Lock()
						defer mu.Unlock()
						if !strings.Contains(strings.Join(origins, " "), c.LocalAddr().String()) {
							t.Errorf("connections came from %q, want %v among them", origins, c.LocalAddr())
						}
					}()
				}
			}
			wg.Wait()
			ln.Close()
			if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept after Close = %v", err)
			}
			awaitRefused(t, network, addr)
			again, err := x.Listen(t.Context(), a, srv.Endpoint{Host: e.Host, Port: uint16(portOf(addr)), Path: e.Path})
			if err != nil {
				t.Fatalf("listen there again: %v", err)
			}
			again.Close()
		})
	}
	if w.dials != 1 {
		t.Errorf("%d connections, want one", w.dials)
	}
}

// observed is a listener that tells of its connections.
type observed struct {
	net.Listener

	saw func(net.Conn)
}

func (o observed) Accept() (net.Conn, error) {
	c, err := o.Listener.Accept()
	if err == nil {
		o.saw(c)
	}
	return c, err
}

func portOf(addr string) int {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return 0
	}
	return int(ap.Port())
}

// awaitRefused returns when nobody listens on addr.
func awaitRefused(t *testing.T, network, addr string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 500 {
		c, err := net.Dial(network, addr)
		if err != nil {
			return
		}
		c.Close()
		<-tick.C
	}
	t.Fatalf("%s is still listened on", addr)
}

// TestListenConflict: a port that is taken, by ourselves or by others.
func TestListenConflict(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	x := w.executor()
	a := srv.Account{Login: w.account}
	ln, err := x.Listen(t.Context(), a, srv.Endpoint{Host: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	taken := netip.MustParseAddrPort(ln.Addr().String()).Port()
	if _, err := x.Listen(t.Context(), a, srv.Endpoint{Host: "localhost", Port: taken}); !fault.Is(err, fault.Conflict) {
		t.Errorf("our own port: %v", err)
	}
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_, err = x.Listen(t.Context(), a, srv.Endpoint{Host: "127.0.0.1", Port: uint16(portOf(other.Addr().String()))})
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(fault.Public(err), "does not listen on") {
		t.Errorf("somebody else's port: %v", err)
	}
	x.Close()
	if _, err := ln.Accept(); err == nil {
		t.Error("Accept goes on after the executor was closed")
	}
	if _, err := x.Listen(t.Context(), a, srv.Endpoint{Host: "localhost"}); err == nil {
		t.Error("a closed executor listens")
	}
}

// TestForwardsOutliveTheirConnection: when the sshd was restarted the next
// forward has a connection again; what listened has ended and says so.
func TestForwardsOutliveTheirConnection(t *testing.T) {
	w := newWorld(t)
	d := w.sshd()
	x := w.executor()
	a := srv.Account{Login: w.account}
	ln, err := x.Listen(t.Context(), a, srv.Endpoint{Host: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	d.endSessions(t)
	if _, err := ln.Accept(); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Accept on a lost connection = %v", err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echo(t, tcp)
	c, err := x.Dial(t.Context(), a, endpoint(t, tcp.Addr()), anywhere)
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, c, []byte("hello"))
	if w.dials != 2 {
		t.Errorf("%d connections, want 2", w.dials)
	}
}

// endSessions kills the processes that serve d's connections.
func (d *daemon) endSessions(t *testing.T) {
	t.Helper()
	children, err := os.ReadFile("/proc/" + strconv.Itoa(d.Process.Pid) + "/task/" + strconv.Itoa(d.Process.Pid) + "/children")
	if err != nil {
		t.Fatal(err)
	}
	for pid := range strings.FieldsSeq(string(children)) {
		n, _ := strconv.Atoi(pid)
		if p, err := os.FindProcess(n); err == nil {
			_ = p.Kill() // it may have ended
		}
	}
}
