// Package sshserver is the one place where accessd accepts SSH connections
// (RFC 4251 to 4254). The proxy, the authority and the nodes embed it.
//
// It stands on two libraries. golang.org/x/crypto/ssh does the protocol.
// github.com/gliderlabs/ssh lends its connection loop, its context and its maps
// of handlers; its authentication handlers, its Session and its forwarder are
// not used, and what it leaves open is closed here:
//
//   - without authentication handlers of its own it would let everyone in: the
//     method "none" is refused by a callback;
//   - its accept loop sleeps and forgets its goroutines: Serve is our own, waits
//     for every handler and recovers each connection's panics, so that a bug ends
//     one connection only (x/crypto's own goroutines are out of our reach);
//   - its Context is shared by all attempts to authenticate: it carries nothing
//     but the [Conn], where [Conn.Prove] alone says who the peer is, and only
//     after a signature was verified;
//   - it clears the connection's deadlines at each read and write: here
//     deadlines are timers that close the connection.
//
// # Bounds
//
// Until a peer has authenticated its time is bounded, and so are its bytes. A
// refused attempt takes the same time whatever was wrong with it. Afterwards
// bounded are the open channels, the rate of channel opens and requests (a peer
// over it is read more slowly), and the memory a peer can make x/crypto hold.
//
// That last bound needs care: x/crypto's window counts bytes, but every packet
// costs it some 50 bytes more, so a channel that nobody reads can hold 96 MiB of
// one-byte packets. How many packets wait cannot be asked, but what came in from
// the network can be counted, and so can what handlers took out. The difference
// since the last moment at which a channel was known to be empty is at least
// what it holds on the wire, which is at least three quarters of what it holds
// in memory. A client (a user or a member, over all its connections) that holds
// too much is not read until its handlers catch up; what no handler has read for
// a while meanwhile is dropped: its channel is closed and the rest discarded.
//
// # Algorithms
//
// Key exchange is mlkem768x25519, curve25519 or NIST P-256 and P-384, strict
// (kex-strict-s-v00@openssh.com) with every peer that knows it. Ciphers are
// AES-GCM alone on CPUs that have AES instructions, MACs are encrypt-then-MAC
// with SHA-2. A small table gives more to clients whose identification is known
// to lack these. Nothing with SHA-1, CBC or DSA can be configured.
package sshserver

import (
	"context"
	"fmt"
	"time"

	gliderlabs "github.com/gliderlabs/ssh"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshwire"
)

// Version is the identification string; it tells nothing about the build. It
// begins like OpenSSH's because clients look there for OpenSSH's extensions
// (tried: OpenSSH's own sends eow@openssh.com to no other server, so that
// "ssh node yes | head" never ended; asyncssh swaps the paths of a symlink).
const Version = "SSH-2.0-OpenSSH_accessd"

// Config configures a [Server].
type Config struct {
	// Name tells this server from others of the process in metrics and logs;
	// required.
	Name string
	// HostKeys returns the keys to show, certificates before plain keys. It is
	// asked for each connection, so that a renewed certificate is shown at once.
	// Required, unless there is HostKeysOf.
	HostKeys func() []ssh.Signer
	// HostKeysOf is asked instead, where what to show depends on what the
	// connection is for.
	HostKeysOf func(c *Conn) []ssh.Signer
	// Authenticate sets the authentication callbacks of cfg, and nothing else of
	// it, for one connection. They tell who the peer is with [Conn.Prove] or
	// [Conn.ProveKey]; a connection of which nothing was proven is cut whatever
	// they return. Required.
	Authenticate func(c *Conn, cfg *ssh.ServerConfig) error

	// Channels has a handler per channel type the peer may open; what has none
	// is refused and counted. A handler must accept or reject nc; when it
	// returns its channel is closed. Each runs in its own goroutine. A client that
	// announced its last session opens no more of them.
	Channels map[string]func(c *Conn, nc ssh.NewChannel)
	// Requests has a handler per global request; what has none is refused and
	// counted. Handlers of one connection run one after the other and must be
	// quick.
	Requests map[string]func(c *Conn, r *ssh.Request) (bool, []byte)
	// Opened is called when the peer has authenticated, before any handler; an
	// error ends the connection. nil does nothing.
	Opened func(c *Conn) error
	// Closed is called exactly once for each connection for which Opened
	// returned nil, after the last handler has returned. Its error is nil when
	// the peer closed the connection. nil does nothing.
	Closed func(c *Conn, err error)

	Limits     Limits
	Algorithms Algorithms
	Keepalive  Keepalive
	Grace      time.Duration         // for open channels at shutdown; 0 means defaults.Grace
	Registerer prometheus.Registerer // nil keeps the counters private
	Log        *zap.Logger           // nil discards
}

// Limits bounds what one peer may take. A zero field means its default.
type Limits struct {
	KexTimeout       time.Duration // to the end of the key exchange; 0 means defaults.KexTimeout
	LoginTimeout     time.Duration // to the end of authentication; 0 means defaults.LoginTimeout
	SignInTimeout    time.Duration // the same once [Conn.Park] was called; 0 means defaults.SignInTimeout
	FailureDelay     time.Duration // the least time a refused attempt takes; 0 means 25 ms
	MaxChannels      int           // channels a peer has open on a connection; 0 means 128
	MaxProxyChannels int           // the same for a proxy of the cluster, which has one per node; 0 means 20000
	MessageRate      int           // channel opens and requests per second and connection; 0 means 2000
	MaxBuffered      int64         // bytes received and not yet handled, per client; 0 means 16 MiB
	MaxBufferedTotal int64         // the same in all, past which each client has a sixteenth; 0 means 512 MiB
	StallTimeout     time.Duration // how long a channel of a client over its bound may go unread; 0 means 30 s
}

func (l Limits) withDefaults() Limits {
	set(&l.KexTimeout, defaults.KexTimeout)
	set(&l.LoginTimeout, defaults.LoginTimeout)
	set(&l.SignInTimeout, defaults.SignInTimeout)
	set(&l.FailureDelay, 25*time.Millisecond)
	set(&l.MaxChannels, 128)
	set(&l.MaxProxyChannels, 20000)
	set(&l.MessageRate, 2000)
	set(&l.MaxBuffered, 16<<20) // 54 MiB of memory at the worst, tried
	set(&l.MaxBufferedTotal, 512<<20)
	set(&l.StallTimeout, 30*time.Second) // less than the keepalive takes, since a client over its bound is not read
	return l
}

// Keepalive says how a peer that is gone is found: one that has sent nothing for
// Misses times Interval, although asked, is cut.
type Keepalive struct {
	Interval time.Duration // 0 means defaults.KeepaliveInterval
	Misses   int           // 0 means defaults.KeepaliveMisses
}

// Server serves SSH connections.
type Server struct {
	cfg      Config
	metrics  *metrics
	channels map[string]gliderlabs.ChannelHandler
	requests map[string]gliderlabs.RequestHandler
	clients  *clients
}

// New returns a Server that has started nothing.
func New(cfg Config) (*Server, error) {
	if cfg.HostKeysOf == nil && cfg.HostKeys != nil {
		cfg.HostKeysOf = func(*Conn) []ssh.Signer { return cfg.HostKeys() }
	}
	if cfg.Name == "" || cfg.HostKeysOf == nil || cfg.Authenticate == nil {
		return nil, fault.New(fault.BadInput, "SSH server %q: name, host keys and authentication are required", cfg.Name)
	}
	var err error
	if cfg.Algorithms, err = cfg.Algorithms.check(); err != nil {
		return nil, err
	}
	cfg.Limits = cfg.Limits.withDefaults()
	set(&cfg.Keepalive.Interval, defaults.KeepaliveInterval)
	set(&cfg.Keepalive.Misses, defaults.KeepaliveMisses)
	set(&cfg.Grace, defaults.Grace)
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	cfg.Log = cfg.Log.Named("ssh").Named(cfg.Name)
	s := &Server{cfg: cfg, clients: newClients(cfg.Limits)}
	if s.metrics, err = newMetrics(cfg.Name, s.clients, cfg.Registerer); err != nil {
		return nil, fmt.Errorf("register the metrics of SSH server %q: %w", cfg.Name, err)
	}
	s.channels = map[string]gliderlabs.ChannelHandler{"default": refuseChannel}
	for name, handler := range cfg.Channels {
		if name == sshwire.ChannelSession {
			handler = untilLast(handler)
		}
		s.channels[name] = handleChannel(handler)
	}
	s.requests = map[string]gliderlabs.RequestHandler{
		"default": refuseRequest, sshwire.RequestNoMoreSessions: handleRequest(announceLast),
	}
	for name, handler := range cfg.Requests {
		s.requests[name] = handleRequest(handler)
	}
	return s, nil
}

func set[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// connKey is the one key of gliderlabs' Context that we use.
type connKey struct{}

// connOf returns the Conn that ServeConn put into gliderlabs' context.
func connOf(ctx context.Context) *Conn {
	c, ok := ctx.Value(connKey{}).(*Conn)
	if !ok {
		panic("sshserver: internal error: a context without its connection")
	}
	return c
}
