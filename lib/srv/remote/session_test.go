package remote

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/sys/unix"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/sshca"
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

// TestTerminal: a terminal has a size, modes, one output, and changes.
func TestTerminal(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	x := w.executor()
	c := w.command(srv.KindExec, `stty size; echo $TERM $LC_X$EVIL >&2; read a; stty size; stty -a | tr ' ' '\n' | grep -x -e '-\?echo;\?'; exit 3`)
	c.Env = []sshwire.Env{{Name: "EVIL", Value: "1"}, {Name: "LC_X", Value: "yes"}} // sshd takes the second only
	c.Terminal = &srv.Terminal{
		Term: "xterm-test", Window: sshwire.WindowChange{Columns: 90, Rows: 30}, Modes: []sshwire.Mode{{Opcode: 53, Value: 0}}, // ECHO
	}
	p, err := x.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Pipes().Stderr != nil {
		t.Error("a terminal has a stderr")
	}
	first := make([]byte, len("30 90\r\nxterm-test yes\r\n"))
	if _, err := io.ReadFull(p.Pipes().Stdout, first); err != nil || string(first) != "30 90\r\nxterm-test yes\r\n" {
		t.Fatalf("it begins with %q, %v", first, err)
	}
	p.Resize(sshwire.WindowChange{Columns: 100, Rows: 40})
	r := finish(t, p, []byte("go\n"))
	if got, want := string(r.stdout), "40 100\r\n-echo\r\n"; got != want {
		t.Errorf("it ends with %q, want %q", got, want)
	}
	if r.exit != (srv.Exit{Code: 3}) {
		t.Errorf("exit = %+v", r.exit)
	}
}

// TestShell: a login shell reads its commands.
func TestShell(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	r := w.run(w.executor(), w.command(srv.KindShell, ""), []byte("echo $0; exit 5\n"))
	if !strings.HasPrefix(string(r.stdout), "-") || r.exit != (srv.Exit{Code: 5}) {
		t.Errorf("a login shell printed %q and %q, exit %+v", r.stdout, r.stderr, r.exit)
	}
}

// TestNoTerminal: an sshd that gives no terminal runs the command all the same,
// as with ssh itself, and the person reads it.
func TestNoTerminal(t *testing.T) {
	w := newWorld(t)
	w.sshd("PermitTTY no")
	c := w.command(srv.KindExec, "tty; echo err >&2")
	c.Terminal = &srv.Terminal{Term: "xterm"}
	r := w.run(w.executor(), c, nil)
	if got, want := string(r.stdout)+"|"+string(r.stderr), "not a tty\n|accessd: the node gives no terminal\nerr\n"; got != want {
		t.Errorf("output = %q, want %q", got, want)
	}
}

// TestBanner: what the sshd says at login the person reads, as from ssh.
func TestBanner(t *testing.T) {
	w := newWorld(t)
	notice := filepath.Join(t.TempDir(), "issue")
	if err := os.WriteFile(notice, []byte("two\nlines\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.sshd("Banner " + notice)
	x := w.executor()
	c := w.command(srv.KindExec, "echo out")
	if r := w.run(x, c, nil); string(r.stdout) != "out\n" || string(r.stderr) != "two\nlines\n" {
		t.Errorf("output = %q, %q", r.stdout, r.stderr)
	}
	c.Terminal = &srv.Terminal{Term: "xterm"}
	if r := w.run(x, c, nil); string(r.stdout) != "two\r\nlines\r\nout\r\n" {
		t.Errorf("on a terminal: %q", r.stdout)
	}
}

// TestArgv: words arrive as they are, though sshd knows of lines only.
func TestArgv(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	c := w.command(srv.KindExec, "must not run")
	c.Argv = []string{"printf", "%s|", "*", "a b", "$HOME", "it's", "", "`id`", "\\n", "~", "a=b", "#x", "\n"}
	r := w.run(w.executor(), c, nil)
	if got, want := string(r.stdout), strings.Join(c.Argv[2:], "|")+"|"; got != want {
		t.Errorf("words = %q, want %q", got, want)
	}
}

// TestBulk: a lot of output reaches a slow reader whole and in order, both
// outputs at once, while as much goes in.
func TestBulk(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	const size = 24 << 20
	p, err := w.executor().Start(t.Context(), w.command(srv.KindExec, fmt.Sprintf("head -c %d /dev/zero >&2 & sha256sum; wait", size)))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	in := random(size)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := p.Pipes().Stdin.Write(in); err != nil {
			t.Error(err)
		}
		_ = p.Pipes().Stdin.Close()
	})
	var zeros int64
	wg.Go(func() {
		buf := make([]byte, 1000) // in small bites
		for {
			n, err := p.Pipes().Stderr.Read(buf)
			zeros += int64(n)
			if err != nil {
				return
			}
		}
	})
	sum, err := io.ReadAll(p.Pipes().Stdout)
	wg.Wait()
	if want := fmt.Sprintf("%x  -\n", sha256.Sum256(in)); string(sum) != want || err != nil {
		t.Errorf("input arrived as %q, %v, want %q", sum, err, want)
	}
	if zeros != size {
		t.Errorf("%d bytes of %d came out", zeros, size)
	}
	if e := <-p.Exited(); e != (srv.Exit{}) {
		t.Errorf("exit = %+v", e)
	}
}

// TestBackPressure: while nobody reads, the process is stopped after what the
// window has room for, and goes on when somebody does.
func TestBackPressure(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	counted := &counter{}
	w.wrap = counted.wrap
	p, err := w.executor().Start(t.Context(), w.command(srv.KindExec, "head -c 50000000 /dev/zero"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	counted.settles(t)
	if got := counted.n.Load(); got > 4<<20 {
		t.Errorf("%d bytes came in though nobody reads", got)
	}
	n, err := io.Copy(io.Discard, p.Pipes().Stdout)
	if n != 50000000 || err != nil {
		t.Errorf("%d bytes came out, %v", n, err)
	}
}

// counter counts what is read from a connection.
type counter struct {
	net.Conn

	n atomic.Int64
}

func (c *counter) wrap(nc net.Conn) net.Conn {
	c.Conn = nc
	return c
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// settles returns when nothing more has come in for a while.
func (c *counter) settles(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for last := int64(-1); ; {
		now := c.n.Load()
		if now == last {
			return
		}
		last = now
		<-tick.C
	}
}

// TestReadsNoMore: a process that has closed its input makes writing to it fail;
// one whose output nobody reads any more gets SIGPIPE.
func TestReadsNoMore(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	x := w.executor()
	p, err := x.Start(t.Context(), w.command(srv.KindExec, "exec 0<&-; echo closed; sleep 60"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := io.ReadFull(p.Pipes().Stdout, make([]byte, len("closed\n"))); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var failed error
	for range 1000 {
		if _, failed = p.Pipes().Stdin.Write([]byte("x")); failed != nil {
			break
		}
		<-tick.C
	}
	if failed == nil {
		t.Error("a process that has closed its input takes all that is written")
	}

	if p, err = x.Start(t.Context(), w.command(srv.KindExec, "exec yes")); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	out, ok := p.Pipes().Stdout.(io.ReadCloser)
	if !ok {
		t.Fatalf("a %T cannot be closed", p.Pipes().Stdout)
	}
	if _, err := io.ReadFull(out, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Error(err)
	}
	if r := finish(t, p, nil); r.exit != (srv.Exit{Signal: "PIPE"}) {
		t.Errorf("exit = %+v", r.exit)
	}
}

// TestClose hangs up: the process on the far side ends, whoever reads wakes up.
func TestClose(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	file := filepath.Join(t.TempDir(), "f")
	c := w.command(srv.KindExec, "trap 'echo hup > "+file+"; exit' HUP; echo ready; sleep 60 & wait")
	c.Terminal = &srv.Terminal{Term: "xterm"}
	p, err := w.executor().Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(p.Pipes().Stdout, make([]byte, len("ready\r\n"))); err != nil {
		t.Fatal(err)
	}
	p.Close()
	if rest, err := io.ReadAll(p.Pipes().Stdout); len(rest) > 0 || err != nil {
		t.Errorf("after Close: %q, %v", rest, err)
	}
	<-p.Exited()
	p.Close()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		if text, err := os.ReadFile(file); err == nil && len(text) > 0 {
			return
		}
		<-tick.C
	}
	t.Error("the process was not hung up")
}

// TestSFTP: the subsystem works through the pipes.
func TestSFTP(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	p, err := w.executor().Start(t.Context(), w.command(srv.KindSubsystem, srv.SubsystemSFTP))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	// SSH_FXP_INIT with version 3, and the answer (draft-ietf-secsh-filexfer-02,
	// section 4).
	if _, err := p.Pipes().Stdin.Write([]byte{0, 0, 0, 5, 1, 0, 0, 0, 3}); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 9)
	if _, err := io.ReadFull(p.Pipes().Stdout, answer); err != nil || !bytes.Equal(answer[4:], []byte{2, 0, 0, 0, 3}) {
		t.Errorf("answer %v, %v", answer, err)
	}
	if r := finish(t, p, nil); r.exit != (srv.Exit{}) {
		t.Errorf("exit = %+v", r.exit)
	}
	_, err = w.executor().Start(t.Context(), w.command(srv.KindSubsystem, "nonsense"))
	if want := `the sshd of node "db-1" refuses the subsystem`; fault.Public(err) != want {
		t.Errorf("unknown subsystem: %v, public %q, want %q", err, fault.Public(err), want)
	}
}

// clientEnd is a channel to a client, as the manager of sessions opens it, with
// the client's own end behind it.
type clientEnd struct {
	*net.UnixConn
}

func (clientEnd) SendRequest(string, bool, []byte) (bool, error) { return false, nil }
func (clientEnd) Stderr() io.ReadWriter                          { return nil }

// opener returns one that hands each channel to serve, and notes its type.
func opener(t *testing.T, serve func(c net.Conn)) (open srv.Opener, kinds func() []string) {
	t.Helper()
	var mu sync.Mutex
	var opened []string
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	return func(kind string, payload []byte) (ssh.Channel, error) {
			mu.Lock()
			defer mu.Unlock()
			opened = append(opened, kind)
			if kind == sshwire.ChannelX11 {
				if _, err := sshwire.ParseX11Open(payload); err != nil {
					t.Error(err)
				}
			}
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			var ends [2]*net.UnixConn
			for i, fd := range fds {
				f := os.NewFile(uintptr(fd), "pair")
				c, err := net.FileConn(f)
				f.Close()
				if err != nil {
					return nil, err
				}
				ends[i], _ = c.(*net.UnixConn)
			}
			wg.Go(func() {
				defer ends[1].Close()
				serve(ends[1])
			})
			return clientEnd{ends[0]}, nil
		}, func() []string {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(opened)
		}
}

// TestAgent: a process uses the client's agent, if that was granted.
func TestAgent(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	ring := agent.NewKeyring()
	key, signer := sshca.Generate()
	if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	open, kinds := opener(t, func(c net.Conn) { _ = agent.ServeAgent(ring, c) }) // until the other side has enough
	x := w.executor()
	c := w.command(srv.KindExec, "ssh-add -l; ssh-add -l; echo ${SSH_AUTH_SOCK:+set}")
	c.Open = open
	r := w.run(x, c, nil)
	if string(r.stdout) != "\n" || len(kinds()) != 0 {
		t.Errorf("without its grant: %q, %q, channels %q", r.stdout, r.stderr, kinds())
	}
	c.Agent = true
	r = w.run(x, c, nil)
	want := ssh.FingerprintSHA256(signer.PublicKey())
	if strings.Count(string(r.stdout), want) != 2 || !strings.HasSuffix(string(r.stdout), "set\n") {
		t.Errorf("with it: %q, %q, want %s twice", r.stdout, r.stderr, want)
	}
	if got := kinds(); !slices.Equal(got, []string{sshwire.ChannelAgent, sshwire.ChannelAgent}) {
		t.Errorf("channels %q", got)
	}
}

// TestX11: a process uses the client's display, if that was granted and the sshd
// forwards displays.
func TestX11(t *testing.T) {
	const knock = `exec 3<>/dev/tcp/127.0.0.1/$((6000 + $(echo $DISPLAY | sed 's/.*:\([0-9]*\)\..*/\1/'))); echo hello >&3; cat <&3`
	w := newWorld(t)
	w.sshd("XAuthLocation /usr/bin/xauth")
	open, kinds := opener(t, func(c net.Conn) {
		line, _ := bufio.NewReader(c).ReadString('\n') // an empty one is told below
		fmt.Fprintf(c, "display says %s", line)
	})
	c := w.command(srv.KindExec, "bash -c '"+strings.ReplaceAll(knock, "'", `'\''`)+"; xauth list $DISPLAY'")
	c.Open = open
	c.X11 = &sshwire.X11Request{Protocol: "MIT-MAGIC-COOKIE-1", Cookie: "00112233445566778899aabbccddeeff"}
	r := w.run(w.executor(), c, nil)
	if !strings.HasPrefix(string(r.stdout), "display says hello\n") || !strings.Contains(string(r.stdout), c.X11.Cookie) {
		t.Errorf("%q, %q, channels %q", r.stdout, r.stderr, kinds())
	}
	c.X11.SingleConnection = true
	c.Line = "bash -c '" + strings.ReplaceAll(knock+"; "+knock, "'", `'\''`) + "'"
	r = w.run(w.executor(), c, nil)
	if got := strings.Count(string(r.stdout), "display says hello\n"); got != 1 {
		t.Errorf("with a single connection the display was reached %d times: %q, %q", got, r.stdout, r.stderr)
	}

	w.sshd("X11Forwarding no")
	c.Line = "echo display=$DISPLAY"
	r = w.run(w.executor(), c, nil)
	if string(r.stdout) != "display=\n" || string(r.stderr) != "accessd: the node does not forward X11\n" {
		t.Errorf("refused: %q, %q", r.stdout, r.stderr)
	}
}

// TestFiftySessions: one client begins fifty sessions at once on an sshd with its
// defaults, ten sessions on a connection and ten logins under way.
func TestFiftySessions(t *testing.T) {
	w := newWorld(t)
	w.sshd("MaxSessions 10", "MaxStartups 10:30:100")
	x := w.executor()
	var wg sync.WaitGroup
	ready, all := make(chan struct{}), make(chan struct{})
	go func() { // ends with the fiftieth
		defer close(all)
		for range 50 {
			<-ready
		}
	}()
	for i := range 50 {
		wg.Go(func() {
			p, err := x.Start(t.Context(), w.command(srv.KindExec, fmt.Sprintf("echo ready; read a; echo $a; exit %d", i)))
			if err != nil {
				t.Error(err)
				ready <- struct{}{}
				return
			}
			defer p.Close()
			_, err = io.ReadFull(p.Pipes().Stdout, make([]byte, len("ready\n")))
			if err != nil {
				t.Error(err)
			}
			ready <- struct{}{}
			<-all
			if r := finish(t, p, []byte("go\n")); string(r.stdout) != "go\n" || r.exit != (srv.Exit{Code: i}) {
				t.Errorf("session %d: %q, exit %+v", i, r.stdout, r.exit)
			}
		})
	}
	wg.Wait()
}
