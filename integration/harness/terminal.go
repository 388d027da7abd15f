package harness

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// Terminal is a command in a pseudo-terminal of its own, as a person sits
// before it; its standard output goes elsewhere, as with "> file".
type Terminal struct {
	t      testing.TB
	cmd    *exec.Cmd
	pty    *os.File
	screen *buffer
	moved  chan struct{} // something new is on the screen
	done   chan struct{}
	stdout bytes.Buffer
	seen   int // bytes of the screen that Expect has passed
}

// Type starts a command that finds a terminal to ask its questions on.
func Type(t testing.TB, name string, args ...string) *Terminal {
	t.Helper()
	return sit(t, exec.Command(name, args...), false)
}

// Sit starts a command with all of its streams on a terminal of 80 columns and
// 24 rows, as a person does who sits before it.
func Sit(t testing.TB, cmd *exec.Cmd) *Terminal {
	t.Helper()
	return sit(t, cmd, true)
}

func sit(t testing.TB, cmd *exec.Cmd, all bool) *Terminal {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	k := &Terminal{t: t, cmd: cmd, pty: master, screen: &buffer{}, moved: make(chan struct{}, 1), done: make(chan struct{})}
	k.cmd.Stdin, k.cmd.Stderr, k.cmd.Stdout = slave, slave, &k.stdout
	if all {
		k.cmd.Stdout = slave
		k.Resize(80, 24)
	}
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			_, _ = k.screen.Write(buf[:n])
			select {
			case k.moved <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(k.done)
		_ = k.cmd.Wait()
		<-read
		master.Close()
	}()
	t.Cleanup(func() {
		_ = k.cmd.Process.Kill()
		<-k.done
	})
	return k
}

// Expect waits until what is new on the screen matches re and returns the
// match's groups.
func (k *Terminal) Expect(re string) []string {
	k.t.Helper()
	want := regexp.MustCompile(re)
	limit := time.After(Patience)
	for {
		text := k.screen.String()
		if m := want.FindStringSubmatchIndex(text[k.seen:]); m != nil {
			groups := want.FindStringSubmatch(text[k.seen:])
			k.seen += m[1]
			shown(groups)
			return groups
		}
		select {
		case <-k.moved:
		case <-k.done:
			if text := k.screen.String(); !want.MatchString(text[k.seen:]) {
				k.t.Fatalf("ended without %q on the screen:\n%s", re, text)
			}
		case <-limit:
			k.t.Fatalf("no %q on the screen within %v:\n%s", re, Patience, text)
		}
	}
}

// Send types a line.
func (k *Terminal) Send(line string) {
	k.t.Helper()
	k.Press(line + "\n")
}

// Press types keys.
func (k *Terminal) Press(keys string) {
	k.t.Helper()
	if _, err := k.pty.Write([]byte(keys)); err != nil {
		k.t.Fatal(err)
	}
}

// Resize gives the terminal another size.
func (k *Terminal) Resize(columns, rows uint16) {
	k.t.Helper()
	if err := pty.Setsize(k.pty, &pty.Winsize{Cols: columns, Rows: rows}); err != nil {
		k.t.Fatal(err)
	}
}

// Interrupt sends what Ctrl-C sends.
func (k *Terminal) Interrupt() { _ = k.cmd.Process.Signal(syscall.SIGINT) }

// Wait waits for the command's end and returns how it ended; Stderr is all that
// was on the screen.
func (k *Terminal) Wait() Result {
	k.t.Helper()
	select {
	case <-k.done:
	case <-time.After(Patience):
		k.t.Fatalf("still running after %v:\n%s", Patience, k.screen.String())
	}
	return Result{k.cmd.ProcessState.ExitCode(), k.stdout.String(), k.screen.String()}
}
