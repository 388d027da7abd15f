package authz_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
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
	forward         []string
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
// A target of nil asks for any.
func (w *world) reference(u services.User, cert []names.RoleName, labels names.Labels, login, action string, target *authz.Target) (allow bool, ttl time.Duration) {
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
		if r.forward != nil && action != "forward:local" {
			if unset {
				return false
			}
		} else if r.forward != nil && (target == nil && unset || target != nil && !leads(r.forward, *target, unset)) {
			return false
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

// leads is what patterns mean, in the plainest words: whether one of them names
// the target, for a rule that denies or for one that allows.
func leads(patterns []string, t authz.Target, deny bool) bool {
	host := strings.ToLower(strings.TrimSuffix(t.Host, "."))
	local := host == "localhost" || deny && strings.HasSuffix(host, ".localhost")
	var addrs []netip.Addr
	for _, text := range []string{t.Addr.String(), t.Host} {
		if a, err := netip.ParseAddr(text); err == nil {
			addrs = append(addrs, a.WithZone("").Unmap())
		}
	}
	if deny && t.Host == "2852039166" { // as inet_aton(3) reads it
		addrs = append(addrs, netip.MustParseAddr("169.254.169.254"))
	}
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}
	if deny && (slices.ContainsFunc(addrs, netip.Addr.IsUnspecified) || local && addrs == nil) {
		addrs = append(addrs, loopback...)
	}
	match := func(is func(netip.Addr) bool) bool {
		n := 0
		for _, a := range addrs {
			if is(a) {
				n++
			}
		}
		return n > 0 && (deny || n == len(addrs))
	}
	for _, p := range patterns {
		if glob, ok := strings.CutPrefix(p, "unix:"); ok || t.Path != "" {
			re := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(glob), `\*`, "[^/]*") + "$")
			if ok && t.Path != "" && re.MatchString(t.Path) {
				return true
			}
			continue
		}
		cut := strings.LastIndex(p, ":")
		name, port := strings.Trim(p[:cut], "[]"), p[cut+1:]
		var low, high uint16
		if n, _ := fmt.Sscanf(port, "%d-%d", &low, &high); port != "*" && (n == 1 && t.Port != low || n == 2 && (t.Port < low || t.Port > high)) {
			continue
		}
		network, err := netip.ParsePrefix(name)
		if a, literal := netip.ParseAddr(name); literal == nil {
			network, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		switch {
		case name == "*", err != nil && name == host, strings.HasPrefix(name, "*.") && strings.HasSuffix(host, name[1:]) && host != name[1:],
			err == nil && match(network.Contains), name == "localhost" && (local || match(netip.Addr.IsLoopback)):
			return true
		}
	}
	return false
}

// targets are where forwards of the matrix lead: names and addresses that agree,
// disagree and are not known, and ways to write them that are not the plain one.
func targets() []*authz.Target {
	out := []*authz.Target{nil, {Path: "/run/app/a.sock"}, {Path: "/run/app/b/a.sock"}, {Path: "/run/docker.sock"}}
	for _, host := range []string{"db.example.com", "DB.Example.com.", "example.com", "badexample.com", "localhost", "x.localhost", "10.1.2.3", "169.254.169.254", "127.0.0.1", "::1", "fe80::1%eth0", "2001:db8::5", "::ffff:169.254.169.254", "0.0.0.0", "2852039166"} {
		for _, addr := range []string{"", "10.1.2.3", "169.254.169.254", "127.0.0.1", "::ffff:10.1.2.3", "::", "2001:db8::5", "fe80::1%eth0"} {
			for _, port := range []uint16{22, 443, 5432, 8080} {
				t := &authz.Target{Host: host, Port: port}
				if addr != "" {
					t.Addr = netip.MustParseAddr(addr)
				}
				out = append(out, t)
			}
		}
	}
	return out
}

// matrixForwards are patterns of destinations.
var matrixForwards = []string{
	"*:*", "*:443", "*:22", "*.example.com:*", "*.com:400-500", "db.example.com:5432", "example.com:8000-8999", "localhost:*", "localhost:22",
	"10.0.0.0/8:5432", "10.1.2.3:*", "169.254.0.0/16:*", "127.0.0.0/8:22", "127.0.0.1:8080", "0.0.0.0/0:443", "[2001:db8::/32]:*", "[::1]:*", "[fe80::/10]:*",
	"unix:/run/app/*.sock", "unix:/run/*", "unix:/run/docker.sock",
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
			role.allow = append(role.allow, plainRule{nodes: nodes(), logins: dedupe(some(3, logins...)), actions: dedupe(some(4, words...))})
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
			for _, f := range r.forward {
				rules[i].ForwardTo = append(rules[i].ForwardTo, pattern(t, f))
			}
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
							want, ttl := w.reference(u, cert, node.Labels, login, action, nil)
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

// TestForwardMatrix compares decisions about forwards with the reference
// evaluator: roles with and without destinations, by every target.
func TestForwardMatrix(t *testing.T) {
	var allowed, refused, listed int
	r := rand.New(rand.NewPCG(7, 7)) // the same cases every time
	all := targets()
	for seed := range uint64(100) {
		w := &world{roles: map[names.RoleName]plainRole{}, users: map[names.UserName]services.User{}}
		u := services.User{Name: "alice"}
		for i := range 1 + r.IntN(3) {
			role, name := plainRole{ttl: time.Duration(r.IntN(3)) * time.Hour}, matrixRoles[i]
			for range 1 + r.IntN(2) {
				rule := plainRule{nodes: map[string][]string{"env": {"dev"}}, logins: []string{"root"}, actions: []string{"forward:local", "shell"}}
				for range r.IntN(4) {
					rule.forward = append(rule.forward, matrixForwards[r.IntN(len(matrixForwards))])
				}
				role.allow = append(role.allow, rule)
			}
			for range r.IntN(2) {
				rule := plainRule{forward: []string{matrixForwards[r.IntN(len(matrixForwards))]}}
				if r.IntN(2) == 0 {
					rule.nodes, rule.actions = map[string][]string{"env": {"dev"}}, []string{"forward:local"}
				}
				role.deny = append(role.deny, rule)
			}
			w.roles[name], u.Roles = role, append(u.Roles, name)
		}
		w.users["alice"] = u
		e := engine(t, w.policy(t))
		id := &sshca.Identity{Kind: sshca.KindUser, User: "alice", Roles: u.Roles}
		for _, target := range all {
			for _, action := range []authz.Action{authz.ActionForwardLocal, authz.ActionShell} {
				req := authz.Request{Identity: id, Node: n1, Login: "root", Action: action}
				if target != nil {
					req.Target = *target
				}
				want, ttl := w.reference(u, u.Roles, n1.Labels, "root", string(action), target)
				got := e.Decide(req)
				if got.Allow != want || got.Options.SessionTTL != ttl || got.Reason == "" || got.Listed && !want {
					t.Fatalf("seed %d, roles %+v, %s to %+v: got %+v, want %v and %v", seed, w.roles, action, req.Target, got, want, ttl)
				}
				switch {
				case got.Listed:
					listed++
				case want:
					allowed++
				default:
					refused++
				}
			}
		}
	}
	if allowed < 1000 || refused < 1000 || listed < 1000 {
		t.Errorf("the matrix allows %d, lists %d and refuses %d: it proves too little", allowed, listed, refused)
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
						if ok, _ := w.reference(u, u.Roles, node.Labels, login, action, nil); ok {
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
