package remote

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/srv"
)

// rsaHost makes an RSA host key for an sshd.
func rsaHost(t *testing.T) (setting, line string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rsa")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	public, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return "HostKey " + file, string(public)
}

// TestAlgorithms: what OpenSSH since 7.4 can be held to is enough, each by
// itself; what needs SHA-1 or CBC is not used.
func TestAlgorithms(t *testing.T) {
	for setting, good := range map[string]bool{
		"KexAlgorithms curve25519-sha256@libssh.org":             true,
		"KexAlgorithms ecdh-sha2-nistp521":                       true,
		"KexAlgorithms diffie-hellman-group16-sha512":            true,
		"KexAlgorithms diffie-hellman-group-exchange-sha256":     true,
		"KexAlgorithms diffie-hellman-group14-sha256":            true,
		"Ciphers chacha20-poly1305@openssh.com":                  true,
		"Ciphers aes256-ctr\nMACs hmac-sha2-512":                 true,
		"Ciphers aes128-ctr\nMACs hmac-sha2-256-etm@openssh.com": true,
		"HostKeyAlgorithms rsa-sha2-512":                         true,
		"HostKeyAlgorithms rsa-sha2-256":                         true,
		"HostKeyAlgorithms ssh-rsa":                              false,
		"KexAlgorithms diffie-hellman-group14-sha1":              false,
		"Ciphers aes256-cbc":                                     false,
		"Ciphers aes128-ctr\nMACs hmac-sha1":                     false,
		"Ciphers aes128-ctr\nMACs umac-128-etm@openssh.com":      false,
	} {
		t.Run(strings.ReplaceAll(setting, "\n", ", "), func(t *testing.T) {
			w := newWorld(t)
			key, line := rsaHost(t)
			w.sshd(setting, key)
			w.node.HostKeys = append(w.node.HostKeys, line)
			x := w.executor()
			if good {
				if r := w.run(x, w.command(srv.KindExec, "exit 4"), nil); r.exit != (srv.Exit{Code: 4}) {
					t.Errorf("exit = %+v", r.exit)
				}
				return
			}
			_, err := x.Start(t.Context(), w.command(srv.KindShell, ""))
			if want := `the SSH server of node "db-1" has no algorithm that is good enough`; fault.Public(err) != want {
				t.Errorf("Start = %v, public %q, want %q", err, fault.Public(err), want)
			}
		})
	}
}

// TestDropbear: its server speaks with us, but knows no certificates, and the
// person reads that the login is not trusted.
func TestDropbear(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	if out, err := exec.Command("dropbearkey", "-t", "ed25519", "-f", filepath.Join(dir, "key")).CombinedOutput(); err != nil {
		t.Fatalf("this test needs dropbear: %v: %s", err, out)
	}
	out, err := exec.Command("dropbearkey", "-y", "-f", filepath.Join(dir, "key")).Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, ssh.KeyAlgoED25519) {
			w.node.HostKeys = []string{line}
		}
	}
	w.addr = freePort(t)
	_, port, _ := net.SplitHostPort(w.addr)
	cmd := exec.Command("dropbear", "-F", "-E", "-s", "-r", filepath.Join(dir, "key"), "-p", "127.0.0.1:"+port, "-P", filepath.Join(dir, "pid"))
	if err := cmd.Start(); err != nil {
		t.Fatalf("this test needs dropbear: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it runs until then
		_ = cmd.Wait()
	})
	await(t, w.addr)
	_, err = w.executor().Start(t.Context(), w.command(srv.KindShell, ""))
	if !fault.Is(err, fault.Denied) || !strings.Contains(fault.Public(err), "does not trust the cluster's CA") {
		t.Errorf("Start = %v", err)
	}
}
