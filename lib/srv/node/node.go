package node

import (
	"cmp"
	"context"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
)

// farewell is how much longer connections live than sessions when the server
// stops, so that sessions which are cut can say why.
const farewell = 2 * time.Second

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
func New(cfg Config) (*Server, error) {
	if cfg.HostKeys == nil || cfg.Trust == nil || cfg.Node == nil || cfg.Engine == nil || cfg.Changed == nil ||
		cfg.Events == nil || cfg.Ledger == nil || cfg.Executor == nil {
		return nil, fault.New(fault.Internal, "node: a required field of Config is not set")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	cfg.Log = cfg.Log.Named("node")
	cfg.Grace = cmp.Or(cfg.Grace, defaults.Grace)
	s := &Server{cfg: cfg}
	var err error
	s.sessions, err = srv.New(srv.Config{
		Node: cfg.Node, Engine: cfg.Engine, Changed: cfg.Changed, Events: cfg.Events, Ledger: cfg.Ledger,
		Executor: cfg.Executor, AcceptEnv: cfg.AcceptEnv, OutliveCertificate: cfg.OutliveCertificate,
		MaxSessions: cfg.MaxSessions, Grace: cfg.Grace, Now: cfg.Now, Registerer: cfg.Registerer, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	s.ssh, err = sshserver.New(sshserver.Config{
		Name: "node", HostKeys: cfg.HostKeys, Authenticate: s.authenticate,
		Channels: s.channels(), Requests: s.requests(), Opened: s.opened, Closed: s.closed,
		Limits: cfg.Limits, Algorithms: cfg.Algorithms, Keepalive: cfg.Keepalive, Grace: cfg.Grace + farewell,
		Registerer: cfg.Registerer, Log: cfg.Log,
	})
	return s, err
}

// Run ends the sessions that an earlier process left open, then watches the
// policy for those under way. When ctx ends it lets no new session begin, gives
// live ones Grace, cuts the rest, and returns when every session has ended.
func (s *Server) Run(ctx context.Context) error {
	if err := s.sessions.Recover(ctx); err != nil {
		s.cfg.Log.Error("sessions that a crash left open are not ended yet; the next start will do it", zap.Error(err))
	}
	return s.sessions.Run(ctx)
}

// Serve serves one connection and returns when it has ended. It is what the
// tunnel's agent hands connections to; conn's remote address must be the
// client's, as the proxy attests it.
func (s *Server) Serve(ctx context.Context, conn net.Conn) error { return s.ssh.ServeConn(ctx, conn) }

// Sessions returns the sessions under way, to list and to end them.
func (s *Server) Sessions() *srv.Manager { return s.sessions }
