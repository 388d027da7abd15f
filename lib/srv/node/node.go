package node

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
)

// farewell is how much longer connections live than sessions when the server
// stops, so that sessions which are cut can say why.
const farewell = 2 * time.Second

// Host is a machine on which sessions run. All fields but OwnSSHD are required.
type Host struct {
	// Node is the machine as the rules see it now.
	Node func() authz.NodeView
	// HostKeys returns the keys to show for it, certificates before plain keys.
	HostKeys func() []ssh.Signer
	// Executor returns what runs the sessions of p. When the connection has ended
	// an [io.Closer] is closed.
	Executor func(p Person) (srv.Executor, error)
	// OwnSSHD is that of [srv.ClientConfig].
	OwnSSHD func(host string, addr netip.Addr, port uint16) bool
}

// Person is who is at the other end of a connection.
type Person struct {
	Identity   *sshca.Identity // proven
	Remote     netip.AddrPort  // the zero AddrPort means unknown
	Connection string          // names it in audit events
	Proof      string          // of the second factor given for the connection, for the authority; "" without one
}

// Config configures a [Server].
type Config struct {
	// Host is the machine that [Server.Serve] is about; nil in a server of other
	// machines, which [Server.ServeHost] names.
	Host *Host
	// Name tells this server from others of the process in metrics and logs; ""
	// means "node".
	Name string
	// Trust returns the authorities that are trusted now; required.
	Trust func() sshca.Trust
	// Engine decides by the policy as it is here; required.
	Engine *authz.Engine
	// Changed returns a channel that is closed at the policy's next change;
	// required.
	Changed func() <-chan struct{}
	// Events and Ledger record; required.
	Events *events.Emitter
	Ledger *events.OpenSessions
	// Recorder records what sessions show; required, and this server's own.
	Recorder *recording.Recorder

	// Factors checks second factors for connections; nil: nobody can give one.
	Factors factors
	// User returns a person as the policy has them here, whose enrolled security
	// keys are a second factor; nil: nobody has any.
	User func(names.UserName) (services.User, bool)

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

// factors is the part of the authority that checks second factors.
type factors interface {
	VerifyFactor(ctx context.Context, r *connect.Request[accessdv1.VerifyFactorRequest]) (*connect.Response[accessdv1.VerifyFactorResponse], error)
}

// Server is the SSH server of a node.
type Server struct {
	cfg      Config
	sessions *srv.Manager
	ssh      *sshserver.Server
}

// New returns a Server that has started nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Trust == nil || cfg.Engine == nil || cfg.Changed == nil || cfg.Events == nil || cfg.Ledger == nil || cfg.Recorder == nil {
		return nil, fault.New(fault.Internal, "node: a required field of Config is not set")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	cfg.Name = cmp.Or(cfg.Name, "node")
	cfg.Log = cfg.Log.Named(cfg.Name)
	cfg.Grace = cmp.Or(cfg.Grace, defaults.Grace)
	s := &Server{cfg: cfg}
	var err error
	s.sessions, err = srv.New(srv.Config{
		Engine: cfg.Engine, Changed: cfg.Changed, Events: cfg.Events, Ledger: cfg.Ledger, Recorder: cfg.Recorder,
		AcceptEnv: cfg.AcceptEnv, OutliveCertificate: cfg.OutliveCertificate,
		MaxSessions: cfg.MaxSessions, Grace: cfg.Grace, Now: cfg.Now, Registerer: labelled(cfg), Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	s.ssh, err = sshserver.New(sshserver.Config{
		Name: cfg.Name, HostKeysOf: func(c *sshserver.Conn) []ssh.Signer { return hostOf(c).HostKeys() }, Authenticate: s.authenticate,
		Channels: s.channels(), Requests: s.requests(), Opened: s.opened, Closed: s.closed,
		Limits: cfg.Limits, Algorithms: cfg.Algorithms, Keepalive: cfg.Keepalive, Grace: cfg.Grace + farewell,
		Registerer: cfg.Registerer, Log: cfg.Log,
	})
	return s, err
}

// labelled returns where the counters of sessions are registered, by server.
func labelled(cfg Config) prometheus.Registerer {
	if cfg.Registerer == nil {
		return nil
	}
	return prometheus.WrapRegistererWith(prometheus.Labels{"server": cfg.Name}, cfg.Registerer)
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

// Serve serves one connection to the machine of the Config and returns when it
// has ended. It is what the tunnel's agent hands connections to; conn's remote
// address must be the client's, as the proxy attests it.
func (s *Server) Serve(ctx context.Context, conn net.Conn) error {
	if s.cfg.Host == nil {
		conn.Close()
		return fault.New(fault.Internal, "node: a server without a machine of its own")
	}
	return s.ServeHost(ctx, conn, s.cfg.Host)
}

// ServeHost serves one connection to h and returns when it has ended.
func (s *Server) ServeHost(ctx context.Context, conn net.Conn, h *Host) error {
	return s.ssh.ServeConn(context.WithValue(ctx, hostKey{}, h), conn)
}

// hostKey is the key of a connection's Host in its context.
type hostKey struct{}

func hostOf(c *sshserver.Conn) *Host {
	h, ok := c.Context().Value(hostKey{}).(*Host)
	if !ok {
		panic("node: internal error: a connection without a host")
	}
	return h
}

// Sessions returns the sessions under way, to list and to end them.
func (s *Server) Sessions() *srv.Manager { return s.sessions }
