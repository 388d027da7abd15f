package harness

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Sshd is a stock OpenSSH server on a host, with a configuration of its own. The
// test owns the listener and hands each connection to an "sshd -i".
type Sshd struct {
	Addr    string
	HostKey string // its public key, authorized_keys format
	Dir     string // of its configuration
	config  string
}

// Log returns what its processes said so far.
func (s *Sshd) Log() string {
	text, _ := os.ReadFile(filepath.Join(s.Dir, "log"))
	return string(text)
}

// sshdConfig is what sshd does by default, where a default exists, and what
// Debian's own file adds to it less PAM, which a server without cgo has not.
const sshdConfig = `HostKey %[1]s/host_ed25519
AuthorizedKeysFile %[1]s/keys/%%u
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
AcceptEnv LANG LC_*
X11Forwarding yes
PrintLastLog no
PidFile none
MaxSessions 100
MaxAuthTries 20
Subsystem sftp /usr/lib/openssh/sftp-server
`

// Sshd starts a stock server on the host; lines are further configuration.
func (h *Host) Sshd(t testing.TB, lines ...string) *Sshd {
	t.Helper()
	dir, err := os.MkdirTemp("", "accessd-sshd-") //nolint:usetesting // sshd reads it as the account that signs in, too
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &Sshd{Dir: dir}
	for _, err := range []error{os.Chmod(dir, 0o755), os.Mkdir(filepath.Join(dir, "keys"), 0o755), os.MkdirAll("/run/sshd", 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.NewHostKey(t)
	s.config = filepath.Join(dir, "sshd_config")
	s.Configure(t, lines...)
	s.serve(t, h)
	return s
}

// SshdAt starts a stock server with the configuration that is on the host.
func (h *Host) SshdAt(t testing.TB, config string) *Sshd {
	t.Helper()
	s := &Sshd{Dir: t.TempDir(), config: config}
	s.serve(t, h)
	return s
}

// NewHostKey makes another host key, for connections from now on.
func (s *Sshd) NewHostKey(t testing.TB) {
	t.Helper()
	key := filepath.Join(s.Dir, "host_ed25519")
	_ = os.Remove(key)
	if r := Run(t, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key); r.Code != 0 {
		t.Fatalf("ssh-keygen: %s", r.Stderr)
	}
	pub, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	s.HostKey = strings.TrimSpace(string(pub))
}

// Configure writes the configuration, for connections from now on.
func (s *Sshd) Configure(t testing.TB, lines ...string) {
	t.Helper()
	WriteFile(t, filepath.Join(s.Dir, "sshd_config"), fmt.Sprintf(sshdConfig, s.Dir)+strings.Join(lines, "\n")+"\n")
}

// Authorize lets a public key in as an account.
func (s *Sshd) Authorize(t testing.TB, account, key string) {
	t.Helper()
	path := filepath.Join(s.Dir, "keys", account)
	WriteFile(t, path, key+"\n")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (s *Sshd) serve(t testing.TB, h *Host) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Addr = ln.Addr().String()
	var live sync.WaitGroup
	var mu sync.Mutex
	running := map[*exec.Cmd]bool{}
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for cmd := range running {
			_ = cmd.Process.Kill()
		}
		mu.Unlock()
		live.Wait()
		if t.Failed() {
			t.Logf("sshd %s:\n%s", s.Addr, tail(s.Log(), 8000))
		}
	})
	live.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f, err := c.(*net.TCPConn).File()
			c.Close()
			if err != nil {
				continue
			}
			cmd := h.Command("/usr/sbin/sshd", "-i", "-E", filepath.Join(s.Dir, "log"), "-f", s.config)
			cmd.Stdin, cmd.Stdout = f, f
			mu.Lock()
			if err := cmd.Start(); err == nil {
				running[cmd] = true
				live.Go(func() {
					_ = cmd.Wait()
					mu.Lock()
					delete(running, cmd)
					mu.Unlock()
				})
			}
			mu.Unlock()
			f.Close()
		}
	})
}
