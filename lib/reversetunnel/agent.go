package reversetunnel

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// DefaultProxies is how many proxies a node keeps tunnels to unless told
// otherwise.
const DefaultProxies = 2

// Bounds of an agent.
const (
	// handshakeTimeout bounds dialling and the SSH handshake.
	handshakeTimeout = 30 * time.Second
	// unacked is how long what was sent may go without an acknowledgement.
	unacked = 30 * time.Second
	// maxServed bounds the connections one proxy may have the agent serve or
	// keep warm.
	maxServed = 4096
	// maxDialing bounds the data connections being set up at a time.
	maxDialing = 32
	// lazyPause is the pause before an address is tried again that led to a
	// proxy which has a tunnel already: a load balancer may choose another.
	lazyPause = 30 * time.Second
	// newsPause bounds the pause before a proxy is dialed of which many members
	// heard at once.
	newsPause = 500 * time.Millisecond
	// glimpseTimeout is how long an answer may take when the network has just
	// changed.
	glimpseTimeout = 3 * time.Second
	// recheck is how often a slot without anything to dial looks at the
	// configured addresses again.
	recheck = time.Minute
)

// AgentConfig configures an [Agent].
type AgentConfig struct {
	// Addresses returns the proxies' addresses as configured, "host:port";
	// required. The agent learns of more from the proxies.
	Addresses func() []string
	// Identity returns the member's name and the signer with its certificate;
	// required. It is asked for each connection, so that a renewed certificate
	// is used.
	Identity func() (names.NodeName, ssh.Signer)
	// Trust returns the cluster's CAs; required.
	Trust func() sshca.Trust
	// Serve serves one connection from a client, whose address is the
	// connection's RemoteAddr, and closes it. Its ctx ends with Run's. nil means
	// that the process is no node: there is a link to the authority, and no
	// tunnel.
	Serve func(ctx context.Context, conn net.Conn)

	Proxies    int  // tunnels to keep, each to another proxy; 0 means [DefaultProxies]
	NoDialBack bool // dial no data connections

	KeepaliveInterval time.Duration // 0 means defaults.KeepaliveInterval
	KeepaliveMisses   int           // 0 means defaults.KeepaliveMisses

	// Dial opens the connection to a proxy; nil means TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	Now  func() time.Time // nil means time.Now
	Log  *zap.Logger      // nil discards
}

// Agent is a member's side: it keeps links to proxies, and tunnels on them when
// it is a node.
type Agent struct {
	cfg AgentConfig
	log *zap.Logger
	key *dataKey

	served  gate          // connections from clients, warm ones too
	dialing chan struct{} // has a place per data connection being set up

	mu      sync.Mutex
	peers   []peer               // as the proxies tell
	up      []*link              // ready for calls; the first is asked first
	busy    map[string]int       // slots per address
	holds   map[names.NodeID]int // slots per proxy
	away    map[string]time.Time // ids and addresses of proxies that drain, until when
	changed chan struct{}        // closed when any of it changes
	network chan struct{}        // closed when the network changes
}

// peer is a proxy as another proxy told of it.
type peer struct {
	id        names.NodeID
	addresses []string
}

// NewAgent returns an Agent that has started nothing.
func NewAgent(cfg AgentConfig) (*Agent, error) {
	if cfg.Addresses == nil || cfg.Identity == nil || cfg.Trust == nil {
		return nil, fault.New(fault.Internal, "tunnel agent: addresses, identity and trust are required")
	}
	if cfg.Proxies <= 0 {
		cfg.Proxies = DefaultProxies
	}
	if cfg.Serve == nil {
		cfg.Proxies = 1 // the way to the authority is one
	}
	if cfg.KeepaliveInterval == 0 {
		cfg.KeepaliveInterval = defaults.KeepaliveInterval
	}
	if cfg.KeepaliveMisses == 0 {
		cfg.KeepaliveMisses = defaults.KeepaliveMisses
	}
	if cfg.Dial == nil {
		cfg.Dial = dialTCP
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	key, err := newDataKey()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "tunnel agent: no key for data connections")
	}
	return &Agent{
		cfg: cfg, log: cfg.Log.Named("agent"), key: key, dialing: make(chan struct{}, maxDialing),
		busy: map[string]int{}, holds: map[names.NodeID]int{}, away: map[string]time.Time{},
		changed: make(chan struct{}), network: make(chan struct{}),
	}, nil
}

// dialTCP opens a connection that notices when its peer is gone.
func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: defaults.KeepaliveInterval, Interval: defaults.KeepaliveInterval, Count: defaults.KeepaliveMisses,
		},
		Control: userTimeout,
	}
	return d.DialContext(ctx, "tcp", address)
}

// Run keeps the links until ctx ends. Then it takes no new connection, lets
// those it serves end, closes the links and returns.
func (a *Agent) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := watchNetwork(ctx, a.networkChanged); err != nil {
			a.log.Info("changes of the network are not seen; keepalives must do", zap.Error(err))
		}
	})
	for range a.cfg.Proxies {
		s := slot{Agent: a, links: &wg}
		wg.Go(func() { s.keep(ctx) })
	}
	wg.Wait()
	<-a.served.close()
	return nil
}

// Up returns the proxies the agent has links to, sorted.
func (a *Agent) Up() []names.NodeID {
	a.mu.Lock()
	defer a.mu.Unlock()
	var ids []names.NodeID
	for _, l := range a.up {
		ids = append(ids, l.proxy)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// Changed returns a channel that is closed when [Agent.Up] may have changed.
// Take it before asking Up.
func (a *Agent) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// update changes the agent's state and tells who waits for that.
func (a *Agent) update(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
	close(a.changed)
	a.changed = make(chan struct{})
}

// networkChanged has every link look whether it still stands, and who pauses
// dial at once.
func (a *Agent) networkChanged() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.network)
	a.network = make(chan struct{})
	for _, l := range a.up {
		l.glimpse()
	}
}

// ready puts l among the links that calls may use.
func (a *Agent) ready(l *link) {
	a.update(func() { a.up = append(a.up, l) })
	a.log.Info("link up", zap.String("proxy", l.addr), zap.String("proxy_id", string(l.proxy)))
}

// lost takes l out again.
func (a *Agent) lost(l *link) {
	a.update(func() { a.up = slices.DeleteFunc(a.up, func(other *link) bool { return other == l }) })
}

// demote has calls ask l last.
func (a *Agent) demote(l *link) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if i := slices.Index(a.up, l); i >= 0 {
		a.up = append(slices.Delete(a.up, i, i+1), l)
	}
}

// link waits for a link that is up.
func (a *Agent) link(ctx context.Context) (*link, error) {
	for {
		changed := a.Changed()
		if l := a.first(); l != nil {
			return l, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fault.Wrap(fault.Unavailable, context.Cause(ctx), "no link to the cluster")
		}
	}
}

func (a *Agent) first() *link {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.up) == 0 {
		return nil
	}
	return a.up[0]
}
