package reversetunnel

import (
	"context"
	"errors"
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
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// fakeProxy is a proxy that may misbehave: an SSH server whose tunnel service
// says what the test wants.
type fakeProxy struct {
	accessdv1connect.UnimplementedTunnelServiceHandler
	t        *testing.T
	addr     string
	attached chan ssh.Conn // each connection that has attached
	say      func(send func(*accessdv1.AttachResponse))
	noAttach bool
}

func (f *fakeProxy) Attach(ctx context.Context, _ *connect.Request[accessdv1.AttachRequest], out *connect.ServerStream[accessdv1.AttachResponse]) error {
	if f.noAttach {
		return fault.New(fault.Denied, "not you")
	}
	send := func(m *accessdv1.AttachResponse) { _ = out.Send(m) }
	if f.say == nil {
		send(welcomePlain())
	} else {
		f.say(send)
	}
	f.attached <- ctx.Value(connKey{}).(ssh.Conn)
	<-ctx.Done()
	return nil
}

func welcomePlain() *accessdv1.AttachResponse {
	return &accessdv1.AttachResponse{What: &accessdv1.AttachResponse_Welcome{Welcome: &accessdv1.Welcome{Plain: true, AuthorityHere: true}}}
}

// fake starts a fake proxy that shows hostKey.
func (w *world) fake(t *testing.T, hostKey ssh.Signer, say func(send func(*accessdv1.AttachResponse))) *fakeProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeProxy{t: t, addr: ln.Addr().String(), attached: make(chan ssh.Conn, 100), say: say}
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }}
	cfg.AddHostKey(hostKey)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { f.serve(raw, cfg) })
		}
	})
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { ln.Close() })
	return f
}

func (f *fakeProxy) serve(raw net.Conn, cfg *ssh.ServerConfig) {
	defer raw.Close()
	conn, chans, reqs, err := ssh.NewServerConn(raw, cfg)
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for r := range reqs {
			_ = r.Reply(r.Type == sshwire.RequestTCPIPForward || r.Type == sshwire.RequestKeepalive, nil)
		}
	})
	mux := http.NewServeMux()
	mux.Handle(accessdv1connect.NewTunnelServiceHandler(f, rpc.ServerOptions(nil)...))
	ctx := context.WithValue(context.WithoutCancel(f.t.Context()), connKey{}, ssh.Conn(conn))
	for nc := range chans {
		ch, reqs, err := nc.Accept()
		if err != nil {
			continue
		}
		wg.Go(func() { ssh.DiscardRequests(reqs) })
		wg.Go(func() { _ = rpc.Serve(ctx, rpc.ChannelConn(ch, raw.LocalAddr(), raw.RemoteAddr()), rpc.Peer{}, mux) })
	}
}

// TestAgentRefusesWhatProxiesMayNotAsk: reversed roles. A proxy, or who stole one,
// gets nothing of a node but its SSH server (libssh CVE-2018-10933's class, SSRF
// through reverse tunnels).
func TestAgentRefusesWhatProxiesMayNotAsk(t *testing.T) {
	w := newWorld(t)
	f := w.fake(t, w.hostKey(w.host, "127.0.0.1"), nil)
	w.startNode("n1", nil, f.addr)
	conn := <-f.attached
	ours := forward()
	for name, open := range map[string]struct {
		kind string
		data []byte
	}{
		"session":            {sshwire.ChannelSession, nil},
		"direct-tcpip":       {sshwire.ChannelDirectTCPIP, sshwire.DirectTCPIP{Host: "127.0.0.1", Port: 22, OriginAddr: "1.2.3.4", OriginPort: 1}.Marshal()},
		"metadata service":   {sshwire.ChannelDirectTCPIP, sshwire.DirectTCPIP{Host: "169.254.169.254", Port: 80, OriginAddr: "1.2.3.4", OriginPort: 1}.Marshal()},
		"agent":              {"auth-agent@openssh.com", nil},
		"x11":                {"x11", nil},
		"tun":                {"tun@openssh.com", nil},
		"streamlocal":        {"forwarded-streamlocal@openssh.com", nil},
		"api":                {sshwire.ChannelAPI, nil},
		"authority":          {sshwire.ChannelAuthority, sshwire.AuthorityOpen{}.Marshal()},
		"another port":       {sshwire.ChannelForwardedTCPIP, sshwire.ForwardedTCPIP{Addr: ours.Addr, Port: 80, OriginAddr: "1.2.3.4", OriginPort: 1}.Marshal()},
		"another host":       {sshwire.ChannelForwardedTCPIP, sshwire.ForwardedTCPIP{Addr: "10.0.0.1", Port: ours.Port, OriginAddr: "1.2.3.4", OriginPort: 1}.Marshal()},
		"no client":          {sshwire.ChannelForwardedTCPIP, sshwire.ForwardedTCPIP{Addr: ours.Addr, Port: ours.Port}.Marshal()},
		"client by name":     {sshwire.ChannelForwardedTCPIP, sshwire.ForwardedTCPIP{Addr: ours.Addr, Port: ours.Port, OriginAddr: "localhost"}.Marshal()},
		"truncated":          {sshwire.ChannelForwardedTCPIP, []byte{0, 0}},
		"no payload":         {sshwire.ChannelForwardedTCPIP, nil},
		"long, hostile name": {strings.Repeat("\x1b]0;", 1000), nil},
	} {
		if ch, _, err := conn.OpenChannel(open.kind, open.data); err == nil {
			ch.Close()
			t.Errorf("%s: the agent opened it", name)
		}
	}
	for _, name := range []string{"tcpip-forward", "cancel-tcpip-forward", "streamlocal-forward@openssh.com", "hostkeys-00@openssh.com", "shutdown"} {
		if ok, _, err := conn.SendRequest(name, true, sshwire.TCPIPForward{Addr: "0.0.0.0", Port: 80}.Marshal()); ok || err != nil {
			t.Errorf("global request %q: %v, %v, want a refusal", name, ok, err)
		}
	}
	ch, reqs, err := conn.OpenChannel(sshwire.ChannelForwardedTCPIP, sshwire.ForwardedTCPIP{
		Addr: ours.Addr, Port: ours.Port, OriginAddr: client1.Addr().String(), OriginPort: uint32(client1.Port()),
	}.Marshal())
	if err != nil {
		t.Fatalf("after all that, the one good channel: %v", err)
	}
	go ssh.DiscardRequests(reqs)
	if got, err := io.ReadAll(io.LimitReader(ch, int64(len(client1.String())))); err != nil || string(got) != client1.String() {
		t.Errorf("node saw %q, %v", got, err)
	}
	ch.Close()
}

// TestAgentDialsOnlyItsProxies whatever they send.
func TestAgentDialsOnlyItsProxies(t *testing.T) {
	w := newWorld(t)
	elsewhere := w.fake(t, w.hostKey(w.otherHost, "127.0.0.1"), nil)
	proxies := &accessdv1.Peers{Proxies: []*accessdv1.Peer{
		{Id: "not-an-id", Addresses: []string{"192.0.2.1:1"}},
		{Id: string(names.NewNodeID()), Addresses: []string{"no port", ":22", strings.Repeat("x", 300) + ":1", elsewhere.addr}},
	}}
	for range 2 * maxPeers {
		proxies.Proxies = append(proxies.Proxies, &accessdv1.Peer{Id: string(names.NewNodeID())})
	}
	f := w.fake(t, w.hostKey(w.host, "127.0.0.1"), func(send func(*accessdv1.AttachResponse)) {
		send(welcomePlain())
		send(dialBack([][]byte{nil, make([]byte, ticketSize-1), make([]byte, ticketSize+1)}))
		send(&accessdv1.AttachResponse{})
		send(&accessdv1.AttachResponse{What: &accessdv1.AttachResponse_Peers{Peers: proxies}})
	})
	var mu sync.Mutex
	dialed := map[string]bool{}
	seen := make(chan struct{}, 100)
	n := w.startNode("n1", func(cfg *AgentConfig) {
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			mu.Lock()
			dialed[addr] = true
			mu.Unlock()
			seen <- struct{}{}
			return dialTCP(ctx, addr)
		}
	}, f.addr)
	<-f.attached
	<-seen
	<-seen // the second slot tries the peer that was told of, and no other
	n.stop()
	mu.Lock()
	defer mu.Unlock()
	if len(dialed) != 2 || !dialed[f.addr] || !dialed[elsewhere.addr] {
		t.Errorf("dialed %v, want %q and %q", dialed, f.addr, elsewhere.addr)
	}
	if len(n.peers) > maxPeers {
		t.Errorf("%d peers remembered, want at most %d", len(n.peers), maxPeers)
	}
	if len(elsewhere.attached) > 0 {
		t.Error("the agent attached to a host of another cluster")
	}
}

// TestProxyThatDoesNotWelcome has no tunnel.
func TestProxyThatDoesNotWelcome(t *testing.T) {
	for name, say := range map[string]func(send func(*accessdv1.AttachResponse)){
		"something else first": func(send func(*accessdv1.AttachResponse)) { send(dialBack(nil)) },
		"nothing in it":        func(send func(*accessdv1.AttachResponse)) { send(&accessdv1.AttachResponse{}) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			logged := observe(w)
			f := w.fake(t, w.hostKey(w.host, "127.0.0.1"), say)
			n := w.startNode("n1", nil, f.addr)
			logged.await(t, "no link; dialing until there is one")
			if up := n.Up(); len(up) > 0 {
				t.Errorf("links to %v are up", up)
			}
		})
	}
}

// TestHostKeys: what a host must show so that an agent talks to it.
func TestHostKeys(t *testing.T) {
	w := newWorld(t)
	id := names.NewNodeID()
	_, plain := sshca.Generate()
	userCert := func(ca ssh.Signer) ssh.Signer {
		_, key := sshca.Generate()
		cert, err := sshca.MintUser(ca, sshca.UserRequest{
			Key: key.PublicKey(), User: "alice", Roles: []names.RoleName{"access"}, Logins: []names.Login{"root"},
			ValidAfter: time.Now().Add(-time.Minute), ValidBefore: time.Now().Add(time.Hour),
		})
		return w.certified(cert, key, err)
	}
	const addr = "127.0.0.1:3022"
	for name, tc := range map[string]struct {
		key  ssh.Signer
		peer *peer
		good bool
		id   names.NodeID
	}{
		"name dialed":                {key: w.hostKey(w.host, "127.0.0.1"), good: true},
		"name dialed, and id":        {key: w.hostKey(w.host, "127.0.0.1", string(id)), good: true, id: id},
		"id another proxy told":      {key: w.hostKey(w.host, string(id)), peer: &peer{id, []string{addr}}, good: true, id: id},
		"id told for another place":  {key: w.hostKey(w.host, string(id)), peer: &peer{id, []string{"127.0.0.1:3023"}}},
		"id nobody told":             {key: w.hostKey(w.host, string(id))},
		"another name":               {key: w.hostKey(w.host, "proxy.example")},
		"another CA":                 {key: w.hostKey(w.otherHost, "127.0.0.1")},
		"plain key":                  {key: plain},
		"user certificate":           {key: userCert(w.user)},
		"user certificate, host CA":  {key: userCert(w.host)},
		"member certificate":         {key: w.member(id, "n1", sshca.KindNode)},
		"host certificate, node CA":  {key: w.hostKey(w.node, "127.0.0.1")},
		"host certificate, user CA":  {key: w.hostKey(w.user, "127.0.0.1")},
		"name with a part in common": {key: w.hostKey(w.host, "127.0.0.11")},
	} {
		t.Run(name, func(t *testing.T) {
			a := &Agent{cfg: AgentConfig{Trust: w.trust, Now: time.Now}}
			if tc.peer != nil {
				a.peers = []peer{*tc.peer}
			}
			var got names.NodeID
			err := a.hostKey(addr, &got)(addr, &net.TCPAddr{}, tc.key.PublicKey())
			if (err == nil) != tc.good || got != tc.id {
				t.Errorf("hostKey = %v, id %q; want good: %v, id %q", err, got, tc.good, tc.id)
			}
		})
	}
}

// TestNodeMayNotOpenChannels: what a compromised node opens at the proxy beyond
// its own services is refused, and its tunnel lives.
func TestNodeMayNotOpenChannels(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(nil)
	signer := w.member(names.NewNodeID(), "n1", sshca.KindNode)
	raw, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newClient(t.Context(), raw, clientConfig("n1", signer, w.trust().HostKeyCallback("127.0.0.1", time.Now)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.finish()
	defer raw.Close()
	for _, kind := range []string{
		sshwire.ChannelSession, sshwire.ChannelDirectTCPIP, sshwire.ChannelForwardedTCPIP, "auth-agent@openssh.com", "x11", "forwarded-streamlocal@openssh.com",
	} {
		if ch, _, err := c.conn.OpenChannel(kind, sshwire.ForwardedTCPIP{Addr: "localhost", Port: 22, OriginAddr: "1.2.3.4"}.Marshal()); err == nil {
			ch.Close()
			t.Errorf("the proxy opened %q for a node", kind)
		}
	}
	if _, _, err := c.conn.SendRequest(sshwire.RequestKeepalive, true, nil); err != nil {
		t.Errorf("after the refusals: %v", err)
	}
}

// rawNode is a node that speaks for itself.
type rawNode struct {
	*client
	id      names.NodeID
	tunnels accessdv1connect.TunnelServiceClient
}

func (w *world) rawNode(t *testing.T, p *proxy, id names.NodeID, kind sshca.Kind) *rawNode {
	t.Helper()
	raw, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	return w.rawNodeOn(t, raw, id, kind)
}

func (w *world) rawNodeOn(t *testing.T, raw net.Conn, id names.NodeID, kind sshca.Kind) *rawNode {
	t.Helper()
	c, err := newClient(t.Context(), raw, clientConfig("n1", w.member(id, "n1", kind), w.trust().HostKeyCallback("127.0.0.1", time.Now)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.finish)
	t.Cleanup(func() { raw.Close() })
	api := rpc.Client(c.openAPI)
	return &rawNode{client: c, id: id, tunnels: accessdv1connect.NewTunnelServiceClient(api, rpc.BaseURL, rpc.ClientOptions()...)}
}

func (n *rawNode) ask(t *testing.T, name string, f sshwire.TCPIPForward) bool {
	t.Helper()
	ok, _, err := n.conn.SendRequest(name, true, f.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

// attach returns the first answer, or the refusal.
func (n *rawNode) attach(t *testing.T, key []byte) (*accessdv1.Welcome, error) {
	t.Helper()
	stream, err := n.tunnels.Attach(t.Context(), connect.NewRequest(&accessdv1.AttachRequest{DataKeySha256: key}))
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { stream.Close() })
	if !stream.Receive() {
		return nil, stream.Err()
	}
	return stream.Msg().GetWelcome(), nil
}

// TestAttachRefusals: who has no tunnel.
func TestAttachRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		kind     sshca.Kind
		forward  []sshwire.TCPIPForward
		forwards []bool
		key      []byte
		want     fault.Kind // Internal: none
	}{
		"good":           {kind: sshca.KindNode, forward: []sshwire.TCPIPForward{forward()}, forwards: []bool{true}},
		"another name":   {kind: sshca.KindNode, forward: []sshwire.TCPIPForward{{Addr: "", Port: 2222}}, forwards: []bool{true}},
		"no forward":     {kind: sshca.KindNode, want: fault.BadInput},
		"port 0":         {kind: sshca.KindNode, forward: []sshwire.TCPIPForward{{Addr: "localhost"}}, forwards: []bool{false}, want: fault.BadInput},
		"two forwards":   {kind: sshca.KindNode, forward: []sshwire.TCPIPForward{forward(), {Addr: "db", Port: 5432}}, forwards: []bool{true, false}},
		"short key hash": {kind: sshca.KindNode, forward: []sshwire.TCPIPForward{forward()}, forwards: []bool{true}, key: make([]byte, 31), want: fault.BadInput},
		"long key hash":  {kind: sshca.KindNode, forward: []sshwire.TCPIPForward{forward()}, forwards: []bool{true}, key: make([]byte, 33), want: fault.BadInput},
		"a proxy":        {kind: sshca.KindProxy, forward: []sshwire.TCPIPForward{forward()}, forwards: []bool{false}, want: fault.Denied},
		"an authority":   {kind: sshca.KindAuth, forward: []sshwire.TCPIPForward{forward()}, forwards: []bool{false}, want: fault.Denied},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := w.startProxy(nil)
			n := w.rawNode(t, p, names.NewNodeID(), tc.kind)
			for i, f := range tc.forward {
				if ok := n.ask(t, sshwire.RequestTCPIPForward, f); ok != tc.forwards[i] {
					t.Errorf("forward %+v: %v, want %v", f, ok, tc.forwards[i])
				}
			}
			_, err := n.attach(t, tc.key)
			if tc.want == fault.Internal && err != nil || tc.want != fault.Internal && !fault.Is(err, tc.want) {
				t.Errorf("attach: %v, want kind %v", err, tc.want)
			}
		})
	}
}

// TestCancelledForwardEndsTheTunnel, and another node cannot cancel it.
func TestCancelledForwardEndsTheTunnel(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(nil)
	n, other := w.rawNode(t, p, names.NewNodeID(), sshca.KindNode), w.rawNode(t, p, names.NewNodeID(), sshca.KindNode)
	n.ask(t, sshwire.RequestTCPIPForward, forward())
	if _, err := n.attach(t, nil); err != nil {
		t.Fatal(err)
	}
	p.holds(n.id)
	if other.ask(t, sshwire.RequestCancelTCPIPForward, forward()) {
		t.Error("a node cancelled another's forward")
	}
	if n.ask(t, sshwire.RequestCancelTCPIPForward, sshwire.TCPIPForward{Addr: "localhost", Port: 23}) {
		t.Error("a forward that is none was cancelled")
	}
	p.holds(n.id)
	if !n.ask(t, sshwire.RequestCancelTCPIPForward, forward()) {
		t.Error("the node's own forward was not cancelled")
	}
	p.holds()
	p.events.expect(t, "tunnel.up tunnel.down")
}

// TestNodeThatAnswersNoChannelOpen cannot hold up clients for ever, nor pile up
// what waits for it.
func TestNodeThatAnswersNoChannelOpen(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(func(c *proxyConfig) { c.NoDialBack = true })
	n := w.rawNode(t, p, names.NewNodeID(), sshca.KindNode) // takes nothing from chans
	n.ask(t, sshwire.RequestTCPIPForward, forward())
	if _, err := n.attach(t, nil); err != nil {
		t.Fatal(err)
	}
	p.holds(n.id)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	var refused int
	for range maxOpening + 5 {
		wg.Go(func() {
			_, err := p.server.Dial(ctx, n.id, client1)
			if !fault.Is(err, fault.Unavailable) {
				t.Errorf("dial: %v, want unavailable", err)
			}
			if !errors.Is(err, context.Canceled) {
				mu.Lock()
				defer mu.Unlock()
				if refused++; refused == 5 {
					cancel()
				}
			}
		})
	}
	wg.Wait()
	if refused != 5 {
		t.Errorf("%d dials were refused at once, want those beyond %d", refused, maxOpening)
	}
	cancel()
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	if tun := p.server.tunnels[n.id]; tun.live != 0 {
		t.Errorf("%d connections are still counted", tun.live)
	}
}

// TestParsePeers takes what is well formed.
func TestParsePeers(t *testing.T) {
	id := names.NewNodeID()
	got := parsePeers(&accessdv1.Peers{Proxies: []*accessdv1.Peer{
		nil,
		{Id: "x", Addresses: []string{"a:1"}},
		{Id: string(id), Addresses: []string{"a:1", "a", "", ":1", "[::1]:2", "b.example:3022"}},
	}})
	if len(got) != 1 || got[0].id != id || !slices.Equal(got[0].addresses, []string{"a:1", "[::1]:2", "b.example:3022"}) {
		t.Errorf("parsePeers = %+v", got)
	}
	many := make([]string, 100)
	for i := range many {
		many[i] = netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(i)).String()
	}
	if got := parseAddresses(many); len(got) != maxAddresses {
		t.Errorf("%d addresses of one proxy, want %d", len(got), maxAddresses)
	}
}
