package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/integration/harness"
)

// comparison is one thing that is done on the stock server and on every node,
// and has to end alike.
type comparison struct {
	name    string
	account string // "" means login
	observe func(t *testing.T, x target) harness.Result
	// differs says where a node may differ: the words that docs/protocol.md has
	// for it. What the node does instead is in the function.
	differs func(t *testing.T, x target, got, want harness.Result) (words string)
}

// runs returns a comparison of one command's output.
func runs(name, account string, options []string, words ...string) comparison {
	return comparison{name: name, account: account, observe: func(t *testing.T, x target) harness.Result {
		t.Helper()
		return x.ssh(t, append([]string{"-o", "LogLevel=ERROR"}, options...), words...)
	}}
}

// reads is the same with an input.
func reads(name, account, stdin string, options []string, words ...string) comparison {
	return comparison{name: name, account: account, observe: func(t *testing.T, x target) harness.Result {
		t.Helper()
		return x.feed(t, strings.NewReader(stdin), append([]string{"-o", "LogLevel=ERROR"}, options...), words...)
	}}
}

// accounts of the host beside login, with what is odd about each.
var oddAccounts = map[string][]string{
	"nohome":  {"--shell", "/bin/bash"},
	"noshell": {"--shell", "/bin/none-such"},
	"nologin": {"--shell", "/usr/sbin/nologin"},
	"false":   {"--shell", "/bin/false"},
	"motd":    {"--shell", "/etc/odd-shell"},
	"hush":    {"--shell", "/etc/odd-shell"},
	"locked":  {"--shell", "/bin/bash"},
	"expired": {"--shell", "/bin/bash"},
	"noisy":   {"--shell", "/bin/bash"},
	"grouped": {"--shell", "/bin/bash", "--groups", "games,users"},
}

// odd makes the accounts of a fleet's host that something is odd about.
func (f *fleet) odd(t *testing.T) {
	t.Helper()
	harness.WriteFile(t, f.host.Etc("odd-shell"), "#!/bin/sh\necho \"shell $0 $*\"\nexit 6\n")
	if err := os.Chmod(f.host.Etc("odd-shell"), 0o755); err != nil {
		t.Fatal(err)
	}
	harness.WriteFile(t, f.host.Etc("motd"), "message of the day\n")
	if err := os.Chmod(f.host.Etc("motd"), 0o644); err != nil {
		t.Fatal(err)
	}
	logins := []string{login, "root"}
	for name, flags := range oddAccounts {
		f.host.Account(name, flags...)
		f.authorize(t, name)
		logins = append(logins, name)
	}
	f.authorize(t, "root")
	f.host.Must("rm", "-r", "/home/nohome")
	f.host.Must("touch", "/home/hush/.hushlogin")
	f.host.Must("usermod", "--lock", "locked")
	f.host.Must("chage", "--expiredate", "1", "expired")
	f.host.Must("sh", "-c", "echo 'echo noise from .bashrc' >/home/noisy/.bashrc; echo 'echo noise from .profile' >/home/noisy/.profile; rm -f /home/noisy/.bash_profile")
	f.Admin("users", "add", "odette", "--roles", "access,every-action", "--logins", strings.Join(logins, ","))
	f.Admin("users", "sign", "odette", "--public-key", f.alice.Key+".pub", "--ttl", "1h", "--out", f.alice.Key+"-cert.pub")
	f.user = "odette"
	config := read(t, f.config)
	harness.WriteFile(t, f.config, strings.ReplaceAll(config, "User alice\n", "User odette\n"))
}

// normal replaces what differs between two connections to one server: ports of
// the client and of the server, the number of a terminal, and process ids.
func normal(r harness.Result) harness.Result {
	for _, re := range [][2]string{
		{`(SSH_CLIENT=\S+) \d+ \d+`, "$1 PORT"},
		{`(SSH_CONNECTION=\S+) \d+ (\S+) \d+`, "$1 PORT $2 PORT"},
		{`/dev/pts/\d+`, "/dev/pts/N"},
		{`\bpid \d+`, "pid N"},
		{`(bash|sh): line \d+: +\d+ `, "$1: line N: PID "},
	} {
		r.Stdout = regexp.MustCompile(re[0]).ReplaceAllString(r.Stdout, re[1])
		r.Stderr = regexp.MustCompile(re[0]).ReplaceAllString(r.Stderr, re[1])
	}
	return r
}

// denied is for accounts that sshd does not let in: the client's words name
// another host, and a proxy has let the person in already.
func denied(t *testing.T, x target, got, want harness.Result) string {
	t.Helper()
	if want.Code != 255 || got.Code != 255 || got.Stdout != "" || got.Stderr == "" {
		t.Errorf("exit %d, stdout %q, stderr %q; want 255 and words", got.Code, got.Stdout, got.Stderr)
	}
	return ""
}

// lockedAccount is for an account without a password that works: on our nodes
// it is one for keys and certificates only, as it is to an sshd with PAM.
func lockedAccount(t *testing.T, x target, got, want harness.Result) string {
	t.Helper()
	if x.kind != "accessd" {
		return denied(t, x, got, want)
	}
	same(t, got, 0, "", "")
	return "keeps nobody out"
}

func comparisons() []comparison {
	long127 := strings.Repeat("x", 60000)
	return []comparison{
		runs("exit 0", "", nil, "exit 0"),
		runs("exit 254", "", nil, "exit 254"),
		runs("no such command", "", nil, "none-such-command"),
		runs("syntax error", "", nil, "if then"),
		runs("empty output", "", nil, "true"),
		runs("both streams", "", nil, "echo a; echo b >&2; echo c; echo d >&2; exit 1"),
		runs("environment", "", nil, "env | grep -v ^_= | sort"),
		runs("environment with a terminal", "", []string{"-tt", "-o", "SetEnv=TERM=vt100"}, "env | grep -v ^_= | sort"),
		runs("environment of root", "root", nil, "env | grep -v ^_= | sort"),
		runs("accepted variables", "", []string{"-o", "SetEnv=LANG=C LC_A=é LC_B= LC_C=a=b FOO=1 PATH=/x HOME=/x SHELL=/x IFS=x"}, "env | grep -v ^_= | sort"),
		runs("process", "", nil, `id; pwd; umask; ulimit -a; nice; cat /proc/$$/oom_score_adj; grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|SigIgn|Seccomp:)' /proc/$$/status; for f in /proc/$$/fd/*; do echo ${f##*/}; done`),
		runs("process in groups", "grouped", nil, "id; umask"),
		runs("process of root", "root", nil, "id; pwd; umask; grep -E '^(Cap|NoNewPrivs)' /proc/$$/status"),
		runs("session and group", "", nil, `ps -o pid=,pgid=,sid= -p $$ | awk '{print ($1==$2), ($1==$3)}'; ps -o tty= -p $$`),
		runs("terminal modes", "", []string{"-tt"}, "stty -a"),
		runs("terminal's ownership", "", []string{"-tt"}, `stat -c '%U %G %a' "$(tty)"`),
		reads("login shell", "", "echo $0; shopt -q login_shell && echo login; exit 2\n", []string{"-T"}),
		reads("login shell of noise", "noisy", "exit 2\n", []string{"-T"}),
		runs("command of noise", "noisy", nil, "echo mine"),
		runs("a signal to itself", "", nil, "echo x; kill -KILL $$"),
		runs("background holds the pipes", "", nil, "(sleep 1; echo late) & echo now; exit 3"),
		runs("background holds only stderr", "", nil, "(sleep 1; echo late >&2) >/dev/null & echo now; exit 3"),
		runs("background holds nothing", "", nil, "sleep 300 </dev/null >/dev/null 2>&1 & echo $? now; exit 4"),
		runs("background and a terminal", "", []string{"-tt"}, "sleep 300 & exit 4"),
		runs("yes | head", "", nil, "yes | head -3; echo ${PIPESTATUS[0]}"),
		runs("output of a megabyte", "", nil, "seq 200000; seq 1000 >&2"),
		reads("input not read", "", strings.Repeat("y\n", 500000), nil, "exit 5"),
		reads("input closed early", "", strings.Repeat("y\n", 500000), nil, "head -c 4; exit 5"),
		runs("120 kB of command", "", nil, ":", long127, long127, "; echo done"),
		runs("180 kB of command", "", nil, ":", long127, long127, long127, "; echo done"),
		runs("2^20 arguments", "", nil, "/bin/echo $(seq 1048576); echo $?"),
		runs("home missing", "nohome", nil, "pwd; echo $HOME"),
		runs("login shell of nologin", "nologin", nil, "true"),
		runs("login shell of nologin, no command", "nologin", []string{"-tt"}),
		runs("login shell false", "false", nil, "true"),
		runs("message of the day", "motd", []string{"-tt"}),
		runs("no message of the day without a terminal", "motd", []string{"-T"}),
		runs("no message of the day with a command", "motd", []string{"-tt"}, "true"),
		runs(".hushlogin", "hush", []string{"-tt"}),
		{"shell missing", "noshell", runs("", "", nil, "true").observe, denied},
		{"account locked", "locked", runs("", "", nil, "true").observe, lockedAccount},
		{"account expired", "expired", runs("", "", nil, "true").observe, denied},
		{"signals", "", signals, nil},
		{"slow reader", "", slowReader, nil},
		{"client's output closed", "", closedOutput, nil},
		{"client killed, with a terminal", "", func(t *testing.T, x target) harness.Result { return killedClient(t, x, "-tt") }, nil},
	}
}

// Whatever a stock client sees on a stock server it sees on every node: exit
// status, stdout and stderr byte for byte.
func TestDifferential(t *testing.T) {
	t.Parallel()
	f := newFleet(t, only()...)
	f.odd(t)
	for _, k := range comparisons() {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			compare(t, f, k)
		})
	}
}

// /etc/nologin keeps everybody but root out, with its text; on a host of its
// own, since it is everybody's.
func TestDifferentialNologin(t *testing.T) {
	t.Parallel()
	f := newFleet(t, only()...)
	f.odd(t)
	harness.WriteFile(t, f.host.Etc("nologin"), "closed for repairs\n")
	if err := os.Chmod(f.host.Etc("nologin"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, k := range []comparison{
		runs("command", "", nil, "echo in"),
		runs("shell", "", []string{"-tt"}),
		runs("root", "root", nil, "echo in"),
	} {
		t.Run(k.name, func(t *testing.T) { compare(t, f, k) })
	}
}

func compare(t *testing.T, f *fleet, k comparison) {
	t.Helper()
	protocol := strings.Join(strings.Fields(read(t, "../docs/protocol.md")), " ")
	want := normal(k.observe(t, target{fleet: f, kind: stock, as: k.account}))
	for _, x := range f.targets() {
		if x.kind == stock || x.way == "command" { // which is -J by another name
			continue
		}
		t.Run(strings.ReplaceAll(x.kind, " ", "")+" "+x.way, func(t *testing.T) {
			x.as = k.account
			got := normal(k.observe(t, x))
			switch {
			case k.differs != nil:
				if words := k.differs(t, x, got, want); words != "" && !strings.Contains(protocol, words) {
					t.Errorf("docs/protocol.md does not say %q", words)
				}
			case got != want:
				t.Errorf("exit %d, want %d\n%s", got.Code, want.Code, difference(t, got, want))
			}
		})
	}
}

// difference shows two outputs line by line.
func difference(t *testing.T, got, want harness.Result) string {
	t.Helper()
	dir := t.TempDir()
	a, b := filepath.Join(dir, "stock"), filepath.Join(dir, "accessd")
	harness.WriteFile(t, a, "== stdout\n"+want.Stdout+"\n== stderr\n"+want.Stderr+"\n")
	harness.WriteFile(t, b, "== stdout\n"+got.Stdout+"\n== stderr\n"+got.Stderr+"\n")
	out := harness.Run(t, nil, "diff", "-u", "-a", a, b).Stdout
	if len(out) > 4000 {
		out = out[:4000]
	}
	return strings.ToValidUTF8(out, "?")
}

// signals asks a client that tells of exit-signal how commands ended.
func signals(t *testing.T, x target) harness.Result {
	t.Helper()
	if x.way == "jump" || x.way == "at" || x.kind == stock {
		r := x.asyncssh(t, "testdata/asyncssh_signals.py", "HUP", "INT", "ILL", "ABRT", "FPE", "KILL", "SEGV", "PIPE", "ALRM", "TERM", "USR1", "USR2", "BUS", "SYS", "XCPU")
		if r.Code != 0 {
			t.Errorf("exit %d: %s", r.Code, r.Stderr)
		}
		return r
	}
	return harness.Result{}
}

// asyncssh runs a script of testdata that takes its place as JSON and further
// words.
func (x target) asyncssh(t *testing.T, script string, words ...string) harness.Result {
	t.Helper()
	text, err := json.Marshal(x.where(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	return x.run(t, nil, "/usr/bin/python3", append([]string{script, string(text)}, words...)...)
}

// slowReader lets the client's output wait for two seconds.
func slowReader(t *testing.T, x target) harness.Result {
	t.Helper()
	return x.run(t, nil, "bash", "-c", `ssh -F "$0" -o LogLevel=ERROR "$1" 'seq 500000; exit 8' | (sleep 2; sha256sum); echo "${PIPESTATUS[@]}"`, x.config, x.alias())
}

// closedOutput ends the reader of the client's output, and waits for the end of
// the command on the node.
func closedOutput(t *testing.T, x target) harness.Result {
	t.Helper()
	marker := "marker-" + filepath.Base(x.scratch(t))
	r := x.run(t, nil, "bash", "-c", `ssh -F "$0" -o LogLevel=ERROR "$1" "yes $2" | head -c 10 | wc -c; echo "${PIPESTATUS[@]}"`, x.config, x.alias(), marker)
	gone(t, marker)
	return r
}

// gone waits until no process has the marker in its command line.
func gone(t *testing.T, marker string) {
	t.Helper()
	harness.Eventually(t, "no process "+marker+" is left", func() bool { return exec.Command("pgrep", "-f", marker).Run() != nil })
}

// killedClient kills a client in the middle of a command and reports what the
// command saw of it.
func killedClient(t *testing.T, x target, flag string) harness.Result {
	t.Helper()
	dir := x.scratch(t)
	cmd := x.command([]string{flag, "-o", "LogLevel=ERROR"}, fmt.Sprintf(`trap 'echo hup >%[1]s/saw; exit 1' HUP; echo $$ >%[1]s/pid; while :; do sleep 0.1; done`, dir))
	b := x.background(t, cmd)
	b.exists(t, dir+"/pid")
	began := time.Now()
	_ = cmd.Process.Kill()
	var saw []byte // whole, not only made
	harness.Eventually(t, "the command says what it saw", func() bool {
		saw, _ = os.ReadFile(dir + "/saw")
		return strings.HasSuffix(string(saw), "\n")
	})
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the command was told after %v", took)
	}
	return harness.Result{Stdout: string(saw)}
}

// A command without a terminal is told, too, on our nodes; sshd leaves it
// running until it writes.
func TestKilledClientWithoutTerminal(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "accessd")
	for _, x := range f.targets() {
		if x.kind != stock {
			t.Run(x.way, func(t *testing.T) {
				t.Parallel()
				killedClient(t, x, "-T")
			})
		}
	}
}
