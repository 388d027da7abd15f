package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshwire"
)

const (
	// maxReason bounds what is repeated of why the sshd refused, in bytes.
	maxReason = 200
	// closeTimeout is how long an sshd may take to answer the end of a channel.
	// One that does not would keep whoever reads from the channel waiting.
	closeTimeout = 10 * time.Second
)

var errStuck = errors.New("the sshd does not answer the end of a channel")

// openError returns why the sshd did not open a channel, in its own words.
func openError(err error) (string, bool) {
	o, ok := errors.AsType[*ssh.OpenChannelError](err)
	if !ok {
		return "", false
	}
	text := o.Reason.String()
	if o.Message != "" {
		text = events.Display(o.Message[:min(len(o.Message), maxReason)])
	}
	return text, true
}

// forwards is the connection that all forwards of one login share. There is none
// until it is needed, and another when it has ended.
type forwards struct {
	x     *Executor
	login names.Login
	turn  chan struct{} // held while logging in, and while the sshd is asked to listen

	mu        sync.Mutex
	link      *link // nil until it is needed
	listeners map[listenKey]*listener
}

// shared returns the forwards of login.
func (x *Executor) shared(login names.Login) *forwards {
	x.mu.Lock()
	defer x.mu.Unlock()
	f := x.forwards[login]
	if f == nil {
		f = &forwards{x: x, login: login, turn: make(chan struct{}, 1), listeners: map[listenKey]*listener{}}
		x.forwards[login] = f
	}
	return f
}

// enter waits for the turn, which the caller gives back with leave.
func (f *forwards) enter(ctx context.Context) error {
	select {
	case f.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (f *forwards) leave() { <-f.turn }

// live returns the connection if there is one.
func (f *forwards) live() *link {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.link == nil || f.link.Context().Err() != nil {
		return nil
	}
	return f.link
}

// connect returns the connection. The caller has the turn.
func (f *forwards) connect(ctx context.Context) (*link, error) {
	if l := f.live(); l != nil {
		return l, nil
	}
	l, err := f.x.connect(ctx, purpose{
		login: f.login, session: f.x.session,
		channels: map[string]func(*sshserver.Conn, ssh.NewChannel){
			sshwire.ChannelForwardedTCPIP:       f.forwarded,
			sshwire.ChannelForwardedStreamlocal: f.forwarded,
		},
	})
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.link = l
	return l, nil
}

// Dial implements [srv.Executor]. Names are looked up by the sshd. What is an
// address in some form is sent as the address that the rules were asked about.
func (x *Executor) Dial(ctx context.Context, a srv.Account, e srv.Endpoint, admit srv.Admit) (net.Conn, error) {
	addr, literal := services.LiteralAddr(e.Host)
	switch {
	case e.Path != "":
		addr = netip.Addr{}
	case literal && !strings.Contains(e.Host, "%"): // a zone is the node's own
		e.Host = addr.String()
	}
	if err := admit(addr); err != nil {
		return nil, err
	}
	f := x.shared(a.Login)
	l := f.live()
	if l == nil {
		if err := f.enter(ctx); err != nil {
			return nil, err
		}
		var err error
		l, err = f.connect(ctx)
		f.leave()
		if err != nil {
			return nil, err
		}
	}
	return x.open(ctx, l, e)
}

// open opens a channel to e.
func (x *Executor) open(ctx context.Context, l *link, e srv.Endpoint) (net.Conn, error) {
	kind, payload := x.opening(e)
	type opened struct {
		conn net.Conn
		err  error
	}
	result := make(chan opened)
	if !x.spawn(func() {
		ch, requests, err := l.OpenChannel(kind, payload)
		var c net.Conn
		if err == nil {
			c = (&conn{Channel: ch, link: l.Conn, remote: address(e)}).open(requests)
		}
		select {
		case result <- opened{c, err}:
		case <-ctx.Done(): // nobody waits for it any more
			if c != nil {
				c.Close()
			}
		}
	}) {
		return nil, errClosed
	}
	select {
	case r := <-result:
		if r.err != nil {
			return nil, l.unreachable(r.err, e)
		}
		return r.conn, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// unreachable returns why e was not reached, for the person.
func (l *link) unreachable(err error, e srv.Endpoint) error {
	why, ok := openError(err)
	if !ok {
		why = "its sshd ended the connection"
	}
	return fault.Wrap(fault.Unavailable, err, fmt.Sprintf("node %q does not reach %q: %s", l.node, e, why))
}

// opening returns the type of a channel to e, and what opens it. The origin is
// the client.
func (x *Executor) opening(e srv.Endpoint) (kind string, payload []byte) {
	if e.Path != "" {
		return sshwire.ChannelDirectStreamlocal, sshwire.DirectStreamlocal{Path: e.Path}.Marshal()
	}
	origin := "127.0.0.1"
	if x.cfg.Client.IsValid() {
		origin = x.cfg.Client.Addr().String()
	}
	return sshwire.ChannelDirectTCPIP, sshwire.DirectTCPIP{
		Host: e.Host, Port: uint32(e.Port), OriginAddr: origin, OriginPort: uint32(x.cfg.Client.Port()),
	}.Marshal()
}

// address returns e as an address, with the unspecified one for a name.
func address(e srv.Endpoint) net.Addr {
	if e.Path != "" {
		return &net.UnixAddr{Name: e.Path, Net: "unix"}
	}
	ip := net.IPv4zero
	if addr, err := netip.ParseAddr(e.Host); err == nil {
		ip = addr.WithZone("").AsSlice()
	} else if e.Host == "localhost" {
		ip = net.IPv4(127, 0, 0, 1)
	}
	return &net.TCPAddr{IP: ip, Port: int(e.Port)}
}

// conn is a channel of the sshd's as a connection.
type conn struct {
	ssh.Channel

	link    *sshserver.Conn
	remote  net.Addr
	release func() // called once, by Close; nil does nothing

	closing sync.Once
	mu      sync.Mutex
	gone    bool        // the sshd has closed it, too
	stuck   *time.Timer // runs until it has
}

// open begins to look after the channel.
func (c *conn) open(requests <-chan *ssh.Request) *conn {
	go func() { // ends with the channel, at the latest when its connection does
		ssh.DiscardRequests(requests)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.gone = true
		if c.stuck != nil {
			c.stuck.Stop()
		}
	}()
	return c
}

// Close closes the channel. A Read that waits returns when the sshd has, too.
func (c *conn) Close() error {
	err := net.ErrClosed
	c.closing.Do(func() {
		c.mu.Lock()
		if !c.gone {
			c.stuck = time.AfterFunc(closeTimeout, func() { c.link.Cut(errStuck) })
		}
		c.mu.Unlock()
		err = c.Channel.Close()
		if c.release != nil {
			c.release()
		}
	})
	return err
}

// LocalAddr implements [net.Conn]. Nobody knows it.
func (c *conn) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4zero} }

// RemoteAddr implements [net.Conn].
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements [net.Conn]. There are none on a channel.
func (c *conn) SetDeadline(time.Time) error { return os.ErrNoDeadline }

// SetReadDeadline implements [net.Conn].
func (c *conn) SetReadDeadline(time.Time) error { return os.ErrNoDeadline }

// SetWriteDeadline implements [net.Conn].
func (c *conn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
