package reversetunnel

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/sshwire"
)

// Dial connects to node through its tunnel, for a client at from, whose address
// the node is told. What comes back carries raw bytes to the node's SSH server.
func (s *Server) Dial(ctx context.Context, node names.NodeID, from netip.AddrPort) (net.Conn, error) {
	t, err := s.enter(node)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := s.reach(ctx, t, from)
	if err != nil {
		s.leave(t)
		return nil, err
	}
	return s.track(t, conn), nil
}

// track returns conn, which is one of t's, as its user has it.
func (s *Server) track(t *tunnel, conn net.Conn) *nodeConn {
	c := &nodeConn{Conn: conn}
	c.heard = sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(t.silent, c)
	})
	c.done = sync.OnceFunc(func() {
		c.heard()
		s.leave(t)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.abandoned {
		conn.Close()
	}
	t.silent[c] = struct{}{}
	return c
}

// abandon removes t, whose node does not answer, and closes the connections of it
// that have not brought a byte: they were given out when it was dead already, and
// nothing else would tell their clients for as long as the kernel has patience.
func (s *Server) abandon(t *tunnel) {
	s.remove(t)
	s.mu.Lock()
	t.abandoned = true
	silent := slices.Collect(maps.Keys(t.silent))
	s.mu.Unlock()
	for _, c := range silent {
		_ = c.Conn.Close()
	}
}

// enter counts one more connection to node.
func (s *Server) enter(node names.NodeID) (*tunnel, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tunnels[node]
	switch {
	case s.stopped:
		return nil, errStopped
	case t == nil:
		return nil, fault.New(fault.Unavailable, "the node has no tunnel to this proxy")
	case t.live >= maxLive:
		return nil, fault.New(fault.Unavailable, "the node has %d connections already", maxLive)
	}
	t.live++
	return t, nil
}

func (s *Server) leave(t *tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.live--
}

// reach returns a warm connection, or the first of one dialled back and, a
// moment later, a channel.
func (s *Server) reach(ctx context.Context, t *tunnel, from netip.AddrPort) (net.Conn, error) {
	if !t.dialsBack {
		return s.awaitEither(ctx, t, newHeader(from), nil)
	}
	h := newHeader(from)
	for conn := s.take(t); conn != nil; conn = s.take(t) {
		if begin(conn, h) {
			return conn, nil
		}
	}
	arrival := s.await(t)
	defer s.forgo(t, arrival)
	return s.awaitEither(ctx, t, h, arrival)
}

// awaitEither waits for arrival alone at first, then for a channel too. Without
// arrival it asks for the channel at once.
func (s *Server) awaitEither(ctx context.Context, t *tunnel, h header, arrival <-chan net.Conn) (net.Conn, error) {
	ctx, lose := context.WithCancel(ctx)
	defer lose()
	head := time.Duration(0)
	if arrival != nil {
		head = raceAfter
	}
	fallback := time.NewTimer(head)
	defer fallback.Stop()
	var opened <-chan opening
	for {
		select {
		case conn := <-arrival:
			if begin(conn, h) {
				return conn, nil
			}
			arrival = nil
		case <-fallback.C:
			opened = s.open(ctx, t, h)
		case o := <-opened:
			if o.err == nil || arrival == nil {
				return o.conn, o.err
			}
			opened = nil
		case <-t.gone:
			return nil, fault.New(fault.Unavailable, "the node's tunnel went down")
		case <-ctx.Done():
			return nil, fault.Wrap(fault.Unavailable, context.Cause(ctx), "the node does not answer")
		}
	}
}

// begin tells the agent whom a data connection is for, which takes it into use.
func begin(conn net.Conn, h header) bool {
	err := conn.SetWriteDeadline(time.Now().Add(headerTimeout))
	if err == nil {
		_, err = conn.Write(h.marshal())
	}
	if err == nil {
		err = conn.SetWriteDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
	}
	return err == nil
}

// opening is what became of a channel open.
type opening struct {
	conn net.Conn
	err  error
}

// open opens a forwarded-tcpip channel for h's client. The agent may take its
// time, even for ever, so the wait ends with ctx and the channel, should it come,
// is closed.
func (s *Server) open(ctx context.Context, t *tunnel, h header) <-chan opening {
	out := make(chan opening)
	ok := s.spawn(func() {
		o := s.tryOpen(t, h)
		select {
		case out <- o:
		case <-ctx.Done():
			if o.err == nil {
				o.conn.Close()
			}
		}
	})
	if !ok {
		failed := make(chan opening, 1)
		failed <- opening{err: errStopped}
		return failed
	}
	return out
}

func (s *Server) tryOpen(t *tunnel, h header) opening {
	s.mu.Lock()
	full := t.opening >= maxOpening
	if !full {
		t.opening++
	}
	s.mu.Unlock()
	if full {
		return opening{err: fault.New(fault.Unavailable, "the node leaves %d channels unanswered", maxOpening)}
	}
	conn, err := s.channel(t, h)
	s.mu.Lock()
	t.opening--
	s.mu.Unlock()
	return opening{conn, err}
}

func (s *Server) channel(t *tunnel, h header) (net.Conn, error) {
	ch, reqs, err := t.conn.OpenChannel(sshwire.ChannelForwardedTCPIP, sshwire.ForwardedTCPIP{
		Addr: t.forward.Addr, Port: t.forward.Port,
		OriginAddr: h.from.Addr().String(), OriginPort: uint32(h.from.Port()),
	}.Marshal())
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the node takes no connection")
	}
	if !s.spawn(func() { ssh.DiscardRequests(reqs) }) { // extended data is sshserver's to discard
		ch.Close()
		return nil, errStopped
	}
	return rpc.ChannelConn(ch, t.conn.LocalAddr(), t.conn.RemoteAddr()), nil
}

// nodeConn is a connection to a node, counted until it is closed.
type nodeConn struct {
	net.Conn
	heard func() // something came
	done  func()
}

// Read reads what the node sends.
func (c *nodeConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard()
	}
	return n, err
}

// Close closes the connection.
func (c *nodeConn) Close() error {
	c.done()
	return c.Conn.Close()
}

// ReadMore reads what has come already, if the connection can tell; see
// [listener.Secure.ReadMore].
func (c *nodeConn) ReadMore(p []byte) int {
	if eager, ok := c.Conn.(interface{ ReadMore(p []byte) int }); ok {
		return eager.ReadMore(p)
	}
	return 0
}

// CloseWrite tells the node that nothing more comes. What has no half-close is
// closed.
func (c *nodeConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}
