package proxy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/sshca"
)

// isCertificate reports whether text is one line: a certificate for key.
func isCertificate(t *testing.T, text string, key ssh.PublicKey) {
	t.Helper()
	cert, err := parseCertificate(text, key)
	if err != nil || strings.Count(text, "\n") != 1 || !strings.HasSuffix(text, " alice\n") {
		t.Errorf("stdout %q is not one certificate: %v", text, err)
		return
	}
	if cert.KeyId != "alice" {
		t.Errorf("the certificate is for %q", cert.KeyId)
	}
}

// TestStockLogin is "ssh alice@proxy login > id-cert.pub", then the certificate
// at work.
func TestStockLogin(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	s := newStock(w)
	s.answers("right", "123456")
	r := s.ssh("proxy", "login")
	if r.code != 0 {
		t.Fatalf("login = %d\n%s", r.code, r.stderr)
	}
	isCertificate(t, r.stdout, s.public)
	for _, words := range []string{"Welcome.\r\n", poster + "\n", "accessd: signed in as alice", ssh.FingerprintSHA256(s.public), "valid until"} {
		if !strings.Contains(r.stderr, words) {
			t.Errorf("stderr %q does not say %q", r.stderr, words)
		}
	}
	if want := "(alice@127.0.0.1) Password or invite: \n(alice@127.0.0.1) Code: \n"; r.prompts != want {
		t.Errorf("asked %q, want %q", r.prompts, want)
	}
	if n := len(w.audit.all(events.UserLogin)); n != 0 {
		t.Errorf("%d events user.login: they are the authority's for sign-ins", n)
	}
	if got := w.offend.parkings(); got != 1 {
		t.Errorf("parked %d times, want once", got)
	}
	write(t, s.key+"-cert.pub", []byte(r.stdout))
	s.answers()
	r = s.ssh("n1", "echo in")
	r.want(t, 0, "in\n")
	if r.prompts != "" {
		t.Errorf("with a certificate it asks %q", r.prompts)
	}
}

// TestStockLoginASCII: where a QR code cannot be drawn, the words behind it can
// still be read.
func TestStockLoginASCII(t *testing.T) {
	w := newWorld(t)
	s := newStock(w)
	s.locale = "C"
	s.answers("right", "123456")
	if r := s.ssh("proxy", "login"); r.code != 0 || !strings.Contains(r.stderr, "\nor type SECRET\n") {
		t.Errorf("login = %d\n%s", r.code, r.stderr)
	}
}

// TestStockLoginTries: a wrong answer leads to another try on the same
// connection; then the client gives up, or gets it right.
func TestStockLoginTries(t *testing.T) {
	w := newWorld(t)
	s := newStock(w)
	s.answers("wrong", "123456", "right", "000000", "right", "123456")
	r := s.ssh("proxy", "login")
	if r.code != 0 {
		t.Errorf("third try = %d\n%s", r.code, r.stderr)
	}
	isCertificate(t, r.stdout, s.public)
	s.answers("wrong", "1", "wrong", "2", "wrong", "3")
	s.ssh("proxy", "login").want(t, 255, "", "Permission denied")
}

// TestUnknownUserSameAnswers: nothing a stranger sees tells a name that exists
// from one that does not.
func TestUnknownUserSameAnswers(t *testing.T) {
	w := newWorld(t)
	s := newStock(w)
	see := func(user string) string {
		s.answers("right", "wrong", "right", "wrong")
		r := s.ssh("-o", "NumberOfPasswordPrompts=2", "-l", user, "proxy", "login")
		return strings.ReplaceAll(strings.Join([]string{r.stdout, r.stderr, r.prompts}, "|"), user, "USER")
	}
	known := see("alice")
	for _, user := range []string{"nobody", "root", "n1"} {
		if got := see(user); got != known {
			t.Errorf("user %q sees %q\nalice sees %q", user, got, known)
		}
	}
}

// TestStockLoginAgent is "ssh -A alice@proxy login": key and certificate go into
// the agent, whose plain key comes first from then on, and open the node.
func TestStockLoginAgent(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	s := newStock(w)
	s.startAgent()
	if r := s.run(nil, "ssh-add", "-q", s.key); r.code != 0 {
		t.Fatal(r.stderr)
	}
	s.answers("right", "123456")
	s.ssh("-A", "proxy", "login").want(t, 0, "", "accessd: signed in as alice", "are in your agent until")
	list := s.run(nil, "ssh-add", "-L").stdout
	if got := strings.Count(list, "\n"); got != 2 || !strings.Contains(list, "ssh-ed25519-cert-v01@openssh.com") || !strings.Contains(list, "accessd alice") {
		t.Fatalf("the agent holds %q", list)
	}
	s.answers()
	r := s.ssh("n1", "echo by agent")
	r.want(t, 0, "by agent\n")
	if r.prompts != "" {
		t.Errorf("it asks %q", r.prompts)
	}
	// Signed in by that certificate, there is nothing to log in for.
	s.ssh("-A", "proxy", "login").want(t, 5, "", "accessd: error: you are signed in: your certificate is valid until", "accessd: hint: ")
}

// TestStockLoginPrint: --print keeps the agent out of it.
func TestStockLoginPrint(t *testing.T) {
	w := newWorld(t)
	s := newStock(w)
	s.startAgent()
	s.answers("right", "123456")
	r := s.ssh("-A", "proxy", "login", "--print")
	if r.code != 0 {
		t.Errorf("login --print = %d\n%s", r.code, r.stderr)
	}
	isCertificate(t, r.stdout, s.public)
	if list := s.run(nil, "ssh-add", "-L"); list.code != 1 {
		t.Errorf("the agent holds %q", list.stdout)
	}
}

// TestStockLoginAgentRefuses: an agent that takes no keys is a clear error.
func TestStockLoginAgentRefuses(t *testing.T) {
	w := newWorld(t)
	s := newStock(w)
	s.startAgent()
	lock := exec.Command("ssh-add", "-x")
	lock.Env = append(os.Environ(), "SSH_AUTH_SOCK="+s.agent, "SSH_ASKPASS="+filepath.Join(s.dir, "askpass"), "SSH_ASKPASS_REQUIRE=force")
	s.answers("x", "x")
	if out, err := lock.CombinedOutput(); err != nil {
		t.Fatalf("ssh-add -x: %v\n%s", err, out)
	}
	s.answers("right", "123456")
	s.ssh("-A", "proxy", "login").want(t, 6, "", "accessd: error: your agent did not take the key")
}

// TestStockExpired: whose certificate has expired reads so, and may sign in on
// the same connection.
func TestStockExpired(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	s := newStock(w)
	s.certify("alice", func(r *sshca.UserRequest) {
		r.ValidAfter, r.ValidBefore = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
	words := `accessd: your certificate expired at ` + moment(time.Now().Add(-time.Hour))[:13]
	s.ssh("-o", "BatchMode=yes", "n1", "true").want(t, 255, "", words, `run "ssh alice@PROXY login" for a new one`, "Permission denied")
	ev := w.audit.all(events.AuthRejected)
	if len(ev) != 1 || ev[0].Fields["refusal"] != sshca.CodeExpired || ev[0].Fields["cert_serial"] != "7" || ev[0].Fields["key_id"] != "alice" {
		t.Errorf("auth.rejected = %+v", ev)
	}
	s.answers("right", "123456")
	r := s.ssh("proxy", "login")
	isCertificate(t, r.stdout, s.public)
	if r.code != 0 || !strings.Contains(r.stderr, words) {
		t.Errorf("login = %d\n%s", r.code, r.stderr)
	}
	// Explicitly named, the certificate comes first; the plain key still follows.
	s.answers("right", "123456")
	r = s.ssh("-o", "CertificateFile="+s.key+"-cert.pub", "proxy", "login")
	isCertificate(t, r.stdout, s.public)
}

// TestStockNothingElse is the row of SFTP on the proxy: there is no shell, no
// command, no subsystem and no forwarding, whoever asks.
func TestStockNothingElse(t *testing.T) {
	w := newWorld(t)
	w.policy.user("alice", "admin", "access")
	s := newStock(w)
	s.certify("alice")
	help := []string{"accessd: hint: there is", "ssh -J USER@PROXY LOGIN@NODE", "ssh USER@PROXY login > KEY-cert.pub"}
	s.ssh("proxy", "cat /etc/passwd").want(t, 2, "", append(help, `accessd: error: the proxy does not run "cat /etc/passwd"`)...)
	s.ssh("proxy", "login; id").want(t, 2, "", `the proxy does not run "login; id"`)
	s.ssh("proxy", "login --print x").want(t, 2, "", "the proxy does not run")
	s.ssh("proxy").want(t, 2, "", append(help, "accessd: error: the proxy has no shell")...)
	s.ssh("-tt", "proxy").want(t, 2, "", "accessd: error: the proxy has no shell\r\n")
	s.ssh("-s", "proxy", "sftp").want(t, 2, "", "accessd: error: the proxy has no subsystems")
	s.ssh("-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:9", "proxy", "login").want(t, 255, "", "remote port forwarding failed")
	s.ssh("-o", "ExitOnForwardFailure=yes", "-R", filepath.Join(s.dir, "sock")+":127.0.0.1:9", "proxy", "login").want(t, 255, "", "remote port forwarding failed")
	s.ssh("-w", "any:any", "proxy", "login")
	r := s.run(nil, "sftp", "-F", s.config, "-b", "/dev/null", "proxy")
	if r.code == 0 || !strings.Contains(r.stderr, "no subsystems") {
		t.Errorf("sftp = %d\n%s", r.code, r.stderr)
	}
	if got := w.tunnel.dials(); len(got) > 0 {
		t.Errorf("nodes dialled: %v", got)
	}
	kinds := map[any]int{}
	for _, ev := range w.audit.all(events.SessionRejected) {
		kinds[ev.Fields["kind"]]++
	}
	if kinds["exec"] != 3 || kinds["shell"] < 2 || kinds["subsystem"] != 2 {
		t.Errorf("session.rejected by kind: %v", kinds)
	}
}

// TestStockLoginTerminal: with a terminal, lines end as a raw terminal needs.
func TestStockLoginTerminal(t *testing.T) {
	w := newWorld(t)
	s := newStock(w)
	s.answers("right", "123456")
	r := s.ssh("-tt", "proxy", "login")
	if r.code != 0 || !strings.HasSuffix(r.stdout, " alice\r\n") || !strings.Contains(strings.ReplaceAll(r.stderr, "Connection to 127.0.0.1 closed.\r\n", ""), "\r\n") {
		t.Errorf("login = %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
}

// TestStockLoginTyped drives ssh through a real terminal, as a person does.
func TestStockLoginTyped(t *testing.T) {
	w := newWorld(t)
	s := newStock(w)
	out := filepath.Join(s.dir, "out")
	script := `set timeout 20
spawn sh -c "ssh -F ` + s.config + ` proxy login > ` + out + `"
expect "Password or invite: " { send "right\r" } timeout { exit 90 }
expect "Code: " { send "123456\r" } timeout { exit 91 }
expect "signed in as alice" {} timeout { exit 92 }
expect eof
catch wait result
exit [lindex $result 3]`
	cmd := exec.CommandContext(t.Context(), "expect", "-c", script)
	cmd.Env = append(os.Environ(), "SSH_ASKPASS_REQUIRE=never", "SSH_AUTH_SOCK=none")
	screen, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("expect: %v\n%s", err, screen)
	}
	if strings.Contains(string(screen), "right") || !strings.Contains(string(screen), "123456") {
		t.Errorf("the password shows, or the code does not:\n%s", screen)
	}
	cert, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	isCertificate(t, string(cert), s.public)
}

// TestSignInAway: when the authority is away, a person reads so, known or not.
func TestSignInAway(t *testing.T) {
	w := newWorld(t)
	w.login.setAway(true)
	s := newStock(w)
	s.answers()
	for _, user := range []string{"alice", "nobody"} {
		s.ssh("-l", user, "proxy", "login").want(t, 255, "", "signing in is not possible right now", "Permission denied")
	}
	w.login.setAway(false)
	w.offend.fill()
	s.ssh("proxy", "login").want(t, 255, "", "too many people are signing in", "Permission denied")
	if begun, _ := w.login.counts(); begun != 0 {
		t.Errorf("%d sign-ins were begun without a place", begun)
	}
}
