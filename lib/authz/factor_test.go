package authz_test

import (
	"testing"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/services"
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
