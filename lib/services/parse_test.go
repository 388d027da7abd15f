package services_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

const developer = `# what developers may do
kind: role
name: developer
allow:
  - nodes: {env: [staging, dev], team: "{{user.traits.team}}"}
    logins: [ubuntu, "{{user.logins}}"]
    actions: [shell, exec, "sftp:read"]
  - resources: {audit: [read], requests: [create]}
deny:
  - nodes: {env: "~prod.*~"}
  - logins: [root]
options: {session_ttl: 8h, idle_timeout: 1h30m, max_sessions: 10, pin_source: true}
`

func selector(t testing.TB, m map[string][]string) services.LabelSelector {
	t.Helper()
	s, err := services.ParseSelector(m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParseRoles(t *testing.T) {
	got, err := services.ParseRoles("role.yaml", []byte("---\n"+developer+"---\n---\nkind: role\nname: all\nallow: [{nodes: \"*\", logins: [root], actions: [\"*\"]}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []services.Role{
		{
			Name: "developer",
			Allow: []services.Rule{
				{
					Nodes:   selector(t, map[string][]string{"env": {"staging", "dev"}, "team": {"{{user.traits.team}}"}}),
					Logins:  []string{"ubuntu", "{{user.logins}}"},
					Actions: []string{"shell", "exec", "sftp:read"},
				},
				{Resources: map[string][]string{"audit": {"read"}, "requests": {"create"}}},
			},
			Deny: []services.Rule{
				{Nodes: selector(t, map[string][]string{"env": {"~prod.*~"}})},
				{Logins: []string{"root"}},
			},
			Options: services.RoleOptions{SessionTTL: 8 * time.Hour, IdleTimeout: 90 * time.Minute, MaxSessions: 10, PinSource: true},
		},
		{Name: "all", Allow: []services.Rule{
			{Nodes: selector(t, map[string][]string{"*": {"*"}}), Logins: []string{"root"}, Actions: []string{"*"}},
		}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("ParseRoles = %+v, want %+v", got, want)
	}
}

// Every mistake is told, with its line, in one error.
func TestParseRolesTellsEveryMistake(t *testing.T) {
	const in = `kind: role
name: Developer
allow:
  - nodes: {env: [staging, "~(~"], "b@d": x}
    logins: [ubuntu, "*", "{{user.name}}"]
    actions: [shell, fly]
    commands: ["ls *x; y"]
  - {}
  - nodes: {env: dev}
    logins: [root]
  - resources: {audit: [red], secrets: [read]}
  - nodes: {env: dev}
    logins: [root]
    actions: [shell]
    resources: {audit: [read]}
deny:
  nodes: {env: prod}
options: {session_ttl: 8, max_sessions: 0, pin_source: "yes", mfa: always, record: sometimes, colour: red}
allow: []
---
kind: user
name: [x]
---
just text
---
kind: role
name: ops
allow: [{nodes: {env: 7}, logins: root, actions: [shell, shell]}]
---
kind: role
name: ops
deny: [{actions: [x11]}]
`
	want := []string{
		`2: name: role name "Developer": want 1 to 63`,
		`4: nodes: label "env": error parsing regexp: missing closing )`,
		`4: nodes: label key "b@d": want`,
		`5: logins: "*" is no login`,
		`5: logins: "{{user.name}}" is no login`,
		`6: actions: "fly" is not one of shell, exec`,
		`7: commands: "ls *x; y": it is more than one command`,
		`8: allow: an empty rule`,
		`9: allow: a rule about nodes needs nodes, logins and actions`,
		`11: resources: "red" is not one of read, create`,
		`11: resources: "secrets" is not one of users, roles`,
		`12: allow: a rule is about nodes or about resources`,
		`17: deny: want a list of rules, got a mapping`,
		`18: session_ttl: want a duration of at least a second, such as 30m or 8h, got "8" (int)`,
		`18: max_sessions: want a number from 1 on, got "0" (int)`,
		`18: pin_source: want true or false, got "yes"`,
		`18: mfa: want session, got "always"`,
		`18: record: want strict, best_effort or off, got "sometimes"`,
		`18: unknown field "colour" in options`,
		`19: role: "allow" stands twice, first in line 3`,
		`21: kind: want "role", got "user"`,
		`21: a role needs rules under allow, deny, requests or review`,
		`22: name: want text, got a list`,
		`24: role: want a mapping of fields, got "just text"`,
		`28: label "env": want text, got "7" (int); quote it`,
		`28: logins: want a list, such as [a, b], got "root"`,
		`28: actions: "shell" stands twice`,
		`31: name: role "ops" stands twice, first in line 27`,
	}
	_, err := services.ParseRoles("role.yaml", []byte(in))
	if !fault.Is(err, fault.BadInput) {
		t.Fatalf("ParseRoles = %v, want bad input", err)
	}
	got := strings.Split(fault.Public(err), "\n")
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(want):
			t.Errorf("mistake %d is %q, want no more", i, got[i])
		case i >= len(got):
			t.Errorf("mistake %d is missing, want %q", i, want[i])
		case !strings.HasPrefix(got[i], "role.yaml:"+want[i]):
			t.Errorf("mistake %d is %q, want it to begin with %q", i, got[i], want[i])
		}
	}
}

func TestParseRolesRefuses(t *testing.T) {
	many := strings.Builder{}
	for i := range 129 {
		fmt.Fprintf(&many, "---\nkind: role\nname: r%d\ndeny: [{actions: [exec]}]\n", i)
	}
	cases := []struct{ name, in, want string }{
		{"nothing", "", "f:1: no role in it"},
		{"comment only", "# hello\n", "f:1: no role in it"},
		{"null", "---\n~\n---\n", "f:1: no role in it"},
		{"tab", "kind: role\n\tname: x\n", "f:2: not YAML: found a tab character"},
		{"bare star", "kind: role\nname: x\nallow: [{nodes: *}]\n", "f:3: not YAML"},
		{"alias", "kind: role\nname: x\ndeny: [{actions: &a [exec]}, {actions: *a}]\n", "f:3: actions: want a list, such as [a, b], got an alias (they are not taken)"},
		{"merge", "kind: role\nname: x\ndeny: [{actions: [exec]}]\n<<: {options: {}}\n", `f:4: role: want a name, got "<<" (merge); quote it`},
		{"number as a field", "kind: role\nname: x\ndeny: [{actions: [exec]}]\n1: 2\n", `f:4: role: want a name, got "1" (int); quote it`},
		{"tag", "kind: role\nname: !x y\ndeny: [{actions: [exec]}]\n", `f:2: name: want text, got "y" (x); quote it`},
		{"no kind", "name: x\ndeny: [{actions: [exec]}]\n", `f:1: a role begins with "kind: role"`},
		{"empty kind", "kind: \"\"\nname: x\ndeny: [{actions: [exec]}]\n", `f:1: kind: want "role", got ""`},
		{"no name", "kind: role\ndeny: [{actions: [exec]}]\n", "f:1: a role needs a name"},
		{"no rules", "kind: role\nname: x\n", "f:1: a role needs rules under allow, deny, requests or review"},
		{"null rules", "kind: role\nname: x\nallow:\n", "f:3: allow: want a list of rules, got nothing"},
		{"empty selector", "kind: role\nname: x\ndeny: [{nodes: {}}]\n", `f:3: nodes: want labels, or "*" for every node`},
		{"star with a value", "kind: role\nname: x\ndeny: [{nodes: {\"*\": prod}}]\n", `f:3: nodes: label key "*": the only value`},
		{"long pattern", "kind: role\nname: x\ndeny: [{nodes: {env: \"~" + strings.Repeat("a", 255) + "~\"}}]\n", "at most 256 bytes"},
		{"list of lists", "kind: role\nname: x\ndeny: [{actions: [[exec]]}]\n", "f:3: actions: want text, got a list"},
		{"too many roles", many.String(), "too many roles: want at most 128 at once"},
		{"too large", strings.Repeat("#", 1<<20) + "\n", "want at most 1048576"},
		{"too many mistakes", strings.Repeat("x\n---\n", 100), "\nf: and 50 more"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			roles, err := services.ParseRoles("f", []byte(c.in))
			if roles != nil || !fault.Is(err, fault.BadInput) || !strings.Contains(fault.Public(err), c.want) {
				t.Errorf("ParseRoles = %v, %.300v, want bad input with %q", roles, err, c.want)
			}
		})
	}
}

// F31: what a peer calls its file cannot forge lines or move a cursor.
func TestParseRolesPrintsSourceSafely(t *testing.T) {
	_, err := services.ParseRoles("a\nb\x1b[2J\u202e\xff"+strings.Repeat("x", 300), []byte("- \"\x1b[2J\""))
	if err == nil || !utf8.ValidString(err.Error()) || strings.ContainsAny(err.Error(), "\n\x1b\u202e") || len(err.Error()) > 400 {
		t.Errorf("ParseRoles = %q, want one short printable line", err)
	}
}

func TestBuiltinRolesRoundTrip(t *testing.T) {
	for _, want := range services.BuiltinRoles() {
		want.Builtin = false // YAML does not say so
		wantRoundTrip(t, want)
	}
}

func wantRoundTrip(t *testing.T, want services.Role) {
	t.Helper()
	got, err := services.ParseRoles("own", want.YAML())
	if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], want) {
		t.Errorf("ParseRoles of own YAML = %+v, %v, want %+v:\n%s", got, err, want, want.YAML())
	}
}

func FuzzParseRoles(f *testing.F) {
	f.Add([]byte(developer))
	f.Add([]byte("kind: role\nname: x\nallow: [{nodes: \"*\", logins: [a], actions: [\"*\"]}]\n---\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("kind: role\nname: x\ndeny: [{nodes: {a: [~, \"~.~\", \"*\"]}}]\noptions: {session_ttl: 1h0m1.5s}\n"))
	for _, r := range services.BuiltinRoles() {
		f.Add(r.YAML())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		roles, err := services.ParseRoles("fuzz", data)
		if err != nil {
			if !fault.Is(err, fault.BadInput) || !strings.HasPrefix(fault.Public(err), "fuzz:") {
				t.Errorf("ParseRoles = %v, want bad input with a place", err)
			}
			return
		}
		for _, r := range roles {
			wantRoundTrip(t, r)
		}
	})
}

func TestSelectorMatch(t *testing.T) {
	labels := names.Labels{"env": "prod-eu", "team": "db"}
	traits := map[string][]string{"team": {"web", "db"}, "star": {"*"}, "re": {"~.*~"}}
	cases := []struct {
		name string
		sel  map[string][]string
		want bool
	}{
		{"exact", map[string][]string{"team": {"db"}}, true},
		{"exact, other value", map[string][]string{"team": {"d"}}, false},
		{"one of a list", map[string][]string{"team": {"web", "db"}}, true},
		{"all keys", map[string][]string{"team": {"db"}, "env": {"prod-eu"}}, true},
		{"all keys but one", map[string][]string{"team": {"db"}, "env": {"dev"}}, false},
		{"absent key", map[string][]string{"zone": {"*"}}, false},
		{"any value", map[string][]string{"env": {"*"}}, true},
		{"expression", map[string][]string{"env": {"~prod-(eu|us)~"}}, true},
		{"expression is anchored", map[string][]string{"env": {"~prod~"}}, false},
		{"expression's alternatives are anchored", map[string][]string{"env": {"~x|prod~"}}, false},
		{"trait", map[string][]string{"team": {"{{user.traits.team}}"}}, true},
		{"trait that is not there", map[string][]string{"team": {"{{user.traits.none}}"}}, false},
		{"a trait's value is no wildcard", map[string][]string{"team": {"{{user.traits.star}}"}}, false},
		{"a trait's value is no expression", map[string][]string{"team": {"{{user.traits.re}}"}}, false},
		{"every node", map[string][]string{"*": {"*"}}, true},
		{"every node that", map[string][]string{"*": {"*"}, "env": {"dev"}}, false},
		{"zero", nil, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := selector(t, c.sel).Match(labels, traits); got != c.want {
				t.Errorf("Match = %v, want %v", got, c.want)
			}
		})
	}
	if !selector(t, map[string][]string{"*": {"*"}}).Match(nil, nil) {
		t.Error("every node does not match a node without labels")
	}
}

func TestExpandLogins(t *testing.T) {
	u := services.User{Logins: []names.Login{"alice", "deploy"}, Traits: map[string][]string{"acc": {"db", "alice", "no,pe", "*", ""}}}
	r := services.Rule{Logins: []string{"root", "{{user.logins}}", "{{user.traits.acc}}", "{{user.traits.none}}", "root"}}
	if got, want := fmt.Sprint(r.ExpandLogins(u)), "[root alice deploy db]"; got != want {
		t.Errorf("ExpandLogins = %v, want %v", got, want)
	}
}

func TestStrictest(t *testing.T) {
	a := services.RoleOptions{SessionTTL: time.Hour, MaxSessions: 3}
	b := services.RoleOptions{SessionTTL: 2 * time.Hour, IdleTimeout: time.Minute, MaxSessions: 2, PinSource: true}
	want := services.RoleOptions{SessionTTL: time.Hour, IdleTimeout: time.Minute, MaxSessions: 2, PinSource: true}
	if got := a.Strictest(b); got != want {
		t.Errorf("Strictest = %+v, want %+v", got, want)
	}
	if got := b.Strictest(a); got != want {
		t.Errorf("Strictest the other way = %+v, want %+v", got, want)
	}
	if got := a.Strictest(services.RoleOptions{}); got != a {
		t.Errorf("Strictest with no limits = %+v, want %+v", got, a)
	}
}

func BenchmarkSelectorMatch(b *testing.B) {
	s := selector(b, map[string][]string{"env": {"staging", "~dev-.*~"}, "team": {"{{user.traits.team}}"}})
	labels, traits := names.Labels{"env": "dev-1", "team": "db"}, map[string][]string{"team": {"web", "db"}}
	b.ReportAllocs()
	for b.Loop() {
		if !s.Match(labels, traits) {
			b.Fatal("no match")
		}
	}
}
