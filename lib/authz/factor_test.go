package authz_test

import (
	"strings"
	"testing"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// TestFactorForEachConnection: what a role with mfa: session grants is refused
// to an identity without a second factor for its connection, whatever that of its
// sign-in was, for every action and every resource, while another role beside it
// does not take the demand away.
func TestFactorForEachConnection(t *testing.T) {
	p := newPolicy()
	everywhere := selector(t, map[string][]string{"*": {"*"}})
	rules := []services.Rule{
		{Nodes: everywhere, Logins: []string{"root"}, Actions: []string{"*"}},
		{Resources: map[string][]string{"*": {"*"}}},
	}
	id := p.give("alice",
		services.Role{Name: "strict", Allow: rules, Options: services.RoleOptions{MFA: services.MFASession}},
		services.Role{Name: "easy", Allow: append(rules, services.Rule{Nodes: everywhere, Logins: []string{"app"}, Actions: []string{"*"}})},
	)
	id.MFA = "totp" // of the sign-in: it was some hours ago
	e := engine(t, p)
	for _, action := range services.Actions() {
		r := authz.Request{Identity: id, Node: n1, Login: "root", Action: authz.Action(action)}
		if d := e.Decide(r); d.Allow || !d.NeedsFactor || d.Options != (services.RoleOptions{}) {
			t.Errorf("%s without a factor = %+v, want a refusal that asks for one", action, d)
		}
		r.Identity = id.WithFactor("totp")
		if d := e.Decide(r); !d.Allow || d.NeedsFactor {
			t.Errorf("%s with a factor = %+v, want it allowed", action, d)
		}
		r.Identity, r.Login = id, "app"
		if d := e.Decide(r); !d.Allow {
			t.Errorf("%s of the role without the option = %+v, want it allowed", action, d)
		}
	}
	for _, resource := range services.Resources() {
		for _, verb := range services.Verbs() {
			if d := e.Resource(id, resource, verb); d.Allow || !d.NeedsFactor {
				t.Errorf("%s %s without a factor = %+v, want a refusal that asks for one", verb, resource, d)
			}
			if d := e.Resource(id.WithFactor("totp"), resource, verb); !d.Allow {
				t.Errorf("%s %s with a factor = %+v, want it allowed", verb, resource, d)
			}
		}
	}
	if !e.NeedsFactor(id, n1, "root") || e.NeedsFactor(id, n1, "app") || e.NeedsFactor(id.WithFactor("totp"), n1, "root") || e.NeedsFactor(id, n1, "nobody") {
		t.Error("NeedsFactor: want it of root without a factor, and of nothing else")
	}
	if d := e.Reach(id, n1); !d.Allow {
		t.Errorf("Reach = %+v, want the node reached: it is the node that asks", d)
	}
}

// TestSecurityKeyForConnections: what a role with key: touch or pin grants is
// refused to an identity whose connection was begun with less, for every action
// and resource, while another role beside it does not take the demand away.
func TestSecurityKeyForConnections(t *testing.T) {
	p := newPolicy()
	everywhere := selector(t, map[string][]string{"*": {"*"}})
	rules := func(login string) []services.Rule {
		return []services.Rule{{Nodes: everywhere, Logins: []string{login}, Actions: []string{"*"}}, {Resources: map[string][]string{"*": {"*"}}}}
	}
	base := p.give("alice",
		services.Role{Name: "touched", Allow: rules("app"), Options: services.RoleOptions{Key: sshca.SecurityKeyTouch}},
		services.Role{Name: "pinned", Allow: rules("root"), Options: services.RoleOptions{Key: sshca.SecurityKeyPIN}},
		services.Role{Name: "easy", Allow: rules("guest")[:1]},
	)
	e := engine(t, p)
	for _, key := range []sshca.SecurityKey{"", sshca.SecurityKeyTouch, sshca.SecurityKeyPIN} {
		id := *base.WithFactor("totp")
		id.SecurityKey = key
		for login, want := range map[string]bool{"guest": true, "app": key != "", "root": key == sshca.SecurityKeyPIN} {
			for _, action := range services.Actions() {
				d := e.Decide(authz.Request{Identity: &id, Node: n1, Login: names.Login(login), Action: authz.Action(action)})
				if d.Allow != want || d.NeedsFactor || (!want && !strings.Contains(d.Reason, "security key")) {
					t.Errorf("key %q, %s as %s = %+v, want allowed: %t", key, action, login, d, want)
				}
			}
		}
		if d := e.Resource(&id, "nodes", "read"); d.Allow != (key == sshca.SecurityKeyPIN) {
			t.Errorf("key %q: reading nodes = %+v, want it with a PIN alone, which one of the roles asks for", key, d)
		}
	}
}
