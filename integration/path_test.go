// Package integration holds the scenarios: what people, nodes, auditors and
// attackers do, against the built binary, with the stock OpenSSH tools.
package integration

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/accessd/accessd/integration/harness"
)

// paths are the ways a session's bytes get to a node: a data connection that
// the node dials back, with TLS or plain, and a channel of its control
// connection.
var paths = map[string][]string{
	"dial back": nil,
	"channel":   {"no_dial_back: true"},
	"plain":     {"plain: true"},
}

// eachPath runs a scenario over each of them.
func eachPath(t *testing.T, scenario func(t *testing.T, c *harness.Cluster)) {
	t.Helper()
	for name, tunnel := range paths {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var extra []string
			if tunnel != nil {
				file := filepath.Join(t.TempDir(), "accessd.yaml")
				if err := os.WriteFile(file, []byte("tunnel: {"+strings.Join(tunnel, ", ")+"}\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				extra = []string{"--config", file}
			}
			scenario(t, harness.New(t, extra...))
		})
	}
}

// wantEvent fails unless one of the events selected by flags has every given
// field.
func wantEvent(t *testing.T, c *harness.Cluster, fields map[string]string, flags ...string) harness.Event {
	t.Helper()
	var found harness.Event
	harness.Eventually(t, fmt.Sprint("event ", fields, flags), func() bool {
		for _, e := range c.Events(flags...) {
			if has(e, fields) {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

// has reports whether an event has every given field.
func has(e harness.Event, fields map[string]string) bool {
	for k, v := range fields {
		if e.Str(k) != v {
			return false
		}
	}
	return true
}

// The whole path: a person's stock client, the proxy, the reverse tunnel, a
// node behind it, and the log that says so.
func TestStockClientReachesNodeThroughProxy(t *testing.T) {
	t.Parallel()
	eachPath(t, func(t *testing.T, c *harness.Cluster) {
		c.Node("n1", "--labels", "env=dev,team=a")
		alice := c.User("alice", "access").Configure()

		t.Run("exec", func(t *testing.T) {
			r := alice.SSH("n1", "echo out; echo err >&2; exit 7")
			if r.Code != 7 || r.Stdout != "out\n" || r.Stderr != "err\n" {
				t.Errorf("ssh = %d %q %q, want 7 %q %q", r.Code, r.Stdout, r.Stderr, "out\n", "err\n")
			}
			start := wantEvent(t, c, map[string]string{"user": "alice", "login": c.Login, "server_hostname": "n1", "kind": "exec"}, "--event", "session.start", "--user", "alice")
			if got := start.Str("addr.remote"); !strings.HasPrefix(got, "127.0.0.1:") {
				t.Errorf("session.start addr.remote = %q, want the client's address", got)
			}
			end := wantEvent(t, c, map[string]string{"exit_code": "7"}, "--event", "session.end", "--session", start.Str("sid"))
			if got, want := end.Str("server_hostname"), "n1"; got != want {
				t.Errorf("session.end server_hostname = %q, want %q", got, want)
			}
			wantEvent(t, c, map[string]string{"success": "true", "action": "exec", "role": "access", "server_hostname": "n1"}, "--event", "access.decision", "--user", "alice")
		})

		t.Run("bytes both ways", func(t *testing.T) {
			body := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
			r := alice.SSHIn(bytes.NewReader(body), "n1", "cat")
			if r.Stdout != string(body) {
				t.Errorf("got %d bytes back (exit %d, %q), want the %d sent", len(r.Stdout), r.Code, r.Stderr, len(body))
			}
		})

		t.Run("terminal", func(t *testing.T) {
			r := alice.SSH("-tt", "n1", "stty size; tty; exit 3")
			if r.Code != 3 || !strings.Contains(r.Stdout, "/dev/pts/") {
				t.Errorf("ssh -tt = %d %q, want 3 and a pty", r.Code, r.Stdout)
			}
		})

		t.Run("by id and by gateway port", func(t *testing.T) {
			n := c.WaitOnline("n1")
			for name, target := range map[string][]string{
				"id":           {"-J", "accessd-proxy", c.Login + "@" + n.ID},
				"gateway port": {"-J", "accessd-proxy", "-p", fmt.Sprint(n.GatewayPort), c.Login + "@localhost"},
			} {
				if r := alice.SSH(append(target, "echo", name)...); r.Code != 0 || r.Stdout != name+"\n" {
					t.Errorf("%s: ssh = %d %q %q", name, r.Code, r.Stdout, r.Stderr)
				}
			}
		})

		c.Verify()
	})
}

// A client with one @cert-authority line is never asked about a host key, at
// the proxy under each of its names and at the node.
func TestNoHostKeyQuestion(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	c.Node("n1")
	alice := c.User("alice", "access")
	hosts := c.File("known_hosts", c.Admin("ca", "export", "--type", "host", "--format", "known-hosts"))
	_, port, _ := strings.Cut(c.Addr, ":")
	for _, proxy := range []string{"localhost", "127.0.0.1"} {
		r := harness.Run(t, nil, "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile="+hosts,
			"-o", "GlobalKnownHostsFile=none", "-i", alice.Key,
			"-o", fmt.Sprintf("ProxyCommand=ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=yes -o UserKnownHostsFile=%s -o GlobalKnownHostsFile=none -i %s -p %s -W %%h:%%p alice@%s", hosts, alice.Key, port, proxy),
			c.Login+"@n1", "echo", "hi")
		if r.Code != 0 || r.Stdout != "hi\n" {
			t.Errorf("through %s: ssh = %d %q %q", proxy, r.Code, r.Stdout, r.Stderr)
		}
	}
}

// The exact forms that people script.
func TestScriptedForms(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	invite := c.Admin("users", "add", "alice", "--roles", "access", "--logins", "root,deploy,"+c.Login)
	if len(strings.Fields(invite)) != 1 {
		t.Errorf("users add printed %q, want the invite alone on stdout", invite)
	}
	key := c.Key("id")
	c.Admin("users", "sign", "alice", "--public-key", key+".pub", "--ttl", "1h", "--out", key+"-cert.pub")
	if r := harness.Run(t, nil, "ssh-keygen", "-L", "-f", key+"-cert.pub"); r.Code != 0 || !strings.Contains(r.Stdout, "deploy") || !strings.Contains(r.Stdout, `Key ID: "alice"`) {
		t.Errorf("ssh-keygen -L = %d\n%s", r.Code, r.Stdout)
	}
	role := c.File("role.yaml", "kind: role\nname: dev\nallow:\n  - nodes: {env: dev}\n    logins: [\"{{user.logins}}\"]\n    actions: [shell, exec]\n")
	c.Admin("roles", "apply", "-f", role)
	if token := c.Admin("tokens", "add", "--role", "node", "--ttl", "1h", "--uses", "10", "--quiet"); strings.Count(token, "\n") != 1 || strings.Contains(token, " ") {
		t.Errorf("tokens add --quiet printed %q, want only the token", token)
	}
	if known := c.Admin("ca", "export", "--type", "host", "--format", "known-hosts"); !strings.HasPrefix(known, "@cert-authority * ssh-ed25519 ") {
		t.Errorf("ca export printed %q", known)
	}
	if pin := c.Admin("ca", "pin"); !strings.HasPrefix(pin, "sha256:") || len(strings.TrimSpace(pin)) != 71 {
		t.Errorf("ca pin printed %q", pin)
	}
	config := c.File("ssh_config", c.Admin("ssh-config", "--identity", key, "--login", c.Login)) // of a cluster without nodes
	c.Node("n1", "--labels", "env=dev,team=a")
	nodes := c.NodeList()
	if len(nodes) != 1 || nodes[0].Labels["team"] != "a" {
		t.Errorf("nodes ls = %+v", nodes)
	}
	if r := harness.Run(t, nil, "ssh", "-F", config, "n1", "true"); r.Code != 0 {
		t.Errorf("ssh -F ssh_config n1 = %d %s", r.Code, r.Stderr)
	}
	if events := c.Events("--user", "alice", "--event", "session.start"); len(events) != 1 {
		t.Errorf("audit ls = %d session.start events of alice, want 1", len(events))
	}
	if out := c.Admin("audit", "verify"); !strings.HasPrefix(out, "verified ") {
		t.Errorf("audit verify printed %q", out)
	}
	if code := c.Main.Stop(); code != 0 {
		t.Errorf("start ended with %d after SIGTERM, want 0", code)
	}
}

// Half-close: the node's end of input is seen while its output still flows.
func TestHalfClose(t *testing.T) {
	t.Parallel()
	eachPath(t, func(t *testing.T, c *harness.Cluster) {
		c.Node("n1")
		alice := c.User("alice", "access")
		r := alice.SSHIn(io.LimitReader(strings.NewReader("one\ntwo\n"), 8), "n1", "wc -l; head -c 1000000 /dev/zero | tr '\\0' x")
		if want := 2 + 1_000_000; r.Code != 0 || len(r.Stdout) != want || !strings.HasPrefix(r.Stdout, "2\n") {
			t.Errorf("ssh = %d, %d bytes, want 0 and %d (%s)", r.Code, len(r.Stdout), want, r.Stderr)
		}
	})
}
