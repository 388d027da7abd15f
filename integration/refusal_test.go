package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/integration/harness"
	"github.com/accessd/accessd/lib/sshca"
)

// refused runs ssh and wants it to fail as a stock client fails, with the given
// words on stderr.
func refused(t *testing.T, r harness.Result, words ...string) {
	t.Helper()
	if r.Code != 255 {
		t.Errorf("ssh exited %d, want 255\n%s", r.Code, r.Stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			t.Errorf("the person reads %q, want it to say %q", r.Stderr, w)
		}
	}
}

// A valid certificate whose roles do not reach: each refusal says why as far as
// the person may know, and is an event.
func TestRefusalsByRole(t *testing.T) {
	t.Parallel()
	eachPath(t, func(t *testing.T, c *harness.Cluster) {
		c.Node("n1", "--labels", "env=dev")
		c.Node("n2", "--labels", "env=prod")
		c.Admin("roles", "apply", "-f", c.File("roles.yaml", `
kind: role
name: dev
allow:
  - nodes: {env: dev}
    logins: ["{{user.logins}}"]
    actions: [shell, exec]
---
kind: role
name: shell-only
allow:
  - nodes: {"*": "*"}
    logins: ["{{user.logins}}"]
    actions: [shell]
`))
		dev := c.User("dev", "dev").Configure()
		if r := dev.SSH("n1", "true"); r.Code != 0 {
			t.Fatalf("ssh n1 = %d %s", r.Code, r.Stderr)
		}

		t.Run("wrong node", func(t *testing.T) {
			refused(t, dev.SSH("n2", "true"))
			wantEvent(t, c, map[string]string{"user": "dev", "success": "false"}, "--event", "access.decision", "--user", "dev")
		})
		t.Run("wrong login", func(t *testing.T) {
			refused(t, dev.SSH("-l", "nobody", "n1", "true"), "Permission denied")
			wantEvent(t, c, map[string]string{"success": "false", "server_hostname": "n1"}, "--event", "auth.rejected")
		})
		t.Run("wrong action", func(t *testing.T) {
			shell := c.User("sheila", "shell-only")
			refused(t, shell.SSH("n1", "true"), "exec")
			wantEvent(t, c, map[string]string{"user": "sheila", "success": "false", "action": "exec"}, "--event", "access.decision", "--user", "sheila")
		})
		t.Run("unknown node", func(t *testing.T) {
			refused(t, dev.SSH("-J", "accessd-proxy", c.Login+"@n9", "true"), "n9")
		})
		t.Run("role removed from the person", func(t *testing.T) {
			c.Admin("users", "rm", "dev")
			refused(t, dev.SSH("n1", "true"))
		})
		c.Verify()
	})
}

// forge writes a certificate for key beside it, signed by ca after edit.
func forge(t *testing.T, key string, ca ssh.Signer, edit func(*ssh.Certificate)) {
	t.Helper()
	text, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		t.Fatal(err)
	}
	cert := &ssh.Certificate{
		Key: pub, CertType: ssh.UserCert, KeyId: "alice", Serial: 7, ValidPrincipals: []string{"user:alice", "root"},
		ValidAfter: uint64(time.Now().Add(-time.Hour).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{"permit-pty": "", "roles@accessd": `["access"]`}},
	}
	if edit != nil {
		edit(cert)
	}
	if err := cert.SignCert(strings.NewReader(strings.Repeat("x", 1024)), ca); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key+"-cert.pub", ssh.MarshalAuthorizedKey(cert), 0o600); err != nil {
		t.Fatal(err)
	}
}

// direct connects to the proxy with a key and its certificate, as "login" does.
func direct(t *testing.T, c *harness.Cluster, user, key string) harness.Result {
	t.Helper()
	hosts := filepath.Join(c.Home, "hosts")
	if err := os.WriteFile(hosts, []byte(c.Admin("ca", "export", "--type", "host", "--format", "known-hosts")), 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(c.Addr, ":")
	return harness.Run(t, nil, "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "UserKnownHostsFile="+hosts, "-o", "GlobalKnownHostsFile=none",
		"-i", key, "-p", port, "-W", "n1:22", user+"@127.0.0.1")
}

// F25 at the proxy: certificates that are not ours, not now, or not for this.
func TestCertificateMisuseIsRefused(t *testing.T) {
	t.Parallel()
	c := harness.New(t, "--config", noPenalties(t))
	alice := c.User("alice", "access")
	_, stranger := sshca.Generate()

	cases := []struct {
		name    string
		refusal string
		edit    func(*ssh.Certificate)
	}{
		{"a stranger's CA", "wrong_ca", nil},
		{"a host certificate", "", func(k *ssh.Certificate) { k.CertType = ssh.HostCert }},
		{"no principals", "", func(k *ssh.Certificate) { k.ValidPrincipals = nil }},
		{"expired", "", func(k *ssh.Certificate) { k.ValidBefore = uint64(time.Now().Add(-time.Minute).Unix()) }},
	}
	for i, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			key := c.Key(fmt.Sprintf("forged-%d", i))
			forge(t, key, stranger, tc.edit)
			refused(t, direct(t, c, "alice", key), "Permission denied")
		})
	}
	wantEvent(t, c, map[string]string{"refusal": "wrong_ca", "success": "false"}, "--event", "auth.rejected")

	t.Run("signed by a person's own certified key", func(t *testing.T) {
		text, err := os.ReadFile(alice.Key)
		if err != nil {
			t.Fatal(err)
		}
		signer, err := ssh.ParsePrivateKey(text)
		if err != nil {
			t.Fatal(err)
		}
		key := c.Key("nested")
		forge(t, key, signer, nil)
		refused(t, direct(t, c, "alice", key), "Permission denied")
	})
	t.Run("somebody else's name", func(t *testing.T) {
		c.Admin("users", "add", "bob", "--roles", "admin", "--logins", c.Login)
		refused(t, direct(t, c, "bob", alice.Key), "Permission denied")
	})
	t.Run("expired by time", func(t *testing.T) {
		short := c.Sign("alice", "1s")
		harness.Eventually(t, "the certificate expires", func() bool {
			return direct(t, c, "alice", short.Key).Code == 255 && strings.Contains(direct(t, c, "alice", short.Key).Stderr, "Permission denied")
		})
		wantEvent(t, c, map[string]string{"refusal": "expired", "key_id": "alice"}, "--event", "auth.rejected")
	})
	t.Run("the session's channel is not a shell", func(t *testing.T) {
		_, port, _ := strings.Cut(c.Addr, ":")
		r := harness.Run(t, nil, "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "UserKnownHostsFile="+filepath.Join(c.Home, "hosts"), "-i", alice.Key, "-p", port, "alice@127.0.0.1", "cat /etc/passwd")
		if r.Code == 0 || strings.Contains(r.Stdout, "root:") {
			t.Errorf("the proxy ran a command: %d %q", r.Code, r.Stdout)
		}
	})
	c.Verify()
}

// The proxy is no pivot: only registered nodes are destinations.
func TestProxyReachesNothingButNodes(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	alice := c.User("alice", "access").Configure()
	_, port, _ := strings.Cut(c.Addr, ":")
	for _, target := range []string{"169.254.169.254:80", "127.0.0.1:" + port, "[::1]:22", "localhost:22", "example.com:22", "10.0.0.1:22", "n1.evil:22"} {
		r := alice.SSH("-W", target, "accessd-proxy")
		refused(t, r)
		if strings.Contains(r.Stderr, "refused") && !strings.Contains(r.Stderr, "no node") && !strings.Contains(r.Stderr, "prohibited") {
			t.Errorf("-W %s: %q looks like a dialled connection", target, r.Stderr)
		}
	}
}
