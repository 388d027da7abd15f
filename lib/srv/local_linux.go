package srv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// LocalConfig configures a [Local]. The zero value of every field is usable.
type LocalConfig struct {
	// KillAfter is how long after a hangup a session's process group is killed
	// when its first process still lives; 0 means never, as OpenSSH does.
	KillAfter time.Duration

	Now func() time.Time // nil is time.Now
	Log *zap.Logger      // nil discards
}

// Local is an [Executor] that runs processes on this machine.
type Local struct {
	cfg      LocalConfig
	accounts accounts
	modes    modes
	root     bool // may become anybody
	spawner  spawner
}

// NewLocal returns a Local. Files that this process was started with are kept
// from those it starts; those that Go opens are anyway.
func NewLocal(cfg LocalConfig) (*Local, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	cfg.Log = cfg.Log.Named("local")
	if err := keepInherited(); err != nil {
		return nil, fmt.Errorf("keep inherited files: %w", err)
	}
	return &Local{
		cfg: cfg, accounts: accounts{root: "/", now: cfg.Now}, modes: newModes(), root: os.Geteuid() == 0,
	}, nil
}

// keepInherited closes every open file but the standard ones at the next exec.
func keepInherited() error {
	open, err := os.ReadDir("/proc/self/fd")
	for _, f := range open {
		if fd, err := strconv.Atoi(f.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return err
}

// Check implements [Executor].
func (l *Local) Check(ctx context.Context, a Account) error {
	_, err := l.account(ctx, a.Login)
	return err
}

// account returns the account of login if it can be used here and now.
func (l *Local) account(ctx context.Context, login names.Login) (account, error) {
	acct, err := l.accounts.find(ctx, login)
	if err != nil {
		return account{}, err
	}
	if !l.root && int64(acct.uid) != int64(os.Getuid()) {
		return account{}, fault.New(fault.Denied, "this node does not run as root and serves no account but its own, not %q", login)
	}
	expired, err := l.accounts.expired(acct)
	if err != nil && l.root {
		return account{}, err
	}
	if expired {
		return account{}, fault.New(fault.Denied, "the account %q has expired on this node", login)
	}
	if notice, closed := l.accounts.nologin(); closed && acct.uid != 0 {
		if notice == "" {
			notice = "this node lets nobody but root log in now"
		}
		return account{}, fault.New(fault.Unavailable, "%s", notice)
	}
	return acct, checkShell(acct)
}

// checkShell refuses what sshd's allowed_user does (auth.c).
func checkShell(acct account) error {
	info, err := os.Stat(acct.shell)
	if err != nil {
		return fault.Wrap(fault.Denied, err, fmt.Sprintf("the shell %s of %q does not exist on this node", acct.shell, acct.name))
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return fault.New(fault.Denied, "the shell %s of %q is not executable on this node", acct.shell, acct.name)
	}
	return nil
}

// Start implements [Executor].
func (l *Local) Start(ctx context.Context, c Command) (Process, error) {
	if c.Kind == KindSubsystem {
		return nil, fault.New(fault.Unavailable, "not available on this node yet")
	}
	acct, err := l.account(ctx, c.Login)
	if err != nil {
		return nil, err
	}
	groups, err := l.accounts.groupsOf(ctx, acct)
	if err != nil {
		return nil, err
	}
	s, err := l.open(c.Terminal, acct)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "this node cannot open "+s.what)
	}
	defer s.closeChild()
	p := &process{local: l, streams: s, exited: make(chan Exit, 1)}
	l.spawner.hold()
	if err := p.start(acct, groups, c); err != nil {
		l.spawner.release()
		s.closeOurs()
		return nil, err
	}
	go p.wait() // ends with the process, which may outlive its session
	return p, nil
}

// argv returns what sshd's do_child makes of a command: a login shell is told so
// by a dash.
func argv(acct account, c Command) []string {
	base := filepath.Base(acct.shell)
	if c.Kind == KindExec {
		return []string{base, "-c", c.Line}
	}
	return []string{"-" + base}
}

// start starts the process in the home of acct or, where that cannot be
// entered, in /, as sshd does.
func (p *process) start(acct account, groups []uint32, c Command) error {
	pidfd := -1
	attr := &os.ProcAttr{
		Dir:   acct.home,
		Env:   p.local.accounts.environment(acct, c, p.streams.name),
		Files: p.streams.child[:],
		Sys: &syscall.SysProcAttr{
			Setsid:    true,
			Setctty:   c.Terminal != nil,
			Ctty:      0,
			Pdeathsig: syscall.SIGHUP, // should this process be killed
			PidFD:     &pidfd,
		},
	}
	if p.local.root {
		attr.Sys.Credential = &syscall.Credential{Uid: acct.uid, Gid: acct.gid, Groups: groups}
	}
	if attr.Dir == "" {
		attr.Dir = "/"
	}
	var err error
	p.local.spawner.do(func() {
		p.proc, err = os.StartProcess(acct.shell, argv(acct, c), attr)
		if err != nil && attr.Dir != "/" && !errors.Is(err, unix.E2BIG) {
			// There is room for it in the pipe or the terminal; without it the session goes on.
			_, _ = fmt.Fprintf(p.streams.child[2], "Could not chdir to home directory %s: %s\n", acct.home, errorText(err))
			attr.Dir = "/"
			p.proc, err = os.StartProcess(acct.shell, argv(acct, c), attr)
		}
	})
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, acct.shell+": "+errorText(err))
	}
	p.pidfd = pidfd
	return nil
}

// errorText returns what perror(3) says of a system call's error.
func errorText(err error) string {
	text := err.Error()
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		text = errno.Error()
	} else if path, ok := errors.AsType[*fs.PathError](err); ok {
		text = path.Err.Error()
	}
	return strings.ToUpper(text[:1]) + text[1:]
}
