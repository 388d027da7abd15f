package proxy

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// DefaultMaxPerUser is how many connections, and how many bridges to nodes, one
// user may have unless told otherwise: a large ansible run, and room.
const DefaultMaxPerUser = 256

// Config configures a [Server]. What belongs to a role is nil in a process
// without that role.
type Config struct {
	HostKeys func() []ssh.Signer // to show, the host certificate before the plain key; required
	Policy   *services.Cache     // required
	Engine   *authz.Engine       // required
	Events   Emitter             // required

	// Role proxy, both or neither.
	People  *People // nil lets no people in
	Tunnels Tunnels // nil reaches no nodes
	// Forwarder serves connections to nodes that run plain sshd; nil reaches
	// none.
	Forwarder Forwarder

	// Authority answers the authority's services: role auth. In a process
	// without it, OpenAuthority reaches the authority, for a peer at origin; nil
	// never does.
	Authority     http.Handler
	OpenAuthority func(ctx context.Context, origin netip.AddrPort) (net.Conn, error)

	// Verbs runs a line of the command line for a person and returns its exit
	// code; nil runs none.
	Verbs func(ctx context.Context, call VerbCall) int

	// MaxPerUser bounds the connections, and the bridges, of one user; 0 means
	// [DefaultMaxPerUser].
	MaxPerUser int

	// What every SSH server has; see [sshserver.Config].
	Limits     sshserver.Limits
	Algorithms sshserver.Algorithms
	Keepalive  sshserver.Keepalive
	Grace      time.Duration
	Registerer prometheus.Registerer
	Now        func() time.Time
	Log        *zap.Logger
}

// People is what letting people in takes.
type People struct {
	Login  accessdv1connect.LoginServiceClient
	Grants accessdv1connect.GrantServiceClient
	// SignOn knows who has signed in through a browser lately; nil does not.
	SignOn accessdv1connect.SignOnServiceClient
	// Delegation gives out the certificates with which this process goes on to
	// nodes as somebody; nil does not.
	Delegation accessdv1connect.DelegationServiceClient
	// Locks gives plain sshd nodes the list of what is locked; nil does not.
	Locks accessdv1connect.LockServiceClient
	// Rotation gives plain sshd nodes the authorities' keys; nil does not.
	Rotation accessdv1connect.RotationServiceClient
	// Bots lets in bots; nil does not.
	Bots accessdv1connect.BotSignInServiceClient
	// Factors checks second factors for connections; nil: nobody can give one.
	Factors accessdv1connect.FactorServiceClient
}

// Tunnels are the ways to nodes; lib/reversetunnel has them.
type Tunnels interface {
	// Dial connects to node for a client at from.
	Dial(ctx context.Context, node names.NodeID, from netip.AddrPort) (net.Conn, error)
	// API returns what answers a member's calls to the tunnel service.
	API(c *sshserver.Conn) (path string, h http.Handler)
	// Forward answers a node's tcpip-forward or cancel-tcpip-forward request.
	Forward(c *sshserver.Conn, r *ssh.Request) (ok bool, payload []byte)
	// ForwardStock does so for a node that dials home with stock ssh.
	ForwardStock(c *sshserver.Conn, r *ssh.Request) (ok bool, payload []byte)
}

// Forwarder is the SSH server of plain sshd nodes; lib/srv/node has it.
type Forwarder interface {
	// ServeNode serves one connection of a client to n and returns when it has
	// ended. It always closes conn, whose remote address is the client's. The end
	// of ctx asks the connection to end when nothing is open on it.
	ServeNode(ctx context.Context, conn net.Conn, n services.Node) error
}

// Server serves people, members and joiners.
type Server struct {
	cfg    Config
	log    *zap.Logger
	audit  audit
	live   *live
	outer  *sshserver.Server // behind the listener
	nested *sshserver.Server // on accessd-authority channels; nil without the authority
	dialer *sshserver.Dialer // to nodes, as somebody

	forwards sync.WaitGroup // what reach has started
}

// New returns a Server that has started nothing.
func New(cfg Config) (*Server, error) {
	if cfg.HostKeys == nil || cfg.Policy == nil || cfg.Engine == nil || cfg.Events == nil {
		return nil, fault.New(fault.Internal, "proxy: host keys, policy, engine and events are required")
	}
	if (cfg.People == nil) != (cfg.Tunnels == nil) {
		return nil, fault.New(fault.Internal, "proxy: people and tunnels go together")
	}
	if cfg.MaxPerUser == 0 {
		cfg.MaxPerUser = DefaultMaxPerUser
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	s := &Server{cfg: cfg, log: cfg.Log.Named("proxy"), live: newLive(cfg.MaxPerUser)}
	s.audit = audit{out: cfg.Events, log: s.log}
	var err error
	if s.outer, err = sshserver.New(s.outerConfig()); err != nil {
		return nil, fmt.Errorf("serve ssh: %w", err)
	}
	s.dialer, err = sshserver.NewDialer(sshserver.DialerConfig{
		Name: "passage", Limits: cfg.Limits, Keepalive: cfg.Keepalive, Registerer: cfg.Registerer, Log: s.log,
	})
	if err != nil {
		return nil, fmt.Errorf("dial nodes: %w", err)
	}
	if cfg.Authority == nil {
		return s, nil
	}
	if s.nested, err = sshserver.New(s.nestedConfig()); err != nil {
		return nil, fmt.Errorf("serve ssh to the authority: %w", err)
	}
	return s, nil
}

// Serve accepts connections from ln until ctx ends, then lets open channels
// finish for Grace, cuts what is left and returns once nothing runs. It always
// closes ln, and is called once.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	watching, stop := context.WithCancel(context.WithoutCancel(ctx)) // rules hold while draining, too
	defer stop()
	wg.Go(func() { s.watch(watching) })
	s.live.quiet, s.live.hush = context.WithCancel(watching)
	defer s.live.hush()
	s.live.serving = ctx
	defer context.AfterFunc(ctx, s.live.drain)()
	defer s.forwards.Wait() // their clients are gone by then
	return s.outer.Serve(ctx, ln)
}

// outerConfig configures the server behind the listener.
func (s *Server) outerConfig() sshserver.Config {
	people := s.cfg.People != nil
	a := admits{people: people, signIns: people, joiners: s.cfg.Authority != nil || s.cfg.OpenAuthority != nil}
	cfg := s.sshConfig("outer", func(*sshserver.Conn) admits { return a })
	cfg.Channels[sshwire.ChannelAPI] = s.serveAPIChannel
	cfg.Channels[sshwire.ChannelSession] = s.serveSession
	cfg.Channels[sshwire.ChannelDirectTCPIP] = s.serveDirectTCPIP
	cfg.Channels[sshwire.ChannelDirectStreamlocal] = s.serveDirectStreamlocal
	cfg.Channels[sshwire.ChannelAuthority] = s.serveAuthority
	cfg.Requests[sshwire.RequestTCPIPForward] = s.forward
	cfg.Requests[sshwire.RequestCancelTCPIPForward] = s.forward
	cfg.Requests[sshwire.RequestStreamlocalForward] = s.forward
	cfg.Requests[sshwire.RequestCancelStreamlocalForward] = s.forward
	cfg.Opened, cfg.Closed = s.opened, s.closed
	return cfg
}

// nestedConfig configures the server on accessd-authority channels.
func (s *Server) nestedConfig() sshserver.Config {
	// A proxy goes to the authority as the people who run verbs at it; nobody else
	// has people behind them.
	cfg := s.sshConfig("authority", func(c *sshserver.Conn) admits {
		outer := outerOf(c)
		return admits{people: outer.Identity != nil && outer.Identity.Kind == sshca.KindProxy, joiners: true}
	})
	cfg.Channels[sshwire.ChannelAPI] = s.serveAuthorityAPI
	cfg.Opened, cfg.Closed = s.openedNested, s.closedNested
	return cfg
}

// sshConfig configures what both servers have.
func (s *Server) sshConfig(name string, a func(*sshserver.Conn) admits) sshserver.Config {
	return sshserver.Config{
		Name: name, HostKeys: s.cfg.HostKeys, Authenticate: s.authenticator(a),
		Channels: map[string]func(*sshserver.Conn, ssh.NewChannel){},
		Requests: map[string]func(*sshserver.Conn, *ssh.Request) (bool, []byte){},
		Limits:   s.cfg.Limits, Algorithms: s.cfg.Algorithms, Keepalive: s.cfg.Keepalive, Grace: s.cfg.Grace,
		Registerer: s.cfg.Registerer, Log: s.log,
	}
}
