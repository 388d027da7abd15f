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
	"github.com/accessd/accessd/lib/srv/child"
)

// LocalConfig configures a [Local]. The zero value of every field is usable.
type LocalConfig struct {
	// KillAfter is how long after a hangup a session's process group is killed
	// when its first process still lives; 0 means never, as OpenSSH does.
	KillAfter time.Duration

	// Dir has the list of accounts that were made here, of which each is one
	// file; "" makes none.
	Dir string
	// Changed is told of each account before it is made, changed or removed, and
	// again when that fails; an error before forbids it. Nil forbids nothing.
	Changed func(AccountChange) error

	Now func() time.Time // nil is time.Now
	Log *zap.Logger      // nil discards
}

// Local is an [Executor] that runs processes on this machine.
type Local struct {
	cfg       LocalConfig
	accounts  accounts
	modes     modes
	root      bool // may become anybody
	spawner   spawner
	tenancies tenancies
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
	if err != nil {
		return l.makeable(a, err)
	}
	return nil
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
	acct, leave, err := l.enter(ctx, c.Account)
	if err != nil {
		return nil, err
	}
	p, err := l.launch(ctx, acct, c)
	if err != nil {
		leave()
		return nil, err
	}
	go func() { // ends with the process, which may outlive its session
		p.wait()
		leave()
	}()
	return p, nil
}

// launch starts c as acct.
func (l *Local) launch(ctx context.Context, acct account, c Command) (*process, error) {
	groups, err := l.accounts.groupsOf(ctx, acct)
	if err != nil {
		return nil, err
	}
	s, err := l.open(c.Terminal, acct)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "this node cannot open "+s.what)
	}
	defer s.closeChild()
	l.greet(s, acct, c)
	acct, c = l.turnAway(acct, c)
	p := &process{local: l, streams: s, exited: make(chan Exit, 1), back: l.openBack(ctx, person{acct, groups}, c)}
	l.spawner.hold()
	if err := p.start(acct, groups, c); err != nil {
		l.spawner.release()
		s.closeOurs()
		p.back.close()
		return nil, err
	}
	return p, nil
}

// program returns what runs c, as sshd's do_child has it: a login shell is told
// so by a dash.
func program(acct account, c Command, env []string) (path string, argv []string, err error) {
	base := filepath.Base(acct.shell)
	switch {
	case c.Kind == KindSubsystem && c.Line == SubsystemSFTP:
		return self, []string{child.Name, child.SFTP}, nil
	case c.Kind == KindSubsystem:
		return "", nil, errNoSubsystem
	case len(c.Argv) > 0:
		path, err := findProgram(c.Argv[0], env)
		return path, c.Argv, err
	case c.Kind == KindExec:
		return acct.shell, []string{base, "-c", c.Line}, nil
	}
	return acct.shell, []string{"-" + base}, nil
}

// findProgram returns the path of the program called name as the PATH of env has
// it.
func findProgram(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, v := range env {
		list, ok := strings.CutPrefix(v, "PATH=")
		if !ok {
			continue
		}
		for dir := range strings.SplitSeq(list, ":") {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 && filepath.IsAbs(path) {
				return path, nil
			}
		}
	}
	return "", fault.New(fault.Unavailable, "this node has no program %q", name)
}

// start starts the process in the home of acct or, where that cannot be
// entered, in /, as sshd does.
func (p *process) start(acct account, groups []uint32, c Command) error {
	pidfd := -1
	env := append(p.local.accounts.environment(acct, c, p.streams.name), p.back.env...)
	path, argv, err := program(acct, c, env)
	if err != nil {
		return err
	}
	attr := &os.ProcAttr{
		Dir:   acct.home,
		Env:   env,
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
	p.local.spawner.do(func() {
		p.proc, err = os.StartProcess(path, argv, attr)
		if err != nil && attr.Dir != "/" && !errors.Is(err, unix.E2BIG) {
			// There is room for it in the pipe or the terminal; without it the session goes on.
			_, _ = fmt.Fprintf(p.streams.child[2], "Could not chdir to home directory %s: %s\n", acct.home, errorText(err))
			attr.Dir = "/"
			p.proc, err = os.StartProcess(path, argv, attr)
		}
	})
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, path+": "+errorText(err))
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
