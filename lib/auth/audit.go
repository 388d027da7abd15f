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

type auditService struct{ *Authority }

// ListEvents returns the newest events that match.
func (s auditService) ListEvents(ctx context.Context, req *connect.Request[accessdv1.ListEventsRequest]) (*connect.Response[accessdv1.ListEventsResponse], error) {
	if _, err := parseFilter(req.Msg.GetFilter()); err != nil {
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
	q := query{filter: req.Msg.GetFilter(), limit: limit, newest: req.Msg.GetAfter() == "", askedBy: callerOf(ctx).by}
	what, place := "before", req.Msg.GetBefore()
	if !q.newest {
		what, place = "after", req.Msg.GetAfter()
	}
	own := s.cfg.Keys.authority
	from, err := parsePlaces(what, place, own)
	if err != nil {
		return nil, err
	}
	s.flush(ctx)
	page, err := s.readAll(ctx, q, from)
	if err != nil {
		return nil, err
	}
	res := &accessdv1.ListEventsResponse{Events: page.events, NextAfter: page.after.format(own), Missing: page.missing, Archived: page.archived}
	if page.older {
		res.NextBefore = page.before.format(own)
	}
	return connect.NewResponse(res), nil
}

// flush waits, for a while, until the log has what this process emitted.
func (a *Authority) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := a.cfg.Events.Flush(ctx); err != nil {
		a.cfg.Log.Warn("the newest events may be missing from an answer", zap.Error(err))
	}
}

// ExportEvents streams what matches: each log in its order, one behind the
// other, and then what comes as it comes.
func (s auditService) ExportEvents(ctx context.Context, req *connect.Request[accessdv1.ExportEventsRequest], stream *connect.ServerStream[accessdv1.ExportEventsResponse]) error {
	if _, err := parseFilter(req.Msg.GetFilter()); err != nil {
		return err
	}
	own := s.cfg.Keys.authority
	from, err := parsePlaces("after", req.Msg.GetAfter(), own)
	if err != nil {
		return err
	}
	s.flush(ctx)
	t := s.newTour(query{filter: req.Msg.GetFilter(), askedBy: callerOf(ctx).by}, from, func(t *tour, list [][]byte) error {
		return stream.Send(&accessdv1.ExportEventsResponse{Events: list, After: t.at.format(own), Missing: t.absent(), Archived: t.archived})
	})
	if err := t.once(ctx); err != nil || !req.Msg.GetFollow() {
		return err
	}
	return t.follow(ctx)
}

// TailEvents streams the newest events and then each new one.
func (s auditService) TailEvents(ctx context.Context, req *connect.Request[accessdv1.TailEventsRequest], stream *connect.ServerStream[accessdv1.TailEventsResponse]) error {
	filter := req.Msg.GetFilter()
	if _, err := parseFilter(filter); err != nil {
		return err
	}
	backlog := int(req.Msg.GetBacklog())
	if backlog < 0 || backlog > maxBacklog {
		return fault.New(fault.BadInput, "backlog %d: want 0 to %d", backlog, maxBacklog)
	}
	s.flush(ctx)
	began := s.cfg.Now()
	newest := query{filter: filter, limit: backlog, newest: true, askedBy: callerOf(ctx).by}
	if backlog == 0 {
		newest.filter, newest.limit = nil, 1 // where the logs end
	}
	page, err := s.readAll(ctx, newest, nil)
	if err != nil {
		return err
	}
	if backlog == 0 {
		page.events = nil
	}
	t := s.newTour(query{filter: filter, askedBy: newest.askedBy}, page.after, func(t *tour, list [][]byte) error {
		if len(list) == 0 && !t.turned {
			return nil // only places, of which a tail tells nothing
		}
		return stream.Send(&accessdv1.TailEventsResponse{Events: list, Missing: t.absent()})
	})
	t.began = began
	for _, m := range page.missing {
		t.missing[names.NodeID(m.GetId())], t.turned = m, true
	}
	if err := t.tell(t, t.told.fresh(page.events)); err != nil {
		return err
	}
	return t.follow(ctx)
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
