package auth

import (
	"context"
	"maps"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// Bounds of a join token.
const (
	defaultTokenTTL = time.Hour
	maxTokenTTL     = 365 * 24 * time.Hour
	maxTokenUses    = 100_000
	maxTokenNames   = 1_000
)

type tokenService struct{ *Authority }

// AddToken makes a join token; its text is shown this once.
func (s tokenService) AddToken(ctx context.Context, req *connect.Request[accessdv1.AddTokenRequest]) (*connect.Response[accessdv1.AddTokenResponse], error) {
	t, err := s.newToken(req.Msg)
	if err != nil {
		return nil, err
	}
	id, text, hash := newToken()
	t.ID, t.SecretHash = id, hash
	err = s.change(ctx, tokenEvent(ctx, events.TokenCreate, t), func() error { return s.cfg.Store.CreateToken(ctx, t) })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.AddTokenResponse{Token: tokenMessage(t), Secret: text}), nil
}

func (s tokenService) newToken(m *accessdv1.AddTokenRequest) (services.Token, error) {
	t := services.Token{Role: m.GetRole(), UsesLeft: int(m.GetUses()), Labels: maps.Clone(m.GetLabels())}
	if t.Role != string(sshca.KindNode) && t.Role != string(sshca.KindProxy) {
		return t, fault.New(fault.BadInput, "token role %q: want node or proxy", clip(t.Role))
	}
	if t.UsesLeft == 0 {
		t.UsesLeft = 1
	}
	if t.UsesLeft < 0 || t.UsesLeft > maxTokenUses {
		return t, fault.New(fault.BadInput, "token uses %d: want 1 to %d", t.UsesLeft, maxTokenUses)
	}
	ttl, err := lifetime("token", m.GetTtl(), defaultTokenTTL, maxTokenTTL)
	if err != nil {
		return t, err
	}
	t.Expires = s.cfg.Now().Add(ttl).UTC()
	if len(m.GetNames()) > maxTokenNames {
		return t, fault.New(fault.BadInput, "token with %d names: want at most %d", len(m.GetNames()), maxTokenNames)
	}
	for _, n := range m.GetNames() {
		name, err := parseMemberName(n)
		if err != nil {
			return t, err
		}
		t.Names = append(t.Names, name)
	}
	if len(t.Labels) > 0 && t.Role != string(sshca.KindNode) {
		return t, fault.New(fault.BadInput, "token labels: only nodes have labels")
	}
	return t, t.Labels.Check()
}

// ListTokens lists the tokens that may still be used, without their secrets.
func (s tokenService) ListTokens(ctx context.Context, _ *connect.Request[accessdv1.ListTokensRequest]) (*connect.Response[accessdv1.ListTokensResponse], error) {
	tokens, err := s.cfg.Store.Tokens(ctx)
	if err != nil {
		return nil, err
	}
	res := &accessdv1.ListTokensResponse{}
	for _, t := range tokens {
		res.Tokens = append(res.Tokens, tokenMessage(t))
	}
	return connect.NewResponse(res), nil
}

// RemoveToken forgets a token. What joined with it stays.
func (s tokenService) RemoveToken(ctx context.Context, req *connect.Request[accessdv1.RemoveTokenRequest]) (*connect.Response[accessdv1.RemoveTokenResponse], error) {
	id := req.Msg.GetId()
	unknown := fault.New(fault.NotFound, "no token with id %q", clip(id)).WithHint("\"accessd tokens ls\" lists them")
	if !tokenIDGrammar.MatchString(id) {
		return nil, unknown
	}
	t, err := s.cfg.Store.Token(ctx, id)
	if fault.Is(err, fault.NotFound) {
		return nil, unknown
	}
	if err != nil {
		return nil, err
	}
	err = s.change(ctx, tokenEvent(ctx, events.TokenDelete, t), func() error { return s.cfg.Store.DeleteToken(ctx, t.ID) })
	return connect.NewResponse(&accessdv1.RemoveTokenResponse{}), err
}

func tokenEvent(ctx context.Context, name events.Name, t services.Token) events.Event {
	c := callerOf(ctx)
	ev := events.Event{Name: name, AddrRemote: c.addr, Fields: map[string]any{
		"by": c.by, "token_id": t.ID, "role": t.Role, "expires": t.Expires.Format(time.RFC3339), "uses": t.UsesLeft,
	}}
	if len(t.Names) > 0 {
		ev.Fields["names"] = t.Names
	}
	if len(t.Labels) > 0 {
		ev.Fields["labels"] = map[string]string(t.Labels)
	}
	return ev
}

func tokenMessage(t services.Token) *accessdv1.Token {
	return &accessdv1.Token{
		Id: t.ID, Role: t.Role, Expires: timestamppb.New(t.Expires), UsesLeft: int32(t.UsesLeft),
		Names: texts(t.Names), Labels: maps.Clone(t.Labels),
	}
}

// texts returns names as the strings they are.
func texts[T ~string](list []T) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = string(v)
	}
	return out
}

// parseMemberName returns s as the name of a node or a proxy. The name under
// which proxies relay to the authority is nobody's.
func parseMemberName(s string) (names.NodeName, error) {
	n, err := names.ParseNodeName(s)
	if err == nil && isReserved(s) {
		err = fault.New(fault.BadInput, "node name %q: reserved", s)
	}
	return n, err
}
