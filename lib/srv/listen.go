package srv

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/relay"
	"github.com/accessd/accessd/lib/sshwire"
)

const (
	// maxListeners bounds what listens on a node for one connection.
	maxListeners = 32
	// maxAccepted bounds the connections of one listener that are carried; more
	// wait in the kernel's queue.
	maxAccepted = 64
)

// listener listens on the node for one connection, which alone can cancel it.
type listener struct {
	net.Listener

	asked  Endpoint // as the client wrote it
	bound  Endpoint // where it listens
	cancel context.CancelCauseFunc
	close  func() // returns when it does not listen any more, whoever was first
}

// Listen answers a request of the client's to listen on the node or to stop it:
// tcpip-forward and cancel-tcpip-forward (RFC 4254, section 7.1) and
// streamlocal-forward@openssh.com and its cancel (OpenSSH PROTOCOL, section 2.4).
// ctx must end with the connection.
func (c *Client) Listen(ctx context.Context, r *ssh.Request) (ok bool, payload []byte) {
	e, err := listenedOn(r)
	if err != nil {
		c.refuse(ctx, refusal{kind: r.Type}, err)
		return false, nil
	}
	if r.Type == sshwire.RequestCancelTCPIPForward || r.Type == sshwire.RequestCancelStreamlocalForward {
		return c.unlisten(e), nil
	}
	l, err := c.listen(ctx, r.Type, e)
	if err != nil {
		return false, nil // it is on record; the protocol has no room for a reason
	}
	if r.Type == sshwire.RequestTCPIPForward && e.Port == 0 {
		payload = sshwire.TCPIPForwardReply{Port: uint32(l.bound.Port)}.Marshal()
	}
	return true, payload
}

// listenedOn returns where r asks to listen.
func listenedOn(r *ssh.Request) (Endpoint, error) {
	switch r.Type {
	case sshwire.RequestTCPIPForward, sshwire.RequestCancelTCPIPForward:
		x, err := sshwire.ParseTCPIPForward(r.Payload)
		return Endpoint{Host: x.Addr, Port: uint16(x.Port)}, err // the parser has bounded it
	}
	x, err := sshwire.ParseStreamlocalForward(r.Payload)
	if err == nil && (!path.IsAbs(x.Path) || path.Clean(x.Path) != x.Path) {
		err = fault.New(fault.BadInput, "want the absolute path of a socket")
	}
	return Endpoint{Path: x.Path}, err
}

// unlisten stops what the client asked for as e, which can be asked for again when
// that returns. A port that the node chose is cancelled by its number (RFC 4254,
// section 7.1).
func (c *Client) unlisten(e Endpoint) bool {
	c.mu.Lock()
	l := c.listeners[e]
	delete(c.listeners, e)
	c.mu.Unlock()
	if l == nil {
		return false
	}
	l.cancel(errCancelled)
	l.close()
	return true
}

var errCancelled = fault.New(fault.Unavailable, "the client cancelled it")

// listen begins to listen on e, once the rules allow it and that is on record.
func (c *Client) listen(ctx context.Context, kind string, e Endpoint) (*listener, error) {
	f := &forward{client: c, action: authz.ActionForwardRemote, begun: time.Now()}
	d := f.decide()
	decided := c.targetEvent(f, d, e, nil)
	refuse := func(why error) error {
		c.refuse(ctx, refusal{action: f.action, kind: kind, target: e.String(), decided: []events.Event{decided}}, why)
		return why
	}
	switch {
	case !d.Allow:
		return nil, refuse(d.Err(""))
	case c.expired():
		return nil, refuse(errExpired)
	case c.cfg.Open == nil:
		return nil, refuse(errGone)
	}
	if err := c.m.cfg.Events.Emit(ctx, decided); err != nil {
		return nil, c.unrecorded(err)
	}
	ln, err := c.cfg.Executor.Listen(ctx, c.account(d), e)
	if err != nil {
		c.closed(ctx, f, e, err)
		return nil, err
	}
	lctx, cancel := context.WithCancelCause(ctx)
	f.cancel = cancel
	l := &listener{Listener: ln, asked: e, bound: e, cancel: cancel, close: sync.OnceFunc(func() { ln.Close() })}
	if at, err := netip.ParseAddrPort(ln.Addr().String()); err == nil && e.Path == "" {
		l.bound.Port = at.Port()
	}
	if err := c.addListener(l, func() { c.accept(lctx, f, l) }); err != nil {
		cancel(err)
		l.close()
		c.closed(ctx, f, e, err)
		return nil, err
	}
	c.enlist(f, d)
	if err := c.m.cfg.Events.Emit(ctx, c.portEvent(f, l.bound, "listening", nil)); err != nil {
		err = c.unrecorded(err)
		cancel(err)
		return nil, err
	}
	return l, nil
}

// addListener puts l on the client's list and runs serve, which must take it off.
func (c *Client) addListener(l *listener, serve func()) error {
	key := l.bound
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.gone:
		return errGone
	case c.listeners[key] != nil:
		return fault.New(fault.Conflict, "this connection listens there already")
	case len(c.listeners) >= maxListeners:
		return &limitError{limit: maxListeners, what: "forwarded ports on one connection"}
	}
	c.listeners[key] = l
	c.work.Go(serve)
	return nil
}

// closeListeners stops all that listens for the client.
func (c *Client) closeListeners() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.listeners {
		l.cancel(errGone)
	}
}

// accept carries what connects to l until ctx ends.
func (c *Client) accept(ctx context.Context, f *forward, l *listener) {
	var carried sync.WaitGroup
	stop := context.AfterFunc(ctx, l.close)
	slots := make(chan struct{}, maxAccepted)
	var err error
	for {
		var conn net.Conn
		slots <- struct{}{} // given back by those that are carried, which end with ctx
		if conn, err = l.Accept(); err != nil {
			break
		}
		carried.Go(func() {
			defer func() { <-slots }()
			c.bring(ctx, l, conn)
		})
	}
	stop()
	l.close()
	c.mu.Lock()
	if c.listeners[l.bound] == l { // else it was cancelled, and may be another by now
		delete(c.listeners, l.bound)
	}
	c.mu.Unlock()
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		err = nil // it was told to stop, or the way to the node has ended with its connection
	}
	l.cancel(nil)
	carried.Wait()
	c.closed(ctx, f, l.bound, err)
}

// bring carries conn, which came to l, to the client.
func (c *Client) bring(ctx context.Context, l *listener, conn net.Conn) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f := &forward{client: c, action: authz.ActionForwardRemote, begun: time.Now(), cancel: cancel}
	origin, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err == nil {
		f.target.Addr = origin.Addr().Unmap()
	}
	defer conn.Close()
	if err := c.m.cfg.Events.Emit(ctx, c.portEvent(f, l.bound, "open", nil)); err != nil {
		_ = c.unrecorded(err) // whoever connected sees the connection end
		return
	}
	kind, payload := l.opening(origin)
	ch, err := c.openChannel(ctx, kind, payload, func() {})
	if err == nil {
		f.toClient, f.toNode = relay.Pipe(ctx, conn, ch)
	}
	c.closed(ctx, f, l.bound, err)
}

// opening returns the channel type and its extra data for a connection from
// origin.
func (l *listener) opening(origin netip.AddrPort) (kind string, payload []byte) {
	if l.bound.Path != "" {
		return sshwire.ChannelForwardedStreamlocal, sshwire.ForwardedStreamlocal{Path: l.bound.Path}.Marshal()
	}
	addr := "127.0.0.1" // of what has no address, such as a socket of the far side's
	if origin.IsValid() {
		addr = origin.Addr().Unmap().String()
	}
	return sshwire.ChannelForwardedTCPIP, sshwire.ForwardedTCPIP{
		Addr: l.asked.Host, Port: uint32(l.bound.Port), OriginAddr: addr, OriginPort: uint32(origin.Port()),
	}.Marshal()
}

// openChannel opens a channel to the client, which is closed when ctx ends, and
// calls done when it is gone. Requests on it are refused.
func (c *Client) openChannel(ctx context.Context, kind string, payload []byte, done func()) (ssh.Channel, error) {
	ch, requests, err := c.cfg.Open(kind, payload)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = ch.Close() })
	go func() { // ends with the channel, at the latest when the connection does
		defer done()
		defer stop()
		ssh.DiscardRequests(requests)
	}()
	return ch, nil
}
