package auth

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// Bounds of an answer. What the log gives at once fits into a message.
const (
	defaultEvents = 1000
	maxEvents     = 10_000
	maxBacklog    = 1000 // events a tail begins with
)

// flushTimeout bounds how long a reader waits for what this process emitted a
// moment ago to reach the log.
const flushTimeout = 3 * time.Second

type auditService struct {
	accessdv1connect.UnimplementedAuditServiceHandler
	*Authority
}

// ListEvents returns the newest events that match.
func (s auditService) ListEvents(ctx context.Context, req *connect.Request[accessdv1.ListEventsRequest]) (*connect.Response[accessdv1.ListEventsResponse], error) {
	filter, err := parseFilter(req.Msg.GetFilter())
	if err != nil {
		return nil, err
	}
	limit := int(req.Msg.GetLimit())
	if limit == 0 {
		limit = defaultEvents
	}
	if limit < 0 || limit > maxEvents {
		return nil, fault.New(fault.BadInput, "limit %d: want 1 to %d", limit, maxEvents)
	}
	if req.Msg.GetBefore() != "" && req.Msg.GetAfter() != "" {
		return nil, fault.New(fault.BadInput, "before and after exclude each other")
	}
	s.flush(ctx)
	read, place := s.cfg.Audit.Query, req.Msg.GetBefore()
	if req.Msg.GetAfter() != "" {
		read, place = s.cfg.Audit.Read, req.Msg.GetAfter()
	}
	page, err := read(ctx, filter, limit, place)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.ListEventsResponse{Events: page.Events, NextBefore: page.Before, NextAfter: page.After}), nil
}

// flush waits, for a while, until the log has what this process emitted.
func (a *Authority) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := a.cfg.Events.Flush(ctx); err != nil {
		a.cfg.Log.Warn("the newest events may be missing from an answer", zap.Error(err))
	}
}

// TailEvents streams the newest events and then each new one.
func (s auditService) TailEvents(ctx context.Context, req *connect.Request[accessdv1.TailEventsRequest], stream *connect.ServerStream[accessdv1.TailEventsResponse]) error {
	filter, err := parseFilter(req.Msg.GetFilter())
	if err != nil {
		return err
	}
	backlog := int(req.Msg.GetBacklog())
	if backlog < 0 || backlog > maxBacklog {
		return fault.New(fault.BadInput, "backlog %d: want 0 to %d", backlog, maxBacklog)
	}
	s.flush(ctx)
	return s.cfg.Audit.Tail(ctx, filter, backlog, func(list [][]byte) error {
		return stream.Send(&accessdv1.TailEventsResponse{Events: list})
	})
}

func parseFilter(m *accessdv1.EventFilter) (events.Filter, error) {
	f := events.Filter{Since: timeOf(m.GetSince()), Until: timeOf(m.GetUntil()), Node: m.GetNode(), Event: m.GetEvent()}
	var err error
	if m.GetUser() != "" {
		if f.User, err = names.ParseUserName(m.GetUser()); err != nil {
			return f, err
		}
	}
	if m.GetLogin() != "" {
		if f.Login, err = names.ParseLogin(m.GetLogin()); err != nil {
			return f, err
		}
	}
	if m.GetSession() != "" {
		if f.Session, err = names.ParseSessionID(m.GetSession()); err != nil {
			return f, err
		}
	}
	const longest = 253 // bytes of a node's name; an event's name is shorter
	if len(f.Node) > longest || len(f.Event) > longest {
		return f, fault.New(fault.BadInput, "filter: node or event is longer than %d bytes", longest)
	}
	if m.Success != nil {
		if f.Outcome = events.Failure; m.GetSuccess() {
			f.Outcome = events.Success
		}
	}
	if f.Labels, err = events.ParseLabels(m.GetLabels()); err != nil {
		return f, err
	}
	if f.Address, err = events.ParseAddress(m.GetAddress()); err != nil {
		return f, err
	}
	if f.Words, err = events.ParseWords(m.GetText()); err != nil {
		return f, err
	}
	return f, f.Check()
}

// timeOf returns the zero time for none.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
