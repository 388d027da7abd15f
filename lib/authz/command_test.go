package authz_test

import (
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/services"
)

// running returns a rule about n1 and root with commands.
func running(tb testing.TB, actions []string, patterns ...string) services.Rule {
	tb.Helper()
	r := on(tb, "dev", []string{"root"}, actions)
	for _, s := range patterns {
		p, err := services.ParseCommandPattern(s)
		if err != nil {
			tb.Fatal(err)
		}
		r.Commands = append(r.Commands, p)
	}
	return r
}

// TestCommands: a rule with commands grants lines of these alone, and no shell,
// whatever its actions say. One rule must grant the whole of a line.
func TestCommands(t *testing.T) {
	p := newPolicy()
	id := p.give("alice",
		services.Role{
			Name: "reader", Options: services.RoleOptions{IdleTimeout: time.Minute},
			Allow: []services.Rule{running(t, []string{"exec", "sftp:read"}, "journalctl *", "head *")},
		},
		services.Role{Name: "starter", Allow: []services.Rule{running(t, []string{"*"}, "systemctl start web-*")}},
		services.Role{Name: "none", Deny: []services.Rule{on(t, "prod", nil, nil)}})
	e := engine(t, p)
	ask := func(a authz.Action, line string) authz.Decision {
		return e.Decide(authz.Request{Identity: id, Node: n1, Login: "root", Action: a, Command: line})
	}
	for _, c := range []struct {
		action     authz.Action
		line, rule string // "" refuses
		reason     string
	}{
		{"exec", "journalctl -u ssh | head", "reader.allow[0]", `allowed by role "reader", allow[0]`},
		{"exec", "systemctl start web-1", "starter.allow[0]", ""},
		{"exec", "", "reader.allow[0]", ""}, // whether there is any
		{"exec", " ", "", `no role of alice allows the line " " as login "root" on node "n1": there is no command in it`},
		{"exec", "reboot -f", "", `no role of alice allows command "reboot -f" as login "root" on node "n1"`},
		{"exec", "journalctl; reboot\x1b", "", `'\x1b' has no place in it`},
		{"exec", "journalctl; reboot " + strings.Repeat("x", 200), "", `allows command "reboot xxxx`},
		{"exec", "journalctl >x", "", "a redirection has no place in it"},
		{"exec", "journalctl $x", "", "an expansion has no place in it"},
		{"exec", "systemctl start web-1 | head", "", "no one rule of alice allows all commands of the line"},
		{"sftp:read", "", "reader.allow[0]", ""},
		{"x11", "", "starter.allow[0]", ""},
		{"shell", "", "", `only commands: "journalctl *", "head *", "systemctl start web-*"`},
		{"join", "", "", `no role of alice allows join as login "root"`},
	} {
		for range 2 { // the second time what is remembered
			d := ask(c.action, c.line)
			if d.Allow != (c.rule != "") || d.Rule != c.rule || !strings.Contains(d.Reason, c.reason) || len(d.Reason) > 400 || strings.Contains(d.Reason, "\x1b") {
				t.Errorf("%s %q: %+v, want rule %q, reason %q", c.action, c.line, d, c.rule, c.reason)
			}
			if got, want := d.Confined, c.action == "exec" && c.rule != "" && c.line != ""; got != want {
				t.Errorf("%s %q: confined %v, want %v", c.action, c.line, got, want)
			}
		}
	}
	if d := ask("exec", "journalctl"); d.Options.IdleTimeout != time.Minute {
		t.Errorf("options = %+v, want those of the role that grants", d.Options)
	}
	if d := ask("exec", "systemctl start web-1"); d.Options.IdleTimeout != 0 {
		t.Errorf("options = %+v, want none of the role that does not grant", d.Options)
	}
}

// TestCommandsBesideAny: who may run any command is not confined to those that
// another rule lists, and what is denied stays denied.
func TestCommandsBesideAny(t *testing.T) {
	p := newPolicy()
	id := p.give("alice",
		services.Role{Name: "reader", Allow: []services.Rule{running(t, []string{"exec"}, "journalctl *")}},
		services.Role{Name: "all", Allow: []services.Rule{on(t, "dev", []string{"root"}, []string{"exec", "shell"})}})
	e := engine(t, p)
	for _, line := range []string{"journalctl", "reboot; $x", " "} {
		if d := e.Decide(authz.Request{Identity: id, Node: n1, Login: "root", Action: "exec", Command: line}); !d.Allow || d.Confined {
			t.Errorf("%q: %+v, want allowed and not confined", line, d)
		}
	}
	id = p.give("bob",
		services.Role{Name: "reader", Allow: []services.Rule{running(t, []string{"exec"}, "journalctl *")}},
		services.Role{Name: "noexec", Deny: []services.Rule{on(t, "dev", nil, []string{"exec"})}})
	if d := e.Decide(authz.Request{Identity: id, Node: n1, Login: "root", Action: "exec", Command: "journalctl"}); d.Allow || d.Role != "noexec" {
		t.Errorf("%+v, want denied", d)
	}
}

// BenchmarkDecideCommand asks about a line where no rule lists commands, which is
// cached as any other. Budget: 2 µs.
func BenchmarkDecideCommand(b *testing.B) {
	p, id := benchCluster(b)
	e := engine(b, p)
	r := benchRequest(id, 0)
	r.Action, r.Command = authz.ActionExec, "journalctl -u ssh | head -n 20"
	b.ReportAllocs()
	for b.Loop() {
		if d := e.Decide(r); !d.Allow {
			b.Fatalf("Decide = %+v", d)
		}
	}
}

// BenchmarkDecideListed asks about a line that a rule lists, which is never
// cached.
func BenchmarkDecideListed(b *testing.B) {
	p := newPolicy()
	id := p.give("alice", services.Role{Name: "reader", Allow: []services.Rule{running(b, []string{"exec"}, "systemctl status *", "head *", "journalctl *")}})
	e := engine(b, p)
	r := authz.Request{Identity: id, Node: n1, Login: "root", Action: authz.ActionExec, Command: "journalctl -u ssh | head -n 20"}
	b.ReportAllocs()
	for b.Loop() {
		if d := e.Decide(r); !d.Allow {
			b.Fatalf("Decide = %+v", d)
		}
	}
}
