package auth

import (
	"context"
	"net/url"
	"path"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/store"
)

// ArchivePeriod moves the oldest period of this authority's log to an archive. That
// it was there, and what it was, is in the log before it goes.
func (s auditService) ArchivePeriod(ctx context.Context, req *connect.Request[accessdv1.ArchivePeriodRequest]) (*connect.Response[accessdv1.ArchivePeriodResponse], error) {
	m := req.Msg
	if len(m.GetReason()) > maxRotateReason {
		return nil, fault.New(fault.BadInput, "reason of %d bytes: want at most %d", len(m.GetReason()), maxRotateReason)
	}
	to, err := store.Open(ctx, m.GetTo())
	if err != nil {
		return nil, err
	}
	defer func() { _ = to.Close() }() // what was kept was read back
	prefix := path.Join("audit", string(s.cfg.Keys.authority))
	ev := events.Event{Name: events.AuditArchive, Success: true, Fields: map[string]any{"by": callerOf(ctx).by, "to": redacted(m.GetTo())}}
	set(ev, "reason", m.GetReason())
	recorded := false
	done, err := s.cfg.Audit.Archive(ctx, events.Archiving{
		Period: m.GetPeriod(), Store: to, Prefix: prefix, Young: m.GetYoung(),
		Record: func(a events.Archived) error {
			ev.Fields["period"], ev.Fields["entries"], ev.Fields["checkpoint"] = a.Period, a.Size, string(a.Checkpoint)
			err := s.record(ctx, ev)
			recorded = err == nil
			return err
		},
	})
	if err != nil {
		if recorded {
			s.note(ctx, failed(ev, err))
		}
		return nil, err
	}
	at := prefix
	if done.Period != events.FirstPeriod {
		at = path.Join(prefix, done.Period)
	}
	return connect.NewResponse(&accessdv1.ArchivePeriodResponse{
		Origin: done.Origin, Size: done.Size, RootHash: done.RootHash, Checkpoint: string(done.Checkpoint), Path: at,
	}), nil
}

// redacted returns a URL without what is secret in it.
func redacted(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Redacted()
}
