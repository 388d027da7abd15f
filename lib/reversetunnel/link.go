package reversetunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// link is one control connection, as the agent sees it.
type link struct {
	*client
	agent *Agent
	addr  string
	proxy names.NodeID // by its host certificate, "" if that does not tell

	api       *http.Client      // over accessd-api channels of this connection
	authority http.RoundTripper // the authority's services by this link; set before up is closed
	data      dataPlan          // set before up is closed

	up     chan struct{} // closed when the link can be used
	drains chan struct{} // closed when the proxy has asked to leave
	leave  sync.Once
	look   chan struct{} // the network has changed

	channels gate           // connections from clients in channels
	tasks    sync.WaitGroup // what run started
}

// connect dials addr and logs in.
func (a *Agent) connect(ctx context.Context, addr string) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	raw, err := a.cfg.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	name, signer := a.cfg.Identity()
	l := &link{
		agent: a, addr: addr,
		up: make(chan struct{}), drains: make(chan struct{}), look: make(chan struct{}, 1),
	}
	l.client, err = newClient(ctx, raw, clientConfig(string(name), signer, a.hostKey(addr, &l.proxy)))
	if err != nil {
		return nil, explain(err)
	}
	l.api = rpc.Client(l.openAPI)
	return l, nil
}

// explain says what is to be done when the cluster and a member are strangers to
// each other: waiting does not help.
func explain(err error) error {
	why, ok := errors.AsType[*sshca.Refusal](err)
	switch {
	case ok && why.Code == sshca.CodeWrongCA:
		return fmt.Errorf("the host CA is not the one this member knows; if it was rotated while the member was away, start it with a fresh token and the new pin: %w", err)
	case strings.Contains(err.Error(), "unable to authenticate"): // x/crypto/ssh has no type for that
		return fmt.Errorf("the cluster does not take this member's certificate; if the node CA was rotated while the member was away, it has to join again: %w", err)
	}
	return err
}

// hostKey checks the host certificate of the proxy at addr: it must name the
// host that was dialed, or the very proxy that another proxy told to be there.
// Which proxy it is goes to id.
func (a *Agent) hostKey(addr string, id *names.NodeID) ssh.HostKeyCallback {
	trust := a.cfg.Trust()
	accept := []ssh.HostKeyCallback{trust.HostKeyCallback(hostOf(addr), a.cfg.Now)}
	a.mu.Lock()
	for _, p := range a.peers {
		for _, other := range p.addresses {
			if other == addr && p.id != "" {
				accept = append(accept, trust.HostKeyCallback(string(p.id), a.cfg.Now))
			}
		}
	}
	a.mu.Unlock()
	return func(host string, remote net.Addr, key ssh.PublicKey) (err error) {
		for _, ok := range accept {
			if err = ok(host, remote, key); err == nil {
				*id = memberID(key)
				return nil
			}
		}
		return err
	}
}

// memberID returns the one member id among the names of a host certificate.
func memberID(key ssh.PublicKey) (id names.NodeID) {
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return ""
	}
	for _, p := range cert.ValidPrincipals {
		if parsed, err := names.ParseNodeID(p); err == nil {
			id = parsed
		}
	}
	return id
}

// run serves the link until its connection ends, the proxy has drained, or ctx
// has ended and no connection is served any more.
func (l *link) run(ctx context.Context) error {
	live, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	defer context.AfterFunc(live, func() { l.raw.Close() })()
	l.tasks.Go(func() { l.answer() })
	l.tasks.Go(func() {
		l.accept(ctx) // to the end of the connection
		end(l.conn.Wait())
	})
	l.tasks.Go(func() { end(l.beat(live)) })
	l.tasks.Go(func() { end(l.attach(ctx, live)) })
	select {
	case <-live.Done():
	case <-ctx.Done():
		select {
		case <-l.agent.served.close():
		case <-live.Done():
		}
		end(errStopping)
	}
	l.tasks.Wait()
	l.agent.lost(l)
	l.api.CloseIdleConnections()
	l.finish()
	return context.Cause(live)
}

// answer refuses the proxy's global requests: it has none to make but
// keepalives, for which any answer will do.
func (l *link) answer() {
	for r := range l.reqs {
		if r.WantReply {
			_ = r.Reply(false, nil)
		}
	}
}

// attach has the proxy route clients here, and does what it asks. A process
// that is no node has nothing to attach: its link is up as it stands.
func (l *link) attach(ctx, live context.Context) error {
	if l.agent.cfg.Serve == nil {
		l.begin(l.nested())
		<-live.Done()
		return context.Cause(live)
	}
	late := time.AfterFunc(handshakeTimeout, func() { l.raw.Close() })
	defer late.Stop()
	if ok, _, err := l.conn.SendRequest(sshwire.RequestTCPIPForward, true, forward().Marshal()); err != nil || !ok {
		return fault.Wrap(fault.Unavailable, err, "the proxy takes no tunnel from here")
	}
	req := &accessdv1.AttachRequest{Version: defaults.Version}
	if !l.agent.cfg.NoDialBack {
		req.DataKeySha256 = l.agent.key.hash[:]
	}
	tunnels := rpc.Service(l.api, accessdv1connect.NewTunnelServiceClient)
	stream, err := tunnels.Attach(live, connect.NewRequest(req))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // its error is that of Err
	if !stream.Receive() {
		return whyEnded(stream)
	}
	if err := l.welcome(stream.Msg().GetWelcome()); err != nil {
		return err
	}
	late.Stop()
	for stream.Receive() {
		l.obey(ctx, live, stream.Msg())
	}
	return whyEnded(stream)
}

func whyEnded(stream *connect.ServerStreamForClient[accessdv1.AttachResponse]) error {
	if err := stream.Err(); err != nil {
		return err
	}
	return fault.New(fault.Unavailable, "the proxy ended the tunnel")
}

// forward is what the agent asks the proxy to forward: its SSH server, as stock
// "ssh -R 22:localhost:22" does.
func forward() sshwire.TCPIPForward { return sshwire.TCPIPForward{Addr: "localhost", Port: 22} }

// welcome takes the proxy's first answer, which makes the link usable.
func (l *link) welcome(w *accessdv1.Welcome) error {
	if w == nil {
		return errNoWelcome
	}
	if l.data.plain = w.GetPlain(); !l.data.plain {
		l.data.proxy, l.data.tls = parseKeyHash(w.GetDataKeySha256())
	}
	if w.GetAuthorityHere() {
		l.begin(l.api.Transport)
	} else {
		l.begin(l.nested())
	}
	return nil
}

func (l *link) begin(authority http.RoundTripper) {
	l.authority = authority
	close(l.up)
	l.agent.ready(l)
}

// obey does what one message of the proxy asks.
func (l *link) obey(ctx, live context.Context, msg *accessdv1.AttachResponse) {
	switch what := msg.GetWhat().(type) {
	case *accessdv1.AttachResponse_DialBack:
		for _, secret := range what.DialBack.GetTickets() {
			if len(secret) == ticketSize {
				l.dialBack(ctx, live, secret)
			}
		}
	case *accessdv1.AttachResponse_Peers:
		l.agent.learn(parsePeers(what.Peers))
	case *accessdv1.AttachResponse_Drain:
		l.drain(live, what.Drain)
	}
}

// parsePeers takes what is well formed of a list of proxies.
func parsePeers(p *accessdv1.Peers) []peer {
	var peers []peer
	for _, given := range p.GetProxies()[:min(len(p.GetProxies()), maxPeers)] {
		id, err := names.ParseNodeID(given.GetId())
		if err != nil {
			continue
		}
		peers = append(peers, peer{id: id, addresses: parseAddresses(given.GetAddresses())})
	}
	return peers
}

func parseAddresses(given []string) []string {
	var list []string
	for _, addr := range given[:min(len(given), maxAddresses)] {
		if host, _, err := net.SplitHostPort(addr); err == nil && host != "" && len(addr) <= maxAddress {
			list = append(list, addr)
		}
	}
	return list
}

// drain has the slot look for another proxy now. This link is left when the
// proxy wants, but not before its channels' clients are gone.
func (l *link) drain(live context.Context, d *accessdv1.Drain) {
	l.leave.Do(func() {
		after := max(0, time.Duration(d.GetAfterMs())*time.Millisecond)
		l.agent.leaves(l, after, parseAddresses(d.GetAddresses()))
		l.agent.demote(l)
		close(l.drains)
		l.tasks.Go(func() { l.part(live, after) })
	})
}

// part closes a draining link after a while, and when its channels' clients are
// gone.
func (l *link) part(live context.Context, after time.Duration) {
	timer := time.NewTimer(after)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-live.Done():
		return
	}
	select {
	case <-l.channels.close():
		l.raw.Close()
	case <-live.Done():
	}
}

// beat sends keepalives and returns when they are not answered. An answer may
// take the time of all misses but the first interval, in which the link still
// stood: so a dead proxy is noticed within Misses intervals.
func (l *link) beat(live context.Context) error {
	interval := l.agent.cfg.KeepaliveInterval
	patience := interval * time.Duration(max(l.agent.cfg.KeepaliveMisses-1, 1))
	tick := time.NewTicker(interval)
	defer tick.Stop()
	late := time.NewTimer(patience)
	late.Stop()
	defer late.Stop()
	answered := make(chan error, 1)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer l.raw.Close() // a request that waits on a dead link ends with it
	waiting := false
	for {
		select {
		case <-live.Done():
			return context.Cause(live)
		case <-late.C:
			return fault.New(fault.Unavailable, "the proxy does not answer")
		case err := <-answered:
			if err != nil {
				return err
			}
			waiting = false
			late.Stop()
			continue
		case <-tick.C:
			if waiting {
				continue
			}
			late.Reset(patience)
		case <-l.look:
			if l.homeless() {
				return fault.New(fault.Unavailable, "the local address is gone")
			}
			late.Reset(min(glimpseTimeout, patience))
		}
		if !waiting {
			waiting = true
			asking.Go(func() {
				_, _, err := l.conn.SendRequest(sshwire.RequestKeepalive, true, nil)
				answered <- err
			})
		}
	}
}

// glimpse has the link look at once whether it still stands.
func (l *link) glimpse() {
	select {
	case l.look <- struct{}{}:
	default:
	}
}

// homeless reports whether this machine no longer has the address the link goes
// out from.
func (l *link) homeless() bool {
	local := addrPort(l.raw.LocalAddr())
	have, err := net.InterfaceAddrs()
	if !local.IsValid() || err != nil {
		return false
	}
	for _, addr := range have {
		if p, err := netip.ParsePrefix(addr.String()); err == nil && p.Addr().Unmap() == local.Addr() {
			return false
		}
	}
	return true
}

func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	return netip.AddrPort{}
}

// accept takes the channels the proxy opens. There is one type it may open;
// whatever else is asked for, an agent has nothing to give.
func (l *link) accept(ctx context.Context) {
	for nc := range l.chans {
		if nc.ChannelType() != sshwire.ChannelForwardedTCPIP || l.agent.cfg.Serve == nil {
			l.agent.log.Warn("channel refused", zap.String("type", clip(nc.ChannelType())), zap.String("proxy", l.addr))
			_ = nc.Reject(ssh.Prohibited, "only forwarded-tcpip")
			continue
		}
		l.acceptForwarded(ctx, nc)
	}
}

func (l *link) acceptForwarded(ctx context.Context, nc ssh.NewChannel) {
	f, err := sshwire.ParseForwardedTCPIP(nc.ExtraData())
	from := sshwire.ParseOrigin(f.OriginAddr, f.OriginPort)
	if asked := forward(); err != nil || !from.IsValid() || f.Addr != asked.Addr || f.Port != asked.Port {
		_ = nc.Reject(ssh.ConnectionFailed, "no such forward, or no client address")
		return
	}
	if !l.channels.enter(maxServed) {
		_ = nc.Reject(ssh.ResourceShortage, "too many connections")
		return
	}
	ok := l.agent.spawn(func() {
		defer l.channels.leave()
		l.serveChannel(ctx, nc, from)
	})
	if !ok {
		l.channels.leave()
		_ = nc.Reject(ssh.ResourceShortage, "stopping")
	}
}

func (l *link) serveChannel(ctx context.Context, nc ssh.NewChannel, from netip.AddrPort) {
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer ch.Close()
	wg.Go(func() { ssh.DiscardRequests(reqs) })
	wg.Go(func() { discard(ch.Stderr()) })
	l.agent.serve(ctx, rpc.ChannelConn(ch, l.raw.LocalAddr(), net.TCPAddrFromAddrPort(from)))
}

// clip bounds a peer's text for the log.
func clip(s string) string { return s[:min(len(s), 64)] }
