package sshca_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

const sessionID = "5f0c9b1e-6a3d-4a53-9d5c-0a1c2f7f0e11"

func (w *world) sessionRequest() sshca.SessionRequest {
	return sshca.SessionRequest{
		Key: w.key.PublicKey(), User: "alice", Login: "root", Node: "web-1", Session: sessionID, Role: "developer",
		ValidAfter: now.Add(-time.Minute), ValidBefore: now.Add(5 * time.Minute), Serial: 10,
	}
}

func TestSessionCertificate(t *testing.T) {
	w := newWorld()
	c := must(t)(sshca.MintSession(w.sshd, w.sessionRequest()))
	if want := "alice session=" + sessionID + " role=developer node=web-1"; c.KeyId != want {
		t.Errorf("key id = %q, want %q", c.KeyId, want)
	}
	if len(c.ValidPrincipals) != 1 || c.ValidPrincipals[0] != "root" || len(c.CriticalOptions) != 0 {
		t.Errorf("principals %q, critical options %v: want the login and no option", c.ValidPrincipals, c.CriticalOptions)
	}
	r := w.sessionRequest()
	r.Role = ""
	if c := must(t)(sshca.MintSession(w.sshd, r)); !strings.Contains(c.KeyId, " role=- ") {
		t.Errorf("key id without a role = %q", c.KeyId)
	}
}

// TestSessionNamesKeepTheirForm: F31, F35. What stands in a key id is a name, so
// nobody writes a second line or another word into the log of a plain sshd, and
// a principal is one login.
func TestSessionNamesKeepTheirForm(t *testing.T) {
	w := newWorld()
	for name, spoil := range map[string]func(*sshca.SessionRequest){
		"user with a blank":     func(r *sshca.SessionRequest) { r.User = "alice session=x" },
		"user with a newline":   func(r *sshca.SessionRequest) { r.User = "alice\nAccepted publickey for root" },
		"no user":               func(r *sshca.SessionRequest) { r.User = "" },
		"role with a blank":     func(r *sshca.SessionRequest) { r.Role = "a node=b" },
		"role that means none":  func(r *sshca.SessionRequest) { r.Role = "-" },
		"session that is none":  func(r *sshca.SessionRequest) { r.Session = "x" },
		"no session":            func(r *sshca.SessionRequest) { r.Session = "" },
		"node that is a list":   func(r *sshca.SessionRequest) { r.Node = "web-1,web-2" },
		"no node":               func(r *sshca.SessionRequest) { r.Node = "" },
		"login that is a list":  func(r *sshca.SessionRequest) { r.Login = "root,deploy" },
		"login that is a glob":  func(r *sshca.SessionRequest) { r.Login = "*" },
		"no login":              func(r *sshca.SessionRequest) { r.Login = "" },
		"a certificate for key": func(r *sshca.SessionRequest) { r.Key = must(t)(sshca.MintUser(w.user, w.userRequest())) },
		"no end":                func(r *sshca.SessionRequest) { r.ValidBefore = time.Time{} },
	} {
		r := w.sessionRequest()
		spoil(&r)
		if c, err := sshca.MintSession(w.sshd, r); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: %v, %v, want bad input", name, c, err)
		}
	}
}

// TestSessionCertificateIsNoIdentity: the certificate of a session opens a plain
// sshd and nothing of ours.
func TestSessionCertificateIsNoIdentity(t *testing.T) {
	w := newWorld()
	c := must(t)(sshca.MintSession(w.sshd, w.sessionRequest()))
	for name, check := range map[string]func() error{
		"user":   func() error { _, err := w.trust.CheckUser(c, w.peer("alice")); return err },
		"login":  func() error { _, err := w.trust.CheckLogin(c, w.peer("root")); return err },
		"member": func() error { _, err := w.trust.CheckMember(c, w.peer("web-1")); return err },
		"host":   func() error { return w.trust.CheckHost(c, "root", now) },
	} {
		if err := check(); !fault.Is(err, fault.Denied) {
			t.Errorf("as %s: %v, want a refusal", name, err)
		}
	}
}

// TestSessionCertificateOpensStockSshd: a stock sshd that trusts the sshd
// authority takes the certificate for its one login, logs its key id, and takes
// no certificate of another authority. ssh-keygen reads it, too.
func TestSessionCertificateOpensStockSshd(t *testing.T) {
	w, d := newWorld(), newSshd(t)
	d.trust(t, w.sshd.PublicKey())
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	mint := func(ca ssh.Signer, login string) *ssh.Certificate {
		r := w.sessionRequest()
		r.Login = names.Login(login)
		r.ValidAfter, r.ValidBefore = time.Now().Add(-time.Minute), time.Now().Add(5*time.Minute)
		return must(t)(sshca.MintSession(ca, r))
	}
	good := mint(w.sshd, me.Username)
	for _, row := range []struct {
		name string
		cert *ssh.Certificate
		want bool
	}{
		{"for this login", good, true},
		{"for another login", mint(w.sshd, "nobody-"+me.Username), false},
		{"of the user authority", mint(w.user, me.Username), false},
	} {
		if err := d.login(w.key, row.cert, me.Username); (err == nil) != row.want {
			t.Errorf("certificate %s: %v, want accepted %v\n%s", row.name, err, row.want, d.log(t))
		}
	}
	if log := d.log(t); !strings.Contains(log, `ID alice session=`+sessionID+` role=developer node=web-1 (serial 10)`) {
		t.Errorf("sshd does not log the key id:\n%s", log)
	}
	path := filepath.Join(d.dir, "x-cert.pub")
	if err := os.WriteFile(path, ssh.MarshalAuthorizedKey(good), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ssh-keygen", "-L", "-f", path).CombinedOutput()
	if err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	for _, want := range []string{
		"user certificate", `Key ID: "alice session=` + sessionID + ` role=developer node=web-1"`, "Principals: \n                " + me.Username + "\n",
		"Critical Options: (none)", "permit-pty", "permit-port-forwarding", "permit-agent-forwarding", "permit-X11-forwarding",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("ssh-keygen -L does not show %q:\n%s", want, out)
		}
	}
}

// An sshd is OpenSSH's server; each login starts one for its connection.
type sshd struct{ dir string }

func newSshd(t *testing.T) *sshd {
	t.Helper()
	d := &sshd{dir: t.TempDir()}
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(d.dir, "host")).CombinedOutput(); err != nil {
		t.Fatalf("this test needs OpenSSH: %v\n%s", err, out)
	}
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd's privilege separation directory
			t.Fatal(err)
		}
	}
	return d
}

// trust writes a configuration in which ca is trusted.
func (d *sshd) trust(t *testing.T, ca ssh.PublicKey) {
	t.Helper()
	config := fmt.Sprintf("HostKey %[1]s/host\nTrustedUserCAKeys %[1]s/ca\nAuthorizedKeysFile none\nStrictModes no\nUsePAM no\nLogLevel VERBOSE\n"+
		"PermitRootLogin prohibit-password\nPidFile none\n", d.dir)
	for name, content := range map[string]string{"config": config, "ca": string(ssh.MarshalAuthorizedKey(ca))} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// login reports whether sshd lets in who shows cert for user, and runs a command
// then.
func (d *sshd) login(key ssh.Signer, cert *ssh.Certificate, user string) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	peer, err := ln.Accept()
	if err != nil {
		return err
	}
	socket, err := peer.(*net.TCPConn).File()
	peer.Close()
	if err != nil {
		return err
	}
	cmd := exec.Command("/usr/sbin/sshd", "-i", "-E", filepath.Join(d.dir, "log"), "-f", filepath.Join(d.dir, "config"))
	cmd.Stdin, cmd.Stdout = socket, socket
	err = cmd.Start()
	socket.Close()
	if err != nil {
		return err
	}
	defer cmd.Wait() // its log says what it did
	defer conn.Close()
	signer, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		return err
	}
	c, chans, reqs, err := ssh.NewClientConn(conn, "sshd", &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: func(string, net.Addr, ssh.PublicKey) error { return nil },
	})
	if err != nil {
		return err
	}
	client := ssh.NewClient(c, chans, reqs)
	defer client.Close()
	s, err := client.NewSession()
	if err != nil {
		return err
	}
	return s.Run("exit 0")
}

func (d *sshd) log(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
