package authz_test

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

var n1 = authz.NodeView{ID: "00000001-0000-4000-8000-000000000000", Name: "n1", Labels: names.Labels{"env": "dev"}}

func on(tb testing.TB, env string, logins, actions []string) services.Rule {
	tb.Helper()
	return services.Rule{Nodes: selector(tb, map[string][]string{"env": {env}}), Logins: logins, Actions: actions}
}

// TestReasons: a decision names its rule, and its reason is one sentence.
func TestReasons(t *testing.T) {
	p := newPolicy()
	root, shell := []string{"root"}, []string{"shell"}
	id := p.give("alice",
		services.Role{Name: "developer", Allow: []services.Rule{
			on(t, "qa", root, shell), on(t, "dev", root, shell),
			{Resources: map[string][]string{"audit": {"read"}}},
		}},
		services.Role{Name: "contractor", Deny: []services.Rule{
			on(t, "prod", nil, nil), {Resources: map[string][]string{"*": {"delete"}}},
		}, Allow: []services.Rule{on(t, "prod", root, shell), {Resources: map[string][]string{"tokens": {"*"}}}}})
	e := engine(t, p)
	prod := authz.NodeView{ID: "2", Name: "n2", Labels: names.Labels{"env": "prod"}}
	bare := authz.NodeView{ID: "3", Name: "n3"}
	decide := func(n authz.NodeView, login names.Login, a authz.Action) authz.Decision {
		return e.Decide(authz.Request{Identity: id, Node: n, Login: login, Action: a})
	}
	other := *id
	other.User = "bob"
	cases := []struct {
		name string
		got  authz.Decision
		want authz.Decision
	}{
		{"granted", decide(n1, "root", "shell"), authz.Decision{Allow: true, Role: "developer", Rule: "developer.allow[1]", Reason: `allowed by role "developer", allow[1]`}},
		{"denied", decide(prod, "root", "shell"), authz.Decision{Role: "contractor", Rule: "contractor.deny[0]", Reason: `denied by role "contractor", deny[0]`}},
		{"no node", decide(bare, "root", "shell"), authz.Decision{Reason: `no role of alice reaches node "n3"`}},
		{"no login", decide(n1, "admin", "shell"), authz.Decision{Reason: `no role of alice allows login "admin" on node "n1"`}},
		{"no action", decide(n1, "root", "x11"), authz.Decision{Reason: `no role of alice allows x11 as login "root" on node "n1"`}},
		{"unknown action", decide(n1, "root", "fly\x1b"), authz.Decision{Reason: `there is no action "fly\x1b"`}},
		{"user gone", e.Decide(authz.Request{Identity: &other, Node: n1, Login: "root", Action: "shell"}), authz.Decision{Reason: `there is no user "bob" any more`}},
		{"nobody", e.Decide(authz.Request{Node: n1, Login: "root", Action: "shell"}), authz.Decision{Reason: "only people have roles"}},
		{"a member", e.Reach(&sshca.Identity{Kind: sshca.KindNode, User: "alice", Roles: id.Roles}, n1), authz.Decision{Reason: "only people have roles"}},
		{"reached", e.Reach(id, n1), authz.Decision{Allow: true, Role: "developer", Rule: "developer.allow[1]", Reason: `allowed by role "developer", allow[1]`}},
		{"not reached", e.Reach(id, bare), authz.Decision{Reason: `no role of alice reaches node "n3"`}},
		{"denied everywhere", e.Reach(id, prod), authz.Decision{Role: "contractor", Rule: "contractor.deny[0]", Reason: `denied by role "contractor", deny[0]`}},
		{"gone and reaching", e.Reach(&other, n1), authz.Decision{Reason: `there is no user "bob" any more`}},
		{"resource", e.Resource(id, "audit", "read"), authz.Decision{Allow: true, Role: "developer", Rule: "developer.allow[2]", Reason: `allowed by role "developer", allow[2]`}},
		{"resource denied", e.Resource(id, "tokens", "delete"), authz.Decision{Role: "contractor", Rule: "contractor.deny[1]", Reason: `denied by role "contractor", deny[1]`}},
		{"resource of none", e.Resource(id, "users", "create"), authz.Decision{Reason: "no role of alice allows to create users"}},
		{"unknown resource", e.Resource(id, "auditor", "read"), authz.Decision{Reason: `there is no resource "auditor" to "read"`}},
		{"unknown verb", e.Resource(id, "tokens", "*"), authz.Decision{Reason: `there is no resource "tokens" to "*"`}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.got != c.want {
				t.Errorf("got %+v, want %+v", c.got, c.want)
			}
		})
	}
}

// TestActionsAreTheVocabulary: every constant is a word rules may use, and the
// reverse.
func TestActionsAreTheVocabulary(t *testing.T) {
	all := []authz.Action{
		authz.ActionShell, authz.ActionExec, authz.ActionSFTPRead, authz.ActionSFTPWrite, authz.ActionForwardLocal,
		authz.ActionForwardRemote, authz.ActionForwardAgent, authz.ActionX11, authz.ActionJoin,
	}
	if got, want := texts(all), services.Actions(); !reflect.DeepEqual(got, want) {
		t.Errorf("actions %q, want %q", got, want)
	}
}

// TestNothingIsAllowedByDefault: no roles, unknown roles, roles without rules,
// with rules about resources only, and rules with a part missing grant nothing.
// Without policy lines casbin calls the matcher once with empty text.
func TestNothingIsAllowedByDefault(t *testing.T) {
	every := selector(t, map[string][]string{"*": {"*"}})
	all := []string{"*"}
	cases := map[string][]services.Rule{
		"no rules":       nil,
		"empty rule":     {{}},
		"no nodes":       {{Logins: []string{"root"}, Actions: all}},
		"no logins":      {{Nodes: every, Actions: all}},
		"no actions":     {{Nodes: every, Logins: []string{"root"}}},
		"only resources": {{Resources: map[string][]string{"*": all}}},
		"login wildcard": {{Nodes: every, Logins: all, Actions: all}},
		"empty template": {{Nodes: every, Logins: []string{"{{user.traits.none}}"}, Actions: all}},
		"casbin text":    {{Nodes: every, Logins: []string{"p, admin, *", "root || true", `" || true || "`}, Actions: []string{"shell, exec", "true"}}},
	}
	for name, allow := range cases {
		p := newPolicy()
		id := p.give("alice", services.Role{Name: "r", Allow: allow})
		if d := engine(t, p).Decide(authz.Request{Identity: id, Node: n1, Login: "root", Action: "shell"}); d.Allow {
			t.Errorf("%s: Decide = %+v, want a refusal", name, d)
		}
		if d := engine(t, p).Resource(id, "users", "read"); d.Allow != (name == "only resources") {
			t.Errorf("%s: Resource = %+v", name, d)
		}
	}
	p := newPolicy()
	p.users["alice"] = services.User{Name: "alice", Roles: []names.RoleName{"ghost"}}
	for _, roles := range [][]names.RoleName{nil, {"ghost"}} {
		id := &sshca.Identity{Kind: sshca.KindUser, User: "alice", Roles: roles}
		e := engine(t, p)
		if d := e.Decide(authz.Request{Identity: id, Node: n1, Login: "root", Action: "shell"}); d.Allow || d.Reason == "" {
			t.Errorf("Decide with roles %q = %+v, want a refusal", roles, d)
		}
		if d := e.Resource(id, "users", "read"); d.Allow || strings.Contains(d.Reason, "internal") {
			t.Errorf("Resource with roles %q = %+v, want a refusal", roles, d)
		}
		if d := e.Reach(id, n1); d.Allow {
			t.Errorf("Reach with roles %q = %+v, want a refusal", roles, d)
		}
	}
}

// TestHostileNames: THREATS section 2, "cannot raise himself by names". Texts
// that mean something to casbin, to a list or to a pattern are only ever
// compared whole.
func TestHostileNames(t *testing.T) {
	hostile := []string{
		"a,b", "*", "..", "p, admin, *", "g, me, admin", "p", "g", "root, ops", "ops\x00", "ops/admin", "ops\nadmin",
		`") || true || ("`, "r.ask", "true", strings.Repeat("a", 4096), "\u202eops", "оps", "", "OPS", "op", "ops-admin", "{{user.logins}}",
	}
	p := newPolicy()
	victim := p.give("admin",
		services.Role{Name: "ops", Allow: []services.Rule{{Nodes: selector(t, map[string][]string{"*": {"*"}}), Logins: []string{"root"}, Actions: []string{"*"}}}})
	e := engine(t, p)
	if d := e.Decide(authz.Request{Identity: victim, Node: n1, Login: "root", Action: "shell"}); !d.Allow {
		t.Fatalf("the victim's own decision = %+v", d)
	}
	for _, text := range hostile {
		p.users[names.UserName(text)] = services.User{Name: names.UserName(text), Roles: []names.RoleName{names.RoleName(text)}}
		asks := map[string]authz.Request{
			"login":            {Identity: victim, Node: n1, Login: names.Login(text), Action: "shell"},
			"action":           {Identity: victim, Node: n1, Login: "root", Action: authz.Action(text)},
			"user":             {Identity: &sshca.Identity{Kind: sshca.KindUser, User: names.UserName(text), Roles: []names.RoleName{"ops"}}, Node: n1, Login: "root", Action: "shell"},
			"certificate role": {Identity: &sshca.Identity{Kind: sshca.KindUser, User: "admin", Roles: []names.RoleName{names.RoleName(text)}}, Node: n1, Login: "root", Action: "shell"},
		}
		for what, r := range asks {
			if d := e.Decide(r); d.Allow {
				t.Errorf("%s %.80q: Decide = %+v, want a refusal", what, text, d)
			} else if what != "user" && (strings.ContainsAny(d.Reason, "\n\x00\u202e") || len(d.Reason) > 1024) {
				t.Errorf("%s %.80q: reason %.200q is not one short line", what, text, d.Reason) // a user name has been parsed
			}
		}
	}
}

// TestNoPrefixBleed: THREATS 1.2, role "ops" and "ops-admin", node "db" and
// "db2", and holders whose names could run together.
func TestNoPrefixBleed(t *testing.T) {
	p := newPolicy()
	rule := func(name string) services.Rule {
		return services.Rule{Nodes: selector(t, map[string][]string{"name": {name}}), Logins: []string{"root"}, Actions: []string{"shell"}}
	}
	ops := p.give("a", services.Role{Name: "ops", Allow: []services.Rule{rule("db")}})
	opsAdmin := p.give("a-b", services.Role{Name: "ops-admin", Allow: []services.Rule{rule("db2")}})
	e := engine(t, p)
	for _, c := range []struct {
		id   *sshca.Identity
		node string
		want bool
	}{{ops, "db", true}, {ops, "db2", false}, {ops, "d", false}, {opsAdmin, "db", false}, {opsAdmin, "db2", true}, {opsAdmin, "db22", false}} {
		n := authz.NodeView{ID: names.NodeID(c.node), Name: names.NodeName(c.node), Labels: names.Labels{"name": c.node}}
		if d := e.Decide(authz.Request{Identity: c.id, Node: n, Login: "root", Action: "shell"}); d.Allow != c.want {
			t.Errorf("%s on %s: %+v, want allow = %v", c.id.User, c.node, d, c.want)
		}
	}
}

// TestOptionsBindWhereTheyGrant: DESIGN 9, one role's limit never poisons
// another role's nodes, and where several grant the strictest wins.
func TestOptionsBindWhereTheyGrant(t *testing.T) {
	p := newPolicy()
	root, shell := []string{"root"}, []string{"shell"}
	id := p.give("alice",
		services.Role{Name: "a", Options: services.RoleOptions{SessionTTL: time.Hour, MaxSessions: 5}, Allow: []services.Rule{on(t, "dev", root, shell)}},
		services.Role{Name: "b", Options: services.RoleOptions{SessionTTL: 2 * time.Hour, IdleTimeout: time.Minute, PinSource: true}, Allow: []services.Rule{on(t, "dev", root, shell), on(t, "qa", root, shell)}},
		services.Role{Name: "c", Options: services.RoleOptions{SessionTTL: time.Second}, Allow: []services.Rule{on(t, "dev", root, []string{"exec"})}, Deny: []services.Rule{on(t, "prod", nil, nil)}},
		services.Role{Name: "d", Allow: []services.Rule{on(t, "test", root, shell), on(t, "prod", root, shell)}})
	e := engine(t, p)
	for env, want := range map[string]services.RoleOptions{
		"dev":  {SessionTTL: time.Hour, IdleTimeout: time.Minute, MaxSessions: 5, PinSource: true},
		"qa":   {SessionTTL: 2 * time.Hour, IdleTimeout: time.Minute, PinSource: true},
		"test": {},
		"prod": {}, // denied
	} {
		n := authz.NodeView{ID: names.NodeID(env), Name: "n", Labels: names.Labels{"env": env}}
		if d := e.Decide(authz.Request{Identity: id, Node: n, Login: "root", Action: "shell"}); d.Options != want {
			t.Errorf("options on %s = %+v, want %+v", env, d.Options, want)
		}
	}
}

// TestCertificateAndLivePolicy: a role counts when the certificate and the user
// both have it; a prohibition counts as soon as the user has it (THREATS,
// section 2: "loses access at once").
func TestCertificateAndLivePolicy(t *testing.T) {
	p := newPolicy()
	allow := services.Role{Name: "dev", Allow: []services.Rule{on(t, "dev", []string{"root"}, []string{"shell"})}}
	deny := services.Role{Name: "banned", Deny: []services.Rule{{}}}
	id := p.give("alice", allow)
	p.roles["banned"] = deny
	e := engine(t, p)
	decide := func() bool {
		return e.Decide(authz.Request{Identity: id, Node: n1, Login: "root", Action: "shell"}).Allow
	}
	set := func(roles ...names.RoleName) {
		p.users["alice"] = services.User{Name: "alice", Roles: roles}
		p.revision.Add(1)
	}
	steps := []struct {
		name  string
		roles []names.RoleName
		want  bool
	}{
		{"both", []names.RoleName{"dev"}, true},
		{"taken away", nil, false},
		{"given back", []names.RoleName{"dev"}, true},
		{"another role", []names.RoleName{"other"}, false},
		{"banned", []names.RoleName{"dev", "banned"}, false},
		{"forgiven", []names.RoleName{"dev"}, true},
	}
	for _, s := range steps {
		set(s.roles...)
		if got := decide(); got != s.want {
			t.Errorf("%s: allowed = %v, want %v", s.name, got, s.want)
		}
	}
	p.users["alice"] = services.User{Name: "alice", Roles: []names.RoleName{"dev"}}
	id.Roles = nil // a certificate from before the role
	p.revision.Add(1)
	if decide() {
		t.Error("a role that the certificate lacks was allowed")
	}
	delete(p.users, "alice")
	p.revision.Add(1)
	if d := e.Decide(authz.Request{Identity: id, Node: n1, Login: "root", Action: "shell"}); d.Allow {
		t.Errorf("a removed user: %+v, want a refusal", d)
	}
}

// TestLabelsAreNotRemembered: labels change without a new revision of the
// policy, even in place, and the answer with them.
func TestLabelsAreNotRemembered(t *testing.T) {
	p := newPolicy()
	id := p.give("alice", services.Role{Name: "dev", Allow: []services.Rule{on(t, "dev", []string{"root"}, []string{"shell"})}})
	e := engine(t, p)
	n := authz.NodeView{ID: n1.ID, Name: "n1", Labels: names.Labels{"env": "dev"}}
	for i, env := range []string{"dev", "prod", "dev", "", "dev"} {
		if env == "" {
			delete(n.Labels, "env")
		} else {
			n.Labels["env"] = env
		}
		want := env == "dev"
		if got := e.Decide(authz.Request{Identity: id, Node: n, Login: "root", Action: "shell"}).Allow; got != want {
			t.Errorf("step %d, env %q: allowed = %v, want %v", i, env, got, want)
		}
		if got := e.Reach(id, n).Allow; got != want {
			t.Errorf("step %d, env %q: reached = %v, want %v", i, env, got, want)
		}
	}
}

// TestConcurrentChange: decisions from many goroutines while the policy
// changes; after the change none is of the old policy.
func TestConcurrentChange(t *testing.T) {
	p := &switching{policies: [2]*policy{newPolicy(), newPolicy()}}
	var id *sshca.Identity
	for i, q := range p.policies {
		id = q.give("alice", services.Role{Name: "dev", Allow: []services.Rule{on(t, []string{"dev", "prod"}[i], []string{"root"}, []string{"shell"})}})
	}
	e := engine(t, p)
	for i := range 50 {
		p.flip()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if got, want := e.Decide(authz.Request{Identity: id, Node: n1, Login: "root", Action: "shell"}).Allow, i%2 == 1; got != want {
					t.Errorf("change %d: allowed = %v, want %v", i, got, want)
				}
			})
			wg.Go(func() { e.Reach(id, authz.NodeView{ID: names.NodeID(fmt.Sprint(i)), Labels: n1.Labels}) })
		}
		if i%3 == 0 {
			wg.Wait()
			continue
		}
		wg.Go(func() { e.Resource(id, "users", "read") })
		wg.Wait()
	}
}

// switching goes back and forth between two policies.
type switching struct {
	mu       sync.RWMutex
	n        uint64
	policies [2]*policy
}

func (s *switching) flip() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
}

func (s *switching) now() *policy {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.policies[s.n%2]
}

func (s *switching) Role(name names.RoleName) (services.Role, bool) { return s.now().Role(name) }
func (s *switching) User(name names.UserName) (services.User, bool) { return s.now().User(name) }
func (s *switching) Elevation(string) (services.Elevation, bool) {
	return services.Elevation{}, false
}
func (s *switching) Stale() bool { return false }

func (s *switching) Locked(services.Subject, time.Time) (services.Lock, bool) {
	return services.Lock{}, false
}

func (s *switching) Revision() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.n
}

// TestBuiltinRoles: what the roles of every cluster do (DESIGN 9).
func TestBuiltinRoles(t *testing.T) {
	p := newPolicy()
	ids := map[names.RoleName]*sshca.Identity{}
	for _, r := range services.BuiltinRoles() {
		user := names.UserName("u-" + r.Name)
		ids[r.Name] = p.give(user, r)
		u := p.users[user]
		u.Logins = []names.Login{"deploy"}
		p.users[user] = u
	}
	e := engine(t, p)
	for _, c := range []struct {
		role                                  names.RoleName
		own, other, readAudit, addUser, reach bool
	}{
		{"admin", true, false, true, true, true},
		{"access", true, false, false, false, true},
		{"auditor", false, false, true, false, false},
	} {
		id := ids[c.role]
		got := []bool{
			e.Decide(authz.Request{Identity: id, Node: n1, Login: "deploy", Action: "shell"}).Allow,
			e.Decide(authz.Request{Identity: id, Node: n1, Login: "root", Action: "shell"}).Allow,
			e.Resource(id, "audit", "read").Allow, e.Resource(id, "users", "create").Allow, e.Reach(id, n1).Allow,
		}
		if want := []bool{c.own, c.other, c.readAudit, c.addUser, c.reach}; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: own, other, audit, users, reach = %v, want %v", c.role, got, want)
		}
	}
}

func TestLogins(t *testing.T) {
	u := services.User{Name: "alice", Logins: []names.Login{"alice", "deploy"}, Traits: map[string][]string{"team": {"blue", "not a login"}}}
	every := selector(t, map[string][]string{"*": {"*"}})
	rule := func(logins ...string) services.Rule {
		return services.Rule{Nodes: every, Logins: logins, Actions: []string{"shell"}}
	}
	allow := services.Role{Name: "a", Allow: []services.Rule{rule("root", "{{user.logins}}"), rule("{{user.traits.team}}", "root"), {Resources: map[string][]string{"*": {"*"}}}}}
	all := []names.Login{"alice", "blue", "deploy", "root"}
	noRoot := []names.Login{"alice", "blue", "deploy"}
	cases := []struct {
		name string
		deny services.Rule
		want []names.Login
	}{
		{"nothing denied", services.Rule{Resources: map[string][]string{"*": {"*"}}}, all},
		{"everything denied", services.Rule{}, nil},
		{"a login denied", services.Rule{Logins: []string{"root"}}, noRoot},
		{"on every node, every action", services.Rule{Nodes: every, Logins: []string{"root"}, Actions: []string{"*"}}, noRoot},
		{"every action by name", services.Rule{Logins: []string{"root"}, Actions: services.Actions()}, noRoot},
		{"some actions", services.Rule{Logins: []string{"root"}, Actions: []string{"shell", "exec"}}, all},
		{"some nodes", on(t, "prod", []string{"root"}, nil), all},
		{"any node with a label", on(t, "*", []string{"root"}, nil), all},
		{"template of nothing", services.Rule{Logins: []string{"{{user.traits.none}}"}}, all},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := authz.Logins(u, []services.Role{allow, {Name: "b", Deny: []services.Rule{c.deny}}})
			if len(got) != len(c.want) || len(got) > 0 && !reflect.DeepEqual(got, c.want) {
				t.Errorf("Logins = %q, want %q", got, c.want)
			}
		})
	}
	if got := authz.Logins(u, nil); len(got) != 0 {
		t.Errorf("Logins without roles = %q", got)
	}
}

func TestNewRefuses(t *testing.T) {
	if e, err := authz.New(authz.Config{}); err == nil {
		t.Errorf("New without a policy = %v, want an error", e)
	}
	if e, err := authz.New(authz.Config{Policy: newPolicy(), CacheSize: -1}); err == nil {
		t.Errorf("New with a negative cache = %v, want an error", e)
	}
}
