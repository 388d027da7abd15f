package auth

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
)

// AssumeRequest issues a certificate with what the request gives beside what the
// caller's own has. It is no sign-in: it ends when the caller's certificate does,
// is good where that is, and locked when that is.
func (s requestService) AssumeRequest(ctx context.Context, req *connect.Request[accessdv1.AssumeRequestRequest]) (*connect.Response[accessdv1.AssumeRequestResponse], error) {
	key, err := parseKeyLine(req.Msg.GetPublicKey())
	if err != nil {
		return nil, err
	}
	r, _, err := s.request(ctx, req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	c := callerOf(ctx)
	switch {
	case r.User != c.user:
		return nil, fault.New(fault.Denied, "the request is %q's", r.User)
	case r.State == services.RequestPending:
		return nil, fault.New(fault.Conflict, "the request is not approved yet")
	case r.State != services.RequestApproved, !s.cfg.Now().Before(r.Until):
		return nil, over(r)
	}
	peer, _ := rpc.PeerFrom(ctx)
	id := peer.Identity
	sub, err := s.subject(ctx, c.user)
	if err != nil {
		return nil, err
	}
	requests, given, err := s.standingRequests(ctx, c.user, append(slices.Clone(id.Requests), r.ID))
	if err != nil {
		return nil, err
	}
	// Of the roles held only those that the certificate has.
	sub.Roles = slices.DeleteFunc(slices.Clone(sub.Roles), func(n names.RoleName) bool { return !slices.Contains(id.Roles, n) })
	sub.roles = slices.DeleteFunc(sub.roles, func(role services.Role) bool { return !slices.Contains(sub.Roles, role.Name) })
	slices.Sort(requests)
	if sub, err = s.with(ctx, sub, services.Elevation{Roles: given}); err != nil {
		return nil, err
	}
	sub.requests = slices.Compact(requests)
	ask := sub.request()
	ask.Key, ask.MFA, ask.ValidBefore, ask.SourceAddresses = key, id.MFA, id.ValidBefore, id.SourceAddresses
	if client, err := netip.ParseAddrPort(c.addr); err == nil && len(ask.SourceAddresses) == 0 {
		ask.SourceAddresses = sub.sources(client)
	}
	ask.For = id.Origin(ask.Roles, ask.Requests)
	ask.ValidAfter = s.cfg.Now().Add(-defaults.ClockSkew)
	cert, err := s.issueUser(ctx, userCert{UserRequest: ask, method: "request", by: c.by, client: c.addr})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.AssumeRequestResponse{
		Certificate: keyLine(cert), Expires: timestamppb.New(certTime(cert.ValidBefore)),
	}), nil
}

// requestsChanged has the next end of a request looked up anew.
func (a *Authority) requestsChanged() {
	select {
	case a.deadlines <- struct{}{}:
	default: // it is going to be
	}
}

// keepInterval is how often requests are looked at though nothing is known to
// end: others than this authority make them, too.
const keepInterval = time.Minute

// keepRequests ends access requests whose time is over, until ctx ends.
func (a *Authority) keepRequests(ctx context.Context) error {
	for {
		wait := keepInterval
		next, err := a.endRequests(ctx)
		if err != nil && ctx.Err() == nil {
			a.cfg.Log.Warn("access requests not looked at", zap.Error(err))
		}
		if !next.IsZero() {
			wait = max(min(wait, next.Sub(a.cfg.Now())), 0)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-a.deadlines:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// endRequests ends the requests whose time is over, and returns when the next
// one's will be; the zero time is never. That time is over needs nobody's record
// to be so, and so the event comes after, from whichever authority was first.
func (a *Authority) endRequests(ctx context.Context) (next time.Time, err error) {
	all, err := a.cfg.Store.Requests(ctx)
	if err != nil {
		return next, err
	}
	for _, r := range all {
		if !r.Open() {
			continue
		}
		if end := r.Ends(); a.cfg.Now().Before(end) {
			if next.IsZero() || end.Before(next) {
				next = end
			}
			continue
		}
		r.Ended, r.State = r.Ends(), services.RequestExpired
		if _, err := a.cfg.Store.UpdateRequest(ctx, r); err != nil {
			if fault.Is(err, fault.Conflict) || fault.Is(err, fault.NotFound) {
				continue // somebody else was first
			}
			return next, err
		}
		ev := requestEvent(ctx, events.AccessRequestEnd, r)
		delete(ev.Fields, "by")
		ev.Success, ev.Fields["state"] = true, string(r.State)
		a.note(ctx, ev)
	}
	return next, nil
}
