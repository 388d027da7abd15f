package listener

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Conn is a connection as the listener gives it out. RemoteAddr is the client's
// address: behind a trusted load balancer the one its PROXY header attests.
type Conn struct {
	net.Conn // the socket, or TLS on it

	socket net.Conn
	remote net.Addr
	relay  netip.AddrPort
	tls    *tls.ConnectionState
	place  *place
	l      *Listener

	timer  atomic.Pointer[time.Timer] // closes a data connection that does not authenticate
	closed sync.Once
}

var _ Guard = (*Conn)(nil)

// RemoteAddr returns the client's address.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// Relay returns the address of the load balancer that attested RemoteAddr, or
// the zero AddrPort.
func (c *Conn) Relay() netip.AddrPort { return c.relay }

// TLS returns the state of the TLS session the connection is inside of, or nil.
func (c *Conn) TLS() *tls.ConnectionState { return c.tls }

// Close closes the connection and frees its place. It does not wait for the
// peer: inside TLS no close_notify is sent but to HTTP clients, since what else
// is inside brings its own integrity.
func (c *Conn) Close() error {
	err := net.ErrClosed
	c.closed.Do(func() {
		c.stopTimer()
		c.place.free()
		if c.tls != nil && c.tls.NegotiatedProtocol != ALPNSSH && c.tls.NegotiatedProtocol != ALPNData {
			err = c.Conn.Close()
			return
		}
		err = c.socket.Close()
	})
	return err
}

// CloseWrite tells the peer that nothing more comes, and leaves reading as it is.
func (c *Conn) CloseWrite() error {
	if t, ok := c.Conn.(*Secure); ok {
		return t.CloseWrite()
	}
	if s, ok := c.socket.(interface{ CloseWrite() error }); ok {
		return s.CloseWrite()
	}
	return errors.ErrUnsupported
}

// ReadMore reads what has come already; see [Secure.ReadMore].
func (c *Conn) ReadMore(p []byte) int {
	if t, ok := c.Conn.(*Secure); ok {
		return t.ReadMore(p)
	}
	return 0
}

// KexDone implements [Guard]. The end of the key exchange changes nothing here:
// who serves the connection holds it to its deadlines.
func (c *Conn) KexDone() {}

// Parked implements [Guard].
func (c *Conn) Parked() error { return c.place.park() }

// Authenticated implements [Guard].
func (c *Conn) Authenticated() {
	c.stopTimer()
	c.place.free()
}

func (c *Conn) stopTimer() {
	if t := c.timer.Load(); t != nil {
		t.Stop()
	}
}

// Penalize implements [Guard].
func (c *Conn) Penalize(o Offence) {
	c.l.metrics.offences.WithLabelValues(o.String()).Inc()
	if c.place.penalize(o) {
		c.l.cfg.Log.Info("source is refused for a while", zap.Stringer("source", c.place.source), zap.Stringer("offence", o))
	}
}

// prefixed gives out what was read ahead of a connection before the rest of it.
type prefixed struct {
	net.Conn
	ahead *bufio.Reader // nil once it is empty
}

// Read is called by one goroutine at a time, as with any stream.
func (p *prefixed) Read(b []byte) (int, error) {
	if p.ahead != nil {
		if p.ahead.Buffered() > 0 {
			return p.ahead.Read(b)
		}
		p.ahead = nil
	}
	return p.Conn.Read(b)
}
