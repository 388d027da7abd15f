package auth

import (
	"context"
	"strings"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

// maxRotateReason bounds a reason, in bytes.
const maxRotateReason = 1024

// RotateLog begins a new period of this authority's log. Its first entry is the
// event of it, so the log cannot be rotated without that being in it.
func (s auditService) RotateLog(ctx context.Context, req *connect.Request[accessdv1.RotateLogRequest]) (*connect.Response[accessdv1.RotateLogResponse], error) {
	reason := req.Msg.GetReason()
	if len(reason) > maxRotateReason {
		return nil, fault.New(fault.BadInput, "reason of %d bytes: want at most %d", len(reason), maxRotateReason)
	}
	s.flush(ctx)
	key, err := s.cfg.Audit.Rotate(ctx, callerOf(ctx).by, reason)
	if err != nil {
		return nil, err
	}
	origin, _, _ := strings.Cut(key, "+") // which no name has
	return connect.NewResponse(&accessdv1.RotateLogResponse{Origin: origin, VerifierKey: key}), nil
}
