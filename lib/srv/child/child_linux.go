package child

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// handover is the descriptor of the socket that open files go back on.
const handover = 3

// exitUsage is the exit code when the arguments are none of a job.
const exitUsage = 2

// Run does the job of a child, if args (with the program's name) are one's, and
// returns the exit code of the process.
func Run(args []string) (code int, ok bool) {
	if len(args) == 0 || args[0] != Name {
		return 0, false
	}
	if err := run(args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, text(err))
		if errors.Is(err, errUsage) {
			return exitUsage, true
		}
		return 1, true
	}
	return 0, true
}

var errUsage = errors.New("usage: " + Name + " sftp | agent | dial PATH | listen PATH | remove PATH")

func run(args []string) error {
	job, path := "", ""
	switch len(args) {
	case 1:
		job = args[0]
	case 2:
		job, path = args[0], args[1]
	}
	switch {
	case job == SFTP && path == "":
		return serveFiles(os.Stdin, os.Stdout)
	case job == Agent && path == "":
		return listenAgent()
	case job == Dial && path != "":
		return dial(path)
	case job == Listen && path != "":
		return listen(path)
	case job == Remove && path != "":
		return remove(path)
	}
	return errUsage
}

// text returns what the system says of err, without what was being done.
func text(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	return err.Error()
}

// give hands f back, with a word about it.
func give(f *os.File, word string) error {
	return unix.Sendmsg(handover, []byte(word+"\x00"), unix.UnixRights(int(f.Fd())), nil, 0)
}

func dial(path string) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	f, err := conn.File()
	if err != nil {
		return err
	}
	return give(f, "")
}

// listen makes a socket that nobody else can use. Something that is there already
// stays (OpenSSH's StreamLocalBindUnlink no).
func listen(path string) error {
	unix.Umask(0o177)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	ln.SetUnlinkOnClose(false)
	f, err := ln.File()
	if err != nil {
		return err
	}
	return give(f, path)
}

// agentDir is the pattern of the directories that agents' sockets are in. It is
// OpenSSH's.
const agentDir = "ssh-*"

func listenAgent() error {
	dir, err := os.MkdirTemp("/tmp", agentDir) // mode 0700
	if err != nil {
		return err
	}
	err = listen(filepath.Join(dir, "agent."+strconv.Itoa(os.Getppid())))
	if err != nil {
		_ = os.Remove(dir) // the first error tells more
	}
	return err
}

// remove removes the socket path if it is one of this account's, and the
// directory it is in if [Agent] made that.
func remove(path string) error {
	dir, name := filepath.Split(path)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) // what is looked at is what is removed
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || int64(st.Uid) != int64(os.Geteuid()) {
		return errors.New("it is not that socket any more")
	}
	if err := unix.Unlinkat(fd, name, 0); err != nil {
		return err
	}
	dir = filepath.Clean(dir)
	if ours, err := filepath.Match(filepath.Join("/tmp", agentDir), dir); err != nil || !ours {
		return err
	}
	return unix.Rmdir(dir)
}
