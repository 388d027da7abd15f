package node

import (
	"context"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
)

// Config configures a [Server].
type Config struct {
	// HostKeys returns the node's host keys, certificates before plain keys;
	// required.
	HostKeys func() []ssh.Signer
	// Trust returns the authorities that the node trusts now; required.
	Trust func() sshca.Trust
	// Node is the node as the rules see it now; required.
	Node func() authz.NodeView
	// Engine decides by the policy that the node has; required.
	Engine *authz.Engine
	// Changed returns a channel that is closed at the policy's next change;
	// required.
	Changed func() <-chan struct{}
	// Events and Ledger record; required.
	Events *events.Emitter
	Ledger *events.OpenSessions
	// Executor starts processes; required.
	Executor srv.Executor

	AcceptEnv          []string      // as [srv.Config]
	OutliveCertificate bool          // as [srv.Config]
	MaxSessions        int           // as [srv.Config]
	Grace              time.Duration // as [srv.Config]

	Limits     sshserver.Limits
	Algorithms sshserver.Algorithms
	Keepalive  sshserver.Keepalive

	Now        func() time.Time      // nil is time.Now
	Registerer prometheus.Registerer // nil keeps the counters private
	Log        *zap.Logger           // nil discards
}

// Server is the SSH server of a node.
type Server struct {
	cfg      Config
	sessions *srv.Manager
	ssh      *sshserver.Server
}

// New returns a Server that has started nothing.
func New(cfg Config) (*Server, error) { return &Server{cfg: cfg}, nil }

// Run ends the sessions that an earlier process left open, then watches the
// policy for those under way. When ctx ends it lets no new session begin, gives
// live ones Grace, cuts the rest, and returns when every session has ended.
func (s *Server) Run(ctx context.Context) error { return s.sessions.Run(ctx) }

// Serve serves one connection and returns when it has ended. It is what the
// tunnel's agent hands connections to; conn's remote address must be the
// client's, as the proxy attests it.
func (s *Server) Serve(ctx context.Context, conn net.Conn) error { return s.ssh.ServeConn(ctx, conn) }

// Sessions returns the sessions under way, to list and to end them.
func (s *Server) Sessions() *srv.Manager { return s.sessions }
