package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/accessd/accessd/integration/harness"
	"github.com/accessd/accessd/lib/backend/backendtest"
)

// Two processes with auth and proxy on one external etcd are one cluster: what
// one is told the other knows, a node is reached through both, and one goes on
// when the other is gone.
func TestTwoAuthoritiesOnOneEtcd(t *testing.T) {
	t.Parallel()
	etcd := backendtest.StartCluster(t)
	seal := filepath.Join(t.TempDir(), "seal.key")
	config := filepath.Join(t.TempDir(), "accessd.yaml")
	harness.WriteFile(t, config, fmt.Sprintf("storage: {etcd: {endpoints: [%s], ca_file: %s, cert_file: %s, key_file: %s}}\nkeys: {file: %s}\n",
		strings.Join(etcd.Endpoints, ", "), etcd.CAFile, etcd.CertFile, etcd.KeyFile, seal))
	a := harness.New(t, "--config", config, "--node-name", "hub-a")
	b := harness.New(t, "--config", config, "--node-name", "hub-b")

	if pinA, pinB := a.Admin("ca", "pin"), b.Admin("ca", "pin"); pinA != pinB {
		t.Fatalf("the pins differ: %q and %q", pinA, pinB)
	}
	a.Admin("users", "add", "alice", "--roles", "access", "--logins", a.Login)
	alice := b.Sign("alice", "1h")
	a.Node("n1")
	b.Eventually("the node has tunnels to both", func() bool {
		n := b.NodeList()
		return len(n) == 1 && len(n[0].Proxies) == 2
	})
	for name, hub := range map[string]*harness.Cluster{"a": a, "b": b} {
		config := b.File("config-"+name, b.Admin("ssh-config", "--identity", alice.Key, "--proxy", hub.Addr))
		if r := harness.Run(t, nil, "ssh", "-F", config, "-o", "BatchMode=yes", "n1", "echo", name); r.Code != 0 || r.Stdout != name+"\n" {
			t.Errorf("through %s: ssh = %d %q %q", name, r.Code, r.Stdout, r.Stderr)
		}
	}
	wantEvent(t, b, map[string]string{"user": "alice", "server_hostname": "hub-b"}, "--event", "access.decision")

	a.Main.Kill()
	config2 := filepath.Join(b.Home, "config-b")
	if r := harness.Run(t, nil, "ssh", "-F", config2, "-o", "BatchMode=yes", "n1", "echo", "still"); r.Code != 0 || r.Stdout != "still\n" {
		t.Errorf("with a gone: ssh = %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	b.Admin("users", "sign", "alice", "--public-key", alice.Key+".pub", "--ttl", "1h")
	b.Verify()
	a.StartMain()
	a.Verify()
}
