package integration

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/accessd/accessd/integration/harness"
)

// F05: the disk of a proxy is full: what cannot be written down does not happen,
// and who asks for it reads why. Then that of the authority's log is: what happens
// waits on the disk of who saw it. Who is in goes on, and when there is room again
// all is well without a restart, and nothing is missing.
func TestDisksOfProxyAndAuthorityFull(t *testing.T) {
	t.Parallel()
	host := harness.NewHost(t)
	c := harness.New(t, "--config", noPenalties(t), "--roles", "auth")
	log, data := filepath.Join(c.Dir, "audit"), t.TempDir()
	c.Main.Stop()
	host.Must("sh", "-c", `mount -t tmpfs -o size=4m,mode=700 tmpfs "$1" && cp -a "$0" "$1/was" && mount -t tmpfs -o size=4m,mode=700 tmpfs "$0" && cp -a "$1"/was/. "$0" && rm -r "$1/was"`, log, data)
	c.Main = host.Start("start", "--data-dir", c.Dir, "--listen", c.Addr, "--roles", "auth")
	token := strings.TrimSpace(c.Admin("tokens", "add", "--role", "proxy", "--ttl", "1h", "--quiet"))
	authority := c.Addr
	proxy := host.Start("start", "--data-dir", data, "--config", noPenalties(t), "--roles", "proxy", "--listen", "127.0.0.1:0", "--node-name", "p1",
		"--join", authority, "--token", token, "--ca-pin", strings.TrimSpace(c.Admin("ca", "pin")))
	c.Addr = proxy.Field("listen")
	c.Node("n1")
	c.Addr = authority
	alice := c.User("alice", "access").Configure()
	live := talk(t, exec.Command("ssh", "-F", alice.Config, "-o", "BatchMode=yes", "n1", "cat"))
	live.say(t, "in")
	fill := func(dir string) {
		host.Must("sh", "-c", `dd if=/dev/zero of="$(mktemp "$0/fillerXXXXXX")" bs=1 count=1 status=none; for b in 64k 4k 512 1; do dd if=/dev/zero of="$(mktemp "$0/fillerXXXXXX")" bs=$b status=none 2>/dev/null; done; true`, dir)
	}
	room := func(dir string) { host.Must("sh", "-c", `rm -f "$0"/filler*`, dir) }

	t.Run("of the proxy", func(t *testing.T) {
		fill(data)
		c.Eventually("nobody new is let in", func() bool {
			r := alice.SSH("n1", "echo", "in")
			if r.Code != 0 && !strings.Contains(r.Stderr, "audit log cannot be written") {
				t.Errorf("ssh n1 = %d %q %q, want the cause", r.Code, r.Stdout, r.Stderr)
			}
			return r.Code != 0
		})
		live.say(t, "who is in goes on")
		room(data)
		c.Eventually("all is well again", func() bool { return alice.SSH("n1", "echo", "in").Code == 0 })
	})
	t.Run("of the authority's log", func(t *testing.T) {
		fill(log)
		c.Admin("users", "add", "bob", "--roles", "access")
		c.Eventually("the log takes nothing", func() bool { return strings.Contains(c.Main.Log(), "the audit log cannot be written") })
		if r := alice.SSH("n1", "echo", "meanwhile"); r.Code != 0 || r.Stdout != "meanwhile\n" {
			t.Errorf("ssh n1 = %d %q %q, want that the node keeps it for later", r.Code, r.Stdout, r.Stderr)
		}
		live.say(t, "who is in goes on")
		room(log)
		wantEvent(t, c, map[string]string{"user": "alice", "command": "echo meanwhile"}, "--event", "session.start")
		wantEvent(t, c, map[string]string{"name": "bob"}, "--event", "user.create")
	})
	live.end(t)
	c.Verify()
}
