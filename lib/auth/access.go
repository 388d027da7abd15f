package auth

import (
	"context"
	"maps"
	"slices"
	"strconv"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// A rule says who may call a procedure. The zero rule is for nobody.
type rule struct {
	local          bool         // the admin socket of this process
	resource, verb string       // people whose roles allow this; none when empty
	members        []sshca.Kind // members, each for its own data
	joiner         bool         // whoever proved a key and nothing else
	locked         bool         // members also while they are locked: what they tell is of what they did
	proven         bool         // people who have proven their key; an API token is not enough

	// own lets every person call, for what is the person's own; whose roles allow
	// resource and verb may for everybody, which caller.all says.
	own bool
}

// accessTable says who may call what: everybody else may not.
func accessTable() map[string]rule { //nolint:funlen // one table, which is read as a whole
	admin := func(resource, verb string) rule { return rule{local: true, resource: resource, verb: verb} }
	member := rule{members: []sshca.Kind{sshca.KindNode, sshca.KindProxy, sshca.KindAuth}}
	telling := rule{members: member.members, locked: true}
	proxy := rule{members: []sshca.Kind{sshca.KindProxy, sshca.KindAuth}}
	authority := rule{members: []sshca.Kind{sshca.KindAuth}}
	node := rule{members: []sshca.Kind{sshca.KindNode}}
	return map[string]rule{
		accessdv1connect.UserServiceAddUserProcedure:    admin("users", "create"),
		accessdv1connect.UserServiceListUsersProcedure:  admin("users", "read"),
		accessdv1connect.UserServiceRemoveUserProcedure: admin("users", "delete"),
		accessdv1connect.UserServiceResetUserProcedure:  admin("users", "update"),
		accessdv1connect.UserServiceSignUserProcedure:   admin("users", "sign"),

		// An enrolled key signs in as its user, so to add one is to change how.
		accessdv1connect.UserServiceAddUserKeyProcedure:    admin("users", "update"),
		accessdv1connect.UserServiceListUserKeysProcedure:  admin("users", "read"),
		accessdv1connect.UserServiceRemoveUserKeyProcedure: admin("users", "update"),

		accessdv1connect.UserServiceNewKeyChallengeProcedure: admin("users", "update"),
		// They are part of what roles ask for.
		accessdv1connect.UserServiceSetAuthenticatorsProcedure: admin("roles", "update"),
		accessdv1connect.UserServiceGetAuthenticatorsProcedure: admin("roles", "read"),

		accessdv1connect.RoleServiceApplyRolesProcedure: admin("roles", "update"),
		accessdv1connect.RoleServiceListRolesProcedure:  admin("roles", "read"),
		accessdv1connect.RoleServiceGetRoleProcedure:    admin("roles", "read"),
		accessdv1connect.RoleServiceRemoveRoleProcedure: admin("roles", "delete"),

		// Whoever says who a provider's people are is whoever they are.
		accessdv1connect.ConnectorServiceApplyConnectorsProcedure: admin("connectors", "update"),
		accessdv1connect.ConnectorServiceListConnectorsProcedure:  admin("connectors", "read"),
		accessdv1connect.ConnectorServiceGetConnectorProcedure:    admin("connectors", "read"),
		accessdv1connect.ConnectorServiceRemoveConnectorProcedure: admin("connectors", "delete"),

		accessdv1connect.BotServiceAddBotProcedure:   admin("users", "create"),
		accessdv1connect.BotServiceListBotsProcedure: admin("users", "read"),

		accessdv1connect.BotSignInServiceRenewBotProcedure:      proxy,
		accessdv1connect.BotSignInServiceExchangeTokenProcedure: proxy,

		accessdv1connect.PolicyServiceExplainProcedure: {local: true, resource: "roles", verb: "read", own: true},
		// The handler asks the roles about each kind.
		accessdv1connect.WatchServiceWatchProcedure: {local: true, resource: "nodes", verb: "read", own: true},

		accessdv1connect.TokenServiceAddTokenProcedure:    admin("tokens", "create"),
		accessdv1connect.TokenServiceListTokensProcedure:  admin("tokens", "read"),
		accessdv1connect.TokenServiceRemoveTokenProcedure: admin("tokens", "delete"),

		accessdv1connect.NodeServiceListNodesProcedure:   admin("nodes", "read"),
		accessdv1connect.NodeServiceRemoveNodeProcedure:  admin("nodes", "delete"),
		accessdv1connect.NodeServiceAddNodeProcedure:     admin("nodes", "create"),
		accessdv1connect.NodeServiceSignHostKeyProcedure: admin("nodes", "sign"),

		accessdv1connect.SessionServiceListSessionsProcedure: admin("sessions", "read"),
		accessdv1connect.SessionServiceKillSessionProcedure:  admin("sessions", "kill"),

		accessdv1connect.LockServiceAddLockProcedure:    admin("locks", "create"),
		accessdv1connect.LockServiceListLocksProcedure:  admin("locks", "read"),
		accessdv1connect.LockServiceRemoveLockProcedure: admin("locks", "delete"),
		// Whom it keeps out, in a form for sshd; proxies hand it on to nodes.
		accessdv1connect.LockServiceReadKRLProcedure: {local: true, resource: "locks", verb: "read", members: proxy.members},

		// Everybody sees and reviews what the roles' sections say; the rights are
		// those to see and to drop everybody's. Reviews and elevations are a
		// person's own, so the admin socket has none.
		accessdv1connect.RequestServiceCreateRequestProcedure: {resource: "requests", verb: "create"},
		accessdv1connect.RequestServiceListRequestsProcedure:  {local: true, resource: "requests", verb: "read", own: true},
		accessdv1connect.RequestServiceGetRequestProcedure:    {local: true, resource: "requests", verb: "read", own: true},
		accessdv1connect.RequestServiceWatchRequestsProcedure: {local: true, resource: "requests", verb: "read", own: true},
		accessdv1connect.RequestServicePrepareReviewProcedure: {resource: "requests", verb: "read", own: true},
		accessdv1connect.RequestServiceReviewRequestProcedure: {resource: "requests", verb: "read", own: true},
		accessdv1connect.RequestServiceDropRequestProcedure:   {local: true, resource: "requests", verb: "delete", own: true},
		// A token shall not become a certificate, nor a token that lasts longer.
		accessdv1connect.RequestServiceAssumeRequestProcedure: {resource: "requests", verb: "create", own: true, proven: true},

		accessdv1connect.APITokenServiceAddAPITokenProcedure:    {resource: "users", verb: "update", own: true, proven: true},
		accessdv1connect.APITokenServiceListAPITokensProcedure:  {local: true, resource: "users", verb: "read", own: true},
		accessdv1connect.APITokenServiceRemoveAPITokenProcedure: {local: true, resource: "users", verb: "update", own: true},

		accessdv1connect.RecordingServiceUploadPartProcedure:        telling,
		accessdv1connect.RecordingServiceCompleteRecordingProcedure: telling,

		accessdv1connect.ArchiveServiceListRecordingsProcedure:   admin("recordings", "read"),
		accessdv1connect.ArchiveServiceReadRecordingProcedure:    admin("recordings", "read"),
		accessdv1connect.ArchiveServiceSearchRecordingsProcedure: admin("recordings", "read"),
		accessdv1connect.ArchiveServiceHoldRecordingProcedure:    admin("recordings", "hold"),
		accessdv1connect.ArchiveServiceRemoveRecordingProcedure:  admin("recordings", "delete"),

		accessdv1connect.AuditServiceListEventsProcedure:   admin("audit", "read"),
		accessdv1connect.AuditServiceTailEventsProcedure:   admin("audit", "read"),
		accessdv1connect.AuditServiceExportEventsProcedure: admin("audit", "read"),
		accessdv1connect.AuditServiceVerifyLogProcedure:    admin("audit", "read"),
		accessdv1connect.AuditServiceProveEventProcedure:   admin("audit", "read"),
		accessdv1connect.AuditServiceRotateLogProcedure:    admin("audit", "update"),
		// It writes where it is told to, with the authority's own rights.
		accessdv1connect.AuditServiceArchivePeriodProcedure: {local: true},

		// Whole logs: the authority that asks has decided who may see what.
		accessdv1connect.PeerServiceReadEventsProcedure:     authority,
		accessdv1connect.PeerServiceProvePeerEventProcedure: authority,

		// Public halves only, which proxies hand on to their clients.
		accessdv1connect.CAServiceExportCAProcedure: {local: true, resource: "ca", verb: "read", members: proxy.members},

		accessdv1connect.RotationServiceListAuthoritiesProcedure: admin("ca", "read"),
		accessdv1connect.RotationServiceRotateAuthorityProcedure: admin("ca", "update"),
		accessdv1connect.RotationServiceReadTrustProcedure:       proxy,

		accessdv1connect.JoinServiceJoinProcedure: {joiner: true},

		accessdv1connect.MemberServiceWatchPolicyProcedure:    member,
		accessdv1connect.MemberServiceAppendEventsProcedure:   telling,
		accessdv1connect.MemberServiceRenewProcedure:          member,
		accessdv1connect.MemberServiceInstructionsProcedure:   member,
		accessdv1connect.MemberServiceDescribeProcedure:       node,
		accessdv1connect.MemberServiceReportSessionsProcedure: telling,
		accessdv1connect.MemberServiceAnnounceProcedure:       proxy,

		accessdv1connect.LoginServiceBeginProcedure:     proxy,
		accessdv1connect.LoginServiceContinueProcedure:  proxy,
		accessdv1connect.LoginServiceCancelProcedure:    proxy,
		accessdv1connect.LoginServiceRenewNodeProcedure: proxy,
		accessdv1connect.GrantServiceRedeemProcedure:    proxy,

		accessdv1connect.SignOnServiceShowProcedure:    proxy,
		accessdv1connect.SignOnServiceConfirmProcedure: proxy,
		accessdv1connect.SignOnServiceFinishProcedure:  proxy,

		accessdv1connect.SignOnServiceBeginPasskeyProcedure:  proxy,
		accessdv1connect.SignOnServiceFinishPasskeyProcedure: proxy,

		accessdv1connect.SignOnServiceResumeProcedure: proxy,

		// A node has a code checked for a connection to itself, a proxy for any.
		accessdv1connect.FactorServiceVerifyFactorProcedure: member,
		// What people know, nobody changes for them; users reset has them begin anew.
		accessdv1connect.FactorServiceListFactorsProcedure:    {local: true, resource: "users", verb: "read", own: true},
		accessdv1connect.FactorServiceBeginChangeProcedure:    {resource: "users", verb: "update", own: true},
		accessdv1connect.FactorServiceContinueChangeProcedure: {resource: "users", verb: "update", own: true},

		accessdv1connect.DelegationServiceDelegateProcedure:     proxy,
		accessdv1connect.DelegationServiceSignSessionProcedure:  proxy,
		accessdv1connect.DelegationServiceSignNodeHostProcedure: proxy,
		accessdv1connect.DelegationServicePinHostKeyProcedure:   proxy,
	}
}

// A caller is who made a request that was let in.
type caller struct {
	by     string         // for events: a user, "local:UID", or "node:ID" and the like
	user   names.UserName // people only
	all    bool           // it may for everybody; else, where the rule says own, for itself
	member *record        // members only: what the store knows about it
	joiner ssh.PublicKey  // joiners only: the key it proved
	addr   string         // where it comes from, or ""
}

// A record is what the store keeps about a member, of whichever kind.
type record struct {
	services.Member // of a node, too; its kind is KindNode then

	node *services.Node // nodes only
}

type callerKey struct{}

// callerOf returns who made the request; the gatekeeper has put it there.
func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// The gatekeeper stands before every handler.
type gatekeeper struct{ *Authority }

// WrapUnary lets unary calls in or refuses them.
func (g gatekeeper) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		ctx, err := g.admit(ctx, req.Spec().Procedure)
		if err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

// WrapStreamingHandler lets streams in or refuses them. The answer's header goes
// out at once: a caller shall not wait for the first message to know.
func (g gatekeeper) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		ctx, err := g.admit(ctx, conn.Spec().Procedure)
		if err != nil {
			return err
		}
		if err := conn.Send(nil); err != nil {
			return err
		}
		return g.whileGood(ctx, conn, next)
	}
}

// WrapStreamingClient changes nothing: handlers call nobody.
func (g gatekeeper) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// admit returns a context that holds the caller, or why it may not call.
func (g gatekeeper) admit(ctx context.Context, procedure string) (context.Context, error) {
	peer, ok := rpc.PeerFrom(ctx)
	if !ok {
		return nil, fault.New(fault.Denied, "permission denied")
	}
	if b, passedOn := rpc.BearerFrom(ctx); passedOn {
		var err error
		if ctx, err = g.bear(ctx, peer, procedure, b); err != nil {
			return nil, err
		}
		peer, _ = rpc.PeerFrom(ctx)
	}
	c, err := g.callerFor(ctx, peer, procedure, g.access[procedure])
	if err != nil {
		return nil, err
	}
	if peer.Addr.IsValid() {
		c.addr = peer.Addr.String()
	}
	return context.WithValue(ctx, callerKey{}, c), nil
}

// callerFor asks the rule about exactly one of the things a peer can be.
func (g gatekeeper) callerFor(ctx context.Context, peer rpc.Peer, procedure string, r rule) (caller, error) {
	id := peer.Identity
	switch {
	case id != nil && id.Kind == sshca.KindUser:
		all, err := g.admitPerson(ctx, peer, procedure, r)
		return caller{by: string(id.User), user: id.User, all: all}, err
	case id != nil:
		rec, err := g.admitMember(ctx, peer, procedure, r)
		return caller{by: string(id.Kind) + ":" + string(id.Member), member: rec}, err
	case peer.Joiner != nil && r.joiner:
		return caller{by: "joiner", joiner: peer.Joiner}, nil
	case peer.Local && r.local:
		return caller{by: "local:" + strconv.FormatUint(uint64(peer.UID), 10), all: true}, nil
	}
	return caller{}, g.refuse(ctx, peer, procedure, "not for this kind of caller")
}

// admitPerson asks the roles, and records what they answer. It returns whether
// they allow it for everybody.
func (g gatekeeper) admitPerson(ctx context.Context, peer rpc.Peer, procedure string, r rule) (all bool, err error) {
	if r.resource == "" {
		return false, g.refuse(ctx, peer, procedure, "not for people")
	}
	if !g.cfg.Now().Before(peer.Identity.ValidBefore) {
		return false, g.refuse(ctx, peer, procedure, "the certificate has expired")
	}
	if _, held := tokenOf(ctx); held && r.proven {
		return false, g.refuse(ctx, peer, procedure, "not with an API token")
	}
	d, all := g.ask(peer.Identity, r)
	ev := decision(ctx, peer, procedure)
	ev.Success = d.Allow
	ev.Fields["resource"], ev.Fields["verb"] = r.resource, r.verb
	set(ev, "rule", d.Rule)
	set(ev, "role", string(d.Role))
	set(ev, "reason", d.Reason)
	set(ev, "lock", d.LockID())
	if !d.Allow {
		g.note(ctx, ev)
		if d.Lock != nil {
			return false, d.Err("")
		}
		return false, fault.New(fault.Denied, "you may not %s %s", r.verb, r.resource)
	}
	return all, g.record(ctx, ev)
}

// ask asks the roles whether id may what r is about, and whether for everybody.
func (g gatekeeper) ask(id *sshca.Identity, r rule) (d authz.Decision, all bool) {
	d = g.cfg.Engine.Resource(id, r.resource, r.verb)
	if !d.Allow && r.own {
		return g.own(id, d), false
	}
	return d, d.Allow
}

// own allows id what refused does not, for itself, as long as it may do anything
// at all.
func (g gatekeeper) own(id *sshca.Identity, refused authz.Decision) authz.Decision {
	if refused.Lock != nil {
		return refused
	}
	if _, exists := g.cfg.Cache.User(id.User); !exists {
		return refused
	}
	if l, locked := g.cfg.Cache.Locked(services.Subject{Identity: id}, g.cfg.Now()); locked {
		return authz.Decision{Lock: &l, Reason: l.Sentence()}
	}
	return authz.Decision{Allow: true, Reason: "for " + string(id.User) + " alone"}
}

// admitMember lets a member in that is on record with the key it proved: one
// that was removed, or whose key was replaced, is out at once.
func (g gatekeeper) admitMember(ctx context.Context, peer rpc.Peer, procedure string, r rule) (*record, error) {
	id := peer.Identity
	if !slices.Contains(r.members, id.Kind) {
		return nil, g.refuse(ctx, peer, procedure, "not for this kind of member")
	}
	rec, err := g.recordOf(ctx, id.Kind, id.Member)
	if fault.Is(err, fault.NotFound) {
		return nil, g.refuse(ctx, peer, procedure, "the member was removed")
	}
	if err != nil {
		return nil, err
	}
	if rec.Kind != id.Kind || rec.Name != id.MemberName || fingerprint(rec.MemberKey) != id.Fingerprint {
		return nil, g.refuse(ctx, peer, procedure, "the member has another key or name by now")
	}
	if l, locked := g.cfg.Cache.Locked(lockSubject(id), g.cfg.Now()); locked && !r.locked {
		ev := decision(ctx, peer, procedure)
		ev.Fields["reason"], ev.Fields["lock"] = l.Sentence(), l.ID
		g.note(ctx, ev)
		return nil, l.Refusal()
	}
	if rec.node != nil && rec.node.Kind == services.NodeSSHD {
		return nil, g.refuse(ctx, peer, procedure, "a plain sshd node has nothing to ask") // what it is, others say
	}
	return rec, nil
}

// recordOf returns what the store knows about a member; NotFound when nothing.
func (a *Authority) recordOf(ctx context.Context, kind sshca.Kind, id names.NodeID) (*record, error) {
	if kind != sshca.KindNode {
		m, err := a.cfg.Store.Member(ctx, id)
		if err != nil {
			return nil, err
		}
		return &record{Member: m}, nil
	}
	n, err := a.cfg.Store.Node(ctx, id)
	if err != nil {
		return nil, err
	}
	return nodeRecord(n), nil
}

func nodeRecord(n services.Node) *record {
	return &record{
		Member: services.Member{
			ID: n.ID, Name: n.Name, Kind: sshca.KindNode, MemberKey: n.MemberKey, HostKey: n.HostKey,
			Joined: n.Joined, Version: n.Version, Revision: n.Revision,
		},
		node: &n,
	}
}

// refuse records that peer asked for what is not its to ask.
func (g gatekeeper) refuse(ctx context.Context, peer rpc.Peer, procedure, reason string) error {
	ev := decision(ctx, peer, procedure)
	ev.Fields["reason"] = reason
	g.note(ctx, ev)
	return fault.New(fault.Denied, "permission denied")
}

func decision(ctx context.Context, peer rpc.Peer, procedure string) events.Event {
	ev := events.Event{Name: events.AccessDecision, Proto: "api", Fields: map[string]any{"action": procedure}}
	if peer.Addr.IsValid() {
		ev.AddrRemote = peer.Addr.String()
	}
	if t, held := tokenOf(ctx); held {
		ev.Proto, ev.Fields["api_token"] = protoHTTPS, t.ID
	}
	if id := peer.Identity; id != nil {
		ev.User = id.User
		ev.Fields["fingerprint"] = id.Fingerprint
		ev.Fields["cert_serial"] = strconv.FormatUint(id.Serial, 10)
		standsFor(ev, id.For)
		if id.Kind == sshca.KindNode {
			ev.Fields["node_id"], ev.Fields["node_name"] = string(id.Member), string(id.MemberName)
		}
	} else if peer.Joiner != nil {
		ev.Fields["fingerprint"] = ssh.FingerprintSHA256(peer.Joiner)
	}
	return ev
}

// fingerprint returns the fingerprint of a key in authorized_keys format, or "".
func fingerprint(line string) string {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return ""
	}
	return ssh.FingerprintSHA256(key)
}

// A Method is one method of the services with who may call it, for documents.
type Method struct {
	Procedure      string   // "/accessd.v1.UserService/AddUser"
	Local          bool     // over the admin socket
	Resource, Verb string   // people whose roles allow this; "" when none
	Own            bool     // every person, for what is the person's own
	Proven         bool     // people with their key, not with an API token
	Members        []string // kinds of members
	Joiner         bool     // whoever joins
}

// Methods returns every method, by name.
func Methods() []Method {
	table := accessTable()
	out := make([]Method, 0, len(table))
	for _, procedure := range slices.Sorted(maps.Keys(table)) {
		r := table[procedure]
		m := Method{Procedure: procedure, Local: r.local, Resource: r.resource, Verb: r.verb, Own: r.own, Proven: r.proven, Joiner: r.joiner}
		for _, k := range r.members {
			m.Members = append(m.Members, string(k))
		}
		out = append(out, m)
	}
	return out
}
