package srv

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxMotd bounds what is shown of /etc/motd, in bytes.
	maxMotd = 64 << 10
	// maxNotice bounds what is shown of /etc/nologin, in bytes. Quoted, it is an
	// argument of a command, for which the kernel has 128 KiB.
	maxNotice = 16 << 10
	// exitNologin is what sshd exits with when /etc/nologin keeps somebody out.
	exitNologin = "254"
)

// greet puts the message of the day before the output of a login shell on a
// terminal, as sshd does without PAM. It goes around the terminal, which may
// have no room for it before anybody reads.
func (l *Local) greet(s *streams, acct account, c Command) {
	if c.Kind != KindShell || c.Terminal == nil || hushed(acct.home) {
		return
	}
	text, err := l.accounts.motd()
	if err != nil || len(text) == 0 {
		return // there is none to show
	}
	err = control(s.child[1], func(fd int) error {
		termios, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil && termios.Oflag&unix.OPOST != 0 && termios.Oflag&unix.ONLCR != 0 {
			text = bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n"))
		}
		return err
	})
	if err == nil {
		s.ours.Stdout = io.MultiReader(bytes.NewReader(text), s.ours.Stdout)
	}
}

// motd returns the message of the day (motd(5)).
func (a accounts) motd() ([]byte, error) {
	f, err := os.Open(a.file("etc/motd"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxMotd))
}

// hushed reports whether somebody wants no message of the day. The file may be
// a link to anything, which is not followed: it would tell the account what
// only root can see.
func hushed(home string) bool {
	root, err := os.OpenRoot(home)
	if err != nil {
		return false
	}
	defer root.Close() //nolint:errcheck // only looked through
	_, err = root.Lstat(".hushlogin")
	return err == nil
}

// nologin returns what the file that keeps everybody but root out says, and
// whether there is one (nologin(5)).
func (a accounts) nologin() (string, bool) {
	for _, name := range []string{"run/nologin", "etc/nologin"} {
		text, err := os.ReadFile(a.file(name))
		if !errors.Is(err, fs.ErrNotExist) {
			return string(text[:min(len(text), maxNotice)]), true
		}
	}
	return "", false
}

// turnAway returns c or, while nobody but root may log in, what says so in its
// place: the text on stderr and exit status 254, as sshd does without PAM.
func (l *Local) turnAway(acct account, c Command) (account, Command) {
	notice, closed := l.accounts.nologin()
	if !closed || acct.uid == 0 {
		return acct, c
	}
	acct.shell, acct.home = "/bin/sh", "/"
	quoted := strings.NewReplacer("'", `'\''`, "\x00", "").Replace(notice)
	c.Kind, c.Argv, c.Env, c.Agent, c.X11 = KindExec, nil, nil, false, nil
	c.Line = "printf %s '" + quoted + "' >&2; exit " + exitNologin
	return acct, c
}
