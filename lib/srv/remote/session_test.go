package remote

import (
	"testing"

	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/sshwire"
)

// TestExec: exit codes, signals and both outputs come back byte for byte.
func TestExec(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	x := w.executor()
	for _, c := range []struct {
		line, stdin, stdout, stderr string
		exit                        srv.Exit
	}{
		{line: "echo out; echo err >&2; exit 7", stdout: "out\n", stderr: "err\n", exit: srv.Exit{Code: 7}},
		{line: "true"},
		{line: "exit 255", exit: srv.Exit{Code: 255}},
		{line: "kill -TERM $$", exit: srv.Exit{Signal: "TERM"}},
		{line: "kill -KILL $$", exit: srv.Exit{Signal: "KILL"}},
		{line: "cat; echo end", stdin: "a\x00b\n", stdout: "a\x00b\nend\n"},
		{line: "no-such-command 2>/dev/null", exit: srv.Exit{Code: 127}},
	} {
		r := w.run(x, w.command(srv.KindExec, c.line), []byte(c.stdin))
		if got, want := string(r.stdout)+"|"+string(r.stderr), c.stdout+"|"+c.stderr; got != want {
			t.Errorf("%s: output = %q, want %q", c.line, got, want)
		}
		if r.exit != c.exit {
			t.Errorf("%s: exit = %+v, want %+v", c.line, r.exit, c.exit)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.signed) != 7 || w.dials != 7 {
		t.Errorf("%d certificates and %d connections for 7 sessions", len(w.signed), w.dials)
	}
	seen := map[string]bool{}
	for _, s := range w.signed {
		if s.GetLogin() != string(w.account) || s.GetNode() != string(w.node.ID) || s.GetRole() != "ops" || s.GetClient() != "192.0.2.7:40000" {
			t.Errorf("asked for a certificate with %v", s)
		}
		if seen[s.GetSession()] || seen[s.GetPublicKey()] {
			t.Errorf("session or key of %v was used before", s)
		}
		seen[s.GetSession()], seen[s.GetPublicKey()] = true, true
	}
}

// TestShell: a terminal has a size, modes, one output, and changes.
func TestShell(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	x := w.executor()
	c := w.command(srv.KindExec, "stty -a | head -1; tty >/dev/null && echo tty $TERM $LC_X; read a; stty size; exit 3")
	c.Env = []sshwire.Env{{Name: "LC_X", Value: "yes"}, {Name: "EVIL", Value: "1"}}
	c.Terminal = &srv.Terminal{Term: "xterm-test", Window: sshwire.WindowChange{Columns: 90, Rows: 30}, Modes: []sshwire.Mode{{Opcode: 53, Value: 0}}} // no ECHO
	p, err := x.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Pipes().Stderr != nil {
		t.Error("a terminal has a stderr")
	}
	p.Resize(sshwire.WindowChange{Columns: 100, Rows: 40})
	r := finish(t, p, []byte("go\n"))
	if r.exit != (srv.Exit{Code: 3}) {
		t.Errorf("exit = %+v", r.exit)
	}
	t.Logf("%q", r.stdout)
}
