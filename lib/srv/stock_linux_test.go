package srv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// peer is an SSH server that the stock client is pointed at.
type peer struct {
	addr string
	args []string
}

func localWorld(t *testing.T, settings ...setting) (*world, peer) {
	t.Helper()
	local, err := NewLocal(LocalConfig{})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, local, settings...)
	return w, peer{addr: w.listen(identity(time.Now().Add(time.Hour)))}
}

// sshd starts OpenSSH's server as the yardstick.
func sshd(t *testing.T) peer {
	t.Helper()
	dir, err := os.MkdirTemp("", "sshd") //nolint:usetesting // sshd reads keys as the account, which a test's directory is closed to
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"host", "id"} {
		run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name))
	}
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd's privilege separation directory
			t.Fatal(err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().(*net.TCPAddr)
	ln.Close()
	config := fmt.Sprintf("ListenAddress 127.0.0.1\nPort %d\nHostKey %s/host\nAuthorizedKeysFile %s/id.pub\n"+
		"StrictModes no\nUsePAM no\nPidFile none\nPrintMotd no\nPrintLastLog no\nAcceptEnv LANG LC_*\n"+
		"PermitRootLogin yes\nMaxStartups 100\n", addr.Port, dir, dir)
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := exec.LookPath("sshd")
	if err != nil {
		path = "/usr/sbin/sshd"
	}
	cmd := exec.Command(path, "-D", "-e", "-f", filepath.Join(dir, "config"))
	if err := cmd.Start(); err != nil {
		t.Fatalf("OpenSSH's server is needed: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	p := peer{addr: addr.String(), args: []string{"-i", filepath.Join(dir, "id")}}
	p.awaitBanner(t)
	return p
}

// awaitBanner returns when p answers.
func (p peer) awaitBanner(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 500 {
		if conn, err := net.Dial("tcp", p.addr); err == nil {
			conn.Close()
			return
		}
		<-tick.C
	}
	t.Fatalf("%s does not answer", p.addr)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// command returns the stock client, to run the rest of args.
func (p peer) command(ctx context.Context, login string, args ...string) *exec.Cmd {
	host, port, _ := net.SplitHostPort(p.addr)
	flags, rest := splitFlags(args)
	all := append(flags, // the first value of an option counts
		"-F", "none", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes", "-p", port, "-l", login)
	all = append(append(append(all, p.args...), host), rest...)
	cmd := exec.CommandContext(ctx, "ssh", all...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LANG=C.UTF-8", "LC_TEST=one two", "EVIL=1", "TERM=xterm-test"}
	return cmd
}

// splitFlags parts ssh's flags from the remote command.
func splitFlags(args []string) (flags, rest []string) {
	i := 0
	for i < len(args) && strings.HasPrefix(args[i], "-") {
		if args[i] == "-o" || args[i] == "-W" {
			i++
		}
		i++
	}
	return slices.Clone(args[:i]), args[i:]
}

// result is what a person sees of one ssh.
type result struct {
	Code           int
	Stdout, Stderr string
}

func (p peer) ssh(t *testing.T, login, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := p.command(ctx, login, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	exit, _ := errors.AsType[*exec.ExitError](err)
	if err != nil && exit == nil {
		t.Error(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// volatile is what differs from one connection to the next.
var volatile = regexp.MustCompile(`127\.0\.0\.1 \d+|/dev/pts/\d+| \d{4,5}\b|pipe:\[\d+\]`)

func clip(s string) string {
	if len(s) > 2000 {
		return s[:1000] + "..." + s[len(s)-1000:]
	}
	return s
}

// What the stock client shows must be what it shows with OpenSSH's server:
// status, output and errors, byte for byte.
func TestStockSameAsSSHD(t *testing.T) {
	const tty = "-tt"
	big := strings.Repeat("0123456789abcde\n", 10<<20/16)
	tests := []struct {
		name        string
		stdin       string
		args        []string
		least, most time.Duration // how long it may take; 0 is no bound
	}{
		{name: "true", args: []string{"true"}},
		{name: "false", args: []string{"false"}},
		{name: "exit status", args: []string{"exit 7"}},
		{name: "exit 255", args: []string{"exit 255"}},
		{name: "killed", args: []string{"kill -9 $$"}},
		{name: "terminated", args: []string{"kill -TERM $$"}},
		{name: "bad system call", args: []string{"kill -SYS $$"}},
		{name: "killed with terminal", args: []string{tty, "kill -9 $$"}},
		{name: "no such command", args: []string{"/no/such/command"}},
		{name: "syntax error", args: []string{"if"}},
		{name: "empty command", args: []string{""}},
		{name: "stdout and stderr apart", args: []string{"echo out; echo err >&2; exit 3"}},
		{name: "terminal joins them", args: []string{tty, "echo out; echo err >&2; exit 3"}},
		{name: "much on both", args: []string{"head -c 3000000 /dev/zero | tr '\\0' a; head -c 3000000 /dev/zero | tr '\\0' b >&2"}},
		{name: "10 MB in and out", stdin: big, args: []string{"cat"}},
		{name: "10 MB in, counted", stdin: big, args: []string{"wc -c"}},
		{name: "half-close", stdin: "one\ntwo\n", args: []string{"cat; echo done; sleep 0.2; echo later"}},
		{name: "stdin not read", stdin: big, args: []string{"echo hi"}},
		{name: "stdin closed by the command", stdin: big, args: []string{"exec <&-; sleep 0.3; echo hi"}},
		{name: "stdout closed by the command", args: []string{"exec >&- 2>&-; sleep 0.3; exit 4"}},
		{name: "yes to head", args: []string{"yes | head -c 1000000"}},
		{name: "background holds stdout", args: []string{"sleep 1 & echo hi"}, least: time.Second},
		{name: "background does not", args: []string{"sleep 5 >/dev/null 2>&1 & echo hi"}, most: 4 * time.Second},
		{name: "background with terminal", args: []string{tty, "sleep 5 & echo hi"}, most: 4 * time.Second},
		{name: "shell without terminal", stdin: "echo $0; shopt -q login_shell && echo login; exit 5\n"},
		{name: "line on a terminal", stdin: "one\n", args: []string{tty, "read x; echo got $x; exit 6"}},
		{name: "name of the shell", args: []string{"echo $0 $#"}},
		{name: "environment", args: []string{"-o", "SendEnv=LANG LC_* EVIL", "env -u _ | sort | grep -v ^SSH_; set | grep ^SSH_"}},
		{name: "environment with terminal", args: []string{tty, "-o", "SendEnv=LANG LC_* EVIL", "env -u _ | sort"}},
		{name: "directory", args: []string{"pwd; umask; ulimit -n"}},
		{name: "files", args: []string{"ls -l /proc/self/fd | sed 's/.* \\([0-9]\\) -> /\\1 /; s/^[0-9] .proc.*//'"}},
		{name: "session", args: []string{"ps -o pid= -o pgid= -o sid= -o tty= -p $$ | awk '{print ($1==$2), ($2==$3), $4}'"}},
		{name: "modes", args: []string{tty, "stty -a"}},
		{name: "owner of the terminal", args: []string{tty, "stat -c '%U %G %a' $(tty)"}},
		{name: "no terminal", args: []string{"tty"}},
		{name: "long command", args: []string{"true " + strings.Repeat("x", 100_000)}},
		{name: "too long a command", args: []string{"true " + strings.Repeat("x", 130_900)}},
		{name: "hidden output", args: []string{"printf '\\033[31m\\000\\377\\r\\n'"}},
		{name: "raw bytes on a terminal", args: []string{tty, "stty raw; printf 'a\\nb\\r\\n\\377'"}},
		{name: "bytes through a raw terminal", args: []string{tty, "stty raw -echo; head -c 100000 /dev/urandom | tee /dev/stderr 2>/dev/null | wc -c"}},
		{name: "nohup", args: []string{"nohup true; echo $?"}},
		{name: "eof on a terminal", stdin: "echo hi\n\x04", args: []string{tty, "cat"}},
	}
	yard := sshd(t)
	_, ours := localWorld(t)
	login := me(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var want result
			var wg sync.WaitGroup
			wg.Go(func() { want = yard.ssh(t, login, test.stdin, test.args...) })
			begun := time.Now()
			got := ours.ssh(t, login, test.stdin, test.args...)
			took := time.Since(begun)
			wg.Wait()
			for _, text := range []*string{&got.Stdout, &want.Stdout, &got.Stderr, &want.Stderr} {
				if len(*text) < 1<<16 { // to look through megabytes takes a minute under -race
					*text = volatile.ReplaceAllString(*text, "<>")
				}
			}
			if got != want {
				t.Errorf("got code %d, stdout %q, stderr %q\nwant code %d, stdout %q, stderr %q",
					got.Code, clip(got.Stdout), clip(got.Stderr), want.Code, clip(want.Stdout), clip(want.Stderr))
			}
			if took < test.least || test.most > 0 && took > test.most {
				t.Errorf("took %v, want %v to %v", took, test.least, test.most)
			}
		})
	}
}
