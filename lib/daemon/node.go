package daemon

import (
	"context"
	"net"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/reversetunnel"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/node"
	"github.com/accessd/accessd/lib/sshca"
)

// nodeRole is the node role of this process.
type nodeRole struct {
	*seat
	agent  *reversetunnel.Agent
	server *node.Server
}

func (n *nodeRole) connected() bool { return len(n.agent.Up()) > 0 }

// startNode gets the node its place in the cluster, ends what an earlier run
// left open, and dials home.
func (d *Daemon) startNode(ctx context.Context) error {
	m, err := openMember(d.path("identity", "node"))
	if err != nil {
		return err
	}
	c := linkConfig{kind: sshca.KindNode}
	if d.edge != nil {
		c.addresses = []string{loopback(d.edge.addr())}
	}
	if d.authority != nil {
		if err := d.admit(ctx, m, sshca.KindNode); err != nil {
			return err
		}
	}
	if err := d.ensureEngine(); err != nil {
		return err
	}
	n := &nodeRole{}
	recorder, err := d.openRecorder(ctx, "node", func() *seat { return n.seat })
	if err != nil {
		return err
	}
	if n.server, err = d.newNode(ctx, n, m, recorder); err != nil {
		return err
	}
	c.serve = d.serveClient(n.server)
	d.run.start(ctx, rankTraffic, "sessions", n.server.Run)
	if n.agent, n.seat, err = d.link(ctx, m, c); err != nil {
		return err
	}
	d.node = n
	d.run.start(ctx, rankEvents, "recordings", recorder.Run)
	if d.edge == nil {
		d.followPolicy(ctx, n.seat)
	}
	return nil
}

// serveClient returns what the agent hands connections from clients to.
func (d *Daemon) serveClient(server *node.Server) func(context.Context, net.Conn) {
	return func(ctx context.Context, conn net.Conn) {
		if err := server.Serve(ctx, conn); err != nil {
			d.log.Debug("connection ended", zap.Error(err))
		}
	}
}

// newNode returns the SSH server of the node, its old sessions ended.
func (d *Daemon) newNode(ctx context.Context, n *nodeRole, m *member, recorder *recording.Recorder) (*node.Server, error) {
	ledger, err := events.NewOpenSessions(d.path("sessions"))
	if err != nil {
		return nil, err
	}
	executor, err := srv.NewLocal(srv.LocalConfig{Dir: d.path("accounts"), Changed: d.accountChanged(ctx, m), Log: d.log})
	if err != nil {
		return nil, err
	}
	if err := executor.Recover(ctx); err != nil {
		d.log.Error("accounts that an earlier run made are not removed yet; the next start will do it", zap.Error(err))
	}
	host := &node.Host{
		Node: d.nodeView(m), HostKeys: m.hostSigners,
		Executor: func(node.Person) (srv.Executor, error) { return executor, nil },
	}
	return node.New(node.Config{
		Host: host, Trust: d.trust, Engine: d.engine, Changed: d.cache.Changed,
		Events: d.events, Ledger: ledger, Recorder: recorder, Factors: nodeFactors{n}, User: d.cache.User, MaxSessions: d.cfg.Node.MaxSessions,
		OutliveCertificate: d.cfg.Node.OutliveCert, Grace: d.cfg.Grace, Registerer: d.metrics, Log: d.log,
	})
}

// nodeFactors has second factors checked by the authority, over the link that the
// node has by the time people come.
type nodeFactors struct{ n *nodeRole }

// VerifyFactor calls the authority.
func (f nodeFactors) VerifyFactor(ctx context.Context, r *connect.Request[accessdv1.VerifyFactorRequest]) (*connect.Response[accessdv1.VerifyFactorResponse], error) {
	return rpc.Service(f.n.calls, accessdv1connect.NewFactorServiceClient).VerifyFactor(ctx, r)
}

// accountChanged returns what makes durable that an account of the node is about
// to be made or removed, or that it could not be.
func (d *Daemon) accountChanged(ctx context.Context, m *member) func(srv.AccountChange) error {
	ctx = context.WithoutCancel(ctx)
	view := d.nodeView(m)
	return func(c srv.AccountChange) error {
		n := view()
		ev := events.Event{Name: events.AccountDelete, Login: c.Login, Success: c.Err == nil, Fields: map[string]any{
			"groups": c.Create.Groups, "sudoers": c.Create.Sudoers, "shell": c.Create.Shell, "keep": c.Create.Keep,
			"node_id": n.ID, "node_name": n.Name, "node_labels": n.Labels,
		}}
		if c.Created {
			ev.Name = events.AccountCreate
		}
		if c.Err != nil {
			ev.Error, ev.Fields["reason"] = c.Err.Error(), fault.Public(c.Err)
		}
		if err := d.events.Emit(ctx, ev); err != nil {
			return fault.Wrap(fault.Unavailable, err, "the audit log cannot be written, so no account is made")
		}
		return nil
	}
}

// nodeView returns how the rules see this node: as the policy has it, and with
// the static labels until the policy is there.
func (d *Daemon) nodeView(m *member) func() authz.NodeView {
	return func() authz.NodeView {
		s := m.state.Load()
		if s == nil {
			return authz.NodeView{ID: d.id, Name: d.name}
		}
		view := authz.NodeView{ID: s.ID, Name: s.Name}
		if n, ok := d.cache.Node(s.ID); ok {
			view.Labels = n.Labels
		}
		return view
	}
}

// startReports keeps the authority told of this process's labels and live
// sessions, and takes its instructions about them. All roles of a process are one
// member to the authority, so there is one report: of its own node's sessions and
// of those that it forwards.
func (d *Daemon) startReports(ctx context.Context, s *seat) {
	var all []*srv.Manager
	if d.node != nil {
		d.run.start(ctx, rankMember, "labels", func(ctx context.Context) error { return d.labels.Run(ctx, d.node.seat) })
		all = append(all, d.node.server.Sessions())
	}
	if d.edge != nil && d.edge.forwarder != nil {
		all = append(all, d.edge.forwarder.server.Sessions())
	}
	if len(all) == 0 {
		return
	}
	d.run.start(ctx, rankMember, "session reports", func(ctx context.Context) error {
		return s.report(ctx, func() []*accessdv1.LiveSession { return d.described(all) }, func() (first, second <-chan struct{}) { return changes(all) })
	})
	d.run.start(ctx, rankMember, "instructions", func(ctx context.Context) error {
		return s.instructions(ctx, func(in *accessdv1.Instruction) { d.obey(all, in) })
	})
}

// changes returns channels that are closed when the sessions of all change; a
// process has two managers of them at most.
func changes(all []*srv.Manager) (first, second <-chan struct{}) {
	first = all[0].Changed()
	if len(all) > 1 {
		second = all[1].Changed()
	}
	return first, second
}

// described returns the live sessions as the authority wants them.
func (d *Daemon) described(all []*srv.Manager) []*accessdv1.LiveSession {
	var out []*accessdv1.LiveSession
	for _, sessions := range all {
		for _, s := range sessions.List() {
			l := &accessdv1.LiveSession{
				Id: string(s.ID), User: string(s.User), Login: string(s.Login), Client: s.Client, Kind: s.Kind,
				Started: timestamppb.New(s.Started),
			}
			if s.Node != d.id {
				l.Node = string(s.Node) // a plain sshd node that this process serves
			}
			out = append(out, l)
		}
	}
	return out
}

// obey does what the authority asks about sessions.
func (d *Daemon) obey(all []*srv.Manager, in *accessdv1.Instruction) {
	k := in.GetKillSession()
	if k == nil {
		return // from a newer authority
	}
	id, err := names.ParseSessionID(k.GetSession())
	for _, sessions := range all {
		if err != nil && id == "" {
			break
		}
		if err = sessions.Kill(id, k.GetReason(), k.GetBy()); err == nil {
			return
		}
	}
	d.log.Info("a session was not killed", zap.String("session", k.GetSession()), zap.Error(err))
}

// ensureEngine makes the decision engine of a process without the authority.
func (d *Daemon) ensureEngine() (err error) {
	if d.engine == nil {
		d.engine, err = authz.New(authz.Config{Policy: d.cache})
	}
	return err
}

// loopback returns an address on this machine for a listener's own.
func loopback(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}
