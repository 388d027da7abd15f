package proxy

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

func TestParseVisit(t *testing.T) {
	for _, c := range []struct {
		in    string
		login names.Login
		place string
	}{
		{"root@n1", "root", "n1"},
		{"root:n1", "root", "n1"},
		{"root+n1", "root", "n1"},
		{"root@localhost:20001", "root", "localhost:20001"},
		{"root@env=prod,role=db", "root", "env=prod,role=db"},
		{"a.b-c$@n1", "a.b-c$", "n1"},
		{"root@../../etc", "root", "../../etc"},
		{"alice", "", ""},
		{"root@", "", ""},
		{"@n1", "", ""},
		{"+join", "", ""},
		{"+sessions", "", ""},
		{"a b@n1", "", ""},
		{"-l@n1", "", ""},
		{"root\x00@n1", "", ""},
		{"root@" + strings.Repeat("n", maxVisit), "", ""},
	} {
		v, ok := parseVisit(c.in)
		if ok != (c.place != "") || ok && (v.login != c.login || v.place != c.place) {
			t.Errorf("parseVisit(%.40q) = %q, %v; want %q at %q", c.in, v, ok, c.login, c.place)
		}
	}
}

// connectSSHD makes node n1 known, with a stock sshd behind its tunnel that
// trusts the user authority and shows a host certificate for n1.
func (w *world) connectSSHD(lines ...string) {
	w.t.Helper()
	dir := w.t.(*testing.T).TempDir()
	private, signer := sshca.Generate()
	key := writeKey(w.t, dir, "host", private)
	cert, err := sshca.MintHost(w.ca[sshca.TypeHost], sshca.HostRequest{
		Key: signer.PublicKey(), KeyID: "n1", Principals: []string{"n1"}, Serial: 1,
		ValidAfter: time.Now().Add(-time.Minute), ValidBefore: time.Now().Add(time.Hour),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	write(w.t, key+"-cert.pub", []byte(authorizedKey(cert)+"\n"))
	write(w.t, filepath.Join(dir, "ca"), []byte(authorizedKey(w.ca[sshca.TypeUser].PublicKey())+"\n"))
	config := filepath.Join(dir, "sshd_config")
	write(w.t, config, fmt.Appendf(nil, `HostKey %[1]s
HostCertificate %[1]s-cert.pub
TrustedUserCAKeys %[2]s/ca
AuthorizedPrincipalsFile none
StrictModes no
UsePAM no
PidFile none
PermitRootLogin yes
StreamLocalBindUnlink yes
X11Forwarding yes
X11UseLocalhost yes
AcceptEnv LANG LC_* GREETING
%[3]s
`, key, dir, strings.Join(lines, "\n")))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { inetd(w.t, c, "/usr/sbin/sshd", "-i", "-e", "-f", config) })
		}
	})
	w.t.Cleanup(func() { ln.Close(); w.stop(); wg.Wait() })
	w.policy.node(services.Node{ID: idN1, Name: "n1", GatewayPort: portN1, Labels: names.Labels{"env": "dev"}})
	w.tunnel.mu.Lock()
	defer w.tunnel.mu.Unlock()
	w.tunnel.nodes[idN1] = ln.Addr().String()
}

// inetd runs a server of one connection.
func inetd(t testing.TB, c net.Conn, name string, args ...string) {
	t.Helper()
	f, err := c.(*net.TCPConn).File()
	c.Close()
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdin, cmd.Stdout = f, f
	_ = cmd.Run()
}

// visit runs stock ssh as a visitor.
func (s *stock) visit(user string, args ...string) result {
	return s.ssh(append([]string{"-l", user, "proxy"}, args...)...)
}

// TestStockVisit is "ssh root@n1@proxy" with a certificate, and its other forms:
// streams, their ends, and exit statuses are those of the node.
func TestStockVisit(t *testing.T) {
	w := newWorld(t)
	w.connectSSHD()
	s := newStock(w)
	s.certify("alice")
	if r := s.run(nil, "ssh", "-F", s.config, "root@n1@proxy", "echo hello; echo words >&2; exit 7"); r.code != 7 || r.stdout != "hello\n" || !strings.Contains(r.stderr, "words\n") {
		t.Fatalf("%+v", r)
	}
	from, order := w.tunnel.first()
	if got, want := fmt.Sprint(order), "[user.login access.decision]"; got != want {
		t.Errorf("events before the node is dialled: %v, want %v", got, want)
	}
	login, decision := w.audit.all(events.UserLogin)[0], w.audit.all(events.AccessDecision)[0]
	if login.User != "alice" || login.Login != "root" || decision.User != "alice" || decision.Login != "root" || !decision.Success || decision.Fields["node_id"] != idN1 {
		t.Errorf("user.login = %+v\naccess.decision = %+v", login, decision)
	}
	if from.String() != login.AddrRemote {
		t.Errorf("the node is told the client is at %s, want %s", from, login.AddrRemote)
	}
	for _, user := range []string{"root:n1", "root+n1", "root@N1", "root@" + string(idN1), fmt.Sprintf("root@localhost:%d", portN1), "root@env=dev"} {
		s.visit(user, "echo x").want(t, 0, "x\n")
	}
	if got := fmt.Sprint(w.login.delegations()[:2]); got != "[root for alice root for alice]" {
		t.Errorf("delegated: %v", got)
	}
	s.visit("root@n1", "kill -TERM $$").want(t, 255, "")
	s.visit("root@n1", "exec 1>&- ; sleep 0.3; exit 3").want(t, 3, "")
	if r := s.run([]byte("in"), "ssh", "-F", s.config, "-l", "root@n1", "proxy", "cat; echo done"); r.stdout != "indone\n" {
		t.Errorf("standard input and its end: %+v", r)
	}
	r := s.ssh("-tt", "-o", "SetEnv=GREETING=hi", "-l", "root@n1", "proxy", "stty size; echo $GREETING; tty -s && echo tty")
	if !strings.Contains(r.stdout, "hi\r\ntty\r\n") {
		t.Errorf("with a terminal: %+v", r)
	}
}

// TestStockVisitBulk sends data both ways at once.
func TestStockVisitBulk(t *testing.T) {
	w := newWorld(t)
	w.connectSSHD()
	s := newStock(w)
	s.certify("alice")
	data := make([]byte, 16<<20)
	_, _ = rand.Read(data)
	r := s.run(data, "ssh", "-F", s.config, "-l", "root@n1", "proxy", "cat")
	if r.code != 0 || !bytes.Equal([]byte(r.stdout), data) {
		t.Errorf("exit %d, %d bytes back, want %d\n%s", r.code, len(r.stdout), len(data), r.stderr)
	}
	bye := w.audit.wait(events.ClientDisconnect, 1)[0]
	if bye.Fields["bytes_in"].(int64) < int64(len(data)) || bye.Fields["bytes_out"].(int64) < int64(len(data)) {
		t.Errorf("client.disconnect = %+v", bye)
	}
}

// TestStockVisitForwards: forwards of every kind cross.
func TestStockVisitForwards(t *testing.T) {
	w := newWorld(t)
	w.connectSSHD()
	s := newStock(w)
	s.certify("alice")
	echo := newEcho(t)
	dir := t.TempDir()
	sock, back, port := filepath.Join(dir, "echo.sock"), filepath.Join(dir, "back.sock"), freePort(t)
	echoOn(t, "unix", sock)

	master := filepath.Join(dir, "master")
	run := func(args ...string) result {
		return s.ssh(append([]string{"-S", master, "-l", "root@n1", "proxy"}, args...)...)
	}
	r := s.ssh("-M", "-S", master, "-f", "-N", "-o", "ExitOnForwardFailure=yes", "-l", "root@n1",
		"-L", fmt.Sprintf("%d:%s", port, echo), "-L", filepath.Join(dir, "local.sock")+":"+sock,
		"-R", back+":"+echo, "proxy")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	defer s.ssh("-S", master, "-O", "exit", "proxy")
	for _, to := range [][2]string{{"tcp", fmt.Sprintf("127.0.0.1:%d", port)}, {"unix", filepath.Join(dir, "local.sock")}, {"unix", back}} {
		if got := talk(t, to[0], to[1]); got != "ping" {
			t.Errorf("through %v: %q", to, got)
		}
	}
	r = s.ssh("-S", master, "-O", "forward", "-R", "0:"+echo, "proxy")
	chosen := strings.TrimSpace(r.stdout)
	if got := talk(t, "tcp", "127.0.0.1:"+chosen); got != "ping" {
		t.Errorf("through port %q that the node has chosen: %q\n%+v", chosen, got, r)
	}
	run("echo further").want(t, 0, "further\n")
	if r := s.ssh("-S", master, "-O", "cancel", "-R", back+":"+echo, "proxy"); r.code != 0 {
		t.Errorf("cancel: %+v", r)
	}
	for talk(t, "unix", back) == "ping" { // the client does not wait for an answer
		run("true").want(t, 0, "")
	}
	if got := len(w.audit.all(events.AccessDecision)); got != 1 {
		t.Errorf("%d decisions, want one for the connection", got)
	}
}

// TestStockVisitAgent: the person's agent answers on the node while asked for,
// and only then.
func TestStockVisitAgent(t *testing.T) {
	w := newWorld(t)
	w.connectSSHD()
	s := newStock(w)
	s.certify("alice")
	s.startAgent()
	if r := s.run(nil, "ssh-add", "-q", s.key); r.code != 0 {
		t.Fatal(r.stderr)
	}
	r := s.ssh("-A", "-l", "root@n1", "proxy", "ssh-add -l")
	if r.code != 0 || !strings.Contains(r.stdout, ssh.FingerprintSHA256(s.public)) {
		t.Errorf("with -A: %+v", r)
	}
	s.ssh("-a", "-l", "root@n1", "proxy", "echo $SSH_AUTH_SOCK").want(t, 0, "\n")
}

// TestVisitorsSignIn is the way of clients that know no certificates: an enrolled
// key, or questions that begin with who it is.
func TestVisitorsSignIn(t *testing.T) {
	w := newWorld(t)
	w.connectSSHD()
	s := newStock(w)

	t.Run("questions with a key", func(t *testing.T) {
		s.answers("alice", "right", "123456")
		r := s.visit("root@n1", "echo in")
		r.want(t, 0, "in\n")
		if want := "(root@n1@127.0.0.1) User: \n(root@n1@127.0.0.1) Password or invite: \n(root@n1@127.0.0.1) Code: \n"; r.prompts != want {
			t.Errorf("asked %q, want %q", r.prompts, want)
		}
	})
	t.Run("questions without a key", func(t *testing.T) {
		c := w.must("root@n1", answer("alice", "right", "123456"))
		out, err := must(c.NewSession()).Output("echo in")
		if err != nil || string(out) != "in\n" {
			t.Errorf("output %q, %v", out, err)
		}
		for _, req := range w.login.all() {
			if req.GetUser() != "alice" || req.GetPublicKey() == authorizedKey(s.public) {
				t.Errorf("a sign-in for user %q and key %q", req.GetUser(), req.GetPublicKey())
			}
		}
	})
	t.Run("a login that the person has not", func(t *testing.T) {
		s.answers("alice", "right", "123456")
		s.visit("daemon@n1", "echo in").want(t, 255, "", `accessd: error: your certificate is not for the login "daemon"`)
	})
	t.Run("a person has to prove a key first", func(t *testing.T) {
		if c, err := w.dial("alice", answer("right", "123456")); err == nil {
			c.Close()
			t.Error("let in without a key")
		}
	})
	t.Run("enrolled key", func(t *testing.T) {
		begun, _ := w.login.counts()
		w.enrol("alice", s.public)
		s.answers()
		s.visit("root@n1", "echo in").want(t, 0, "in\n")
		if after, _ := w.login.counts(); after != begun {
			t.Errorf("%d sign-ins begun", after-begun)
		}
		ev := w.audit.all(events.AccessDecision)
		if last := ev[len(ev)-1]; last.User != "alice" || last.Login != "root" {
			t.Errorf("access.decision = %+v", last)
		}
	})
	t.Run("the enrolled key is not the first", func(t *testing.T) {
		private, _ := sshca.Generate()
		s.run(nil, "ssh", "-F", s.config, "-i", writeKey(t, t.TempDir(), "other", private), "-l", "root@n1", "proxy", "echo in").want(t, 0, "in\n")
	})
	t.Run("an enrolled key is no way in elsewhere", func(t *testing.T) {
		s.answers("wrong", "1", "wrong", "2", "wrong", "3")
		s.ssh("-l", "alice", "-W", "n1:22", "proxy").want(t, 255, "", "Permission denied")
	})
	t.Run("a key whose person may not", func(t *testing.T) {
		w.policy.user("alice", "access")
		w.policy.user("bob", "access")
		w.enrol("bob", s.public)
		s.answers("", "right", "1", "alice", "right", "123456")
		r := s.visit("root@n1", "echo in")
		r.want(t, 0, "in\n")
		if !strings.Contains(r.prompts, "User: ") {
			t.Errorf("asked %q", r.prompts)
		}
	})
}

// TestVisitorRefusals is what a visitor reads who may not go there, and that
// neither the node nor the authority hears of it.
func TestVisitorRefusals(t *testing.T) {
	w := newWorld(t)
	w.connectSSHD()
	w.policy.node(services.Node{ID: idN2, Name: "offline"})
	w.policy.node(services.Node{ID: idProxy, Name: "n3", Labels: names.Labels{"env": "dev"}})
	w.policy.user("bob", "auditor")
	w.policy.user("eve", "nothing")
	s := newStock(w)
	for _, c := range []struct{ name, user, visit, words string }{
		{"unknown node", "alice", "root@ghost", `accessd: error: no node named "ghost" that you may reach`},
		{"no node's name", "alice", "root@169.254.169.254", `accessd: error: no node named "169.254.169.254" that you may reach`},
		{"own address", "alice", "root@127.0.0.1", `accessd: error: no node named "127.0.0.1" that you may reach`},
		{"not allowed", "eve", "root@n1", `accessd: error: no node named "n1" that you may reach`},
		{"not allowed to who lists nodes", "bob", "root@n1", `accessd: error: node "n1": `},
		{"several", "alice", "root@env=dev", `accessd: error: that is more than one node: n1, n3`},
		{"away", "alice", "root@offline", `accessd: error: node "offline" is not connected`},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.audit.reset()
			s.certify(names.UserName(c.user))
			s.visit(c.visit, "echo in").want(t, 255, "", c.words)
			if r := s.ssh("-tt", "-l", c.visit, "proxy"); r.code != 255 || !strings.Contains(r.stdout+r.stderr, c.words+"\r\n") && !strings.Contains(r.stdout+r.stderr, c.words) {
				t.Errorf("with a terminal: %+v", r)
			}
			s.ssh("-l", c.visit, "-W", "localhost:80", "proxy").want(t, 255, "", strings.TrimPrefix(c.words, "accessd: error: "))
			s.ssh("-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:1", "-l", c.visit, "proxy").want(t, 255, "", "remote port forwarding failed")
			ev := w.audit.all(events.AccessDecision)
			if len(ev) != 4 || ev[0].Success != (c.name == "away") || ev[0].User != names.UserName(c.user) || ev[0].Login != "root" {
				t.Errorf("access.decision = %+v", ev)
			}
		})
	}
	if got := w.login.delegations(); len(got) != 4 {
		t.Errorf("delegated: %v, want those for the node that is away", got)
	}
	t.Run("login not in the certificate", func(t *testing.T) {
		s.certify("alice")
		w.audit.reset()
		s.ssh("-o", "PreferredAuthentications=publickey", "-l", "daemon@n1", "proxy", "x").want(t, 255, "", "Permission denied")
		if ev := w.audit.all(events.AuthRejected); len(ev) != 1 || ev[0].Fields["refusal"] != sshca.CodeWrongPrincipal {
			t.Errorf("auth.rejected = %+v", ev)
		}
	})
	t.Run("certificate from another address", func(t *testing.T) {
		s.certify("alice", func(r *sshca.UserRequest) {
			r.SourceAddresses = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
		})
		s.ssh("-o", "PreferredAuthentications=publickey", "-l", "root@n1", "proxy", "x").want(t, 255, "", "Permission denied")
	})
	t.Run("member's certificate", func(t *testing.T) {
		node := w.member(sshca.KindNode, "55555555-5555-4555-8555-555555555555", "root")
		if c, err := w.dial("root@n1", pubkey(node)); err == nil {
			c.Close()
			t.Error("a member was let in as a visitor")
		}
	})
}

// TestVisitorsKeyRemoved: a key that is enrolled no more ends what it has opened.
func TestVisitorsKeyRemoved(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	_, key := sshca.Generate()
	w.enrol("alice", key.PublicKey())
	conn := w.must("root@n1", pubkey(key))
	if out, err := must(conn.NewSession()).Output("echo in"); err != nil || string(out) != "in\n" {
		t.Fatalf("%q, %v", out, err)
	}
	w.policy.user("alice", "access") // without the key
	_ = conn.Wait()
	if bye := w.audit.wait(events.ClientDisconnect, 1)[0]; !strings.Contains(fmt.Sprint(bye.Fields["reason"]), string(codeKeyGone)) {
		t.Errorf("client.disconnect = %+v", bye)
	}
	if c, err := w.dial("root@n1", pubkey(key)); err == nil {
		c.Close()
		t.Error("let in with a key that is enrolled no more")
	}
}

// TestVisitorsAreBounded: visitors use places to type and ways to nodes as others
// do.
func TestVisitorsAreBounded(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.MaxPerUser = 3 })
	w.connectNode()
	key := w.person("alice")
	for range 2 {
		if err := must(w.must("root@n1", pubkey(key)).NewSession()).Run("echo"); err != nil {
			t.Fatal(err)
		}
	}
	jump := w.must("alice", pubkey(key))
	if _, err := jump.Dial("tcp", "n1:22"); err != nil {
		t.Error(err)
	}
	if _, err := jump.Dial("tcp", "n1:22"); err == nil || !strings.Contains(err.Error(), "you have 3 connections to nodes already") {
		t.Errorf("a fourth way to a node: %v", err)
	}
	if c, err := w.dial("root@n1", pubkey(key)); err == nil { // it is let in and cut
		if _, err := c.NewSession(); err == nil {
			t.Error("a fourth connection")
		}
	}
	w.offend.fill()
	if c, err := w.dial("root@n1", answer("alice", "right", "123456")); err == nil {
		c.Close()
		t.Error("a sign-in without a place to type")
	}
	if begun, _ := w.login.counts(); begun > 0 {
		t.Errorf("%d sign-ins begun", begun)
	}
}

// TestVisitSameAnswers: nothing a visitor without a credential sees tells nodes,
// logins or users that exist from others.
func TestVisitSameAnswers(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	s := newStock(w)
	see := func(visit, user string) string {
		s.answers(user, "right", "wrong", user, "right", "wrong")
		r := s.ssh("-o", "NumberOfPasswordPrompts=2", "-l", visit, "proxy", "echo x")
		return strings.ReplaceAll(strings.Join([]string{r.stdout, r.stderr, r.prompts}, "|"), visit, "VISIT")
	}
	known := see("root@n1", "alice")
	for _, c := range [][2]string{{"root@ghost", "alice"}, {"nobody@n1", "alice"}, {"root@n1", "nobody"}, {"root@n1", "a b"}, {"root@n1", "\x1b[2J"}, {"root@../..", "root"}} {
		if got := see(c[0], c[1]); got != known {
			t.Errorf("visit %q as %q sees %q\nwant %q", c[0], c[1], got, known)
		}
	}
	if n := len(w.audit.all(events.AccessDecision)); n > 0 {
		t.Errorf("%d decisions about nobody", n)
	}
}

// TestVisitImpostor: what answers for a node without being it is not talked to.
func TestVisitImpostor(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	w.policy.node(services.Node{ID: idN2, Name: "n2"})
	w.tunnel.mu.Lock()
	w.tunnel.nodes[idN2] = w.tunnel.nodes[idN1] // shows a certificate for n1
	w.tunnel.mu.Unlock()
	s := newStock(w)
	s.certify("alice")
	s.visit("root@n2", "echo in").want(t, 255, "", `accessd: error: what answers for node "n2" is not that node`)
}

// TestVisitEnds: a visitor goes when the right to be there does, and reads why.
func TestVisitEnds(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	for _, c := range []struct {
		name   string
		change func()
		words  string
	}{
		{"role", func() { w.policy.user("alice", "auditor") }, `node "n1" may not be reached any more`},
		{"node", func() { w.policy.remove("node", idN1) }, "was removed"},
	} {
		w.connectNode()
		w.policy.user("alice", "access")
		conn := w.must("root@n1", pubkey(w.person("alice")))
		session := must(conn.NewSession())
		var stderr bytes.Buffer
		session.Stderr = &stderr
		in := must(session.StdinPipe())
		out := must(session.StdoutPipe())
		if err := session.Start("cat"); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(in, "there")
		if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		c.change()
		err := session.Wait()
		exit, ok := errors.AsType[*ssh.ExitError](err)
		if !ok || exit.ExitStatus() != 255 || !strings.Contains(stderr.String(), c.words) {
			t.Errorf("%s: %v, stderr %q", c.name, err, &stderr)
		}
		if err := conn.Wait(); err == nil {
			t.Errorf("%s: the connection ended in order", c.name)
		}
	}
	w.stop()
	if n := w.server.live.users; len(n) > 0 {
		t.Errorf("still counted: %v", n)
	}
}

// TestVisitTriesAgain: a client that keeps its connection gets to a node that has
// come back.
func TestVisitTriesAgain(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	w.tunnel.mu.Lock()
	addr := w.tunnel.nodes[idN1]
	delete(w.tunnel.nodes, idN1)
	w.tunnel.mu.Unlock()
	conn := w.must("root@n1", pubkey(w.person("alice")))
	if out, err := must(conn.NewSession()).CombinedOutput("echo in"); err == nil || !strings.Contains(string(out), "is not connected") {
		t.Errorf("while it is away: %q, %v", out, err)
	}
	w.tunnel.mu.Lock()
	w.tunnel.nodes[idN1] = addr
	w.tunnel.mu.Unlock()
	var wg sync.WaitGroup
	for range 8 { // of which one opens the passage
		wg.Go(func() {
			if out, err := must(conn.NewSession()).Output("echo in"); err != nil || string(out) != "in\n" {
				t.Errorf("when it is back: %q, %v", out, err)
			}
		})
	}
	wg.Wait()
	if got := len(w.tunnel.dials()); got != 2 {
		t.Errorf("the node was dialled %d times, want 2", got)
	}
}

// TestVisitLosesNode: a node that goes away takes its visitors' connections along.
func TestVisitLosesNode(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	conn := w.must("root@n1", pubkey(w.person("alice")))
	session := must(conn.NewSession())
	var stderr bytes.Buffer
	session.Stderr = &stderr
	if err := session.Run("vanish"); err == nil || !strings.Contains(stderr.String(), `the connection to node "n1" was lost`) {
		t.Errorf("session: %v, stderr %q", err, &stderr)
	}
	_ = conn.Wait()
	if _, err := w.audit.wait(events.ClientDisconnect, 1)[0].Fields["reason"].(string); !err {
		t.Error("client.disconnect has no reason")
	}
}

// TestVisitMaliciousNode: a node gets no channel, no request and no word through
// that the client has not asked for.
func TestVisitMaliciousNode(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	conn := w.must("root@n1", pubkey(w.person("alice")))
	var opened sync.Map
	for _, kind := range hostileKinds {
		chans := conn.HandleChannelOpen(kind)
		go func() {
			for nc := range chans {
				opened.Store(nc.ChannelType(), true)
				_ = nc.Reject(ssh.Prohibited, "")
			}
		}()
	}
	out, err := must(conn.NewSession()).Output("attack")
	if got, want := string(out), strings.Repeat("refused\n", 2*len(hostileKinds)); err != nil || got != want {
		t.Errorf("the node reports %q, %v; want %q", got, err, want)
	}
	opened.Range(func(kind, _ any) bool {
		t.Errorf("the node has opened %v", kind)
		return true
	})
	for _, payload := range []string{"", "\x00\x00\x00", "\x00\x00\x00\x07\x00"} { // v0.53 of x/crypto died of these
		err := must(conn.NewSession()).Run(fmt.Sprintf("status %x", payload))
		if _, missing := errors.AsType[*ssh.ExitMissingError](err); !missing {
			t.Errorf("exit-status of %d bytes: %v", len(payload), err)
		}
	}
	if err := must(conn.NewSession()).Run("exit"); err == nil || !strings.Contains(err.Error(), "status 7") {
		t.Errorf("afterwards: %v", err)
	}
}

// hostileKinds are channels a node has no business to open unasked.
var hostileKinds = []string{
	sshwire.ChannelSession, sshwire.ChannelDirectTCPIP, sshwire.ChannelForwardedTCPIP, sshwire.ChannelForwardedStreamlocal,
	sshwire.ChannelAgent, sshwire.ChannelX11, sshwire.ChannelAPI, sshwire.ChannelAuthority,
}

// TestVisitorReachesNothingElse: a visitor's connection is a way to one node; of
// the proxy itself it can ask nothing.
func TestVisitorReachesNothingElse(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	conn := w.must("root@n1", pubkey(w.person("alice")))
	for _, kind := range []string{sshwire.ChannelAPI, sshwire.ChannelAuthority, sshwire.ChannelX11, sshwire.ChannelAgent, sshwire.ChannelForwardedTCPIP, "tun@openssh.com"} {
		if _, _, err := conn.OpenChannel(kind, nil); err == nil {
			t.Errorf("a channel %q was opened", kind)
		}
	}
	for _, kind := range []string{"hostkeys-prove-00@openssh.com", "tun@openssh.com"} {
		if ok, _, err := conn.SendRequest(kind, true, nil); ok || err != nil {
			t.Errorf("request %q: %v, %v", kind, ok, err)
		}
	}
	if err := must(conn.NewSession()).Run("login"); err != nil { // the node's word, not the proxy's
		t.Errorf("login at the node: %v", err)
	}
	if got := w.tunnel.dials(); len(got) != 1 {
		t.Errorf("nodes dialled: %v, want one", got)
	}
}

// TestVisitorIsNoMember: a visitor's login is not taken for anybody's name.
func TestVisitorIsNoMember(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	w.policy.user("root", "access") // alice's login, and somebody's name
	key := w.person("alice")
	if c, err := w.dial("root", pubkey(key)); err == nil {
		c.Close()
		t.Error("alice was let in as the user root")
	}
	w.must("root@n1", pubkey(key))
	for _, ev := range w.audit.all(events.UserLogin) {
		if ev.User != "alice" {
			t.Errorf("user.login = %+v", ev)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// newEcho returns the address of a server that repeats what it hears.
func newEcho(t *testing.T) string {
	t.Helper()
	return echoOn(t, "tcp", "127.0.0.1:0")
}

func echoOn(t *testing.T, network, address string) string {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _, _ = io.Copy(c, c); c.Close() })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// talk says ping to an echo, ends its side, and returns what comes back.
func talk(t *testing.T, network, address string) string {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprint(c, "ping")
	_ = c.(interface{ CloseWrite() error }).CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(got)
}

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}
