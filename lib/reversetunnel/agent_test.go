package reversetunnel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

func TestBackoff(t *testing.T) {
	b := backoff{draw: func(n time.Duration) time.Duration { return n - 1 }} // the longest
	var got []time.Duration
	for range 14 {
		got = append(got, (b.next(0) + 1).Round(time.Millisecond))
	}
	ms := time.Millisecond
	want := []time.Duration{
		150 * ms, 150 * ms, 150 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 12800 * ms, 25600 * ms,
		30 * time.Second, 30 * time.Second, 30 * time.Second,
	}
	if !slices.Equal(got, want) {
		t.Errorf("pauses %v, want %v", got, want)
	}
	if got := b.next(steady - 1); got < 29*time.Second {
		t.Errorf("after a link that did not last: %v, want no quick try", got)
	}
	if got := b.next(steady); got > quickPause*3/2 {
		t.Errorf("after a link that lasted: %v, want a quick try", got)
	}
}

// F22: 500 nodes lose one proxy for a while. Their attempts spread: no
// second after the first few sees more than half of them, and a proxy that comes
// back has all of them within a minute.
func TestReconnectsAreSpread(t *testing.T) {
	const nodes, outage = 500, 20 * time.Second
	perSecond := map[int]int{}
	var last time.Duration
	for i := range nodes {
		r := rand.New(rand.NewPCG(1, uint64(i)))
		b := backoff{draw: func(n time.Duration) time.Duration { return time.Duration(r.Int64N(int64(n))) }}
		at := b.next(time.Hour)
		for at < outage {
			perSecond[int(at/time.Second)]++
			at += b.next(0)
		}
		last = max(last, at)
	}
	for second, n := range perSecond {
		if second > 3 && n > nodes/2 {
			t.Errorf("second %d: %d attempts of %d nodes", second, n, nodes)
		}
	}
	if last > outage+maxPause {
		t.Errorf("the last node is back %v after the proxy", last-outage)
	}
}

// trying is an agent that is to be tested without a network.
func trying(t *testing.T, dial func(ctx context.Context, addr string) (net.Conn, error), log *zap.Logger, addrs func() []string) *slot {
	t.Helper()
	_, signer := sshca.Generate()
	a, err := NewAgent(AgentConfig{
		Addresses: addrs, Dial: dial, Log: log,
		Identity: func() (names.NodeName, ssh.Signer) { return "n1", signer },
		Trust:    func() sshca.Trust { return sshca.Trust{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	return &slot{Agent: a, links: &sync.WaitGroup{}}
}

// F21: the proxy's address changes, names do not resolve. The node goes on for
// ever, not too often, follows the new address, and logs one line.
func TestDialsForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		logged := observe(w)
		var moved atomic.Bool
		var tries, found int
		s := trying(t, func(_ context.Context, addr string) (net.Conn, error) {
			if tries++; addr == "new.example:3022" {
				found++
			}
			return nil, fmt.Errorf("lookup %s: no such host", addr)
		}, w.log, func() []string {
			if moved.Load() {
				return []string{"new.example:3022"}
			}
			return []string{"old.example:3022"}
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.keep(ctx) }()
		<-time.After(time.Hour)
		synctest.Wait()
		if tries < 120 || tries > 1000 {
			t.Errorf("%d tries in an hour, want one in about 15 s", tries)
		}
		moved.Store(true)
		<-time.After(time.Minute)
		cancel()
		<-done
		if found == 0 {
			t.Error("the new address was not tried within a minute")
		}
		if lines := logged.messages(); len(lines) != 1 {
			t.Errorf("log %q, want one line for one state", lines)
		}
	})
}

// TestNetworkChangeDialsAtOnce: who pauses before another try does not wait for
// its end, whatever else changes.
func TestNetworkChangeDialsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		s := trying(t, func(context.Context, string) (net.Conn, error) {
			at = append(at, time.Now())
			return nil, errors.New("network is unreachable")
		}, zap.NewNop(), func() []string { return []string{"proxy:3022"} })
		s.pace.draw = func(n time.Duration) time.Duration { return n - 1 }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.keep(ctx) }()
		<-time.After(10*time.Minute + time.Second)
		synctest.Wait()
		before := len(at)
		changed := time.Now()
		for range 100 { // a flock of messages
			s.networkChanged()
		}
		<-time.After(time.Second)
		cancel()
		<-done
		if len(at) == before {
			t.Fatal("no try within a second")
		}
		if got := at[before].Sub(changed); got > time.Second {
			t.Errorf("tried after %v", got)
		}
		if n := len(at) - before; n > 10 {
			t.Errorf("%d tries in a second", n)
		}
	})
}

// deadConn is an SSH connection whose requests nobody answers, until it closes.
type deadConn struct {
	ssh.Conn
	closed chan struct{}
	asked  atomic.Int32
	answer atomic.Bool
}

func (c *deadConn) SendRequest(string, bool, []byte) (bool, []byte, error) {
	c.asked.Add(1)
	if c.answer.Load() {
		return false, nil, nil
	}
	<-c.closed
	return false, nil, net.ErrClosed
}

// deadRaw closes deadConn.
type deadRaw struct {
	net.Conn
	local net.Addr
	once  sync.Once
	conn  *deadConn
}

func (r *deadRaw) Close() error {
	r.once.Do(func() { close(r.conn.closed) })
	return nil
}

func (r *deadRaw) LocalAddr() net.Addr { return r.local }

func beating(local net.Addr) (*link, *deadConn) {
	conn := &deadConn{closed: make(chan struct{})}
	conn.answer.Store(true)
	return &link{
		client: &client{conn: conn, raw: &deadRaw{conn: conn, local: local}},
		agent:  &Agent{cfg: AgentConfig{KeepaliveInterval: 15 * time.Second, KeepaliveMisses: 3}},
		look:   make(chan struct{}, 1),
	}, conn
}

// TestBeat: a link that answers is kept; one that falls silent is given up within
// 45 s, or at once when the network has changed.
func TestBeat(t *testing.T) {
	loopback := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}
	for name, tc := range map[string]struct {
		local    net.Addr
		look     bool
		min, max time.Duration
	}{
		"silence":          {local: loopback, min: 30 * time.Second, max: 45 * time.Second},
		"network changed":  {local: loopback, look: true, min: glimpseTimeout, max: glimpseTimeout},
		"address lost":     {local: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}, look: true, max: 0},
		"unknown, changed": {local: &net.UnixAddr{}, look: true, min: glimpseTimeout, max: glimpseTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, conn := beating(tc.local)
				over := make(chan error, 1)
				go func() { over <- l.beat(t.Context()) }()
				<-time.After(10*time.Minute + time.Second)
				select {
				case err := <-over:
					t.Fatalf("gave up a link that answers: %v", err)
				default:
				}
				if got := conn.asked.Load(); got != 40 {
					t.Errorf("%d keepalives in 10 minutes, want 40", got)
				}
				conn.answer.Store(false)
				silent := time.Now()
				if tc.look {
					l.glimpse()
				}
				if err := <-over; err == nil {
					t.Error("beat = nil")
				}
				if took := time.Since(silent); took < tc.min || took > tc.max {
					t.Errorf("gave up after %v, want %v to %v", took, tc.min, tc.max)
				}
			})
		})
	}
}

// TestBeatSurvivesNetworkChange: a link that still answers stays.
func TestBeatSurvivesNetworkChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := beating(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1})
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error, 1)
		go func() { over <- l.beat(ctx) }()
		for range 10 {
			l.glimpse()
			<-time.After(time.Minute)
		}
		cancel()
		if err := <-over; !errors.Is(err, context.Canceled) {
			t.Errorf("beat = %v, want the end of its context", err)
		}
	})
}

// service of the directory.
func listed(ps ...*proxy) (list []services.Proxy) {
	for _, p := range ps {
		list = append(list, services.Proxy{ID: p.id, Addresses: []string{p.addr}})
	}
	return list
}

// TestTunnelsToTwoProxies: the node knows one and learns of the other. When that
// is known to be all, it asks no further.
func TestTunnelsToTwoProxies(t *testing.T) {
	w := newWorld(t)
	p1, p2 := w.startProxy(nil), w.startProxy(nil)
	n := w.startNode("n1", nil, p1.addr)
	p1.holds(n.id)
	w.dir.set(listed(p1, p2)...)
	p2.holds(n.id)
	p1.dial(n.id)
	p2.dial(n.id)
	want := []names.NodeID{p1.id, p2.id}
	slices.Sort(want)
	await(t, "both links", n.Changed, func() bool { return slices.Equal(n.Up(), want) })
	p3 := w.startProxy(nil)
	w.dir.set(listed(p1, p2, p3)...)
	p2.stop() // the third takes its place
	p3.holds(n.id)
	p1.dial(n.id)
	p3.dial(n.id)
}

// TestTwoAddressesOfOneProxy lead to one link.
func TestTwoAddressesOfOneProxy(t *testing.T) {
	w := newWorld(t)
	id := names.NewNodeID()
	p := w.startProxy(func(c *proxyConfig) { c.ID, c.hostKey = id, w.hostKey(w.host, string(id), "127.0.0.1", "localhost") })
	var tries atomic.Int32
	n := w.startNode("n1", func(cfg *AgentConfig) {
		cfg.NoDialBack = true
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			tries.Add(1)
			return dialTCP(ctx, addr)
		}
	}, p.addr, strings.Replace(p.addr, "127.0.0.1", "localhost", 1))
	p.holds(n.id)
	poll(t, "both addresses are tried", func() bool { return tries.Load() == 2 })
	p.dial(n.id)
	p.events.expect(t, "tunnel.up")
}

// TestDrain: a proxy that leaves has its nodes go elsewhere first, and the clients
// it has end in peace, over data connections and over channels.
func TestDrain(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode func(*proxyConfig)) {
		p1, p2 := w.startProxy(mode), w.startProxy(mode)
		w.dir.set(listed(p1, p2)...)
		n := w.startNode("n1", func(cfg *AgentConfig) { cfg.Proxies = 1 }, p1.addr)
		p1.holds(n.id)
		c := p1.dial(n.id)
		p1.server.Drain(50*time.Millisecond, nil)
		p2.holds(n.id)
		c.echo(t)
		if mode != nil && w.overChannel(p1) {
			p1.holds(n.id)
		} else {
			p1.holds()
		}
		c.echo(t)
		c.Close()
		p1.holds()
		p2.dial(n.id)
	})
}

// overChannel reports whether p's clients reach nodes over channels.
func (*world) overChannel(p *proxy) bool { return p.server.cfg.NoDialBack }

// TestDrainTellsWhere: also a proxy that no directory has.
func TestDrainTellsWhere(t *testing.T) {
	w := newWorld(t)
	p1, p2 := w.startProxy(nil), w.startProxy(nil)
	n := w.startNode("n1", nil, p1.addr)
	p1.holds(n.id)
	p1.server.Drain(time.Hour, []string{p2.addr})
	p2.holds(n.id)
	p2.dial(n.id)
}

// TestDrainWithNowhereToGo: back to the same place, when it said, and not before.
func TestDrainWithNowhereToGo(t *testing.T) {
	const after = 300 * time.Millisecond
	w := newWorld(t)
	p := w.startProxy(nil)
	var mu sync.Mutex
	var at []time.Time
	n := w.startNode("n1", func(cfg *AgentConfig) {
		cfg.NoDialBack = true
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			mu.Lock()
			at = append(at, time.Now())
			mu.Unlock()
			return dialTCP(ctx, addr)
		}
	}, p.addr)
	p.holds(n.id)
	told := time.Now()
	p.server.Drain(after, nil)
	p.holds()
	p.stop()
	again := w.startProxy(func(c *proxyConfig) { c.ID, c.addr = p.id, p.addr })
	again.holds(n.id)
	mu.Lock()
	defer mu.Unlock()
	for _, when := range at[1:] {
		if early := after - when.Sub(told); early > 0 {
			t.Errorf("dialed %v too early", early)
		}
	}
}

// TestRestartedProxyIsFoundAgain: a node that has a tunnel to every other proxy goes
// back to one that drained as soon as it hears of it, though what was left to dial
// were duplicates.
func TestRestartedProxyIsFoundAgain(t *testing.T) {
	p1, p2 := peer{id: "p1", addresses: []string{"p1:3022"}}, peer{id: "p2", addresses: []string{"p2:3022"}}
	for name, c := range map[string]struct {
		news []peer
		away time.Duration // how long the one that drained asked to be left alone
		want time.Duration
	}{
		"the same":                  {[]peer{p2}, time.Second, lazyPause},
		"one is back":               {[]peer{p1, p2}, time.Second, 5 * time.Second},
		"one is back before it was": {[]peer{p1, p2}, 6 * time.Second, 6 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := trying(t, nil, zap.NewNop(), func() []string { return p2.addresses })
				s.learn([]peer{p2, {addresses: p2.addresses}})
				began := time.Now()
				s.holds["p2"], s.busy["p2:3022"], s.away["p1"], s.away["p1:3022"] = 1, 1, began.Add(c.away), began.Add(c.away)
				time.AfterFunc(5*time.Second, func() { s.learn(c.news) })
				pause := s.news(t.Context(), lazyPause)
				if got := time.Since(began); got != c.want || pause >= newsPause {
					t.Errorf("news after %v and %v more, want it after %v", got, pause, c.want)
				}
			})
		})
	}
}

// TestStopLetsClientsEnd: the links stay until the last connection is served.
func TestStopLetsClientsEnd(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode func(*proxyConfig)) {
		p := w.startProxy(mode)
		finish := make(chan struct{})
		stopping := make(chan struct{})
		stops := sync.OnceFunc(func() { close(stopping) }) // a slow machine serves the connection that came second, too
		n := w.startNode("n1", func(cfg *AgentConfig) {
			cfg.Serve = func(ctx context.Context, conn net.Conn) {
				inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
				defer cancel()
				go func() {
					<-ctx.Done()
					stops()
					<-finish
					cancel()
				}()
				echo(inner, conn)
			}
		}, p.addr)
		p.holds(n.id)
		c := p.dial(n.id)
		stopped := make(chan struct{})
		go func() { defer close(stopped); n.stop() }()
		<-stopping
		c.echo(t)
		if _, err := whoami(t.Context(), n.Authority()); err != nil {
			t.Errorf("the authority is out of reach while a client is served: %v", err)
		}
		select {
		case <-stopped:
			t.Error("Run returned while a client was served")
		default:
		}
		close(finish)
		<-stopped
		p.holds()
	})
}

func TestGate(t *testing.T) {
	var g gate
	if !g.enter(1) || g.enter(1) {
		t.Error("one, and only one, may enter")
	}
	empty := g.close()
	if g.enter(2) {
		t.Error("the gate is closed")
	}
	select {
	case <-empty:
		t.Error("somebody is inside")
	default:
	}
	g.leave()
	<-empty
	<-g.close()
}
