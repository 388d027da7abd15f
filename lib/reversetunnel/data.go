package reversetunnel

import (
	"context"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/srv/listener"
)

// dataPlan is how to make data connections to a proxy.
type dataPlan struct {
	tls   bool    // with TLS, to the proxy that has the key
	plain bool    // without
	proxy keyHash // of the proxy's key
}

// spawn runs f in a goroutine that the agent's end waits for, unless it is
// near.
func (a *Agent) spawn(f func()) bool {
	if !a.served.enter(maxServed * a.cfg.Proxies) {
		return false
	}
	go func() {
		defer a.served.leave()
		f()
	}()
	return true
}

// serve hands conn to who serves clients.
func (a *Agent) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	a.cfg.Serve(ctx, conn)
}

// dialBack makes one data connection for a ticket, keeps it warm while the link
// is up and serves the client it is used for.
func (l *link) dialBack(ctx, live context.Context, secret []byte) {
	a := l.agent
	if !l.data.tls && !l.data.plain || a.cfg.NoDialBack {
		return
	}
	a.spawn(func() {
		warm, cool := context.WithCancel(live)
		defer cool()
		defer context.AfterFunc(ctx, cool)()
		conn, err := l.present(warm, secret)
		if err != nil {
			a.log.Debug("no data connection", zap.String("proxy", l.addr), zap.Error(err))
			return
		}
		stop := context.AfterFunc(warm, func() { conn.Close() })
		h, err := readHeader(conn)
		if !stop() || err != nil {
			conn.Close()
			return
		}
		a.log.Debug("data connection in use", zap.Binary("connection", h.id[:]), zap.Stringer("client", h.from))
		a.serve(ctx, &clientConn{Conn: conn, from: h.from})
	})
}

// present dials the proxy and shows the ticket.
func (l *link) present(ctx context.Context, secret []byte) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, ticketTTL)
	defer cancel()
	select {
	case l.agent.dialing <- struct{}{}:
		defer func() { <-l.agent.dialing }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	raw, err := l.agent.cfg.Dial(ctx, l.addr)
	if err != nil {
		return nil, err
	}
	conn, err := l.greet(ctx, raw, secret)
	if err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// greet makes raw a data connection.
func (l *link) greet(ctx context.Context, raw net.Conn, secret []byte) (net.Conn, error) {
	deadline, _ := ctx.Deadline()
	if err := raw.SetDeadline(deadline); err != nil {
		return nil, err
	}
	conn, first := raw, append([]byte(listener.DataPreface), secret...)
	if !l.data.plain {
		secure := listener.SecureClient(raw, l.agent.key.client(l.data.proxy))
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		conn, first = secure, secret
	}
	if _, err := conn.Write(first); err != nil {
		return nil, err
	}
	return conn, raw.SetDeadline(time.Time{})
}

// clientConn is a connection whose peer is a client of the proxy.
type clientConn struct {
	net.Conn
	from netip.AddrPort
}

// RemoteAddr returns the client's address, as the proxy attests it.
func (c *clientConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.from) }

// CloseWrite tells the client that nothing more comes.
func (c *clientConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}
