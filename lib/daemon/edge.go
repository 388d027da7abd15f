package daemon

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/config"
	"github.com/accessd/accessd/lib/reversetunnel"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/srv/listener"
	"github.com/accessd/accessd/lib/srv/proxy"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/web"
)

// edge is the listener of a process with the auth or the proxy role, and what
// answers on it.
type edge struct {
	ln        *listener.Listener
	tunnels   *reversetunnel.Server // nil without the proxy role
	ssh       *proxy.Server
	forwarder *forwarder // nil without the proxy role

	told atomic.Bool // the cluster knows of this proxy
}

func (e *edge) addr() string    { return e.ln.Addr().String() }
func (e *edge) announced() bool { return e.told.Load() }

// startEdge binds the listener, gets this process its place in the cluster, and
// serves.
func (d *Daemon) startEdge(ctx context.Context) error {
	e := &edge{}
	if err := d.listen(ctx, e); err != nil {
		return err
	}
	d.edge = e
	m, err := openMember(d.path("identity", "server"))
	if err != nil {
		return err
	}
	link, err := d.joinCluster(ctx, m)
	if err != nil {
		return err
	}
	if err := d.awaitPolicy(ctx); err != nil {
		return err
	}
	if d.cfg.Role("proxy") {
		if err := d.startTunnels(ctx, e); err != nil {
			return err
		}
	}
	return d.serveEdge(ctx, e, link)
}

// listen binds the listener.
func (d *Daemon) listen(ctx context.Context, e *edge) error {
	cert, err := web.NewCertificate(web.CertificateConfig{
		CertFile: d.cfg.TLS.CertFile, KeyFile: d.cfg.TLS.KeyFile, Dir: d.path("tls"), Names: certificateNames(d.cfg), Log: d.log,
	})
	if err != nil {
		return err
	}
	if d.cfg.Role("proxy") {
		if e.tunnels, err = d.newTunnels(); err != nil {
			return err
		}
	}
	cfg := listener.Config{
		Bind: listener.Bind{Addr: d.cfg.Listen}, TrustedProxies: d.cfg.ProxyProtocol.Trusted,
		Certificate: cert.Get, PlainData: d.cfg.Tunnel.Plain, Limits: listenerLimits(d.cfg.Limits),
		Registerer: d.metrics, Log: d.log,
	}
	for _, l := range d.cfg.Listeners {
		bind := listener.Bind{Addr: l.Address}
		for _, p := range l.Protocols {
			bind.Protocols = append(bind.Protocols, listener.Protocol(p))
		}
		cfg.Extra = append(cfg.Extra, bind)
	}
	if e.tunnels != nil {
		cfg.Data = e.tunnels.TLSConfig()
	}
	if e.ln, err = listener.New(cfg); err != nil {
		return err
	}
	return e.ln.Listen(ctx)
}

// certificateNames are what a self-signed TLS certificate is for.
func certificateNames(cfg *config.Config) []string {
	list := []string{"localhost", "127.0.0.1", "::1"}
	for _, a := range append([]string{cfg.Listen}, cfg.PublicAddresses...) {
		host, _, err := net.SplitHostPort(a)
		if err != nil {
			host = a
		}
		if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
			list = append(list, host)
		}
	}
	return list
}

func listenerLimits(l config.Limits) listener.Limits {
	return listener.Limits{
		Start: l.StartupsBegin, Rate: l.StartupsRate, Full: l.StartupsFull, PerSource: l.PerSource,
		Parked: l.ParkedSignIns, Penalties: listener.Penalties{Off: l.NoPenalties}, Exempt: l.Exempt,
	}
}

func (d *Daemon) newTunnels() (*reversetunnel.Server, error) {
	return reversetunnel.NewServer(reversetunnel.ServerConfig{
		ID: d.id, Name: d.name, Events: d.events, Directory: d.cache, AuthorityHere: d.cfg.Role("auth"),
		NoDialBack: d.cfg.Tunnel.NoDialBack, Plain: d.cfg.Tunnel.Plain, Log: d.log,
	})
}

// drainAfter is the time agents get to move to another proxy when this one
// stops.
const drainAfter = time.Second

// otherProxies returns where agents of this proxy may go.
func (d *Daemon) otherProxies() []string {
	var list []string
	for _, p := range d.cache.Proxies() {
		if p.ID != d.id && !p.Draining {
			list = append(list, p.Addresses...)
		}
	}
	return list
}

// awaitPolicy waits for a first copy of the policy, without which nobody could
// be told from a stranger.
func (d *Daemon) awaitPolicy(ctx context.Context) error {
	select {
	case <-d.cache.Synced():
		return nil
	case err := <-d.run.failed:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// startTunnels runs the tunnels and takes data connections.
func (d *Daemon) startTunnels(ctx context.Context, e *edge) error {
	d.run.start(ctx, rankTunnels, "tunnels", e.tunnels.Run)
	d.run.start(ctx, rankTunnels, "data connections", func(ctx context.Context) error {
		return e.tunnels.Serve(ctx, e.ln.Data())
	})
	return nil
}

// serveEdge serves SSH and HTTPS on the listener and announces this proxy.
func (d *Daemon) serveEdge(ctx context.Context, e *edge, link *reversetunnel.Agent) error {
	if err := d.ensureEngine(); err != nil {
		return err
	}
	cfg := d.proxyConfig(e, link)
	if e.tunnels != nil {
		f, err := d.startForwarder(ctx, e.tunnels)
		if err != nil {
			return err
		}
		cfg.Forwarder, e.forwarder, cfg.Verbs = f, f, d.verbs
	}
	server, err := proxy.New(cfg)
	if err != nil {
		return err
	}
	e.ssh = server
	pages := web.Config{Unready: d.unready, Gatherer: d.metrics, Grace: d.cfg.Grace, Log: d.log}
	if cfg.People != nil {
		pages.SignOn, pages.Bots = cfg.People.SignOn, cfg.People.Bots
		pages.API, pages.Events = d.passOn(), d.events
	}
	site, err := web.New(pages)
	if err != nil {
		return err
	}
	d.run.start(ctx, rankTraffic, "listener", e.ln.Run)
	d.run.start(ctx, rankTraffic, "ssh", func(ctx context.Context) error { return server.Serve(ctx, e.ln.SSH()) })
	d.run.start(ctx, rankTraffic, "https", func(ctx context.Context) error { return site.Serve(ctx, e.ln.HTTPS()) })
	if e.tunnels != nil {
		d.run.atStop(ctx, rankTraffic, "drain", func() error {
			e.tunnels.Drain(drainAfter, d.otherProxies())
			return nil
		})
		a := &announcer{seat: d.server, addresses: d.publicAddresses(), up: e.tunnels.Up, changed: e.tunnels.Changed}
		d.run.start(ctx, rankMember, "announcements", func(ctx context.Context) error {
			return a.Run(ctx, func() { e.told.Store(true) })
		})
	}
	return nil
}

func (d *Daemon) proxyConfig(e *edge, link *reversetunnel.Agent) proxy.Config {
	l := d.cfg.Limits
	cfg := proxy.Config{
		HostKeys: func() []ssh.Signer { return d.server.hostSigners() },
		Policy:   d.cache, Engine: d.engine, Events: d.events,
		Limits: sshserver.Limits{
			KexTimeout: l.KexTimeout, LoginTimeout: l.LoginTimeout, SignInTimeout: l.SignInTimeout, MaxChannels: l.ChannelsPerConn,
		},
		Algorithms: sshserver.Algorithms{Ciphers: d.cfg.SSH.Ciphers},
		Grace:      d.cfg.Grace, Registerer: d.metrics, Log: d.log,
	}
	if d.authority != nil {
		cfg.Authority = d.authority.handler
	} else {
		cfg.OpenAuthority = func(ctx context.Context, origin netip.AddrPort) (net.Conn, error) {
			return link.OpenAuthority(ctx, origin)
		}
	}
	if e.tunnels != nil {
		cfg.Tunnels = e.tunnels
		cfg.People = &proxy.People{
			Login:  rpc.Service(d.server.calls, accessdv1connect.NewLoginServiceClient),
			Grants: rpc.Service(d.server.calls, accessdv1connect.NewGrantServiceClient),
			SignOn: rpc.Service(d.server.calls, accessdv1connect.NewSignOnServiceClient),
			Bots:   rpc.Service(d.server.calls, accessdv1connect.NewBotSignInServiceClient),

			Delegation: rpc.Service(d.server.calls, accessdv1connect.NewDelegationServiceClient),
			Locks:      rpc.Service(d.server.calls, accessdv1connect.NewLockServiceClient),
			Rotation:   rpc.Service(d.server.calls, accessdv1connect.NewRotationServiceClient),
			Factors:    rpc.Service(d.server.calls, accessdv1connect.NewFactorServiceClient),
		}
	}
	return cfg
}

// passOn returns what answers calls that this proxy passes on for others.
func (d *Daemon) passOn() http.Handler {
	if d.authority != nil {
		return asMember(d.authority.handler, d.server.member, d.trust)
	}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "accessd" // the connection decides where it goes
			r.Out.Host = ""
		},
		Transport: d.server.calls.Transport, FlushInterval: -1, ErrorLog: zap.NewStdLog(d.log.Named("api")),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			d.log.Info("a call was not passed on", zap.Error(err))
			_ = connect.NewErrorWriter().Write(w, r, connect.NewError(connect.CodeUnavailable, errors.New("the authority is away"))) // the client has gone, or not
		},
	}
}

// joinCluster gives this process its place as authority or proxy: from the
// authority inside it, or over a link to one elsewhere, which it returns.
func (d *Daemon) joinCluster(ctx context.Context, m *member) (*reversetunnel.Agent, error) {
	if d.authority != nil {
		if err := d.admit(ctx, m, sshca.KindAuth); err != nil {
			return nil, err
		}
		d.peers.self.Store(m)
		d.server = &seat{member: m, calls: localCalls(d.authority.handler, m, d.trust), trust: d.trust, cache: d.cache, log: d.log}
		d.server.admit = func(ctx context.Context) error { return d.admit(ctx, m, sshca.KindAuth) }
		d.run.start(ctx, rankMember, "renewal", d.server.renew)
		return nil, nil //nolint:nilnil // the authority is here, and needs no link
	}
	agent, s, err := d.link(ctx, m, linkConfig{kind: sshca.KindProxy})
	if err != nil {
		return nil, err
	}
	d.server = s
	d.followPolicy(ctx, s)
	return agent, nil
}

// followPolicy keeps the cache of a process without the authority.
func (d *Daemon) followPolicy(ctx context.Context, s *seat) {
	d.run.start(ctx, rankMember, "policy", func(ctx context.Context) error { return s.followPolicy(ctx, d.cache) })
	d.run.start(ctx, rankMember, "policy copy", func(ctx context.Context) error { return s.savePolicy(ctx, d.cache, d.path("policy.snapshot")) })
}
