package srv

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshwire"
)

func itoa(n int) string { return strconv.Itoa(n) }

// outcomeOf runs c and returns what it printed and how it ended.
func outcomeOf(t *testing.T, l *Local, c Command) (stdout, stderr string, e Exit) {
	t.Helper()
	p, err := l.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	pipes := p.Pipes()
	_ = pipes.Stdin.Close()
	errs := make(chan []byte, 1)
	go func() {
		var b []byte
		if pipes.Stderr != nil {
			b, _ = io.ReadAll(pipes.Stderr)
		}
		errs <- b
	}()
	out, _ := io.ReadAll(pipes.Stdout)
	return string(out), string(<-errs), <-p.Exited()
}

// F37: a home that is missing or cannot be entered is no reason to refuse; sshd
// says the same words.
func TestF37HomeMissing(t *testing.T) {
	l := localOf(t, own("/bin/sh", "/no/such/home", ""))
	stdout, stderr, e := outcomeOf(t, l, Command{Account: Account{Login: "me"}, Kind: KindExec, Line: "pwd; echo $HOME"})
	if stdout != "/\n/no/such/home\n" || e != (Exit{}) {
		t.Errorf("stdout %q, exit %+v", stdout, e)
	}
	if want := "Could not chdir to home directory /no/such/home: No such file or directory\n"; stderr != want {
		t.Errorf("stderr %q, want %q", stderr, want)
	}
	stdout, _, _ = outcomeOf(t, l, Command{Account: Account{Login: "me"}, Kind: KindExec, Line: "pwd", Terminal: &Terminal{Term: "dumb"}})
	if want := "Could not chdir to home directory /no/such/home: No such file or directory\r\n/\r\n"; stdout != want {
		t.Errorf("on a terminal: %q, want %q", stdout, want)
	}
}

// F36: shells that do not do what a shell does.
func TestF36Shells(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name, shell, line string
		stdout            string
		exit              Exit
	}{
		{"exits at once", "/bin/false", "echo hi", "", Exit{Code: 1}},
		{"nologin", script("nologin", "#!/bin/sh\necho This account is currently not available.\nexit 1\n"), "id", "This account is currently not available.\n", Exit{Code: 1}},
		{"prints first", script("chatty", "#!/bin/sh\necho hello\nexec /bin/sh \"$@\"\n"), "echo hi", "hello\nhi\n", Exit{}},
		{"gets -c and the line", script("show", "#!/bin/sh\nprintf '%s|' \"$@\"\n"), "a  b;c", "-c|a  b;c|", Exit{}},
		{"kills itself", "/bin/sh", "kill -QUIT $$", "", Exit{Signal: "QUIT"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := localOf(t, own(test.shell, "/", ""))
			stdout, _, e := outcomeOf(t, l, Command{Account: Account{Login: "me"}, Kind: KindExec, Line: test.line})
			e.Core = false // the machine's choice
			if stdout != test.stdout || e != test.exit {
				t.Errorf("stdout %q, exit %+v, want %q, %+v", stdout, e, test.stdout, test.exit)
			}
		})
	}
	l := localOf(t, own(script("broken", "#!/no/such/interpreter\n"), "/", ""))
	if _, err := l.Start(t.Context(), Command{Account: Account{Login: "me"}, Kind: KindShell}); err == nil || !strings.Contains(err.Error(), "No such file or directory") {
		t.Errorf("Start of a broken shell = %v, want that a file is missing", err)
	}
}

// The dash tells the shell that it is a login shell.
func TestLoginShellByName(t *testing.T) {
	p, err := localOf(t, own("/bin/sh", "/", "")).Start(t.Context(), Command{Account: Account{Login: "me"}, Kind: KindShell})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, _ = io.WriteString(p.Pipes().Stdin, "echo $0\n")
	_ = p.Pipes().Stdin.Close()
	if out, _ := io.ReadAll(p.Pipes().Stdout); string(out) != "-sh\n" {
		t.Errorf("$0 is %q, want -sh", out)
	}
}

var statusLine = regexp.MustCompile(`(?m)^(\w+):\s*(.*?)\s*$`)

// The privilege separation row: a session's process is its login and nothing
// more, whoever the server is.
func TestChildHasOnlyItsLoginsRights(t *testing.T) {
	login := me(t)
	groups := strings.Fields(run(t, "id", "-G", login))
	// A file that the server was started with must not reach sessions.
	leaked, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leaked)
	local, err := NewLocal(LocalConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for _, terminal := range []*Terminal{nil, {Term: "dumb"}} {
		stdout, _, _ := outcomeOf(t, local, Command{
			Account: Account{Login: names.Login(login)}, Kind: KindExec, Terminal: terminal,
			Line: "cat /proc/self/status; echo Files: $(ls /proc/self/fd); echo Home: $(pwd); echo Id: $(id -un); echo Session: $(ps -o sid= -p $$) $$",
		})
		status := map[string]string{}
		for _, m := range statusLine.FindAllStringSubmatch(stdout, -1) {
			status[m[1]] = strings.Join(strings.Fields(m[2]), " ")
		}
		uid := strings.TrimSpace(run(t, "id", "-u", login))
		gid := strings.TrimSpace(run(t, "id", "-g", login))
		want := map[string]string{
			"Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "Gid": strings.Join([]string{gid, gid, gid, gid}, " "),
			"Id": login, "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
		}
		if uid != "0" {
			want["CapEff"], want["CapPrm"] = "0000000000000000", "0000000000000000"
			want["Home"] = "/home/" + login
		}
		for key, value := range want {
			if status[key] != value {
				t.Errorf("terminal %v: %s is %q, want %q", terminal != nil, key, status[key], value)
			}
		}
		if got := strings.Fields(status["Groups"]); !sameSet(got, groups) {
			t.Errorf("terminal %v: groups %v, want %v", terminal != nil, got, groups)
		}
		if got := status["Files"]; got != "0 1 2 3" { // 3 is ls's own
			t.Errorf("terminal %v: open files %q, want 0 1 2 and that of ls", terminal != nil, got)
		}
		if f := strings.Fields(status["Session"]); len(f) != 2 || f[0] != f[1] {
			t.Errorf("terminal %v: session and process %v, want the same", terminal != nil, f)
		}
	}
}

func sameSet(a, b []string) bool {
	set := map[string]bool{}
	for _, s := range a {
		set[s] = true
	}
	for _, s := range b {
		if !set[s] {
			return false
		}
		delete(set, s)
	}
	return len(set) == 0
}

// F37: groups are those of the moment the session begins.
func TestF37GroupsAreReadAfresh(t *testing.T) {
	if os.Geteuid() != 0 {
		return // only root has accounts to change; the look-up itself is TestFindAccount's
	}
	login := me(t)
	local, err := NewLocal(LocalConfig{})
	if err != nil {
		t.Fatal(err)
	}
	c := Command{Account: Account{Login: names.Login(login)}, Kind: KindExec, Line: "id -Gn"}
	before, _, _ := outcomeOf(t, local, c)
	run(t, "gpasswd", "-d", login, "games")
	after, _, _ := outcomeOf(t, local, c)
	if !strings.Contains(before, "games") || strings.Contains(after, "games") {
		t.Errorf("groups %q, then %q, want games gone", before, after)
	}
}

// F36: a line longer than the kernel takes is reported, not hung on.
func TestF36LineTooLong(t *testing.T) {
	_, ours := localWorld(t)
	client := dialTCP(t, ours.addr, me(t))
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	s.Stderr = &stderr
	err = s.Run("true " + strings.Repeat("x", 200_000))
	if exit, ok := errors.AsType[*ssh.ExitError](err); !ok || exit.ExitStatus() != 1 {
		t.Errorf("Run = %v, want exit status 1 as with sshd", err)
	}
	if !strings.HasSuffix(stderr.String(), ": Argument list too long\n") {
		t.Errorf("stderr %q, want that the list is too long", &stderr)
	}
}

func dialTCP(t *testing.T, addr, login string) *ssh.Client {
	t.Helper()
	c, err := ssh.Dial("tcp", addr, &ssh.ClientConfig{
		User: login, HostKeyCallback: ssh.InsecureIgnoreHostKey(), //nolint:forbidigo // both ends are the test
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Signals reach the process group, by the RFC's names only.
func TestSignals(t *testing.T) {
	_, ours := localWorld(t)
	client := dialTCP(t, ours.addr, me(t))
	for _, name := range signals() {
		t.Run(string(name), func(t *testing.T) {
			s, err := client.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			out, err := s.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			in, err := s.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Start("ulimit -c 0; exec cat"); err != nil {
				t.Fatal(err)
			}
			_, _ = in.Write([]byte("ready\n")) // once it comes back it is not bash any more, which ignores QUIT
			if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			if ok, err := s.SendRequest("signal", true, sshwire.Signal{Name: "TSTP"}.Marshal()); ok || err != nil {
				t.Errorf("signal TSTP: %v, %v, want a refusal", ok, err)
			}
			if err := s.Signal(name); err != nil { // nobody answers it (RFC 4254, section 6.9)
				t.Errorf("signal %s: %v", name, err)
			}
			err = s.Wait()
			if exit, ok := errors.AsType[*ssh.ExitError](err); !ok || exit.Signal() != string(name) {
				t.Errorf("Wait = %v, want exit-signal %s", err, name)
			}
		})
	}
}

// The whole group gets the signal, and the hangup when the session is cut.
func TestHangupReachesTheGroup(t *testing.T) {
	w, ours := localWorld(t)
	client := dialTCP(t, ours.addr, me(t))
	for _, terminal := range []bool{false, true} {
		s, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if terminal {
			if err := s.RequestPty("dumb", 24, 80, nil); err != nil {
				t.Fatal(err)
			}
		}
		out, err := s.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start("sleep 1000 & echo $!; wait; true"); err != nil {
			t.Fatal(err)
		}
		var pid int
		if _, err := fmt.Fscan(out, &pid); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.manager.Kill(w.manager.List()[0].ID, "", "the test"); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); n != 1 || err != nil {
			t.Errorf("terminal %v: the child of a killed session lives on (poll: %d, %v)", terminal, n, err)
		}
		_ = unix.Close(fd)
		_ = s.Close()
	}
}

// Where it is configured, a process that ignores the hangup is killed.
func TestKillAfter(t *testing.T) {
	for _, after := range []time.Duration{0, 50 * time.Millisecond} {
		local, err := NewLocal(LocalConfig{KillAfter: after})
		if err != nil {
			t.Fatal(err)
		}
		p, err := local.Start(t.Context(), Command{Account: Account{Login: names.Login(me(t))}, Kind: KindExec, Line: "trap '' HUP; echo $$; while :; do sleep 0.01; done"})
		if err != nil {
			t.Fatal(err)
		}
		var pid int
		if _, err := fmt.Fscan(p.Pipes().Stdout, &pid); err != nil {
			t.Fatal(err)
		}
		p.Close()
		if after == 0 {
			select {
			case e := <-p.Exited():
				t.Errorf("the process ended (%+v), though nothing may kill it", e)
			case <-time.After(300 * time.Millisecond):
			}
			_ = unix.Kill(-pid, unix.SIGKILL)
		}
		select {
		case e := <-p.Exited():
			if e.Signal != "KILL" {
				t.Errorf("exit %+v, want by KILL", e)
			}
		case <-time.After(30 * time.Second):
			t.Error("the process lives on")
		}
	}
}

// A client whose window changes sees it on the other side.
func TestStockWindowChange(t *testing.T) {
	for _, server := range []func(*testing.T) peer{sshd, func(t *testing.T) peer { t.Helper(); _, p := localWorld(t); return p }} {
		p := server(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := p.command(ctx, me(t), "-tt", `trap "stty size; exit 3" WINCH; stty size; while :; do sleep 0.05; done`)
		tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 31, Cols: 97})
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(tty)
		if got, err := lines.ReadString('\n'); got != "31 97\r\n" {
			t.Errorf("size %q, %v, want 31 97", got, err)
		}
		if err := pty.Setsize(tty, &pty.Winsize{Rows: 50, Cols: 132}); err != nil {
			t.Fatal(err)
		}
		if got, err := lines.ReadString('\n'); got != "50 132\r\n" {
			t.Errorf("size after the change %q, %v, want 50 132", got, err)
		}
		_, _ = io.Copy(io.Discard, lines)
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != 3 {
			t.Errorf("exit code %d, want 3", got)
		}
		cancel()
		_ = tty.Close()
	}
}

// ^C, typed at the client, reaches the remote command only.
func TestStockInterrupt(t *testing.T) {
	_, p := localWorld(t)
	cmd := p.command(t.Context(), me(t), "-tt", `trap "echo caught; exit 9" INT; echo ready; while :; do sleep 0.05; done`)
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	lines := bufio.NewReader(tty)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	_, _ = tty.Write([]byte{3})
	if got, _ := lines.ReadString('\n'); got != "^Ccaught\r\n" {
		t.Errorf("output %q, want ^Ccaught", got)
	}
	_, _ = io.Copy(io.Discard, lines)
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 9 {
		t.Errorf("exit code %d, want 9", got)
	}
}

// A killed stock client leaves nothing running, and its session has an end.
func TestF01StockClientKilled(t *testing.T) {
	w, p := localWorld(t)
	cmd := p.command(t.Context(), me(t), "echo $$; sleep 1000; true")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); n != 1 || err != nil {
		t.Errorf("the command lives on (poll: %d, %v)", n, err)
	}
	_ = unix.Close(fd)
	if e := w.journal.await(events.SessionEnd, 1)[0]; e.Fields["reason"] == nil {
		t.Errorf("session.end %v, want a reason", e.Fields)
	}
}

// What a person with the stock client reads when something is refused.
func TestStockRefusals(t *testing.T) {
	w, p := localWorld(t)
	w.policy.set(func(p *policy) {
		p.deny["shell"], p.deny["exec"] = "role tester denies it", "role tester denies it"
		p.deny["x11"] = "role tester denies it"
		p.deny["sftp:read"], p.deny["sftp:write"] = "role tester denies it", "role tester denies it"
	})
	tests := []struct {
		name string
		args []string
		want result
	}{
		{"command", []string{"id"}, result{255, "", "accessd: role tester denies it\n"}},
		{"shell", nil, result{255, "", "accessd: role tester denies it\n"}},
		{"command on a terminal", []string{"-tt", "id"}, result{255, "", "accessd: role tester denies it\r\n"}},
		{"subsystem", []string{"-s", "nope"}, result{255, "", "accessd: no such subsystem\n"}},
		{"sftp", []string{"-s", "sftp"}, result{255, "", "accessd: role tester denies it\n"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := p.ssh(t, me(t), "", test.args...); got != test.want {
				t.Errorf("got %+v\nwant %+v", got, test.want)
			}
		})
	}
	got := p.ssh(t, me(t), "", "-o", "LogLevel=INFO", "-W", "127.0.0.1:22")
	const want = "channel 0: open failed: administratively prohibited: a forward to the node's own sshd would go past the rules; no rule names it\r\n"
	if got.Code != 255 || !strings.Contains(got.Stderr, want) {
		t.Errorf("stdio forward: %+v, want code 255 and %q", got, want)
	}
	if got := p.ssh(t, "no-such-account", "", "id"); got.Code != 255 {
		t.Errorf("unknown account: %+v, want code 255", got)
	}
}

// Budget 8: 3 MiB for each live session at the node. Budget 9: 20 ms of CPU to
// open one.
func TestBudgetsOfASession(t *testing.T) {
	_, ours := localWorld(t)
	client := dialTCP(t, ours.addr, me(t))
	const sessions = 50
	open := func(i int) *ssh.Session {
		s, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			if err := s.RequestPty("dumb", 24, 80, nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := s.Start("exec sleep 1000"); err != nil {
			t.Fatal(err)
		}
		return s
	}
	_ = open(0).Close()
	heapBefore, cpuBefore := heap(), cpu(t)
	list := make([]*ssh.Session, sessions)
	for i := range list {
		list[i] = open(i)
	}
	cpuEach := (cpu(t) - cpuBefore) / sessions
	heapEach := (heap() - heapBefore) / sessions
	t.Logf("%d KiB and %v of CPU for each session, its client's part included", heapEach>>10, cpuEach)
	if heapEach > 3<<20 {
		t.Errorf("%d bytes for each session, want at most 3 MiB", heapEach)
	}
	if cpuEach > 20*time.Millisecond && !raceEnabled {
		t.Errorf("%v of CPU for each session, want at most 20 ms", cpuEach)
	}
	for _, s := range list {
		_ = s.Close()
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// cpu returns the processor time of this process, not of its children.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Sessions leave no open file behind, whatever becomes of them.
func TestNoFileIsLeft(t *testing.T) {
	local := localOf(t, own("/bin/sh", "/", ""))
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	round := func() {
		for _, terminal := range []*Terminal{nil, {Term: "dumb"}} {
			outcomeOf(t, local, Command{Account: Account{Login: "me"}, Kind: KindExec, Line: "exit 3", Terminal: terminal})
			if _, err := local.Start(t.Context(), Command{Account: Account{Login: "me"}, Kind: KindExec, Line: strings.Repeat("x", 200_000), Terminal: terminal}); err == nil {
				t.Error("a line that is too long was started")
			}
		}
	}
	round()
	before := files()
	for range 20 {
		round()
	}
	if after := files(); after > before {
		t.Errorf("%d open files after 80 sessions, %d before", after, before)
	}
}

// A child of a finished session may live on when it holds none of its streams.
func TestBackgroundOutlivesItsSession(t *testing.T) {
	_, ours := localWorld(t)
	got := ours.ssh(t, me(t), "", "sleep 1000 >/dev/null 2>&1 </dev/null & echo $!")
	pid, err := strconv.Atoi(strings.TrimSpace(got.Stdout))
	if err != nil {
		t.Fatalf("%+v", got)
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("the background process is gone: %v", err)
	}
	_ = exec.Command("kill", itoa(pid)).Run()
}
