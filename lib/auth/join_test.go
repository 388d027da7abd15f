package auth

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/durationpb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

func TestJoin(t *testing.T) {
	w := newWorld(t, plan{})
	w.rec.take()
	token := w.token(&accessdv1.AddTokenRequest{Role: "node", Names: []string{"web-1"}, Labels: map[string]string{"env": "dev"}})
	m := newMember(sshca.KindNode, "web-1")
	req := m.request(token)
	req.Labels = map[string]string{"env": "dev", "team": "a"}
	req.PublicAddresses = []string{"evil.example.com"} // a node has none
	res := must(t, w.joiner(m.key).Join, req)
	w.admitted(m, res)
	if res.GetClusterName() != "example" || res.GetName() != "web-1" || res.GetGatewayPort() == 0 {
		t.Errorf("join = %v", res)
	}
	if m.identity.Member != m.id || m.identity.Kind != sshca.KindNode || m.identity.Fingerprint != ssh.FingerprintSHA256(m.key.PublicKey()) {
		t.Errorf("identity = %+v", m.identity)
	}
	host := parseCert(t, res.GetCertificates().GetHost())
	want := []string{"127.0.0.1", "::1", string(m.id), "localhost", "web-1"}
	if slices.Sort(want); !slices.Equal(host.ValidPrincipals, want) {
		t.Errorf("host certificate for %v, want %v", host.ValidPrincipals, want)
	}
	for _, name := range want {
		if err := w.cfg.Keys.Trust().CheckHost(host, name, w.clock.Now()); err != nil {
			t.Errorf("as %s: %v", name, err)
		}
	}
	if got, want := res.GetCertificates().GetExpires().AsTime(), w.clock.Now().Add(24*time.Hour); !got.Equal(want) {
		t.Errorf("expires %v, want %v", got, want)
	}
	if got, want := res.GetCertificates().GetRenew().AsTime(), w.clock.Now().Add(12*time.Hour); !got.Equal(want) {
		t.Errorf("renew from %v, want %v", got, want)
	}
	cache := services.NewCache() // what a member can do with the answer alone
	if err := cache.Apply(&accessdv1.PolicyUpdate{Put: res.GetTrust()}); err != nil {
		t.Fatal(err)
	}
	if err := cache.Trust().CheckHost(host, "web-1", w.clock.Now()); err != nil {
		t.Errorf("by the trust of the answer: %v", err)
	}
	if strings.Contains(stringOf(res.GetTrust()), "sealed") {
		t.Error("the answer holds sealed keys")
	}
	evs := w.rec.take()
	id, _, _ := strings.Cut(token, ".")
	if join := named(evs, events.NodeJoin); len(join) != 1 || join[0].Fields["token_id"] != id || join[0].Fields["name"] != "web-1" || join[0].AddrRemote != clientAddr.String() {
		t.Errorf("node.join = %+v", join)
	}
	if certs := named(evs, events.CertCreate); len(certs) != 2 {
		t.Errorf("cert.create = %+v, want two", certs)
	}
	nodes := must(t, w.admin().ListNodes, &accessdv1.ListNodesRequest{}).GetNodes()
	if len(nodes) != 1 || nodes[0].GetName() != "web-1" || nodes[0].GetLabels()["team"] != "a" || nodes[0].GetOnline() {
		t.Errorf("nodes = %v", nodes)
	}
}

// TestJoinRefusals: F18 and THREATS "Forged host certificates". Each is
// recorded with the token's id and never its secret, and uses nothing up.
func TestJoinRefusals(t *testing.T) {
	w := newWorld(t, plan{})
	taken := w.join(sshca.KindNode, "taken")
	proxyToken := w.token(&accessdv1.AddTokenRequest{Role: "proxy"})
	edge := newMember(sshca.KindProxy, "edge-1")
	req := edge.request(proxyToken)
	req.PublicAddresses = []string{"proxy.example.com:3022"}
	w.admitted(edge, must(t, w.joiner(edge.key).Join, req))

	good := w.token(&accessdv1.AddTokenRequest{Role: "node", Labels: map[string]string{"env": "dev"}, Names: nil})
	bound := w.token(&accessdv1.AddTokenRequest{Role: "node", Names: []string{"web-1"}})
	used := w.token(&accessdv1.AddTokenRequest{Role: "node"})
	u := newMember(sshca.KindNode, "used-up")
	must(t, w.joiner(u.key).Join, u.request(used))
	expired := w.token(&accessdv1.AddTokenRequest{Role: "node", Ttl: durationpb.New(time.Minute)})
	removed := w.token(&accessdv1.AddTokenRequest{Role: "node"})
	must(t, w.admin().RemoveToken, &accessdv1.RemoveTokenRequest{Id: strings.Split(removed, ".")[0]})
	w.clock.advance(2 * time.Minute)

	_, otherSecret, _ := newToken()
	guessed := strings.Split(good, ".")[0] + "." + strings.Split(otherSecret, ".")[1]
	notOurs := "the join token is not one of this cluster, or was removed or used up"
	dev := map[string]string{"env": "dev"}
	for _, c := range []struct {
		name   string
		change func(*accessdv1.JoinRequest)
		kind   fault.Kind
		public string
	}{
		{"no token", func(r *accessdv1.JoinRequest) { r.Token = "" }, fault.BadInput, "join token: want ID.SECRET"},
		{"truncated", func(r *accessdv1.JoinRequest) { r.Token = good[:40] }, fault.BadInput, "join token: want ID.SECRET"},
		{"guessed secret", func(r *accessdv1.JoinRequest) { r.Token = guessed }, fault.Denied, notOurs},
		{"other cluster's", func(r *accessdv1.JoinRequest) { r.Token = otherSecret }, fault.Denied, notOurs},
		{"removed", func(r *accessdv1.JoinRequest) { r.Token = removed }, fault.Denied, notOurs},
		{"used up", func(r *accessdv1.JoinRequest) { r.Token = used }, fault.Denied, "used up"},
		{"expired", func(r *accessdv1.JoinRequest) { r.Token = expired }, fault.Denied, "expired"},
		{"as a proxy", func(r *accessdv1.JoinRequest) { r.Role = "proxy" }, fault.Denied, "the join token is for a node, not for a proxy"},
		{"as an authority", func(r *accessdv1.JoinRequest) { r.Role = "auth" }, fault.Denied, "the join token is for a node, not for a auth"},
		{"as a person", func(r *accessdv1.JoinRequest) { r.Role = "user" }, fault.BadInput, `role "user"`},
		{"other name than the token's", func(r *accessdv1.JoinRequest) { r.Token = bound }, fault.Denied, `the join token does not allow the name "web-9"`},
		{"without its labels", func(r *accessdv1.JoinRequest) { r.Labels = nil }, fault.Denied, "the join token demands the label env=dev"},
		{"with another label", func(r *accessdv1.JoinRequest) { r.Labels["env"] = "prod" }, fault.Denied, "the join token demands the label env=dev"},
		{"bad label", func(r *accessdv1.JoinRequest) { r.Labels["a,b"] = "c" }, fault.BadInput, "label key"},
		{"another node's name", func(r *accessdv1.JoinRequest) { r.Name = "taken" }, fault.Conflict, "taken"},
		{"the proxy's name", func(r *accessdv1.JoinRequest) { r.Name = "edge-1" }, fault.Conflict, "edge-1"},
		{"the proxy's address", func(r *accessdv1.JoinRequest) { r.Name = "proxy.example.com" }, fault.Conflict, "proxy.example.com"},
		{"the authority's name", func(r *accessdv1.JoinRequest) { r.Name = "accessd-authority" }, fault.BadInput, "reserved"},
		{"a pattern", func(r *accessdv1.JoinRequest) { r.Name = "*" }, fault.BadInput, `node name "*"`},
		{"two names", func(r *accessdv1.JoinRequest) { r.Name = "a,b" }, fault.BadInput, `node name "a,b"`},
		{"an address", func(r *accessdv1.JoinRequest) { r.Name = "10.0.0.1" }, fault.BadInput, "an address cannot be a name"},
		{"an id", func(r *accessdv1.JoinRequest) { r.Name = string(taken.id) }, fault.BadInput, "a UUID cannot be a name"},
		{"localhost", func(r *accessdv1.JoinRequest) { r.Name = "localhost" }, fault.BadInput, "localhost"},
		{"another node's id", func(r *accessdv1.JoinRequest) { r.Id = string(taken.id) }, fault.Conflict, "on record with another key"},
		{"another node's id and name", func(r *accessdv1.JoinRequest) { r.Id, r.Name = string(taken.id), "taken" }, fault.Conflict, "on record with another key"},
		{"the proxy's id", func(r *accessdv1.JoinRequest) { r.Id = string(edge.id) }, fault.Conflict, "on record with another key"},
		{"no id of ours", func(r *accessdv1.JoinRequest) { r.Id = "../x" }, fault.BadInput, "node id"},
		{"no host key", func(r *accessdv1.JoinRequest) { r.HostPublicKey = "" }, fault.BadInput, "host key"},
		{"weak host key", func(r *accessdv1.JoinRequest) { r.HostPublicKey = rsa1024 }, fault.BadInput, "1024 bits"},
		{"hostile version", func(r *accessdv1.JoinRequest) { r.Version = "v1\x1b]52;c;\a" }, fault.BadInput, "version"},
	} {
		w.rec.take()
		before := w.everything()
		m := newMember(sshca.KindNode, "web-9")
		r := m.request(good)
		r.Labels = map[string]string{"env": "dev"}
		c.change(r)
		_, err := call(t, w.joiner(m.key).Join, r)
		if !fault.Is(err, c.kind) || !strings.Contains(fault.Public(err), c.public) {
			t.Errorf("%s: %v (%v), want %v with %q", c.name, err, fault.KindOf(err), c.kind, c.public)
		}
		evs := named(w.rec.take(), events.TokenRejected)
		if len(evs) != 1 || evs[0].Success {
			t.Errorf("%s: events %+v, want one token.rejected", c.name, evs)
			continue
		}
		id, secret, ok := strings.Cut(r.Token, ".")
		if ok && len(secret) == 52 && evs[0].Fields["token_id"] != id {
			t.Errorf("%s: token.rejected of %v, want %s", c.name, evs[0].Fields["token_id"], id)
		}
		if ok && strings.Contains(stringOf(evs), secret) {
			t.Errorf("%s: the event holds the secret", c.name)
		}
		if after := w.everything(); after != before {
			t.Errorf("%s changed the state:\n%s\n%s", c.name, before, after)
		}
	}
	m := newMember(sshca.KindNode, "web-9")
	r := m.request(good)
	r.Labels = dev
	must(t, w.joiner(m.key).Join, r) // after all that, the token is as good as new
	_, err := call(t, w.joiner(m.key).Join, r)
	if !fault.Is(err, fault.Denied) {
		t.Errorf("replayed token: %v, want a denial", err)
	}
}

// TestJoinRace: two joins at once with a token of one use: one wins.
func TestJoinRace(t *testing.T) {
	w := newWorld(t, plan{})
	for round := range 5 {
		token := w.token(&accessdv1.AddTokenRequest{Role: "node"})
		var wg sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			wg.Go(func() {
				m := newMember(sshca.KindNode, "race-"+string(rune('a'+round))+"-"+string(rune('a'+i)))
				_, errs[i] = call(t, w.joiner(m.key).Join, m.request(token))
			})
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !fault.Is(err, fault.Denied) && !fault.Is(err, fault.Conflict) {
				t.Errorf("a loser reads %v", err)
			}
		}
		if won != 1 {
			t.Errorf("%d joins with one use succeeded: %v", won, errs)
		}
	}
	if n := len(must(t, w.admin().ListNodes, &accessdv1.ListNodesRequest{}).GetNodes()); n != 5 {
		t.Errorf("%d nodes, want 5", n)
	}
}

// TestNameRace: two joins at once for one name, each with a token of its own.
func TestNameRace(t *testing.T) {
	w := newWorld(t, plan{})
	token := w.token(&accessdv1.AddTokenRequest{Role: "node", Uses: 10})
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() {
			m := newMember(sshca.KindNode, "web-1")
			_, errs[i] = call(t, w.joiner(m.key).Join, m.request(token))
		})
	}
	wg.Wait()
	left := must(t, w.admin().ListTokens, &accessdv1.ListTokensRequest{}).GetTokens()
	nodes := must(t, w.admin().ListNodes, &accessdv1.ListNodesRequest{}).GetNodes()
	if len(nodes) != 1 || len(left) != 1 || left[0].GetUsesLeft() != 9 {
		t.Errorf("%d nodes, tokens %v, errors %v: want one node and 9 uses left", len(nodes), left, errs)
	}
}

// TestReturningNode: F08. Who comes back with its id proves the same key and
// keeps its name and port; a key that was replaced is out everywhere at once.
func TestReturningNode(t *testing.T) {
	w := newWorld(t, plan{})
	m := w.join(sshca.KindNode, "web-1")
	first := m.joined
	token := w.token(&accessdv1.AddTokenRequest{Role: "node", Uses: 5})
	again := must(t, w.joiner(m.key).Join, m.request(token))
	if again.GetId() != first.GetId() || again.GetGatewayPort() != first.GetGatewayPort() {
		t.Errorf("came back as %v, was %v", again, first)
	}
	if n := len(must(t, w.admin().ListNodes, &accessdv1.ListNodesRequest{}).GetNodes()); n != 1 {
		t.Errorf("%d nodes after a return, want 1", n)
	}
	renamed := m.request(token)
	renamed.Name = "web-2"
	if _, err := call(t, w.joiner(m.key).Join, renamed); !fault.Is(err, fault.Conflict) {
		t.Errorf("return under another name: %v, want a conflict", err)
	}
	clone := newMember(sshca.KindNode, "web-1")
	clone.id = m.id
	if _, err := call(t, w.joiner(clone.key).Join, clone.request(token)); !fault.Is(err, fault.Conflict) || fault.Hint(err) == "" {
		t.Errorf("return with another key: %v, want a conflict with a hint", err)
	}
	// An administrator removes the old one: its certificate is worth nothing,
	// also after the name and the id are on record again with the new key.
	must(t, w.admin().RemoveNode, &accessdv1.RemoveNodeRequest{Node: "web-1"})
	_, err := call(t, m.Renew, &accessdv1.RenewRequest{})
	wantFault(t, err, fault.Denied, "permission denied")
	w.admitted(clone, must(t, w.joiner(clone.key).Join, clone.request(token)))
	_, err = call(t, m.Renew, &accessdv1.RenewRequest{})
	wantFault(t, err, fault.Denied, "permission denied")
	must(t, clone.Renew, &accessdv1.RenewRequest{})
}

func TestProxyJoin(t *testing.T) {
	w := newWorld(t, plan{})
	w.join(sshca.KindNode, "db.example.com")
	token := w.token(&accessdv1.AddTokenRequest{Role: "proxy", Uses: 10})
	w.rec.take()
	p := newMember(sshca.KindProxy, "edge-1")
	req := p.request(token)
	req.PublicAddresses = []string{"Proxy.Example.com:3022", "203.0.113.80"}
	res := must(t, w.joiner(p.key).Join, req)
	w.admitted(p, res)
	if p.identity.Kind != sshca.KindProxy {
		t.Errorf("identity = %+v", p.identity)
	}
	host := parseCert(t, res.GetCertificates().GetHost())
	for _, name := range []string{"edge-1", string(p.id), "proxy.example.com", "203.0.113.80", "localhost"} {
		if !slices.Contains(host.ValidPrincipals, name) {
			t.Errorf("host certificate for %v lacks %s", host.ValidPrincipals, name)
		}
	}
	if slices.Contains(host.ValidPrincipals, "accessd-authority") {
		t.Error("a proxy may call itself the authority")
	}
	if evs := named(w.rec.take(), events.ProxyJoin); len(evs) != 1 || evs[0].Fields["member_id"] != string(p.id) {
		t.Errorf("proxy.join = %+v", evs)
	}
	for _, bad := range []string{"db.example.com:22", "accessd-authority", "*.example.com", "a,b"} {
		q := newMember(sshca.KindProxy, "edge-2")
		req := q.request(token)
		req.PublicAddresses = []string{bad}
		if _, err := call(t, w.joiner(q.key).Join, req); err == nil {
			t.Errorf("a proxy joined with the address %q", bad)
		}
	}
	twin := newMember(sshca.KindNode, "edge-1") // the same process has a node, too
	twin.id, twin.key, twin.host = p.id, p.key, p.host
	w.admitted(twin, must(t, w.joiner(twin.key).Join, twin.request(w.token(&accessdv1.AddTokenRequest{Role: "node"}))))
	if twin.id != p.id {
		t.Errorf("the node of the proxy's process has the id %s, want %s", twin.id, p.id)
	}
	must(t, w.admin().RemoveNode, &accessdv1.RemoveNodeRequest{Node: "edge-1"}) // the node
	must(t, p.Renew, &accessdv1.RenewRequest{})
	must(t, w.admin().RemoveNode, &accessdv1.RemoveNodeRequest{Node: "edge-1"}) // the proxy
	_, err := call(t, p.Renew, &accessdv1.RenewRequest{})
	wantFault(t, err, fault.Denied, "permission denied")
}

func TestAdmitSelf(t *testing.T) {
	w := newWorld(t, plan{})
	m := newMember(sshca.KindAuth, "host-1")
	self := Self{
		Kind: sshca.KindAuth, ID: names.NewNodeID(), Name: "host-1", MemberKey: m.key.PublicKey(), HostKey: m.host.PublicKey(),
		Addresses: []string{"proxy.example.com:3022"}, Version: "v1.0.0",
	}
	w.rec.take()
	adm, err := w.AdmitSelf(t.Context(), self)
	if err != nil {
		t.Fatal(err)
	}
	host := parseCert(t, adm.Certificates.GetHost())
	for _, name := range []string{"host-1", "accessd-authority", "proxy.example.com", "127.0.0.1"} {
		if !slices.Contains(host.ValidPrincipals, name) {
			t.Errorf("host certificate for %v lacks %s", host.ValidPrincipals, name)
		}
	}
	node := self // the same process has a node, too
	node.Kind, node.Addresses, node.Labels = sshca.KindNode, nil, names.Labels{"env": "dev"}
	second, err := w.AdmitSelf(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	if second.ID != self.ID || second.GatewayPort == 0 {
		t.Errorf("node of the same process = %+v", second)
	}
	if evs := w.rec.take(); len(named(evs, events.NodeJoin)) != 1 || len(named(evs, events.ProxyJoin)) != 1 {
		t.Errorf("events = %+v", evs)
	}
	before := w.everything()
	again, err := w.AdmitSelf(t.Context(), node)
	if err != nil || again.GatewayPort != second.GatewayPort {
		t.Errorf("second start = %+v, %v", again, err)
	}
	if evs := w.rec.take(); len(named(evs, events.NodeJoin)) != 0 || len(evs) != 2 {
		t.Errorf("a second start recorded %+v, want its two certificates", evs)
	}
	if after := w.everything(); after != before {
		t.Error("a second start changed the state")
	}
	node.Labels = names.Labels{"env": "prod"}
	if _, err := w.AdmitSelf(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	if n, err := w.cfg.Store.Node(t.Context(), self.ID); err != nil || n.Labels["env"] != "prod" {
		t.Errorf("node = %+v, %v, want its new labels", n, err)
	}
	api := w.as(rpc.Peer{Identity: w.identify(adm.Certificates.GetMember(), "host-1")})
	must(t, api.ExportCA, &accessdv1.ExportCARequest{Type: "host"})
	stolen := newMember(sshca.KindNode, "host-1")
	token := w.token(&accessdv1.AddTokenRequest{Role: "node"})
	if _, err := call(t, w.joiner(stolen.key).Join, stolen.request(token)); !fault.Is(err, fault.Conflict) {
		t.Errorf("a joiner took the authority's name: %v", err)
	}
}
