package sshserver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"
	"golang.org/x/time/rate"

	"github.com/accessd/accessd/lib/srv/listener"
	"github.com/accessd/accessd/lib/sshca"
)

// ErrShutdown is the cause of a connection's end when the server stops.
var ErrShutdown = errors.New("the server is stopping")

// Why else a connection was ended from our side.
var (
	errTimeout = errors.New("not authenticated in time")
	errDead    = errors.New("the peer does not answer")
	errNoProof = errors.New("authenticated without proof of an identity or a key")
	errPanic   = errors.New("internal error while serving the connection")
)

// Conn is one connection.
type Conn struct {
	// ServerConn is nil until the peer has authenticated.
	*ssh.ServerConn
	// Identity is who the peer has proven to be, or nil. Only [Conn.Prove] sets
	// it; everyone else reads.
	Identity *sshca.Identity
	// Joiner is the key the peer has proven to hold with [Conn.ProveKey], or nil.
	Joiner ssh.PublicKey
	// Remote is the peer's address, as a trusted load balancer attests it; the
	// zero AddrPort when the transport has none.
	Remote netip.AddrPort
	// Relay is the load balancer that attested Remote, or the zero AddrPort.
	Relay netip.AddrPort
	// Value is the embedder's own; set it in Authenticate or Opened.
	Value any

	server   *Server
	net      net.Conn
	guard    listener.Guard  // nil when the transport has none
	version  string          // the client's identification, without CR LF
	dialled  bool            // the peer is a server, and sends extended data
	ctx      context.Context //nolint:containedctx // it is the connection's own: its life is the connection's
	cancel   context.CancelCauseFunc
	draining chan struct{}
	meter    *meter
	writing  source
	global   source
	pace     *rate.Limiter
	auth     auth

	handlers sync.WaitGroup
	panicked atomic.Bool

	hadSession, lastSession atomic.Bool // see untilLast

	mu       sync.Mutex
	closing  bool          // no handler starts any more
	opened   bool          // Opened returned nil
	stopping bool          // the server is to stop
	inbound  int           // open channels of the peer's
	outbound int           // open channels of ours
	refusing int           // refusals being written
	relief   chan struct{} // closed when there are few enough; nil while nobody waits
	deadline *time.Timer   // to authenticate; nil afterwards
	grace    *time.Timer   // until the cut, once stopping
	beat     *time.Timer
	asked    time.Time // when the unanswered keepalive was sent; zero for none
}

func (s *Server) newConn(ctx context.Context, nc net.Conn) *Conn {
	c := &Conn{server: s, net: nc, draining: make(chan struct{}), meter: newMeter()}
	c.ctx, c.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	c.Remote = addrPort(nc.RemoteAddr())
	if r, ok := find[interface{ Relay() netip.AddrPort }](nc); ok {
		c.Relay = r.Relay()
	}
	c.guard, _ = find[listener.Guard](nc)
	c.pace = rate.NewLimiter(rate.Limit(s.cfg.Limits.MessageRate), 2*s.cfg.Limits.MessageRate)
	c.writing.idle, c.global.idle = true, true
	return c
}

// find returns nc or what it wraps as a T.
func find[T any](nc net.Conn) (T, bool) {
	for nc != nil {
		if t, ok := nc.(T); ok {
			return t, true
		}
		inner, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		nc = inner.NetConn()
	}
	var zero T
	return zero, false
}

func addrPort(a net.Addr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// ClientVersion returns the peer's identification, also before authentication.
// It is printable ASCII.
func (c *Conn) ClientVersion() []byte { return []byte(c.version) }

// Context ends when the connection does; its cause says why.
func (c *Conn) Context() context.Context { return c.ctx }

// Draining is closed when the server stops: handlers should come to an end.
func (c *Conn) Draining() <-chan struct{} { return c.draining }

// Cut closes the connection at once; the first cause becomes the cause of its
// context and the error of Closed.
func (c *Conn) Cut(cause error) {
	c.cancel(cause)
	c.net.Close()
}

// Close cuts the connection. It hides ServerConn's, which waits for the peer.
func (c *Conn) Close() error {
	c.Cut(net.ErrClosed)
	return nil
}

// Penalize records an offence of the peer's source with the listener.
func (c *Conn) Penalize(o listener.Offence) {
	if c.guard != nil {
		c.guard.Penalize(o)
	}
}

// Park tells that a person now types: the time to authenticate grows to
// SignInTimeout, from now. The error tells that too many sign-ins are under way.
func (c *Conn) Park() error {
	if c.guard != nil {
		if err := c.guard.Parked(); err != nil {
			return err
		}
	}
	c.allow(c.server.cfg.Limits.SignInTimeout)
	return nil
}

// allow sets the time left to authenticate, unless that was done.
func (c *Conn) allow(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deadline != nil {
		c.deadline.Reset(d)
	}
}

// expire cuts a connection that has not authenticated in time.
func (c *Conn) expire() {
	c.mu.Lock()
	late := c.deadline != nil
	c.mu.Unlock()
	if late {
		c.Cut(errTimeout)
	}
}

// enter registers a handler, unless the connection is ending.
func (c *Conn) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || c.ctx.Err() != nil {
		return false
	}
	c.handlers.Add(1)
	return true
}

// spawn runs f in a goroutine the connection waits for.
func (c *Conn) spawn(f func()) bool {
	if !c.enter() {
		return false
	}
	go func() {
		defer c.handlers.Done()
		defer c.recovered()
		f()
	}()
	return true
}

// recovered ends the connection whose handler panicked, and no other.
func (c *Conn) recovered() {
	r := recover()
	if r == nil {
		return
	}
	c.panicked.Store(true)
	c.server.metrics.panics.Inc()
	c.server.cfg.Log.Error("panic while serving a connection", zap.Stringer("remote", c.Remote), zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
	c.Cut(errPanic)
}

// admit waits until more may be read from the peer.
func (c *Conn) admit() error {
	if tokens := c.pace.Tokens(); tokens < 0 {
		t := time.NewTimer(time.Duration(-tokens / float64(c.pace.Limit()) * float64(time.Second)))
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
	}
	if err := c.refused(); err != nil {
		return err
	}
	return c.meter.admit(c.ctx)
}

// spend counts one message of the peer that costs us work. A peer that sends
// more of them than its rate is read more slowly.
func (c *Conn) spend() { c.pace.ReserveN(time.Now(), 1) }

// established is called once, when the peer has authenticated and before any
// handler runs.
func (c *Conn) established(sc *ssh.ServerConn) {
	c.mu.Lock()
	c.ServerConn = sc
	c.deadline.Stop()
	c.deadline = nil
	c.mu.Unlock()
	c.Identity, c.Joiner = c.auth.identity, c.auth.key // nothing else counts
	if c.Identity == nil && c.Joiner == nil {
		c.server.cfg.Log.Error("authentication callbacks accepted a peer that has proven nothing", zap.Stringer("remote", c.Remote))
		c.Cut(errNoProof)
		return
	}
	c.server.clients.join(c.client(), c.meter)
	c.meter.add(&c.writing)
	c.meter.add(&c.global)
	if c.guard != nil {
		c.guard.Authenticated()
	}
	if c.server.cfg.Opened != nil {
		if err := c.server.cfg.Opened(c); err != nil {
			c.Cut(err)
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opened = true
	c.beat = time.AfterFunc(c.server.cfg.Keepalive.Interval, c.keepalive)
}

// client names whom the connection's buffers are charged to.
func (c *Conn) client() string {
	switch id := c.Identity; {
	case id == nil:
		return "key " + ssh.FingerprintSHA256(c.Joiner)
	case id.Member != "":
		return "member " + string(id.Member)
	default:
		return "user " + string(id.User)
	}
}

// finish stops what the connection has started and waits for it.
func (c *Conn) finish() {
	c.Cut(net.ErrClosed)
	c.mu.Lock()
	c.closing = true
	for _, t := range []*time.Timer{c.deadline, c.grace, c.beat} {
		if t != nil {
			t.Stop()
		}
	}
	c.mu.Unlock()
	c.handlers.Wait()
	c.server.clients.leave(c.meter)
}

// stop asks the connection to end: at once when nothing is open on it, else
// when the last channel is closed or the grace period is over.
func (c *Conn) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return
	}
	c.stopping = true
	close(c.draining)
	c.grace = time.AfterFunc(c.server.cfg.Grace, func() { c.Cut(ErrShutdown) })
	c.cutIfIdleLocked()
}

// cutIfIdleLocked ends a connection that is to stop and has nothing open.
func (c *Conn) cutIfIdleLocked() {
	if c.stopping && c.inbound+c.outbound == 0 {
		c.grace.Reset(0)
	}
}
