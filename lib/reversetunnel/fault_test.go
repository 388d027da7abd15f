package reversetunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/srv/sshserver"
)

// wires are an agent's connections, which a test can cut or freeze.
type wires struct {
	mu     sync.Mutex
	conns  []*wire
	frozen bool // new ones too
	down   bool // none can be dialed
}

func (ws *wires) dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := dialTCP(ctx, addr)
	if err != nil {
		return nil, err
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.down {
		conn.Close()
		return nil, errors.New("network is unreachable")
	}
	w := &wire{Conn: conn, thaw: make(chan struct{})}
	if ws.frozen {
		w.freeze()
	}
	ws.conns = append(ws.conns, w)
	return w, nil
}

// freeze makes every connection lose all bytes silently, as behind a NAT that
// forgot them.
func (ws *wires) freeze() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.conns {
		w.freeze()
	}
}

// kill cuts every connection, as the end of the process does, and lets none
// follow.
func (ws *wires) kill() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.down = true
	for _, w := range ws.conns {
		w.Close()
	}
}

type wire struct {
	net.Conn
	mu     sync.Mutex
	frozen bool
	once   sync.Once
	thaw   chan struct{} // closed when the connection is
}

func (w *wire) freeze() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frozen = true
}

func (w *wire) lost() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.frozen
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if w.lost() {
		<-w.thaw
		return 0, net.ErrClosed
	}
	return n, err
}

func (w *wire) Write(p []byte) (int, error) {
	if w.lost() {
		return len(p), nil
	}
	return w.Conn.Write(p)
}

// Close closes this end; the other learns of it only when the wire stands.
func (w *wire) Close() error {
	w.once.Do(func() { close(w.thaw) })
	if w.lost() {
		return nil
	}
	return w.Conn.Close()
}

// reap closes what freeze has left open.
func (ws *wires) reap() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.conns {
		w.Conn.Close()
	}
}

// F01: the proxy dies in the middle of a session. The session ends at the node,
// and when the proxy is back, so is the tunnel, within seconds.
func TestProxyRestart(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode func(*proxyConfig)) {
		p := w.startProxy(mode)
		ended := make(chan struct{}, 1)
		n := w.startNode("n1", func(cfg *AgentConfig) {
			cfg.Serve = func(ctx context.Context, conn net.Conn) {
				echo(ctx, conn)
				ended <- struct{}{}
			}
		}, p.addr)
		p.holds(n.id)
		c := p.dial(n.id)
		changed := n.Changed()
		go p.stop()
		c.Close() // a process that dies takes its sockets with it
		<-ended
		<-changed
		p.stop()
		again := w.startProxy(func(c *proxyConfig) {
			if mode != nil {
				mode(c)
			}
			c.addr, c.ID = p.addr, p.id
		})
		began := time.Now()
		again.holds(n.id)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the tunnel came back after %v, want seconds", took)
		}
		again.dial(n.id)
	})
}

// F02: the node dies in the middle of a session. Its client is told, the tunnel is
// down, once.
func TestNodeDies(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode func(*proxyConfig)) {
		p := w.startProxy(mode)
		var ws wires
		n := w.startNode("n1", func(cfg *AgentConfig) { cfg.Dial = ws.dial }, p.addr)
		p.holds(n.id)
		c := p.dial(n.id)
		ws.kill()
		if _, err := io.ReadAll(c); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
			t.Logf("the client reads %v", err)
		}
		p.holds()
		p.events.expect(t, "tunnel.up tunnel.down")
	})
}

// quick finds a dead link in a third of a second.
func quick(c *proxyConfig) {
	c.beat = sshserver.Keepalive{Interval: 100 * time.Millisecond, Misses: 3}
}

// F07, F20: the network loses everything, silently. Both ends find out, there is
// no node twice when it heals, and it heals by itself.
func TestSilentLoss(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(quick)
	var ws wires
	defer ws.reap()
	n := w.startNode("n1", func(cfg *AgentConfig) {
		cfg.Dial, cfg.KeepaliveInterval = ws.dial, 100*time.Millisecond
	}, p.addr)
	p.holds(n.id)
	changed := n.Changed()
	ws.freeze()
	p.holds()
	<-changed
	p.holds(n.id)
	p.dial(n.id)
	p.events.expect(t, "tunnel.up tunnel.down tunnel.up")
}

// F08: the network of a node changes and the proxy still believes in the old
// connection. The new one takes its place, after the old one had its chance; who
// was given a connection that was dead by then is told, and sessions are not cut.
func TestNewConnectionReplacesDeadOne(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(nil) // its own keepalive would need 45 s
	var ws wires
	defer ws.reap()
	n := w.startNode("n1", func(cfg *AgentConfig) {
		cfg.Dial, cfg.KeepaliveInterval = ws.dial, 50*time.Millisecond
	}, p.addr)
	p.holds(n.id)
	session := p.dial(n.id)
	p.warm(n.id, DefaultPool)
	began := time.Now()
	ws.freeze()
	late, err := p.server.Dial(t.Context(), n.id, client1)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	await(t, "replacement", p.events.next, func() bool { return strings.Count(p.events.text(), "tunnel.") == 3 })
	if took := time.Since(began); took < probeTimeout || took > probeTimeout+5*time.Second {
		t.Errorf("replaced after %v, want a little over %v", took, probeTimeout)
	}
	if _, err := late.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a connection that was dead when it was given out: %v, want it closed", err)
	}
	if err := session.SetReadDeadline(time.Now().Add(glance)); err != nil {
		t.Fatal(err)
	}
	if _, err := session.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a session from before: %v, want it open", err)
	}
	p.holds(n.id)
	p.dial(n.id)
}

// F08: a cloned disk. The second host is refused while the first lives, the first
// is undisturbed, an event tells, and clients reach only the first.
func TestClonedNodeIsRefused(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode func(*proxyConfig)) {
		p := w.startProxy(mode)
		id := names.NewNodeID()
		first := w.startNodeAs(id, "n1", nil, p.addr)
		p.holds(id)
		c := p.dial(id)
		logged := observe(w)
		clone := w.startNodeAs(id, "n1", func(cfg *AgentConfig) {
			cfg.Serve = func(context.Context, net.Conn) { t.Error("a client landed on the clone") }
		}, p.addr)
		logged.await(t, "no link; dialing until there is one")
		await(t, "refusal", p.events.next, func() bool { return strings.HasPrefix(p.events.text(), "tunnel.up tunnel.up!") })
		checkEvent(t, p.events.list[1], p, first)
		c.echo(t)
		for range 5 {
			p.dial(id)
		}
		if up := clone.Up(); len(up) != 0 {
			t.Errorf("the clone has links to %v", up)
		}
		clone.stop()
		first.stop()
	})
}

// TestSurvivorTakesOver: when the first of two is gone, the other may come.
func TestSurvivorTakesOver(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(nil)
	id := names.NewNodeID()
	first := w.startNodeAs(id, "n1", nil, p.addr)
	p.holds(id)
	logged := observe(w)
	second := w.startNodeAs(id, "n1", nil, p.addr)
	logged.await(t, "no link; dialing until there is one")
	first.stop()
	await(t, "the second's link", second.Changed, func() bool { return len(second.Up()) == 1 })
	p.holds(id)
	p.dial(id)
}
