package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/accessd/accessd/integration/harness"
)

// What a person does with files and ports is in the log, on every kind of node:
// paths, results, and for content its size and SHA-256.
func TestWhatIsRecorded(t *testing.T) {
	t.Parallel()
	f := newFleet(t, only()...)
	for _, x := range f.targets() {
		if x.kind == stock || x.way == "command" {
			continue
		}
		t.Run(strings.ReplaceAll(x.kind, " ", "")+" "+x.way, func(t *testing.T) {
			t.Parallel()
			t.Run("sftp", func(t *testing.T) { recordedFiles(t, x) })
			t.Run("scp -O", func(t *testing.T) { recordedSCP(t, x) })
			t.Run("forwards", func(t *testing.T) { recordedForwards(t, x) })
		})
	}
	t.Cleanup(f.Verify)
}

func recordedFiles(t *testing.T, x target) {
	far, near := x.scratch(t), t.TempDir()
	want := blob(t, near+"/a", 300_000)
	r := x.sftp(t, fmt.Sprintf("put %[1]s/a %[2]s/b\nget %[2]s/b %[1]s/c\nmkdir %[2]s/d\nrename %[2]s/b %[2]s/d/e\nsymlink d/e %[2]s/l\nchmod 600 %[2]s/d/e\nrm %[2]s/l\n-get /etc/shadow %[1]s/s\nrm %[2]s/d/e\nrmdir %[2]s/d\n", near, far))
	if r.Code != 0 {
		t.Fatalf("sftp: exit %d %s", r.Code, r.Stderr)
	}
	for _, fields := range []map[string]string{
		{"action": "close", "path": far + "/b", "bytes_written": "300000", "sha256": want, "sequential": "true", "success": "true"},
		{"action": "close", "path": far + "/b", "bytes_read": "300000", "sha256": want, "success": "true"},
		{"action": "mkdir", "path": far + "/d", "success": "true"},
		{"action": "rename", "path": far + "/b", "target_path": far + "/d/e", "success": "true"},
		{"action": "symlink", "success": "true"},
		{"action": "setstat", "path": far + "/d/e", "success": "true"},
		{"action": "remove", "path": far + "/l", "success": "true"},
		{"action": "open", "path": "/etc/shadow", "success": "false"},
		{"action": "rmdir", "path": far + "/d", "success": "true"},
	} {
		fields["user"], fields["login"], fields["node_name"] = "alice", login, x.node
		wantEvent(t, x.Cluster, fields, "--event", "sftp", "--user", "alice")
	}
}

func recordedSCP(t *testing.T, x target) {
	far, near := x.scratch(t), t.TempDir()
	want := blob(t, near+"/a", 200_000)
	must(t, x.run(t, nil, "scp", "-q", "-O", "-F", x.config, near+"/a", x.alias()+":"+far+"/b"))
	must(t, x.run(t, nil, "scp", "-q", "-O", "-F", x.config, x.alias()+":"+far+"/b", near+"/c"))
	wantEvent(t, x.Cluster, map[string]string{"path": far + "/b", "bytes_written": "200000", "sha256": want, "node_name": x.node, "success": "true"}, "--event", "scp")
	wantEvent(t, x.Cluster, map[string]string{"path": far + "/b", "bytes_read": "200000", "sha256": want, "node_name": x.node, "success": "true"}, "--event", "scp")
}

func recordedForwards(t *testing.T, x target) {
	service := echo(t)
	r := x.feed(t, strings.NewReader("12345"), []string{"-W", service})
	same(t, r, 0, "12345", "")
	wantEvent(t, x.Cluster, map[string]string{"state": "closed", "direction": "local", "target": service, "bytes_in": "5", "bytes_out": "5", "user": "alice", "node_name": x.node}, "--event", "port")
	at := "127.0.0.1:" + port(t)
	b := x.background(t, x.command([]string{"-N", "-o", "ExitOnForwardFailure=yes", "-R", at + ":" + service}))
	b.throughEcho(t, "tcp", at, 1000)
	wantEvent(t, x.Cluster, map[string]string{"state": "listening", "listen": at, "action": "forward:remote", "node_name": x.node}, "--event", "port")
	r = x.ssh(t, []string{"-W", "127.0.0.1:1"})
	if r.Code == 0 {
		t.Error("a closed port was reached")
	}
	wantEvent(t, x.Cluster, map[string]string{"target": "127.0.0.1:1", "success": "false", "node_name": x.node}, "--event", "port")
}

// A machine with a plain sshd is set up by what the authority prints, and only
// reachable through the proxy then.
func TestSetUpSSHD(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "accessd")
	f.host.Must("sh", "-c", "ssh-keygen -A >/dev/null; rm -f /etc/ssh/sshd_config.d/*; printf 'Include /etc/ssh/sshd_config.d/*.conf\\nUsePAM no\\nPidFile none\\nSubsystem sftp internal-sftp\\n' >/etc/ssh/sshd_config")
	sshd := f.host.SshdAt(t, "/etc/ssh/sshd_config")
	f.Admin("nodes", "add", "plain", "--address", sshd.Addr)
	setup := filepath.Join(open(t), "setup.json")
	key := f.host.Etc("ssh/ssh_host_ed25519_key.pub")
	harness.WriteFile(t, setup, f.Admin("nodes", "setup-sshd", "plain", "--host-key", key, "--format", "json"))
	binary := harness.Binary(t)
	x := target{fleet: f, kind: "sshd", way: "jump", node: "plain"}
	f.addHost(t, "plain")
	fails(t, x.ssh(t, nil, "echo in"), "before it is set up")
	f.host.Must(binary, "nodes", "setup-sshd", "--apply", "--from", setup)
	same(t, x.ssh(t, nil, "echo in"), 0, "in\n", "")
	if text := f.host.Must("/usr/sbin/sshd", "-T"); !strings.Contains(text, "trustedusercakeys /") || !strings.Contains(text, "hostcertificate /") {
		t.Errorf("sshd -T says nothing of our CA or certificate:\n%s", text)
	}
	// A second time changes nothing and breaks nothing.
	f.host.Must(binary, "nodes", "setup-sshd", "--apply", "--from", setup)
	same(t, x.ssh(t, nil, "echo still"), 0, "still\n", "")
	// Nobody walks around the proxy: the certificate of a person opens nothing there.
	host, port, _ := strings.Cut(sshd.Addr, ":")
	r := harness.Run(t, nil, "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes", "-i", f.alice.Key, "-p", port, login+"@"+host, "true")
	refused(t, r, "Permission denied")

	t.Run("units", func(t *testing.T) {
		dir := t.TempDir()
		text := f.Admin("nodes", "unit", "plain", "--proxy", f.Addr)
		for _, want := range []string{"ExecStart=", "ssh", "-N", "-R", "[Timer]", "[Service]"} {
			if !strings.Contains(text, want) {
				t.Errorf("nodes unit does not say %q:\n%s", want, text)
			}
		}
		harness.WriteFile(t, dir+"/units", text)
	})
}
