package authz_test

import (
	"fmt"
	"testing"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// The load of BUDGETS.md, row 13.
const (
	benchRoles   = 1000
	benchPerUser = 10
)

// benchCluster returns a policy of 1,000 roles, each with two allow rules and a
// deny rule, and a user who has ten of them. The last of the ten grants.
func benchCluster(b *testing.B) (*policy, *sshca.Identity) {
	b.Helper()
	p := newPolicy()
	var held []names.RoleName
	for i := range benchRoles {
		name := names.RoleName(fmt.Sprintf("role-%04d", i))
		p.roles[name] = services.Role{
			Name: name,
			Allow: []services.Rule{
				{Nodes: selector(b, map[string][]string{"group": {fmt.Sprintf("g%d", i)}, "env": {"dev", "~stag.*~"}}), Logins: []string{"ubuntu", "{{user.logins}}"}, Actions: []string{"shell", "exec"}},
				{Nodes: selector(b, map[string][]string{"group": {fmt.Sprintf("g%d", i)}, "team": {"{{user.traits.team}}"}}), Logins: []string{"root"}, Actions: []string{"*"}},
			},
			Deny: []services.Rule{{Nodes: selector(b, map[string][]string{"env": {"prod"}})}},
		}
		if i%(benchRoles/benchPerUser) == 0 {
			held = append(held, name)
		}
	}
	p.users["alice"] = services.User{Name: "alice", Roles: held, Logins: []names.Login{"alice"}, Traits: map[string][]string{"team": {"blue"}}}
	return p, &sshca.Identity{Kind: sshca.KindUser, User: "alice", Roles: held}
}

func benchRequest(id *sshca.Identity, node int) authz.Request {
	return authz.Request{Identity: id, Login: "root", Action: authz.ActionShell, Node: authz.NodeView{
		ID: names.NodeID(fmt.Sprintf("%08d-0000-4000-8000-000000000000", node)), Name: "n1",
		Labels: names.Labels{"env": "dev", "team": "blue", "group": "g900", "os": "debian"},
	}}
}

// BenchmarkDecideCold asks about ever new nodes: the enforcer is built, the
// decision is not cached. Budget: 20 µs.
func BenchmarkDecideCold(b *testing.B) {
	p, id := benchCluster(b)
	e := engine(b, p)
	r := benchRequest(id, 0)
	ids := make([]names.NodeID, 2*authz.DefaultCacheSize) // more than are remembered
	for i := range ids {
		ids[i] = benchRequest(id, i).Node.ID
	}
	e.Decide(r)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		r.Node.ID = ids[i%len(ids)]
		if d := e.Decide(r); !d.Allow || d.Rule != "role-0900.allow[0]" && d.Rule != "role-0900.allow[1]" {
			b.Fatalf("Decide = %+v", d)
		}
	}
}

// BenchmarkDecideCached asks the same again. Budget: 2 µs.
func BenchmarkDecideCached(b *testing.B) {
	p, id := benchCluster(b)
	e := engine(b, p)
	r := benchRequest(id, 0)
	b.ReportAllocs()
	for b.Loop() {
		if d := e.Decide(r); !d.Allow {
			b.Fatalf("Decide = %+v", d)
		}
	}
}

// BenchmarkDecideForward asks about a destination, which is never cached. Budget:
// 20 µs.
func BenchmarkDecideForward(b *testing.B) {
	p, id := benchCluster(b)
	for name, r := range p.roles {
		r.Allow[1].ForwardTo = []services.ForwardPattern{pattern(b, "*.example.com:443"), pattern(b, "10.0.0.0/8:5432")}
		p.roles[name] = r
	}
	e := engine(b, p)
	r := benchRequest(id, 0)
	r.Action, r.Target = authz.ActionForwardLocal, target("db.internal", 5432, "10.1.2.3")
	b.ReportAllocs()
	for b.Loop() {
		if d := e.Decide(r); !d.Listed {
			b.Fatalf("Decide = %+v", d)
		}
	}
}

// BenchmarkDecideFresh asks first after a change of policy: the enforcer is
// built anew.
func BenchmarkDecideFresh(b *testing.B) {
	p, id := benchCluster(b)
	e := engine(b, p)
	r := benchRequest(id, 0)
	b.ReportAllocs()
	for b.Loop() {
		p.revision.Add(1)
		if d := e.Decide(r); !d.Allow {
			b.Fatalf("Decide = %+v", d)
		}
	}
}
