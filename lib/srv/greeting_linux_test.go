package srv

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshwire"
)

// shellOn starts the account's shell on a terminal and returns what it prints.
func shellOn(t *testing.T, l *Local, login names.Login, modes ...sshwire.Mode) (stdout string, e Exit) {
	t.Helper()
	stdout, _, e = outcomeOf(t, l, Command{Account: Account{Login: login}, Kind: KindShell, Terminal: &Terminal{Term: "dumb", Modes: modes}})
	return stdout, e
}

// greeter returns files in which the shell of "me" prints its name, and a home
// for it.
func greeter(t *testing.T) (files map[string]string, home string) {
	t.Helper()
	home = t.TempDir()
	shell := filepath.Join(home, "shell")
	if err := os.WriteFile(shell, []byte("#!/bin/sh\necho shell\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	files = own(shell, home, "")
	files["etc/motd"] = "one\ntwo\n"
	return files, home
}

func TestMessageOfTheDay(t *testing.T) {
	files, home := greeter(t)
	l := localOf(t, files)
	if got, _ := shellOn(t, l, "me"); got != "one\r\ntwo\r\nshell\r\n" {
		t.Errorf("shell on a terminal: %q, want the message before the shell", got)
	}
	const onlcr = 72 // RFC 4254, section 8
	if got, _ := shellOn(t, l, "me", sshwire.Mode{Opcode: onlcr}); got != "one\ntwo\nshell\n" {
		t.Errorf("on a terminal without ONLCR: %q, want bare line feeds", got)
	}
	for what, c := range map[string]Command{
		"without a terminal": {Kind: KindShell},
		"command":            {Kind: KindExec, Line: "true", Terminal: &Terminal{Term: "dumb"}},
	} {
		c.Login = "me"
		if got, _, _ := outcomeOf(t, l, c); strings.Contains(got, "one") {
			t.Errorf("%s: %q, want no message", what, got)
		}
	}
	if err := os.Symlink("/no/such/file", filepath.Join(home, ".hushlogin")); err != nil {
		t.Fatal(err)
	}
	if got, _ := shellOn(t, l, "me"); got != "shell\r\n" {
		t.Errorf("with .hushlogin: %q, want no message", got)
	}
}

// What nobody reads does not keep the shell from starting, and there is an end
// to it.
func TestMessageOfTheDayIsBounded(t *testing.T) {
	files, _ := greeter(t)
	files["etc/motd"] = strings.Repeat("x", maxMotd+1000)
	if got, _ := shellOn(t, localOf(t, files), "me"); got != strings.Repeat("x", maxMotd)+"shell\r\n" {
		t.Errorf("%d bytes, want %d and the shell's", len(got), maxMotd)
	}
}

// F36: everybody but root is told why, in sshd's way, and nothing of theirs
// runs.
func TestF36Nologin(t *testing.T) {
	const text = "Down 'til noon; $(id) \\n %s\nSorry.\n"
	for _, name := range []string{"etc/nologin", "run/nologin"} {
		l := localOf(t, own("/bin/sh", "/", ""))
		path := l.accounts.file(name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		acct := account{name: "me", uid: 1234, home: "/", shell: "/bin/sh"}
		for _, c := range []Command{{Kind: KindShell}, {Kind: KindExec, Line: "echo ran"}, {Kind: KindSubsystem, Line: SubsystemSFTP}} {
			away, instead := l.turnAway(acct, c)
			p := &process{local: l, exited: make(chan Exit, 1), back: l.openBack(t.Context(), person{}, Command{})}
			got, e := started(t, l, p, away, instead)
			if got != text || e.Code != 254 {
				t.Errorf("%s, %s: stderr %q, exit %+v, want %q, 254", name, c.Kind, got, e, text)
			}
		}
		acct.uid = 0
		if away, c := l.turnAway(acct, Command{Kind: KindExec, Line: "echo ran"}); away != acct || c.Line != "echo ran" {
			t.Errorf("%s: root runs %q, want its own command", name, c.Line)
		}
	}
}

// started runs c as this process's own user and returns what it says on stderr.
func started(t *testing.T, l *Local, p *process, acct account, c Command) (stderr string, e Exit) {
	t.Helper()
	streams, err := l.open(nil, acct)
	if err != nil {
		t.Fatal(err)
	}
	p.streams = streams
	acct.uid, acct.gid = uint32(os.Getuid()), uint32(os.Getgid())
	l.spawner.hold()
	if err := p.start(acct, nil, c); err != nil {
		t.Fatal(err)
	}
	streams.closeChild()
	go p.wait()
	out, _ := io.ReadAll(streams.ours.Stdout)
	said, _ := io.ReadAll(streams.ours.Stderr)
	if len(out) > 0 {
		t.Errorf("stdout %q, want nothing", out)
	}
	defer p.Close()
	return string(said), <-p.exited
}
