package proxy

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// stock is a person's machine with stock OpenSSH, which is required.
type stock struct {
	w      *world
	dir    string
	key    string // path of the person's key
	public ssh.PublicKey
	config string
	agent  string // path of an agent's socket, or "none"
	locale string
}

// newStock returns a machine with a fresh key and without a certificate.
func newStock(w *world) *stock {
	w.t.Helper()
	private, signer := sshca.Generate()
	s := &stock{w: w, dir: w.t.(*testing.T).TempDir(), agent: "none", locale: "C.UTF-8", public: signer.PublicKey()}
	s.key = writeKey(w.t, s.dir, "id", private)
	s.config = filepath.Join(s.dir, "config")
	write(w.t, filepath.Join(s.dir, "known_hosts"), []byte("@cert-authority * "+authorizedKey(w.ca[sshca.TypeHost].PublicKey())+"\n"))
	s.configure()
	return s
}

func (s *stock) configure() {
	host, port, _ := strings.Cut(s.w.addr, ":")
	write(s.w.t, s.config, fmt.Appendf(nil, `Host proxy
  HostName %s
  Port %s
  User alice
Host n1 localhost %s ghost
  ProxyJump proxy
  User root
Host *
  IdentityFile %s
  IdentityAgent %s
  UserKnownHostsFile %s/known_hosts
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
  UpdateHostKeys no
`, host, port, idN1, s.key, s.agent, s.dir))
}

// certify puts a certificate for the machine's key beside it.
func (s *stock) certify(user names.UserName, edit ...func(*sshca.UserRequest)) {
	s.w.t.Helper()
	r := s.w.userRequest(user, s.public)
	for _, f := range edit {
		f(&r)
	}
	cert, err := sshca.MintUser(s.w.ca[sshca.TypeUser], r)
	if err != nil {
		s.w.t.Fatal(err)
	}
	write(s.w.t, s.key+"-cert.pub", []byte(certificateLine(cert)))
}

// startAgent starts an agent, which the machine's ssh uses from then on.
func (s *stock) startAgent() {
	s.w.t.Helper()
	s.agent = filepath.Join(s.dir, "agent")
	cmd := exec.Command("ssh-agent", "-D", "-a", s.agent)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.w.t.Fatal(err)
	}
	s.w.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := out.Read(make([]byte, 1)); err != nil { // it prints its address once it listens
		s.w.t.Fatal(err)
	}
	s.configure()
}

// result is what a command left behind.
type result struct {
	code           int
	stdout, stderr string
	prompts        string // what was asked, one a line
}

// answers makes the questions of the next commands be answered with these, in
// order.
func (s *stock) answers(lines ...string) {
	s.w.t.Helper()
	write(s.w.t, filepath.Join(s.dir, "answers"), []byte(strings.Join(lines, "\n")+"\n"))
	write(s.w.t, filepath.Join(s.dir, "prompts"), nil)
	script := fmt.Sprintf("#!/bin/sh\ncd '%s'\nprintf '%%s\\n' \"$1\" >> prompts\nsed -n \"$(wc -l < prompts)p\" answers\n", s.dir)
	if err := os.WriteFile(filepath.Join(s.dir, "askpass"), []byte(script), 0o700); err != nil {
		s.w.t.Fatal(err)
	}
}

// ssh runs stock ssh.
func (s *stock) ssh(args ...string) result {
	return s.run(nil, "ssh", append([]string{"-F", s.config}, args...)...)
}

func (s *stock) run(stdin []byte, name string, args ...string) result {
	s.w.t.Helper()
	ctx, stop := context.WithTimeout(s.w.t.(*testing.T).Context(), time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+s.agent, "SSH_ASKPASS="+filepath.Join(s.dir, "askpass"), "SSH_ASKPASS_REQUIRE=force", "LC_ALL="+s.locale)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		s.w.t.Fatalf("%s %q: %v", name, args, err)
	}
	if ctx.Err() != nil {
		s.w.t.Fatalf("%s %q does not end\n%s", name, args, &stderr)
	}
	prompts, _ := os.ReadFile(filepath.Join(s.dir, "prompts"))
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String(), string(prompts)}
}

// want holds r to an exit code, to the whole of its standard output, and to
// words on its standard error.
func (r result) want(t *testing.T, code int, stdout string, words ...string) {
	t.Helper()
	if r.code != code || r.stdout != stdout {
		t.Errorf("exit %d, stdout %q; want %d, %q\nstderr: %s", r.code, r.stdout, code, stdout, r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.stderr, w) {
			t.Errorf("stderr %q does not say %q", r.stderr, w)
		}
	}
}

func writeKey(t testing.TB, dir, name string, key ed25519.PrivateKey) string {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, name)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	write(t, path, pem.EncodeToMemory(block))
	write(t, path+".pub", []byte(authorizedKey(mustSigner(t, key).PublicKey())+"\n"))
	return path
}

func mustSigner(t testing.TB, key ed25519.PrivateKey) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
