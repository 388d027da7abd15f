package reversetunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/relay"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/listener"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// client1 is where the clients of these tests come from.
var client1 = netip.MustParseAddrPort("203.0.113.7:40022")

// world has the CAs of one cluster, and its proxies.
type world struct {
	t               testing.TB
	host, node      ssh.Signer
	otherHost, user ssh.Signer
	dir             *directory
	log             *zap.Logger
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, dir: newDirectory(), log: zap.NewNop()}
	if testing.Verbose() {
		w.log = zaptest.NewLogger(t, zaptest.WrapOptions(zap.AddCaller()))
	}
	for _, s := range []*ssh.Signer{&w.host, &w.node, &w.otherHost, &w.user} {
		_, *s = sshca.Generate()
	}
	return w
}

func (w *world) trust() sshca.Trust {
	return sshca.Trust{
		Host: []ssh.PublicKey{w.host.PublicKey()}, Node: []ssh.PublicKey{w.node.PublicKey()}, User: []ssh.PublicKey{w.user.PublicKey()},
	}
}

// member returns a signer with a member certificate.
func (w *world) member(id names.NodeID, name names.NodeName, kind sshca.Kind) ssh.Signer {
	w.t.Helper()
	_, key := sshca.Generate()
	cert, err := sshca.MintMember(w.node, sshca.MemberRequest{
		Key: key.PublicKey(), ID: id, Name: name, Kind: kind, Serial: 7,
		ValidAfter: time.Now().Add(-time.Minute), ValidBefore: time.Now().Add(time.Hour),
	})
	return w.certified(cert, key, err)
}

// hostKey returns a signer with a host certificate.
func (w *world) hostKey(ca ssh.Signer, principals ...string) ssh.Signer {
	w.t.Helper()
	_, key := sshca.Generate()
	cert, err := sshca.MintHost(ca, sshca.HostRequest{
		Key: key.PublicKey(), KeyID: "host", Principals: principals, Serial: 8,
		ValidAfter: time.Now().Add(-time.Minute), ValidBefore: time.Now().Add(time.Hour),
	})
	return w.certified(cert, key, err)
}

func (w *world) certified(cert *ssh.Certificate, key ssh.Signer, err error) ssh.Signer {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// directory is a Directory.
type directory struct {
	mu      sync.Mutex
	proxies []services.Proxy
	changed chan struct{}
}

func newDirectory() *directory { return &directory{changed: make(chan struct{})} }

func (d *directory) Proxies() []services.Proxy {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.proxies)
}

func (d *directory) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

func (d *directory) set(p ...services.Proxy) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.proxies = p
	close(d.changed)
	d.changed = make(chan struct{})
}

// recorder is an Emitter.
type recorder struct {
	mu      sync.Mutex
	list    []events.Event
	fail    error
	changed chan struct{}
}

func newRecorder() *recorder { return &recorder{changed: make(chan struct{})} }

func (r *recorder) next() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// expect waits for the text of what was recorded; or are others that will do.
func (r *recorder) expect(t testing.TB, want string, or ...string) {
	t.Helper()
	await(t, fmt.Sprintf("events %q, then", want), r.next, func() bool { return len(r.text()) >= len(want) })
	if got := r.text(); got != want && !slices.Contains(or, got) {
		t.Errorf("events %q, want %q", got, want)
	}
}

func (r *recorder) Emit(_ context.Context, ev events.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail == nil {
		r.list = append(r.list, ev)
		close(r.changed)
		r.changed = make(chan struct{})
	}
	return r.fail
}

// text returns what was recorded, one word each: "tunnel.up", or "tunnel.up!"
// when it failed.
func (r *recorder) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var words []string
	for _, ev := range r.list {
		word := string(ev.Name)
		if !ev.Success {
			word += "!"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// authority answers a few of the authority's services with who asked.
type authority struct {
	accessdv1connect.UnimplementedMemberServiceHandler
	accessdv1connect.UnimplementedJoinServiceHandler
}

func (authority) Announce(ctx context.Context, _ *connect.Request[accessdv1.AnnounceRequest]) (*connect.Response[accessdv1.AnnounceResponse], error) {
	p, _ := rpc.PeerFrom(ctx)
	if p.Identity == nil {
		return nil, fault.New(fault.Denied, "nobody")
	}
	return connect.NewResponse(&accessdv1.AnnounceResponse{Lease: string(p.Identity.MemberName) + " " + p.Addr.Addr().String()}), nil
}

func (authority) Join(ctx context.Context, req *connect.Request[accessdv1.JoinRequest]) (*connect.Response[accessdv1.JoinResponse], error) {
	p, _ := rpc.PeerFrom(ctx)
	if p.Joiner == nil {
		return nil, fault.New(fault.Denied, "no key")
	}
	return connect.NewResponse(&accessdv1.JoinResponse{Name: req.Msg.GetToken(), Id: ssh.FingerprintSHA256(p.Joiner)}), nil
}

func (a authority) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(accessdv1connect.NewMemberServiceHandler(a, rpc.ServerOptions(nil)...))
	mux.Handle(accessdv1connect.NewJoinServiceHandler(a, rpc.ServerOptions(nil)...))
	return mux
}

// proxy is a proxy with all that tunnels need of one.
type proxy struct {
	*world
	id     names.NodeID
	addr   string
	server *Server
	events *recorder
	beat   sshserver.Keepalive
	calls  http.Handler                                                       // the authority's services
	far    func(ctx context.Context, origin netip.AddrPort) (net.Conn, error) // to an authority elsewhere

	listener *listener.Listener
	outer    *sshserver.Server
	nested   *sshserver.Server
	stop     func() // kills it: connections are cut, and all of it has ended
}

type proxyConfig struct {
	ServerConfig
	addr    string // "" lets the system choose
	hostKey ssh.Signer
	beat    sshserver.Keepalive
	nested  ssh.Signer                                                         // host key of nested connections
	far     func(ctx context.Context, origin netip.AddrPort) (net.Conn, error) // authority elsewhere
}

// startProxy starts a proxy. Its authority is in the same process, reached on
// accessd-api when AuthorityHere, else on accessd-authority.
func (w *world) startProxy(change func(*proxyConfig)) *proxy {
	w.t.Helper()
	p := &proxy{world: w, id: names.NewNodeID(), events: newRecorder(), calls: authority{}.handler()}
	cfg := proxyConfig{ServerConfig: ServerConfig{
		ID: p.id, Name: "edge", Events: p.events, Directory: w.dir, AuthorityHere: true, Log: w.log,
	}}
	if change != nil {
		change(&cfg)
	}
	p.id, p.far = cfg.ID, cfg.far
	if cfg.hostKey == nil {
		cfg.hostKey = w.hostKey(w.host, string(p.id), "127.0.0.1")
	}
	if cfg.nested == nil {
		cfg.nested = w.hostKey(w.host, string(p.id), defaults.AuthorityName)
	}
	var err error
	if p.server, err = NewServer(cfg.ServerConfig); err != nil {
		w.t.Fatal(err)
	}
	p.listen(cfg)
	p.beat = cfg.beat
	p.outer = p.sshServer("outer", cfg.hostKey, p.serveAPI)
	p.nested = p.sshServer("nested", cfg.nested, func(c *sshserver.Conn, nc ssh.NewChannel) { p.serveRPC(c, nc, p.calls) })
	p.run()
	return p
}

func (p *proxy) listen(cfg proxyConfig) {
	p.t.Helper()
	if cfg.addr == "" {
		cfg.addr = "127.0.0.1:0"
	}
	var err error
	p.listener, err = listener.New(listener.Config{
		Bind: listener.Bind{Addr: cfg.addr}, Data: p.server.TLSConfig(), PlainData: cfg.Plain,
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, io.EOF },
		Limits:      listener.Limits{Start: 10_000, Full: 10_000, PerSource: 10_000, Exempt: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
		Log:         p.log,
	})
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.listener.Listen(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	p.addr = p.listener.Addr().String()
}

func (p *proxy) run() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.t.Context()))
	tunnels, stopTunnels := context.WithCancel(context.WithoutCancel(ctx))
	var wg, late sync.WaitGroup
	check := func(what string, err error) {
		if err != nil {
			p.t.Errorf("%s: %v", what, err)
		}
	}
	wg.Go(func() { check("listener", p.listener.Run(ctx)) })
	wg.Go(func() { check("ssh", p.outer.Serve(ctx, p.listener.SSH())) })
	wg.Go(func() { check("data", p.server.Serve(ctx, p.listener.Data())) })
	late.Go(func() { check("tunnels", p.server.Run(tunnels)) })
	p.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		stopTunnels()
		late.Wait()
	})
	p.t.Cleanup(p.stop)
}

func (p *proxy) sshServer(name string, host ssh.Signer, api func(*sshserver.Conn, ssh.NewChannel)) *sshserver.Server {
	p.t.Helper()
	forward := func(c *sshserver.Conn, r *ssh.Request) (bool, []byte) {
		if strings.HasPrefix(string(c.Identity.MemberName), "stock") {
			return p.server.ForwardStock(c, r)
		}
		return p.server.Forward(c, r)
	}
	s, err := sshserver.New(sshserver.Config{
		Name: name, HostKeys: func() []ssh.Signer { return []ssh.Signer{host} }, Authenticate: p.authenticate,
		Channels: map[string]func(*sshserver.Conn, ssh.NewChannel){
			sshwire.ChannelAPI: api, sshwire.ChannelAuthority: p.serveAuthority,
		},
		Requests: map[string]func(*sshserver.Conn, *ssh.Request) (bool, []byte){
			sshwire.RequestTCPIPForward: forward, sshwire.RequestCancelTCPIPForward: forward,
		},
		Keepalive: p.beat, Grace: time.Nanosecond, Log: p.log,
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

func (p *proxy) authenticate(c *sshserver.Conn, cfg *ssh.ServerConfig) error {
	cfg.PublicKeyCallback = func(m ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if m.User() == JoinUser {
			return nil, nil
		}
		_, err := p.identify(m, key)
		return nil, err
	}
	cfg.VerifiedPublicKeyCallback = func(m ssh.ConnMetadata, key ssh.PublicKey, perm *ssh.Permissions, _ string) (*ssh.Permissions, error) {
		if m.User() == JoinUser {
			return perm, c.ProveKey(key)
		}
		id, err := p.identify(m, key)
		if err != nil {
			return nil, err
		}
		return perm, c.Prove(id)
	}
	return nil
}

func (p *proxy) identify(m ssh.ConnMetadata, key ssh.PublicKey) (*sshca.Identity, error) {
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, fault.New(fault.Denied, "no certificate")
	}
	return p.trust().CheckMember(cert, sshca.Peer{SSHUser: m.User(), Now: time.Now()})
}

func (p *proxy) serveAPI(c *sshserver.Conn, nc ssh.NewChannel) {
	path, tunnels := p.server.API(c)
	p.serveRPC(c, nc, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, path) {
			tunnels.ServeHTTP(w, r)
			return
		}
		p.calls.ServeHTTP(w, r)
	}))
}

func (p *proxy) serveRPC(c *sshserver.Conn, nc ssh.NewChannel, h http.Handler) {
	ch, _, err := nc.Accept()
	if err != nil {
		return
	}
	peer := rpc.Peer{Identity: c.Identity, Joiner: c.Joiner, Addr: c.Remote}
	if err := rpc.Serve(c.Context(), rpc.ChannelConn(ch, c.LocalAddr(), c.RemoteAddr()), peer, h); err != nil {
		p.t.Errorf("serve api: %v", err)
	}
}

func (p *proxy) serveAuthority(c *sshserver.Conn, nc ssh.NewChannel) {
	open, err := sshwire.ParseAuthorityOpen(nc.ExtraData())
	if err != nil {
		p.t.Error(err)
	}
	origin := sshwire.ParseOrigin(open.OriginAddr, open.OriginPort)
	if p.far != nil {
		far, err := p.far(c.Context(), c.Remote)
		if err != nil {
			_ = nc.Reject(ssh.ConnectionFailed, fault.Public(err))
			return
		}
		ch, _, err := nc.Accept()
		if err != nil {
			far.Close()
			return
		}
		relay.Pipe(c.Context(), ch, far)
		return
	}
	ch, _, err := nc.Accept()
	if err != nil {
		return
	}
	_ = p.nested.ServeConn(c.Context(), rpc.ChannelConn(ch, c.LocalAddr(), net.TCPAddrFromAddrPort(origin)))
}

// node is an agent whose server says who calls, then echoes.
type node struct {
	*Agent
	id     names.NodeID
	name   names.NodeName
	signer ssh.Signer
	stop   func()
}

func (w *world) startNode(name names.NodeName, change func(*AgentConfig), addrs ...string) *node {
	w.t.Helper()
	return w.startNodeAs(names.NewNodeID(), name, change, addrs...)
}

func (w *world) startNodeAs(id names.NodeID, name names.NodeName, change func(*AgentConfig), addrs ...string) *node {
	w.t.Helper()
	n := &node{id: id, name: name, signer: w.member(id, name, sshca.KindNode)}
	cfg := AgentConfig{
		Addresses: func() []string { return addrs },
		Identity:  func() (names.NodeName, ssh.Signer) { return n.name, n.signer },
		Trust:     w.trust,
		Serve:     echo,
		Log:       w.log.Named(string(name)),
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if n.Agent, err = NewAgent(cfg); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("agent: %v", err)
		}
	})
	w.t.Cleanup(n.stop)
	return n
}

// echo says who calls, then echoes until the end of ctx.
func echo(ctx context.Context, conn net.Conn) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	fmt.Fprintln(conn, conn.RemoteAddr())
	_, _ = io.Copy(conn, conn)
}

// await waits until cond holds, looking whenever changed says so.
func await(t testing.TB, what string, changed func() <-chan struct{}, cond func() bool) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		next := changed()
		if cond() {
			return
		}
		select {
		case <-next:
		case <-late:
			t.Fatalf("%s: not in 20 s", what)
		}
	}
}

// holds waits until p holds the tunnels of exactly these nodes.
func (p *proxy) holds(ids ...names.NodeID) {
	p.t.Helper()
	slices.Sort(ids)
	await(p.t, fmt.Sprintf("proxy holds %v", ids), p.server.Changed, func() bool { return slices.Equal(p.server.Up(), ids) })
}

// call is one connection to a node.
type call struct {
	net.Conn
	r *bufio.Reader
}

// dial reaches a node, checks that it was told the client's address, and that
// bytes come back.
func (p *proxy) dial(id names.NodeID) *call {
	p.t.Helper()
	conn, err := p.server.Dial(p.t.Context(), id, client1)
	if err != nil {
		p.t.Fatalf("dial: %v", err)
	}
	p.t.Cleanup(func() { conn.Close() })
	c := &call{conn, bufio.NewReader(conn)}
	if got := c.line(p.t); got != client1.String() {
		p.t.Errorf("the node saw client %q, want %q", got, client1)
	}
	c.echo(p.t)
	return c
}

func (c *call) line(t testing.TB) string {
	t.Helper()
	s, err := c.r.ReadString('\n')
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return strings.TrimSuffix(s, "\n")
}

func (c *call) echo(t testing.TB) {
	t.Helper()
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if got := c.line(t); got != "hello" {
		t.Errorf("echo = %q, want hello", got)
	}
}

// modes are the ways sessions reach a node; every test of the path runs in each.
var modes = map[string]func(*proxyConfig){
	"tls":     nil,
	"plain":   func(c *proxyConfig) { c.Plain = true },
	"channel": func(c *proxyConfig) { c.NoDialBack = true },
}

func eachMode(t *testing.T, test func(t *testing.T, w *world, mode func(*proxyConfig))) {
	t.Helper()
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) { test(t, newWorld(t), mode) })
	}
}
