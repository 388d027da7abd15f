//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// The load of goal 13.
const (
	rolesInAll  = 1000
	rolesOfUser = 10
)

// policy is a policy in which nothing changes but its revision.
type policy struct {
	roles    map[names.RoleName]services.Role
	user     services.User
	revision uint64
}

func (p *policy) Role(name names.RoleName) (services.Role, bool) {
	r, ok := p.roles[name]
	return r, ok
}

func (p *policy) User(name names.UserName) (services.User, bool) { return p.user, name == p.user.Name }
func (p *policy) Revision() uint64                               { return p.revision }
func (p *policy) Elevation(string) (services.Elevation, bool)    { return services.Elevation{}, false }
func (p *policy) Stale() bool                                    { return false }
func (p *policy) Locked(services.Subject, time.Time) (services.Lock, bool) {
	return services.Lock{}, false
}

// newPolicy makes roles with two allow rules and a deny rule each, and a user who
// holds some; only the last of them grants.
func newPolicy() (*policy, error) {
	p := &policy{roles: map[names.RoleName]services.Role{}}
	p.user = services.User{Name: "alice", Logins: []names.Login{"alice"}, Traits: map[string][]string{"team": {"blue"}}}
	for i := range rolesInAll {
		name := names.RoleName(fmt.Sprintf("role-%04d", i))
		group := []string{fmt.Sprintf("g%d", i)}
		var nodes [3]services.LabelSelector
		for j, m := range []map[string][]string{
			{"group": group, "env": {"dev", "~stag.*~"}},
			{"group": group, "team": {"{{user.traits.team}}"}},
			{"env": {"prod"}},
		} {
			var err error
			if nodes[j], err = services.ParseSelector(m); err != nil {
				return nil, err
			}
		}
		p.roles[name] = services.Role{
			Name: name,
			Allow: []services.Rule{
				{Nodes: nodes[0], Logins: []string{"ubuntu", "{{user.logins}}"}, Actions: []string{"shell", "exec"}},
				{Nodes: nodes[1], Logins: []string{"root"}, Actions: []string{"*"}},
			},
			Deny: []services.Rule{{Nodes: nodes[2]}},
		}
		if i%(rolesInAll/rolesOfUser) == 0 {
			p.user.Roles = append(p.user.Roles, name)
		}
	}
	return p, nil
}

// measureDecisions measures an access decision that was never asked before, one that
// was, and the first after a change of policy.
func measureDecisions(ctx context.Context, l *lab) ([]figure, error) {
	p, err := newPolicy()
	if err != nil {
		return nil, err
	}
	e, err := authz.New(authz.Config{Policy: p})
	if err != nil {
		return nil, err
	}
	id := &sshca.Identity{Kind: sshca.KindUser, User: p.user.Name, Roles: p.user.Roles}
	n := 0
	decide := func(node int) error {
		n++
		d := e.Decide(authz.Request{Identity: id, Login: "root", Action: authz.ActionShell, Node: authz.NodeView{
			ID: names.NodeID(fmt.Sprintf("%08d-0000-4000-8000-000000000000", node)), Name: "n1",
			Labels: names.Labels{"env": "dev", "team": "blue", "group": "g900", "os": "debian"},
		}})
		if !d.Allow {
			return fmt.Errorf("denied: %s", d.Reason)
		}
		return nil
	}
	rounds, count := pick(l, 9, 3), pick(l, 20_000, 5000)
	cold, err := timeEach(ctx, rounds, count, func() error { return decide(n) }) // a node never asked about
	if err != nil {
		return nil, err
	}
	cached, err := timeEach(ctx, rounds, count, func() error { return decide(1) })
	if err != nil {
		return nil, err
	}
	fresh, err := timeEach(ctx, rounds, count/20, func() error { p.revision++; return decide(1) })
	if err != nil {
		return nil, err
	}
	return []figure{
		figure{accessd: cold}.named("13", fmt.Sprintf("a decision, %d roles, %d per user, cold", rolesInAll, rolesOfUser), micros, atMost(20)).
			remark("CPU time; the role set is known, the decision is not remembered. Building the question is included."),
		figure{accessd: cached}.named("13", "the same, asked before", micros, atMost(2)),
		figure{accessd: 1e6 / cold}.named("–", "decisions, one core, each about another node", perSecond, goal{}).
			remark("these and the next by CPU time, with that load, locks asked about and none in force."),
		figure{accessd: 1e6 / cached}.named("–", "the same, asked before", perSecond, goal{}),
		figure{accessd: 1e6 / fresh}.named("–", "the same, each the first of its person after a change of policy", perSecond, goal{}).
			remark("as after each lock, rotation or edit of a role: the person's rules are made anew."),
	}, nil
}

// timeEach returns the median over the rounds of the CPU time that one of count
// calls of fn takes, in microseconds. What else runs on the machine does not show
// in it; what fn leaves to the collector does.
func timeEach(ctx context.Context, rounds, count int, fn func() error) (float64, error) {
	var times []float64
	for range rounds {
		before := cpuTime(os.Getpid())
		for range count {
			if err := fn(); err != nil {
				return 0, err
			}
		}
		times = append(times, float64((cpuTime(os.Getpid())-before).Nanoseconds())/float64(count)/1000)
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
	}
	return median(times), nil
}
