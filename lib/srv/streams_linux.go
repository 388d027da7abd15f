package srv

import (
	"errors"
	"os"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/accessd/accessd/lib/sshwire"
)

// streams are the two ends of a process's standard streams.
type streams struct {
	what   string      // for an error: "a terminal" or "pipes"
	child  [3]*os.File // its standard input, output and error
	ours   Pipes
	open   []*os.File // of ours
	master *os.File   // of the terminal; nil without one
	name   string     // of the terminal
}

// terminalInput is a terminal's master as standard input: it cannot be closed
// in one direction.
type terminalInput struct{ *os.File }

func (terminalInput) Close() error { return nil }

// terminalOutput is a terminal's master as standard output. It gives 4 KiB at a
// time; of a process that writes a lot, Read takes along what has come meanwhile,
// since what is done with it costs by the piece.
type terminalOutput struct{ *os.File }

// gatherFrom is how many bytes a read brings at least of a process that is taken to
// write a lot: half of what a terminal gives at once.
const gatherFrom = 2 << 10

// Read implements [io.Reader].
func (o terminalOutput) Read(p []byte) (int, error) {
	n, err := o.File.Read(p)
	if err != nil || n < gatherFrom {
		return n, err
	}
	_ = control(o.File, func(fd int) error { // what is wrong, the next Read says
		for n < len(p) && readable(fd) { // nobody else reads it, so it stays so
			more, err := unix.Read(fd, p[n:])
			if err != nil || more <= 0 {
				return err
			}
			n += more
		}
		return nil
	})
	return n, nil
}

// readable reports whether a read of fd would not wait.
func readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&unix.POLLIN != 0
}

// open opens the streams for a process of acct. On an error it has closed them.
func (l *Local) open(t *Terminal, acct account) (*streams, error) {
	s := &streams{what: "pipes"}
	var err error
	if t != nil {
		s.what = "a terminal"
		err = l.openTerminal(s, t, acct)
	} else {
		err = s.openPipes()
	}
	if err != nil {
		s.closeChild()
		s.closeOurs()
	}
	return s, err
}

func (s *streams) openPipes() error {
	stdin, toStdin, err := os.Pipe()
	if err != nil {
		return err
	}
	s.child[0], s.open = stdin, []*os.File{toStdin}
	var from [3]*os.File
	for i := 1; i <= 2; i++ {
		if from[i], s.child[i], err = os.Pipe(); err != nil {
			return err
		}
		s.open = append(s.open, from[i])
	}
	s.ours = Pipes{Stdin: toStdin, Stdout: from[1], Stderr: from[2]}
	return nil
}

// openTerminal opens a terminal that belongs to acct.
func (l *Local) openTerminal(s *streams, t *Terminal, acct account) error {
	master, slave, err := pty.Open()
	if err != nil {
		return err
	}
	s.master, s.name, s.open = master, slave.Name(), []*os.File{master}
	s.child = [3]*os.File{slave, slave, slave}
	s.ours = Pipes{Stdin: terminalInput{master}, Stdout: terminalOutput{master}}
	if err := l.giveTo(slave, acct); err != nil && l.root { // others own it already; the group is a nicety
		return err
	}
	if err := s.resize(t.Window); err != nil {
		return err
	}
	return control(slave, func(fd int) error {
		termios, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		l.modes.apply(termios, t.Modes)
		return unix.IoctlSetTermios(fd, unix.TCSETS, termios)
	})
}

// giveTo makes acct the owner of a terminal, to which the group tty may write
// (write(1)), as sshd's pty_setowner does.
func (l *Local) giveTo(slave *os.File, acct account) error {
	gid, mode := acct.gid, os.FileMode(0o600)
	if tty, ok := l.accounts.ttyGroup(); ok {
		gid, mode = tty, 0o620
	}
	if err := slave.Chown(int(acct.uid), int(gid)); err != nil {
		return err
	}
	return slave.Chmod(mode)
}

// resize sets the size of the terminal, if there is one.
func (s *streams) resize(w sshwire.WindowChange) error {
	if s.master == nil {
		return nil
	}
	const most = 1<<16 - 1
	size := unix.Winsize{
		Row: uint16(min(w.Rows, most)), Col: uint16(min(w.Columns, most)),
		Xpixel: uint16(min(w.Width, most)), Ypixel: uint16(min(w.Height, most)),
	}
	return control(s.master, func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &size) })
}

// control calls f with f's descriptor while it is open.
func control(f *os.File, call func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = call(int(fd)) })
	return errors.Join(err, failed)
}

// closeChild closes the process's ends, which it has its own copies of.
func (s *streams) closeChild() {
	for i, f := range s.child {
		if f != nil && (i == 0 || f != s.child[0]) {
			_ = f.Close() // nothing of ours was written
		}
	}
}

// closeOurs closes our ends; a second call has no effect.
func (s *streams) closeOurs() {
	for _, f := range s.open {
		_ = f.Close() // a stream that nobody reads has nothing to lose
	}
}
