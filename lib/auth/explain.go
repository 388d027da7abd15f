package auth

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

type policyService struct{ *Authority }

// Explain answers what a person's next connection would be answered, with a fresh
// certificate. Who asks about themselves learns of a node that is out of reach
// what the proxy tells them: the same as of one that is not there.
func (s policyService) Explain(ctx context.Context, req *connect.Request[accessdv1.ExplainRequest]) (*connect.Response[accessdv1.ExplainResponse], error) {
	c, m := callerOf(ctx), req.Msg
	name, err := names.ParseUserName(m.GetUser())
	if err != nil {
		return nil, err
	}
	if !c.all && name != c.user {
		return nil, fault.New(fault.Denied, "you may not read roles, only your own")
	}
	user, err := s.user(ctx, m.GetUser())
	if err != nil {
		return nil, err
	}
	id := authz.Holder(user)
	id.Factor = ""
	if m.GetResource() != "" {
		return explained(s.cfg.Engine.Resource(id, m.GetResource(), m.GetVerb())), nil
	}
	d, err := s.explainNode(ctx, id, m)
	if err != nil {
		return nil, err
	}
	return explained(d), nil
}

// explainNode answers a question about a node.
func (s policyService) explainNode(ctx context.Context, id *sshca.Identity, m *accessdv1.ExplainRequest) (authz.Decision, error) {
	login, err := names.ParseLogin(m.GetLogin())
	if err != nil {
		return authz.Decision{}, err
	}
	target, err := authz.ParseTarget(m.GetTarget())
	if err != nil {
		return authz.Decision{}, err
	}
	node := authz.NodeView{Name: names.NodeName(clip(m.GetNode()))}
	rec, err := s.member(ctx, m.GetNode())
	switch {
	case err == nil && rec.node != nil:
		node = authz.ViewOf(*rec.node)
	case err != nil && !fault.Is(err, fault.NotFound):
		return authz.Decision{}, err
	case callerOf(ctx).all:
		return authz.Decision{}, fault.New(fault.NotFound, "no node named %q", node.Name).WithHint("\"accessd nodes ls\" lists them")
	default:
		return authz.Decision{Reason: outOfReach(id.User, node.Name)}, nil
	}
	if !callerOf(ctx).all && !s.cfg.Engine.Reach(id, node).Allow {
		return authz.Decision{Reason: outOfReach(id.User, names.NodeName(clip(m.GetNode())))}, nil
	}
	return s.cfg.Engine.Decide(authz.Request{
		Identity: id, Node: node, Login: login, Action: authz.Action(m.GetAction()), Command: m.GetCommand(), Target: target,
	}), nil
}

// outOfReach is the reason that tells nothing of whether a node is there.
func outOfReach(user names.UserName, node names.NodeName) string {
	return fmt.Sprintf("no role of %s reaches a node %q", user, node)
}

func explained(d authz.Decision) *connect.Response[accessdv1.ExplainResponse] {
	res := &accessdv1.ExplainResponse{
		Allow: d.Allow, Rule: d.Rule, Role: string(d.Role), Reason: d.Reason, NeedsFactor: d.NeedsFactor, Lock: d.LockID(),
	}
	if d.Allow {
		res.Limits = limitsMessage(d.Options)
	}
	return connect.NewResponse(res)
}

func limitsMessage(o services.RoleOptions) *accessdv1.Limits {
	return &accessdv1.Limits{
		SessionTtl: durationpb.New(o.SessionTTL), IdleTimeout: durationpb.New(o.IdleTimeout), MaxSessions: int32(o.MaxSessions),
		PinSource: o.PinSource, Mfa: string(o.MFA), Key: string(o.Key), Record: string(o.Recording()), RecordInput: o.RecordInput,
	}
}
