package integration

import (
	"os"
	"os/exec"
	"path/filepath"
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

// A node whose role says mfa: session takes a code after the certificate.
func TestFactorForEachConnection(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "accessd", "sshd")
	c := newCareful(t, f)
	k := c.sit(t, "n1-jump", "echo in")
	k.Expect(`Node n1 takes a second factor`)
	k.Expect(`Code: `)
	code := c.app.code(t)
	k.Send(code)
	if r := k.Wait(); r.Code != 0 || r.Stdout != "in\n" {
		t.Errorf("ssh -J = %d %q\n%s", r.Code, r.Stdout, r.Stderr)
	}
	for _, host := range []string{"n1-jump", "n1-at", "n2-jump", "n2-at"} {
		k := c.sit(t, host, "echo in")
		k.Expect(`Code: `)
		k.Send(code)
		refused(t, k.Wait(), "Permission denied")
	}
}
