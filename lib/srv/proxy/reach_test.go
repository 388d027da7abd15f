package proxy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/services"
)

// TestStockJumpToSSHD is "ssh -J" to a plain sshd node: the proxy itself answers
// for it, after the decision, and knows where the client is.
func TestStockJumpToSSHD(t *testing.T) {
	w := newWorld(t)
	w.policy.node(services.Node{ID: idN1, Name: "n1", Kind: services.NodeSSHD})
	s := newStock(w)
	s.certify("alice")
	s.ssh("n1", "echo hello").want(t, 0, "hello\n")
	decision := w.audit.all(events.AccessDecision)
	if len(decision) != 1 || !decision[0].Success {
		t.Fatalf("access.decision = %+v", decision)
	}
	served, _ := w.sshd.state()
	if len(served) != 1 || served[0] != "n1 for "+decision[0].AddrRemote {
		t.Errorf("served: %q, want n1 for %s", served, decision[0].AddrRemote)
	}
	bye := w.audit.wait(events.ClientDisconnect, 1)[0]
	if bye.Fields["bytes_in"].(int64) < 1000 || bye.Fields["bytes_out"].(int64) < 1000 {
		t.Errorf("client.disconnect = %+v", bye)
	}
	if dials := w.tunnel.dials(); len(dials) > 0 {
		t.Errorf("tunnels were dialled: %v", dials)
	}
	w.stop()
	if _, open := w.sshd.state(); open != 0 {
		t.Errorf("%d connections are served after the end", open)
	}
}

// TestSSHDWithoutForwarder: a process that cannot serve plain sshd nodes says so.
func TestSSHDWithoutForwarder(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.Forwarder = nil })
	w.policy.node(services.Node{ID: idN1, Name: "n1", Kind: services.NodeSSHD})
	s := newStock(w)
	s.certify("alice")
	s.ssh("n1", "echo hello").want(t, 255, "", `node "n1" runs plain sshd, which this proxy does not reach`)
}

// TestBridgeToSSHDEnds: when the right to be there is gone, so is the connection.
func TestBridgeToSSHDEnds(t *testing.T) {
	w := newWorld(t)
	w.policy.node(services.Node{ID: idN1, Name: "n1", Kind: services.NodeSSHD})
	conn := w.must("alice", pubkey(w.person("alice")))
	raw, err := conn.Dial("tcp", "n1:22")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := raw.Read(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	w.policy.remove("node", idN1)
	var b [1024]byte
	for err == nil {
		_, err = raw.Read(b[:])
	}
	w.stop()
	if _, open := w.sshd.state(); open != 0 {
		t.Errorf("%d connections are served after the end", open)
	}
}

// TestReach is the transport of a visitor's connection to either kind of node.
func TestReach(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	from := netip.MustParseAddrPort("203.0.113.7:4711")
	for _, kind := range []string{services.NodeAccessd, services.NodeSSHD} {
		conn, err := w.server.reach(t.Context(), t.Context(), services.Node{ID: idN1, Name: "n1", Kind: kind}, from)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4)
		if _, err := conn.Read(b); err != nil || string(b) != "SSH-" {
			t.Errorf("%s: it begins with %q, %v", kind, b, err)
		}
		conn.Close()
	}
	if first, _ := w.tunnel.first(); first != from {
		t.Errorf("the node is told the client is at %s", first)
	}
	w.stop()
	if served, open := w.sshd.state(); len(served) != 1 || !strings.HasSuffix(served[0], from.String()) || open != 0 {
		t.Errorf("served %q, of which %d are open", served, open)
	}
}
