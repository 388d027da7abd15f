package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshwire"
)

// listenKey is what a connection that the sshd forwards names of its listener.
type listenKey struct {
	host string // as it was asked for
	port uint16
	path string
}

// Listen implements [srv.Executor].
func (x *Executor) Listen(ctx context.Context, a srv.Account, e srv.Endpoint) (net.Listener, error) {
	f := x.shared(a.Login)
	if err := f.enter(ctx); err != nil {
		return nil, err
	}
	defer f.leave()
	l, err := f.connect(ctx)
	if err != nil {
		return nil, err
	}
	if _, taken := f.find(l.Conn, listenKey{e.Host, e.Port, e.Path}); taken {
		return nil, fault.New(fault.Conflict, "this connection listens on %q already", e)
	}
	port, err := l.listen(ctx, e)
	if err != nil {
		return nil, err
	}
	bound := srv.Endpoint{Host: e.Host, Port: port, Path: e.Path}
	s := &listener{
		f: f, link: l, bound: bound, key: listenKey{bound.Host, bound.Port, bound.Path},
		offers: make(chan *offer), done: make(chan struct{}),
	}
	if !f.add(s) { // an sshd that gave the same port twice
		s.cancel()
		return nil, fault.New(fault.Conflict, "the sshd of node %q gave %q twice", l.node, bound)
	}
	return s, nil
}

// listen asks the sshd to listen on e and returns the port, which the sshd may
// have chosen (RFC 4254, section 7.1; OpenSSH PROTOCOL, section 2.4). An sshd
// that does not answer loses the connection.
func (l *link) listen(ctx context.Context, e srv.Endpoint) (port uint16, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, loginTimeout,
		fault.New(fault.Unavailable, "the sshd of node %q does not answer", l.node))
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Cut(context.Cause(ctx)) })()
	name, payload := sshwire.RequestTCPIPForward, sshwire.TCPIPForward{Addr: e.Host, Port: uint32(e.Port)}.Marshal()
	if e.Path != "" {
		name, payload = sshwire.RequestStreamlocalForward, sshwire.StreamlocalForward{Path: e.Path}.Marshal()
	}
	ok, answer, err := l.SendRequest(name, true, payload)
	switch cause := context.Cause(ctx); {
	case cause != nil:
		return 0, cause
	case err != nil:
		return 0, fault.Wrap(fault.Unavailable, err, fmt.Sprintf("the sshd of node %q ended the connection", l.node))
	case !ok:
		return 0, fault.New(fault.Unavailable, "the sshd of node %q does not listen on %q", l.node, e)
	case e.Path != "" || e.Port != 0:
		return e.Port, nil
	}
	reply, err := sshwire.ParseTCPIPForwardReply(answer)
	if err == nil && reply.Port == 0 {
		err = errors.New("port 0 is none")
	}
	if err != nil {
		err = fault.Wrap(fault.Unavailable, err, fmt.Sprintf("the sshd of node %q does not say where it listens", l.node))
		l.Cut(err)
		return 0, err
	}
	return uint16(reply.Port), nil // the parser has bounded it
}

// add makes s known, unless there is one like it.
func (f *forwards) add(s *listener) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.listeners[s.key]; old != nil && old.link == s.link {
		return false
	}
	f.listeners[s.key] = s
	return true
}

// find returns the listener of key on c.
func (f *forwards) find(c *sshserver.Conn, key listenKey) (*listener, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.listeners[key]
	return s, s != nil && s.link.Conn == c
}

// forwarded serves a channel that the sshd opens for a connection that came to
// one of the listeners (RFC 4254, section 7.2; OpenSSH PROTOCOL, section 2.4).
func (f *forwards) forwarded(c *sshserver.Conn, nc ssh.NewChannel) {
	key, origin, err := came(nc)
	if err != nil {
		nc.Reject(ssh.ConnectionFailed, "malformed channel open")
		return
	}
	s, ok := f.find(c, key)
	if !ok {
		// It may come before the answer to the request, which then has the turn.
		if f.enter(c.Context()) != nil {
			return
		}
		f.leave()
		s, ok = f.find(c, key)
	}
	if !ok {
		nc.Reject(ssh.Prohibited, "nothing listens there")
		return
	}
	o := &offer{nc: nc, origin: origin, done: make(chan struct{})}
	select {
	case s.offers <- o:
	case <-s.done:
		nc.Reject(ssh.Prohibited, "nothing listens there")
		return
	case <-c.Context().Done():
		return
	}
	select {
	case <-o.done:
	case <-c.Context().Done():
	}
}

// came returns which listener nc is for, and where the connection comes from.
func came(nc ssh.NewChannel) (listenKey, net.Addr, error) {
	if nc.ChannelType() == sshwire.ChannelForwardedStreamlocal {
		x, err := sshwire.ParseForwardedStreamlocal(nc.ExtraData())
		return listenKey{path: x.Path}, &net.UnixAddr{Net: "unix"}, err
	}
	x, err := sshwire.ParseForwardedTCPIP(nc.ExtraData())
	origin := sshwire.ParseOrigin(x.OriginAddr, x.OriginPort)
	return listenKey{host: x.Addr, port: uint16(x.Port)}, net.TCPAddrFromAddrPort(origin), err // the parser has bounded the port
}

// offer is a connection that came to a listener.
type offer struct {
	nc     ssh.NewChannel
	origin net.Addr
	done   chan struct{} // closed when nobody needs it any more
}

// listener is where the sshd listens.
type listener struct {
	f      *forwards
	link   *link
	bound  srv.Endpoint
	key    listenKey
	offers chan *offer

	closing sync.Once
	done    chan struct{} // closed by Close
}

// Accept implements [net.Listener].
func (s *listener) Accept() (net.Conn, error) {
	for {
		select {
		case o := <-s.offers:
			release := sync.OnceFunc(func() { close(o.done) })
			ch, requests, err := o.nc.Accept()
			if err != nil {
				release()
				continue // the connection has ended, or the next is better
			}
			return (&conn{Channel: ch, link: s.link.Conn, remote: o.origin, release: release}).open(requests), nil
		case <-s.done:
			return nil, net.ErrClosed
		case <-s.link.Context().Done():
			return nil, fault.Wrap(fault.Unavailable, context.Cause(s.link.Context()),
				fmt.Sprintf("the connection to node %q is lost", s.link.node))
		}
	}
}

// Close implements [net.Listener].
func (s *listener) Close() error {
	s.closing.Do(func() {
		close(s.done)
		s.f.mu.Lock()
		if s.f.listeners[s.key] == s {
			delete(s.f.listeners, s.key)
		}
		s.f.mu.Unlock()
		s.cancel()
	})
	return nil
}

// cancel asks the sshd to listen no more. There is nothing to be done when it
// does not.
func (s *listener) cancel() {
	name, payload := sshwire.RequestCancelTCPIPForward, sshwire.TCPIPForward{Addr: s.bound.Host, Port: uint32(s.bound.Port)}.Marshal()
	if s.bound.Path != "" {
		name, payload = sshwire.RequestCancelStreamlocalForward, sshwire.StreamlocalForward{Path: s.bound.Path}.Marshal()
	}
	stuck := time.AfterFunc(closeTimeout, func() { s.link.Cut(errStuck) })
	defer stuck.Stop()
	_, _, _ = s.link.SendRequest(name, false, payload) // fails when the connection has ended
}

// Addr implements [net.Listener].
func (s *listener) Addr() net.Addr { return address(s.bound) }
