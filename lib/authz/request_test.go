package authz_test

import (
	"testing"
	"time"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// TestElevation: a role that an access request gives counts for exactly as long
// as the request stands, for exactly who made it, and where it is for one node
// alone nowhere else.
func TestElevation(t *testing.T) {
	everywhere := selector(t, map[string][]string{"*": {"*"}})
	dba := services.Role{
		Name: "dba",
		Allow: []services.Rule{
			{Nodes: everywhere, Logins: []string{"postgres"}, Actions: []string{"shell"}},
			{Resources: map[string][]string{"sessions": {"read"}}},
		},
		Deny: []services.Rule{{Logins: []string{"root"}}},
	}
	asked := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const all, one, other = "request-all", "request-one", "request-other"
	db1, db2 := authz.NodeView{ID: "id-1", Name: "db-1"}, authz.NodeView{ID: "id-2", Name: "db-2"}
	for _, c := range []struct {
		name        string
		carries     []names.RoleName
		requests    []string
		change      func(*policy)
		db1, db2    bool // as postgres
		resource    bool
		asRootOnDB1 bool
	}{
		{name: "no request", carries: []names.RoleName{"access"}, asRootOnDB1: true},
		{name: "the role without the request", carries: []names.RoleName{"access", "dba"}, asRootOnDB1: true},
		{name: "everywhere", carries: []names.RoleName{"access", "dba"}, requests: []string{all}, db1: true, db2: true, resource: true},
		{name: "one node", carries: []names.RoleName{"access", "dba"}, requests: []string{one}, db1: true},
		{name: "both", carries: []names.RoleName{"access", "dba"}, requests: []string{all, one}, db1: true, db2: true, resource: true},
		{name: "another's request", carries: []names.RoleName{"access", "dba"}, requests: []string{other}, asRootOnDB1: true},
		{name: "the request without the role", carries: []names.RoleName{"access"}, requests: []string{all}, asRootOnDB1: true},
		{name: "more roles than asked for", carries: []names.RoleName{"access", "admin", "dba"}, requests: []string{all}, db1: true, db2: true, resource: true},
		{
			name: "dropped", carries: []names.RoleName{"access", "dba"}, requests: []string{all}, asRootOnDB1: true,
			change: func(p *policy) { delete(p.elevated, all) },
		},
		{
			name: "another user of that name", carries: []names.RoleName{"access", "dba"}, requests: []string{all}, asRootOnDB1: true,
			change: func(p *policy) {
				u := p.users["alice"]
				u.Created = time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
				p.users["alice"] = u
			},
		},
		{
			name: "the user is gone", carries: []names.RoleName{"access", "dba"}, requests: []string{all},
			change: func(p *policy) { delete(p.users, "alice") },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPolicy()
			p.give("alice", services.Role{Name: "access", Allow: []services.Rule{{Nodes: everywhere, Logins: []string{"root"}, Actions: []string{"shell"}}}})
			p.roles["dba"] = dba
			for _, r := range services.BuiltinRoles() {
				if r.Name == "admin" {
					p.roles["admin"] = r
				}
			}
			p.elevated = map[string]services.Elevation{
				all:   {ID: all, User: "alice", Roles: []names.RoleName{"dba"}, Asked: asked},
				one:   {ID: one, User: "alice", Roles: []names.RoleName{"dba"}, Node: "id-1", Asked: asked},
				other: {ID: other, User: "bob", Roles: []names.RoleName{"dba"}, Asked: asked},
			}
			e := engine(t, p)
			id := &sshca.Identity{Kind: sshca.KindUser, User: "alice", Roles: c.carries, Requests: c.requests}
			if c.change != nil {
				before := e.Decide(authz.Request{Identity: id, Node: db1, Login: "postgres", Action: authz.ActionShell})
				if !before.Allow {
					t.Errorf("before the change: %+v, want it allowed", before)
				}
				c.change(p)
				p.revision.Add(1)
			}
			for _, q := range []struct {
				node  authz.NodeView
				login names.Login
				want  bool
			}{{db1, "postgres", c.db1}, {db2, "postgres", c.db2}, {db1, "root", c.asRootOnDB1}} {
				d := e.Decide(authz.Request{Identity: id, Node: q.node, Login: q.login, Action: authz.ActionShell})
				if d.Allow != q.want {
					t.Errorf("%s@%s: %+v, want allow %t", q.login, q.node.Name, d, q.want)
				}
			}
			if d := e.Resource(id, "sessions", "read"); d.Allow != c.resource {
				t.Errorf("sessions read: %+v, want allow %t", d, c.resource)
			}
			if d := e.Resource(id, "users", "create"); d.Allow {
				t.Errorf("users create: %+v, want a refusal", d)
			}
		})
	}
}
