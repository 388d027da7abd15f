package sshserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	gliderlabs "github.com/gliderlabs/ssh"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/srv/listener"
)

// Serve accepts connections from ln until ctx ends, then stops accepting, gives
// open channels Grace to finish, cuts what is left and returns once no handler
// runs. It always closes ln, whose Accept is expected to get over what the
// system fails at for a while, as that of lib/srv/listener does.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	live, stop := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	defer ln.Close()
	var conns sync.WaitGroup
	for {
		nc, err := ln.Accept()
		if err != nil {
			orderly := ctx.Err() != nil
			stop()
			conns.Wait()
			if orderly {
				return nil
			}
			return fmt.Errorf("accept SSH connections on %v: %w", ln.Addr(), err)
		}
		conns.Go(func() {
			if err := s.ServeConn(live, nc); err != nil {
				s.cfg.Log.Debug("connection ended", zap.Stringer("remote", nc.RemoteAddr()), zap.Error(err))
			}
		})
	}
}

// ServeConn serves one connection and returns when it has ended and none of its
// handlers runs. The end of ctx has the effect it has on Serve. It always closes
// nc. The error is nil when the peer had authenticated and then left, or the
// server stopped.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error {
	s.metrics.open.Inc()
	defer s.metrics.open.Dec()
	c := s.newConn(ctx, nc)
	c.mu.Lock()
	c.deadline = time.AfterFunc(s.cfg.Limits.KexTimeout, c.expire)
	c.mu.Unlock()
	defer context.AfterFunc(ctx, c.stop)()

	err := c.run()
	c.finish()
	if cause := context.Cause(c.ctx); !errors.Is(cause, net.ErrClosed) { //nolint:contextcheck // the connection's own
		err = cause // we ended it, and know why
	}
	if c.panicked.Load() {
		err = errPanic
	}
	if c.ServerConn == nil {
		c.blame(err)
		return err
	}
	if left(err) || errors.Is(err, ErrShutdown) {
		err = nil
	}
	if c.opened && s.cfg.Closed != nil {
		s.cfg.Closed(c, err)
	}
	return err
}

// run exchanges identifications and then serves the connection until it ends.
func (c *Conn) run() error {
	defer c.recovered()
	line, err := identify(c.net)
	if err != nil {
		return err
	}
	c.version = strings.TrimRight(line, "\r\n")
	cfg, err := c.config()
	if err != nil {
		return err
	}
	var failure error
	loop := &gliderlabs.Server{
		ChannelHandlers: c.server.channels,
		RequestHandlers: c.server.requests,
		ConnCallback: func(ctx gliderlabs.Context, nc net.Conn) net.Conn {
			ctx.SetValue(connKey{}, c)
			return &wire{Conn: nc, c: c, ctx: ctx, replay: line}
		},
		ServerConfigCallback:     func(gliderlabs.Context) *ssh.ServerConfig { return cfg },
		ConnectionFailedCallback: func(_ net.Conn, err error) { failure = err },
	}
	loop.HandleConn(c.net)
	if c.ServerConn != nil {
		return c.Wait()
	}
	return failure
}

// left reports whether an error is only the peer having gone.
func left(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, io.ErrClosedPipe) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || disconnected(err)
}

// disconnected reports whether the peer took leave with SSH_MSG_DISCONNECT.
// x/crypto returns the message without exporting its type.
func disconnected(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "ssh: disconnect, reason ")
}

// blame tells the listener how a connection ended that has not authenticated.
func (c *Conn) blame(err error) {
	o := c.offence(err)
	result := "stopped"
	if o != 0 {
		result = o.String()
		c.Penalize(o)
	}
	c.server.metrics.handshakes.WithLabelValues(result).Inc()
}

func (c *Conn) offence(err error) listener.Offence {
	_, authError := errors.AsType[*ssh.ServerAuthError](err)
	_, noCommon := errors.AsType[*ssh.AlgorithmNegotiationError](err)
	switch {
	case errors.Is(err, ErrShutdown), errors.Is(err, errPanic):
		return 0 // not the peer's doing, as far as we know
	case errors.Is(err, errTimeout):
		return listener.OffenceGrace
	case c.auth.failures > 0:
		return listener.OffenceAuthFailed
	case authError, noCommon, left(err):
		return listener.OffenceNoAuth
	}
	return listener.OffenceProtocol
}
