package reversetunnel

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/srv/listener"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
)

// holder registers a tunnel that no agent serves, and returns it with one fresh
// ticket.
func holder(t *testing.T, s *Server, key keyHash) (*tunnel, []byte) {
	t.Helper()
	tun := &tunnel{
		node: names.NewNodeID(), key: key, dialsBack: true, conn: &sshserver.Conn{Identity: &sshca.Identity{}},
		wake: make(chan struct{}, 1), gone: make(chan struct{}),
	}
	s.mu.Lock()
	s.tunnels[tun.node] = tun
	s.mu.Unlock()
	t.Cleanup(func() { s.remove(tun) })
	tickets := s.issue(tun)
	if len(tickets) != s.cfg.Pool {
		t.Fatalf("%d tickets, want %d", len(tickets), s.cfg.Pool)
	}
	return tun, tickets[0]
}

// present makes a data connection as a node would.
func present(t *testing.T, p *proxy, key *dataKey, secret []byte) net.Conn {
	t.Helper()
	raw, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	conn := raw
	if p.server.key == nil {
		secret = append([]byte(listener.DataPreface), secret...)
	} else {
		conn = tls.Client(raw, key.client(p.server.key.hash))
	}
	if _, err := conn.Write(secret); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestTickets: each is good once, in time, for whom it was issued.
func TestTickets(t *testing.T) {
	mine, err := newDataKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := newDataKey()
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		show func(secret []byte) []byte
		key  *dataKey
		age  time.Duration
		good bool
	}{
		"good":           {good: true},
		"of no one":      {show: func([]byte) []byte { return make([]byte, ticketSize) }},
		"one bit off":    {show: func(s []byte) []byte { s[31] ^= 1; return s }},
		"other node key": {key: other},
		"expired":        {age: ticketTTL + time.Second},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := w.startProxy(nil)
			tun, secret := holder(t, p.server, mine.hash)
			p.age(tc.age)
			if tc.show != nil {
				secret = tc.show(secret)
			}
			key := mine
			if tc.key != nil {
				key = tc.key
			}
			conn := present(t, p, key, secret)
			if tc.good {
				p.warm(tun.node, 1)
				return
			}
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				t.Error("the connection was not closed")
			}
			p.warm(tun.node, 0)
		})
	}
}

// age makes every ticket older.
func (p *proxy) age(by time.Duration) {
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	for h, k := range p.server.tickets {
		k.expires = k.expires.Add(-by)
		p.server.tickets[h] = k
	}
}

// TestTicketReplay shows one ticket twice, with TLS and without.
func TestTicketReplay(t *testing.T) {
	for _, name := range []string{"tls", "plain"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := w.startProxy(modes[name])
			key, err := newDataKey()
			if err != nil {
				t.Fatal(err)
			}
			tun, secret := holder(t, p.server, key.hash)
			present(t, p, key, secret)
			p.warm(tun.node, 1)
			if _, err := present(t, p, key, secret).Read(make([]byte, 1)); err == nil {
				t.Error("a used ticket was taken")
			}
			p.warm(tun.node, 1)
		})
	}
}

// TestTicketsAreBounded: clients that wait do not make tickets without end, and
// old ones make room.
func TestTicketsAreBounded(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(nil)
	tun, _ := holder(t, p.server, keyHash{})
	for range 4 * maxTickets {
		p.server.await(tun)
	}
	p.server.issue(tun)
	if n := len(p.server.tickets); n != maxTickets {
		t.Errorf("%d tickets are out, want %d", n, maxTickets)
	}
	if more := p.server.issue(tun); len(more) != 0 {
		t.Errorf("%d tickets beyond the bound", len(more))
	}
	p.age(ticketTTL + time.Second)
	if more := p.server.issue(tun); len(more) != maxTickets || len(p.server.tickets) != maxTickets {
		t.Errorf("%d tickets replace %d expired ones, %d are kept", len(more), maxTickets, len(p.server.tickets))
	}
	p.server.remove(tun)
	if n := len(p.server.tickets); n != 0 {
		t.Errorf("%d tickets outlived their tunnel", n)
	}
}

// pipeListener gives out what is sent to it.
type pipeListener struct {
	net.Listener
	conns chan net.Conn
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

// TestUnprovenDataConnections: so many may keep their ticket back, for so long.
func TestUnprovenDataConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := NewServer(ServerConfig{ID: "p", Events: newRecorder(), Directory: newDirectory(), Plain: true, Log: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		ln := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
		served := make(chan error, 1)
		go func() { served <- s.Serve(t.Context(), ln) }()
		began := time.Now()
		var silent []net.Conn
		for range maxUnproven {
			near, far := net.Pipe()
			ln.conns <- far
			silent = append(silent, near)
		}
		synctest.Wait()
		near, far := net.Pipe()
		ln.conns <- far
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(began) != 0 {
			t.Errorf("one too many: %v after %v, want an end at once", err, time.Since(began))
		}
		for _, c := range silent {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("silent connection: %v, want its end", err)
			}
		}
		if got := time.Since(began); got != proofTimeout {
			t.Errorf("silent connections ended after %v, want %v", got, proofTimeout)
		}
		ln.Close()
		if err := <-served; err != nil || s.unproven != 0 {
			t.Errorf("Serve = %v with %d connections counted", err, s.unproven)
		}
	})
}
