package auth

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

func TestRoles(t *testing.T) {
	w := newWorld(t, plan{})
	w.rec.take()
	two := pinnedRole + "---\n" + strings.Replace(pinnedRole, "pinned", "other", 1)
	res := must(t, w.admin().ApplyRoles, &accessdv1.ApplyRolesRequest{Yaml: []byte(two), Source: "two.yaml"})
	if !slices.Equal(res.GetCreated(), []string{"pinned", "other"}) || len(res.GetUpdated()) != 0 {
		t.Errorf("apply = %v", res)
	}
	changed := strings.Replace(pinnedRole, "env: prod", "env: dev", 1)
	res = must(t, w.admin().ApplyRoles, &accessdv1.ApplyRolesRequest{Yaml: []byte(changed)})
	if !slices.Equal(res.GetUpdated(), []string{"pinned"}) || len(res.GetCreated()) != 0 {
		t.Errorf("second apply = %v", res)
	}
	evs := w.rec.take()
	if len(evs) != 3 || evs[0].Name != events.RoleCreate || evs[2].Name != events.RoleUpdate {
		t.Fatalf("events = %+v", evs)
	}
	if before, after := evs[2].Fields["before"].(string), evs[2].Fields["after"].(string); !strings.Contains(before, "prod") || !strings.Contains(after, "dev") {
		t.Errorf("role.update from %q to %q", before, after)
	}
	got := must(t, w.admin().GetRole, &accessdv1.GetRoleRequest{Name: "pinned"}).GetRole()
	if !strings.Contains(got.GetYaml(), "dev") || got.GetBuiltin() {
		t.Errorf("role = %v", got)
	}
	must(t, w.admin().RemoveRole, &accessdv1.RemoveRoleRequest{Name: "pinned"})
	_, err := call(t, w.admin().GetRole, &accessdv1.GetRoleRequest{Name: "pinned"})
	wantFault(t, err, fault.NotFound, `no role named "pinned"`)
	if n := len(must(t, w.admin().ListRoles, &accessdv1.ListRolesRequest{}).GetRoles()); n != 4 {
		t.Errorf("%d roles, want the three built-in ones and one", n)
	}
}

// TestRolesAllOrNone: one bad role of several, and nothing is changed.
func TestRolesAllOrNone(t *testing.T) {
	w := newWorld(t, plan{})
	before := w.everything()
	w.rec.take()
	for _, c := range []struct{ name, yaml, public string }{
		{"built in", pinnedRole + "---\n" + strings.Replace(pinnedRole, "name: pinned", "name: admin", 1), `role "admin" is built in`},
		{"unknown field", pinnedRole + "---\nkind: role\nname: x\nalow: []\n", "bad.yaml:"},
		{"a command for any", strings.Replace(pinnedRole, "    actions", "    commands: [\"*\"]\n    actions", 1), "bad.yaml:"},
		{"twice", pinnedRole + "---\n" + pinnedRole, "pinned"},
		{"not YAML", "{{{", "bad.yaml"},
		{"a name with a quote", strings.Replace(pinnedRole, "name: pinned", `name: "a\"b"`, 1), "bad.yaml"},
	} {
		_, err := call(t, w.admin().ApplyRoles, &accessdv1.ApplyRolesRequest{Yaml: []byte(c.yaml), Source: "bad.yaml"})
		if err == nil || !strings.Contains(fault.Public(err), c.public) {
			t.Errorf("%s: %v, want %q", c.name, err, c.public)
		}
	}
	_, err := call(t, w.admin().RemoveRole, &accessdv1.RemoveRoleRequest{Name: "access"})
	wantFault(t, err, fault.Denied, `role "access" is built in`)
	if after := w.everything(); after != before {
		t.Error("refused roles changed something")
	}
	if evs := w.rec.take(); len(evs) != 0 {
		t.Errorf("refused roles left %+v", evs)
	}
}

func TestTokens(t *testing.T) {
	w := newWorld(t, plan{})
	w.rec.take()
	res := must(t, w.admin().AddToken, &accessdv1.AddTokenRequest{
		Role: "node", Ttl: durationpb.New(time.Hour), Uses: 3, Names: []string{"web-1"}, Labels: map[string]string{"env": "dev"},
	})
	id, _, err := parseToken(res.GetSecret())
	if err != nil || id != res.GetToken().GetId() {
		t.Fatalf("token %q: id %q, %v", res.GetSecret(), id, err)
	}
	evs := w.rec.take()
	if len(evs) != 1 || evs[0].Name != events.TokenCreate || evs[0].Fields["token_id"] != id {
		t.Errorf("events = %+v", evs)
	}
	if strings.Contains(stringOf(evs), res.GetSecret()[len(id)+1:]) {
		t.Error("the event holds the secret")
	}
	list := must(t, w.admin().ListTokens, &accessdv1.ListTokensRequest{}).GetTokens()
	if len(list) != 1 || list[0].GetUsesLeft() != 3 || list[0].GetLabels()["env"] != "dev" || list[0].GetNames()[0] != "web-1" {
		t.Errorf("tokens = %v", list)
	}
	must(t, w.admin().RemoveToken, &accessdv1.RemoveTokenRequest{Id: id})
	_, err = call(t, w.admin().RemoveToken, &accessdv1.RemoveTokenRequest{Id: id})
	wantFault(t, err, fault.NotFound, `no token with id "`+id+`"`)
	for _, c := range []struct {
		name   string
		req    *accessdv1.AddTokenRequest
		public string
	}{
		{"role", &accessdv1.AddTokenRequest{Role: "auth"}, `token role "auth"`},
		{"uses", &accessdv1.AddTokenRequest{Role: "node", Uses: -1}, "token uses -1"},
		{"lifetime", &accessdv1.AddTokenRequest{Role: "node", Ttl: durationpb.New(9000 * time.Hour)}, "lifetime of the token"},
		{"name", &accessdv1.AddTokenRequest{Role: "node", Names: []string{"*"}}, `node name "*"`},
		{"reserved name", &accessdv1.AddTokenRequest{Role: "node", Names: []string{"accessd-authority"}}, "reserved"},
		{"labels", &accessdv1.AddTokenRequest{Role: "node", Labels: map[string]string{"a b": "c"}}, "label key"},
		{"labels of a proxy", &accessdv1.AddTokenRequest{Role: "proxy", Labels: map[string]string{"a": "c"}}, "only nodes have labels"},
	} {
		_, err := call(t, w.admin().AddToken, c.req)
		if !fault.Is(err, fault.BadInput) || !strings.Contains(fault.Public(err), c.public) {
			t.Errorf("%s: %v, want %q", c.name, err, c.public)
		}
	}
}

// TestExpiredTokensAreNotListed: the store forgets them by itself.
func TestExpiredTokensAreNotListed(t *testing.T) {
	w := newWorld(t, plan{})
	w.token(&accessdv1.AddTokenRequest{Role: "node", Ttl: durationpb.New(time.Minute)})
	w.token(&accessdv1.AddTokenRequest{Role: "node"})
	w.clock.advance(time.Minute)
	if list := must(t, w.admin().ListTokens, &accessdv1.ListTokensRequest{}).GetTokens(); len(list) != 1 {
		t.Errorf("%d tokens are listed, want 1", len(list))
	}
}

func TestParseAddress(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"proxy.example.com:3022", "proxy.example.com:3022"},
		{"Proxy.Example.COM", "proxy.example.com"},
		{"203.0.113.7:22", "203.0.113.7:22"},
		{"[2001:db8::1]:22", "[2001:db8::1]:22"},
		{"2001:db8::1", "2001:db8::1"},
		{"", ""},
		{":22", ""},
		{"*.example.com", ""},
		{"a,b", ""},
		{"a b", ""},
		{"host:0", ""},
		{"host:x", ""},
		{"0.0.0.0:22", ""},
		{"[::]:22", ""},
		{"fe80::1%eth0", ""},
		{"accessd-authority", ""},
		{"accessd-authority:22", ""},
		{"a..b", ""},
		{strings.Repeat("a.", 127) + "a", ""},
		{"x\x00", ""},
		{"example.com.", ""},
	} {
		got, err := parseAddress(c.in)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("parseAddress(%q) = %q, %v, want %q", c.in, got, err, c.want)
		}
	}
	if _, err := parseAddresses(make([]string, maxAddresses+1)); !fault.Is(err, fault.BadInput) {
		t.Errorf("too many addresses: %v", err)
	}
}

// FuzzAddress: what is taken is a host name or an address and can stand in a
// certificate, whatever a proxy sent.
func FuzzAddress(f *testing.F) {
	f.Add("proxy.example.com:3022")
	f.Add("[2001:db8::1]:22")
	f.Add("*,x")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseAddress(s)
		if err != nil {
			return
		}
		if again, err := parseAddress(got); err != nil || again != got {
			t.Errorf("parseAddress(%q) = %q, which becomes %q, %v", s, got, again, err)
		}
		if host := hostOf(got); strings.ContainsAny(host, "*?,! \t\n[]@") || host == "" || names.NodeName(host) == "accessd-authority" {
			t.Errorf("parseAddress(%q) has the host %q", s, host)
		}
	})
}
