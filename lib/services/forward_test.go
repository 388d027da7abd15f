package services_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
)

// tunnels is a role with everything that is about forwards and accounts.
const tunnels = `kind: role
name: tunnels
allow:
  - nodes: {env: dev}
    logins: [root]
    actions: [shell, "forward:local"]
    forward_to: ["db.example.com:5432", "*.example.com:443", "10.0.0.0/8:5432", "[2001:db8::/32]:*", "*:8000-8999", "localhost:*", "unix:/run/app/*.sock"]
deny:
  - forward_to: ["169.254.0.0/16:*"]
options:
  plain_keys: true
  mfa: session
  create_account:
    groups: [docker, _www]
    sudoers: ["ALL=(ALL) NOPASSWD: /usr/bin/systemctl", "ALL = /usr/bin/id, /bin/ls #1"]
    shell: /bin/bash
    keep: true
`

func TestParseForwardsAndAccounts(t *testing.T) {
	roles, err := services.ParseRoles("f", []byte(tunnels))
	if err != nil {
		t.Fatal(err)
	}
	r := roles[0]
	var got []string
	for _, p := range append(r.Allow[0].ForwardTo, r.Deny[0].ForwardTo...) {
		got = append(got, p.String())
	}
	want := []string{"db.example.com:5432", "*.example.com:443", "10.0.0.0/8:5432", "[2001:db8::/32]:*", "*:8000-8999", "localhost:*", "unix:/run/app/*.sock", "169.254.0.0/16:*"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("forward_to = %q, want %q", got, want)
	}
	account := &services.CreateAccount{
		Groups: []string{"docker", "_www"}, Shell: "/bin/bash", Keep: true,
		Sudoers: []string{"ALL=(ALL) NOPASSWD: /usr/bin/systemctl", "ALL = /usr/bin/id, /bin/ls #1"},
	}
	if !r.Options.PlainKeys || r.Options.MFA != services.MFASession || !reflect.DeepEqual(r.Options.CreateAccount, account) {
		t.Errorf("options = %+v, account %+v", r.Options, r.Options.CreateAccount)
	}
	wantRoundTrip(t, r)
	bare := services.Role{Name: "bare", Deny: r.Deny, Options: services.RoleOptions{CreateAccount: &services.CreateAccount{}}}
	wantRoundTrip(t, bare) // an account of its own with nothing to it is not none
	for _, want := range []services.Role{r, bare} {
		data, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var back services.Role
		if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(back, want) {
			t.Errorf("the policy stream makes %+v of %+v, %v", back, want, err)
		}
	}
}

// A pattern that this version cannot read refuses the whole update: a rule must
// not grant more than it says.
func TestForwardPatternsOfStreamsAreChecked(t *testing.T) {
	var r services.Role
	if err := json.Unmarshal([]byte(`{"name":"x","allow":[{"forward_to":["db"]}]}`), &r); err == nil {
		t.Errorf("Unmarshal = %+v, want an error", r)
	}
}

func TestParseForwardPatternRefuses(t *testing.T) {
	for _, s := range []string{
		"", "db", ":22", "db:", "db:0", "db:65536", "db:022", "db:+22", "db:22-", "db:-22", "db:22-22", "db:23-22", "db:1-99999", "db:ssh", "db:**",
		"*", "*db:22", "d*b:22", "*.:22", "*.*.com:22", "a..b:22", "-a:22", "a b:22", "db.:22", ".db:22", "~db~:22", "{{user.traits.x}}:22", "dö:22",
		"10.0.0:22", "999.1.1.1:22", "010.0.0.1:22", "10.1.2.3/8:22", "10.0.0.0/33:22", "10.0.0.0/08:22", "db/8:22", "0x7f.1/8:22", "127.1:22", "2130706433:22",
		"2001:db8::1:22", "[2001:db8::1:22", "2001:db8::1]:22", "[10.0.0.1]:22", "[10.0.0.0/8]:22", "[::ffff:10.0.0.1]:22", "[::ffff:10.0.0.0/104]:22", "[fe80::1%eth0]:22", "[db]:22", "[]:22",
		"unix:", "unix:/", "unix:run/a", "unix:/run/../a", "unix:/run//a", "unix:/run/a/", "unix:/run/[a", "unix:/run/[a/b]", "unix:/run/a b", "unix:/run/\\*", "unix:/run/\x1b", "unix:@abstract",
		strings.Repeat("a", 281) + ":22", strings.Repeat("a.", 130) + "a:22",
	} {
		if p, err := services.ParseForwardPattern(s); !fault.Is(err, fault.BadInput) {
			t.Errorf("ParseForwardPattern(%q) = %v, %v, want bad input", s, p, err)
		} else if p.String() != "" {
			t.Errorf("ParseForwardPattern(%q) returns %q with an error", s, p)
		}
	}
}

func TestLiteralAddr(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1": "10.0.0.1", "::ffff:10.0.0.1": "10.0.0.1", "fe80::1%eth0": "fe80::1", "127.1": "127.0.0.1", "127.0.1": "127.0.0.1", "0x7F000001": "127.0.0.1",
		"0177.0.0.01": "127.0.0.1", "0": "0.0.0.0", "4294967295": "255.255.255.255", "1.2.65535": "1.2.255.255", "169.16689662": "169.254.169.254", "0X7f.1": "127.0.0.1",
	} {
		if got, ok := services.LiteralAddr(in); !ok || got.String() != want {
			t.Errorf("LiteralAddr(%q) = %v, %v, want %s", in, got, ok, want)
		}
	}
	for _, in := range []string{"", ".", "db", "1.2.3.4.5", "4294967296", "256.1", "1.2.65536", "1..2", "1.2.", "0x", "08", "+1", "-1", "1_0", "0b1", "0o7", "1e3", "127.0.0.1x", "١٢٧.1"} {
		if got, ok := services.LiteralAddr(in); ok {
			t.Errorf("LiteralAddr(%q) = %v, want none", in, got)
		}
	}
}

func TestForwardMistakesHaveLines(t *testing.T) {
	for in, want := range map[string]string{
		"allow: [{nodes: {a: b}, logins: [x], actions: [\"forward:local\"],\nforward_to: [db]}]":           `f:4: forward_to: "db": want HOST:PORT or unix:PATH`,
		"allow: [{nodes: {a: b}, logins: [x], actions: [\"*\"],\nforward_to: [\"10.0.0.1/8:1\"]}]":         `f:4: forward_to: "10.0.0.1/8:1": "10.0.0.1/8" has host bits; the network is 10.0.0.0/8`,
		"allow:\n- {nodes: {a: b}, logins: [x], actions: [shell], forward_to: [\"db:1\"]}":                 `f:4: allow: forward_to needs the action forward:local`,
		"allow:\n- {forward_to: [\"db:1\"]}":                                                               `f:4: allow: a rule about nodes needs nodes, logins and actions`,
		"deny:\n- {actions: [shell, \"forward:local\"], forward_to: [\"db:1\"]}":                           `f:4: deny: forward_to is about forward:local`,
		"deny:\n- {actions: [\"*\"], forward_to: [\"db:1\"]}":                                              `f:4: deny: forward_to is about forward:local`,
		"deny:\n- {resources: {audit: [read]}, forward_to: [\"db:1\"]}":                                    `f:4: deny: a rule is about nodes or about resources`,
		"deny:\n- {forward_to: []}":                                                                        `f:4: forward_to: want 1 to 64 entries`,
		"deny:\n- {forward_to: [\"db:1\", \"db:1\"]}":                                                      `f:4: forward_to: "db:1" stands twice`,
		"deny: [{actions: [x11]}]\noptions: {plain_keys: 1}":                                               `f:4: plain_keys: want true or false, got "1" (int)`,
		"deny: [{actions: [x11]}]\noptions: {create_account: true}":                                        `f:4: create_account: want a mapping of fields, got "true" (bool)`,
		"deny: [{actions: [x11]}]\noptions: {create_account: {uid: 0}}":                                    `f:4: unknown field "uid" in create_account`,
		"deny: [{actions: [x11]}]\noptions: {create_account: {keep: maybe}}":                               `f:4: keep: want true or false, got "maybe"`,
		"deny: [{actions: [x11]}]\noptions: {create_account: {shell: bash}}":                               `f:4: shell: "bash" is no shell`,
		"deny: [{actions: [x11]}]\noptions: {create_account: {shell: /bin/../bin/sh}}":                     `f:4: shell: "/bin/../bin/sh" is no shell`,
		"deny: [{actions: [x11]}]\noptions: {create_account: {shell: \"/bin/sh:x\"}}":                      `f:4: shell: "/bin/sh:x" is no shell`,
		"deny: [{actions: [x11]}]\noptions: {create_account: {groups: [\"a,b\"]}}":                         `f:4: groups: "a,b" is no group`,
		"deny: [{actions: [x11]}]\noptions: {create_account: {groups: [Wheel]}}":                           `f:4: groups: "Wheel" is no group`,
		"deny: [{actions: [x11]}]\noptions: {create_account: {groups: [" + strings.Repeat("a", 33) + "]}}": `f:4: groups: "aaa`,
	} {
		_, err := services.ParseRoles("f", []byte("kind: role\nname: x\n"+in))
		if got := fault.Public(err); !fault.Is(err, fault.BadInput) || !strings.HasPrefix(got, want) || strings.Contains(got, "\n") {
			t.Errorf("%s:\ngot  %s\nwant %s", in, got, want)
		}
	}
}

// A line of sudoers stays one line about one user.
func TestSudoersGrammar(t *testing.T) {
	parse := func(line string) error {
		quoted, _ := json.Marshal(line) // YAML, too
		_, err := services.ParseRoles("f", []byte("kind: role\nname: x\ndeny: [{actions: [x11]}]\noptions: {create_account: {sudoers: ["+string(quoted)+"]}}"))
		return err
	}
	for _, good := range []string{"ALL=(ALL) NOPASSWD: ALL", "ALL=/bin/ls", "web-1 = (www) /usr/bin/systemctl restart nginx", "ALL=(ALL:ALL) !/bin/su"} {
		if err := parse(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", " ", "ALL", "=ALL", ", root ALL=ALL", ",root ALL=ALL", "%wheel ALL=ALL", "#0 ALL=ALL", "#include /etc/x", "@includedir /tmp", "ALL=ALL #include /tmp/x",
		"ALL=ALL\nroot ALL=ALL", "ALL=ALL\r", "ALL=ALL \\", "ALL=ALL\\\nroot", "ALL=ALL ", "ALL=\x00", "ALL=\x1b[2J", "ALL=ä", "\tALL=ALL", "ALL=\tALL", strings.Repeat("A", 512) + "=ALL",
	} {
		if err := parse(bad); !fault.Is(err, fault.BadInput) {
			t.Errorf("%q: %v, want bad input", bad, err)
		}
	}
}

func TestStrictestAccount(t *testing.T) {
	options := func(a *services.CreateAccount) services.RoleOptions { return services.RoleOptions{CreateAccount: a} }
	a := &services.CreateAccount{Groups: []string{"a", "b", "c"}, Sudoers: []string{"ALL=ALL", "ALL=/bin/ls"}, Shell: "/bin/bash", Keep: true}
	b := &services.CreateAccount{Groups: []string{"c", "a"}, Sudoers: []string{"ALL=/bin/ls"}, Shell: "/bin/sh"}
	for _, tt := range []struct {
		name       string
		a, b, want *services.CreateAccount
	}{
		{"nobody says anything", nil, nil, nil},
		{"one says nothing", nil, a, a},
		{"the other says nothing", a, nil, a},
		{"both", a, b, &services.CreateAccount{Groups: []string{"a", "c"}, Sudoers: []string{"ALL=/bin/ls"}}},
		{"both the same", a, a, a},
		{"one gives nothing", a, &services.CreateAccount{Keep: true}, &services.CreateAccount{Keep: true}},
	} {
		if got := options(tt.a).Strictest(options(tt.b)).CreateAccount; !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// FuzzForwardPattern: what is read is written again as it was, and whatever an
// allow rule grants by it a deny rule forbids by it.
func FuzzForwardPattern(f *testing.F) {
	for _, s := range []string{"*:*", "*.a.b:1-2", "10.0.0.0/8:*", "[::/0]:22", "localhost:*", "unix:/run/[a-b]?*.sock", "a_b.c:65535"} {
		f.Add(s, "a.b", "::1", uint16(22))
	}
	f.Fuzz(func(t *testing.T, s, host, addr string, port uint16) {
		p, err := services.ParseForwardPattern(s)
		if err != nil {
			if !fault.Is(err, fault.BadInput) {
				t.Errorf("ParseForwardPattern(%q) = %v, want bad input", s, err)
			}
			return
		}
		if text, err := p.MarshalText(); err != nil || string(text) != s {
			t.Errorf("%q is written as %q, %v", s, text, err)
		}
		a, _ := netip.ParseAddr(addr)
		for _, d := range []services.Destination{services.NewDestination(host, port, a), services.NewSocketDestination(host)} {
			if p.Grants(d) && !p.Forbids(d) {
				t.Errorf("%q grants %+v and does not forbid it", s, d)
			}
		}
		var zero services.ForwardPattern
		if d := services.NewDestination(host, port, a); zero.Grants(d) || zero.Forbids(d) || zero.Everything() {
			t.Errorf("the zero pattern names %+v", d)
		}
	})
}

// Every role in the manual is one, and every word rules may use is in it.
func TestManual(t *testing.T) {
	data, err := os.ReadFile("../../docs/roles.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	parts := strings.Split(page, "```")
	examples := 0
	for _, part := range parts {
		yaml, ok := strings.CutPrefix(part, "yaml\n")
		if !ok {
			continue
		}
		examples++
		roles, err := services.ParseRoles("roles.md", []byte(yaml))
		if err != nil {
			t.Errorf("%v:\n%s", err, yaml)
			continue
		}
		wantRoundTrip(t, roles[0])
	}
	if examples < 5 {
		t.Errorf("%d examples, want all of them", examples)
	}
	for _, word := range slices.Concat(services.Actions(), services.Resources(), services.Verbs()) {
		if !strings.Contains(page, "`"+word+"`") {
			t.Errorf("the manual says nothing of %q", word)
		}
	}
}
