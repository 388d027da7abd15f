package authz_test

import (
	"strings"
	"testing"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/fault"
)

const fixtures = `
kind: role_test
users:
  alice: {roles: [dev], logins: [alice]}
nodes:
  web1: {env: dev}
  db1: {env: prod}
tests:
- {user: alice, node: web1, login: app, action: shell, allow: true, rule: "dev.allow[0]"}
- {user: alice, node: db1, login: app, action: shell, allow: false}
- {user: alice, node: web1, login: app, action: exec, command: uptime, allow: true}
- {user: alice, node: web1, login: app, action: "forward:local", target: "10.0.0.1:22", allow: true}
- {user: alice, resource: sessions, verb: read, allow: true, rule: "dev.allow[1]"}
- {user: alice, resource: users, verb: delete, allow: true}
- {user: alice, node: web1, login: app, action: shell, allow: true, rule: "dev.allow[1]"}
`

// TestFixtures: what holds is good; a wrong answer and another rule are not.
func TestFixtures(t *testing.T) {
	list, err := authz.ParseFixtures("tests.yaml", []byte(fixtures))
	if err != nil {
		t.Fatal(err)
	}
	got, err := list[0].Run(fixed(t, plain).Roles)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, true, true, true, true, false, false} {
		if got[i].Good != want || got[i].Line != 9+i {
			t.Errorf("line %d, %s: good is %v of %+v", got[i].Line, got[i], got[i].Good, got[i].Got)
		}
	}
}

// TestBadFixtures: a mistake names its place.
func TestBadFixtures(t *testing.T) {
	test := func(line string) string {
		head, _, _ := strings.Cut(fixtures, "- {user")
		return head + "- " + line + "\n"
	}
	for _, c := range []struct{ name, text, want string }{
		{"no YAML", "kind: [", "tests.yaml: line 1"},
		{"another kind", "kind: role\n", `tests.yaml: kind "role": want role_test`},
		{"no test", "kind: role_test\n", "tests.yaml: no test in it"},
		{"an unknown field", test("{user: alice, nod: web1}"), "line 9: "},
		{"an unknown user", test("{user: bob, allow: true}"), `tests.yaml:9: there is no user "bob"`},
		{"an unknown node", test("{user: alice, node: x, login: app, action: shell, allow: true}"), `tests.yaml:9: there is no node "x"`},
		{"no answer", test("{user: alice, node: web1, login: app, action: shell}"), "tests.yaml:9: allow is missing"},
		{"no question", test("{user: alice, allow: true}"), "tests.yaml:9: want either"},
		{"two questions", test("{user: alice, node: web1, login: app, action: shell, resource: users, verb: read, allow: true}"), "tests.yaml:9: want either"},
		{"an unknown action", test("{user: alice, node: web1, login: app, action: fly, allow: true}"), `action "fly"`},
		{"an unknown verb", test("{user: alice, resource: users, verb: fly, allow: true}"), `no resource "users" to "fly"`},
		{"a command for a shell", test("{user: alice, node: web1, login: app, action: shell, command: x, allow: true}"), "command goes with action exec"},
		{"a target without a port", test(`{user: alice, node: web1, login: app, action: "forward:local", target: db, allow: true}`), `target "db"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := authz.ParseFixtures("tests.yaml", []byte(c.text))
			if !fault.Is(err, fault.BadInput) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	list, err := authz.ParseFixtures("tests.yaml", []byte(strings.ReplaceAll(fixtures, "[dev]", "[other]")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := list[0].Run(fixed(t, plain).Roles); err == nil || !strings.Contains(err.Error(), `no role "other"`) {
		t.Errorf("got %v for a role that is not there", err)
	}
}
