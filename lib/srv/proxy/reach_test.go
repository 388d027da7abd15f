package proxy

import (
	"crypto/rand"
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

// TestStockVisitSSHD is "ssh root@n1@proxy" to a plain sshd node: the proxy is
// both the client and the server of the connection in the middle.
func TestStockVisitSSHD(t *testing.T) {
	w := newWorld(t)
	w.policy.node(services.Node{ID: idN1, Name: "n1", Kind: services.NodeSSHD})
	s := newStock(w)
	s.certify("alice")
	s.visit("root@n1", "echo hello").want(t, 0, "hello\n")
	data := make([]byte, 4<<20)
	_, _ = rand.Read(data)
	if r := s.run(data, "ssh", "-F", s.config, "-l", "root@n1", "proxy", "cat"); r.stdout != string(data) {
		t.Errorf("%d bytes back, want %d\n%s", len(r.stdout), len(data), r.stderr)
	}
	decision := w.audit.all(events.AccessDecision)
	served, _ := w.sshd.state()
	if len(served) != 2 || served[0] != "n1 for "+decision[0].AddrRemote {
		t.Errorf("served: %q, want n1 for %s", served, decision[0].AddrRemote)
	}
	w.stop()
	if _, open := w.sshd.state(); open != 0 {
		t.Errorf("%d connections are served after the end", open)
	}
}
