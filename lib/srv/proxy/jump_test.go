package proxy

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// TestStockJump is "ssh -J" to a node by each of its names.
func TestStockJump(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	s := newStock(w)
	s.certify("alice")
	s.ssh("n1", "echo hello").want(t, 0, "hello\n")
	from, order := w.tunnel.first()
	if got, want := fmt.Sprint(order), "[user.login access.decision]"; got != want {
		t.Errorf("events before the node is dialled: %v, want %v", got, want)
	}
	s.ssh("n1", "exit").want(t, 7, "")
	s.ssh(string(idN1), "echo by id").want(t, 0, "by id\n")
	s.ssh("-p", fmt.Sprint(portN1), "localhost", "echo by port").want(t, 0, "by port\n")
	s.ssh("-p", fmt.Sprint(portN1), "n1", "echo both").want(t, 0, "both\n")

	login, decision := w.audit.all(events.UserLogin)[0], w.audit.all(events.AccessDecision)[0]
	if !login.Success || login.User != "alice" || login.Fields["method"] != "certificate" || login.Fields["cert_serial"] != "7" {
		t.Errorf("user.login = %+v", login)
	}
	if !decision.Success || decision.Fields["node_name"] != names.NodeName("n1") || decision.Fields["rule"] != "access.allow[0]" || decision.Fields["target"] != "n1:22" {
		t.Errorf("access.decision = %+v", decision)
	}
	if login.Fields["connection"] != decision.Fields["connection"] || login.AddrRemote != decision.AddrRemote {
		t.Errorf("login and decision are of two connections: %v, %v", login, decision)
	}
	bye := w.audit.wait(events.ClientDisconnect, 1)[0]
	if bye.User != "alice" || bye.Fields["bytes_in"].(int64) < 1000 || bye.Fields["bytes_out"].(int64) < 1000 {
		t.Errorf("client.disconnect = %+v", bye)
	}
	if from.String() != login.AddrRemote {
		t.Errorf("the node is told the client is at %s, want %s", from, login.AddrRemote)
	}
}

// TestStockBulk sends data both ways at once and expects all of it back after
// the client has ended its side.
func TestStockBulk(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	s := newStock(w)
	s.certify("alice")
	data := make([]byte, 16<<20)
	_, _ = rand.Read(data)
	r := s.run(data, "ssh", "-F", s.config, "n1", "cat")
	if r.code != 0 || !bytes.Equal([]byte(r.stdout), data) {
		t.Errorf("exit %d, %d bytes back, want %d\n%s", r.code, len(r.stdout), len(data), r.stderr)
	}
}

// TestStockRefusals is what a person reads who asks for what there is not (the
// SSRF row among it), and what the log and the tunnels hear of it.
func TestStockRefusals(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	w.policy.node(services.Node{ID: idN2, Name: "offline"})
	w.policy.user("bob", "auditor")
	w.policy.user("eve", "nothing")
	s := newStock(w)
	_, port, _ := strings.Cut(w.addr, ":")
	for _, c := range []struct {
		name, user, target, words string
		dialed                    bool
	}{
		{"metadata service", "alice", "169.254.169.254:80", `administratively prohibited: no node named "169.254.169.254" that you may reach`, false},
		{"own port", "alice", "127.0.0.1:" + port, `no node named "127.0.0.1" that you may reach`, false},
		{"loopback", "alice", "localhost:22", `no node named "localhost" that you may reach`, false},
		{"IPv6 loopback", "alice", "[::1]:22", `no node named "::1" that you may reach`, false},
		{"DNS name", "alice", "example.com:443", `no node named "example.com" that you may reach`, false},
		{"Unix path", "alice", "/run/docker.sock:1", `no node named "/run/docker.sock" that you may reach`, false},
		{"other port of a node", "alice", "n1:80", `no node named "n1" that you may reach`, false},
		{"unknown node", "alice", "ghost:22", `no node named "ghost" that you may reach`, false},
		{"node not allowed", "eve", "n1:22", `no node named "n1" that you may reach`, false},
		{"node not allowed to who lists nodes", "bob", "n1:22", `node "n1": `, false},
		{"node away", "alice", "offline:22", `connect failed: node "offline" is not connected`, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.audit.reset()
			dialed := len(w.tunnel.dials())
			s.certify(names.UserName(c.user), func(r *sshca.UserRequest) { r.Roles = []names.RoleName{"access", "auditor"} })
			s.ssh("-l", c.user, "-W", c.target, "proxy").want(t, 255, "", c.words)
			if got := len(w.tunnel.dials()) > dialed; got != c.dialed {
				t.Errorf("a node was dialled: %v, want %v", got, c.dialed)
			}
			ev := w.audit.all(events.AccessDecision)
			if len(ev) != 1 || ev[0].Success != c.dialed || ev[0].User != names.UserName(c.user) {
				t.Errorf("access.decision = %+v", ev)
			}
		})
	}
}

// TestAuditBeforeEffect: what cannot be written down is not allowed.
func TestAuditBeforeEffect(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	s := newStock(w)
	s.certify("alice")
	conn := w.must("alice", pubkey(w.person("alice")))
	w.audit.breakWith(fault.New(fault.Unavailable, "disk full"))
	if _, err := conn.Dial("tcp", "n1:22"); err == nil || !strings.Contains(err.Error(), "audit log cannot be written") {
		t.Errorf("a connection to a node that cannot be recorded: %v", err)
	}
	s.ssh("-o", "BatchMode=yes", "n1", "echo x").want(t, 255, "", "the audit log cannot be written", "Permission denied")
	if got := w.tunnel.dials(); len(got) > 0 {
		t.Errorf("nodes dialled: %v", got)
	}
}

// TestPolicyChange is F26: what the policy takes away ends at once, and nothing
// new begins on the connection.
func TestPolicyChange(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(w *world)
		conn   bool // whether the whole connection ends
	}{
		{"user removed", func(w *world) { w.policy.remove("user", "alice") }, true},
		{"role taken from the user", func(w *world) { w.policy.user("alice", "auditor") }, false},
		{"node removed", func(w *world) { w.policy.remove("node", idN1) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.connectNode()
			conn := w.must("alice", pubkey(w.person("alice")))
			first, err := conn.Dial("tcp", "n1:22")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := first.Read(make([]byte, 4)); err != nil {
				t.Fatalf("before the change: %v", err)
			}
			start := time.Now()
			c.change(w)
			for err = nil; err == nil; _, err = first.Read(make([]byte, 1<<10)) {
			}
			if took := time.Since(start); took > sayTime+time.Second {
				t.Errorf("the bridge ended after %v, want at most %v", took, sayTime+time.Second)
			}
			_, err = conn.Dial("tcp", "n1:22")
			if err == nil {
				t.Error("a second bridge was allowed")
			}
			if c.conn {
				bye := w.audit.wait(events.ClientDisconnect, 1)[0]
				if got := fmt.Sprint(bye.Fields["reason"]); !strings.Contains(got, "user_gone") {
					t.Errorf("client.disconnect gives the reason %q", got)
				}
			} else if !strings.Contains(err.Error(), "no node named") && !strings.Contains(err.Error(), "no role of alice reaches") {
				t.Errorf("second bridge: %v", err)
			}
		})
	}
}

// TestExpiredDuringConnection is F24: nothing new begins with a certificate that
// has ended.
func TestExpiredDuringConnection(t *testing.T) {
	var late atomic.Bool
	w := newWorld(t, func(w *world) {
		w.cfg.Now = func() time.Time {
			if late.Load() {
				return time.Now().Add(2 * time.Hour)
			}
			return time.Now()
		}
	})
	w.connectNode()
	conn := w.must("alice", pubkey(w.person("alice")))
	if c, err := conn.Dial("tcp", "n1:22"); err != nil {
		t.Fatal(err)
	} else {
		defer c.Close()
	}
	late.Store(true)
	if _, err := conn.Dial("tcp", "n1:22"); err == nil || !strings.Contains(err.Error(), "your certificate expired at") {
		t.Errorf("after the certificate's end: %v", err)
	}
}

// TestBounds: one user's connections and bridges are bounded, together and
// whatever the connection; what is refused is refused with a reason.
func TestBounds(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.MaxPerUser = 2 })
	w.connectNode()
	w.policy.user("bob", "access")
	one, two := w.must("alice", pubkey(w.person("alice"))), w.must("alice", pubkey(w.person("alice")))
	if _, err := one.Dial("tcp", "n1:22"); err != nil {
		t.Fatal(err)
	}
	if _, err := two.Dial("tcp", "n1:22"); err != nil {
		t.Fatal(err)
	}
	if _, err := two.Dial("tcp", "n1:22"); err == nil || !strings.Contains(err.Error(), "you have 2 connections to nodes already") {
		t.Errorf("third bridge: %v", err)
	}
	if c, err := w.dial("alice", pubkey(w.person("alice"))); err == nil {
		if _, err := c.Dial("tcp", "n1:22"); err == nil {
			t.Error("third connection was served")
		}
		c.Close()
	}
	if _, err := w.must("bob", pubkey(w.person("bob"))).Dial("tcp", "n1:22"); err != nil {
		t.Errorf("another user: %v", err)
	}
	one.Close() // and with it its bridge
	w.audit.wait(events.ClientDisconnect, 2)
	if _, err := two.Dial("tcp", "n1:22"); err != nil {
		t.Errorf("a bridge that ended still counts: %v", err)
	}
}

// TestDrain: a proxy that stops takes nothing new, lets bridges finish, keeps
// members' channels as long as there are any, and then does not wait.
func TestDrain(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.Grace = time.Minute })
	w.connectNode()
	node := w.must("n2", pubkey(w.member(sshca.KindNode, idN2, "n2")))
	api, reqs, err := node.OpenChannel(sshwire.ChannelAPI, nil)
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(reqs)
	conn := w.must("alice", pubkey(w.person("alice")))
	bridge, err := conn.Dial("tcp", "n1:22")
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { w.stop(); close(stopped) }()
	for err == nil { // until the stop is known
		var more net.Conn
		if more, err = conn.Dial("tcp", "n1:22"); err == nil {
			more.Close()
		}
	}
	if !strings.Contains(err.Error(), "stopping") {
		t.Errorf("a new bridge while draining: %v", err)
	}
	if _, err := bridge.Read(make([]byte, 1)); err != nil {
		t.Errorf("the bridge has ended: %v", err)
	}
	if _, err := api.SendRequest("x", true, nil); err != nil {
		t.Errorf("the member's channel has ended: %v", err)
	}
	bridge.Close()
	select {
	case <-stopped:
	case <-time.After(20 * time.Second):
		t.Error("nothing is left, and the proxy waits")
	}
}
