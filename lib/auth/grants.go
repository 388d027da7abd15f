package auth

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// grantTTL is how long a proxy may take to make a key and redeem its grant.
const grantTTL = time.Minute

// A grant lets the proxy of a completed sign-in have one more certificate of
// that sign-in, for a key of its making. It is no more than the first one.
type grant struct {
	owner   string // the proxy
	expires time.Time

	user    names.UserName
	roles   []names.RoleName
	mfa     string    // method of the second factor
	before  time.Time // end of the first certificate
	sources []netip.Prefix
	client  string
}

// grants holds the grants that may still be redeemed.
type grants struct {
	now  func() time.Time
	most int

	mu   sync.Mutex // guards open
	open map[string]grant
}

func newGrants(now func() time.Time, most int) *grants {
	return &grants{now: now, most: most, open: map[string]grant{}}
}

// add returns the secret that g is redeemed with. When there are too many there
// is none, and the person has the first certificate only.
func (g *grants) add(what grant) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.open) >= g.most {
		g.sweepLocked()
	}
	if len(g.open) >= g.most {
		return ""
	}
	what.expires = g.now().Add(grantTTL)
	secret := names.NewSecret()
	g.open[secret] = what
	return secret
}

// take returns the grant of owner and forgets it.
func (g *grants) take(secret, owner string) (grant, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	what, ok := g.open[secret]
	if !ok || what.owner != owner || !g.now().Before(what.expires) {
		return grant{}, fault.New(fault.Denied, "the sign-in grants no further certificate")
	}
	delete(g.open, secret)
	return what, nil
}

func (g *grants) sweep() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sweepLocked()
}

func (g *grants) sweepLocked() {
	now := g.now()
	for secret, what := range g.open {
		if !now.Before(what.expires) {
			delete(g.open, secret)
		}
	}
}

type grantService struct{ *Authority }

// Redeem issues the certificate of a completed sign-in for another key.
func (s grantService) Redeem(ctx context.Context, req *connect.Request[accessdv1.RedeemRequest]) (*connect.Response[accessdv1.RedeemResponse], error) {
	key, err := parseKeyLine(req.Msg.GetPublicKey())
	if err != nil {
		return nil, err
	}
	c := callerOf(ctx)
	g, err := s.grants.take(req.Msg.GetGrant(), string(c.member.ID))
	if err != nil {
		return nil, err
	}
	sub, err := s.subject(ctx, g.user)
	if fault.Is(err, fault.NotFound) {
		return nil, fault.New(fault.Denied, "permission denied")
	}
	if err != nil {
		return nil, err
	}
	if sub, err = s.elevated(ctx, sub); err != nil {
		return nil, err
	}
	// What the person gained since the sign-in takes another sign-in.
	sub.Roles = slices.DeleteFunc(slices.Clone(sub.Roles), func(r names.RoleName) bool { return !slices.Contains(g.roles, r) })
	ask := sub.request()
	ask.Key, ask.ValidBefore, ask.SourceAddresses, ask.MFA = key, g.before, g.sources, g.mfa
	cert, err := s.issueUser(ctx, userCert{UserRequest: ask, method: "grant", by: c.by, client: g.client})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.RedeemResponse{
		Certificate: keyLine(cert), Expires: timestamppb.New(certTime(cert.ValidBefore)),
	}), nil
}
