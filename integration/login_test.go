package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"

	"github.com/accessd/accessd/integration/harness"
)

const password = "correct horse battery staple"

// signIn types "ssh USER@proxy login" in a terminal.
func signIn(t *testing.T, c *harness.Cluster, user, key string, more ...string) *harness.Terminal {
	t.Helper()
	hosts := c.File("login-hosts", c.Admin("ca", "export", "--type", "host", "--format", "known-hosts"))
	_, port, _ := strings.Cut(c.Addr, ":")
	args := append([]string{"-F", "none", "-o", "UserKnownHostsFile=" + hosts, "-o", "GlobalKnownHostsFile=none", "-i", key, "-p", port}, more...)
	return harness.Type(t, "ssh", append(args, user+"@127.0.0.1", "login")...)
}

// app is the authenticator app of a person.
type app struct {
	secret string
	last   int64 // the step it last showed
}

// code returns a code that was not shown yet. The authority takes the next
// step's too, for clocks that are ahead; beyond that a person waits for the app
// to turn over.
func (a *app) code(t *testing.T) string {
	t.Helper()
	const period = 30
	now := func() int64 { return time.Now().Unix() / period }
	step := max(now(), a.last+1)
	harness.Eventually(t, "the app turns over", func() bool { return now() >= step-1 })
	a.last = step
	code, err := totp.GenerateCode(a.secret, time.Unix(step*period, 0))
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// enrol takes an invite through the first sign-in.
func enrol(t *testing.T, c *harness.Cluster, user, invite, key string, more ...string) (*app, harness.Result) {
	t.Helper()
	k := signIn(t, c, user, key, more...)
	k.Expect(`Password, invite or join token: `)
	k.Send(invite)
	k.Expect(`New password: `)
	k.Send(password)
	k.Expect(`New password again: `)
	k.Send(password)
	a := &app{secret: k.Expect(`(?s)type the secret into it:\s+([A-Z2-7]{16,})`)[1]}
	k.Expect(`Code: `)
	k.Send(a.code(t))
	return a, k.Wait()
}

// The first sign-in with an invite, then with password and second factor: the
// certificate is on stdout, words are on the screen, and it opens the node.
func TestSignInWithStockSSH(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	c.Node("n1")
	invite := strings.TrimSpace(c.Admin("users", "add", "alice", "--roles", "access", "--logins", c.Login))
	key := c.Key("alice-key")
	a, r := enrol(t, c, "alice", invite, key)
	if r.Code != 0 || !strings.HasPrefix(r.Stdout, "ssh-ed25519-cert-v01@openssh.com ") || strings.Count(r.Stdout, "\n") != 1 {
		t.Fatalf("login = %d, stdout %q\n%s", r.Code, r.Stdout, r.Stderr)
	}
	if err := os.WriteFile(key+"-cert.pub", []byte(r.Stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	config := c.File("alice-config", c.Admin("ssh-config", "--identity", key))
	if r := harness.Run(t, nil, "ssh", "-F", config, "-o", "BatchMode=yes", "n1", "echo", "in"); r.Code != 0 || r.Stdout != "in\n" {
		t.Errorf("ssh n1 = %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	wantEvent(t, c, map[string]string{"user": "alice", "success": "true"}, "--event", "user.login")
	wantEvent(t, c, map[string]string{"user": "alice"}, "--event", "invite.use")

	t.Run("the invite works once", func(t *testing.T) {
		k := signIn(t, c, "alice", c.Key("second"), "-o", "NumberOfPasswordPrompts=1")
		k.Expect(`Password, invite or join token: `)
		k.Send(invite)
		k.Expect(`Code: `)
		k.Send("123456")
		refused(t, k.Wait(), "Permission denied")
	})
	t.Run("password and code", func(t *testing.T) {
		k := signIn(t, c, "alice", c.Key("third"))
		k.Expect(`Password, invite or join token: `)
		k.Send(password)
		k.Expect(`Code: `)
		k.Send(a.code(t))
		if r := k.Wait(); r.Code != 0 || !strings.HasPrefix(r.Stdout, "ssh-ed25519-cert-v01@openssh.com ") {
			t.Errorf("login = %d %q\n%s", r.Code, r.Stdout, r.Stderr)
		}
	})
	t.Run("a code works once", func(t *testing.T) {
		a.last-- // the app shows the same again
		k := signIn(t, c, "alice", c.Key("fourth"), "-o", "NumberOfPasswordPrompts=1")
		k.Expect(`Password, invite or join token: `)
		k.Send(password)
		k.Expect(`Code: `)
		k.Send(a.code(t))
		refused(t, k.Wait(), "Permission denied")
		wantEvent(t, c, map[string]string{"user": "alice", "success": "false"}, "--event", "user.login")
	})
	t.Run("push into a forwarded agent", func(t *testing.T) { pushIntoAgent(t, c, a) })
	c.Verify()
}

// With -A nothing is written: a fresh key and its certificate are in the agent
// for as long as they are good, and the agent alone opens the node.
func pushIntoAgent(t *testing.T, c *harness.Cluster, a *app) {
	t.Helper()
	sock := filepath.Join(c.Home, "agent.sock")
	harness.Type(t, "ssh-agent", "-D", "-a", sock)
	harness.Eventually(t, "the agent listens", func() bool { _, err := os.Stat(sock); return err == nil })
	k := signIn(t, c, "alice", c.Key("fifth"), "-A", "-o", "IdentityAgent="+sock)
	k.Expect(`Password, invite or join token: `)
	k.Send(password)
	k.Expect(`Code: `)
	k.Send(a.code(t))
	if r := k.Wait(); r.Code != 0 || r.Stdout != "" {
		t.Fatalf("login -A = %d, stdout %q\n%s", r.Code, r.Stdout, r.Stderr)
	}
	list := harness.Run(t, nil, "env", "SSH_AUTH_SOCK="+sock, "ssh-add", "-L")
	if !strings.Contains(list.Stdout, "ssh-ed25519-cert-v01@openssh.com") {
		t.Fatalf("the agent holds %q (%s)", list.Stdout, list.Stderr)
	}
	hosts := filepath.Join(c.Home, "login-hosts")
	_, port, _ := strings.Cut(c.Addr, ":")
	config := c.File("agent-config", fmt.Sprintf("Host *\n  UserKnownHostsFile %s\n  GlobalKnownHostsFile none\n  BatchMode yes\n  IdentityAgent %s\nHost proxy\n  HostName 127.0.0.1\n  Port %s\n  User alice\n", hosts, sock, port))
	if r := harness.Run(t, nil, "ssh", "-F", config, "-J", "proxy", c.Login+"@n1", "echo", "agent"); r.Code != 0 || r.Stdout != "agent\n" {
		t.Errorf("ssh with the agent = %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
}

// A guesser is made to wait; the person from elsewhere is not locked out; and a
// stranger's name gets the same questions as a user's.
func TestGuesserIsLockedOut(t *testing.T) {
	t.Parallel()
	c := harness.New(t, "--config", noPenalties(t))
	invite := strings.TrimSpace(c.Admin("users", "add", "alice", "--roles", "access", "--logins", c.Login))
	a, r := enrol(t, c, "alice", invite, c.Key("alice-key"))
	if r.Code != 0 {
		t.Fatalf("login = %d\n%s", r.Code, r.Stderr)
	}
	guess := func(user string) string {
		k := signIn(t, c, user, c.Key(fmt.Sprintf("guess-%d", time.Now().UnixNano())), "-o", "NumberOfPasswordPrompts=1")
		k.Expect(`Password, invite or join token: `)
		k.Send("wrong")
		k.Expect(`Code: `)
		k.Send("000000")
		r := k.Wait()
		refused(t, r, "Permission denied")
		return strings.ReplaceAll(r.Stderr, user, "USER")
	}
	known, unknown := guess("alice"), guess("mallory")
	if known != unknown {
		t.Errorf("a user's name shows:\n%q\n%q", known, unknown)
	}
	for range 4 {
		guess("alice")
	}
	k := signIn(t, c, "alice", c.Key("right-but-late"), "-o", "NumberOfPasswordPrompts=1")
	k.Expect(`Password, invite or join token: `)
	k.Send(password)
	k.Expect(`Code: `)
	k.Send(a.code(t))
	refused(t, k.Wait(), "Permission denied")

	elsewhere := signIn(t, c, "alice", c.Key("elsewhere"), "-b", "127.0.0.2")
	elsewhere.Expect(`Password, invite or join token: `)
	elsewhere.Send(password)
	elsewhere.Expect(`Code: `)
	elsewhere.Send(a.code(t))
	if r := elsewhere.Wait(); r.Code != 0 {
		t.Errorf("alice from elsewhere = %d\n%s", r.Code, r.Stderr)
	}
}

// noPenalties returns a configuration in which a source that fails need not
// wait, for scenarios that fail on purpose.
func noPenalties(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "accessd.yaml")
	if err := os.WriteFile(file, []byte("limits: {no_penalties: true}\nauth: {argon2: {time: 1, memory_kib: 8192, threads: 1}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
