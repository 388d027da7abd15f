package reversetunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshwire"
)

// DefaultPool is how many data connections a tunnel keeps warm unless told
// otherwise.
const DefaultPool = 2

// Bounds of a server.
const (
	// maxTickets bounds the unused tickets of one tunnel.
	maxTickets = 64
	// ticketTTL is how long a ticket is good: a dial over a bad link, twice.
	ticketTTL = 30 * time.Second
	// maxLive bounds the connections to one node that are in use.
	maxLive = 4096
	// maxOpening bounds the channel opens a node has not answered.
	maxOpening = 64
	// maxUnproven bounds data connections whose ticket has not come.
	maxUnproven = 512
	// proofTimeout is how long a ticket may take once its connection stands.
	proofTimeout = 10 * time.Second
	// headerTimeout bounds writing a header to a peer that should be waiting.
	headerTimeout = 5 * time.Second
	// raceAfter is how long a data connection is waited for alone.
	raceAfter = 250 * time.Millisecond
	// dialTimeout bounds reaching a node by all means together.
	dialTimeout = 10 * time.Second
	// probeTimeout is how long the holder of a node's tunnel has to prove that
	// it lives when another connection claims to be the same node.
	probeTimeout = 3 * time.Second
)

// Emitter records events; [events.Emitter] is one.
type Emitter interface {
	Emit(ctx context.Context, ev events.Event) error
}

// Directory knows the cluster's proxies; [services.Cache] is one.
type Directory interface {
	Proxies() []services.Proxy
	Changed() <-chan struct{} // closed at the next change
}

// ServerConfig configures a [Server].
type ServerConfig struct {
	ID        names.NodeID   // of this proxy; required
	Name      names.NodeName // of this proxy
	Events    Emitter        // required
	Directory Directory      // required

	AuthorityHere bool // the authority answers on this process's accessd-api channels
	NoDialBack    bool // sessions go over channels of the control connection only
	Plain         bool // data connections use no TLS
	Pool          int  // warm data connections per node; 0 means [DefaultPool], negative none

	Log *zap.Logger // nil discards
}

// Server keeps the tunnels of a proxy. It takes no connections of its own: the
// proxy's SSH server hands it control connections by [Server.API] and
// [Server.Forward], the listener data connections by [Server.Serve].
type Server struct {
	cfg  ServerConfig
	log  *zap.Logger
	key  *dataKey // nil without TLS or without dial-back
	path string
	api  http.Handler

	live sync.WaitGroup // what spawn started

	mu       sync.Mutex
	stopped  bool
	tunnels  map[names.NodeID]*tunnel
	tickets  map[ticketHash]ticket
	forwards map[*sshserver.Conn]sshwire.TCPIPForward
	unproven int
	changed  chan struct{} // closed when tunnels changes
	news     news
}

// news is what every agent is told. It is replaced, never changed.
type news struct {
	peers, drain *accessdv1.AttachResponse
	next         chan struct{} // closed when there is newer news
}

// NewServer returns a Server that has started nothing.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.ID == "" || cfg.Events == nil || cfg.Directory == nil {
		return nil, fault.New(fault.Internal, "tunnel server: id, events and directory are required")
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Pool == 0 {
		cfg.Pool = DefaultPool
	}
	s := &Server{
		cfg: cfg, log: cfg.Log.Named("tunnels"),
		tunnels: map[names.NodeID]*tunnel{}, tickets: map[ticketHash]ticket{},
		forwards: map[*sshserver.Conn]sshwire.TCPIPForward{},
		changed:  make(chan struct{}), news: news{next: make(chan struct{})},
	}
	s.path, s.api = accessdv1connect.NewTunnelServiceHandler(service{s}, rpc.ServerOptions(s.log)...)
	if cfg.NoDialBack || cfg.Plain {
		return s, nil
	}
	key, err := newDataKey()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "tunnel server: no key for data connections")
	}
	s.key = key
	return s, nil
}

// Run tells agents of the cluster's proxies until ctx ends. Then it drops the
// warm data connections and returns once nothing of the server runs; that takes
// until the control connections have ended.
func (s *Server) Run(ctx context.Context) error {
	for {
		changed := s.cfg.Directory.Changed()
		s.announce(s.peers())
		select {
		case <-changed:
			continue
		case <-ctx.Done():
		}
		break
	}
	s.mu.Lock()
	s.stopped = true
	for _, t := range s.tunnels {
		t.closeIdleLocked()
	}
	s.mu.Unlock()
	s.live.Wait()
	return nil
}

// errStopped tells that the server runs no more.
var errStopped = fault.New(fault.Unavailable, "the proxy is stopping")

// spawn runs f in a goroutine that Run waits for, unless it no longer does.
func (s *Server) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.live.Go(f)
	}
	return !s.stopped
}

// TLSConfig returns what the listener needs for data connections: nil when they
// use no TLS or there are none.
func (s *Server) TLSConfig() *tls.Config {
	if s.key == nil {
		return nil
	}
	return s.key.server()
}

// Up returns the nodes that have a tunnel here, sorted.
func (s *Server) Up() []names.NodeID {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]names.NodeID, 0, len(s.tunnels))
	for id := range s.tunnels {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Changed returns a channel that is closed when [Server.Up] changes. Take it
// before asking Up.
func (s *Server) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Drain tells every agent, also those yet to come, to be gone in after, and
// where to; no address means back here.
func (s *Server) Drain(after time.Duration, addresses []string) {
	s.publish(func(n *news) {
		n.drain = &accessdv1.AttachResponse{What: &accessdv1.AttachResponse_Drain{Drain: &accessdv1.Drain{
			AfterMs: int32(min(after, time.Hour).Milliseconds()), Addresses: addresses,
		}}}
	})
}

// peers returns the cluster's proxies as agents are told of them.
func (s *Server) peers() *accessdv1.AttachResponse {
	p := &accessdv1.Peers{}
	for _, proxy := range s.cfg.Directory.Proxies() {
		if !proxy.Draining && len(p.Proxies) < maxPeers {
			p.Proxies = append(p.Proxies, &accessdv1.Peer{Id: string(proxy.ID), Addresses: proxy.Addresses})
		}
	}
	slices.SortFunc(p.Proxies, func(a, b *accessdv1.Peer) int {
		if a.GetId() < b.GetId() {
			return -1
		}
		return 1
	})
	return &accessdv1.AttachResponse{What: &accessdv1.AttachResponse_Peers{Peers: p}}
}

// announce tells agents of the cluster's proxies, unless they know.
func (s *Server) announce(peers *accessdv1.AttachResponse) {
	if !proto.Equal(s.latest().peers, peers) {
		s.publish(func(n *news) { n.peers = peers })
	}
}

func (s *Server) latest() news {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.news
}

func (s *Server) publish(change func(*news)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.news.next)
	s.news.next = make(chan struct{})
	change(&s.news)
}

// Serve takes data connections from ln until ctx ends or ln is closed, and
// returns once all of them are in their tunnels' hands. It always closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			wg.Go(func() { s.admit(conn) })
		case errors.Is(err, net.ErrClosed), ctx.Err() != nil:
			return nil
		default:
			return err
		}
	}
}
