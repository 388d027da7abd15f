package integration

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/accessd/accessd/integration/harness"
)

// strictRoles are what mia has: everything on every node and with every resource,
// with a second factor for each connection.
const strictRoles = `kind: role
name: strict
allow:
  - nodes: {"*": "*"}
    logins: ["{{user.logins}}"]
    actions: ["*"]
  - resources: {sessions: [read], recordings: [read], nodes: [read]}
options: {mfa: session, plain_keys: true}
`

// careful is mia, who has signed in with a password and an app, and whose role
// takes a second factor for each connection.
type careful struct {
	*fleet

	app    *app
	config string // ssh_config, which lets ssh ask
}

// newCareful signs mia in.
func newCareful(t *testing.T, f *fleet) *careful {
	t.Helper()
	f.Admin("roles", "apply", "-f", f.File("strict.yaml", strictRoles))
	invite := strings.TrimSpace(f.Admin("users", "add", "mia", "--roles", "strict", "--logins", login))
	key := f.Key("mia-key")
	a, r := enrol(t, f.Cluster, "mia", invite, key)
	if r.Code != 0 {
		t.Fatalf("mia signs in: exit %d\n%s", r.Code, r.Stderr)
	}
	harness.WriteFile(t, key+"-cert.pub", r.Stdout)
	config := filepath.Join(f.Home, "mia-config")
	text := strings.NewReplacer(f.alice.Key, key, "User alice\n", "User mia\n", "BatchMode yes", "BatchMode no", "fleet-config", "mia-config").Replace(read(t, f.config))
	harness.WriteFile(t, config, text)
	return &careful{fleet: f, app: a, config: config}
}

// sit starts the stock client on a terminal.
func (c *careful) sit(t *testing.T, args ...string) *harness.Terminal {
	t.Helper()
	return harness.Type(t, "ssh", append([]string{"-F", c.config, "-o", "NumberOfPasswordPrompts=1"}, args...)...)
}

// batch runs a client that can answer nothing.
func (c *careful) batch(t *testing.T, name string, args ...string) harness.Result {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "SSH_ASKPASS_REQUIRE=never")
	return harness.RunFor(t, long, cmd)
}

// recovery has mia set up recovery codes at the proxy.
func (c *careful) recovery(t *testing.T) []string {
	t.Helper()
	k := c.sit(t, "-tt", "proxy", "factors", "add", "recovery")
	k.Expect(`Password: `)
	k.Send(password)
	k.Expect(`Code: `)
	k.Send(c.app.code(t))
	r := k.Wait()
	codes := recoveryCode.FindAllString(r.Stdout, -1)
	if r.Code != 0 || len(codes) != 10 || strings.Contains(r.Stdout+r.Stderr, password) {
		t.Fatalf("factors add recovery = %d, %d codes\n%s%s", r.Code, len(codes), r.Stdout, r.Stderr)
	}
	return codes
}

var recoveryCode = regexp.MustCompile(`(?:[a-z2-7]{4}-){3}[a-z2-7]{4}`)

// with answers the question for a second factor, and returns how the client ended.
func (c *careful) with(t *testing.T, code string, args ...string) harness.Result {
	t.Helper()
	k := c.sit(t, args...)
	k.Expect(`Code: `)
	k.Send(code)
	return k.Wait()
}

// Who holds a role with mfa: session gives a code for each connection, on every
// kind of node and by every way, and nothing is done without: THREATS 1.6, "MFA
// skipped". A code is good once, wherever it was given.
func TestFactorForEachConnection(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "accessd", "sshd")
	c := newCareful(t, f)
	codes := c.recovery(t)
	next := func() string {
		code := codes[0]
		codes = codes[1:]
		return code
	}
	used := ""
	t.Run("with a code", func(t *testing.T) {
		for _, host := range []string{"n1-jump", "n1-at", "n2-jump", "n2-at"} {
			used = next()
			if r := c.with(t, used, host, "echo in"); r.Code != 0 || r.Stdout != "in\n" {
				t.Errorf("ssh %s = %d %q\n%s", host, r.Code, r.Stdout, r.Stderr)
			}
		}
		wantEvent(t, f.Cluster, map[string]string{"user": "mia", "success": "true", "method": "recovery", "node_name": "n2"}, "--event", "factor.verify")
	})
	t.Run("with one that was used", func(t *testing.T) {
		for _, host := range []string{"n1-jump", "n1-at", "n2-jump", "n2-at"} {
			refused(t, c.with(t, used, host, "echo in"), "Permission denied")
		}
		wantEvent(t, f.Cluster, map[string]string{"user": "mia", "success": "false"}, "--event", "factor.verify")
	})
	// mia's certificate says that she gave a second factor when she signed in. For
	// a connection that is stale.
	mark := filepath.Join(f.dir, "without")
	ln, err := net.Listen("tcp", "127.0.0.1:0") // a port that nobody has
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	_, port, _ := strings.Cut(ln.Addr().String(), ":")
	for name, args := range map[string][]string{
		"shell": {"ssh", "-tt", "HOST"}, "exec": {"ssh", "HOST", "touch " + mark}, "sftp": {"sftp", "HOST:/etc/passwd", mark},
		"scp": {"scp", "-O", "/etc/hostname", "HOST:" + mark}, "local": {"ssh", "-N", "-o", "ExitOnForwardFailure=yes", "-L", mark + ":localhost:1", "HOST"},
		"remote": {"ssh", "-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:1", "HOST"}, "dynamic": {"ssh", "-N", "-D", "127.0.0.1:" + port, "HOST"},
		"stdio": {"ssh", "-W", "localhost:22", "HOST"}, "agent": {"ssh", "-A", "HOST", "ssh-add -l > " + mark}, "x11": {"ssh", "-X", "HOST", "touch " + mark},
	} {
		t.Run("no code for "+name, func(t *testing.T) {
			t.Parallel()
			for _, host := range []string{"n1-jump", "n2-at"} {
				cmd := []string{args[0], "-F", c.config, "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"}
				for _, a := range args[1:] {
					cmd = append(cmd, strings.Replace(a, "HOST", host, 1))
				}
				if r := harness.RunFor(t, long, exec.Command(cmd[0], cmd[1:]...)); r.Code == 0 || !strings.Contains(r.Stderr, "Permission denied (keyboard-interactive)") {
					t.Errorf("%s = %d\n%s", cmd, r.Code, r.Stderr)
				}
			}
			if _, err := os.Stat(mark); err == nil {
				t.Errorf("%s was done without a code", name)
			}
		})
	}
	t.Run("an enrolled key", func(t *testing.T) {
		plain := f.Key("mia-plain")
		f.enrol(t, "mia", plain)
		at := []string{"-o", "CertificateFile=none", "-i", plain, "-o", "IdentitiesOnly=yes"}
		k := harness.Type(t, "ssh", append(append([]string{"-F", "none", "-o", "UserKnownHostsFile=" + filepath.Join(f.Home, "fleet-hosts"), "-p", strings.Split(f.Addr, ":")[1]}, at...), login+"@n1@127.0.0.1", "echo in")...)
		k.Expect(`Code: `)
		k.Send(next())
		if r := k.Wait(); r.Code != 0 || r.Stdout != "in\n" {
			t.Errorf("ssh with an enrolled key = %d %q\n%s", r.Code, r.Stdout, r.Stderr)
		}
	})
	t.Run("a role that begins to ask", func(t *testing.T) {
		k := harness.Sit(t, f.jump("accessd").command([]string{"-tt"}))
		k.Expect(`\$ `)
		f.Admin("roles", "apply", "-f", f.File("asks.yaml", strings.Replace(everyAction, "plain_keys: true", "mfa: session", 1)))
		k.Expect(`a second factor is needed for this connection`)
		if r := k.Wait(); r.Code == 0 {
			t.Errorf("a session without a factor ended well\n%s", r.Stderr)
		}
	})
	t.Run("a security key", func(t *testing.T) { c.touch(t) })
	t.Run("a security key with a maker's word", func(t *testing.T) { c.attested(t) })
	t.Run("taking part and playing", func(t *testing.T) { c.takePart(t, next) })
	t.Run("another password", func(t *testing.T) {
		const fresh = "another horse, another battery"
		cmd := exec.Command("ssh", "-F", c.config, "proxy", "password")
		cmd.Stdin = strings.NewReader(strings.Join([]string{password, next(), fresh, fresh}, "\n") + "\n")
		if r := harness.RunFor(t, long, cmd); r.Code != 0 || !strings.Contains(r.Stderr, "Your password is changed.") {
			t.Errorf("password = %d\n%s", r.Code, r.Stderr)
		}
		k := signIn(t, f.Cluster, "mia", f.Key("mia-other"))
		k.Expect(`Password, invite or join token: `)
		k.Send(fresh)
		k.Expect(`Code: `)
		k.Send(next())
		if r := k.Wait(); r.Code != 0 || !strings.HasPrefix(r.Stdout, "ssh-ed25519-cert-v01@openssh.com ") {
			t.Errorf("login with the new password and a recovery code = %d\n%s", r.Code, r.Stderr)
		}
	})
	f.Verify()
}

// takePart joins and plays a session of mia's: each connection takes a code, and
// what has the connection open goes on.
func (c *careful) takePart(t *testing.T, next func() string) {
	t.Helper()
	live := harness.Sit(t, exec.Command("ssh", "-F", c.config, "-tt", "n1-jump"))
	live.Expect(`Code: `)
	live.Send(next())
	live.Expect(`\$ `)
	var sid string
	harness.Eventually(t, "the session is listed", func() bool {
		fields := strings.Fields(c.Admin("sessions", "ls", "--format", "json"))
		i := slices.Index(fields, `"id":`)
		if i >= 0 {
			sid = strings.Trim(fields[i+1], `",`)
		}
		return i >= 0
	})
	for _, words := range []string{"sessions ls", "sessions watch " + sid, "sessions join " + sid, "recordings ls", "recordings play " + sid} {
		r := c.batch(t, "ssh", "-F", c.config, "-n", "proxy", words)
		if r.Code == 0 || !strings.Contains(r.Stderr, "a second factor is needed") {
			t.Errorf("%s without a code = %d %q\n%s", words, r.Code, r.Stdout, r.Stderr)
		}
	}
	k := harness.Sit(t, exec.Command("ssh", "-F", c.config, "-tt", "proxy", "sessions", "join", sid))
	k.Expect(`Code: `)
	k.Send(next())
	k.Expect(`\$ `)
	k.Send("echo to$((1+1))gether")
	live.Expect(`to2gether`)
	k.Send("exit")
	live.Wait()
	k.Wait()
	play := harness.Sit(t, exec.Command("ssh", "-F", c.config, "-tt", "proxy", "recordings", "play", "--speed", "100", sid))
	play.Expect(`Code: `)
	play.Send(next())
	play.Expect(`to2gether`)
	if r := play.Wait(); r.Code != 0 {
		t.Errorf("recordings play with a code = %d\n%s", r.Code, r.Stderr)
	}
}
