package auth

import (
	"context"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// maxLockTTL bounds how long a lock holds that expires; one that does not holds
// until it is removed.
const maxLockTTL = 10 * 365 * 24 * time.Hour

type lockService struct{ *Authority }

// AddLock makes a lock. That ends what it is about: every member hears of it and
// asks again about all it has.
func (s lockService) AddLock(ctx context.Context, req *connect.Request[accessdv1.AddLockRequest]) (*connect.Response[accessdv1.AddLockResponse], error) {
	m, c := req.Msg, callerOf(ctx)
	ttl, err := lifetime("lock", m.GetTtl(), 0, maxLockTTL)
	if err != nil {
		return nil, err
	}
	l := services.Lock{ID: services.NewLockID(), Message: m.GetMessage(), By: c.by, Created: s.cfg.Now().UTC()}
	if ttl > 0 {
		l.Expires = l.Created.Add(ttl)
	}
	var notes []string
	if l.Target, notes, err = s.lockTarget(ctx, m.GetTarget()); err != nil {
		return nil, err
	}
	if err := l.Check(); err != nil {
		return nil, err
	}
	err = s.change(ctx, lockEvent(ctx, events.LockCreate, l), func() error {
		_, err := s.cfg.Store.CreateLock(ctx, l)
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.AddLockResponse{Lock: lockMessage(l), Notes: notes}), nil
}

// lockTarget reads what a lock is to be about. What does not exist may be locked,
// since it may come to be, but a slip of the pen shall not go unnoticed.
func (s lockService) lockTarget(ctx context.Context, m *accessdv1.LockTarget) (services.LockTarget, []string, error) {
	t := services.LockTarget{
		User: names.UserName(m.GetUser()), Role: names.RoleName(m.GetRole()), Login: names.Login(m.GetLogin()),
		Serial: m.GetSerial(), Request: m.GetRequest(),
	}
	if m.GetAddress() != "" {
		var err error
		if t.Address, err = services.ParseLockAddress(m.GetAddress()); err != nil {
			return t, nil, err
		}
	}
	if id, err := names.ParseNodeID(m.GetNode()); err == nil {
		t.NodeID = id
	} else {
		t.Node = names.NodeName(m.GetNode())
	}
	if err := t.Check(); err != nil {
		return t, nil, err
	}
	notes, err := s.describeLock(ctx, &t)
	return t, notes, err
}

// describeLock completes the node of t and says what of t there is not.
func (s lockService) describeLock(ctx context.Context, t *services.LockTarget) ([]string, error) {
	var notes []string
	missing := func(what, name string, err error) error {
		if fault.Is(err, fault.NotFound) {
			notes = append(notes, "there is no "+what+" named "+name+" yet")
			return nil
		}
		return err
	}
	if t.User != "" {
		_, err := s.cfg.Store.User(ctx, t.User)
		if err := missing("user", string(t.User), err); err != nil {
			return nil, err
		}
	}
	if t.Role != "" {
		_, err := s.cfg.Store.Role(ctx, t.Role)
		if err := missing("role", string(t.Role), err); err != nil {
			return nil, err
		}
	}
	if t.Node != "" || t.NodeID != "" {
		list, err := s.cfg.Store.Nodes(ctx)
		if err != nil {
			return nil, err
		}
		err = fault.New(fault.NotFound, "no such node")
		name := string(t.Node) + string(t.NodeID)
		for _, n := range list {
			if n.Name == t.Node || n.ID == t.NodeID {
				t.Node, t.NodeID, err = n.Name, n.ID, nil
				break
			}
		}
		if err := missing("node", name, err); err != nil {
			return nil, err
		}
	}
	return notes, nil
}

// ListLocks lists the locks that hold.
func (s lockService) ListLocks(ctx context.Context, _ *connect.Request[accessdv1.ListLocksRequest]) (*connect.Response[accessdv1.ListLocksResponse], error) {
	all, err := s.cfg.Store.Locks(ctx)
	if err != nil {
		return nil, err
	}
	res := &accessdv1.ListLocksResponse{}
	for _, l := range all {
		if l.Active(s.cfg.Now()) {
			res.Locks = append(res.Locks, lockMessage(l))
		}
	}
	return connect.NewResponse(res), nil
}

// RemoveLock removes a lock: whom it kept out may come again.
func (s lockService) RemoveLock(ctx context.Context, req *connect.Request[accessdv1.RemoveLockRequest]) (*connect.Response[accessdv1.RemoveLockResponse], error) {
	id, err := services.ParseLockID(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	l, err := s.cfg.Store.Lock(ctx, id)
	if fault.Is(err, fault.NotFound) {
		return nil, fault.New(fault.NotFound, "no lock with id %q", id).WithHint("\"accessd locks ls\" lists them")
	}
	if err != nil {
		return nil, err
	}
	err = s.change(ctx, lockEvent(ctx, events.LockDelete, l), func() error { return s.cfg.Store.DeleteLock(ctx, id) })
	return connect.NewResponse(&accessdv1.RemoveLockResponse{}), err
}

func lockEvent(ctx context.Context, name events.Name, l services.Lock) events.Event {
	c := callerOf(ctx)
	ev := events.Event{Name: name, AddrRemote: c.addr, Fields: map[string]any{"by": c.by, "lock": l.ID, "target": l.Target.String()}}
	set(ev, "message", l.Message)
	if !l.Expires.IsZero() {
		ev.Fields["expires"] = l.Expires.Format(time.RFC3339)
	}
	return ev
}

func lockMessage(l services.Lock) *accessdv1.Lock {
	t := l.Target
	m := &accessdv1.Lock{
		Id: string(l.ID), Message: l.Message, By: l.By, Created: timestamppb.New(l.Created),
		Target: &accessdv1.LockTarget{
			User: string(t.User), Role: string(t.Role), Login: string(t.Login), Node: string(t.Node), Serial: t.Serial, Request: t.Request,
		},
	}
	if t.Node == "" {
		m.Target.Node = string(t.NodeID)
	}
	if t.Address.IsValid() {
		m.Target.Address = t.Address.String()
	}
	if !l.Expires.IsZero() {
		m.Expires = timestamppb.New(l.Expires)
	}
	return m
}

// checkLock refuses whom a lock keeps out.
func (a *Authority) checkLock(s services.Subject) error {
	if l, locked := a.cfg.Cache.Locked(s, a.cfg.Now()); locked {
		return l.Refusal()
	}
	return nil
}

// checkPerson refuses a certificate for a person whom a lock keeps out, and records
// that. One that is good for a single login is refused when that is locked.
func (a *Authority) checkPerson(ctx context.Context, r userCert) error {
	s := services.Subject{Identity: &sshca.Identity{Kind: sshca.KindUser, User: r.User, Roles: r.Roles, Requests: r.Requests, For: r.For}}
	if client, err := parseClient(r.client); err == nil {
		s.Identity.Addr = client.Addr()
	}
	if len(r.Logins) == 1 {
		s.Login = r.Logins[0]
	}
	err := a.checkLock(s)
	if err != nil {
		ev := events.Event{User: r.User, AddrRemote: r.client, Fields: map[string]any{"cert_type": "user", "by": r.by}}
		a.noteLocked(ctx, ev, err)
		if r.method == "login" { // of a refused sign-in the proxy shows the hint, and nothing else
			return fault.Wrap(fault.Denied, err, fault.Public(err)).WithHint("%s", fault.Public(err))
		}
	}
	return err
}

// checkShown refuses what a locked certificate is shown for, and records that.
func (a *Authority) checkShown(ctx context.Context, id *sshca.Identity) error {
	err := a.checkLock(services.Subject{Identity: id})
	if err != nil {
		ev := events.Event{Name: events.AuthRejected, User: id.User, AddrRemote: id.Addr.String(), Proto: "ssh", Error: err.Error(), Fields: map[string]any{
			"method": "publickey", "refusal": "locked", "reason": fault.Public(err), "lock": services.LockOf(err),
			"fingerprint": id.Fingerprint, "cert_serial": strconv.FormatUint(id.Serial, 10), "key_id": id.KeyID,
		}}
		standsFor(ev, id.For)
		a.note(ctx, ev)
	}
	return err
}

// checkJoiner refuses a node that is locked, or anything from a locked address.
func (a *Authority) checkJoiner(ctx context.Context, rec *record) error {
	s := services.Subject{Identity: &sshca.Identity{}}
	if client, err := parseClient(callerOf(ctx).addr); err == nil {
		s.Identity.Addr = client.Addr()
	}
	if rec.node != nil {
		s.Node, s.NodeName = rec.ID, rec.Name
	}
	return a.checkLock(s)
}

// lockSubject returns a member as locks are asked about it.
func lockSubject(id *sshca.Identity) services.Subject {
	s := services.Subject{Identity: id}
	if id.Kind == sshca.KindNode {
		s.Node, s.NodeName = id.Member, id.MemberName
	}
	return s
}

// checkNode refuses a certificate for a node that is locked, and records that.
func (a *Authority) checkNode(ctx context.Context, rec *record) error {
	s := services.Subject{Identity: &sshca.Identity{Kind: sshca.KindNode}, Node: rec.ID, NodeName: rec.Name}
	err := a.checkLock(s)
	if err != nil {
		ev := events.Event{AddrRemote: callerOf(ctx).addr, Fields: map[string]any{
			"cert_type": string(sshca.KindNode), "by": callerOf(ctx).by, "node_id": string(rec.ID), "node_name": string(rec.Name),
		}}
		a.noteLocked(ctx, ev, err)
	}
	return err
}

// noteLocked records that about, which says whose, got no certificate.
func (a *Authority) noteLocked(ctx context.Context, about events.Event, why error) {
	about.Name, about.Error = events.CertCreate, why.Error()
	about.Fields["reason"], about.Fields["lock"] = fault.Public(why), services.LockOf(why)
	a.note(ctx, about)
}
