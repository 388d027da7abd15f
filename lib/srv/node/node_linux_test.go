package node

import (
	"bufio"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/sshca"
)

func pemBytes(b *pem.Block) []byte { return pem.EncodeToMemory(b) }

// The main job: a person with the stock client and a good certificate.
func TestStockLogin(t *testing.T) {
	w := newWorld(t)
	c := w.credential(nil)
	login := me(t)
	if got, want := w.ssh(c, login, "id -un; echo $SSH_CONNECTION | cut -d' ' -f1,3; exit 3"), (result{3, login + "\n127.0.0.1 127.0.0.1\n", ""}); got != want {
		t.Errorf("command: %+v, want %+v", got, want)
	}
	if got := w.ssh(c, login, "-tt", "tty"); got.code != 0 || !strings.HasPrefix(got.stdout, "/dev/pts/") {
		t.Errorf("terminal: %+v", got)
	}
	start := w.await(events.SessionStart, nil)
	if start.User != "alice" || start.Login != names.Login(login) || start.Fields["rule"] != "developer.allow[0]" || start.Fields["cert_serial"] != "4711" {
		t.Errorf("session.start %+v", start)
	}
	end := w.await(events.SessionEnd, func(e events.Event) bool { return e.SID == start.SID })
	if end.Fields["exit_code"] != int64(3) {
		t.Errorf("session.end %+v", end)
	}
	in := w.await(events.UserLogin, nil)
	out := w.await(events.ClientDisconnect, nil)
	if in.User != "alice" || in.Fields["connection"] != start.Fields["connection"] || out.Fields["connection"] != in.Fields["connection"] {
		t.Errorf("user.login %+v and client.disconnect %+v, want the session's connection %v", in, out, start.Fields["connection"])
	}
	if n := w.count(events.AuthRejected); n != 0 {
		t.Errorf("%d events auth.rejected, want none", n)
	}
}

// F25: each bad certificate is refused by the node alone, whatever a proxy has
// made of it; the person reads "Permission denied" and the log has the reason.
func TestF25BadCertificates(t *testing.T) {
	w := newWorld(t)
	login := me(t)
	user := func(change func(*sshca.UserRequest)) func(ssh.PublicKey) *ssh.Certificate {
		return func(key ssh.PublicKey) *ssh.Certificate {
			r := w.request(key)
			change(&r)
			cert, err := sshca.MintUser(w.cas[sshca.TypeUser], r)
			if err != nil {
				t.Fatal(err)
			}
			return cert
		}
	}
	// forged changes a good certificate and signs it again.
	forged := func(ca sshca.Type, change func(*ssh.Certificate)) func(ssh.PublicKey) *ssh.Certificate {
		return func(key ssh.PublicKey) *ssh.Certificate {
			cert := w.mint(key)
			change(cert)
			if err := cert.SignCert(randReader{}, w.cas[ca]); err != nil {
				t.Fatal(err)
			}
			return cert
		}
	}
	nothing := func(*ssh.Certificate) {}
	tests := []struct {
		name   string
		make   func(ssh.PublicKey) *ssh.Certificate
		login  string
		code   sshca.Code
		serial string
	}{
		{"expired", user(func(r *sshca.UserRequest) {
			r.ValidAfter, r.ValidBefore = w.now.Add(-2*time.Hour), w.now.Add(-time.Hour)
		}), login, sshca.CodeExpired, "4711"},
		{"not yet valid", user(func(r *sshca.UserRequest) { r.ValidAfter = w.now.Add(10 * time.Minute) }), login, sshca.CodeNotYetValid, "4711"},
		{"another login", user(func(r *sshca.UserRequest) { r.Logins = []names.Login{"deploy"} }), login, sshca.CodeWrongPrincipal, "4711"},
		{"login is a prefix", user(func(r *sshca.UserRequest) { r.Logins = []names.Login{names.Login(login + "2")} }), login, sshca.CodeWrongPrincipal, "4711"},
		{"from elsewhere", user(func(r *sshca.UserRequest) { r.SourceAddresses = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }), login, sshca.CodeSourceAddress, "4711"},
		{"host authority", forged(sshca.TypeHost, nothing), login, sshca.CodeWrongCA, "4711"},
		{"node authority", forged(sshca.TypeNode, nothing), login, sshca.CodeWrongCA, "4711"},
		{"sshd authority", forged(sshca.TypeSSHD, nothing), login, sshca.CodeWrongCA, "4711"},
		{"host certificate", forged(sshca.TypeUser, func(c *ssh.Certificate) { c.CertType = ssh.HostCert }), login, sshca.CodeHostAsUser, "4711"},
		{"no principals", forged(sshca.TypeUser, func(c *ssh.Certificate) { c.ValidPrincipals = nil }), login, sshca.CodeEmptyPrincipals, "4711"},
		{"wildcard principal", forged(sshca.TypeUser, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"user:alice", "*"} }), login, sshca.CodeBadPrincipal, "4711"},
		{"unknown critical option", forged(sshca.TypeUser, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "true"} }), login, sshca.CodeCriticalOption, "4711"},
		{"tampered", func(key ssh.PublicKey) *ssh.Certificate {
			c := w.mint(key)
			c.Serial++
			return c
		}, login, sshca.CodeBadSignature, "4712"},
		{"none", func(ssh.PublicKey) *ssh.Certificate { return nil }, login, sshca.CodeNotCertificate, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := w.credential(test.make)
			if test.code == sshca.CodeHostAsUser || test.code == sshca.CodeBadSignature { // which the stock client does not offer
				if _, err := w.dial(c, test.login); err == nil || strings.Contains(err.Error(), "banner") {
					t.Errorf("dial = %v, want a refusal without a word", err)
				}
			} else if got, want := w.ssh(c, test.login, "id"), (result{255, "", fmt.Sprintf("%s@127.0.0.1: Permission denied (publickey).\r\n", test.login)}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
			fingerprint := ssh.FingerprintSHA256(c.signer.PublicKey())
			e := w.await(events.AuthRejected, func(e events.Event) bool {
				return e.Fields["fingerprint"] == fingerprint && e.Fields["refusal"] == string(test.code)
			})
			if serial, _ := e.Fields["cert_serial"].(string); serial != test.serial {
				t.Errorf("auth.rejected has serial %q, want %q", serial, test.serial)
			}
			if test.serial != "" && e.Fields["key_id"] != "alice" || e.Fields["reason"] == "" || e.Login != names.Login(test.login) {
				t.Errorf("auth.rejected %+v", e)
			}
		})
	}
	if n := w.count(events.UserLogin); n != 0 {
		t.Errorf("%d events user.login, want none", n)
	}
}

type randReader struct{}

func (randReader) Read(p []byte) (int, error) { return len(p), nil }

// Whoever holds a good certificate reads why it is of no use here.
func TestStockRefusedWithReason(t *testing.T) {
	tests := []struct {
		name   string
		set    func(w *world)
		login  string
		reason string
	}{
		{"no role for this node", func(w *world) { w.putUser("viewer") }, "", ""},
		{"user is gone", func(w *world) {
			w.apply(&accessdv1.PolicyUpdate{Remove: []*accessdv1.ResourceKey{{Kind: "user", Name: "alice"}}})
		}, "", `there is no user "alice" any more`},
		{"no such account", func(*world) {}, "no-such-login", `there is no account "no-such-login" on this node`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			test.set(w)
			login := test.login
			if login == "" {
				login = me(t)
			}
			got := w.ssh(w.credential(nil), login, "id")
			if got.code != 255 || got.stdout != "" || !strings.HasPrefix(got.stderr, "accessd: "+test.reason) ||
				!strings.HasSuffix(got.stderr, "Permission denied (publickey).\r\n") {
				t.Errorf("got %+v, want the reason %q and a refusal", got, test.reason)
			}
			if test.login != "" {
				w.await(events.SessionRejected, nil)
				return
			}
			if e := w.await(events.AccessDecision, nil); e.Success || e.User != "alice" || e.Fields["node_name"] != "n1" {
				t.Errorf("access.decision %+v", e)
			}
		})
	}
}

// Whatever is refused is decided, recorded, and said in words where the protocol
// has room for them.
func TestStockForwardings(t *testing.T) {
	w := newWorld(t)
	w.putUser("forwarder")
	c, login := w.credential(nil), me(t)
	got := w.ssh(c, login, "-W", "127.0.0.1:22")
	const own = "administratively prohibited: a forward to the node's own sshd would go past the rules; no rule names it\r\n"
	if got.code != 255 || !strings.Contains(got.stderr, own) {
		t.Errorf("-W: %+v, want %q", got, own)
	}
	if e := w.await(events.SessionRejected, nil); e.Fields["target"] != "127.0.0.1:22" || e.Fields["kind"] != "direct-tcpip" {
		t.Errorf("session.rejected %+v", e)
	}
	got = w.ssh(c, login, "-o", "ExitOnForwardFailure=yes", "-N", "-R", "9:localhost:22")
	if got.code != 255 || !strings.Contains(got.stderr, "remote port forwarding failed for listen port 9") {
		t.Errorf("-R: %+v", got)
	}
	e := w.await(events.AccessDecision, func(e events.Event) bool { return e.Fields["action"] == "forward:remote" })
	if e.Success || e.Fields["target"] != "localhost:9" {
		t.Errorf("access.decision %+v, want a refusal", e)
	}
	got = w.ssh(c, login, "id") // the role forwards and does nothing else
	if got.code != 255 || !strings.HasPrefix(got.stderr, "accessd: ") || strings.Contains(got.stderr, "Permission denied") {
		t.Errorf("command: %+v, want a reason after the login", got)
	}
	got = w.ssh(c, login, "-X", "-A", "id")
	if got.code != 255 {
		t.Errorf("-X -A: %+v", got)
	}
	w.await(events.AccessDecision, func(e events.Event) bool {
		return e.Fields["action"] == "forward:agent" || e.Fields["action"] == "exec"
	})
}

// F26: a role is taken away while a session runs.
func TestF26RoleRemoved(t *testing.T) {
	w := newWorld(t)
	cmd := w.command(w.credential(nil), me(t), "echo ready; exec sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatal(line, err)
	}
	if list := w.server.Sessions().List(); len(list) != 1 || list[0].User != "alice" {
		t.Errorf("List = %+v", list)
	}
	begun := time.Now()
	w.putUser("viewer")
	_ = cmd.Wait()
	if took := time.Since(begun); took > time.Second {
		t.Errorf("the session ended after %v, want a second at most", took)
	}
	if cmd.ProcessState.ExitCode() != 255 || !strings.HasPrefix(stderr.String(), "accessd: session ended: the policy no longer allows this session: ") {
		t.Errorf("code %d, stderr %q", cmd.ProcessState.ExitCode(), stderr.String())
	}
	if e := w.await(events.SessionEnd, nil); e.Fields["reason"] == nil {
		t.Errorf("session.end %+v, want a reason", e)
	}
}

// F05: the spool cannot be written: nobody gets in, and they read why. The file
// system is one that is full for a while.
func TestF05SpoolCannotBeWritten(t *testing.T) {
	w := newWorld(t)
	c, login := w.credential(nil), me(t)
	client, err := w.dial(c, login)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := w.emitter.Close(); err != nil {
		t.Fatal(err)
	}
	got := w.ssh(c, login, "id")
	if want := "accessd: the audit log cannot be written, so nobody can log in right now\r\n"; got.code != 255 || !strings.HasPrefix(got.stderr, want) {
		t.Errorf("a new login: %+v, want %q", got, want)
	}
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.CombinedOutput("touch " + filepath.Join(w.dir, "effect"))
	if want := "accessd: the audit log cannot be written, so no session can begin\n"; err == nil || string(out) != want {
		t.Errorf("a new session: %v, output %q, want %q", err, out, want)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "effect")); err == nil {
		t.Error("the command ran all the same")
	}
}

// The proxy attests the client's address, and that one counts: for the log, for
// source-address and for SSH_CONNECTION.
func TestAttestedAddress(t *testing.T) {
	w := newWorld(t)
	pinned := func(key ssh.PublicKey) *ssh.Certificate {
		r := w.request(key)
		r.SourceAddresses = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
		cert, err := sshca.MintUser(w.cas[sshca.TypeUser], r)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	c := w.credential(pinned)
	signer, err := ssh.NewCertSigner(c.cert, c.signer)
	if err != nil {
		t.Fatal(err)
	}
	for remote, want := range map[string]bool{"203.0.113.7:50122": true, "[::ffff:203.0.113.7]:50122": true, "198.51.100.1:50122": false, "127.0.0.1:1": false} {
		here, there := tcpPair(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = w.server.Serve(t.Context(), attested{there, netip.MustParseAddrPort(remote)})
		}()
		conn, channels, requests, err := ssh.NewClientConn(here, "n1", &ssh.ClientConfig{
			User: me(t), Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), //nolint:forbidigo // the test's own
		})
		if (err == nil) != want {
			t.Errorf("from %s: %v, want success %v", remote, err, want)
		}
		if err == nil {
			client := ssh.NewClient(conn, channels, requests)
			s, err := client.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			if out, _ := s.Output("echo $SSH_CLIENT"); !strings.HasPrefix(string(out), "203.0.113.7 50122 ") {
				t.Errorf("SSH_CLIENT %q, want the attested address", out)
			}
			_ = client.Close()
		}
		_ = here.Close()
		<-done
	}
	if e := w.await(events.SessionStart, nil); e.AddrRemote != "203.0.113.7:50122" {
		t.Errorf("addr.remote %q", e.AddrRemote)
	}
}

func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// F02, F03: the node is killed in the middle of a session and starts again: the
// session has one end, marked recovered.
func TestF02SessionsOfAKilledNodeAreEnded(t *testing.T) {
	w := newWorld(t)
	client, err := w.dial(w.credential(nil), me(t))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, _ := s.StdoutPipe()
	if err := s.Start("echo ready; exec sleep 1000"); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	sid := w.server.Sessions().List()[0].ID
	start := w.await(events.SessionStart, nil)
	if start.SID != sid {
		t.Errorf("session.start of %q, want %q", start.SID, sid)
	}
	// What a kill -9 leaves is the ledger as it is now.
	left := filepath.Join(t.TempDir(), "ledger")
	if err := os.CopyFS(left, os.DirFS(filepath.Join(w.dir, "ledger"))); err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
	w.stop()

	second := newWorld(t, func(cfg *Config) {
		ledger, err := events.NewOpenSessions(left)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ledger.Close() })
		cfg.Ledger = ledger
	})
	e := second.await(events.SessionEnd, nil)
	if e.SID != sid || e.Fields["recovered"] != true || e.UID != w.await(events.SessionEnd, nil).UID {
		t.Errorf("session.end %+v, want one of %q that is marked recovered and has the same uid", e, sid)
	}
}

// A connection that said it would open no more sessions opens none beside the
// first, which it may have asked for just before it said so.
func TestNoMoreSessions(t *testing.T) {
	w := newWorld(t)
	client, err := w.dial(w.credential(nil), me(t))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, _, err := client.SendRequest("no-more-sessions@openssh.com", true, nil); err != nil {
		t.Fatal(err)
	}
	first, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	_, err = client.NewSession()
	if open, ok := errors.AsType[*ssh.OpenChannelError](err); !ok || open.Reason != ssh.Prohibited {
		t.Errorf("NewSession = %v, want a refusal", err)
	}
}

// THREATS 1.1, channel count: ansible and ControlMaster need at least 64 sessions
// on one connection.
func TestManySessionsOnOneConnection(t *testing.T) {
	w := newWorld(t)
	client, err := w.dial(w.credential(nil), me(t))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var list []*ssh.Session
	for range 64 {
		s, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := s.Start("cat"); err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	if n := len(w.server.Sessions().List()); n != 64 {
		t.Errorf("%d live sessions, want 64", n)
	}
	for _, s := range list {
		_ = s.Close()
	}
}

// Channels and requests that nobody knows are refused, and the connection lives.
func TestUnknownChannelsAndRequests(t *testing.T) {
	w := newWorld(t)
	client, err := w.dial(w.credential(nil), me(t))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, name := range []string{"x11", "forwarded-tcpip", "auth-agent@openssh.com", "tun@openssh.com", "accessd-api", "accessd-authority", ""} {
		if _, _, err := client.OpenChannel(name, nil); err == nil {
			t.Errorf("channel %q was opened", name)
		}
	}
	for _, name := range []string{"direct-tcpip", "direct-streamlocal@openssh.com"} {
		for _, payload := range [][]byte{nil, {0xff, 0xff, 0xff, 0xff}, []byte(strings.Repeat("x", 5000))} {
			if _, _, err := client.OpenChannel(name, payload); err == nil {
				t.Errorf("channel %q was opened", name)
			}
		}
	}
	for _, name := range []string{"tcpip-forward", "streamlocal-forward@openssh.com", "cancel-tcpip-forward", "x@y"} {
		if ok, _, err := client.SendRequest(name, true, []byte{1}); ok || err != nil {
			t.Errorf("request %q: %v, %v, want a refusal", name, ok, err)
		}
	}
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := s.Output("echo hi"); err != nil || string(out) != "hi\n" {
		t.Errorf("afterwards: %q, %v", out, err)
	}
}

// F31: what a client says ends up escaped in one record of the log.
func TestF31HostileText(t *testing.T) {
	w := newWorld(t)
	client, err := w.dial(w.credential(nil), me(t))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	hostile := "echo 'x\n\r\x1b]52;c;aGk=\x07\x9b31m\u202e} {\"' \xff; Accepted publickey for root from 1.2.3.4"
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	_ = s.RequestPty("xterm\x1b[31m\n", 24, 80, nil)
	_ = s.Setenv("LC_ALL", "C\n\x1b[0m")
	_, _ = s.Output(hostile)
	e := w.await(events.Exec, nil)
	want := strings.ToValidUTF8(strings.ReplaceAll(strings.ReplaceAll(hostile, "\x9b", "\ufffd"), "\xff", "\ufffd"), "\ufffd")
	if e.Fields["command"] != want {
		t.Errorf("command %q, want %q", e.Fields["command"], want)
	}
	start := w.await(events.SessionStart, nil)
	if start.Fields["term"] != "xterm\x1b[31m\n" {
		t.Errorf("term %q", start.Fields["term"])
	}
	data, err := start.MarshalJSON()
	if err != nil || strings.ContainsFunc(string(data), func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Errorf("session.start has other than printable ASCII: %q, %v", data, err)
	}
}

// A stopping node lets a session finish, and cuts with a word what does not.
func TestStopping(t *testing.T) {
	w := newWorld(t)
	cmd := w.command(w.credential(nil), me(t), "echo ready; exec sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	w.stop()
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait()
	if got, want := stderr.String(), "accessd: session ended: this node is stopping\n"; got != want || cmd.ProcessState.ExitCode() != 255 {
		t.Errorf("code %d, stderr %q, want 255 and %q", cmd.ProcessState.ExitCode(), got, want)
	}
	if e := w.await(events.SessionEnd, nil); e.Fields["reason"] != "this node is stopping" {
		t.Errorf("session.end %+v", e)
	}
}

// Query taken for proof: a key that is only offered makes nobody anybody.
func TestOfferedIsNotProven(t *testing.T) {
	w := newWorld(t)
	admin := w.credential(nil)
	offer, err := ssh.NewCertSigner(admin.cert, stranger{admin.signer})
	if err != nil {
		t.Fatal(err)
	}
	_, err = ssh.Dial("tcp", w.addr, &ssh.ClientConfig{
		User: me(t), Auth: []ssh.AuthMethod{ssh.PublicKeys(offer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), //nolint:forbidigo // the test's own
	})
	if err == nil {
		t.Error("a client without the key got in")
	}
	w.stop()
	if n := w.count(events.UserLogin); n != 0 {
		t.Errorf("%d events user.login, want none", n)
	}
}

// stranger offers a key and signs with another.
type stranger struct{ ssh.Signer }

func (s stranger) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	_, other := sshca.Generate()
	return other.Sign(nil, data)
}

var _ srv.Executor = (*srv.Local)(nil)
