package srv

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/srv/child"
)

const (
	// self is this program, whatever has become of its file.
	self = "/proc/self/exe"
	// childTime bounds what a child does but for serving files.
	childTime = 10 * time.Second
	// maxWord bounds what a child says, in bytes: a path.
	maxWord = 4 << 10
)

// person is an account and what else the kernel needs to become it.
type person struct {
	account

	groups []uint32
}

// person returns the person that acct is.
func (l *Local) person(ctx context.Context, acct account) (person, error) {
	groups, err := l.accounts.groupsOf(ctx, acct)
	return person{acct, groups}, err
}

// as returns what makes a new process p's.
func (l *Local) as(p person) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true}
	if l.root {
		attr.Credential = &syscall.Credential{Uid: p.uid, Gid: p.gid, Groups: p.groups}
	}
	return attr
}

// errand is a program that is run for a moment.
type errand struct {
	path  string
	args  []string // with its name
	stdin string
	file  *os.File // it finds as descriptor 3; nil: none
}

// run runs e as p and returns what is wrong with how it ended.
func (l *Local) run(ctx context.Context, p person, e errand) error {
	ctx, cancel := context.WithTimeout(ctx, childTime)
	defer cancel()
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, e.path) //nolint:gosec // one of two constants
	cmd.Args, cmd.Stdin, cmd.Stderr, cmd.Dir = e.args, strings.NewReader(e.stdin), &said, "/"
	cmd.WaitDelay, cmd.SysProcAttr = time.Second, l.as(p)
	cmd.Env = []string{"PATH=" + userPath, "HOME=" + p.home, "USER=" + p.name, "LOGNAME=" + p.name}
	if e.file != nil {
		cmd.ExtraFiles = []*os.File{e.file}
	}
	err := cmd.Run()
	if err == nil {
		return nil
	}
	words := strings.TrimSpace(said.String()[:min(said.Len(), maxWord)])
	if words == "" {
		words = err.Error()
	}
	return fault.Wrap(fault.Unavailable, err, errorText(&os.PathError{Err: wording(words)}))
}

// wording is an error of somebody else's words.
type wording string

func (w wording) Error() string { return string(w) }

// handed does a child's job as p and returns the open file that it hands back,
// and its word about it.
func (l *Local) handed(ctx context.Context, p person, job ...string) (*os.File, string, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, "", err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	err = l.run(ctx, p, errand{path: self, args: append([]string{child.Name}, job...), file: theirs})
	if err != nil {
		return nil, "", err
	}
	word, rights := make([]byte, maxWord), make([]byte, unix.CmsgSpace(4))
	n, oob, _, _, err := unix.Recvmsg(pair[0], word, rights, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, "", err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:oob])
	if err != nil || len(messages) != 1 {
		return nil, "", fault.New(fault.Internal, "the child handed nothing back")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, "", fault.New(fault.Internal, "the child handed no file back")
	}
	return os.NewFile(uintptr(fds[0]), "handed"), strings.TrimRight(string(word[:n]), "\x00"), nil
}

// dialSocket connects to the Unix socket path as the login of a.
func (l *Local) dialSocket(ctx context.Context, a Account, path string, admit Admit) (net.Conn, error) {
	if err := admit(netip.Addr{}); err != nil {
		return nil, err
	}
	acct, leave, err := l.enter(ctx, a)
	if err != nil {
		return nil, err
	}
	defer leave()
	p, err := l.person(ctx, acct)
	if err != nil {
		return nil, err
	}
	f, _, err := l.handed(ctx, p, child.Dial, path)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "connect failed: "+fault.Public(err))
	}
	defer f.Close()
	return net.FileConn(f)
}

// listenSocket listens on the Unix socket path as acct.
func (l *Local) listenSocket(ctx context.Context, acct account, path string) (net.Listener, error) {
	p, err := l.person(ctx, acct)
	if err != nil {
		return nil, err
	}
	ln, err := l.listening(ctx, p, child.Listen, path)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "listen failed: "+fault.Public(err))
	}
	return ln, nil
}

// listening does a child's job that makes a socket to listen on.
func (l *Local) listening(ctx context.Context, p person, job ...string) (*socket, error) {
	f, path, err := l.handed(ctx, p, job...)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return &socket{Listener: ln, path: path, remove: func() error {
		ctx, cancel := context.WithTimeout(context.Background(), childTime) //nolint:forbidigo // the session it was for is over
		defer cancel()
		return l.run(ctx, p, errand{path: self, args: []string{child.Name, child.Remove, path}})
	}}, nil
}

// socket listens on a Unix socket that is removed when it is closed.
type socket struct {
	net.Listener

	path   string
	remove func() error
}

// Close implements [net.Listener].
func (s *socket) Close() error {
	err := s.Listener.Close()
	if err != nil {
		return err // it was closed before
	}
	return s.remove()
}
