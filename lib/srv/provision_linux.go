package srv

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

const (
	// toolTime bounds one run of useradd(8) and its kin, which wait 15 s for
	// each other's locks.
	toolTime = time.Minute
	// evictTime bounds how long the processes of an account take to end once
	// they were killed, and evictPoll how often that is looked at.
	evictTime = 5 * time.Second
	evictPoll = 20 * time.Millisecond
	// markPrefix begins the comment in passwd(5) of every account made here.
	markPrefix = "accessd "
)

// errNoAccount is why an account that is not there cannot be used.
var errNoAccount = errors.New("no such account")

// makeableGrammar is what an account made here is called: nothing that reads as
// a number, an option, or an alias of sudoers(5), which ALL is.
var makeableGrammar = regexp.MustCompile(`^[a-z_][a-z0-9._-]{0,31}$`)

// AccountChange is an account of the operating system that is about to be made,
// changed or removed.
type AccountChange struct {
	Login   names.Login
	Created bool // made or changed, not removed
	Create  services.CreateAccount
	Err     error // why the change, told before, has failed; nil before it
}

// tenant is an account made here, as the list has it. The list knows it from
// before it is made until after it is removed.
type tenant struct {
	Mark   string                 `json:"mark"` // the account's comment, by which it is told from others of its name
	Made   bool                   `json:"made"`
	Create services.CreateAccount `json:"create"`
}

// owns reports whether acct is the account that t was made as. What the account
// may say of itself in the comment comes after a comma (chfn(1)).
func (t tenant) owns(acct account) bool {
	mark, _, _ := strings.Cut(acct.comment, ",")
	return t.Mark != "" && mark == t.Mark
}

// tenancies are who uses accounts made here. Their zero value is usable.
type tenancies struct {
	mu sync.Mutex
	of map[names.Login]*tenancy

	tools sync.Mutex // held by who runs useradd(8) or its kin, below a turn
}

// tenancy is one account made here, or about to be.
type tenancy struct {
	turn chan struct{} // holds one while somebody looks at the account, makes or removes it
	live int           // what runs as it; needs the turn
	refs int           // who knows this tenancy; needs tenancies.mu
}

// take waits for the turn at login.
func (ts *tenancies) take(ctx context.Context, login names.Login) (*tenancy, error) {
	ts.mu.Lock()
	t := ts.of[login]
	if t == nil {
		t = &tenancy{turn: make(chan struct{}, 1)}
		if ts.of == nil {
			ts.of = map[names.Login]*tenancy{}
		}
		ts.of[login] = t
	}
	t.refs++
	ts.mu.Unlock()
	select {
	case t.turn <- struct{}{}:
		return t, nil
	case <-ctx.Done():
		ts.drop(login, t)
		return nil, context.Cause(ctx)
	}
}

// drop forgets a tenancy that nobody else knows.
func (ts *tenancies) drop(login names.Login, t *tenancy) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t.refs--
	if t.refs == 0 {
		delete(ts.of, login)
	}
}

// enter returns the account that a names, made if need be, for something that
// runs as it until leave is called. An account that was made here and is not kept
// is removed when everybody has left.
func (l *Local) enter(ctx context.Context, a Account) (acct account, leave func(), err error) {
	acct, err = l.account(ctx, a.Login)
	if err == nil && !strings.HasPrefix(acct.comment, markPrefix) {
		return acct, func() {}, nil
	}
	if err != nil {
		if err = l.makeable(a, err); err != nil {
			return account{}, nil, err
		}
	}
	t, err := l.tenancies.take(ctx, a.Login)
	if err != nil {
		return account{}, nil, err
	}
	ctx = context.WithoutCancel(ctx) // what is begun is finished
	acct, err = l.provide(ctx, a, t.live > 0)
	if err != nil {
		<-t.turn
		l.tenancies.drop(a.Login, t)
		return account{}, nil, err
	}
	t.live++
	<-t.turn
	return acct, sync.OnceFunc(func() { l.leave(ctx, a.Login, t) }), nil
}

// leave ends one use of an account.
func (l *Local) leave(ctx context.Context, login names.Login, t *tenancy) {
	defer l.tenancies.drop(login, t)
	t.turn <- struct{}{}
	defer func() { <-t.turn }()
	t.live--
	if t.live > 0 {
		return
	}
	made, ok, err := l.listed(login)
	if err == nil && ok && !made.Create.Keep {
		err = l.unmake(ctx, login, made)
	}
	if err != nil {
		l.cfg.Log.Error("an account made here is not removed; the next start tries again", zap.String("login", string(login)), zap.Error(err))
	}
}

// lease is a listener of an account that it uses.
type lease struct {
	net.Listener

	leave func()
}

// Close implements [net.Listener].
func (l lease) Close() error {
	defer l.leave()
	return l.Listener.Close()
}

// makeable returns nil when a can be made, and else why it cannot be used;
// missing is what its look-up said.
func (l *Local) makeable(a Account, missing error) error {
	if !errors.Is(missing, errNoAccount) || a.Create == nil || l.cfg.Dir == "" {
		return missing
	}
	if !l.root {
		return fault.New(fault.Denied, "this node does not run as root and cannot make the account %q", a.Login)
	}
	if !makeableGrammar.MatchString(string(a.Login)) {
		return fault.New(fault.Denied, "there is no account %q on this node, and those it makes are called 1 to 32 of a-z 0-9 . _ -, beginning with a letter or _", a.Login)
	}
	if notice, closed := l.accounts.nologin(); closed {
		return fault.New(fault.Unavailable, "%s", cmp.Or(strings.TrimSpace(notice), "this node lets nobody but root log in now"))
	}
	if a.Create.Shell != "" {
		return checkShell(account{name: string(a.Login), shell: a.Create.Shell})
	}
	return nil
}

// provide returns the account that a names. It is made when it is missing, and
// made what a says when it was made here. The caller has the turn.
func (l *Local) provide(ctx context.Context, a Account, live bool) (account, error) {
	made, listed, err := l.listed(a.Login)
	if err != nil {
		return account{}, err
	}
	if listed && !made.Made && !live { // the rest of one that could not be made or removed
		if err := l.unmake(ctx, a.Login, made); err != nil {
			return account{}, err
		}
	}
	acct, err := l.account(ctx, a.Login)
	switch {
	case err == nil && listed && a.Create != nil && made.owns(acct) && !same(made.Create, *a.Create):
		err = l.change(ctx, a, made)
	case err != nil:
		if err = l.makeable(a, err); err == nil {
			err = l.make(ctx, a)
		}
	}
	if err != nil {
		return account{}, err
	}
	return l.account(ctx, a.Login)
}

func same(a, b services.CreateAccount) bool {
	return slices.Equal(a.Groups, b.Groups) && slices.Equal(a.Sudoers, b.Sudoers) && a.Shell == b.Shell && a.Keep == b.Keep
}

// make makes the account a. On an error nothing is left of it.
func (l *Local) make(ctx context.Context, a Account) error {
	home := filepath.Join(l.accounts.homes(), string(a.Login))
	if _, err := os.Lstat(home); !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Unavailable, "the account %q cannot be made on this node: %s is there already", a.Login, home)
	}
	c := AccountChange{Login: a.Login, Created: true, Create: *a.Create}
	return l.changing(c, func() error {
		made := tenant{Mark: markPrefix + rand.Text(), Create: *a.Create}
		err := l.list(a.Login, made)
		if err == nil {
			err = l.equip(ctx, a)
		}
		if err == nil {
			args := []string{"--create-home", "--home-dir", home, "--user-group", "--comment", made.Mark, "--groups", strings.Join(a.Create.Groups, ",")}
			if a.Create.Shell != "" {
				args = append(args, "--shell", a.Create.Shell)
			}
			err = l.tool(ctx, nil, "/usr/sbin/useradd", append(args, "--", string(a.Login))...)
		}
		if err == nil {
			made.Made = true
			err = l.list(a.Login, made)
		}
		if err != nil {
			return errors.Join(err, l.unmake(ctx, a.Login, made))
		}
		return nil
	})
}

// change makes an account that was made here what a says now.
func (l *Local) change(ctx context.Context, a Account, made tenant) error {
	return l.changing(AccountChange{Login: a.Login, Created: true, Create: *a.Create}, func() error {
		err := l.equip(ctx, a)
		if err == nil {
			args := []string{"--groups", strings.Join(a.Create.Groups, ",")}
			if a.Create.Shell != "" {
				args = append(args, "--shell", a.Create.Shell)
			}
			err = l.tool(ctx, nil, "/usr/sbin/usermod", append(args, "--", string(a.Login))...)
		}
		if err == nil {
			made.Create = *a.Create
			err = l.list(a.Login, made)
		}
		return err
	})
}

// changing does c once it is recorded, and records when that fails.
func (l *Local) changing(c AccountChange, do func() error) error {
	tell := l.cfg.Changed
	if tell == nil {
		tell = func(AccountChange) error { return nil }
	}
	if err := tell(c); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the audit log cannot be written, so no account is made or removed")
	}
	err := do()
	if err == nil {
		return nil
	}
	if fault.KindOf(err) == fault.Internal {
		err = fault.Wrap(fault.Unavailable, err, "the account "+strconv.Quote(string(c.Login))+" could not be made or removed on this node")
	}
	c.Err = err
	return errors.Join(err, tell(c))
}

// equip gives the account a its groups and its part of sudoers(5), before it
// is there.
func (l *Local) equip(ctx context.Context, a Account) error {
	if err := l.permit(ctx, a); err != nil {
		return err
	}
	for _, group := range a.Create.Groups {
		if err := l.tool(ctx, nil, "/usr/sbin/groupadd", "--force", "--", group); err != nil {
			return err
		}
	}
	return nil
}

// unmake removes the account of login if it is the one that made says, with all
// that came with it. What has failed is done by the next start.
func (l *Local) unmake(ctx context.Context, login names.Login, made tenant) error {
	acct, err := l.accounts.find(ctx, login)
	if err != nil && !errors.Is(err, errNoAccount) {
		return err
	}
	remove := func() error {
		if err := l.forbid(login); err != nil {
			return err
		}
		if made.owns(acct) {
			if err := l.removeAccount(ctx, acct); err != nil {
				return err
			}
		}
		return l.unlist(login)
	}
	if !made.owns(acct) {
		return remove() // there is none, or it is somebody else's
	}
	// Until it is gone it is no account to begin anything with.
	made.Made = false
	if err := l.list(login, made); err != nil {
		return err
	}
	return l.changing(AccountChange{Login: login, Create: made.Create}, remove)
}

// removeAccount removes acct, which was made here, and ends what runs as it.
func (l *Local) removeAccount(ctx context.Context, acct account) error {
	other, err := l.accounts.passwd(func(name string, uid uint32) bool { return name != acct.name && uid == acct.uid })
	if err == nil || acct.uid == 0 {
		return fault.New(fault.Conflict, "the account %q has the number of another, %q", acct.name, other.name)
	}
	dead, err := l.evict(ctx, acct)
	if err != nil {
		return err
	}
	args := []string{"--remove"}
	if dead {
		args = append(args, "--force")
	}
	failed := l.tool(ctx, nil, "/usr/sbin/userdel", append(args, "--", acct.name)...)
	_, err = l.accounts.passwd(func(name string, _ uint32) bool { return name == acct.name })
	if !fault.Is(err, fault.NotFound) {
		return errors.Join(errors.New("userdel left the account"), failed, err)
	}
	if failed != nil {
		l.cfg.Log.Warn("something of a removed account is left", zap.String("login", acct.name), zap.Error(failed))
	}
	if gid, ok := l.accounts.groupNamed(acct.name); ok && gid == acct.gid {
		return l.tool(ctx, nil, "/usr/sbin/groupdel", "--", acct.name) // where USERGROUPS_ENAB is off
	}
	return nil
}

// evict kills what runs as acct, and returns when nothing does. What has ended
// but was not waited for is said to be dead; it does nothing any more.
func (l *Local) evict(ctx context.Context, acct account) (dead bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, evictTime)
	defer cancel()
	tick := time.NewTicker(evictPoll)
	defer tick.Stop()
	for {
		live, dead, err := processesOf(acct.uid)
		if err != nil || live+dead == 0 {
			return false, err
		}
		if live > 0 {
			// All at once, by one of its own: whoever forks as fast as it is
			// killed one by one does not escape that.
			err = l.tool(ctx, l.as(person{account: acct}), "/bin/sh", "-c", "kill -s KILL -- -1")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if live > 0 {
				return false, fault.New(fault.Unavailable, "%d processes of %q do not end: %w", live, acct.name, err)
			}
			return true, nil
		}
	}
}

// processesOf counts the processes that have uid as one of their user ids.
func processesOf(uid uint32) (live, dead int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, 0, err
	}
	id := strconv.FormatUint(uint64(uid), 10)
	for _, entry := range entries {
		if name := entry.Name(); name[0] < '1' || name[0] > '9' {
			continue
		}
		data, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "status"))
		if err != nil {
			continue // it has ended
		}
		state, its := "", false
		for line := range strings.Lines(string(data)) {
			field, value, _ := strings.Cut(line, ":")
			switch field {
			case "State":
				state = strings.TrimSpace(value)
			case "Uid":
				its = slices.Contains(strings.Fields(value), id)
			}
		}
		switch {
		case its && strings.HasPrefix(state, "Z"):
			dead++
		case its:
			live++
		}
	}
	return live, dead, nil
}

// homes returns where useradd(8) makes homes.
func (a accounts) homes() string {
	dir := "/home"
	_ = a.lines("etc/default/useradd", func(line string) bool { // a missing file says nothing
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "HOME="); ok && filepath.IsAbs(value) {
			dir = value
		}
		return true
	})
	return dir
}

// groupNamed returns the number of the group called name, if there is one.
func (a accounts) groupNamed(name string) (gid uint32, found bool) {
	err := a.lines("etc/group", func(line string) bool {
		if f := strings.Split(line, ":"); len(f) == 4 && f[0] == name {
			gid, found = parseID(f[2])
		}
		return !found
	})
	return gid, found && err == nil
}

// fragment returns the name of the part of sudoers(5) that is login's. sudo
// passes over names with a dot.
func fragment(login names.Login) string {
	return "accessd-" + strings.ReplaceAll(string(login), ".", "+")
}

func (l *Local) sudoers() string { return l.accounts.file("etc/sudoers.d") }

// permit makes the lines for sudo that a has valid, or those it had invalid.
func (l *Local) permit(ctx context.Context, a Account) error {
	if len(a.Create.Sudoers) == 0 {
		return l.forbid(a.Login)
	}
	lines := []string{"# Made by accessd for an account of its own."}
	for _, line := range a.Create.Sudoers {
		lines = append(lines, string(a.Login)+" "+line)
	}
	text := strings.Join(lines, "\n") + "\n"
	const mode = 0o440 // sudoers(5)
	return putFile(filepath.Join(l.sudoers(), fragment(a.Login)), []byte(text), mode, func(path string) error {
		const visudo = "/usr/sbin/visudo"
		if _, err := os.Stat(visudo); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err := l.tool(ctx, nil, visudo, "-c", "-q", "-f", path); err != nil {
			return fault.Wrap(fault.Denied, err, "sudo on this node does not take the lines that the role has for "+strconv.Quote(string(a.Login)))
		}
		return nil
	})
}

// forbid takes the lines for sudo of login away.
func (l *Local) forbid(login names.Login) error {
	return dropFile(filepath.Join(l.sudoers(), fragment(login)))
}

func (l *Local) listed(login names.Login) (t tenant, ok bool, err error) {
	if l.cfg.Dir == "" || !makeableGrammar.MatchString(string(login)) {
		return tenant{}, false, nil
	}
	data, err := os.ReadFile(filepath.Join(l.cfg.Dir, string(login)))
	if errors.Is(err, fs.ErrNotExist) {
		return tenant{}, false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &t)
	}
	if err != nil {
		return tenant{}, false, fault.Wrap(fault.Unavailable, err, "this node cannot read the list of accounts it has made")
	}
	return t, true, nil
}

func (l *Local) list(login names.Login, t tenant) error {
	data, err := json.Marshal(t)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(l.cfg.Dir, 0o700); err != nil {
		return err
	}
	return putFile(filepath.Join(l.cfg.Dir, string(login)), data, 0o600, func(string) error { return nil })
}

func (l *Local) unlist(login names.Login) error {
	return dropFile(filepath.Join(l.cfg.Dir, string(login)))
}

// Recover removes the accounts that an earlier run made and has not removed, but
// for those that are kept. It is called before anything else; an account that
// cannot be removed stays on the list.
func (l *Local) Recover(ctx context.Context) error {
	if l.cfg.Dir == "" || !l.root {
		return nil
	}
	entries, err := os.ReadDir(l.cfg.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		login := names.Login(entry.Name())
		made, ok, failed := l.listed(login)
		if failed == nil && ok && !l.stays(ctx, login, made) {
			failed = l.unmake(ctx, login, made)
		}
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("account %q: %w", login, failed))
		}
	}
	return err
}

// stays reports whether the account of login is the one that made says, and is
// kept.
func (l *Local) stays(ctx context.Context, login names.Login, made tenant) bool {
	acct, err := l.accounts.find(ctx, login)
	return made.Made && made.Create.Keep && (made.owns(acct) || err != nil && !errors.Is(err, errNoAccount))
}

// tool runs a program of the system, with no environment to speak of.
func (l *Local) tool(ctx context.Context, as *syscall.SysProcAttr, path string, args ...string) error {
	l.tenancies.tools.Lock()
	defer l.tenancies.tools.Unlock()
	ctx, cancel := context.WithTimeout(ctx, toolTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...) //nolint:gosec // a constant path; the arguments have grammars
	cmd.Env, cmd.Dir, cmd.SysProcAttr, cmd.WaitDelay = []string{"PATH=" + rootPath, "LC_ALL=C"}, "/", as, time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", path, err, bytes.TrimSpace(out[:min(len(out), maxWord)]))
	}
	return nil
}

// putFile puts data at path whole, and on disk when it returns. Before it counts
// check is given the path of a file that has it.
func putFile(path string, data []byte, mode fs.FileMode, check func(path string) error) error {
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer root.Close()                //nolint:errcheck // only looked through
	temp := ".accessd-" + rand.Text() // sudo passes over a name with a dot, and so does the list
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer root.Remove(temp) //nolint:errcheck // gone already when all went well
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := check(filepath.Join(root.Name(), temp)); err != nil {
		return err
	}
	if err := root.Rename(temp, filepath.Base(path)); err != nil {
		return err
	}
	return syncRoot(root)
}

// dropFile removes the file at path, if there is one, for good.
func dropFile(path string) error {
	root, err := os.OpenRoot(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // only looked through
	if err := root.Remove(filepath.Base(path)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return syncRoot(root)
}

func syncRoot(root *os.Root) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
