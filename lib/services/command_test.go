package services_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
)

func commandPatterns(t testing.TB, texts ...string) []services.CommandPattern {
	t.Helper()
	var out []services.CommandPattern
	for _, s := range texts {
		p, err := services.ParseCommandPattern(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// operator is what the tests below grant.
func operator(t testing.TB) []services.CommandPattern {
	t.Helper()
	return commandPatterns(t,
		"systemctl status *", "systemctl restart web-*", "journalctl *", "uptime", "cat /var/log/*.log", "cp * /srv/*/in",
		`grep -- '*' "a b"`, "timeout 5 uptime", "bash -c 'uptime; id'", "sudo systemctl reload nginx", "head *", "true", "echo *",
	)
}

func TestCommandPatternMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, line string
		want          bool
	}{
		{"uptime", "uptime", true},
		{"uptime", "  uptime  ", true},
		{"uptime", "uptime;", true},
		{"uptime", "uptime -p", false},
		{"uptime", "/usr/bin/uptime", false},
		{"uptime", "./uptime", false},
		{"uptime", "Uptime", false},
		{"uptime", "up", false},
		{"journalctl *", "journalctl", true},
		{"journalctl *", "journalctl -u ssh", true},
		{"journalctl *", "journalctl '-u' \"s sh\" ''", true},
		{"journalctl *", "journalctl --file=../../x", true}, // further words may be anything
		{"journalctl *", "journal", false},
		{"journalctl -u *", "journalctl", false},
		{"journalctl -u *", "journalctl -u", true},
		{"journalctl -u *", "journalctl --u x", false},
		{"systemctl restart web-*", "systemctl restart web-1", true},
		{"systemctl restart web-*", "systemctl restart web-", true},
		{"systemctl restart web-*", "systemctl restart web-1 ssh", false},
		{"systemctl restart web-*", "systemctl restart web-/x", false},
		{"systemctl restart *-web", "systemctl restart a-web", true},
		{"systemctl restart *-web", "systemctl restart --force-web", false},
		{"systemctl * ssh", "systemctl stop ssh", true},
		{"systemctl * ssh", "systemctl --host=x ssh", false},
		{"systemctl * ssh", "systemctl '' ssh", false},
		{"systemctl * ssh", "systemctl a b ssh", false},
		{"cat /var/log/*.log", "cat /var/log/x.log", true},
		{"cat /var/log/*.log", "cat /var/log/../x.log", false},
		{"cat /var/log/*.log", "cat /var/log/a/x.log", false},
		{"cat /var/log/*", "cat /var/log/..", false},
		{"cat /var/*/a*b*c", "cat /var/x/aabbbc", true},
		{"cat /var/*/a*b*c", "cat /var/x/acb", false},
		{"cat a*a", "cat a", false},
		{"cat a*a", "cat aa", true},
		{"cat a*b*b", "cat ab/b", false},
		{"cat a*b*b", "cat a/bb", false},
		{"cat '*'", "cat '*'", true},
		{"cat '*'", "cat 'x'", false},
		{"cat '*' *", "cat '*' 'a;b' \"$\"", false},
		{"cat '*' *", "cat '*' 'a;b|c&d>e$(f)'", true},
		{"cat 'a b'", "cat a b", false},
		{"cat 'a b'", `cat "a b"`, true},
		{"cat 'a b'", `cat a" "b`, true},
		{"timeout 5 uptime", "timeout 5 uptime", true},
		{"timeout 5 uptime", "timeout 5 id", false},
		{"bash -c 'uptime; id'", `bash -c "uptime; id"`, true},
		{"bash -c 'uptime; id'", "bash -c 'uptime; reboot'", false},
	} {
		got := func() bool {
			_, ok := services.NewCommandLine(c.line).Granted(commandPatterns(t, c.pattern))
			return ok
		}()
		if got != c.want {
			t.Errorf("%q grants %q: %v, want %v", c.pattern, c.line, got, c.want)
		}
	}
}

func TestCommandLinesThatPass(t *testing.T) {
	for _, line := range []string{
		"uptime; uptime", "uptime && uptime || uptime", "journalctl -u ssh | head -n 5", "journalctl -u ssh | head; uptime",
		"timeout 5 uptime", "sudo systemctl reload nginx", `grep -- '*' "a b"`, "true && echo '$HOME' ok",
	} {
		if why, ok := services.NewCommandLine(line).Granted(operator(t)); !ok {
			t.Errorf("%q is refused: %s", line, why)
		}
	}
}

// bypasses are lines that each hide a command from a reader less careful than a
// shell. Every one begins with, or has, what the operator may run.
func bypasses() map[string]string {
	return map[string]string{
		"empty": "", "blank": "   ", "separator": ";", "nothing to parse": "uptime |", "open quote": "uptime '", "open double quote": `uptime "`,
		"second command": "uptime; id", "and": "uptime && id", "or": "uptime || id", "pipe": "uptime | id", "pipe of both": "uptime |& id",
		"first command": "id; uptime", "third command": "uptime && uptime -p; id", "background": "uptime &", "background, then": "uptime & id",
		"no blank": "uptime;id", "newline": "uptime\nid", "carriage return": "uptime\rid", "carriage return and newline": "uptime\r\nid", "tab": "journalctl\tx",
		"NUL": "uptime\x00id", "vertical tab": "journalctl\vx", "form feed": "journalctl\fx", "DEL": "journalctl \x7f", "escape": "journalctl \x1b[2J",
		"backslash": `journalctl \x`, "backslash newline": "up\\\ntime", "backslash at the end": `uptime \`, "backslash in quotes": `journalctl "\x"`, "backslash in single quotes": `journalctl '\'`,
		"fish's quote": `journalctl '\'; id; echo \''`, "escaped name": `\uptime`,
		"parameter": "journalctl $HOME", "parameter in braces": "journalctl ${HOME}", "parameter in quotes": `journalctl "$HOME"`, "in the name": "$SHELL", "in the name's midst": "up$x",
		"command substitution": "journalctl $(id)", "in quotes": `journalctl "$(id)"`, "backquotes": "journalctl `id`", "backquotes in quotes": "journalctl \"`id`\"", "backquotes in single quotes": "journalctl '`id`'",
		"arithmetic": "journalctl $((1))", "old arithmetic": "journalctl $[1]", "arithmetic command": "((1))", "let": "let a=1",
		"process substitution in": "journalctl <(id)", "process substitution out": "journalctl >(id)", "zsh's": "journalctl =(id)", "mksh's substitution": "journalctl ${ id; }",
		"tilde": "journalctl ~", "tilde user": "journalctl ~root/x", "tilde later": "journalctl --file=~/x", "zsh's equals": "journalctl =id",
		"star": "journalctl *", "question mark": "journalctl ?", "bracket": "journalctl [a]", "star in a word": "cat /var/log/*.log", "extended glob": "journalctl @(a|b)", "zsh's caret": "journalctl ^a", "glob in the name": "up*",
		"braces": "journalctl {a,b}", "brace range": "journalctl {1..3}", "empty braces": "journalctl {}", "braces in the name": "{uptime,id}",
		"assignment": "a=1", "assignment in front": "PATH=/tmp uptime", "append": "a+=1 uptime", "index": "a[0]=1 uptime", "assignment, quoted": `"PATH"=/tmp uptime`, "LD_PRELOAD": "LD_PRELOAD=/tmp/x.so uptime",
		"out": "uptime >x", "append to": "uptime >>x", "in": "journalctl <x", "in and out": "uptime <>x", "clobber": "uptime >|x", "null": "uptime >/dev/null", "both": "uptime &>x", "both, csh": "uptime >&x",
		"errors": "uptime 2>x", "errors to output": "uptime 2>&1", "close": "uptime >&-", "descriptor": "uptime {fd}>x", "here-document": "journalctl <<x\nx\n", "here-string": "journalctl <<<x", "redirection in front": ">x uptime", "redirection alone": ">x",
		"function": "uptime() { id; }", "function word": "function uptime { id; }", "function called": "uptime() { id; }; uptime",
		"for": "for i in a; do uptime; done", "while": "while uptime; do id; done", "until": "until uptime; do id; done", "select": "select i in a; do uptime; done", "C for": "for ((;;)); do uptime; done",
		"if": "if uptime; then id; fi", "case": "case a in a) uptime;; esac", "test": "[[ a ]]", "old test": "[ a ]", "csh's if": "if (1) uptime", "csh's foreach": "foreach i (a)", "zsh's repeat": "repeat 2 uptime", "zsh's short for": "for i (a) uptime",
		"subshell": "(uptime)", "group": "{ uptime; }", "not": "! uptime", "history": "journalctl !!", "history in quotes": `journalctl "!x"`, "history in single quotes": "journalctl '!x'", "csh's quick history": "^up^id",
		"coproc": "coproc uptime", "time": "time uptime", "mksh's coprocess": "uptime |&", "zsh's disown": "uptime &!", "fish's pipe": "uptime &| id",
		"C quotes": `journalctl $'\x41'`, "locale quotes": `journalctl $"x"`, "name in quotes": `"uptime"`, "name in part in quotes": `up'time'`, "rc's quote": "journalctl 'a''; id; echo ''b'", "name in single quotes": "'uptime'",
		"comment": "uptime # x", "comment first": "# uptime", "hash": "journalctl a#b",
		"eval": "eval uptime", "exec": "exec uptime", "source": "source uptime", "dot": ". uptime", "alias": "alias uptime=id", "builtin": "builtin eval id", "command": "command uptime", "trap": "trap id EXIT",
		"env": "env uptime", "env with a variable": "env PATH=/tmp uptime", "sudo": "sudo uptime", "sudo otherwise": "sudo -s systemctl reload nginx", "doas": "doas uptime", "timeout": "timeout 6 uptime", "timeout of another": "timeout 5 id", "nice": "nice uptime", "nohup": "nohup uptime", "setsid": "setsid uptime",
		"stdbuf": "stdbuf -o0 uptime", "xargs": "echo id | xargs -n1 env", "find": "find . -exec id ';'", "sh": "sh -c uptime", "bash": "bash -c uptime", "bash with more": "bash -c 'uptime; id' x", "bash of stdin": "echo id | bash", "busybox": "busybox uptime",
		"ssh": "ssh localhost uptime", "script": "script -c uptime", "watch": "watch uptime", "zsh's precommand": "- uptime", "zsh's noglob": "noglob uptime", "another path": "/tmp/uptime", "path up": "../bin/uptime",
		"unicode blank": "journalctl x\u00a0y", "line separator": "uptime\u2028id", "next line": "uptime\u0085id", "look-alike semicolon": "uptime\uff1b id", "look-alike letter": "uptim\u0435", "right to left": "journalctl \u202ex", "invalid UTF-8": "journalctl \xff", "Latin-1 blank": "journalctl\xa0x",
		"too many": strings.Repeat("uptime;", 33), "too long": "journalctl " + strings.Repeat("x", 8<<10), "deep": strings.Repeat("(", 4000) + "uptime" + strings.Repeat(")", 4000),
		"pattern's star": "systemctl restart web-*", "option in place of a word": "cp -t /srv/x/in", "path up in a word": "cp x /srv/../in", "fish's and": "uptime; and id", "fish's begin": "begin; id; end", "percent": "journalctl %self", "job": "%1",
	}
}

func TestCommandLinesThatDoNot(t *testing.T) {
	for name, line := range bypasses() {
		t.Run(name, func(t *testing.T) {
			why, ok := services.NewCommandLine(line).Granted(operator(t))
			if ok || why == "" {
				t.Errorf("%q passes: %v, with the reason %q", line, ok, why)
			}
		})
	}
	if _, ok := services.NewCommandLine("uptime").Granted(nil); ok {
		t.Error("no patterns grant a line")
	}
	if _, ok := services.NewCommandLine("uptime").Granted(make([]services.CommandPattern, 1)); ok {
		t.Error("the zero pattern grants a line")
	}
	if _, ok := (services.CommandLine{}).Granted(operator(t)); ok {
		t.Error("the zero line is granted")
	}
}

func TestCommandPatternsThatAreNone(t *testing.T) {
	for _, s := range []string{
		"", " ", "*", "* x", "up*", "uptime; id", "uptime | head", "uptime &", "a=1 uptime", "uptime >x", "uptime $x", "uptime `id`", "uptime ~", "uptime ?", "uptime [a]", "uptime {a,b}",
		"uptime\nid", "uptime\\ x", "uptime!", "time uptime", "if x", "(uptime)", "'uptime'", "ä", "uptime 'x", "uptime #x", "- uptime",
		"env *", "timeout 5 *", "sudo *", "bash -c *", "/usr/bin/env *", "python3 x*", "python3.13 *", "xargs *", "find /var *", ". *", "bash-5.2 *", "sudo systemctl restart web-*", "eval *", "watch *",
		strings.Repeat("x", 513),
	} {
		if p, err := services.ParseCommandPattern(s); !fault.Is(err, fault.BadInput) {
			t.Errorf("%q: %v, %v; want bad input", s, p, err)
		}
	}
}

const operatorRole = `kind: role
name: operator
allow:
  - nodes: {env: [prod]}
    logins: [ops]
    actions: [exec, "sftp:read"]
    commands: [systemctl status *, "journalctl *", "grep '*' x"]
`

func TestParseCommands(t *testing.T) {
	roles, err := services.ParseRoles("r.yaml", []byte(operatorRole))
	if err != nil {
		t.Fatal(err)
	}
	if got := roles[0].Allow[0].Commands; len(got) != 3 || got[0].String() != "systemctl status *" {
		t.Fatalf("commands = %v", got)
	}
	again, err := services.ParseRoles("r.yaml", roles[0].YAML())
	if err != nil || !bytes.Equal(again[0].YAML(), roles[0].YAML()) {
		t.Errorf("as YAML: %v\n%s", err, roles[0].YAML())
	}
	data, err := json.Marshal(roles[0])
	if err != nil {
		t.Fatal(err)
	}
	var r services.Role
	if err := json.Unmarshal(data, &r); err != nil || !bytes.Equal(r.YAML(), roles[0].YAML()) {
		t.Errorf("as JSON: %v\n%s", err, r.YAML())
	}
	for want, change := range map[string][2]string{
		`7: commands: "a; b": it is more than one command; give each a pattern of its own`: {"systemctl status *", `a; b`},
		`7: commands: "journalctl *" stands twice`:                                         {"systemctl status *", `journalctl *`},
		`4: allow: commands does not go with the actions shell, join and "*"`:              {"[exec,", "[exec, shell,"},
		`4: allow: commands needs the action exec`:                                         {"[exec,", "[x11,"},
		`4: deny: commands belong into allow rules`:                                        {"allow:", "deny:"},
		`7: commands: want 1 to 64 entries`:                                                {`[systemctl status *, "journalctl *", "grep '*' x"]`, "[]"},
	} {
		_, err := services.ParseRoles("r.yaml", []byte(strings.Replace(operatorRole, change[0], change[1], 1)))
		if err == nil || !strings.HasPrefix(err.Error(), "r.yaml:"+want) {
			t.Errorf("%v: %v, want %q", change, err, want)
		}
	}
}

// FuzzCommandLine: what passes runs, in a real sh and in bash, only commands that
// a pattern names. The directory that is the whole PATH has one program under
// every name there is, which writes down what it was called with.
func FuzzCommandLine(f *testing.F) {
	for _, line := range bypasses() {
		f.Add(line)
	}
	for _, line := range []string{"uptime", "journalctl -u 'a b' \"c\" | head; true && echo x", "echo '' a'b'c =d --e=f"} {
		f.Add(line)
	}
	bin := filepath.Join(f.TempDir(), "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		f.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{
		"systemctl", "journalctl", "uptime", "cat", "cp", "grep", "timeout", "bash", "sudo", "head", "id", "env", "sh", "find", "xargs", "reboot", "ssh", "nice", "x", "a", "b",
	} {
		if err := os.Symlink(self, filepath.Join(bin, name)); err != nil {
			f.Fatal(err)
		}
	}
	patterns := operator(f)
	f.Fuzz(func(t *testing.T, line string) {
		if _, ok := services.NewCommandLine(line).Granted(patterns); !ok {
			return
		}
		for _, shell := range []string{"/bin/dash", "/bin/bash"} {
			record := filepath.Join(t.TempDir(), "record")
			cmd := exec.CommandContext(t.Context(), shell, "-c", line)
			cmd.Dir, cmd.Env = t.TempDir(), []string{"PATH=" + bin, recordTo + "=" + record}
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState == nil {
				t.Fatalf("%s: %v", shell, err)
			}
			data, _ := os.ReadFile(record) // none when only commands of the shell's own ran
			for entry := range strings.Lines(string(data)) {
				var argv []string
				if err := json.Unmarshal([]byte(entry), &argv); err != nil {
					t.Fatal(err)
				}
				argv[0] = filepath.Base(argv[0])
				if _, ok := services.NewCommandLine(quoted(argv)).Granted(patterns); !ok {
					t.Errorf("%s ran %q of the line %q: %s", shell, argv, line, out)
				}
			}
			if left, _ := os.ReadDir(cmd.Dir); len(left) > 0 {
				t.Errorf("%s made the file %q of the line %q", shell, left[0].Name(), line)
			}
		}
	})
}

// recordTo names the file to which this program, run in place of another, writes
// what it was called with.
const recordTo = "COMMAND_TEST_RECORD"

// quoted returns argv as a line. None has a quote and a character that needs it.
func quoted(argv []string) string {
	out := argv[0]
	for _, a := range argv[1:] {
		if strings.Contains(a, "'") {
			out += ` "` + a + `"`
		} else {
			out += " '" + a + "'"
		}
	}
	return out
}

func TestMain(m *testing.M) {
	if file := os.Getenv(recordTo); file != "" {
		os.Exit(record(file))
	}
	m.Run()
}

// record appends what this program was called with to file.
func record(file string) int {
	line, err := json.Marshal(os.Args)
	if err != nil {
		return 1
	}
	out, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 1
	}
	defer out.Close()
	if _, err := out.Write(append(line, '\n')); err != nil {
		return 1
	}
	return 0
}
