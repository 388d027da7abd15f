package authz_test

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// leadingTo returns a rule about root on nodes of dev with destinations.
func leadingTo(tb testing.TB, patterns ...string) services.Rule {
	tb.Helper()
	r := on(tb, "dev", []string{"root"}, []string{"shell", "forward:local", "forward:remote"})
	for _, p := range patterns {
		r.ForwardTo = append(r.ForwardTo, pattern(tb, p))
	}
	return r
}

func denying(tb testing.TB, patterns ...string) services.Rule {
	tb.Helper()
	return services.Rule{ForwardTo: leadingTo(tb, patterns...).ForwardTo}
}

func target(host string, port uint16, addr string) authz.Target {
	t := authz.Target{Host: host, Port: port}
	if addr != "" {
		t.Addr = netip.MustParseAddr(addr)
	}
	return t
}

// TestForwardTo: where a forward may lead, and whether a rule says so by name.
func TestForwardTo(t *testing.T) {
	const yes, listed, no = "yes", "listed", "no"
	for _, tt := range []struct {
		name        string
		allow, deny []string
		to          authz.Target
		want        string
	}{
		{"no destinations", nil, nil, target("db", 22, "10.0.0.1"), yes},
		{"any destination, written out", []string{"*:*"}, nil, target("db", 22, "10.0.0.1"), yes},
		{"every network is any", []string{"0.0.0.0/0:1-65535"}, nil, target("db", 22, "10.0.0.1"), yes},
		{"one port of all", []string{"*:443"}, nil, target("db", 443, ""), listed},
		{"another port", []string{"*:443"}, nil, target("db", 444, ""), no},
		{"a name", []string{"db.example.com:5432"}, nil, target("DB.example.COM.", 5432, "10.0.0.1"), listed},
		{"a name below", []string{"*.example.com:*"}, nil, target("a.b.example.com", 1, ""), listed},
		{"the name itself is not below", []string{"*.example.com:*"}, nil, target("example.com", 1, ""), no},
		{"a name that only ends so", []string{"example.com:*"}, nil, target("badexample.com", 1, ""), no},
		{"a network", []string{"10.0.0.0/8:5432"}, nil, target("db", 5432, "10.1.2.3"), listed},
		{"a network and an address written as IPv6", []string{"10.0.0.0/8:*"}, nil, target("db", 5432, "::ffff:10.1.2.3"), listed},
		{"a network and a literal address", []string{"10.0.0.0/8:*"}, nil, target("10.1.2.3", 5432, ""), listed},
		{"a network and a name that is not looked up", []string{"10.0.0.0/8:*"}, nil, target("db", 5432, ""), no},
		{"a literal that is dialled elsewhere", []string{"10.0.0.0/8:*"}, nil, target("10.1.2.3", 5432, "192.0.2.1"), no},
		{"a link-local address with its zone", []string{"[fe80::/10]:*"}, nil, target("fe80::1%eth0", 80, "fe80::1%eth0"), listed},
		{"localhost by name", []string{"localhost:*"}, nil, target("localhost", 80, ""), listed},
		{"localhost by address", []string{"localhost:*"}, nil, target("me", 80, "127.8.8.8"), listed},
		{"not localhost", []string{"localhost:*"}, nil, target("x.localhost", 80, "10.0.0.1"), no},
		{"a socket", []string{"unix:/run/app/*.sock"}, nil, authz.Target{Path: "/run/app/a.sock"}, listed},
		{"a socket further down", []string{"unix:/run/app/*.sock"}, nil, authz.Target{Path: "/run/app/b/a.sock"}, no},
		{"a class does not reach over a slash", []string{"unix:/run/a[^b]c.sock"}, nil, authz.Target{Path: "/run/a/c.sock"}, no},
		{"a way back", []string{"unix:/run/app/*"}, nil, authz.Target{Path: "/run/app/../docker.sock"}, no},
		{"a socket is no host", []string{"*:*"}, nil, authz.Target{Path: "/run/app/a.sock"}, no},

		{"denied by address", nil, []string{"169.254.0.0/16:*"}, target("metadata", 80, "169.254.169.254"), no},
		{"denied by literal", nil, []string{"169.254.0.0/16:*"}, target("169.254.169.254", 80, ""), no},
		{"denied by literal, though dialled elsewhere", nil, []string{"169.254.0.0/16:*"}, target("::ffff:169.254.169.254", 80, "10.0.0.1"), no},
		{"denied by number", nil, []string{"169.254.0.0/16:*"}, target("2852039166", 80, ""), no},
		{"denied by octal", nil, []string{"169.254.0.0/16:*"}, target("0251.0xfe.43518", 80, ""), no},
		{"nothing is localhost", nil, []string{"localhost:*"}, target("0", 80, ""), no},
		{"a short form is localhost", nil, []string{"localhost:*"}, target("127.1", 80, ""), no},
		{"no short form is allowed", []string{"127.0.0.0/8:*", "localhost:*"}, nil, target("127.1", 80, ""), no},
		{"not denied unless known", nil, []string{"169.254.0.0/16:*"}, target("metadata", 80, ""), yes},
		{"denied by name, though the address is allowed", []string{"10.0.0.0/8:*"}, []string{"db:*"}, target("db", 80, "10.0.0.1"), no},
		{"the unspecified address is localhost", nil, []string{"localhost:*"}, target("0.0.0.0", 80, ""), no},
		{"the unspecified address is in 127.0.0.0/8", nil, []string{"127.0.0.0/8:*"}, target("::", 80, "::"), no},
		{"localhost is in 127.0.0.0/8", nil, []string{"127.0.0.0/8:*"}, target("localhost", 80, ""), no},
		{"a zone does not hide an address", nil, []string{"[fe80::/10]:*"}, target("x", 80, "fe80::1%eth0"), no},
		{"denied port of all", nil, []string{"*:22"}, target("db", 22, "10.0.0.1"), no},
		{"denied socket", nil, []string{"unix:/run/docker.sock"}, authz.Target{Path: "/run//docker.sock"}, no},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPolicy()
			role := services.Role{Name: "dev", Allow: []services.Rule{leadingTo(t, tt.allow...)}}
			if tt.deny != nil {
				role.Deny = []services.Rule{denying(t, tt.deny...)}
			}
			id := p.give("alice", role)
			e := engine(t, p)
			d := e.Decide(authz.Request{Identity: id, Node: n1, Login: "root", Action: authz.ActionForwardLocal, Target: tt.to})
			if got := d.Allow; got != (tt.want != no) || d.Listed != (tt.want == listed) || d.Reason == "" {
				t.Errorf("Decide = %+v, want %s", d, tt.want)
			}
			for _, action := range []authz.Action{authz.ActionShell, authz.ActionForwardRemote} {
				if d := e.Decide(authz.Request{Identity: id, Node: n1, Login: "root", Action: action, Target: tt.to}); !d.Allow || d.Listed {
					t.Errorf("%s = %+v, want it as if there were no destinations", action, d)
				}
			}
			if d := e.Decide(authz.Request{Identity: id, Node: n1, Login: "root", Action: authz.ActionForwardLocal}); !d.Allow || d.Listed {
				t.Errorf("without a target: %+v, want yes: there is one that is allowed", d)
			}
		})
	}
}

// TestForwardReason: a person reads where they may not go.
func TestForwardReason(t *testing.T) {
	p := newPolicy()
	id := p.give("alice", services.Role{Name: "dev", Allow: []services.Rule{leadingTo(t, "db:5432")}, Deny: []services.Rule{denying(t, "*:25")}})
	e := engine(t, p)
	decide := func(to authz.Target) string {
		return e.Decide(authz.Request{Identity: id, Node: n1, Login: "root", Action: authz.ActionForwardLocal, Target: to}).Reason
	}
	for _, tt := range []struct {
		to   authz.Target
		want string
	}{
		{target("2001:db8::1", 22, ""), `no role of alice allows forward:local to "[2001:db8::1]:22" as login "root" on node "n1"`},
		{authz.Target{Path: "/run/a\x1b.sock"}, `no role of alice allows forward:local to "/run/a\x1b.sock" as login "root" on node "n1"`},
		{target("mail", 25, ""), `denied by role "dev", deny[0]`},
		{target("db", 5432, ""), `allowed by role "dev", allow[0]`},
	} {
		if got := decide(tt.to); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.to, got, tt.want)
		}
	}
}

// TestListedByAnyRule: of several roles that allow a target one names it.
func TestListedByAnyRule(t *testing.T) {
	p := newPolicy()
	id := p.give("alice",
		services.Role{Name: "a", Allow: []services.Rule{leadingTo(t)}},
		services.Role{Name: "b", Allow: []services.Rule{leadingTo(t, "localhost:22")}, Options: services.RoleOptions{MaxSessions: 3}})
	e := engine(t, p)
	for port, want := range map[uint16]bool{22: true, 23: false} {
		d := e.Decide(authz.Request{Identity: id, Node: n1, Login: "root", Action: authz.ActionForwardLocal, Target: target("localhost", port, "::1")})
		if !d.Allow || d.Listed != want || (d.Options.MaxSessions == 3) != want {
			t.Errorf("port %d: %+v, want listed %v, with the options of the roles that grant", port, d, want)
		}
	}
}

// TestForwardsDoNotDenyLogins: a deny rule about destinations takes no login
// away.
func TestForwardsDoNotDenyLogins(t *testing.T) {
	role := services.Role{Name: "dev", Allow: []services.Rule{leadingTo(t)}, Deny: []services.Rule{denying(t, "*:*")}}
	if got := authz.Logins(services.User{Name: "alice"}, []services.Role{role}); !slices.Equal(got, []names.Login{"root"}) {
		t.Errorf("Logins = %q, want root", got)
	}
}

func TestPlainKeyRoles(t *testing.T) {
	plain := services.RoleOptions{PlainKeys: true}
	roles := []services.Role{{Name: "a"}, {Name: "b", Options: plain}, {Name: "c", Options: plain}, {Name: "d", Options: plain}}
	user := services.User{Name: "alice", Roles: []names.RoleName{"d", "a", "b", "gone"}}
	var got []names.RoleName
	for _, r := range authz.PlainKeyRoles(user, roles) {
		got = append(got, r.Name)
	}
	if want := []names.RoleName{"b", "d"}; !reflect.DeepEqual(got, want) {
		t.Errorf("PlainKeyRoles = %q, want %q", got, want)
	}
}
