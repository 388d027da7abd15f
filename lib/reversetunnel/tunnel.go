package reversetunnel

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/srv/listener"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshwire"
)

// tunnel is one node's control connection and what belongs to it.
type tunnel struct {
	node      names.NodeID
	conn      *sshserver.Conn
	forward   sshwire.TCPIPForward
	key       keyHash // of the agent's TLS key
	dialsBack bool    // the agent dials data connections
	since     time.Time
	probe     time.Duration // how long it may take to show that it lives; see [Server.answers]

	end  context.CancelCauseFunc // ends the Attach call
	wake chan struct{}           // a ticket may be missing
	gone chan struct{}           // closed when removed

	// Guarded by Server.mu.
	removed   bool
	abandoned bool                   // removed because the node does not answer
	silent    map[*nodeConn]struct{} // connections in use that have not brought a byte
	idle      []net.Conn             // warm data connections, the freshest last
	waiting   []chan net.Conn        // who waits for one, in order; each with room for it
	tickets   []ticketHash           // issued and not used, the oldest first
	live      int                    // connections in use
	opening   int                    // channel opens without an answer
}

// tunnelOf returns the tunnel of the node at the other end of c, which has no
// forward yet.
func tunnelOf(c *sshserver.Conn, end context.CancelCauseFunc, probe time.Duration) *tunnel {
	return &tunnel{
		node: c.Identity.Member, conn: c, end: end, since: time.Now(), probe: probe,
		wake: make(chan struct{}, 1), gone: make(chan struct{}), silent: map[*nodeConn]struct{}{},
	}
}

// ticket is what the server keeps of a ticket.
type ticket struct {
	of      *tunnel
	expires time.Time
}

func (t *tunnel) fields() []zap.Field {
	return []zap.Field{
		zap.String("node", string(t.conn.Identity.MemberName)), zap.String("node_id", string(t.node)), zap.Stringer("remote", t.conn.Remote),
	}
}

// poke makes the Attach call look for missing tickets.
func (t *tunnel) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *tunnel) closeIdleLocked() {
	for _, c := range t.idle {
		c.Close()
	}
	t.idle = nil
}

// answers reports whether the node at the other end still answers. The request
// waits behind any other on the connection, so no answer in time is the only
// thing that can be observed of a dead link.
func (s *Server) answers(ctx context.Context, t *tunnel) bool {
	answered := make(chan bool, 1)
	s.spawn(func() { // ends with the connection at the latest
		_, _, err := t.conn.SendRequest(sshwire.RequestKeepalive, true, nil)
		answered <- err == nil
	})
	timer := time.NewTimer(t.probe)
	defer timer.Stop()
	select {
	case ok := <-answered:
		return ok
	case <-t.gone:
	case <-timer.C:
	case <-ctx.Done():
		return true // nobody asks any more
	}
	return false
}

// issue makes the tickets that t lacks: for its warm connections and for every
// client that waits.
func (s *Server) issue(t *tunnel) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !t.dialsBack || t.removed {
		return nil
	}
	now := time.Now()
	t.tickets = slices.DeleteFunc(t.tickets, func(h ticketHash) bool {
		k, unused := s.tickets[h]
		if unused && now.After(k.expires) {
			delete(s.tickets, h)
			unused = false
		}
		return !unused
	})
	var fresh [][]byte
	lacking := max(s.cfg.Pool, 0) + len(t.waiting) - len(t.idle) - len(t.tickets)
	for range min(lacking, maxTickets-len(t.tickets)) {
		secret := make([]byte, ticketSize)
		_, _ = rand.Read(secret) // never fails
		h := ticketHash(sha256.Sum256(secret))
		s.tickets[h] = ticket{of: t, expires: now.Add(ticketTTL)}
		t.tickets = append(t.tickets, h)
		fresh = append(fresh, secret)
	}
	return fresh
}

// redeem returns the tunnel a ticket was issued for. It works once.
func (s *Server) redeem(secret []byte) *tunnel {
	h := ticketHash(sha256.Sum256(secret))
	s.mu.Lock()
	defer s.mu.Unlock()
	k, ok := s.tickets[h]
	if !ok {
		return nil
	}
	delete(s.tickets, h)
	k.of.tickets = slices.DeleteFunc(k.of.tickets, func(other ticketHash) bool { return other == h })
	if time.Now().After(k.expires) {
		return nil
	}
	return k.of
}

// admit takes one data connection into the tunnel its ticket names, or closes
// it.
func (s *Server) admit(conn net.Conn) {
	if !s.mayProve() {
		s.log.Warn("data connection refused: too many have not shown their ticket", zap.Int("limit", maxUnproven))
		conn.Close()
		return
	}
	t, err := s.prove(conn)
	s.mu.Lock()
	s.unproven--
	s.mu.Unlock()
	if err != nil {
		s.log.Info("data connection refused", zap.Stringer("remote", conn.RemoteAddr()), zap.Error(err))
		conn.Close()
		return
	}
	if g, ok := conn.(listener.Guard); ok {
		g.Authenticated()
	}
	s.put(t, conn)
}

func (s *Server) mayProve() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unproven >= maxUnproven {
		return false
	}
	s.unproven++
	return true
}

// prove reads the ticket and holds it against the key the peer has shown.
func (s *Server) prove(conn net.Conn) (*tunnel, error) {
	if err := conn.SetReadDeadline(time.Now().Add(proofTimeout)); err != nil {
		return nil, err
	}
	secret := make([]byte, ticketSize)
	if _, err := io.ReadFull(conn, secret); err != nil {
		return nil, err
	}
	t := s.redeem(secret)
	if t == nil {
		return nil, fault.New(fault.Denied, "the ticket is unknown, used or expired")
	}
	if !s.cfg.Plain {
		state := tlsState(conn)
		if state == nil || peerHash(*state) != t.key {
			return nil, fault.New(fault.Denied, "the ticket came with another node's key")
		}
	}
	return t, conn.SetReadDeadline(time.Time{})
}

// tlsState returns the TLS session of a connection the listener gave out.
func tlsState(conn net.Conn) *tls.ConnectionState {
	if c, ok := conn.(interface{ TLS() *tls.ConnectionState }); ok {
		return c.TLS()
	}
	return nil
}

// put gives conn to the client that has waited longest, or keeps it warm.
func (s *Server) put(t *tunnel, conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case t.removed, s.stopped:
		conn.Close()
	case len(t.waiting) > 0:
		t.waiting[0] <- conn // has room
		t.waiting = t.waiting[1:]
	case len(t.idle) < s.cfg.Pool:
		t.idle = append(t.idle, conn)
	default: // its client got a channel meanwhile
		conn.Close()
	}
}

// take returns a warm connection that still stands, or nil, and has what was
// taken made up for.
func (s *Server) take(t *tunnel) net.Conn {
	defer t.poke()
	for {
		s.mu.Lock()
		n := len(t.idle)
		if n == 0 {
			s.mu.Unlock()
			return nil
		}
		conn := t.idle[n-1]
		t.idle = t.idle[:n-1]
		s.mu.Unlock()
		if stands(conn) {
			return conn
		}
		conn.Close()
	}
}

// glance is how long stands waits for bytes that should not come: long enough
// for one look at the socket.
const glance = 100 * time.Microsecond

// stands reports whether the agent at the other end of a warm connection has
// neither closed it nor sent anything, which is not its turn.
func stands(conn net.Conn) bool {
	if conn.SetReadDeadline(time.Now().Add(glance)) != nil {
		return false
	}
	var b [1]byte
	if _, err := conn.Read(b[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	return conn.SetReadDeadline(time.Time{}) == nil
}

// await queues for a data connection.
func (s *Server) await(t *tunnel) chan net.Conn {
	arrival := make(chan net.Conn, 1)
	s.mu.Lock()
	t.waiting = append(t.waiting, arrival)
	s.mu.Unlock()
	t.poke()
	return arrival
}

// forgo leaves the queue. A connection that came in the last moment serves the
// next.
func (s *Server) forgo(t *tunnel, arrival chan net.Conn) {
	s.mu.Lock()
	t.waiting = slices.DeleteFunc(t.waiting, func(w chan net.Conn) bool { return w == arrival })
	s.mu.Unlock()
	select {
	case conn := <-arrival:
		s.put(t, conn)
	default:
	}
}
