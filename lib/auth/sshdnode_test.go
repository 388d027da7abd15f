package auth

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// member returns whom a member certificate identifies, called name.
func (w *world) memberOf(line, name string) (*sshca.Identity, error) {
	w.t.Helper()
	return w.cfg.Keys.Trust().CheckMember(parseCert(w.t, line), sshca.Peer{SSHUser: name, Addr: clientAddr.Addr(), Now: w.clock.Now()})
}

// TestStockSSHJoins: whoever types a good token is a node from then on, called
// what it signed in as, with the key it has proven; and it is nothing else.
func TestStockSSHJoins(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	token := w.token(&accessdv1.AddTokenRequest{Role: "node", Labels: map[string]string{"env": "lab"}})
	d := w.desk(p, "node7")
	w.rec.take()
	done, err := d.answer(d.begin(), " "+token+"\n")
	if err != nil {
		t.Fatal(err)
	}
	if !done.GetDone() || done.GetGrant() != "" {
		t.Errorf("answer = %v, want the end and no grant", done)
	}
	id, err := w.memberOf(done.GetCertificate(), "node7")
	if err != nil {
		t.Fatal(err)
	}
	if id.Kind != sshca.KindNode || id.Fingerprint != ssh.FingerprintSHA256(d.key.PublicKey()) {
		t.Errorf("identity = %+v, want a node's with the proven key", id)
	}
	if want := w.clock.Now().Add(SSHDNodeTTL); id.ValidBefore.Sub(want).Abs() > time.Second {
		t.Errorf("ends at %v, want %v", id.ValidBefore, want)
	}
	n, err := w.cfg.Store.Node(t.Context(), id.Member)
	if err != nil || n.Name != "node7" || n.Kind != services.NodeSSHD || n.Labels["env"] != "lab" || n.GatewayPort == 0 || n.Address != "" || len(n.HostKeys) != 0 {
		t.Errorf("node = %+v, %v", n, err)
	}
	evs := w.rec.take()
	if len(evs) != 2 || evs[0].Name != events.CertCreate || evs[1].Name != events.NodeJoin || !evs[1].Success ||
		evs[1].AddrRemote != d.client || evs[1].Fields["token_id"] != token[:tokenIDSize] || evs[1].Fields["name"] != "node7" {
		t.Errorf("events = %+v, want a certificate and a join", evs)
	}
	if _, err := w.cfg.Keys.Trust().CheckUser(parseCert(t, done.GetCertificate()), sshca.Peer{SSHUser: "node7", Now: w.clock.Now()}); !fault.Is(err, fault.Denied) {
		t.Errorf("the certificate signs a person in: %v", err)
	}

	// It asks nothing of the authority itself.
	self := w.as(rpc.Peer{Identity: id, Addr: clientAddr})
	_, err = call(t, self.Describe, &accessdv1.DescribeRequest{Labels: map[string]string{"env": "lab", "team": "blue"}})
	wantFault(t, err, fault.Denied, "permission denied")
	_, err = call(t, self.Renew, &accessdv1.RenewRequest{})
	wantFault(t, err, fault.Denied, "permission denied")

	// The token is used up; who comes again with it reads what a wrong password reads.
	again := w.desk(p, "node8")
	_, err = again.signIn(token, "000000")
	wantFault(t, err, fault.Denied, "permission denied")
}

// TestBadTokensReadAsWrongPasswords: until a token was right, the conversation
// tells nobody which tokens, nodes or people there are.
func TestBadTokensReadAsWrongPasswords(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	w.addUser("alice", "access")
	w.addSSHD("node7", nil)
	good := w.token(&accessdv1.AddTokenRequest{Role: "node"})
	expired := w.token(&accessdv1.AddTokenRequest{Role: "node"})
	w.clock.advance(2 * time.Hour)
	for _, user := range []string{"alice", "node7", "nobody"} {
		for name, token := range map[string]string{
			"wrong secret": good[:tokenIDSize+1] + names.NewSecret(), "no such token": names.NewSecret()[:tokenIDSize] + "." + names.NewSecret(), "expired": expired,
		} {
			d := w.desk(p, user)
			d.client = "192.0.2.1:1"
			w.clock.advance(time.Hour) // no waiting for the tries before
			w.rec.take()
			s, err := d.answer(d.begin(), token)
			if err != nil || prompts(s) != "Code: false" || s.GetInstruction() != "" {
				t.Fatalf("%s, %s: %v, %v, want to be asked for the code", user, name, s, err)
			}
			_, err = d.answer(s, "000000")
			wantFault(t, err, fault.Denied, "permission denied")
			evs := w.rec.take()
			if len(evs) != 1 || evs[0].Name != events.TokenRejected || evs[0].Fields["token_id"] != token[:tokenIDSize] || strings.Contains(stringOf(evs), token[tokenIDSize+1:]) {
				t.Errorf("%s, %s: events %+v, want one token.rejected without the secret", user, name, evs)
			}
		}
	}
	if _, err := w.cfg.Store.Token(t.Context(), good[:tokenIDSize]); err != nil {
		t.Errorf("a guess used the token up: %v", err)
	}
}

// TestTokensBindWhoJoinsByStockSSH: a token gives what it says and a name its
// owner keeps: F08, and THREATS, "a joined node asks for another's name".
func TestTokensBindWhoJoinsByStockSSH(t *testing.T) {
	w := newWorld(t, plan{})
	p, accessd := w.join(sshca.KindProxy, "edge-1"), w.join(sshca.KindNode, "web-3")
	dialled := must(t, w.admin().AddNode, &accessdv1.AddNodeRequest{Name: "web-2", Address: "192.0.2.1", HostKeys: []string{keyLine(proxyKey())}}).GetNode()
	registered := w.addSSHD("web-1", map[string]string{"env": "prod"})
	first := w.desk(p, "node7")
	if _, err := first.answer(first.begin(), w.token(&accessdv1.AddTokenRequest{Role: "node"})); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		user string
		req  *accessdv1.AddTokenRequest
		kind fault.Kind
	}{
		"a proxy's token":         {"node8", &accessdv1.AddTokenRequest{Role: "proxy"}, fault.Denied},
		"another name":            {"node8", &accessdv1.AddTokenRequest{Role: "node", Names: []string{"node9"}}, fault.Denied},
		"a node with another key": {"node7", &accessdv1.AddTokenRequest{Role: "node", Names: []string{"node7"}}, fault.Conflict},
		"an accessd node":         {accessd.name, &accessdv1.AddTokenRequest{Role: "node"}, fault.Conflict},
		"a proxy":                 {p.name, &accessdv1.AddTokenRequest{Role: "node"}, fault.Conflict},
		"a node that is dialled":  {dialled.GetName(), &accessdv1.AddTokenRequest{Role: "node", Names: []string{"web-2"}}, fault.Conflict},
		"a registered node":       {registered.GetName(), &accessdv1.AddTokenRequest{Role: "node"}, fault.Denied},
		"the authority":           {"accessd-authority", &accessdv1.AddTokenRequest{Role: "node"}, fault.BadInput},
		"no node name":            {"Node_8", &accessdv1.AddTokenRequest{Role: "node"}, fault.BadInput},
	} {
		token := w.token(c.req)
		d := w.desk(p, c.user)
		w.rec.take()
		if _, err := d.answer(d.begin(), token); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
		if evs := named(w.rec.take(), events.TokenRejected); len(evs) != 1 || evs[0].Fields["token_id"] != token[:tokenIDSize] {
			t.Errorf("%s: events %+v, want one token.rejected", name, evs)
		}
		if left, err := w.cfg.Store.Token(t.Context(), token[:tokenIDSize]); err != nil || left.UsesLeft != 1 {
			t.Errorf("%s: %+v, %v, want the token unused", name, left, err)
		}
		w.clock.advance(time.Hour)
	}

	// The registered node is for the token that names it, and keeps what was said.
	d := w.desk(p, "web-1")
	done, err := d.answer(d.begin(), w.token(&accessdv1.AddTokenRequest{Role: "node", Names: []string{"web-1"}, Labels: map[string]string{"rack": "2"}}))
	if err != nil {
		t.Fatal(err)
	}
	id, err := w.memberOf(done.GetCertificate(), "web-1")
	if err != nil || string(id.Member) != registered.GetId() {
		t.Fatalf("identity = %+v, %v, want the registered node's", id, err)
	}
	n, err := w.cfg.Store.Node(t.Context(), id.Member)
	if err != nil || n.Labels["env"] != "prod" || n.Labels["rack"] != "2" || n.GatewayPort != int(registered.GetGatewayPort()) {
		t.Errorf("node = %+v, %v, want its labels, the token's and its port", n, err)
	}
}

// TestStockSSHRejoins: the same key is the same node; another is it only when
// the old one was removed.
func TestStockSSHRejoins(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	d := w.desk(p, "node7")
	joined := func(d *desk) *sshca.Identity {
		t.Helper()
		done, err := d.answer(d.begin(), w.token(&accessdv1.AddTokenRequest{Role: "node"}))
		if err != nil {
			t.Fatal(err)
		}
		id, err := w.memberOf(done.GetCertificate(), "node7")
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	first := joined(d)
	hostKey := proxyKey()
	must(t, p.PinHostKey, &accessdv1.PinHostKeyRequest{Node: string(first.Member), HostKey: keyLine(hostKey)})
	before, err := w.cfg.Store.Node(t.Context(), first.Member)
	if err != nil {
		t.Fatal(err)
	}
	if again := joined(d); again.Member != first.Member || again.Serial == first.Serial {
		t.Errorf("identity = %+v, want %s's next certificate", again, first.Member)
	}
	after, err := w.cfg.Store.Node(t.Context(), first.Member)
	if err != nil || after.GatewayPort != before.GatewayPort || !after.Joined.Equal(before.Joined) || !slices.Equal(after.HostKeys, []string{keyLine(hostKey)}) {
		t.Errorf("node = %+v, %v, want %+v", after, err, before)
	}
	must(t, w.admin().RemoveNode, &accessdv1.RemoveNodeRequest{Node: "node7"})
	if other := joined(w.desk(p, "node7")); other.Member == first.Member {
		t.Error("another machine has the id of a removed one")
	}
}

func TestRenewNode(t *testing.T) {
	w := newWorld(t, plan{})
	p, accessd := w.join(sshca.KindProxy, "edge-1"), w.join(sshca.KindNode, "web-3")
	d := w.desk(p, "node7")
	done, err := d.answer(d.begin(), w.token(&accessdv1.AddTokenRequest{Role: "node"}))
	if err != nil {
		t.Fatal(err)
	}
	line := done.GetCertificate()
	renew := func(line string) (*accessdv1.RenewNodeResponse, error) {
		return call(t, p.RenewNode, &accessdv1.RenewNodeRequest{Certificate: line, Client: clientAddr.String()})
	}
	w.clock.advance(20 * 24 * time.Hour)
	w.rec.take()
	res, err := renew(line)
	if err != nil {
		t.Fatal(err)
	}
	old, err := w.memberOf(line, "node7")
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := w.memberOf(res.GetCertificate(), "node7")
	if err != nil || fresh.Member != old.Member || fresh.Fingerprint != old.Fingerprint || !fresh.ValidBefore.After(old.ValidBefore) {
		t.Errorf("identity = %+v, %v, want %+v for longer", fresh, err, old)
	}
	if evs := w.rec.take(); len(evs) != 1 || evs[0].Name != events.CertCreate || evs[0].Fields["method"] != "renew" || evs[0].Fields["node_id"] != string(old.Member) {
		t.Errorf("events = %+v", evs)
	}
	w.clock.advance(20 * 24 * time.Hour)
	w.addUser("alice", "access")
	forged, _ := strangerCert(t, parseCert(t, res.GetCertificate()))
	refused := map[string]string{
		"an expired one": line, "an accessd node's": accessd.joined.GetCertificates().GetMember(),
		"a proxy's": p.joined.GetCertificates().GetMember(), "a person's": w.sign("alice"), "a stranger's": forged,
	}
	check := func() {
		t.Helper()
		for name, line := range refused {
			w.rec.take()
			_, err := renew(line)
			wantFault(t, err, fault.Denied, "permission denied")
			if evs := w.rec.take(); len(evs) != 1 || evs[0].Name != events.AuthRejected {
				t.Errorf("%s: events %+v, want one auth.rejected", name, evs)
			}
		}
	}
	check()
	must(t, w.admin().RemoveNode, &accessdv1.RemoveNodeRequest{Node: "node7"})
	refused = map[string]string{"a removed node's": res.GetCertificate()}
	check()
	another := w.desk(p, "node7")
	if _, err := another.answer(another.begin(), w.token(&accessdv1.AddTokenRequest{Role: "node"})); err != nil {
		t.Fatal(err)
	}
	check()
}

// serveSSH answers connections with a stock sshd that has these host keys, and
// perhaps host certificates, until the test ends.
func serveSSH(t *testing.T, dir string, kinds ...string) string {
	t.Helper()
	var config strings.Builder
	for _, kind := range kinds {
		fmt.Fprintf(&config, "HostKey %s/%s\n", dir, kind)
		if _, err := os.Stat(filepath.Join(dir, kind+"-cert.pub")); err == nil {
			fmt.Fprintf(&config, "HostCertificate %s/%s-cert.pub\n", dir, kind)
		}
	}
	config.WriteString("UsePAM no\nPidFile none\nAuthorizedKeysFile none\n")
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(config.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd's privilege separation directory
			t.Fatal(err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			socket, err := conn.(*net.TCPConn).File()
			conn.Close()
			if err != nil {
				t.Error(err)
				return
			}
			cmd := exec.Command("/usr/sbin/sshd", "-i", "-f", filepath.Join(dir, "config"))
			cmd.Stdin, cmd.Stdout = socket, socket
			if err := cmd.Start(); err != nil {
				t.Errorf("this test needs OpenSSH's server: %v", err)
			}
			socket.Close()
			wg.Go(func() { _ = cmd.Wait() }) // it is cut in the middle of its handshake
		}
	})
	return ln.Addr().String()
}

// hostKeyFile makes a host key of a kind in dir and returns its public half.
func hostKeyFile(t *testing.T, dir, kind string) string {
	t.Helper()
	path := filepath.Join(dir, kind)
	if out, err := exec.Command("ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", path).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	line, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(line))
}

// TestAddNodeFindsTheHostKeys: without host keys the authority asks the address,
// a stock sshd here, and expects what it shows.
func TestAddNodeFindsTheHostKeys(t *testing.T) {
	w := newWorld(t, plan{})
	dir := t.TempDir()
	var want []string
	for _, kind := range []string{"ed25519", "ecdsa"} {
		want = append(want, fingerprint(hostKeyFile(t, dir, kind)))
	}
	address := serveSSH(t, dir, "ed25519", "ecdsa")
	w.rec.take()
	res := must(t, w.admin().AddNode, &accessdv1.AddNodeRequest{Name: "web-1", Address: address, Labels: map[string]string{"env": "dev"}})
	if !slices.Equal(res.GetFingerprints(), want) || res.GetNode().GetAddress() != address || res.GetNode().GetKind() != services.NodeSSHD || res.GetNode().GetGatewayPort() == 0 {
		t.Errorf("AddNode = %v, want the keys %v", res, want)
	}
	evs := w.rec.take()
	if len(evs) != 1 || evs[0].Name != events.NodeCreate || !evs[0].Success || evs[0].Fields["address"] != address || evs[0].Fields["name"] != "web-1" {
		t.Errorf("events = %+v", evs)
	}
	if list := must(t, w.admin().ListNodes, &accessdv1.ListNodesRequest{}).GetNodes(); len(list) != 1 || !slices.Equal(list[0].GetHostKeys(), want) {
		t.Errorf("nodes = %v", list)
	}
	_, err := call(t, w.admin().AddNode, &accessdv1.AddNodeRequest{Name: "web-1", Address: address})
	wantFault(t, err, fault.Conflict, `the name "web-1" is taken`)
}

// TestAddNodeTrustsItsHostCertificate: a server that shows a host certificate of
// the cluster for its name needs no pin; one for another name is worth nothing.
func TestAddNodeTrustsItsHostCertificate(t *testing.T) {
	w := newWorld(t, plan{})
	dir := t.TempDir()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(hostKeyFile(t, dir, "ed25519")))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := w.signHost(t.Context(), hostCert{node: services.Node{ID: names.NewNodeID(), Name: "web-1"}, key: key, ttl: time.Hour, method: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ed25519-cert.pub"), ssh.MarshalAuthorizedKey(cert), 0o600); err != nil {
		t.Fatal(err)
	}
	address := serveSSH(t, dir, "ed25519")
	for name, want := range map[string]int{"web-1": 0, "web-2": 1} {
		if got := must(t, w.admin().AddNode, &accessdv1.AddNodeRequest{Name: name, Address: address}).GetFingerprints(); len(got) != want {
			t.Errorf("%s: pinned %v, want %d", name, got, want)
		}
	}
}

func TestAddNodeRefuses(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := ln.Addr().String()
	ln.Close()
	key := keyLine(proxyKey())
	for name, c := range map[string]struct {
		req  *accessdv1.AddNodeRequest
		kind fault.Kind
	}{
		"no name":           {&accessdv1.AddNodeRequest{}, fault.BadInput},
		"an address":        {&accessdv1.AddNodeRequest{Name: "10.0.0.1"}, fault.BadInput},
		"a reserved name":   {&accessdv1.AddNodeRequest{Name: "accessd-authority"}, fault.BadInput},
		"a proxy's name":    {&accessdv1.AddNodeRequest{Name: p.name}, fault.Conflict},
		"a bad port":        {&accessdv1.AddNodeRequest{Name: "a", Address: "h:70000", HostKeys: []string{key}}, fault.BadInput},
		"a path":            {&accessdv1.AddNodeRequest{Name: "a", Address: "/run/x", HostKeys: []string{key}}, fault.BadInput},
		"everywhere":        {&accessdv1.AddNodeRequest{Name: "a", Address: "0.0.0.0", HostKeys: []string{key}}, fault.BadInput},
		"a bad label":       {&accessdv1.AddNodeRequest{Name: "a", Labels: map[string]string{"a b": "c"}}, fault.BadInput},
		"a bad key":         {&accessdv1.AddNodeRequest{Name: "a", HostKeys: []string{"x"}}, fault.BadInput},
		"a certificate":     {&accessdv1.AddNodeRequest{Name: "a", HostKeys: []string{p.joined.GetCertificates().GetHost()}}, fault.BadInput},
		"too many keys":     {&accessdv1.AddNodeRequest{Name: "a", HostKeys: slices.Repeat([]string{key}, maxHostKeys+1)}, fault.BadInput},
		"nobody is at home": {&accessdv1.AddNodeRequest{Name: "a", Address: closed}, fault.Unavailable},
	} {
		if _, err := call(t, w.admin().AddNode, c.req); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
	}
	w.rec.breakFor(events.NodeCreate)
	if _, err := call(t, w.admin().AddNode, &accessdv1.AddNodeRequest{Name: "a"}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("without a record: %v, want unavailable", err)
	}
	if nodes := must(t, w.admin().ListNodes, &accessdv1.ListNodesRequest{}).GetNodes(); len(nodes) != 0 {
		t.Errorf("nodes = %v, want none", nodes)
	}
	w.rec.breakFor()
	if got := must(t, w.admin().AddNode, &accessdv1.AddNodeRequest{Name: "a", Address: "Host.Example", HostKeys: []string{key, key}}); got.GetNode().GetAddress() != "host.example:22" || len(got.GetFingerprints()) != 1 {
		t.Errorf("AddNode = %v, want port 22 and one key", got)
	}
}

// TestSilentServerEndsTheScan: an address where nobody speaks costs the
// administrator a bounded time, which ends with the call, too.
func TestSilentServerEndsTheScan(t *testing.T) {
	w := newWorld(t, plan{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		conn, err := ln.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		cancel() // it was dialled and hears nothing
		_, _ = conn.Read(make([]byte, 1<<10))
	})
	if _, err := w.admin().AddNode(ctx, connect.NewRequest(&accessdv1.AddNodeRequest{Name: "a", Address: ln.Addr().String()})); err == nil {
		t.Error("a silent server became a node")
	}
}

func TestSignHostKey(t *testing.T) {
	w := newWorld(t, plan{})
	p, accessd := w.join(sshca.KindProxy, "edge-1"), w.join(sshca.KindNode, "web-3")
	n, key := w.addSSHD("web-1", nil), proxyKey()
	w.rec.take()
	res := must(t, w.admin().SignHostKey, &accessdv1.SignHostKeyRequest{Node: "web-1", PublicKey: keyLine(key)})
	if err := w.cfg.Keys.Trust().CheckHost(parseCert(t, res.GetCertificate()), "web-1", w.clock.Now().Add(364*24*time.Hour)); err != nil {
		t.Errorf("after 364 days: %v", err)
	}
	evs := w.rec.take()
	if len(evs) != 2 || evs[0].Name != events.CertCreate || evs[0].Fields["node_id"] != n.GetId() || evs[1].Name != events.NodeHostKey {
		t.Errorf("events = %+v, want the certificate and the key", evs)
	}
	must(t, w.admin().SignHostKey, &accessdv1.SignHostKeyRequest{Node: n.GetId(), PublicKey: keyLine(key)}) // again, for another year
	stored, err := w.cfg.Store.Node(t.Context(), names.NodeID(n.GetId()))
	if err != nil || !slices.Equal(stored.HostKeys, []string{keyLine(key)}) {
		t.Errorf("host keys = %v, %v, want the one that was signed", stored.HostKeys, err)
	}
	// From now on no proxy says another.
	if _, err := call(t, p.PinHostKey, &accessdv1.PinHostKeyRequest{Node: n.GetId(), HostKey: keyLine(proxyKey())}); !fault.Is(err, fault.Denied) {
		t.Errorf("a proxy pins another key: %v", err)
	}
	for _, node := range []string{accessd.name, p.name} {
		if _, err := call(t, w.admin().SignHostKey, &accessdv1.SignHostKeyRequest{Node: node, PublicKey: keyLine(key)}); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: %v, want bad input", node, err)
		}
	}
	if _, err := call(t, w.admin().SignHostKey, &accessdv1.SignHostKeyRequest{Node: "nobody", PublicKey: keyLine(key)}); !fault.Is(err, fault.NotFound) {
		t.Errorf("nobody: %v, want not found", err)
	}
}

// TestProxiesTellOfPlainNodesOnly: THREATS, "a node reads or writes for another".
// A proxy runs sessions on plain sshd nodes; for all others their own word
// counts.
func TestProxiesTellOfPlainNodesOnly(t *testing.T) {
	w := newWorld(t, plan{})
	p, accessd, other := w.join(sshca.KindProxy, "edge-1"), w.join(sshca.KindNode, "web-3"), w.join(sshca.KindNode, "web-4")
	plain := w.addSSHD("web-1", nil)
	await(t, w, func() bool { _, ok := w.policy.Node(accessd.id); return ok })
	about := func(m *member, name events.Name, code, node string) *accessdv1.AppendEventsRequest {
		ev := m.own(w, name, code)
		if ev.Fields == nil {
			ev.Fields = map[string]any{}
		}
		ev.Fields["node_id"] = node
		return encode(t, ev)
	}
	for _, c := range []struct {
		who  *member
		name events.Name
		code string
		node string
		ok   bool
	}{
		{p, events.SessionStart, "A3000I", plain.GetId(), true},
		{p, events.SFTP, "A3007I", plain.GetId(), true},
		{p, events.Port, "A3006I", plain.GetId(), true},
		{p, events.NodeHostKey, "A4010I", plain.GetId(), true},
		{p, events.SessionStart, "A3000I", string(p.id), true},
		{p, events.SessionStart, "A3000I", string(names.NewNodeID()), true}, // removed meanwhile
		{p, events.AccessDecision, "A2000I", string(accessd.id), true},
		{p, events.SessionStart, "A3000I", string(accessd.id), false},
		{p, events.SCP, "A3008I", string(accessd.id), false},
		{p, events.NodeHostKey, "A4010I", string(accessd.id), false},
		{p, events.NodeCreate, "A4009I", plain.GetId(), false},
		{p, events.UserKeyCreate, "A5009I", plain.GetId(), false},
		{accessd, events.SFTP, "A3007I", string(accessd.id), true},
		{accessd, events.AccountCreate, "A3011I", string(accessd.id), true},
		{accessd, events.SFTP, "A3007I", string(other.id), false},
		{accessd, events.SessionStart, "A3000I", plain.GetId(), false},
		{accessd, events.AccessDecision, "A2000I", string(other.id), false},
		{accessd, events.NodeHostKey, "A4010I", string(accessd.id), false},
		{accessd, events.ClockJump, "A4011W", "", true},
	} {
		_, err := call(t, c.who.AppendEvents, about(c.who, c.name, c.code, c.node))
		if (err == nil) != c.ok || err != nil && !fault.Is(err, fault.Denied) {
			t.Errorf("%s writes %s about %s: %v, want allowed %v", c.who.name, c.name, c.node, err, c.ok)
		}
	}
}

// TestSessionsOnPlainNodesAreKilledAtTheirProxy: the proxy that runs a session
// reports it and is told to end it; nobody reports another's.
func TestSessionsOnPlainNodesAreKilledAtTheirProxy(t *testing.T) {
	w := newWorld(t, plan{})
	p, accessd, other := w.join(sshca.KindProxy, "edge-1"), w.join(sshca.KindNode, "web-3"), w.join(sshca.KindNode, "web-4")
	plain := w.addSSHD("web-1", nil)
	await(t, w, func() bool { _, ok := w.policy.Node(other.id); return ok })
	on := func(m *member, node string) *accessdv1.ReportSessionsRequest {
		r := m.report(names.NewSessionID())
		r.Sessions[0].Node = node
		return r
	}
	for _, m := range []*member{p, accessd} {
		if _, err := call(t, m.ReportSessions, on(m, string(other.id))); !fault.Is(err, fault.Denied) {
			t.Errorf("%s reports another's session: %v, want a denial", m.name, err)
		}
	}
	if _, err := call(t, accessd.ReportSessions, on(accessd, plain.GetId())); !fault.Is(err, fault.Denied) {
		t.Errorf("a node reports a session on a plain one: %v, want a denial", err)
	}
	r := on(p, plain.GetId())
	r.Sessions = append(r.Sessions, on(p, string(names.NewNodeID())).GetSessions()...) // its node was removed
	must(t, p.ReportSessions, r)
	list := must(t, w.admin().ListSessions, &accessdv1.ListSessionsRequest{}).GetSessions()
	if len(list) != 1 || list[0].GetNodeId() != plain.GetId() || list[0].GetNodeName() != "web-1" {
		t.Fatalf("sessions = %v, want the one on web-1", list)
	}
	must(t, w.admin().KillSession, &accessdv1.KillSessionRequest{Id: list[0].GetId()})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := p.Instructions(ctx, connect.NewRequest(&accessdv1.InstructionsRequest{}))
	if err != nil || !s.Receive() || s.Msg().GetKillSession().GetSession() != list[0].GetId() {
		t.Errorf("the proxy was not told: %v", err)
	}
	cancel()
	s.Close()
}
