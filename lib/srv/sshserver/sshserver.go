// Package sshserver is the one place where accessd accepts SSH connections.
package sshserver

import (
	"context"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"
)

// Version is the identification string; it tells nothing about the build.
const Version = "SSH-2.0-accessd"

// Config configures a [Server].
type Config struct {
	// Name tells this server from others of the process in metrics and logs;
	// required.
	Name string
	// HostKeys returns the keys to show, certificates before plain keys. It is
	// asked for each connection, so that a renewed certificate is shown at once.
	// Required.
	HostKeys func() []ssh.Signer
	// Authenticate sets the authentication callbacks of cfg, and nothing else of
	// it, for one connection. They tell who the peer is with [Conn.Prove] or
	// [Conn.ProveKey]; a connection of which nothing was proven is cut whatever
	// they return. Required.
	Authenticate func(c *Conn, cfg *ssh.ServerConfig) error

	// Channels has a handler per channel type the peer may open; what has none
	// is refused and counted. A handler must accept or reject nc; when it
	// returns its channel is closed. Each runs in its own goroutine.
	Channels map[string]func(c *Conn, nc ssh.NewChannel)
	// Requests has a handler per global request; what has none is refused and
	// counted. Handlers of one connection run one after the other and must be
	// quick.
	Requests map[string]func(c *Conn, r *ssh.Request) (bool, []byte)
	// Opened is called when the peer has authenticated, before any handler; an
	// error ends the connection. nil does nothing.
	Opened func(c *Conn) error
	// Closed is called exactly once for each connection for which Opened
	// returned nil, after the last handler has returned. nil does nothing.
	Closed func(c *Conn, err error)

	Limits     Limits
	Algorithms Algorithms
	Keepalive  Keepalive
	Grace      time.Duration         // for open channels at shutdown; 0 means defaults.Grace
	Now        func() time.Time      // nil is time.Now
	Registerer prometheus.Registerer // nil keeps the counters private
	Log        *zap.Logger           // nil discards
}

// Limits bounds what one peer may take. A zero field means its default.
type Limits struct {
	KexTimeout    time.Duration // to the end of the key exchange; 0 means 10 s
	LoginTimeout  time.Duration // to the end of authentication; 0 means 30 s
	SignInTimeout time.Duration // the same once [Conn.Park] was called; 0 means 5 min
	FailureDelay  time.Duration // the least time a refused attempt takes; 0 means 25 ms
	MaxChannels   int           // open channels per connection; 0 means 128
}

// Algorithms says what may be negotiated. The zero value is the default.
type Algorithms struct {
	// Ciphers in order of preference; nil means AES-GCM alone on CPUs with AES
	// instructions, else chacha20-poly1305 and AES-GCM.
	Ciphers []string
}

// Keepalive says how a peer that is gone is found.
type Keepalive struct {
	Interval time.Duration // 0 means defaults.KeepaliveInterval
	Misses   int           // 0 means defaults.KeepaliveMisses
}

// Server serves SSH connections.
type Server struct{ cfg Config }

// New returns a Server that has started nothing.
func New(cfg Config) (*Server, error) { return &Server{cfg: cfg}, nil }

// Serve accepts connections from ln until ctx ends, then stops accepting, gives
// open channels Grace to finish, cuts what is left and returns once no handler
// runs. It always closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error { return nil }

// ServeConn serves one connection and returns when it has ended and none of its
// handlers runs. The end of ctx has the effect it has on Serve. It always closes
// nc.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error { return nil }
