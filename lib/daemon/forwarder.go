package daemon

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/reversetunnel"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/node"
	"github.com/accessd/accessd/lib/srv/remote"
	"github.com/accessd/accessd/lib/srv/sshserver"
)

// dialTimeout bounds connecting to the sshd of a node that has an address.
const dialTimeout = 10 * time.Second

// forwarder is the SSH server, in a proxy, of the nodes that run plain sshd.
type forwarder struct {
	d       *Daemon
	server  *node.Server
	tunnels *reversetunnel.Server
	dialer  *sshserver.Dialer
	keys    *remote.HostKeys
	certs   accessdv1connect.DelegationServiceClient
}

// startForwarder makes the server of plain sshd nodes, and lets it end the
// sessions that an earlier run left open.
func (d *Daemon) startForwarder(ctx context.Context, tunnels *reversetunnel.Server) (*forwarder, error) {
	f := &forwarder{
		d: d, tunnels: tunnels,
		certs: rpc.Service(d.server.calls, accessdv1connect.NewDelegationServiceClient),
	}
	ledger, err := events.NewOpenSessions(d.path("forwarded"))
	if err != nil {
		return nil, err
	}
	if f.dialer, err = sshserver.NewDialer(sshserver.DialerConfig{Name: "sshd", Registerer: d.metrics, Log: d.log}); err != nil {
		return nil, err
	}
	f.keys = remote.NewHostKeys(func() ssh.Signer { return d.server.hostKey }, d.hostCA, f.certs, nil)
	recorder, err := d.openRecorder(ctx, "forwarder", func() *seat { return d.server })
	if err != nil {
		return nil, err
	}
	f.server, err = node.New(node.Config{
		Name: "forwarder", Trust: d.trust, Engine: d.engine, Changed: d.cache.Changed, Events: d.events, Ledger: ledger, Recorder: recorder,
		Factors: rpc.Service(d.server.calls, accessdv1connect.NewFactorServiceClient),
		User:    d.cache.User,
		Grace:   d.cfg.Grace, Algorithms: sshserver.Algorithms{Ciphers: d.cfg.SSH.Ciphers}, Registerer: d.metrics, Log: d.log,
	})
	if err != nil {
		return nil, err
	}
	d.run.start(ctx, rankTraffic, "forwarded sessions", f.server.Run)
	d.run.start(ctx, rankEvents, "forwarded recordings", recorder.Run)
	return f, nil
}

// ServeNode implements [proxy.Forwarder].
func (f *forwarder) ServeNode(ctx context.Context, conn net.Conn, n services.Node) error {
	keys, err := f.keys.For(ctx, n)
	if err != nil {
		conn.Close()
		return err
	}
	return f.server.ServeHost(ctx, conn, &node.Host{
		Node:     func() authz.NodeView { return f.view(n) },
		HostKeys: func() []ssh.Signer { return keys },
		Executor: func(p node.Person) (srv.Executor, error) { return f.executor(p, n.ID) },
		OwnSSHD:  func(host string, addr netip.Addr, port uint16) bool { return isOwnSSHD(n, host, addr, port) },
	})
}

// view returns n as the rules see it now.
func (f *forwarder) view(n services.Node) authz.NodeView {
	if now, ok := f.d.cache.Node(n.ID); ok {
		n = now
	}
	return authz.ViewOf(n)
}

// executor returns what runs the sessions of p on the sshd of n.
func (f *forwarder) executor(p node.Person, n names.NodeID) (srv.Executor, error) {
	return remote.New(remote.Config{
		Node:     func() (services.Node, bool) { return f.d.cache.Node(n) },
		Identity: p.Identity, Client: p.Remote, Proof: p.Proof, ID: p.Connection, Dial: f.dial, Certs: f.certs, Trust: f.d.trust,
		Events: f.d.events, Dialer: f.dialer, Log: f.d.log,
	})
}

// dial connects to the sshd of n for a client at from.
func (f *forwarder) dial(ctx context.Context, n services.Node, from netip.AddrPort) (net.Conn, error) {
	if n.Address == "" {
		return f.tunnels.Dial(ctx, n.ID, from)
	}
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", n.Address)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the sshd of node "+strconv.Quote(string(n.Name))+" cannot be reached")
	}
	return conn, nil
}

// isOwnSSHD reports whether a destination is the sshd of n, as far as its names
// tell.
func isOwnSSHD(n services.Node, host string, addr netip.Addr, port uint16) bool {
	own, at := "", uint16(22)
	if h, p, err := net.SplitHostPort(n.Address); err == nil {
		own = h
		if v, err := strconv.ParseUint(p, 10, 16); err == nil {
			at = uint16(v)
		}
	}
	if port != at {
		return false
	}
	if literal, ok := services.LiteralAddr(host); ok && !addr.IsValid() {
		addr = literal // of a name nothing is known here
	}
	switch strings.ToLower(strings.TrimSuffix(host, ".")) {
	case "localhost", strings.ToLower(own), string(n.Name), string(n.ID):
		return true
	}
	return addr.IsLoopback() || addr.IsUnspecified() || addr.IsValid() && addr.String() == own
}
