package proxy

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
)

// reach returns the transport of an SSH connection to node, of whatever kind, for
// a client at from. ctx bounds the time that takes; from then on the connection
// lives until it is closed or life ends.
func (s *Server) reach(ctx, life context.Context, node services.Node, from netip.AddrPort) (net.Conn, error) {
	if node.Kind != services.NodeSSHD {
		return s.dial(ctx, node, from)
	}
	if err := s.canForward(node); err != nil {
		return nil, err
	}
	here := &net.TCPAddr{IP: net.IPv6loopback}
	near, far := newPipe(net.TCPAddrFromAddrPort(from), here)
	s.forwards.Go(func() {
		defer context.AfterFunc(life, func() { far.Close() })()
		s.serveNode(life, far, node)
	})
	return near, nil
}

// canForward refuses a plain sshd node where there is nothing to serve it.
func (s *Server) canForward(node services.Node) error {
	if s.cfg.Forwarder == nil {
		return fault.New(fault.Unavailable, "node %q runs plain sshd, which this proxy does not reach", node.Name)
	}
	return nil
}

// forwardTo serves nc, the client's way to a plain sshd node, until it ends. It
// returns an error only while nc is not accepted.
func (s *Server) forwardTo(ctx context.Context, b *bridge, node services.Node, nc ssh.NewChannel) error {
	if err := s.canForward(node); err != nil {
		return err
	}
	ch, done, err := accept(nc)
	if err != nil {
		return nil // the client is gone; there is nobody to tell
	}
	defer done()
	defer context.AfterFunc(ctx, func() { ch.Close() })()
	conn := countedConn{
		Conn: rpc.ChannelConn(ch, b.conn.LocalAddr(), net.TCPAddrFromAddrPort(b.conn.Remote)),
		in:   &b.who.in, out: &b.who.out,
	}
	s.serveNode(ctx, conn, node)
	s.explain(ctx, b, node)
	return nil
}

// serveNode serves conn as node until it ends. When the server is to stop,
// nothing new begins on conn.
func (s *Server) serveNode(ctx context.Context, conn net.Conn, node services.Node) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(s.live.serving, stop)()
	if err := s.cfg.Forwarder.ServeNode(ctx, conn, node); err != nil {
		s.log.Debug("forwarded connection ended", zap.String("node", string(node.Name)), zap.Error(err))
	}
}

// countedConn counts the bytes of a person's connection.
type countedConn struct {
	net.Conn
	in, out *atomic.Int64
}

// Read implements [net.Conn].
func (c countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.in.Add(int64(n))
	return n, err
}

// Write implements [net.Conn].
func (c countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.out.Add(int64(n))
	return n, err
}
