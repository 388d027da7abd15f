package services_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

func node(name string) services.Node {
	return services.Node{ID: names.NewNodeID(), Name: names.NodeName(name), Kind: services.NodeAccessd, Labels: names.Labels{"env": "dev"}}
}

func member(name string) services.Member {
	return services.Member{ID: names.NewNodeID(), Name: names.NodeName(name), Kind: sshca.KindProxy}
}

func token(t testing.TB, s *services.Store, c *clock, uses int) string {
	t.Helper()
	tok := services.Token{ID: strings.ToLower(names.NewSecret()[:16]), SecretHash: "h", Role: services.TokenNode, Expires: c.Now().Add(time.Hour), UsesLeft: uses}
	check(t, s.CreateToken(t.Context(), tok))
	return tok.ID
}

func admit(t testing.TB, s *services.Store, n services.Node) services.Node {
	t.Helper()
	n, err := s.AdmitNode(t.Context(), "", n)
	check(t, err)
	return n
}

func TestTokenCheck(t *testing.T) {
	good := services.Token{ID: "abc", Role: "node", UsesLeft: 1}
	check(t, good.Check())
	for name, change := range map[string]func(*services.Token){
		"id":     func(t *services.Token) { t.ID = "a/b" },
		"no id":  func(t *services.Token) { t.ID = "" },
		"role":   func(t *services.Token) { t.Role = "auth" },
		"uses":   func(t *services.Token) { t.UsesLeft = 0 },
		"name":   func(t *services.Token) { t.Names = []names.NodeName{"*"} },
		"names":  func(t *services.Token) { t.Names = make([]names.NodeName, 257) },
		"labels": func(t *services.Token) { t.Labels = names.Labels{"a": "*"} },
	} {
		t.Run(name, func(t *testing.T) {
			bad := good
			change(&bad)
			wantKind(t, "Check", bad.Check(), fault.BadInput)
		})
	}
}

// F18: a token that is unknown, expired or used up is refused, and who shows it
// cannot tell which.
func TestTokens(t *testing.T) {
	s, c := newStore(t)
	ctx := t.Context()
	twice, once := token(t, s, c, 2), token(t, s, c, 1)
	if all, err := s.Tokens(ctx); err != nil || len(all) != 2 {
		t.Errorf("Tokens = %+v, %v, want both", all, err)
	}
	tok, err := s.Token(ctx, once)
	check(t, err)
	wantKind(t, "second CreateToken", s.CreateToken(ctx, tok), fault.Conflict)

	refused := func(what, id, why string) {
		t.Helper()
		_, err := s.AdmitNode(ctx, id, node("late"))
		wantKind(t, "AdmitNode with a token that is "+what, err, fault.Denied)
		if got := fault.Public(err); got != "the join token is not valid" {
			t.Errorf("a peer reads %q of a token that is %s", got, what)
		}
		if !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), id) {
			t.Errorf("the log reads %q, want %q and the token's id", err, why)
		}
	}
	_, err = s.AdmitNode(ctx, once, node("a"))
	check(t, err)
	refused("used up", once, "used up")
	refused("unknown", "nosuch", "unknown")
	_, err = s.AdmitNode(ctx, twice, node("b"))
	check(t, err)
	c.Advance(time.Hour)
	refused("expired", twice, "expired")
	if all, err := s.Tokens(ctx); err != nil || len(all) != 0 {
		t.Errorf("Tokens = %+v, %v, want none that is of use", all, err)
	}
	check(t, s.DeleteToken(ctx, twice))
	wantKind(t, "second DeleteToken", s.DeleteToken(ctx, twice), fault.NotFound)
}

// F18: of joins that race for a token of one use, one wins.
func TestOneUseTokenUnderRace(t *testing.T) {
	s, c := newStore(t)
	once, thrice := token(t, s, c, 1), token(t, s, c, 3)
	for id, uses := range map[string]int{once: 1, thrice: 3} {
		won := race(t, 6, fault.Denied, func(i int) error {
			_, err := s.AdmitNode(t.Context(), id, node(fmt.Sprintf("n%d-%d", uses, i)))
			return err
		})
		if won != uses {
			t.Errorf("%d joins won with a token of %d uses", won, uses)
		}
	}
	if nodes, err := s.Nodes(t.Context()); err != nil || len(nodes) != 4 {
		t.Errorf("%d nodes, %v, want those 4 that won", len(nodes), err)
	}
}

// F18: a join that fails for another reason leaves the token as it was.
func TestFailedAdmissionKeepsToken(t *testing.T) {
	s, c := newStore(t)
	ctx := t.Context()
	admit(t, s, node("taken"))
	id := token(t, s, c, 1)
	_, err := s.AdmitNode(ctx, id, node("taken"))
	wantKind(t, "AdmitNode with a name that is taken", err, fault.Conflict)
	bad := node("ok")
	bad.Kind = "toaster"
	_, err = s.AdmitNode(ctx, id, bad)
	wantKind(t, "AdmitNode of an unknown kind", err, fault.BadInput)
	if tok, err := s.Token(ctx, id); err != nil || tok.UsesLeft != 1 {
		t.Errorf("the token has %d uses left, %v, want 1", tok.UsesLeft, err)
	}
	_, err = s.AdmitNode(ctx, id, node("ok"))
	check(t, err)
}

func TestNodeNamesAreUnique(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	won := race(t, 6, fault.Conflict, func(i int) error {
		if i%2 == 0 {
			_, err := s.AdmitMember(ctx, "", member("db"))
			return err
		}
		_, err := s.AdmitNode(ctx, "", node("db"))
		return err
	})
	if won != 1 {
		t.Errorf("%d got the name, want 1", won)
	}
	a := admit(t, s, node("a"))
	admit(t, s, node("db2")) // not taken by db

	renamed := a
	renamed.Name = "db"
	_, err := s.AdmitNode(ctx, "", renamed)
	wantKind(t, "renaming to a name that is taken", err, fault.Conflict)
	renamed.Name = "b"
	renamed, err = s.AdmitNode(ctx, "", renamed)
	check(t, err)
	if renamed.GatewayPort != a.GatewayPort {
		t.Errorf("renaming changed the port from %d to %d", a.GatewayPort, renamed.GatewayPort)
	}
	admit(t, s, node("a")) // free again
	_, err = s.AdmitNode(ctx, "", a)
	wantKind(t, "AdmitNode at an old revision", err, fault.Conflict)

	check(t, s.DeleteNode(ctx, renamed.ID))
	wantKind(t, "second DeleteNode", s.DeleteNode(ctx, renamed.ID), fault.NotFound)
	m, err := s.AdmitMember(ctx, "", member("b")) // free again
	check(t, err)
	_, err = s.AdmitNode(ctx, "", node("b"))
	wantKind(t, "AdmitNode with a member's name", err, fault.Conflict)
	if got, err := s.Member(ctx, m.ID); err != nil || got.Name != "b" || got.Revision != m.Revision {
		t.Errorf("Member = %+v, %v, want %+v", got, err, m)
	}
	check(t, s.DeleteMember(ctx, m.ID))
	wantKind(t, "second DeleteMember", s.DeleteMember(ctx, m.ID), fault.NotFound)
	admit(t, s, node("b"))
	_, err = s.AdmitNode(ctx, "", services.Node{ID: "../x", Name: "x", Kind: services.NodeSSHD})
	wantKind(t, "AdmitNode with a bad id", err, fault.BadInput)
	_, err = s.AdmitNode(ctx, "", services.Node{ID: names.NewNodeID(), Name: "*", Kind: services.NodeSSHD})
	wantKind(t, "AdmitNode with a bad name", err, fault.BadInput)
	_, err = s.AdmitMember(ctx, "", services.Member{ID: names.NewNodeID(), Name: "x", Kind: sshca.KindNode})
	wantKind(t, "AdmitMember of a node", err, fault.BadInput)
}

func TestUpdateNode(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	n := admit(t, s, node("a"))
	same, err := s.UpdateNode(ctx, n)
	if err != nil || same.Revision != n.Revision {
		t.Errorf("UpdateNode with no change = revision %d, %v, want %d", same.Revision, err, n.Revision)
	}
	n.Labels = names.Labels{"env": "prod"}
	sly := n
	sly.Name, sly.GatewayPort = "b", 1
	got, err := s.UpdateNode(ctx, sly)
	if err != nil || got.Labels["env"] != "prod" || got.Name != "a" || got.GatewayPort != n.GatewayPort {
		t.Errorf("UpdateNode = %+v, %v, want new labels, the old name and port", got, err)
	}
	_, err = s.UpdateNode(ctx, n)
	wantKind(t, "UpdateNode at an old revision", err, fault.Conflict)
	got.Labels = names.Labels{"a": "\x1b[2J"}
	_, err = s.UpdateNode(ctx, got)
	wantKind(t, "UpdateNode with a bad label", err, fault.BadInput)
	_, err = s.UpdateNode(ctx, node("c"))
	wantKind(t, "UpdateNode of none", err, fault.NotFound)
}

func TestGatewayPortsAreUniqueUnderRace(t *testing.T) {
	s, _ := newStore(t)
	const ports = 12
	s.SetGatewayPorts(20000, ports)
	won := race(t, ports, fault.Conflict, func(i int) error {
		_, err := s.AdmitNode(t.Context(), "", node(fmt.Sprintf("n%d", i)))
		return err
	})
	nodes, err := s.Nodes(t.Context())
	if err != nil || won != ports || len(nodes) != ports {
		t.Fatalf("%d nodes, %v, want %d", len(nodes), err, ports)
	}
	seen := map[int]bool{}
	for _, n := range nodes {
		if seen[n.GatewayPort] || n.GatewayPort < 20000 || n.GatewayPort >= 20000+ports {
			t.Errorf("node %s has port %d, which is taken or out of range", n.Name, n.GatewayPort)
		}
		seen[n.GatewayPort] = true
	}
}

// A node that is away keeps its port for a week; then another may get it.
func TestGatewayPortIsFreedAfterItsLease(t *testing.T) {
	s, c := newStore(t)
	ctx := t.Context()
	s.SetGatewayPorts(20000, 2)
	away, online := admit(t, s, node("away")), admit(t, s, node("online"))
	proxy := services.Proxy{ID: names.NewNodeID(), Name: "p"}
	_, _, err := s.Announce(ctx, services.Announcement{Proxy: proxy, Full: true, Up: []names.NodeID{online.ID}})
	check(t, err)

	c.Advance(defaults.GatewayPortTTL - time.Second)
	early := admit(t, s, node("early"))
	if early.GatewayPort != 0 {
		t.Errorf("a new node got port %d within the lease, want none", early.GatewayPort)
	}
	c.Advance(time.Second)
	late := admit(t, s, node("late"))
	if late.GatewayPort != away.GatewayPort {
		t.Errorf("a new node got port %d after the lease, want %d", late.GatewayPort, away.GatewayPort)
	}
	got, err := s.Node(ctx, away.ID)
	if err != nil || got.GatewayPort != 0 {
		t.Errorf("the node that was away has port %d, %v, want none", got.GatewayPort, err)
	}
	got.Revision, got.Labels = 0, nil
	got, err = s.Node(ctx, away.ID)
	check(t, err)
	back, err := s.AdmitNode(ctx, "", got)
	if err != nil || back.GatewayPort != 0 {
		t.Errorf("the node came back with port %d, %v, want none while all are taken", back.GatewayPort, err)
	}
	check(t, s.DeleteNode(ctx, late.ID))
	back, err = s.AdmitNode(ctx, "", back)
	if err != nil || back.GatewayPort != away.GatewayPort {
		t.Errorf("the node came back with port %d, %v, want the one that was freed, %d", back.GatewayPort, err, away.GatewayPort)
	}
}

func TestNodesAreSortedAndSeen(t *testing.T) {
	s, c := newStore(t)
	for _, name := range []string{"c", "a", "b"} {
		admit(t, s, node(name))
	}
	nodes, err := s.Nodes(t.Context())
	check(t, err)
	if !slices.IsSortedFunc(nodes, func(a, b services.Node) int { return strings.Compare(string(a.Name), string(b.Name)) }) || len(nodes) != 3 {
		t.Errorf("Nodes = %+v, want a, b, c", nodes)
	}
	for _, n := range nodes {
		if !n.LastSeen.Equal(c.Now()) || n.Revision == 0 {
			t.Errorf("node %s was last seen %v at revision %d, want now", n.Name, n.LastSeen, n.Revision)
		}
	}
}

// A process that is a node and an authority has one id and one name; the name
// goes when neither record has it any more.
func TestOneProcessHasOneNameForBothItsRecords(t *testing.T) {
	s, _ := newStore(t)
	id := names.NewNodeID()
	if _, err := s.AdmitMember(t.Context(), "", services.Member{ID: id, Name: "hub", Kind: sshca.KindAuth, Addresses: []string{"Hub.example.com:3022", "127.0.0.1:3022", "localhost:1"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AdmitNode(t.Context(), "", services.Node{ID: id, Name: "hub", Kind: services.NodeAccessd}); err != nil {
		t.Fatalf("the same process as a node: %v", err)
	}
	for _, name := range []names.NodeName{"hub", "hub.example.com"} {
		_, err := s.AdmitNode(t.Context(), "", services.Node{ID: names.NewNodeID(), Name: name, Kind: services.NodeAccessd})
		if !fault.Is(err, fault.Conflict) {
			t.Errorf("another node as %q: %v, want a conflict", name, err)
		}
	}
	if err := s.DeleteNode(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AdmitNode(t.Context(), "", services.Node{ID: names.NewNodeID(), Name: "hub", Kind: services.NodeAccessd}); !fault.Is(err, fault.Conflict) {
		t.Errorf("the member's name after its node went: %v, want a conflict", err)
	}
	if err := s.DeleteMember(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AdmitNode(t.Context(), "", services.Node{ID: names.NewNodeID(), Name: "hub", Kind: services.NodeAccessd}); err != nil {
		t.Errorf("the name after both went: %v, want it free", err)
	}
	if _, err := s.AdmitNode(t.Context(), "", services.Node{ID: names.NewNodeID(), Name: "hub.example.com", Kind: services.NodeAccessd}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a node with a proxy's old address: %v, want a conflict", err)
	}
	for _, name := range []names.NodeName{"p1", "p2"} { // behind one load balancer
		_, err := s.AdmitMember(t.Context(), "", services.Member{ID: names.NewNodeID(), Name: name, Kind: sshca.KindProxy, Addresses: []string{"hub.example.com:22"}})
		if err != nil {
			t.Errorf("proxy %q at a shared address: %v", name, err)
		}
	}
}
