package integration

import (
	"testing"

	"github.com/accessd/accessd/integration/harness"
)

// A key of an authority was stolen, and somebody does not wait: all four steps,
// forced, as fast as they can be typed. Whoever could not follow has to join again;
// the process with the authority follows by itself, whatever it was cut off from.
func TestForcedRotationInOneGo(t *testing.T) {
	t.Parallel()
	c := harness.New(t, "--config", noPenalties(t), "--roles", "auth,proxy,node", "--node-name", "all")
	alice := c.User("alice", "access").Configure()
	for _, kind := range []string{"node", "host"} {
		for _, phase := range []string{"init", "clients", "servers", "standby"} {
			c.Admin("ca", "rotate", "--type", kind, "--phase", phase, "--force")
		}
	}
	alice.Configure() // the host CA is another
	c.Eventually("the node of the authority's process is back", func() bool {
		r := alice.SSH("all", "echo", "in")
		return r.Code == 0 && r.Stdout == "in\n"
	})
	c.Node("n1")
	alice.Configure()
	if r := alice.SSH("n1", "echo", "in"); r.Code != 0 || r.Stdout != "in\n" {
		t.Errorf("ssh n1 = %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	wantEvent(t, c, map[string]string{"user": "alice", "node_name": "n1", "success": "true"}, "--event", "access.decision")
	wantEvent(t, c, map[string]string{"user": "alice", "server_hostname": "all", "kind": "exec"}, "--event", "session.start")
	c.Verify()
}
