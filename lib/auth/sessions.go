package auth

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

const (
	// instructionTTL is how long an instruction waits for its member; one that
	// was away longer has no session left to end.
	instructionTTL = time.Minute
	// maxReason bounds what an administrator tells a person, in bytes.
	maxReason = 256
)

type sessionService struct{ *Authority }

// ListSessions lists the live sessions that members report.
func (s sessionService) ListSessions(ctx context.Context, _ *connect.Request[accessdv1.ListSessionsRequest]) (*connect.Response[accessdv1.ListSessionsResponse], error) {
	live, err := s.cfg.Store.Sessions(ctx)
	if err != nil {
		return nil, err
	}
	res := &accessdv1.ListSessionsResponse{}
	for _, l := range live {
		res.Sessions = append(res.Sessions, &accessdv1.Session{
			Id: string(l.ID), User: string(l.User), Login: string(l.Login), NodeId: string(l.Node), NodeName: string(l.NodeName),
			Client: l.Client, Kind: l.Kind, Started: timestamppb.New(l.Started),
		})
	}
	return connect.NewResponse(res), nil
}

// KillSession tells the member that reports the session to end it. Should several
// report it, which only a lying one can bring about, all are told.
func (s sessionService) KillSession(ctx context.Context, req *connect.Request[accessdv1.KillSessionRequest]) (*connect.Response[accessdv1.KillSessionResponse], error) {
	id, err := names.ParseSessionID(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	reason := req.Msg.GetReason()
	if len(reason) > maxReason {
		return nil, fault.New(fault.BadInput, "reason of %d bytes: want at most %d", len(reason), maxReason)
	}
	live, err := s.cfg.Store.Sessions(ctx)
	if err != nil {
		return nil, err
	}
	found := false
	for _, l := range live {
		if l.ID != id {
			continue
		}
		found = true
		if err := s.kill(ctx, l, reason); err != nil {
			return nil, err
		}
	}
	if !found {
		return nil, fault.New(fault.NotFound, "no live session with id %q", id).WithHint("\"accessd sessions ls\" lists them")
	}
	return connect.NewResponse(&accessdv1.KillSessionResponse{}), nil
}

func (s sessionService) kill(ctx context.Context, l services.LiveSession, reason string) error {
	c := callerOf(ctx)
	ev := events.Event{
		Name: events.SessionKill, SID: l.ID, User: l.User, Login: l.Login, AddrRemote: c.addr,
		Fields: map[string]any{"by": c.by, "node_id": string(l.Node), "node_name": string(l.NodeName)},
	}
	set(ev, "reason", reason)
	return s.change(ctx, ev, func() error {
		return s.cfg.Store.PutInstruction(ctx, l.Reporter, &accessdv1.Instruction{
			What: &accessdv1.Instruction_KillSession{KillSession: &accessdv1.KillSession{Session: string(l.ID), Reason: reason, By: c.by}},
		}, instructionTTL)
	})
}
