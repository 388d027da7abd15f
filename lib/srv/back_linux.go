package srv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/relay"
	"github.com/accessd/accessd/lib/srv/child"
	"github.com/accessd/accessd/lib/sshwire"
)

const (
	// firstDisplay and lastDisplay bound the displays of sessions (sshd_config(5),
	// X11DisplayOffset).
	firstDisplay, lastDisplay = 10, 1010
	// displayPort is the TCP port of display 0.
	displayPort = 6000
	// xauth puts cookies where clients of a display find them (xauth(1)).
	xauth = "/usr/bin/xauth"
)

// back is what listens on the node on behalf of one session's client: for its
// agent and its display. It is there as long as the session's process.
type back struct {
	env []string // tells the process where

	open   Opener
	log    *zap.Logger
	ctx    context.Context //nolint:containedctx // lives as long as the process
	cancel context.CancelFunc
	once   sync.Once
	ears   []net.Listener
	work   sync.WaitGroup
}

// openBack opens what c asks for. What cannot be had is left out, as sshd does,
// and the process does without.
func (l *Local) openBack(ctx context.Context, p person, c Command) *back {
	b := &back{open: c.Open, log: l.cfg.Log}
	b.ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if c.Agent {
		if err := l.openAgent(ctx, b, p); err != nil {
			l.cfg.Log.Warn("no agent for a session", zap.String("login", p.name), zap.Error(err))
		}
	}
	if c.X11 != nil {
		if err := l.openDisplay(ctx, b, p, *c.X11); err != nil {
			l.cfg.Log.Warn("no display for a session", zap.String("login", p.name), zap.Error(err))
		}
	}
	return b
}

// close ends it; a second call has no effect.
func (b *back) close() {
	b.once.Do(func() {
		b.cancel()
		for _, ln := range b.ears {
			if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				b.log.Info("a listener of a session was not removed", zap.Error(err))
			}
		}
		b.work.Wait()
	})
}

// serve carries what connects to ln to the client until it is closed; opening
// returns the channel's type and extra data. After that many connections it is
// closed; 0 means no bound.
func (b *back) serve(ln net.Listener, opening func(from net.Addr) (kind string, payload []byte), most int) {
	b.ears = append(b.ears, ln)
	b.work.Go(func() {
		for n := 0; most == 0 || n < most; n++ {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			b.work.Go(func() { b.carry(conn, opening) })
		}
		ln.Close()
	})
}

func (b *back) carry(conn net.Conn, opening func(from net.Addr) (kind string, payload []byte)) {
	defer conn.Close()
	kind, payload := opening(conn.RemoteAddr())
	ch, err := b.channel(kind, payload)
	if err != nil {
		b.log.Info("a connection to a client's agent or display was refused", zap.String("kind", kind), zap.Error(err))
		return
	}
	relay.Pipe(b.ctx, conn, ch)
}

// channel opens a channel to the client. A client may never answer; then only the
// end of its connection does, for which the end of a session does not wait.
func (b *back) channel(kind string, payload []byte) (ssh.Channel, error) {
	opened, failed := make(chan ssh.Channel), make(chan error)
	go func() { // ends with the client's answer, at the latest when its connection does
		ch, err := b.open(kind, payload)
		if err != nil {
			select {
			case failed <- err:
			case <-b.ctx.Done():
			}
			return
		}
		select {
		case opened <- ch:
		case <-b.ctx.Done():
			_ = ch.Close() // nobody wants it any more
		}
	}()
	select {
	case ch := <-opened:
		return ch, nil
	case err := <-failed:
		return nil, err
	case <-b.ctx.Done():
		return nil, context.Cause(b.ctx)
	}
}

// openAgent opens a socket that leads to the client's agent. It is in a directory
// that is the login's alone.
func (l *Local) openAgent(ctx context.Context, b *back, p person) error {
	ln, err := l.listening(ctx, p, child.Agent)
	if err != nil {
		return err
	}
	b.env = append(b.env, "SSH_AUTH_SOCK="+ln.path)
	b.serve(ln, func(net.Addr) (kind string, payload []byte) { return sshwire.ChannelAgent, nil }, 0)
	return nil
}

// openDisplay opens a display that leads to the client's and tells xauth(1) its
// cookie, which the client made up for this session.
func (l *Local) openDisplay(ctx context.Context, b *back, p person, x sshwire.X11Request) error {
	n, ln, err := listenDisplay(ctx)
	if err != nil {
		return err
	}
	// The name under which clients look for the cookie of a display on this host.
	name := fmt.Sprintf("unix:%d.%d", n, x.Screen)
	cookie := fmt.Sprintf("remove %s\nadd %s %s %s\n", name, name, x.Protocol, x.Cookie)
	if err := l.run(ctx, p, errand{path: xauth, args: []string{xauth, "-q", "-"}, stdin: cookie}); err != nil {
		ln.Close()
		return fmt.Errorf("xauth: %w", err)
	}
	b.env = append(b.env, fmt.Sprintf("DISPLAY=localhost:%d.%d", n, x.Screen))
	most := 0
	if x.SingleConnection {
		most = 1
	}
	b.serve(ln, func(from net.Addr) (kind string, payload []byte) {
		open := sshwire.X11Open{OriginAddr: "127.0.0.1"}
		if at, err := netip.ParseAddrPort(from.String()); err == nil {
			open.OriginAddr, open.OriginPort = at.Addr().Unmap().String(), uint32(at.Port())
		}
		return sshwire.ChannelX11, open.Marshal()
	}, most)
	return nil
}

// listenDisplay returns the first display that is free on loopback.
func listenDisplay(ctx context.Context) (int, net.Listener, error) {
	for n := firstDisplay; n < lastDisplay; n++ {
		first, err := listenOn(ctx, "127.0.0.1", uint16(displayPort+n))
		if err != nil {
			continue
		}
		second, err := listenOn(ctx, "::1", uint16(displayPort+n))
		if err != nil {
			return n, first, nil //nolint:nilerr // there is no IPv6 here
		}
		return n, newBoth(first, second), nil
	}
	return 0, nil, errors.New("no display is free")
}
