package sshserver

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	gliderlabs "github.com/gliderlabs/ssh"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

const (
	// maxOpenData bounds what comes with a channel open, in bytes: two host
	// names and two ports in all types we know.
	maxOpenData = 16 << 10
	// maxRefusing bounds the refusals of channel opens on their way to one peer.
	maxRefusing = 128
	// maxQueued and maxQueuedBytes bound a channel's requests that its handler
	// has not taken. A session begins with a request per environment variable.
	maxQueued      = 256
	maxQueuedBytes = 512 << 10
)

var errStalled = errors.New("the channel was not read for too long while its client held too much memory")

func handleChannel(handler func(*Conn, ssh.NewChannel)) gliderlabs.ChannelHandler {
	return func(_ *gliderlabs.Server, _ *ssh.ServerConn, nc ssh.NewChannel, ctx gliderlabs.Context) {
		connOf(ctx).serveChannel(nc, handler)
	}
}

func refuseChannel(_ *gliderlabs.Server, _ *ssh.ServerConn, nc ssh.NewChannel, ctx gliderlabs.Context) {
	connOf(ctx).serveChannel(nc, nil)
}

func handleRequest(handler func(*Conn, *ssh.Request) (bool, []byte)) gliderlabs.RequestHandler {
	return func(ctx gliderlabs.Context, _ *gliderlabs.Server, r *ssh.Request) (bool, []byte) {
		return connOf(ctx).serveRequest(r, handler)
	}
}

func refuseRequest(ctx gliderlabs.Context, _ *gliderlabs.Server, r *ssh.Request) (bool, []byte) {
	return connOf(ctx).serveRequest(r, nil)
}

// announceLast takes a client's word that it opens no more sessions (OpenSSH
// PROTOCOL, section 2.2).
func announceLast(c *Conn, _ *ssh.Request) (bool, []byte) {
	c.lastSession.Store(true)
	return true, nil
}

// untilLast holds a client to that word, so that whoever gets hold of its
// connection later has no use of it. The announcement follows upon the opening of
// its one session and may overtake it here: the first is served all the same.
func untilLast(handler func(*Conn, ssh.NewChannel)) func(*Conn, ssh.NewChannel) {
	return func(c *Conn, nc ssh.NewChannel) {
		if again := c.hadSession.Swap(true); again && c.lastSession.Load() {
			_ = nc.Reject(ssh.Prohibited, "no more sessions were announced") // fails when the connection has ended
			return
		}
		handler(c, nc)
	}
}

// serveRequest answers one global request.
func (c *Conn) serveRequest(r *ssh.Request, handler func(*Conn, *ssh.Request) (bool, []byte)) (bool, []byte) {
	if !c.enter() {
		return false, nil
	}
	defer c.handlers.Done()
	defer c.recovered()
	c.spend()
	if handler == nil {
		c.server.metrics.refused.WithLabelValues("global_request").Inc()
		return false, nil
	}
	c.meter.wake(&c.global)
	defer c.meter.rest(&c.global)
	return handler(c, r)
}

// serveChannel serves one channel the peer opens, in a goroutine of gliderlabs'.
func (c *Conn) serveChannel(nc ssh.NewChannel, handler func(*Conn, ssh.NewChannel)) {
	if !c.enter() {
		return // the connection is ending, and the channel with it
	}
	defer c.handlers.Done()
	defer c.recovered()
	c.spend()
	if reason, why := c.takeSlot(nc, handler != nil); why != "" {
		c.refuse(nc, reason, why)
		return
	}
	defer c.freeSlot()
	n := &newChannel{NewChannel: nc, c: c}
	handler(c, n)
	n.finish()
}

// takeSlot counts a channel, or says why it is refused.
func (c *Conn) takeSlot(nc ssh.NewChannel, known bool) (ssh.RejectionReason, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !known:
		return ssh.UnknownChannelType, "unknown channel type"
	case len(nc.ExtraData()) > maxOpenData:
		return ssh.ConnectionFailed, "malformed channel open"
	case c.stopping:
		return ssh.ConnectionFailed, ErrShutdown.Error()
	case c.inbound >= c.maxChannels():
		return ssh.ResourceShortage, "too many channels are open"
	}
	c.inbound++
	return 0, ""
}

// maxChannels bounds the channels of this peer. A proxy carries its nodes' ways
// to the authority on one connection, a channel each.
func (c *Conn) maxChannels() int {
	if c.Identity != nil && c.Identity.Kind == sshca.KindProxy {
		return c.server.cfg.Limits.MaxProxyChannels
	}
	return c.server.cfg.Limits.MaxChannels
}

func (c *Conn) freeSlot() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inbound--
	c.cutIfIdleLocked()
}

// refuse rejects a channel. gliderlabs has a goroutine for each open, and a peer
// that reads no answers makes them wait, so while there are too many nothing more
// is read from the peer.
func (c *Conn) refuse(nc ssh.NewChannel, reason ssh.RejectionReason, why string) {
	c.server.metrics.refused.WithLabelValues("channel").Inc()
	c.mu.Lock()
	c.refusing++
	c.mu.Unlock()
	nc.Reject(reason, why)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refusing--
	if c.relief != nil && c.refusing <= maxRefusing {
		close(c.relief)
		c.relief = nil
	}
}

// refused waits until few enough refusals are on their way.
func (c *Conn) refused() error {
	c.mu.Lock()
	if c.refusing <= maxRefusing {
		c.mu.Unlock()
		return nil
	}
	if c.relief == nil {
		c.relief = make(chan struct{})
	}
	relief := c.relief
	c.mu.Unlock()
	select {
	case <-relief:
		return nil
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
}

// newChannel is the offer of a channel as a handler gets it.
type newChannel struct {
	ssh.NewChannel
	c       *Conn
	decided bool
	channel *channel
}

// Accept implements [ssh.NewChannel].
func (n *newChannel) Accept() (ssh.Channel, <-chan *ssh.Request, error) {
	ch, requests, err := n.NewChannel.Accept()
	n.decided = true
	if err != nil {
		return nil, nil, err
	}
	n.channel = n.c.wrap(ch, requests, wrapping{})
	return n.channel, n.channel.requests, nil
}

// AcceptStream accepts nc, which a handler got, as nothing but a stream of bytes:
// every request on it is refused. It takes less than to read and refuse them does.
func AcceptStream(nc ssh.NewChannel) (ssh.Channel, error) {
	n, ok := nc.(*newChannel)
	if !ok {
		panic("sshserver: internal error: the channel is another's")
	}
	ch, requests, err := n.NewChannel.Accept()
	n.decided = true
	if err != nil {
		return nil, err
	}
	n.channel = n.c.wrap(ch, requests, wrapping{refuses: true})
	return n.channel, nil
}

// Reject implements [ssh.NewChannel].
func (n *newChannel) Reject(reason ssh.RejectionReason, message string) error {
	n.decided = true
	return n.NewChannel.Reject(reason, message)
}

// finish ends what the handler left: the slot is free only when x/crypto has
// forgotten the channel, for which the peer must close it too.
func (n *newChannel) finish() {
	if !n.decided {
		n.c.refuse(n.NewChannel, ssh.Prohibited, "refused")
	}
	if n.channel != nil {
		_ = n.channel.Close()
		<-n.channel.gone
	}
}

// OpenChannel opens a channel to the peer. What it returns has the bounds of
// channels the peer opens.
func (c *Conn) OpenChannel(name string, data []byte) (ssh.Channel, <-chan *ssh.Request, error) {
	ch, requests, err := c.ServerConn.OpenChannel(name, data)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	c.outbound++
	c.mu.Unlock()
	// Only the sessions of a server have extended data that anybody reads.
	w := c.wrap(ch, requests, wrapping{extended: c.dialled && name == sshwire.ChannelSession, ended: func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.outbound--
		c.cutIfIdleLocked()
	}})
	return w, w.requests, nil
}

// channel is an open channel whose peer can make it hold only so much: its data
// is metered, its requests are always taken from x/crypto, and extended data,
// which nobody expects but of a session on a server, is discarded elsewhere.
type channel struct {
	ssh.Channel
	c        *Conn
	requests chan *ssh.Request // to the handler; closed when the channel is gone
	data     stream
	extended stream // (RFC 4254, section 5.2); of no use unless hasExtended
	queue    source
	stalled  atomic.Bool

	hasExtended bool

	closing sync.Once
	done    chan struct{} // closed by Close
	gone    chan struct{} // closed when x/crypto has forgotten the channel
}

// wrapping says how a channel is looked after.
type wrapping struct {
	extended bool   // its extended data is read
	refuses  bool   // its requests are not, and are refused
	ended    func() // is called when it is gone; may be nil
}

// wrap begins to look after a channel.
func (c *Conn) wrap(ch ssh.Channel, requests <-chan *ssh.Request, as wrapping) *channel {
	w := &channel{Channel: ch, c: c, hasExtended: as.extended, requests: make(chan *ssh.Request), done: make(chan struct{}), gone: make(chan struct{})}
	w.data.from, w.extended.from = ch, ch.Stderr()
	w.data.drop, w.extended.drop, w.queue.drop, w.queue.idle = w.drop, w.drop, w.drop, true
	sources := []*source{&w.data.source, &w.queue}
	if as.extended {
		sources = append(sources, &w.extended.source)
	}
	for _, s := range sources {
		c.meter.add(s)
	}
	end := func() {
		for _, s := range sources {
			c.meter.remove(s)
		}
		close(w.requests)
		close(w.gone)
		if as.ended != nil {
			as.ended()
		}
	}
	pump := w.pump
	if as.refuses {
		pump = w.refuseAll
	}
	if !c.spawn(func() { pump(requests); end() }) {
		end()
	}
	if !as.extended {
		c.spawn(w.discardExtended)
	}
	return w
}

// stream is one of the two directions data comes in on a channel.
type stream struct {
	from io.Reader // x/crypto's
	source

	reading sync.Mutex // x/crypto wakes one reader only at the end of the data
}

// Read implements [ssh.Channel].
func (w *channel) Read(p []byte) (int, error) { return w.read(&w.data, p) }

// Stderr implements [ssh.Channel].
func (w *channel) Stderr() io.ReadWriter {
	if !w.hasExtended {
		return w.Channel.Stderr()
	}
	return struct {
		io.Reader
		io.Writer
	}{readerFunc(func(p []byte) (int, error) { return w.read(&w.extended, p) }), w.Channel.Stderr()}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (w *channel) read(s *stream, p []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if w.stalled.Load() {
		return 0, errStalled
	}
	select {
	case <-w.done:
		return 0, io.EOF
	default:
	}
	return w.readLocked(s, p)
}

// readLocked reads metered. A short read has emptied x/crypto's queue.
func (w *channel) readLocked(s *stream, p []byte) (int, error) {
	w.c.meter.rest(&s.source)
	n, err := s.from.Read(p)
	if err == nil {
		w.c.meter.took(&s.source, n, n < len(p))
	}
	return n, err
}

// Close implements [ssh.Channel]. It ends reading too: what still comes is
// discarded.
func (w *channel) Close() error {
	err := io.EOF
	w.closing.Do(func() {
		close(w.done)
		w.c.spawn(func() { w.discard(&w.data) })
		if w.hasExtended {
			w.c.spawn(func() { w.discard(&w.extended) })
		}
		err = w.Channel.Close()
	})
	return err
}

// drop lets go of what the channel holds. It is called by the connection's
// reader, and so leaves the writing to others.
func (w *channel) drop() {
	w.stalled.Store(true)
	w.c.server.metrics.dropped.Inc()
	w.c.server.cfg.Log.Warn("channel dropped", zap.Stringer("remote", w.c.Remote), zap.Error(errStalled))
	w.c.spawn(func() { _ = w.Close() })
}

// discard reads what nobody else does until the channel ends.
func (w *channel) discard(s *stream) {
	buf := make([]byte, 4<<10)
	for {
		s.reading.Lock()
		_, err := w.readLocked(s, buf)
		s.reading.Unlock()
		if err != nil {
			return
		}
	}
}

// discardExtended does so for extended data (RFC 4254, section 5.2) that nobody
// expects.
func (w *channel) discardExtended() {
	extended := w.Channel.Stderr()
	buf := make([]byte, 64)
	for {
		if _, err := extended.Read(buf); err != nil {
			return
		}
	}
}

// refuseAll refuses requests until the channel is gone.
func (w *channel) refuseAll(in <-chan *ssh.Request) {
	for r := range in {
		w.c.spend()
		_ = r.Reply(false, nil)
	}
}

// pump passes requests to the handler until the channel is gone. It takes them
// from x/crypto at once, whose reader would otherwise wait, and with it the
// whole connection; what the handler does not take is refused beyond a bound.
func (w *channel) pump(in <-chan *ssh.Request) {
	var queue []*ssh.Request
	size, done := 0, w.done
	var over <-chan struct{} // the connection's end, once no more requests come
	for in != nil || len(queue) > 0 {
		var out chan<- *ssh.Request
		var next *ssh.Request
		if len(queue) > 0 {
			out, next = w.requests, queue[0]
		}
		select {
		case r, ok := <-in:
			if !ok {
				in, over = nil, w.c.ctx.Done()
				continue
			}
			w.c.spend()
			if done == nil || len(queue) >= maxQueued || size+len(r.Payload) > maxQueuedBytes {
				w.c.server.metrics.refused.WithLabelValues("channel_request").Inc()
				r.Reply(false, nil)
				continue
			}
			queue, size = append(queue, r), size+len(r.Payload)
			w.c.meter.wake(&w.queue)
		case out <- next:
			queue[0] = nil
			queue, size = queue[1:], size-len(next.Payload)
			w.c.meter.took(&w.queue, len(next.Payload), len(queue) == 0)
			if len(queue) == 0 {
				queue = nil
				w.c.meter.rest(&w.queue)
			}
		case <-over:
			return
		case <-done: // the handler takes no more
			for _, r := range queue {
				r.Reply(false, nil)
			}
			queue, size, done = nil, 0, nil
			w.c.meter.rest(&w.queue)
		}
	}
}
