package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Host is a machine of its own as far as accounts go: what runs on it has its
// own /etc, a copy of this machine's, and its own /home. So a scenario may lock
// an account or write /etc/nologin and nobody else notices.
type Host struct {
	t    testing.TB
	etc  string
	home string
	pid  string
}

// NewHost makes a host; it needs root.
func NewHost(t testing.TB) *Host {
	t.Helper()
	needRoot(t, "a host of its own")
	dir, err := os.MkdirTemp("", "accessd-host-") //nolint:usetesting // a test's directory is closed to other accounts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := &Host{t: t, etc: filepath.Join(dir, "etc"), home: filepath.Join(dir, "home")}
	for _, err := range []error{os.Chmod(dir, 0o755), os.Mkdir(h.home, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// An account may be made on this machine meanwhile: files come and go, and a
	// lock that is copied would never be released.
	if r := Run(t, nil, "sh", "-c", `cp -a /etc "$0"; rm -f "$0"/*.lock "$0"/*.[0-9]*; cd "$0" && test -s passwd && test -s shadow && test -s group`, h.etc); r.Code != 0 {
		t.Fatalf("cp -a /etc: %s", r.Stderr)
	}
	h.hold()
	return h
}

// hold starts the process that keeps the host's mounts.
func (h *Host) hold() {
	h.t.Helper()
	holder := exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc && mount --bind "$1" /home && echo ready && exec sleep infinity`, h.etc, h.home)
	stdout, err := holder.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	var words bytes.Buffer
	holder.Stderr = &words
	if err := holder.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	if _, err := io.ReadFull(stdout, make([]byte, len("ready"))); err != nil {
		h.t.Fatalf("a host of its own: %v %s", err, words.String())
	}
	h.pid = fmt.Sprint(holder.Process.Pid)
}

// Command returns a command that will run on the host.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", h.on(name, args)...)
}

func (h *Host) on(name string, args []string) []string {
	return append([]string{"--target", h.pid, "--mount", "--", name}, args...)
}

// Run runs a command on the host to its end.
func (h *Host) Run(stdin io.Reader, name string, args ...string) Result {
	h.t.Helper()
	return Run(h.t, stdin, "nsenter", h.on(name, args)...)
}

// Must runs a command on the host that has to succeed and returns its stdout.
func (h *Host) Must(name string, args ...string) string {
	h.t.Helper()
	r := h.Run(nil, name, args...)
	if r.Code != 0 {
		h.t.Fatalf("%s %q: exit %d\n%s", name, args, r.Code, r.Stderr)
	}
	return r.Stdout
}

// Account adds an account with its home directory; flags are useradd's.
func (h *Host) Account(name string, flags ...string) {
	h.t.Helper()
	h.Must("sh", append([]string{"-c", `id "$0" >/dev/null 2>&1 && userdel "$0"; exec useradd --create-home --password '*' "$@" "$0"`, name}, flags...)...)
}

// Etc returns the path, as the test sees it, of a file of the host's /etc.
func (h *Host) Etc(name string) string { return filepath.Join(h.etc, name) }

// Start runs the binary on the host and waits for its ready line.
func (h *Host) Start(args ...string) *Process {
	h.t.Helper()
	p, ready := launch(h.t, h.Command(Binary(h.t), args...))
	p.await(ready)
	return p
}

// NodeOn joins and starts a node that runs on a host.
func (c *Cluster) NodeOn(h *Host, name string, extra ...string) *Process {
	c.T.Helper()
	p := h.Start(c.NodeArgs(name, c.T.TempDir(), extra...)...)
	c.Nodes[name] = p
	c.WaitOnline(name)
	return p
}

// RunFor runs a command to its end, at most for the given time.
func RunFor(t testing.TB, limit time.Duration, cmd *exec.Cmd) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("%q: %v", cmd.Args, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	err := cmd.Wait()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String()}
	if ctx.Err() != nil {
		t.Fatalf("%q: still running after %v\nstdout: %.2000s\nstderr: %.4000s", cmd.Args, limit, r.Stdout, r.Stderr)
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		r.Code = exit.ExitCode()
	} else if err != nil {
		t.Fatalf("%q: %v", cmd.Args, err)
	}
	return r
}
