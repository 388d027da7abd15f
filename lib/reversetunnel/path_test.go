package reversetunnel

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

func TestDialReachesNode(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode func(*proxyConfig)) {
		p := w.startProxy(mode)
		n := w.startNode("n1", nil, p.addr)
		p.holds(n.id)
		for range 5 {
			p.dial(n.id)
		}
		n.stop()
		p.holds()
		p.events.expect(t, "tunnel.up tunnel.down")
		for _, ev := range p.events.list {
			checkEvent(t, ev, p, n)
		}
		if _, err := p.server.Dial(t.Context(), n.id, client1); !fault.Is(err, fault.Unavailable) {
			t.Errorf("dial without a tunnel: %v, want unavailable", err)
		}
	})
}

// checkEvent holds an event against what the table of events allows.
func checkEvent(t *testing.T, ev events.Event, p *proxy, n *node) {
	t.Helper()
	if ev.Fields["node_id"] != string(n.id) || ev.Fields["node_name"] != string(n.name) || ev.Fields["proxy_id"] != string(p.id) {
		t.Errorf("%s names %v", ev.Name, ev.Fields)
	}
	known := map[string]bool{}
	for _, spec := range events.Table() {
		if spec.Name == ev.Name {
			for _, f := range spec.Fields {
				known[f.Name] = true
			}
		}
	}
	for f := range ev.Fields {
		if !known[f] {
			t.Errorf("%s has field %q, which the table does not", ev.Name, f)
		}
	}
}

// TestConcurrentDials asks for more connections than are warm at once.
func TestConcurrentDials(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode func(*proxyConfig)) {
		p := w.startProxy(mode)
		n := w.startNode("n1", nil, p.addr)
		p.holds(n.id)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				conn, err := p.server.Dial(t.Context(), n.id, client1)
				if err != nil {
					t.Errorf("dial: %v", err)
					return
				}
				defer conn.Close()
				got := make([]byte, len(client1.String()))
				if _, err := io.ReadFull(conn, got); err != nil || string(got) != client1.String() {
					t.Errorf("node saw %q, %v", got, err)
				}
			})
		}
		wg.Wait()
	})
}

// TestTailAfterHalfClose: what the node sends after the client has said EOF
// arrives, and what the client sent before does.
func TestTailAfterHalfClose(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode func(*proxyConfig)) {
		const size = 3 << 20
		p := w.startProxy(mode)
		n := w.startNode("n1", func(cfg *AgentConfig) {
			cfg.Serve = func(_ context.Context, conn net.Conn) {
				got, err := io.ReadAll(conn)
				if err != nil {
					t.Errorf("node read: %v", err)
				}
				_, _ = conn.Write(got)
				_ = conn.(interface{ CloseWrite() error }).CloseWrite()
			}
		}, p.addr)
		p.holds(n.id)
		conn, err := p.server.Dial(t.Context(), n.id, client1)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		sent := make([]byte, size)
		_, _ = rand.Read(sent)
		go func() {
			_, _ = conn.Write(sent)
			_ = conn.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(conn)
		if err != nil || string(got) != string(sent) {
			t.Errorf("got %d bytes back of %d, %v", len(got), size, err)
		}
	})
}

// F16: a node that does not read holds its client up and fills nobody's memory.
func TestNodeThatDoesNotReadHoldsTheClientUp(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode func(*proxyConfig)) {
		p := w.startProxy(mode)
		n := w.startNode("n1", func(cfg *AgentConfig) {
			cfg.Serve = func(ctx context.Context, _ net.Conn) { <-ctx.Done() }
		}, p.addr)
		p.holds(n.id)
		conn, err := p.server.Dial(t.Context(), n.id, client1)
		if err != nil {
			t.Fatal(err)
		}
		const limit = 64 << 20 // of loopback's socket buffers or a channel's window
		done := make(chan int64, 1)
		go func() {
			moved, _ := io.Copy(conn, io.LimitReader(rand.Reader, limit))
			done <- moved
		}()
		select {
		case moved := <-done:
			t.Errorf("%d bytes went to a node that reads nothing", moved)
		case <-time.After(time.Second):
		}
		conn.Close()
		n.stop() // ends what waits
		<-done
	})
}

// TestPoolIsKeptWarm: the connections for the next clients stand before these
// come.
func TestPoolIsKeptWarm(t *testing.T) {
	for _, name := range []string{"tls", "plain"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := w.startProxy(func(c *proxyConfig) {
				c.Pool = 3
				if mode := modes[name]; mode != nil {
					mode(c)
				}
			})
			var dials atomic.Int32
			n := w.startNode("n1", func(cfg *AgentConfig) {
				cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
					dials.Add(1)
					return dialTCP(ctx, addr)
				}
			}, p.addr)
			p.holds(n.id)
			for used := range 4 {
				p.warm(n.id, 3)
				if got, want := int(dials.Load()), 1+3+used; got != want {
					t.Errorf("%d connections were dialed for %d clients, want %d", got, used, want)
				}
				p.dial(n.id)
			}
		})
	}
}

// warm waits until a node has that many warm connections.
func (p *proxy) warm(id names.NodeID, want int) {
	p.t.Helper()
	poll(p.t, fmt.Sprintf("%d warm connections", want), func() bool {
		p.server.mu.Lock()
		defer p.server.mu.Unlock()
		t := p.server.tunnels[id]
		return t != nil && len(t.idle) == want
	})
}

// poll waits for what tells nobody when it happens.
func poll(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 20_000 {
		if cond() {
			return
		}
		<-tick.C
	}
	t.Fatalf("%s: not in 20 s", what)
}

// failing dials only the first connection, the control connection.
func failing() func(ctx context.Context, addr string) (net.Conn, error) {
	var dialed atomic.Bool
	return func(ctx context.Context, addr string) (net.Conn, error) {
		if dialed.Swap(true) {
			return nil, errors.New("no route")
		}
		return dialTCP(ctx, addr)
	}
}

// TestChannelWhenNoDataConnectionComes: the fallback is raced, not waited for.
func TestChannelWhenNoDataConnectionComes(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(nil)
	n := w.startNode("n1", func(cfg *AgentConfig) { cfg.Dial = failing() }, p.addr)
	p.holds(n.id)
	began := time.Now()
	p.dial(n.id)
	if took := time.Since(began); took < raceAfter || took > 20*raceAfter {
		t.Errorf("dial took %v, want a little over %v", took, raceAfter)
	}
}

// TestAgentWithoutDialBack never dials a data connection.
func TestAgentWithoutDialBack(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(nil)
	n := w.startNode("n1", func(cfg *AgentConfig) { cfg.NoDialBack, cfg.Dial = true, failing() }, p.addr)
	p.holds(n.id)
	began := time.Now()
	p.dial(n.id)
	if took := time.Since(began); took >= raceAfter {
		t.Errorf("dial took %v although the agent had said it dials nothing", took)
	}
}

// TestDeadWarmConnectionIsNotHandedOut: a node may have closed what was warm.
func TestDeadWarmConnectionIsNotHandedOut(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(func(c *proxyConfig) { c.Pool = 2 })
	var mu sync.Mutex
	var conns []net.Conn
	n := w.startNode("n1", func(cfg *AgentConfig) {
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := dialTCP(ctx, addr)
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, conn)
			return conn, err
		}
	}, p.addr)
	p.holds(n.id)
	p.warm(n.id, 2)
	mu.Lock()
	for _, c := range conns[1:] {
		c.Close()
	}
	mu.Unlock()
	p.dial(n.id)
}

// TestSessionsOutliveTheirControlConnection: data connections are their own.
func TestSessionsOutliveTheirControlConnection(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(nil)
	var once sync.Once
	var control net.Conn
	n := w.startNode("n1", func(cfg *AgentConfig) {
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := dialTCP(ctx, addr)
			once.Do(func() { control = conn })
			return conn, err
		}
	}, p.addr)
	p.holds(n.id)
	c := p.dial(n.id)
	changed := p.server.Changed()
	control.Close()
	<-changed
	c.echo(t)
	p.holds(n.id) // and the tunnel comes back
	c.echo(t)
	p.dial(n.id)
}

// TestAttachIsRecordedFirst: without a record there is no tunnel.
func TestAttachIsRecordedFirst(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(func(c *proxyConfig) {})
	p.events.mu.Lock()
	p.events.fail = errors.New("disk full")
	p.events.mu.Unlock()
	logged := observe(w)
	n := w.startNode("n1", nil, p.addr)
	logged.await(t, "no link; dialing until there is one")
	if up := p.server.Up(); len(up) > 0 {
		t.Errorf("tunnels %v stand without a record", up)
	}
	p.events.mu.Lock()
	p.events.fail = nil
	p.events.mu.Unlock()
	p.holds(n.id)
	if msgs := logged.messages(); strings.Count(strings.Join(msgs, "\n"), "no link") != 1 {
		t.Errorf("log %q, want one line per state", msgs)
	}
}
