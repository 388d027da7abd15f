package auth

import (
	"context"
	"maps"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// Bounds of what a member may send at once.
const (
	maxAppend       = 4096   // events
	maxAnnounce     = 65_536 // nodes
	maxLiveSessions = 4096   // of one member
	maxClient       = 64     // bytes of a client's address
)

type memberService struct{ *Authority }

// WatchPolicy streams what the member needs of the policy: everybody gets
// roles, people and CAs, a node its own record besides, a proxy all nodes,
// tunnels and proxies.
func (s memberService) WatchPolicy(ctx context.Context, _ *connect.Request[accessdv1.WatchPolicyRequest], stream *connect.ServerStream[accessdv1.PolicyUpdate]) error {
	self := callerOf(ctx).member
	f := s.feed.follow(wantedBy(self))
	defer f.close()
	for {
		u, err := f.next(ctx)
		if err != nil {
			return err
		}
		if err := stream.Send(u); err != nil {
			return err
		}
		if s.removed(ctx, self, u) {
			return errRemoved
		}
	}
}

// errRemoved ends the streams of a member that is no longer on record.
var errRemoved = fault.New(fault.Denied, "this member was removed from the cluster")

// key names the record on the policy stream.
func (rec *record) key() resourceKey {
	if rec.node != nil {
		return resourceKey{services.KindNode, string(rec.ID)}
	}
	return resourceKey{services.KindMember, string(rec.ID)}
}

// removed reports whether u says that m is no longer on record. A first copy
// without m may be older than m: then the store has the word.
func (a *Authority) removed(ctx context.Context, m *record, u *accessdv1.PolicyUpdate) bool {
	if slices.ContainsFunc(u.GetRemove(), func(k *accessdv1.ResourceKey) bool { return keyOf(k) == m.key() }) {
		return true
	}
	if !u.GetSynced() || slices.ContainsFunc(u.GetPut(), func(r *accessdv1.Resource) bool { return keyOf(r.GetKey()) == m.key() }) {
		return false
	}
	_, err := a.recordOf(ctx, m.Kind, m.ID)
	return fault.Is(err, fault.NotFound)
}

// wantedBy returns which resources a member may see.
func wantedBy(m *record) func(resourceKey) bool {
	return func(k resourceKey) bool {
		switch k.kind {
		case services.KindRole, services.KindUser, services.KindCA, services.KindSettings, services.KindLock, services.KindElevation:
			return true
		case services.KindNode:
			return m.Kind != sshca.KindNode || k.name == string(m.ID)
		case services.KindPresence, services.KindProxy, services.KindMember:
			return m.Kind != sshca.KindNode
		}
		return false
	}
}

// untilRemoved returns a context that ends once m is no longer on record, and
// what ends the watching.
func (a *Authority) untilRemoved(ctx context.Context, m *record) (watched context.Context, stop func()) {
	watched, cancel := context.WithCancelCause(ctx)
	f := a.feed.follow(func(k resourceKey) bool { return k == m.key() })
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			u, err := f.next(watched)
			if err != nil {
				return
			}
			if a.removed(watched, m, u) {
				cancel(errRemoved)
			}
		}
	}()
	return watched, func() {
		cancel(nil)
		<-done
		f.close()
	}
}

// AppendEvents puts a member's events into the log.
func (s memberService) AppendEvents(ctx context.Context, req *connect.Request[accessdv1.AppendEventsRequest]) (*connect.Response[accessdv1.AppendEventsResponse], error) {
	list := req.Msg.GetEvents()
	if len(list) > maxAppend {
		return nil, fault.New(fault.BadInput, "%d events: want at most %d", len(list), maxAppend)
	}
	self := callerOf(ctx).member
	for _, data := range list {
		ev, err := events.ParseEvent(data)
		if err != nil {
			return nil, err
		}
		if err := s.mayWrite(self, ev); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(&accessdv1.AppendEventsResponse{}), s.cfg.Audit.Append(ctx, list)
}

// mayWrite refuses an event that is not about what the member itself did. An
// event that this version does not know is taken from a newer member.
func (a *Authority) mayWrite(m *record, ev events.Event) error {
	if ev.ServerID != string(m.ID) || ev.ServerHostname != string(m.Name) ||
		(ev.ClusterName != "" && ev.ClusterName != a.cfg.Keys.ClusterName()) {
		return fault.New(fault.Denied, "event %s is not this member's own", ev.UID)
	}
	writer, known := a.writers[ev.Name]
	if known && !mayShip(m.Kind, writer) {
		return fault.New(fault.Denied, "event %s: a %s does not write %s", ev.UID, m.Kind, ev.Name)
	}
	if !a.mayTellOf(m, ev, known && (writer == sshca.KindNode || ev.Name == events.NodeHostKey)) {
		return fault.New(fault.Denied, "event %s: a %s does not write %s about another node", ev.UID, m.Kind, ev.Name)
	}
	return nil
}

// mayTellOf reports whether m may write what ev says of a node. A node tells of
// itself only. A proxy tells what happens on plain sshd nodes, where it runs the
// sessions; of the others it tells what it decided and what it relayed. That a
// node is gone by the time its last events come is no reason to lose them.
func (a *Authority) mayTellOf(m *record, ev events.Event, onNode bool) bool {
	id, named := ev.Fields["node_id"].(string)
	if !named || id == "" || id == string(m.ID) {
		return true
	}
	if m.Kind != sshca.KindProxy {
		return m.Kind == sshca.KindAuth
	}
	n, ok := a.cfg.Cache.Node(names.NodeID(id))
	return !onNode || !ok || n.Kind == services.NodeSSHD
}

// mayShip reports whether a process whose member is of kind member may send
// what writer writes. All roles of a process share one spool, and the highest of
// them ships it: an authority's may hold anything, a proxy's also what its node
// did. Whoever wrote it, it stands in the log under the process's own id.
func mayShip(member, writer sshca.Kind) bool {
	return writer == everyMember || writer == member || member == sshca.KindAuth ||
		(writer == sshca.KindNode && member == sshca.KindProxy)
}

// everyMember stands for all kinds in writers.
const everyMember sshca.Kind = "member"

// writers says which kind of member may write an event that is not the
// authority's alone.
func writers() map[events.Name]sshca.Kind {
	w := map[events.Name]sshca.Kind{}
	for _, spec := range events.Table() {
		w[spec.Name] = sshca.KindAuth
	}
	for kind, list := range map[sshca.Kind][]events.Name{
		everyMember: {
			events.UserLogin, events.AuthRejected, events.AccessDecision, events.SessionRejected,
			events.ClientDisconnect, events.ProcessStart, events.ProcessStop, events.ClockJump,
		},
		sshca.KindNode: {
			events.SessionStart, events.SessionEnd, events.SessionJoin, events.SessionLeave, events.Exec,
			events.Port, events.SFTP, events.SCP, events.AccountCreate, events.AccountDelete,
			events.RecordingGap,
		},
		sshca.KindProxy: {events.TunnelUp, events.TunnelDown, events.NodeHostKey},
	} {
		for _, name := range list {
			w[name] = kind
		}
	}
	return w
}

// Renew issues fresh certificates for what is on record, and notes which
// authorities' keys the member trusts.
func (s memberService) Renew(ctx context.Context, req *connect.Request[accessdv1.RenewRequest]) (*connect.Response[accessdv1.RenewResponse], error) {
	trusts, err := parseTrusts(req.Msg.GetTrusts())
	if err != nil {
		return nil, err
	}
	certs, err := s.issueMember(ctx, callerOf(ctx).member, "renew", trusts)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.RenewResponse{Certificates: certs}), nil
}

// Describe replaces a node's labels.
func (s memberService) Describe(ctx context.Context, req *connect.Request[accessdv1.DescribeRequest]) (*connect.Response[accessdv1.DescribeResponse], error) {
	labels, version := names.Labels(req.Msg.GetLabels()), req.Msg.GetVersion()
	if err := labels.Check(); err != nil {
		return nil, err
	}
	if len(version) > maxVersion || !versionGrammar.MatchString(version) {
		return nil, fault.New(fault.BadInput, "version %q is malformed", clip(version))
	}
	done := connect.NewResponse(&accessdv1.DescribeResponse{})
	node := *callerOf(ctx).member.node
	if err := keepsLabels(labels, node.TokenLabels); err != nil {
		return nil, err
	}
	if maps.Equal(labels, node.Labels) && version == node.Version {
		return done, nil
	}
	ev := events.Event{Name: events.NodeUpdate, Fields: map[string]any{
		"name": string(node.Name), "member_id": string(node.ID),
		"labels": map[string]string(labels), "labels_before": map[string]string(node.Labels),
	}}
	set(ev, "version", version)
	node.Labels, node.Version = maps.Clone(labels), version
	return done, s.change(ctx, ev, func() error {
		_, err := s.cfg.Store.UpdateNode(ctx, node)
		return err
	})
}

// Announce keeps alive what a proxy says about itself and its tunnels.
func (s memberService) Announce(ctx context.Context, req *connect.Request[accessdv1.AnnounceRequest]) (*connect.Response[accessdv1.AnnounceResponse], error) {
	self, m := callerOf(ctx).member, req.Msg
	addresses, err := parseAddresses(m.GetAddresses())
	if err != nil {
		return nil, err
	}
	up, err := parseNodeIDs(m.GetUp())
	if err != nil {
		return nil, err
	}
	down, err := parseNodeIDs(m.GetDown())
	if err != nil {
		return nil, err
	}
	lease, ttl, err := s.cfg.Store.Announce(ctx, services.Announcement{
		Proxy: services.Proxy{ID: self.ID, Name: self.Name, Addresses: addresses, Draining: m.GetDraining()},
		Lease: m.GetLease(), Full: m.GetFull(), Up: up, Down: down,
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.AnnounceResponse{Lease: lease, Ttl: durationpb.New(ttl)}), nil
}

func parseNodeIDs(list []string) ([]names.NodeID, error) {
	if len(list) > maxAnnounce {
		return nil, fault.New(fault.BadInput, "%d nodes: want at most %d", len(list), maxAnnounce)
	}
	out := make([]names.NodeID, len(list))
	for i, s := range list {
		var err error
		if out[i], err = names.ParseNodeID(s); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Instructions streams what the authority asks of the member, whichever of
// several authorities was told to ask.
func (s memberService) Instructions(ctx context.Context, _ *connect.Request[accessdv1.InstructionsRequest], stream *connect.ServerStream[accessdv1.Instruction]) error {
	self := callerOf(ctx).member
	ctx, stop := s.untilRemoved(ctx, self)
	defer stop()
	err := s.cfg.Store.WatchInstructions(ctx, self.ID, stream.Send)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// ReportSessions replaces the list of the live sessions that a member runs: a
// node its own, a proxy those on plain sshd nodes.
func (s memberService) ReportSessions(ctx context.Context, req *connect.Request[accessdv1.ReportSessionsRequest]) (*connect.Response[accessdv1.ReportSessionsResponse], error) {
	self := callerOf(ctx).member
	if n := len(req.Msg.GetSessions()); n > maxLiveSessions {
		return nil, fault.New(fault.BadInput, "%d sessions: want at most %d", n, maxLiveSessions)
	}
	var list []services.LiveSession
	for _, m := range req.Msg.GetSessions() {
		l, err := liveSession(m)
		if err != nil {
			return nil, err
		}
		here, err := s.locate(self, m.GetNode(), &l)
		if err != nil {
			return nil, err
		}
		if here {
			list = append(list, l)
		}
	}
	return connect.NewResponse(&accessdv1.ReportSessionsResponse{}), s.cfg.Store.ReportSessions(ctx, self.ID, list)
}

// locate says in l on which node it runs that self reports, and whether there is
// such a node; one that was removed is no reason to refuse the rest.
func (s memberService) locate(self *record, node string, l *services.LiveSession) (bool, error) {
	if node == "" || node == string(self.ID) {
		l.Node, l.NodeName = self.ID, self.Name
		return true, nil
	}
	n, ok := s.cfg.Cache.Node(names.NodeID(node))
	if self.Kind == sshca.KindNode || ok && n.Kind != services.NodeSSHD {
		return false, fault.New(fault.Denied, "session %s is on another node", l.ID)
	}
	l.Node, l.NodeName = n.ID, n.Name
	return ok, nil
}

func liveSession(m *accessdv1.LiveSession) (services.LiveSession, error) {
	l := services.LiveSession{Client: m.GetClient(), Kind: m.GetKind(), Started: timeOf(m.GetStarted())}
	var err error
	if l.ID, err = names.ParseSessionID(m.GetId()); err != nil {
		return l, err
	}
	if l.User, err = names.ParseUserName(m.GetUser()); err != nil {
		return l, err
	}
	if l.Login, err = names.ParseLogin(m.GetLogin()); err != nil {
		return l, err
	}
	if l.Kind != "shell" && l.Kind != "exec" && l.Kind != "subsystem" {
		return l, fault.New(fault.BadInput, "session kind %q: want shell, exec or subsystem", clip(l.Kind))
	}
	if len(l.Client) > maxClient {
		return l, fault.New(fault.BadInput, "client address of %d bytes: want at most %d", len(l.Client), maxClient)
	}
	return l, nil
}
