package proxy

import (
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// TestStockJoin is "ssh node7@proxy join > key-cert.pub" with a token, then the
// tunnel, then the same command for a newer certificate.
func TestStockJoin(t *testing.T) {
	w := newWorld(t)
	s := newStock(w)
	s.answers("TOKEN")
	r := s.ssh("-l", "node7", "proxy", "join")
	cert, err := parseCertificate(r.stdout, s.public)
	if r.code != 0 || err != nil || cert.KeyId != "node:"+string(idN2) || cert.Serial != 9 || strings.Count(r.stdout, "\n") != 1 {
		t.Fatalf("join: %+v, %v", r, err)
	}
	if words := "accessd: joined as node node7; this certificate for key " + ssh.FingerprintSHA256(s.public) + " is valid until "; !strings.Contains(r.stderr, words) {
		t.Errorf("stderr %q does not say %q", r.stderr, words)
	}
	write(t, s.key+"-cert.pub", []byte(r.stdout))
	s.answers()
	r = s.ssh("-o", "BatchMode=yes", "-l", "node7", "proxy", "join")
	if cert, err = parseCertificate(r.stdout, s.public); r.code != 0 || err != nil || cert.Serial != 10 || !strings.Contains(r.stderr, "accessd: renewed as node node7;") {
		t.Fatalf("renewal: %+v, %v", r, err)
	}
	if n := len(w.audit.all(events.SessionRejected)); n != 0 {
		t.Errorf("%d sessions rejected", n)
	}
	for _, command := range []string{"login", "sh", "join x", ""} {
		s.ssh("-o", "BatchMode=yes", "-l", "node7", "proxy", command).want(t, 3, "", `accessd: error: a node runs nothing here but "join"`, "ssh -N -R")
	}
	s.ssh("-o", "BatchMode=yes", "-s", "-l", "node7", "proxy", "sftp").want(t, 3, "", `a node runs nothing here but "join"`)
	if ev := w.audit.all(events.SessionRejected); len(ev) != 5 || ev[0].Fields["command"] != "login" || ev[0].User != "" {
		t.Errorf("session.rejected = %+v", ev)
	}
	w.policy.remove("node", idN2)
	s.ssh("-o", "BatchMode=yes", "-l", "node7", "proxy", "join").want(t, 255, "", "Permission denied")
}

// TestJoinerIsNobody: a connection that was signed in with a token fetches a
// certificate and nothing else; as a visitor a token is no credential.
func TestJoinerIsNobody(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	_, key := sshca.Generate()
	c := w.must("node7", pubkey(key), answer("TOKEN"))
	nothingBut(t, c)
	if out, err := must(c.NewSession()).Output("join"); err != nil || len(out) == 0 {
		t.Errorf("join: %q, %v", out, err)
	}
	if c, err := w.dial("root@n1", answer("node7", "TOKEN")); err == nil {
		c.Close()
		t.Error("a token let a visitor in")
	}
	if got := w.tunnel.dials(); len(got) > 0 {
		t.Errorf("nodes dialled: %v", got)
	}
}

// nothingBut expects that c can open nothing but sessions and ask for nothing.
func nothingBut(t *testing.T, c *ssh.Client) {
	t.Helper()
	for kind, data := range map[string][]byte{
		sshwire.ChannelAPI: nil, sshwire.ChannelAuthority: sshwire.AuthorityOpen{OriginAddr: "127.0.0.1", OriginPort: 1}.Marshal(),
		sshwire.ChannelDirectTCPIP:       sshwire.DirectTCPIP{Host: "n1", Port: 22, OriginAddr: "127.0.0.1", OriginPort: 1}.Marshal(),
		sshwire.ChannelDirectStreamlocal: sshwire.DirectStreamlocal{Path: "/run/x"}.Marshal(),
		sshwire.ChannelForwardedTCPIP:    nil,
	} {
		if _, _, err := c.OpenChannel(kind, data); err == nil {
			t.Errorf("channel %q was opened", kind)
		}
	}
	for kind, data := range map[string][]byte{
		sshwire.RequestStreamlocalForward: sshwire.StreamlocalForward{Path: "/run/x"}.Marshal(),
		sshwire.RequestTCPIPForward:       sshwire.TCPIPForward{Addr: "localhost", Port: 22}.Marshal(),
	} {
		if ok, _, err := c.SendRequest(kind, true, data); ok || err != nil {
			t.Errorf("request %q: %v, %v", kind, ok, err)
		}
	}
}

// TestStockNode: a node that dials home with stock ssh is the end of a tunnel; no
// service of the cluster answers it, here or at the authority behind another
// connection.
func TestStockNode(t *testing.T) {
	w := newWorld(t)
	node := w.member(sshca.KindNode, idN1, "n1")
	n, _ := w.policy.Node(idN1)
	n.Kind = services.NodeSSHD
	w.policy.node(n)
	c := w.must("n1", pubkey(node))
	if ok, _, err := c.SendRequest(sshwire.RequestTCPIPForward, true, sshwire.TCPIPForward{Addr: "localhost", Port: 22}.Marshal()); !ok || err != nil || w.tunnel.stock != 1 {
		t.Errorf("tcpip-forward: %v, %v; %d forwards of stock ssh", ok, err, w.tunnel.stock)
	}
	for kind, data := range map[string][]byte{
		sshwire.ChannelAPI: nil, sshwire.ChannelAuthority: sshwire.AuthorityOpen{OriginAddr: "127.0.0.1", OriginPort: 1}.Marshal(),
		sshwire.ChannelDirectTCPIP: sshwire.DirectTCPIP{Host: "n1", Port: 22, OriginAddr: "127.0.0.1", OriginPort: 1}.Marshal(),
	} {
		if _, _, err := c.OpenChannel(kind, data); err == nil {
			t.Errorf("channel %q was opened", kind)
		}
	}
	_, key := sshca.Generate()
	nested, err := nest(t, w, w.must(JoinUser, pubkey(key)), "192.0.2.9:99", "n1", node)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := nested.OpenChannel(sshwire.ChannelAPI, nil); err == nil || !strings.Contains(err.Error(), "members") {
		t.Errorf("accessd-api behind a nested connection: %v", err)
	}
}
