package auth

import (
	"context"
	"errors"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// Bounds of the life of an API token, which ends with its certificate anyway.
const (
	defaultAPITokenTTL = time.Hour
	maxAPITokenTTL     = 7 * 24 * time.Hour
)

// protoHTTPS is the protocol of what comes with an API token, in events.
const protoHTTPS = "https"

// methodAPIToken is an API token where events tell how somebody came in.
const methodAPIToken = "api_token"

// apiTokenPrefix begins every API token, so that people and programs that look for
// secrets know one when they see it.
const apiTokenPrefix = "accessd-api-"

// parseAPIToken splits the text of an API token into its id and its secret's hash.
func parseAPIToken(s string) (id, hash string, ok bool) {
	text, ok := strings.CutPrefix(s, apiTokenPrefix)
	if !ok {
		return "", "", false
	}
	return splitToken(text)
}

// apiTokenService makes tokens that stand for the certificate that brought their
// person here. What a token is good for is asked of that certificate at each use,
// as if it were shown then; so it ends with it, is pinned where it is, and loses
// what its person loses. It is weaker in two ways: whoever has it is the person,
// and so it makes no certificate and no other token; and a second factor, which is
// for one connection, does not come along.
type apiTokenService struct{ *Authority }

// AddAPIToken makes a token; its text is shown this once.
func (s apiTokenService) AddAPIToken(ctx context.Context, req *connect.Request[accessdv1.AddAPITokenRequest]) (*connect.Response[accessdv1.AddAPITokenResponse], error) {
	ttl, err := lifetime("API token", req.Msg.GetTtl(), defaultAPITokenTTL, maxAPITokenTTL)
	if err != nil {
		return nil, err
	}
	peer, _ := rpc.PeerFrom(ctx)
	if len(peer.Identity.Certificate) == 0 {
		return nil, fault.New(fault.Denied, "an API token is made with a certificate").WithHint("sign in with \"login\" first")
	}
	id, text, hash := newToken()
	t := services.APIToken{
		ID: id, SecretHash: hash, User: peer.Identity.User, Note: req.Msg.GetNote(), Certificate: peer.Identity.Certificate,
		Client: callerOf(ctx).addr, Created: s.cfg.Now().UTC(), Expires: s.cfg.Now().Add(ttl).UTC(),
	}
	if peer.Identity.ValidBefore.Before(t.Expires) {
		t.Expires = peer.Identity.ValidBefore.UTC()
	}
	if err := t.Check(); err != nil {
		return nil, err
	}
	err = s.change(ctx, apiTokenEvent(ctx, events.APITokenCreate, t), func() error { return s.cfg.Store.CreateAPIToken(ctx, t) })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.AddAPITokenResponse{Token: apiTokenMessage(t), Secret: apiTokenPrefix + text}), nil
}

// ListAPITokens lists the caller's tokens, or everybody's.
func (s apiTokenService) ListAPITokens(ctx context.Context, req *connect.Request[accessdv1.ListAPITokensRequest]) (*connect.Response[accessdv1.ListAPITokensResponse], error) {
	c := callerOf(ctx)
	var tokens []services.APIToken
	var err error
	switch {
	case req.Msg.GetAll() && !c.all:
		return nil, fault.New(fault.Denied, "you may not read users")
	case req.Msg.GetAll(), c.user == "": // the admin socket has none of its own
		tokens, err = s.cfg.Store.APITokens(ctx)
	default:
		tokens, err = s.cfg.Store.APITokensOf(ctx, c.user)
	}
	if err != nil {
		return nil, err
	}
	res := &accessdv1.ListAPITokensResponse{}
	for _, t := range tokens {
		res.Tokens = append(res.Tokens, apiTokenMessage(t))
	}
	return connect.NewResponse(res), nil
}

// RemoveAPIToken ends a token. There is none to a person who may not remove it.
func (s apiTokenService) RemoveAPIToken(ctx context.Context, req *connect.Request[accessdv1.RemoveAPITokenRequest]) (*connect.Response[accessdv1.RemoveAPITokenResponse], error) {
	c := callerOf(ctx)
	t, err := s.cfg.Store.APIToken(ctx, req.Msg.GetId())
	if err == nil && t.User != c.user && !c.all {
		err = fault.New(fault.NotFound, "no API token with id %q", t.ID).WithHint("\"accessd api-tokens ls\" lists them")
	}
	if err != nil {
		return nil, err
	}
	err = s.change(ctx, apiTokenEvent(ctx, events.APITokenDelete, t), func() error { return s.cfg.Store.DeleteAPIToken(ctx, t.ID) })
	return connect.NewResponse(&accessdv1.RemoveAPITokenResponse{}), err
}

func apiTokenEvent(ctx context.Context, name events.Name, t services.APIToken) events.Event {
	c := callerOf(ctx)
	ev := events.Event{Name: name, User: t.User, AddrRemote: c.addr, Fields: map[string]any{
		"by": c.by, "api_token": t.ID, "expires": t.Expires.Format(time.RFC3339),
	}}
	set(ev, "note", t.Note)
	return ev
}

func apiTokenMessage(t services.APIToken) *accessdv1.APIToken {
	return &accessdv1.APIToken{
		Id: t.ID, User: string(t.User), Note: t.Note, Created: timestamppb.New(t.Created), Expires: timestamppb.New(t.Expires), Client: t.Client,
	}
}

type tokenKey struct{}

// tokenOf returns the API token that a call is made with; without one its caller
// has proven a key.
func tokenOf(ctx context.Context) (services.APIToken, bool) {
	t, ok := ctx.Value(tokenKey{}).(services.APIToken)
	return t, ok
}

// bear returns a context whose caller is the person whose token b has. Only
// proxies pass calls on; what the proxy itself may does not matter to them.
func (g gatekeeper) bear(ctx context.Context, proxy rpc.Peer, procedure string, b rpc.Bearer) (context.Context, error) {
	if proxy.Identity == nil || proxy.Identity.Kind == sshca.KindUser {
		return nil, g.refuse(ctx, proxy, procedure, "only proxies pass calls on")
	}
	if _, err := g.admitMember(ctx, proxy, procedure, rule{members: []sshca.Kind{sshca.KindProxy, sshca.KindAuth}}); err != nil {
		return nil, err
	}
	t, id, err := g.holder(ctx, b)
	if err != nil {
		return nil, err
	}
	return rpc.WithPeer(context.WithValue(ctx, tokenKey{}, t), rpc.Peer{Identity: id, Addr: b.Addr}), nil
}

// holder returns a token that is good now where b is, and whose it is.
func (a *Authority) holder(ctx context.Context, b rpc.Bearer) (services.APIToken, *sshca.Identity, error) {
	id, hash, ok := parseAPIToken(b.Token)
	if !ok {
		return services.APIToken{}, nil, a.badToken(ctx, b, services.APIToken{}, "it is not in its form")
	}
	t, err := a.cfg.Store.APIToken(ctx, id)
	if fault.Is(err, fault.NotFound) || err == nil && !sameHash(t.SecretHash, hash) {
		return t, nil, a.badToken(ctx, b, services.APIToken{}, "there is no such token")
	}
	if err != nil {
		return t, nil, err
	}
	key, err := ssh.ParsePublicKey(t.Certificate)
	cert, ok := key.(*ssh.Certificate)
	if err != nil || !ok {
		return t, nil, fault.New(fault.Internal, "API token %s: its certificate is damaged", t.ID)
	}
	who, err := a.cfg.Keys.Trust().CheckUser(cert, sshca.Peer{SSHUser: cert.KeyId, Addr: b.Addr.Addr(), Now: a.cfg.Now()})
	if refused, ok := errors.AsType[*sshca.Refusal](err); ok {
		return t, nil, a.badToken(ctx, b, t, refused.Detail)
	}
	if err != nil {
		return t, nil, err
	}
	if err := a.checkLock(services.Subject{Identity: who}); err != nil {
		a.noteToken(ctx, b, t, err)
		return t, nil, err
	}
	return t, who.WithFactor(""), nil
}

// badToken records why a token is refused, of which its holder reads nothing. t is
// zero unless the secret was right.
func (a *Authority) badToken(ctx context.Context, b rpc.Bearer, t services.APIToken, reason string) error {
	a.noteToken(ctx, b, t, errors.New(reason))
	return rpc.Unauthenticated("the API token is not good, or not good any more")
}

func (a *Authority) noteToken(ctx context.Context, b rpc.Bearer, t services.APIToken, why error) {
	reason := why.Error()
	ev := events.Event{Name: events.AuthRejected, User: t.User, Proto: protoHTTPS, Error: reason, Fields: map[string]any{
		"method": methodAPIToken,
	}}
	if lock := services.LockOf(why); lock != "" {
		ev.Fields["refusal"], ev.Fields["lock"], reason = "locked", lock, fault.Public(why)
	}
	ev.Fields["reason"] = reason
	if b.Addr.IsValid() {
		ev.AddrRemote = b.Addr.String()
	}
	set(ev, "api_token", t.ID)
	a.note(ctx, ev)
}
