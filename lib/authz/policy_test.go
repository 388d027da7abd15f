package authz_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// policy is a policy in memory. The revision changes by hand, as it does with
// the change of a [services.Cache].
type policy struct {
	roles    map[names.RoleName]services.Role
	users    map[names.UserName]services.User
	elevated map[string]services.Elevation
	revision atomic.Uint64
	locked   func(services.Subject, time.Time) (services.Lock, bool) // nil: nobody is
	stale    bool
}

func newPolicy() *policy {
	return &policy{roles: map[names.RoleName]services.Role{}, users: map[names.UserName]services.User{}}
}

func (p *policy) Role(name names.RoleName) (services.Role, bool) {
	r, ok := p.roles[name]
	return r, ok
}

func (p *policy) User(name names.UserName) (services.User, bool) {
	u, ok := p.users[name]
	return u, ok
}

func (p *policy) Elevation(id string) (services.Elevation, bool) {
	g, ok := p.elevated[id]
	return g, ok
}
func (p *policy) Revision() uint64 { return p.revision.Load() }

func (p *policy) Stale() bool { return p.stale }

func (p *policy) Locked(s services.Subject, now time.Time) (services.Lock, bool) {
	if p.locked == nil {
		return services.Lock{}, false
	}
	return p.locked(s, now)
}

// give puts roles into the policy and gives them all to user.
func (p *policy) give(user names.UserName, roles ...services.Role) *sshca.Identity {
	u := services.User{Name: user}
	for _, r := range roles {
		p.roles[r.Name] = r
		u.Roles = append(u.Roles, r.Name)
	}
	p.users[user] = u
	p.revision.Add(1)
	return &sshca.Identity{Kind: sshca.KindUser, User: user, Roles: u.Roles}
}

func engine(tb testing.TB, p authz.Policy) *authz.Engine {
	tb.Helper()
	e, err := authz.New(authz.Config{Policy: p})
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

func selector(tb testing.TB, m map[string][]string) services.LabelSelector {
	tb.Helper()
	s, err := services.ParseSelector(m)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func pattern(tb testing.TB, s string) services.ForwardPattern {
	tb.Helper()
	p, err := services.ParseForwardPattern(s)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}
