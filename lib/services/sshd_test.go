package services_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// plain returns a plain sshd node.
func plain(name string) services.Node {
	return services.Node{ID: names.NewNodeID(), Name: names.NodeName(name), Kind: services.NodeSSHD, Address: name + ":22"}
}

func TestAdmitPlainSSHD(t *testing.T) {
	s, _ := newStore(t)
	n := admit(t, s, plain("old-1"))
	if n.GatewayPort == 0 {
		t.Error("a plain sshd has no gateway port")
	}
	again := plain("old-1")
	_, err := s.AdmitNode(t.Context(), "", again)
	wantKind(t, "another node of the name", err, fault.Conflict)
	for name, change := range map[string]func(*services.Node){
		"no port":                func(n *services.Node) { n.Address = "db" },
		"port 0":                 func(n *services.Node) { n.Address = "db:0" },
		"a large port":           func(n *services.Node) { n.Address = "db:65536" },
		"a name of a port":       func(n *services.Node) { n.Address = "db:ssh" },
		"no host":                func(n *services.Node) { n.Address = ":22" },
		"a zone":                 func(n *services.Node) { n.Address = "[fe80::1%eth0]:22" },
		"IPv6 without brackets":  func(n *services.Node) { n.Address = "::1:22" },
		"an option for a host":   func(n *services.Node) { n.Address = "-oProxyCommand=x:22" },
		"a path":                 func(n *services.Node) { n.Address = "/run/x:22" },
		"no key":                 func(n *services.Node) { n.HostKeys = []string{"ssh-ed25519 x"} },
		"a key with a comment":   func(n *services.Node) { n.HostKeys = []string{freshLine() + " x"} },
		"nine keys":              func(n *services.Node) { n.HostKeys = make([]string, 9) },
		"an address of our node": func(n *services.Node) { n.Kind = services.NodeAccessd },
		"keys of our node": func(n *services.Node) {
			n.Kind, n.Address, n.HostKeys = services.NodeAccessd, "", []string{freshLine()}
		},
		"a kind there is not": func(n *services.Node) { n.Kind = "telnet" },
	} {
		bad := plain("bad")
		change(&bad)
		_, err := s.AdmitNode(t.Context(), "", bad)
		wantKind(t, "admit: "+name, err, fault.BadInput)
		bad = n
		change(&bad)
		_, err = s.UpdateNode(t.Context(), bad)
		wantKind(t, "update: "+name, err, fault.BadInput)
	}
	for _, address := range []string{"", "db.example.com:22", "10.0.0.1:2222", "[2001:db8::1]:22"} {
		n.Address = address
		if n, err = s.UpdateNode(t.Context(), n); err != nil || n.Address != address {
			t.Errorf("address %q: %+v, %v", address, n, err)
		}
	}
}

func TestPinHostKey(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	n := admit(t, s, plain("old-1"))
	first, second := freshLine(), freshLine()
	got, err := s.PinHostKey(ctx, n.ID, first+" root@old-1\n")
	if err != nil || len(got.HostKeys) != 1 || got.HostKeys[0] != first {
		t.Fatalf("PinHostKey = %+v, %v", got, err)
	}
	again, err := s.PinHostKey(ctx, n.ID, first) // of two sessions at first use
	want(t, "PinHostKey again", again.Revision, err, got.Revision)
	_, err = s.PinHostKey(ctx, n.ID, second)
	wantKind(t, "another key", err, fault.Conflict)
	_, err = s.PinHostKey(ctx, names.NewNodeID(), first)
	wantKind(t, "the key of no node", err, fault.NotFound)
	_, err = s.PinHostKey(ctx, n.ID, "ssh-dss AAAA")
	wantKind(t, "no key", err, fault.BadInput)
	_, err = s.PinHostKey(ctx, admit(t, s, node("web-1")).ID, first)
	wantKind(t, "the key of a node of ours", err, fault.BadInput)

	raced := admit(t, s, plain("old-2"))
	if won := race(t, 8, fault.Conflict, func(int) error {
		_, err := s.PinHostKey(ctx, raced.ID, freshLine())
		return err
	}); won != 1 {
		t.Errorf("%d keys were pinned at first use, want 1", won)
	}
}

// A plain sshd at an address has no tunnel whose absence would free its port.
func TestPortOfPlainSSHDIsKept(t *testing.T) {
	s, c := newStore(t)
	s.SetGatewayPorts(20000, 1)
	n := admit(t, s, plain("old-1"))
	c.Advance(100 * 24 * 3600e9)
	if late := admit(t, s, plain("old-2")); n.GatewayPort == 0 || late.GatewayPort != 0 {
		t.Errorf("ports %d and %d, want the first to keep the only one", n.GatewayPort, late.GatewayPort)
	}
}

func TestFindNode(t *testing.T) {
	c := services.NewCache()
	var all []services.Node
	for i := range 14 {
		n := services.Node{ID: names.NewNodeID(), Name: names.NodeName(fmt.Sprintf("web-%02d", i)), Kind: services.NodeAccessd, Labels: names.Labels{"env": "prod", "n": fmt.Sprint(i)}}
		if i < 2 {
			n.Labels["env"] = "dev"
		}
		all = append(all, n)
		check(t, c.Apply(put(resource(t, "node", string(n.ID), n))))
	}
	but := func(hidden ...int) func(services.Node) bool {
		return func(n services.Node) bool {
			for _, i := range hidden {
				if n.ID == all[i].ID {
					return false
				}
			}
			return true
		}
	}
	for _, tt := range []struct {
		query   string
		visible func(services.Node) bool
		want    int // index
		kind    fault.Kind
		text    string // in the refusal
	}{
		{query: "web-03", want: 3},
		{query: string(all[3].ID), want: 3},
		{query: "n=3", want: 3},
		{query: "n=1,env=dev", want: 1},
		{query: "env=dev", visible: but(0), want: 1},
		{query: "web-03", visible: but(3), kind: fault.NotFound, text: `no node named "web-03"`},
		{query: string(all[3].ID), visible: but(3), kind: fault.NotFound, text: "no node named"},
		{query: "n=3", visible: but(3), kind: fault.NotFound, text: `no node has the labels "n=3"`},
		{query: "n=1,env=prod", kind: fault.NotFound, text: "no node has"},
		{query: "zone=", kind: fault.BadInput},
		{query: "=x", kind: fault.BadInput},
		{query: "n=1,n=2", kind: fault.BadInput},
		{query: "", kind: fault.NotFound},
		{query: "web-3", kind: fault.NotFound},
		{query: "env=dev", kind: fault.Conflict, text: `2 nodes have the labels "env=dev": web-00, web-01`},
		{query: "env=prod", visible: but(2), kind: fault.Conflict, text: "web-03, web-04, web-05, web-06, web-07, web-08, web-09, web-10, web-11, web-12, and 1 more"},
	} {
		got, err := c.FindNode(tt.query, tt.visible)
		switch {
		case tt.kind == 0 && tt.text == "" && err == nil:
			if got.ID != all[tt.want].ID {
				t.Errorf("FindNode(%q) = %+v, want %s", tt.query, got, all[tt.want].Name)
			}
		case err == nil || !fault.Is(err, tt.kind) || !strings.Contains(fault.Public(err), tt.text):
			t.Errorf("FindNode(%q) = %+v, %v, want kind %v with %q", tt.query, got, err, tt.kind, tt.text)
		}
	}
}
