package auth

import (
	"context"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
)

// VerifyLog checks this authority's log from its files.
func (s auditService) VerifyLog(ctx context.Context, req *connect.Request[accessdv1.VerifyLogRequest]) (*connect.Response[accessdv1.VerifyLogResponse], error) {
	s.flush(ctx)
	key := s.cfg.Keys.verifierKey
	var earlier [][]byte
	if since := req.Msg.GetSince(); since != "" {
		earlier = append(earlier, []byte(since))
	}
	verify := events.Verify
	if req.Msg.GetArchived() {
		verify = events.VerifyArchived
	}
	report, err := verify(ctx, s.cfg.AuditDir, key, earlier...)
	if err == nil {
		err = s.cfg.Audit.VerifyIndex(ctx) // what queries would leave out is as good as gone
	}
	if ctx.Err() != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "verification was given up")
	}
	res := &accessdv1.VerifyLogResponse{
		Size: report.Size, RootHash: report.RootHash, Origin: report.Origin, VerifierKey: key,
		Checkpoint: string(report.Checkpoint),
	}
	for _, raw := range report.Cosigned {
		res.Cosigned = append(res.Cosigned, string(raw))
	}
	for _, p := range report.Before {
		res.Before = append(res.Before, &accessdv1.VerifiedPeriod{Origin: p.Origin, Size: p.Size, RootHash: p.RootHash, Checkpoint: string(p.Checkpoint)})
	}
	if p := report.Absent; p != nil {
		res.Before = append(res.Before, &accessdv1.VerifiedPeriod{Origin: p.Origin, Size: p.Size, Checkpoint: string(p.Checkpoint), Absent: true})
	}
	if err != nil {
		res.Fault = err.Error() // for the auditor, who asked what is wrong
	}
	return connect.NewResponse(res), nil
}

// ProveEvent proves that the log of an authority has an event.
func (s auditService) ProveEvent(ctx context.Context, req *connect.Request[accessdv1.ProveEventRequest]) (*connect.Response[accessdv1.ProveEventResponse], error) {
	s.flush(ctx)
	proof, err := s.prove(ctx, req.Msg.GetUid())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.ProveEventResponse{Proof: string(proof)}), nil
}
