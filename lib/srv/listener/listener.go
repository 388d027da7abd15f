// Package listener shares one port between SSH, HTTPS and the data connections
// of nodes.
//
// The first bytes of a connection decide what it is:
//
//	"SSH-"                 SSH (RFC 4253, section 4.2)
//	a TLS ClientHello      by ALPN: accessd-ssh is SSH inside TLS, accessd-data a
//	                       data connection, anything else HTTPS
//	"ACCESSD-DATA/1\n"     a data connection without TLS, where configured
//	silence for 300 ms     SSH: some clients wait for our identification
//
// Everything else is closed without an answer, so nothing a peer sends is ever
// reflected. A connection from a trusted load balancer must begin with a PROXY
// header (v1 or v2), which then names the client; from anywhere else, or twice,
// the header is garbage too.
//
// Until its peer has authenticated a connection holds one of few places, in all
// and per source, which is decided before anything is read. It tells its
// listener how it fares through [Guard]. Sources that fail are made to wait, as
// OpenSSH's PerSourcePenalties do. HTTPS connections never authenticate here and
// hold their place until they close.
//
// The package decides nothing about who may do what, reads nothing past a
// PROXY header and a TLS handshake, and sets no deadline once it has given a
// connection out, but for data connections (see [Listener.Data]).
package listener

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
)

// Protocol is what a connection speaks.
type Protocol string

// The protocols.
const (
	ProtocolSSH   Protocol = "ssh"   // SSH, bare or inside TLS (ALPN "accessd-ssh")
	ProtocolHTTPS Protocol = "https" // HTTP inside TLS
	ProtocolData  Protocol = "data"  // a node's data connection
)

// DataPreface begins a data connection without TLS. The listener takes it off.
const DataPreface = "ACCESSD-DATA/1\n"

// The names in TLS's ALPN extension (RFC 7301) by which peers choose a
// protocol other than HTTP.
const (
	ALPNSSH  = "accessd-ssh"
	ALPNData = "accessd-data"
)

// Bind is an address to listen on.
type Bind struct {
	Addr      string     // host:port; port 0 lets the system choose
	Protocols []Protocol // what may be spoken there; nil means all
}

// Config configures a [Listener].
type Config struct {
	Bind         // the main address; required
	Extra []Bind // further addresses

	// TrustedProxies are the networks of load balancers. A connection from them
	// must begin with a PROXY header, v1 or v2; from anywhere else the header
	// is garbage.
	TrustedProxies []netip.Prefix
	// Certificate returns the certificate for a TLS client; nil serves no TLS
	// but that of data connections.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Data configures TLS of data connections; nil refuses them. Its NextProtos
	// is set to ALPNData.
	Data *tls.Config
	// PlainData takes data connections without TLS too.
	PlainData bool

	Limits     Limits
	Now        func() time.Time      // nil is time.Now
	Registerer prometheus.Registerer // nil keeps the counters private
	Log        *zap.Logger           // nil discards
}

// Listener accepts connections and gives them out by protocol.
type Listener struct {
	cfg     Config
	gate    *gate
	metrics *metrics
	queues  map[Protocol]*queue
	listen  func(ctx context.Context, addr string) (net.Listener, error)

	mu    sync.Mutex
	bound []bound
}

// bound is an address being listened on.
type bound struct {
	bind Bind
	ln   net.Listener
}

func (b *bound) serves(p Protocol) bool {
	return len(b.bind.Protocols) == 0 || slices.Contains(b.bind.Protocols, p)
}

// New returns a Listener that has opened nothing yet.
func New(cfg Config) (*Listener, error) {
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	cfg.Log = cfg.Log.Named("listener")
	for _, b := range append([]Bind{cfg.Bind}, cfg.Extra...) {
		if err := b.check(); err != nil {
			return nil, err
		}
	}
	if err := cfg.Limits.check(); err != nil {
		return nil, err
	}
	if cfg.Data != nil {
		cfg.Data = cfg.Data.Clone()
		cfg.Data.NextProtos = []string{ALPNData}
	}
	l := &Listener{cfg: cfg, queues: map[Protocol]*queue{}, listen: listenTCP}
	l.gate = newGate(cfg.Limits, cfg.Now, func() int { return rand.IntN(100) }) //nolint:gosec // who is dropped needs no secrecy
	for _, p := range []Protocol{ProtocolSSH, ProtocolHTTPS, ProtocolData} {
		l.queues[p] = newQueue(l.Addr)
	}
	var err error
	if l.metrics, err = newMetrics(l.gate, cfg.Registerer); err != nil {
		return nil, fmt.Errorf("register the listener's metrics: %w", err)
	}
	return l, nil
}

func (b Bind) check() error {
	if _, _, err := net.SplitHostPort(b.Addr); err != nil {
		return fault.New(fault.BadInput, "listen address %q: %w", b.Addr, err)
	}
	for _, p := range b.Protocols {
		if p != ProtocolSSH && p != ProtocolHTTPS && p != ProtocolData {
			return fault.New(fault.BadInput, "listen address %q: unknown protocol %q", b.Addr, p)
		}
	}
	return nil
}

func listenTCP(ctx context.Context, addr string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: defaults.KeepaliveInterval, Interval: defaults.KeepaliveInterval, Count: defaults.KeepaliveMisses,
	}}
	return lc.Listen(ctx, "tcp", addr)
}

// Listen binds the addresses, so that Addr is known before Run. It binds all or
// none; once it has succeeded it does nothing.
func (l *Listener) Listen(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.bound) > 0 {
		return nil
	}
	for _, b := range append([]Bind{l.cfg.Bind}, l.cfg.Extra...) {
		ln, err := l.listen(ctx, b.Addr)
		if err != nil {
			for _, done := range l.bound {
				done.ln.Close()
			}
			l.bound = nil
			return fault.Wrap(fault.Unavailable, err, fmt.Sprintf("listen on %q", b.Addr))
		}
		l.bound = append(l.bound, bound{bind: b, ln: ln})
	}
	return nil
}

// Addr returns the main address once Listen has succeeded, else nil.
func (l *Listener) Addr() net.Addr {
	if all := l.Addrs(); len(all) > 0 {
		return all[0]
	}
	return nil
}

// Addrs returns all addresses, the main one first.
func (l *Listener) Addrs() []net.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []net.Addr
	for _, b := range l.bound {
		all = append(all, b.ln.Addr())
	}
	return all
}

// SSH returns the listener of SSH connections. What it accepts is a [*Conn].
func (l *Listener) SSH() net.Listener { return l.queues[ProtocolSSH] }

// HTTPS returns the listener of HTTP connections, TLS already done; what it
// accepts is a [*Conn].
func (l *Listener) HTTPS() net.Listener { return l.queues[ProtocolHTTPS] }

// Data returns the listener of data connections. What it accepts is a [*Conn];
// with TLS its handshake is done, without it the preface is taken off. Who
// serves it must call Authenticated once the ticket is good; until then the
// connection holds a place among the unauthenticated, and is closed after
// [defaults.LoginTimeout].
func (l *Listener) Data() net.Listener { return l.queues[ProtocolData] }

// Run accepts connections until ctx ends; it calls Listen unless that was done.
// Connections not yet given out are closed then, the others are their owners'.
func (l *Listener) Run(ctx context.Context) error {
	if err := l.Listen(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	binds := l.bound
	l.mu.Unlock()
	defer context.AfterFunc(ctx, func() {
		for _, b := range binds {
			b.ln.Close()
		}
		for _, q := range l.queues {
			_ = q.Close()
		}
	})()
	var live sync.WaitGroup
	for i := range binds {
		live.Go(func() { l.accept(ctx, &binds[i], &live) })
	}
	live.Wait()
	return nil
}

// Bounds of the pause after a failed accept.
const (
	minPause = 5 * time.Millisecond
	maxPause = time.Second
)

// accept takes connections from b until ctx ends. The system may be unable to
// accept for a while, as when file descriptors run out; each failure doubles
// the pause, the first of a row is logged.
func (l *Listener) accept(ctx context.Context, b *bound, live *sync.WaitGroup) {
	var pause time.Duration
	for ctx.Err() == nil {
		c, err := b.ln.Accept()
		if err == nil {
			pause = 0
			l.take(ctx, b, c, live)
			continue
		}
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		l.metrics.errors.Inc()
		if pause == 0 {
			l.cfg.Log.Error("cannot accept, trying again", zap.String("address", b.bind.Addr), zap.Error(err))
		}
		pause = min(max(2*pause, minPause), maxPause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// take admits a connection or closes it, before anything is read or computed.
func (l *Listener) take(ctx context.Context, b *bound, c net.Conn, live *sync.WaitGroup) {
	peer := addrPort(c.RemoteAddr())
	trusted := within(l.cfg.TrustedProxies, peer.Addr())
	source := peer.Addr()
	if trusted {
		source = netip.Addr{} // the header will tell
	}
	place, why := l.gate.admit(source)
	if why != "" {
		l.refuse(c.RemoteAddr(), why, nil)
		c.Close()
		return
	}
	tune(c)
	a := &arrival{l: l, bound: b, socket: c, peer: peer, remote: c.RemoteAddr(), place: place, trusted: trusted}
	live.Go(func() { a.route(ctx) })
}

func (l *Listener) refuse(from net.Addr, why refusal, cause error) {
	l.metrics.refused.WithLabelValues(string(why)).Inc()
	if e := l.cfg.Log.Check(zap.DebugLevel, "connection refused"); e != nil {
		e.Write(zap.Stringer("from", from), zap.String("reason", string(why)), zap.NamedError("cause", cause))
	}
}
