package authz_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// fixed returns a policy of the YAML roles and of users, each "NAME ROLE...".
func fixed(t *testing.T, yaml string, users ...string) authz.Fixed {
	t.Helper()
	roles, err := services.ParseRoles("roles", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	p := authz.Fixed{Roles: map[names.RoleName]services.Role{}, Users: map[names.UserName]services.User{}}
	for _, r := range roles {
		p.Roles[r.Name] = r
	}
	for _, line := range users {
		words := strings.Fields(line)
		u := services.User{Name: names.UserName(words[0]), Logins: []names.Login{names.Login(words[0])}}
		for _, r := range words[1:] {
			u.Roles = append(u.Roles, names.RoleName(r))
		}
		p.Users[u.Name] = u
	}
	return p
}

const plain = `
kind: role
name: dev
allow:
- nodes: {env: dev}
  logins: ["{{user.logins}}", app]
  actions: [shell, exec, "forward:local"]
- resources: {sessions: [read]}
`

// TestCompare: who gains or loses what is told by user, nodes and login, in few
// lines; what stays is not.
func TestCompare(t *testing.T) {
	nodes := []authz.NodeView{
		{ID: "1", Name: "b", Labels: names.Labels{"env": "dev"}},
		{ID: "2", Name: "a", Labels: names.Labels{"env": "dev"}},
		{ID: "3", Name: "p", Labels: names.Labels{"env": "prod"}},
	}
	for _, c := range []struct {
		name, after string
		want        []string
	}{
		{"nothing", plain, nil},
		{"another environment", strings.ReplaceAll(plain, "env: dev", "env: prod"), []string{
			`alice loses [shell exec forward:local] as alice on [a b]`,
			`alice loses [shell exec forward:local] as app on [a b]`,
			`alice gains [shell exec forward:local] as alice on [p]`,
			`alice gains [shell exec forward:local] as app on [p]`,
		}},
		{"a prohibition", plain + "deny:\n- logins: [app]\n  actions: [exec]\n", []string{`alice loses [exec] as app on [a b]`}},
		{"a verb", strings.ReplaceAll(plain, "sessions: [read]", "sessions: [read, kill], users: [read, update]"), []string{
			`alice gains [read update] of users`, `alice gains [kill] of sessions`,
		}},
		{"commands", strings.ReplaceAll(strings.ReplaceAll(plain, ", \"forward:local\"", ""), "actions: [shell, exec]", "actions: [exec]\n  commands: [uptime, \"ls *\"]"), []string{
			`alice loses [shell] as alice on [a b]`,
			`alice changes [exec] as alice on [a b]: commands: ls *, uptime, was anything`,
			`alice loses [forward:local] as alice on [a b]`,
			`alice loses [shell] as app on [a b]`,
			`alice changes [exec] as app on [a b]: commands: ls *, uptime, was anything`,
			`alice loses [forward:local] as app on [a b]`,
		}},
		{"destinations", strings.ReplaceAll(plain, `, app]`, "]\n  forward_to: [\"db:5432\"]"), []string{
			`alice changes [forward:local] as alice on [a b]: forward_to: db:5432, was anything`,
			`alice loses [shell exec forward:local] as app on [a b]`,
		}},
		{"a prohibited destination", plain + "deny:\n- forward_to: [\"db:5432\"]\n", []string{
			`alice changes [forward:local] as alice on [a b]: denied forward_to: db:5432, was none`,
			`alice changes [forward:local] as app on [a b]: denied forward_to: db:5432, was none`,
		}},
		{"a limit", plain + "options: {idle_timeout: 5m, mfa: session}\n", []string{
			`alice changes [shell exec forward:local] as alice on [a b]: idle_timeout: 5m0s, was 0s; mfa: session, was none`,
			`alice changes [shell exec forward:local] as app on [a b]: idle_timeout: 5m0s, was 0s; mfa: session, was none`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			changes, err := authz.Compare(fixed(t, plain, "alice dev", "bob"), fixed(t, c.after, "alice dev", "bob"), []names.UserName{"bob", "alice"}, nodes)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, ch := range changes {
				line := fmt.Sprintf("%s %s %v of %s", ch.User, ch.Effect, ch.Verbs, ch.Resource)
				if ch.Resource == "" {
					line = fmt.Sprintf("%s %s %v as %s on %v", ch.User, ch.Effect, ch.Actions, ch.Login, ch.Nodes)
				}
				if ch.Limits != "" {
					line += ": " + ch.Limits
				}
				got = append(got, line)
			}
			if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// TestCompareIsBounded: a question for every user, node, login and action of a
// large cluster is refused before it is asked.
func TestCompareIsBounded(t *testing.T) {
	var users []string
	var all []names.UserName
	for i := range 300 {
		users = append(users, fmt.Sprintf("u%d dev", i))
		all = append(all, names.UserName(fmt.Sprintf("u%d", i)))
	}
	var nodes []authz.NodeView
	for i := range 1000 {
		nodes = append(nodes, authz.NodeView{ID: names.NodeID(fmt.Sprint(i)), Name: names.NodeName(fmt.Sprintf("n%d", i)), Labels: names.Labels{"number": fmt.Sprint(i)}})
	}
	_, err := authz.Compare(fixed(t, plain, users...), fixed(t, plain, users...), all, nodes)
	if !fault.Is(err, fault.BadInput) {
		t.Errorf("got %v, want bad input", err)
	}
}
