package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/accessd/accessd/integration/harness"
)

const openssh = "ssh"

// same fails unless a command ended as a case says.
func same(t *testing.T, got harness.Result, code int, stdout, stderr string) {
	t.Helper()
	if got.Code != code || got.Stdout != stdout || got.Stderr != stderr {
		t.Errorf("exit %d, stdout %.300q, stderr %.1000q; want %d, %.300q, %.300q", got.Code, got.Stdout, got.Stderr, code, stdout, stderr)
	}
}

// sessionChecks are shells and commands.
func sessionChecks() []check {
	heavy := []string{"jump", "at"} // a ProxyCommand is -J by another name, and takes as long again
	return []check{
		{openssh, "exec", "stdout, stderr and exit status arrive apart", nil, func(t *testing.T, x target) {
			same(t, x.ssh(t, nil, "echo out; echo err >&2; exit 7"), 7, "out\n", "err\n")
		}},
		{openssh, "exit codes", "0, 1, 127 and 255 come through as they are", nil, func(t *testing.T, x target) {
			for _, code := range []int{0, 1, 127, 255} {
				same(t, x.ssh(t, nil, fmt.Sprintf("exit %d", code)), code, "", "")
			}
		}},
		{openssh, "death by signal", "a command that a signal ends makes the client exit with 255", nil, func(t *testing.T, x target) {
			same(t, x.ssh(t, nil, "echo before; kill -TERM $$"), 255, "before\n", "")
		}},
		{openssh, "arguments", "quoting reaches the login shell untouched", nil, func(t *testing.T, x target) {
			same(t, x.ssh(t, nil, `printf '[%s]' "a  b" 'c"d' e\ f '$HOME' "é"`), 0, `[a  b][c"d][e f][$HOME][é]`, "")
		}},
		{openssh, "binary both ways", "1 MB of every byte value through cat", nil, func(t *testing.T, x target) {
			body := noise(1 << 20)
			r := x.feed(t, bytes.NewReader(body), nil, "cat")
			if r.Code != 0 || digest([]byte(r.Stdout)) != digest(body) {
				t.Errorf("exit %d, %d of %d bytes or others came back: %s", r.Code, len(r.Stdout), len(body), r.Stderr)
			}
		}},
		{openssh, "50 MB up", "content arrives whole under back-pressure", heavy, func(t *testing.T, x target) {
			path := filepath.Join(t.TempDir(), "blob")
			want := blob(t, path, 50<<20)
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			same(t, x.feed(t, f, nil, "sha256sum"), 0, want+"  -\n", "")
		}},
		{openssh, "50 MB down", "content arrives whole under back-pressure", heavy, func(t *testing.T, x target) {
			dir := x.scratch(t)
			want := blob(t, filepath.Join(dir, "blob"), 50<<20)
			out, err := os.Create(filepath.Join(t.TempDir(), "got"))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			cmd := x.command(nil, "cat "+dir+"/blob")
			cmd.Stdout = out
			if r := harness.RunFor(t, long, cmd); r.Code != 0 {
				t.Errorf("exit %d: %s", r.Code, r.Stderr)
			}
			sameFile(t, out.Name(), want)
		}},
		{openssh, "half-close", "output still flows after the input's end", nil, func(t *testing.T, x target) {
			r := x.feed(t, strings.NewReader("one\ntwo\n"), nil, "wc -l; head -c 100000 /dev/zero | tr '\\0' x")
			same(t, r, 0, "2\n"+strings.Repeat("x", 100000), "")
		}},
		{openssh, "shell without a terminal", "a login shell reads commands from its input", nil, func(t *testing.T, x target) {
			r := x.feed(t, strings.NewReader("echo \"$0\"; echo here; exit 3\n"), []string{"-T"})
			if r.Code != 3 || !strings.HasSuffix(r.Stdout, "-bash\nhere\n") {
				t.Errorf("exit %d, stdout %q, stderr %q", r.Code, r.Stdout, r.Stderr)
			}
		}},
		{openssh, "terminal", "size, echo, Ctrl-C and a login shell's exit status", nil, terminal},
		{openssh, "window change", "a resized window reaches the program as SIGWINCH", nil, windowChange},
		{openssh, "raw terminal", "bytes pass a terminal in raw mode unchanged", nil, func(t *testing.T, x target) {
			r := x.ssh(t, []string{"-tt"}, `stty raw -echo; printf 'a\nb\r\nc\td\033[1m\0\377'`)
			if want := "a\nb\r\nc\td\x1b[1m\x00\xff"; r.Stdout != want {
				t.Errorf("exit %d, stdout %q, want %q", r.Code, r.Stdout, want)
			}
		}},
		{openssh, "environment", "LANG and LC_* are taken, others are not; the session's own variables are there", nil, environment},
		{openssh, "ControlMaster", "fifty commands at once on one connection", nil, controlMaster},
		{openssh, "keepalive", "the client's probes are answered in a silent session", nil, func(t *testing.T, x target) {
			same(t, x.ssh(t, []string{"-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1"}, "sleep 4; echo alive"), 0, "alive\n", "")
		}},
		{openssh, "rekeying under load", "new keys every megabyte in both directions", heavy, func(t *testing.T, x target) {
			body := noise(4 << 20)
			r := x.feed(t, bytes.NewReader(body), []string{"-o", "RekeyLimit=1M"}, "cat")
			if r.Code != 0 || digest([]byte(r.Stdout)) != digest(body) {
				t.Errorf("exit %d, %d of %d bytes or others came back: %s", r.Code, len(r.Stdout), len(body), r.Stderr)
			}
		}},
		{openssh, "agent", "-A lends the agent to one session, at a socket in a private directory", nil, forwardAgent},
		{openssh, "X11 trusted", "-Y: a program on the node draws on the person's display", nil, func(t *testing.T, x target) { forwardX11(t, x, "-Y") }},
		{openssh, "X11 untrusted", "-X: the same with a cookie of the security extension", nil, func(t *testing.T, x target) { forwardX11(t, x, "-X") }},
	}
}

func terminal(t *testing.T, x target) {
	cmd := x.command([]string{"-tt"})
	cmd.Env = append(os.Environ(), "TERM=vt220")
	k := harness.Sit(t, cmd)
	k.Send("PS1=; stty size; echo \"term=$TERM\"; tty")
	k.Expect(`\r24 80\r\n`)
	k.Expect(`term=vt220`)
	k.Expect(`/dev/pts/\d+\r\n`)
	k.Send("stty -echo; echo off; cat")
	k.Expect(`off\r\n`)
	k.Send("meow") // once: only from cat
	k.Expect(`^[^m]*meow\r\n`)
	k.Press("\x03")
	k.Expect(`\x1b\[\?2004h`) // what is typed before bash reads again is flushed
	k.Send("echo a$((1+1))b")
	k.Expect(`a2b`)
	k.Send("exit 5")
	if r := k.Wait(); r.Code != 5 {
		t.Errorf("exit %d, want 5", r.Code)
	}
}

func windowChange(t *testing.T, x target) {
	// Without a trap of its own bash forgets a Ctrl-C that comes just as sleep ends.
	k := harness.Sit(t, x.command([]string{"-tt"}, `trap 'echo size=$(stty size)=' WINCH; trap 'exit 3' INT; echo begun; while :; do sleep 0.1; done`))
	k.Expect(`begun`)
	k.Resize(132, 43)
	k.Expect(`size=43 132=`)
	k.Press("\x03")
	if r := k.Wait(); r.Code != 3 {
		t.Errorf("exit %d after Ctrl-C, want 3", r.Code)
	}
}

func environment(t *testing.T, x target) {
	options := []string{"-o", "SetEnv=LANG=C.UTF-8 LC_ALL=C LC_X=y FOO=bar LD_PRELOAD=/x BASH_ENV=/x PATH=/x"}
	r := x.ssh(t, options, `echo "$LANG|$LC_ALL|$LC_X|$FOO|$LD_PRELOAD|$BASH_ENV|$USER|$LOGNAME|$HOME|$SHELL"; set -- $SSH_CONNECTION; echo $#; set -- $SSH_CLIENT; echo $#; echo "${SSH_TTY-none}"`)
	same(t, r, 0, "C.UTF-8|C|y||||iris|iris|/home/iris|/bin/bash\n4\n3\nnone\n", "")
}

func controlMaster(t *testing.T, x target) {
	sock := filepath.Join(shortDir(t), "m")
	master := x.background(t, x.command([]string{"-M", "-N", "-S", sock}))
	master.exists(t, sock)
	const sessions = 50
	var all sync.WaitGroup
	for i := range sessions {
		all.Go(func() {
			cmd := x.command([]string{"-S", sock}, fmt.Sprintf("read line; echo got $line; exit %d", i))
			cmd.Stdin = strings.NewReader(fmt.Sprintf("line-%d\n", i))
			out, err := cmd.CombinedOutput()
			code := 0
			if err != nil {
				code = cmd.ProcessState.ExitCode()
			}
			if want := fmt.Sprintf("got line-%d\n", i); code != i || string(out) != want {
				t.Errorf("session %d: exit %d, %q, want %q (%v)", i, code, out, want, err)
			}
		})
	}
	all.Wait()
	if r := x.run(t, nil, "ssh", "-F", x.config, "-S", sock, "-O", "exit", x.alias()); r.Code != 0 {
		t.Errorf("-O exit: %d %s", r.Code, r.Stderr)
	}
	master.wait(t)
}

// shortDir returns a directory whose path leaves room for a socket's name.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "it") //nolint:usetesting // a socket's path has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func awaitFile(t *testing.T, path string) {
	t.Helper()
	harness.Eventually(t, path+" is there", func() bool { _, err := os.Stat(path); return err == nil })
}

// agent starts an agent that holds one key and returns its socket and the key's
// fingerprint.
func agent(t *testing.T) (sock, fingerprint string) {
	t.Helper()
	dir := shortDir(t)
	sock = filepath.Join(dir, "agent")
	harness.Type(t, "ssh-agent", "-D", "-a", sock)
	awaitFile(t, sock)
	key := filepath.Join(dir, "key")
	must(t, harness.Run(t, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lent", "-f", key))
	must(t, harness.Run(t, nil, "env", "SSH_AUTH_SOCK="+sock, "ssh-add", "-q", key))
	return sock, strings.Fields(must(t, harness.Run(t, nil, "ssh-keygen", "-lf", key)))[1]
}

func forwardAgent(t *testing.T, x target) {
	sock, fingerprint := agent(t)
	r := x.ssh(t, []string{"-A", "-o", "IdentityAgent=" + sock}, `ssh-add -l; echo "$SSH_AUTH_SOCK"; stat -c '%U %a' "$(dirname "$SSH_AUTH_SOCK")"`)
	lines := strings.Split(r.Stdout, "\n")
	if r.Code != 0 || len(lines) != 4 || !strings.Contains(lines[0], fingerprint) || lines[2] != login+" 700" {
		t.Fatalf("exit %d, stdout %q, stderr %q, want %s", r.Code, r.Stdout, r.Stderr, fingerprint)
	}
	harness.Eventually(t, "the socket is gone with its session", func() bool {
		_, err := os.Stat(filepath.Dir(lines[1]))
		return os.IsNotExist(err)
	})
	same(t, x.ssh(t, []string{"-a", "-o", "IdentityAgent=" + sock}, `echo "[${SSH_AUTH_SOCK-none}]"`), 0, "[none]\n", "")
}

// display returns the environment of somebody who sits at an X server that wants
// a cookie. A fleet has one: servers that come and go at once fight for a number.
func (f *fleet) display(t *testing.T) []string {
	t.Helper()
	f.screen.Do(func() { f.xenv = startDisplay(f.T) })
	return f.xenv
}

func startDisplay(t testing.TB) []string {
	t.Helper()
	dir := shortDir(t)
	auth := filepath.Join(dir, "auth")
	cookie := strings.Repeat("0123456789abcdef", 2)
	must(t, harness.Run(t, nil, "xauth", "-q", "-f", auth, "add", ":0", ".", cookie))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	server := exec.Command("Xvfb", "-displayfd", "3", "-screen", "0", "640x480x24", "-nolisten", "tcp", "-auth", auth, "+extension", "SECURITY", "-noreset")
	server.ExtraFiles = []*os.File{w}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() { _ = server.Process.Signal(syscall.SIGTERM); _ = server.Wait() })
	buf := make([]byte, 16)
	n, err := r.Read(buf)
	if err != nil {
		t.Fatalf("Xvfb: %v", err)
	}
	number := strings.TrimSpace(string(buf[:n]))
	must(t, harness.Run(t, nil, "xauth", "-q", "-f", auth, "add", ":"+number, ".", cookie))
	return []string{"DISPLAY=:" + number, "XAUTHORITY=" + auth}
}

func forwardX11(t *testing.T, x target, flag string) {
	cmd := x.command([]string{flag}, `xdpyinfo >"$HOME/x.$$" && echo "$DISPLAY"; head -2 "$HOME/x.$$"; rm -f "$HOME/x.$$"`)
	cmd.Env = append(os.Environ(), x.display(t)...)
	r := harness.RunFor(t, long, cmd)
	if r.Code != 0 || !strings.HasPrefix(r.Stdout, "localhost:") || !strings.Contains(r.Stdout, "version number:") {
		t.Errorf("exit %d, stdout %q, stderr %q", r.Code, r.Stdout, r.Stderr)
	}
	same(t, x.ssh(t, []string{"-x"}, `echo "[${DISPLAY-none}]"`), 0, "[none]\n", "")
}
