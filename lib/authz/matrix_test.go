package authz_test

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// plainRule and plainRole are a role as a person writes it; nil means not set.
type plainRule struct {
	nodes           map[string][]string
	logins, actions []string
}

type plainRole struct {
	allow, deny []plainRule
	ttl         time.Duration
}

// world is a generated cluster, in the plain form.
type world struct {
	roles map[names.RoleName]plainRole
	users map[names.UserName]services.User
	nodes []authz.NodeView
}

// reference is what a decision should be, in as few lines as it takes, without
// any code of the product: whether it is allowed and the session TTL that binds.
func (w *world) reference(u services.User, cert []names.RoleName, labels names.Labels, login, action string) (allow bool, ttl time.Duration) {
	expand := func(s string) []string {
		switch {
		case s == "{{user.logins}}":
			var all []string
			for _, l := range u.Logins {
				all = append(all, string(l))
			}
			return all
		case strings.HasPrefix(s, "{{user.traits."):
			return u.Traits[strings.TrimSuffix(strings.TrimPrefix(s, "{{user.traits."), "}}")]
		}
		return []string{s}
	}
	has := func(list []string, word string) bool {
		return slices.ContainsFunc(list, func(s string) bool {
			return s == "*" || len(s) > 1 && s[0] == '~' && regexp.MustCompile("^("+strings.Trim(s, "~")+")$").MatchString(word) || slices.Contains(expand(s), word)
		})
	}
	covers := func(r plainRule, unset bool) bool {
		for k, values := range r.nodes {
			v, ok := labels[k]
			if k != "*" && (!ok || !has(values, v)) {
				return false
			}
		}
		return (r.nodes != nil || unset) && (has(r.logins, login) || unset && r.logins == nil) && (has(r.actions, action) || unset && r.actions == nil)
	}
	for _, name := range u.Roles {
		role := w.roles[name]
		if slices.ContainsFunc(role.deny, func(r plainRule) bool { return covers(r, true) }) {
			return false, 0
		}
		if slices.Contains(cert, name) && slices.ContainsFunc(role.allow, func(r plainRule) bool { return covers(r, false) }) {
			if ttl == 0 || role.ttl != 0 && role.ttl < ttl {
				ttl = role.ttl
			}
			allow = true
		}
	}
	if !allow {
		ttl = 0
	}
	return allow, ttl
}

// Names that are prefixes of each other or mean something to casbin or a shell
// of old: none may bleed into another.
var (
	matrixRoles  = []names.RoleName{"ops", "ops-admin", "op", "ops.admin", "dev", "dev2", "p", "g", "admin", "a", "aa", "p-admin"}
	matrixUsers  = []names.UserName{"alice", "alice2", "al", "root", "p", "g", "admin", "user.logins", "_", "x"}
	matrixNodes  = []names.NodeName{"db", "db2", "d", "db-1", "web", "web.db", "n1", "n11"}
	matrixLogins = []string{"root", "roo", "root2", "Root", "deploy", "p"}
)

// generate makes a world from a seed.
func generate(seed uint64) *world {
	r := rand.New(rand.NewPCG(seed, 1)) // the same cases every time
	pick := func(n int, from ...string) []string {
		var out []string
		for range r.IntN(n + 1) {
			if s := from[r.IntN(len(from))]; !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
		return out
	}
	some := func(n int, from ...string) []string { // at least one
		return append(pick(n-1, from...), from[r.IntN(len(from))])
	}
	nodes := func() map[string][]string {
		if r.IntN(6) == 0 {
			return map[string][]string{"*": {"*"}}
		}
		m := map[string][]string{}
		for _, key := range append(pick(1, "env", "name", "team"), "env") {
			m[key] = dedupe(some(2, "dev", "prod", "db", "db2", "*", "~d.*~", "~db~", "{{user.traits.team}}"))
		}
		return m
	}
	words := append(services.Actions(), "*")
	logins := append([]string{"{{user.logins}}", "{{user.traits.team}}"}, matrixLogins...)
	w := &world{roles: map[names.RoleName]plainRole{}, users: map[names.UserName]services.User{}}
	for _, name := range matrixRoles {
		role := plainRole{ttl: time.Duration(r.IntN(4)) * time.Hour}
		for range r.IntN(4) {
			role.allow = append(role.allow, plainRule{nodes(), dedupe(some(3, logins...)), dedupe(some(4, words...))})
		}
		for range max(0, r.IntN(5)-3) {
			rule := plainRule{nodes: nodes()}
			if r.IntN(2) == 0 {
				rule.logins = dedupe(some(2, logins...))
			}
			if r.IntN(2) == 0 {
				rule.actions = dedupe(some(3, words...))
			}
			if r.IntN(8) == 0 {
				rule.nodes = nil
			}
			role.deny = append(role.deny, rule)
		}
		w.roles[name] = role
	}
	for _, name := range matrixUsers {
		u := services.User{Name: name, Traits: map[string][]string{"team": pick(2, "dev", "db", "deploy", "prod")}}
		for _, role := range pick(5, texts(matrixRoles)...) {
			u.Roles = append(u.Roles, names.RoleName(role))
		}
		for _, l := range pick(2, matrixLogins...) {
			u.Logins = append(u.Logins, names.Login(l))
		}
		w.users[name] = u
	}
	for i, name := range matrixNodes {
		labels := names.Labels{"name": string(name)}
		for _, key := range pick(2, "env", "team") {
			labels[key] = some(1, "dev", "prod", "db", "db2", "qa")[0]
		}
		w.nodes = append(w.nodes, authz.NodeView{ID: names.NodeID(fmt.Sprintf("%08d-0000-4000-8000-000000000000", i)), Name: name, Labels: labels})
	}
	return w
}

func dedupe(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }

func texts[T ~string](list []T) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return out
}

// policy returns w as the product sees it.
func (w *world) policy(t *testing.T) *policy {
	t.Helper()
	p := newPolicy()
	convert := func(list []plainRule) []services.Rule {
		rules := make([]services.Rule, len(list))
		for i, r := range list {
			rules[i] = services.Rule{Logins: r.logins, Actions: r.actions}
			if r.nodes != nil {
				rules[i].Nodes = selector(t, r.nodes)
			}
		}
		return rules
	}
	for name, r := range w.roles {
		p.roles[name] = services.Role{Name: name, Allow: convert(r.allow), Deny: convert(r.deny), Options: services.RoleOptions{SessionTTL: r.ttl}}
	}
	p.users = w.users
	return p
}

// TestMatrix compares every decision of generated clusters, user by certificate
// roles by node by login by action, with the reference evaluator (THREATS,
// section 2), and Reach with whether any of them is allowed.
func TestMatrix(t *testing.T) {
	var allowed, refused int
	for seed := range uint64(4) {
		w := generate(seed)
		p := w.policy(t)
		e := engine(t, p)
		for _, u := range p.users {
			for _, cert := range [][]names.RoleName{u.Roles, matrixRoles, u.Roles[:len(u.Roles)/2], nil} {
				id := &sshca.Identity{Kind: sshca.KindUser, User: u.Name, Roles: cert}
				for _, node := range w.nodes {
					some := false
					for _, login := range append(matrixLogins, "dev", "db", "prod", "", "*", "{{user.logins}}") {
						for _, action := range services.Actions() {
							want, ttl := w.reference(u, cert, node.Labels, login, action)
							got := e.Decide(authz.Request{Identity: id, Node: node, Login: names.Login(login), Action: authz.Action(action)})
							if got.Allow != want || got.Options.SessionTTL != ttl || got.Reason == "" {
								t.Fatalf("seed %d, %s %v, certificate %v, node %s %v, login %q, %s: got %+v, want %v and %v",
									seed, u.Name, u.Roles, cert, node.Name, node.Labels, login, action, got, want, ttl)
							}
							some = some || want
							if want {
								allowed++
							} else {
								refused++
							}
						}
					}
					if got := e.Reach(id, node); got.Allow != some || got.Reason == "" {
						t.Fatalf("seed %d, %s %v, certificate %v: Reach %s = %+v, want %v", seed, u.Name, u.Roles, cert, node.Name, got, some)
					}
				}
			}
		}
	}
	if allowed < 1000 || refused < 1000 {
		t.Errorf("the matrix allows %d and refuses %d: it proves too little", allowed, refused)
	}
}

// TestLoginsMatrix: a login is a principal exactly when a rule names it and no
// deny rule takes it away everywhere.
func TestLoginsMatrix(t *testing.T) {
	for seed := range uint64(6) {
		w := generate(seed)
		p := w.policy(t)
		for _, u := range p.users {
			var roles []services.Role
			reachable := map[string]bool{}
			for _, name := range u.Roles {
				roles = append(roles, p.roles[name])
			}
			for _, node := range w.nodes {
				for _, login := range append(matrixLogins, "dev", "db", "prod") {
					for _, action := range services.Actions() {
						if ok, _ := w.reference(u, u.Roles, node.Labels, login, action); ok {
							reachable[login] = true
						}
					}
				}
			}
			got := authz.Logins(u, roles)
			if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
				t.Errorf("seed %d, %s: Logins = %q, want them sorted and each once", seed, u.Name, got)
			}
			for login := range reachable {
				if !slices.Contains(got, names.Login(login)) {
					t.Errorf("seed %d, %s: Logins = %q lack %q, which a role allows", seed, u.Name, got, login)
				}
			}
		}
	}
}
