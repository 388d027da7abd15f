package auth

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
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

type auditService struct{ *Authority }

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

// ExportEvents streams what matches in the order of the log.
func (s auditService) ExportEvents(ctx context.Context, req *connect.Request[accessdv1.ExportEventsRequest], stream *connect.ServerStream[accessdv1.ExportEventsResponse]) error {
	filter, err := parseFilter(req.Msg.GetFilter())
	if err != nil {
		return err
	}
	s.flush(ctx)
	for after := req.Msg.GetAfter(); ; {
		page, err := s.cfg.Audit.Read(ctx, filter, maxEvents, after)
		if err != nil {
			return err
		}
		if err := stream.Send(&accessdv1.ExportEventsResponse{Events: page.Events, After: page.After}); err != nil {
			return err
		}
		after = page.After
		switch {
		case page.More:
		case !req.Msg.GetFollow():
			return nil
		default:
			if err := s.cfg.Audit.Grown(ctx, after); err != nil {
				return err
			}
		}
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
	text := events.FilterText{
		User: m.GetUser(), Login: m.GetLogin(), Node: m.GetNode(), Event: m.GetEvent(), Session: m.GetSession(),
		Labels: m.GetLabels(), Address: m.GetAddress(), Text: m.GetText(),
	}
	if m != nil && m.Success != nil {
		text.Outcome = string(events.Failure)
		if m.GetSuccess() {
			text.Outcome = string(events.Success)
		}
	}
	f, err := text.Parse()
	if err != nil {
		return f, err
	}
	f.Since, f.Until = timeOf(m.GetSince()), timeOf(m.GetUntil())
	return f, f.Check()
}

// timeOf returns the zero time for none.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
