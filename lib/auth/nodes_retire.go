package auth

import (
	"context"
	"strings"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// maxLogEnd bounds a checkpoint, in bytes.
const maxLogEnd = 64 << 10

// retire takes an authority off the record, which is gone for good. From then on
// nobody asks for its log: what is known of that log's end is in the event, or that
// it is lost.
func (s nodeService) retire(ctx context.Context, m services.Member, req *accessdv1.RemoveNodeRequest) error {
	switch {
	case m.ID == s.cfg.Keys.authority:
		return fault.New(fault.BadInput, "%q is the authority that you are asking", m.Name)
	case !req.GetForce():
		return fault.New(fault.Conflict, "%q is an authority, and has a log that answers would lack without a word", m.Name).
			WithHint("one that is gone for good is removed by --force, with the last checkpoint of its log as --end, where there is one")
	case req.GetReason() == "" || len(req.GetReason()) > maxRotateReason:
		return fault.New(fault.BadInput, "reason of %d bytes: want 1 to %d", len(req.GetReason()), maxRotateReason)
	}
	c := callerOf(ctx)
	ev := events.Event{Name: events.AuthorityDelete, AddrRemote: c.addr, Fields: map[string]any{
		"by": c.by, "node_id": string(m.ID), "node_name": string(m.Name), "reason": req.GetReason(), "log_lost": req.GetLogEnd() == "",
	}}
	if req.GetLogEnd() != "" {
		end, err := s.endOf(ctx, m, req.GetLogEnd())
		if err != nil {
			return err
		}
		ev.Fields["entries"], ev.Fields["checkpoint"] = end.Size, string(end.Checkpoint)
	}
	if s.answers(ctx, m) {
		return fault.New(fault.Conflict, "%q answers: stop it first, and take its credentials for the state store away", m.Name)
	}
	return s.change(ctx, ev, func() error {
		return s.cfg.Store.RetireAuthority(ctx, services.Retired{
			ID: m.ID, Name: m.Name, By: c.by, Reason: req.GetReason(), At: s.cfg.Now().UTC(), End: req.GetLogEnd(),
		})
	})
}

// endOf checks that text is a checkpoint of the authority's log.
func (a *Authority) endOf(ctx context.Context, m services.Member, text string) (events.Report, error) {
	if len(text) > maxLogEnd {
		return events.Report{}, fault.New(fault.BadInput, "checkpoint of %d bytes: want at most %d", len(text), maxLogEnd)
	}
	ca, err := a.cfg.Store.CA(ctx, services.AuditCA)
	if err != nil {
		return events.Report{}, err
	}
	for _, k := range ca.Keys {
		if name, _, _ := strings.Cut(k.Public, "+"); strings.HasSuffix(name, "/"+string(m.ID)) {
			return events.CheckCheckpoint([]byte(text), k.Public)
		}
	}
	return events.Report{}, fault.New(fault.NotFound, "no log of %q is known, so it can only be declared lost", m.Name)
}

// answers reports whether another authority's log can be read.
func (a *Authority) answers(ctx context.Context, m services.Member) bool {
	err := a.peerLog(m).read(ctx, query{limit: 1, newest: true, askedBy: callerOf(ctx).by}, func(events.Page) error { return nil })
	return err == nil
}

// retired reports whether an authority was taken off the record on purpose. When
// that cannot be known it was not.
func (a *Authority) retired(ctx context.Context, id names.NodeID) bool {
	_, err := a.cfg.Store.RetiredAuthority(ctx, id)
	return err == nil
}
