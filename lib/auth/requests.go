package auth

import (
	"context"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
)

// requestPending is how long a request waits to be approved.
const requestPending = 24 * time.Hour

// requestService makes, reviews and ends access requests. Who may do what with
// which one is decided here, by the live roles.
type requestService struct{ *Authority }

// CreateRequest asks for roles in the caller's name.
func (s requestService) CreateRequest(ctx context.Context, req *connect.Request[accessdv1.CreateRequestRequest]) (*connect.Response[accessdv1.CreateRequestResponse], error) {
	m := req.Msg
	sub, err := s.subject(ctx, callerOf(ctx).user)
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now().UTC()
	r := services.AccessRequest{
		ID: names.NewRequestID(), User: sub.Name, Reason: m.GetReason(),
		Created: now, Deadline: now.Add(requestPending), State: services.RequestPending,
	}
	var node *services.Node
	if m.GetNode() != "" {
		if node, err = s.askedNode(m.GetNode(), sub); err != nil {
			return nil, err
		}
		r.Node, r.NodeName = node.ID, node.Name
	}
	if r.Roles, err = s.askedRoles(ctx, m.GetRoles(), sub, node); err != nil {
		return nil, err
	}
	ttl := m.GetTtl()
	if ttl != nil && (ttl.CheckValid() != nil || ttl.AsDuration() < time.Second) {
		return nil, fault.New(fault.BadInput, "access request: want a time of at least a second")
	}
	t, err := termsFor(sub, r.Roles, node)
	if err == nil {
		r.TTL, err = t.span(ttl.AsDuration())
	}
	if err != nil {
		s.note(ctx, failed(requestEvent(ctx, events.AccessRequestCreate, r), err))
		return nil, err
	}
	if err := r.Check(); err != nil {
		return nil, err
	}
	err = s.change(ctx, requestEvent(ctx, events.AccessRequestCreate, r), func() error {
		r, err = s.cfg.Store.CreateRequest(ctx, r)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.requestsChanged()
	msg, err := s.requestMessage(ctx, r)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.CreateRequestResponse{Request: msg}), nil
}

// askedNode returns the node that sub means. One for which sub may ask for
// nothing does not exist for sub.
func (s requestService) askedNode(query string, sub subject) (*services.Node, error) {
	n, err := s.cfg.Cache.FindNode(query, func(n services.Node) bool { return len(askable(sub, &n)) > 0 })
	if err != nil {
		return nil, err
	}
	return &n, nil
}

// askedRoles checks the roles that are asked for, of which there may be none for
// a node when only one is possible.
func (s requestService) askedRoles(ctx context.Context, asked []string, sub subject, node *services.Node) ([]names.RoleName, error) {
	if len(asked) == 0 {
		possible := askable(sub, node)
		switch {
		case node == nil:
			return nil, fault.New(fault.BadInput, "want roles, or a node").WithHint("you may ask for: %s", roleList(possible))
		case len(possible) != 1:
			return nil, fault.New(fault.BadInput, "want roles: several would do").WithHint("you may ask for: %s", roleList(possible))
		}
		return possible, nil
	}
	var out []names.RoleName
	for _, text := range asked {
		name, err := names.ParseRoleName(text)
		if err != nil {
			return nil, err
		}
		if slices.Contains(sub.Roles, name) {
			return nil, fault.New(fault.BadInput, "you have role %q already", name)
		}
		if len(requestRules(sub, name, node)) > 0 { // else nobody shall learn whether there is such a role
			if _, err := s.cfg.Store.Role(ctx, name); err != nil {
				return nil, err
			}
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// requestEvent is about r.
func requestEvent(ctx context.Context, name events.Name, r services.AccessRequest) events.Event {
	c := callerOf(ctx)
	ev := events.Event{Name: name, User: r.User, AddrRemote: c.addr, Fields: map[string]any{
		"by": c.by, "request": r.ID, "roles": r.Roles, "request_reason": r.Reason, "ttl": r.TTL.String(),
	}}
	set(ev, "node_id", string(r.Node))
	set(ev, "node_name", string(r.NodeName))
	return ev
}

// visible reports whether the caller may see r: its own, what it may review, and
// all with the right to read requests.
func (s requestService) visible(ctx context.Context, sub subject, r services.AccessRequest) bool {
	c := callerOf(ctx)
	return c.all || c.user != "" && (r.User == c.user || mayReview(sub, r))
}

// viewer returns the person who calls, who is nobody at the admin socket. What
// the person's certificate does not carry is left out.
func (s requestService) viewer(ctx context.Context) (subject, error) {
	c := callerOf(ctx)
	if c.user == "" {
		return subject{}, nil
	}
	sub, err := s.subject(ctx, c.user)
	if err != nil {
		return subject{}, err
	}
	peer, _ := rpc.PeerFrom(ctx)
	sub.roles = slices.DeleteFunc(sub.roles, func(r services.Role) bool { return !slices.Contains(peer.Identity.Roles, r.Name) })
	return sub, nil
}

// request returns the request that the caller means, if it is the caller's to
// see.
func (s requestService) request(ctx context.Context, id string) (services.AccessRequest, subject, error) {
	sub, err := s.viewer(ctx)
	if err != nil {
		return services.AccessRequest{}, sub, err
	}
	r, err := s.cfg.Store.Request(ctx, id)
	if err == nil && !s.visible(ctx, sub, r) {
		err = fault.New(fault.NotFound, "no access request named %q", clip(id))
	}
	if fault.Is(err, fault.NotFound) {
		return r, sub, fault.New(fault.NotFound, "%s", fault.Public(err)).WithHint("\"requests ls\" lists those that concern you")
	}
	return r, sub, err
}

// ListRequests lists the requests that the caller may see.
func (s requestService) ListRequests(ctx context.Context, req *connect.Request[accessdv1.ListRequestsRequest]) (*connect.Response[accessdv1.ListRequestsResponse], error) {
	sub, err := s.viewer(ctx)
	if err != nil {
		return nil, err
	}
	all, err := s.cfg.Store.Requests(ctx)
	if err != nil {
		return nil, err
	}
	res := &accessdv1.ListRequestsResponse{}
	for _, r := range all {
		if !s.visible(ctx, sub, r) || !req.Msg.GetAll() && !r.Open() {
			continue
		}
		m, err := s.requestMessage(ctx, r)
		if err != nil {
			return nil, err
		}
		res.Requests = append(res.Requests, m)
	}
	return connect.NewResponse(res), nil
}

// GetRequest returns one request.
func (s requestService) GetRequest(ctx context.Context, req *connect.Request[accessdv1.GetRequestRequest]) (*connect.Response[accessdv1.GetRequestResponse], error) {
	r, _, err := s.request(ctx, req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	m, err := s.requestMessage(ctx, r)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.GetRequestResponse{Request: m}), nil
}

// WatchRequests tells the requests that the caller may see, and every change of
// one. It ends with the certificate of who watches.
func (s requestService) WatchRequests(ctx context.Context, _ *connect.Request[accessdv1.WatchRequestsRequest], stream *connect.ServerStream[accessdv1.WatchRequestsResponse]) error {
	peer, _ := rpc.PeerFrom(ctx)
	tell := func(r services.AccessRequest) error {
		if id := peer.Identity; id != nil && !s.cfg.Now().Before(id.ValidBefore) {
			return fault.New(fault.Denied, "the certificate has expired")
		}
		sub, err := s.viewer(ctx)
		if err != nil || !s.visible(ctx, sub, r) {
			return err
		}
		m, err := s.requestMessage(ctx, r)
		if err != nil {
			return err
		}
		return stream.Send(&accessdv1.WatchRequestsResponse{Request: m})
	}
	return s.cfg.Store.WatchRequests(ctx, tell, func() error {
		return stream.Send(&accessdv1.WatchRequestsResponse{Synced: true})
	})
}

// DropRequest ends a request and what it gave.
func (s requestService) DropRequest(ctx context.Context, req *connect.Request[accessdv1.DropRequestRequest]) (*connect.Response[accessdv1.DropRequestResponse], error) {
	if err := services.CheckRequestText("reason", req.Msg.GetReason()); err != nil {
		return nil, err
	}
	c := callerOf(ctx)
	_, err := s.amend(ctx, req.Msg.GetId(), func(r *services.AccessRequest, _ subject) (events.Event, error) {
		if !c.all && r.User != c.user {
			return events.Event{}, fault.New(fault.Denied, "the request is %q's: it is not yours to drop", r.User).
				WithHint("who may review it can deny it, also after it was approved")
		}
		if !r.Open() {
			return events.Event{}, over(*r)
		}
		r.State, r.Ended, r.EndedBy = services.RequestDropped, s.cfg.Now().UTC(), c.by
		ev := requestEvent(ctx, events.AccessRequestEnd, *r)
		ev.Fields["state"] = string(r.State)
		set(ev, "reason", req.Msg.GetReason())
		return ev, nil
	})
	return connect.NewResponse(&accessdv1.DropRequestResponse{}), err
}

// over says that nothing can be done any more with r, which has ended.
func over(r services.AccessRequest) error {
	return fault.New(fault.Conflict, "the request is over: %s", r.State)
}

// amend changes a request that the caller may see: edit changes it and returns
// the event of that, which is recorded before the change is made. When somebody
// else changes it meanwhile it is edited anew.
func (s requestService) amend(ctx context.Context, id string, edit func(*services.AccessRequest, subject) (events.Event, error)) (services.AccessRequest, error) {
	for i := 1; ; i++ {
		r, sub, err := s.request(ctx, id)
		if err != nil {
			return r, err
		}
		ev, err := edit(&r, sub)
		if err != nil {
			return r, err
		}
		err = s.change(ctx, ev, func() error {
			var err error
			r, err = s.cfg.Store.UpdateRequest(ctx, r)
			return err
		})
		if i < maxConflicts && fault.Is(err, fault.Conflict) {
			continue
		}
		if err == nil {
			s.requestsChanged()
		}
		return r, err
	}
}

// requestTerms returns what r takes by the roles of today, and what of it is
// missing; a refusal when r's person may not ask for it any more.
func (s requestService) requestTerms(ctx context.Context, r services.AccessRequest) (terms, []services.ApprovalSet, error) {
	gone := fault.New(fault.Denied, "the request cannot be approved any more")
	sub, err := s.subject(ctx, r.User)
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Denied) || err == nil && sub.Created.After(r.Created) {
		return terms{}, nil, gone
	}
	if err != nil {
		return terms{}, nil, err
	}
	var node *services.Node
	if r.Node != "" {
		n, err := s.cfg.Store.Node(ctx, r.Node)
		if fault.Is(err, fault.NotFound) {
			return terms{}, nil, gone
		}
		if err != nil {
			return terms{}, nil, err
		}
		node = &n
	}
	t, err := termsFor(sub, r.Roles, node)
	if err != nil {
		return t, nil, gone
	}
	approvers, err := s.approvers(ctx, r)
	return t, t.missing(approvers), err
}

// approvers returns the roles of each who has approved r and still may.
func (s requestService) approvers(ctx context.Context, r services.AccessRequest) ([][]names.RoleName, error) {
	var out [][]names.RoleName
	for _, v := range r.Reviews {
		if v.Verdict != services.VerdictApprove {
			continue
		}
		sub, err := s.subject(ctx, v.By)
		if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Denied) || err == nil && sub.Created.After(v.Time) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if mayReview(sub, r) {
			out = append(out, sub.Roles)
		}
	}
	return out, nil
}

// requestMessage returns r as its readers get it.
func (s requestService) requestMessage(ctx context.Context, r services.AccessRequest) (*accessdv1.AccessRequest, error) {
	m := &accessdv1.AccessRequest{
		Id: r.ID, User: string(r.User), NodeId: string(r.Node), NodeName: string(r.NodeName), Reason: r.Reason,
		Ttl: durationpb.New(r.TTL), Created: timestamppb.New(r.Created), Deadline: timestamppb.New(r.Deadline),
		State: string(r.State), EndedBy: r.EndedBy,
	}
	for _, name := range r.Roles {
		m.Roles = append(m.Roles, string(name))
	}
	if !r.Until.IsZero() {
		m.Until = timestamppb.New(r.Until)
	}
	if !r.Ended.IsZero() {
		m.Ended = timestamppb.New(r.Ended)
	}
	for _, v := range r.Reviews {
		m.Reviews = append(m.Reviews, &accessdv1.Review{
			Reviewer: string(v.By), Verdict: v.Verdict, Note: v.Note, Time: timestamppb.New(v.Time), Proof: v.Proof,
			Statement: v.Statement, Signature: v.Signature, Certificate: v.Certificate, Fingerprint: v.Fingerprint, Client: v.Client,
			PublicKey: v.PublicKey,
		})
	}
	if r.State != services.RequestPending {
		return m, nil
	}
	t, missing, err := s.requestTerms(ctx, r)
	if err != nil && !fault.Is(err, fault.Denied) {
		return nil, err
	}
	if err != nil {
		m.Missing = []string{fault.Public(err)}
		return m, nil
	}
	m.SignatureRequired = t.signature
	for _, set := range missing {
		m.Missing = append(m.Missing, set.String())
	}
	return m, nil
}
