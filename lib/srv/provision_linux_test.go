package srv

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// maker is a Local that makes accounts on this machine, and what it says of them.
type maker struct {
	*Local

	mu      sync.Mutex
	changes []AccountChange
	refuse  error // of Changed
}

func newMaker(t *testing.T, dir string) *maker {
	t.Helper()
	m := &maker{}
	l, err := NewLocal(LocalConfig{Dir: dir, Changed: func(c AccountChange) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.changes = append(m.changes, c)
		return m.refuse
	}})
	if err != nil {
		t.Fatal(err)
	}
	m.Local = l
	return m
}

// told returns what m said since it was asked last.
func (m *maker) told() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var words []string
	for _, c := range m.changes {
		word := "removed"
		if c.Created {
			word = "made"
		}
		if c.Err != nil {
			word = "not " + word
		}
		words = append(words, word)
	}
	m.changes = nil
	return words
}

// stranger returns a login that no account of this machine has, and has none
// when the test has ended.
func stranger(t *testing.T, suffix string) names.Login {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests make accounts: run them as root")
	}
	login := fmt.Sprintf("accessd-t%d%s", os.Getpid(), suffix)
	// useradd goes on from the highest number. Tests elsewhere on this machine may
	// have accounts of their own /etc/passwd, whose processes must not be killed.
	if highest := fmt.Sprintf("accessd-t%d", os.Getpid()); !exists(names.Login(highest)) {
		run(t, "useradd", "--no-create-home", "--uid", itoa(20_000+os.Getpid()%30_000), highest)
		t.Cleanup(func() { run(t, "userdel", highest) })
	}
	t.Cleanup(func() {
		_ = exec.Command("userdel", "--remove", "--force", login).Run()
		_ = exec.Command("groupdel", login).Run()
		_ = os.Remove("/etc/sudoers.d/" + fragment(names.Login(login)))
		_ = os.RemoveAll("/home/" + login)
	})
	return names.Login(login)
}

func exists(login names.Login) bool {
	_, err := accounts{root: "/", now: time.Now}.passwd(func(name string, _ uint32) bool { return name == string(login) })
	return err == nil
}

// remains returns what there is of login on this machine and in the list.
func remains(t *testing.T, m *maker, login names.Login) []string {
	t.Helper()
	var left []string
	if exists(login) {
		left = append(left, "account")
	}
	if _, ok := m.accounts.groupNamed(string(login)); ok {
		left = append(left, "group")
	}
	for what, path := range map[string]string{
		"home": "/home/" + string(login), "sudoers": "/etc/sudoers.d/" + fragment(login), "list": filepath.Join(m.cfg.Dir, string(login)),
	} {
		if _, err := os.Lstat(path); err == nil {
			left = append(left, what)
		}
	}
	for _, dir := range []string{"/etc/sudoers.d", m.cfg.Dir} {
		if temp, _ := filepath.Glob(filepath.Join(dir, ".accessd-*")); len(temp) > 0 {
			left = append(left, temp...)
		}
	}
	slices.Sort(left)
	return left
}

// use runs line as a, returns its first line and what ends it.
func (m *maker) use(t *testing.T, a Account, line string) (first string, end func()) {
	t.Helper()
	p, err := m.Start(t.Context(), Command{Account: a, Kind: KindExec, Line: line + "; cat"})
	if err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(p.Pipes().Stdout)
	first, err = out.ReadString('\n')
	if err != nil {
		rest, _ := io.ReadAll(p.Pipes().Stderr)
		t.Fatalf("%v, stderr %q", err, rest)
	}
	return strings.TrimSuffix(first, "\n"), func() {
		_ = p.Pipes().Stdin.Close()
		<-p.Exited()
		p.Close()
	}
}

// idle waits until nobody uses login and what follows is done.
func (m *maker) idle(t *testing.T, login names.Login) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 6000 {
		m.tenancies.mu.Lock()
		busy := m.tenancies.of[login] != nil
		m.tenancies.mu.Unlock()
		if !busy {
			return
		}
		<-tick.C
	}
	t.Fatal("somebody does not leave the account")
}

func wantLeft(t *testing.T, m *maker, login names.Login, want ...string) {
	t.Helper()
	if got := remains(t, m, login); !slices.Equal(got, want) {
		t.Errorf("left of %s: %v, want %v", login, got, want)
	}
}

// An account is there from the first session to the end of the last, with what
// the role gives it, and nothing of it is left.
func TestAccountMadeAndRemoved(t *testing.T) {
	m, login := newMaker(t, t.TempDir()), stranger(t, ".x-y")
	a := Account{Login: login, Create: &services.CreateAccount{
		Groups: []string{"games", string(login) + "g"}, Sudoers: []string{"ALL=(ALL) NOPASSWD: /usr/bin/true", "ALL=(games) NOPASSWD: /usr/bin/id"}, Shell: "/bin/bash",
	}}
	t.Cleanup(func() { _ = exec.Command("groupdel", string(login)+"g").Run() })
	if err := m.Check(t.Context(), a); err != nil {
		t.Fatalf("Check of one that can be made = %v", err)
	}
	wantLeft(t, m, login)
	got, end := m.use(t, a, `echo $(id -un) $(id -Gn) $HOME $SHELL $(pwd) $(stat -c %U .) $(test -f .profile && echo skel)`)
	if want := fmt.Sprintf("%[1]s %[1]s games %[1]sg /home/%[1]s /bin/bash /home/%[1]s %[1]s skel", login); got != want {
		t.Errorf("session %q, want %q", got, want)
	}
	if shadow := run(t, "passwd", "-S", string(login)); !strings.HasPrefix(shadow, string(login)+" L ") {
		t.Errorf("password %q, want it locked", shadow)
	}
	run(t, "visudo", "-c", "-q")
	if list := run(t, "sudo", "-n", "-l", "-U", string(login)); !strings.Contains(list, "(ALL) NOPASSWD: /usr/bin/true") || !strings.Contains(list, "(games) NOPASSWD: /usr/bin/id") {
		t.Errorf("sudo allows %q", list)
	}
	if got := run(t, "stat", "-c", "%U:%G %a", "/etc/sudoers.d/"+fragment(login)); got != "root:root 440\n" {
		t.Errorf("fragment is %q", got)
	}
	// A second session finds it; the first to end leaves it.
	_, endSecond := m.use(t, Account{Login: login}, "echo hi")
	end()
	wantLeft(t, m, login, "account", "group", "home", "list", "sudoers")
	// What ignores the hangup and was left behind does not keep it.
	_, endThird := m.use(t, a, `(trap "" HUP TERM; exec setsid sleep 1000) >/dev/null 2>&1 & echo hi`)
	endSecond()
	endThird()
	m.idle(t, login)
	wantLeft(t, m, login)
	if told := m.told(); !slices.Equal(told, []string{"made", "removed"}) {
		t.Errorf("told %q", told)
	}
	if err := m.Check(t.Context(), Account{Login: login}); fault.Public(err) != fmt.Sprintf("there is no account %q on this node", login) {
		t.Errorf("Check without permission to make it = %v", err)
	}
}

func TestAccountKept(t *testing.T) {
	dir := t.TempDir()
	m, login := newMaker(t, dir), stranger(t, "k")
	a := Account{Login: login, Create: &services.CreateAccount{Keep: true, Groups: []string{"games"}, Sudoers: []string{"ALL=(ALL) ALL"}}}
	_, end := m.use(t, a, "echo x >file; echo hi")
	end()
	m.idle(t, login)
	if err := m.Recover(t.Context()); err != nil {
		t.Error(err)
	}
	wantLeft(t, m, login, "account", "group", "home", "list", "sudoers")
	// What the role says now is what it has, after a restart, too.
	m = newMaker(t, dir)
	a.Create = &services.CreateAccount{Keep: true, Groups: []string{"audio"}}
	got, end := m.use(t, a, "echo $(cat file) $(id -Gn)")
	if want := "x " + string(login) + " audio"; got != want {
		t.Errorf("second session %q, want %q", got, want)
	}
	end()
	m.idle(t, login)
	wantLeft(t, m, login, "account", "group", "home", "list")
	a.Create = &services.CreateAccount{Groups: []string{"audio"}}
	_, end = m.use(t, a, "echo hi")
	end()
	m.idle(t, login)
	wantLeft(t, m, login)
	if told := m.told(); !slices.Equal(told, []string{"made", "made", "removed"}) {
		t.Errorf("told %q", told)
	}
}

// Sessions that begin and end at the same time make one account, and none runs
// in one that is half removed.
func TestAccountManyAtOnce(t *testing.T) {
	m, login := newMaker(t, t.TempDir()), stranger(t, "m")
	a := Account{Login: login, Create: &services.CreateAccount{}}
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for range 2 {
				stdout, stderr, e := outcomeOf(t, m.Local, Command{Account: a, Kind: KindExec, Line: "id -un && cd && touch file$$ && ls -d ~"})
				if want := fmt.Sprintf("%[1]s\n/home/%[1]s\n", login); stdout != want || e != (Exit{}) {
					t.Errorf("stdout %q, stderr %q, exit %+v", stdout, stderr, e)
				}
			}
		})
	}
	wg.Wait()
	m.idle(t, login)
	wantLeft(t, m, login)
	made := 0
	for _, word := range m.told() {
		switch {
		case word == "made" && made == 0:
			made = 1
		case word == "removed" && made == 1:
			made = 0
		default:
			t.Errorf("%s while %d are there", word, made)
		}
	}
}

// An account that was not made here is used and never changed, made again or
// removed, whatever the role or the list says.
func TestAccountForeign(t *testing.T) {
	m, login := newMaker(t, t.TempDir()), stranger(t, "f")
	run(t, "useradd", "--create-home", "--shell", "/bin/sh", "--comment", "accessd of somebody", string(login))
	a := Account{Login: login, Create: &services.CreateAccount{Groups: []string{"games"}, Sudoers: []string{"ALL=(ALL) ALL"}, Shell: "/bin/bash"}}
	before := run(t, "getent", "passwd", string(login)) + run(t, "id", string(login))
	_, end := m.use(t, a, "echo hi")
	end()
	m.idle(t, login)
	// The list knows one of that name, which somebody has removed since.
	if err := m.list(login, tenant{Mark: "accessd ANOTHER", Made: true}); err != nil {
		t.Fatal(err)
	}
	_, end = m.use(t, a, "echo hi")
	end()
	m.idle(t, login)
	if err := m.Recover(t.Context()); err != nil {
		t.Error(err)
	}
	wantLeft(t, m, login, "account", "group", "home")
	if after := run(t, "getent", "passwd", string(login)) + run(t, "id", string(login)); after != before {
		t.Errorf("before %s\nafter %s", before, after)
	}
	if told := m.told(); told != nil {
		t.Errorf("told %q, want nothing", told)
	}
}

// The server is killed while a session runs, or between two steps: the list
// says so, and the next start removes the rest.
func TestAccountAfterCrash(t *testing.T) {
	dir := t.TempDir()
	dead, login := newMaker(t, dir), stranger(t, "c")
	a := Account{Login: login, Create: &services.CreateAccount{Sudoers: []string{"ALL=(ALL) ALL"}}}
	_, end := dead.use(t, a, "echo hi")
	tenancy, err := dead.tenancies.take(t.Context(), login) // the dead do nothing
	if err != nil {
		t.Fatal(err)
	}
	next := newMaker(t, dir)
	if err := next.Recover(t.Context()); err != nil {
		t.Error(err)
	}
	wantLeft(t, next, login)
	<-tenancy.turn
	dead.tenancies.drop(login, tenancy)
	end()
	dead.idle(t, login)

	begun := stranger(t, "b")
	if err := next.list(begun, tenant{Mark: "accessd X", Create: services.CreateAccount{Keep: true}}); err != nil {
		t.Fatal(err)
	}
	if err := next.permit(t.Context(), Account{Login: begun, Create: a.Create}); err != nil {
		t.Fatal(err)
	}
	if err := next.Recover(t.Context()); err != nil {
		t.Error(err)
	}
	wantLeft(t, next, begun)
}

// What cannot be is refused with a sentence, and nothing is left.
func TestAccountRefused(t *testing.T) {
	m, login := newMaker(t, t.TempDir()), stranger(t, "r")
	taken := stranger(t, "h")
	if err := os.Mkdir("/home/"+string(taken), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/home/"+string(taken)+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		login  names.Login
		create services.CreateAccount
		want   string
		told   []string
	}{
		{"sudoers", login, services.CreateAccount{Sudoers: []string{"ALL=(ALL) NOPASSWD: relative"}}, fmt.Sprintf("sudo on this node does not take the lines that the role has for %q", login), []string{"made", "not made"}},
		{"shell", login, services.CreateAccount{Shell: "/no/shell"}, fmt.Sprintf("the shell /no/shell of %q does not exist on this node", login), nil},
		{"alias of sudo", "ALL", services.CreateAccount{}, `there is no account "ALL" on this node, and those it makes are called 1 to 32 of a-z 0-9 . _ -, beginning with a letter or _`, nil},
		{"number", "0", services.CreateAccount{}, `there is no account "0" on this node, and those it makes are called 1 to 32 of a-z 0-9 . _ -, beginning with a letter or _`, nil},
		{"home of another", taken, services.CreateAccount{}, fmt.Sprintf("the account %q cannot be made on this node: /home/%s is there already", taken, taken), nil},
		{"group of that name", "games-group", services.CreateAccount{}, `the account "games-group" could not be made or removed on this node`, []string{"made", "not made"}},
	}
	run(t, "groupadd", "--force", "games-group")
	t.Cleanup(func() { run(t, "groupdel", "games-group") })
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := m.Start(t.Context(), Command{Account: Account{Login: test.login, Create: &test.create}, Kind: KindExec, Line: "true"})
			if got := fault.Public(err); got != test.want {
				t.Errorf("Start = %v\nwant %s", err, test.want)
			}
			if told := m.told(); !slices.Equal(told, test.told) {
				t.Errorf("told %q, want %q", told, test.told)
			}
			if left := remains(t, m, test.login); slices.Contains(left, "account") || slices.Contains(left, "sudoers") || slices.Contains(left, "list") {
				t.Errorf("left %v", left)
			}
		})
	}
	if _, err := os.Stat("/home/" + string(taken) + "/file"); err != nil {
		t.Error(err)
	}

	a := Account{Login: login, Create: &services.CreateAccount{}}
	m.refuse = errors.New("no room")
	if err := startError(m, a); !strings.Contains(fault.Public(err), "the audit log cannot be written") || !errors.Is(err, m.refuse) {
		t.Errorf("without an audit log: %v", err)
	}
	wantLeft(t, m, login)
	m.refuse = nil

	m.root = false
	if err := m.Check(t.Context(), a); fault.Public(err) != fmt.Sprintf("this node does not run as root and cannot make the account %q", login) {
		t.Errorf("without root: %v", err)
	}
	m.root, m.cfg.Dir = true, ""
	if err := m.Check(t.Context(), a); fault.Public(err) != fmt.Sprintf("there is no account %q on this node", login) {
		t.Errorf("without a list: %v", err)
	}
}

func startError(m *maker, a Account) error {
	p, err := m.Start(context.TODO(), Command{Account: a, Kind: KindExec, Line: "true"})
	if err == nil {
		p.Close()
	}
	return err
}

// THREATS, "recursive chown through symlinks": while the home goes, somebody
// swaps a directory in it for a link to one outside.
func TestAccountRemovedWhileLinksAreSwapped(t *testing.T) {
	m, login := newMaker(t, t.TempDir()), stranger(t, "s")
	outside := t.TempDir()
	for i := range 50 {
		if err := os.WriteFile(filepath.Join(outside, fmt.Sprint("file", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := run(t, "stat", "-c", "%u %g %a", outside)
	a := Account{Login: login, Create: &services.CreateAccount{}}
	_, end := m.use(t, a, `for d in 1 2 3 4 5 6 7 8; do mkdir -p d$d/x d$d/y; (cd d$d && touch $(seq 100)); done; ln -s `+outside+` link; echo hi`)
	home := "/home/" + string(login)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for d := 1; d <= 8; d++ { // by root, which nothing kills or refuses
		wg.Go(func() {
			dir := filepath.Join(home, fmt.Sprint("d", d))
			for {
				select {
				case <-stop:
					return
				default:
				}
				_ = os.Rename(filepath.Join(dir, "x"), filepath.Join(dir, "z"))
				_ = os.Symlink(outside, filepath.Join(dir, "x"))
				_ = os.Remove(filepath.Join(dir, "x"))
				_ = os.Rename(filepath.Join(dir, "z"), filepath.Join(dir, "x"))
			}
		})
	}
	end()
	m.idle(t, login)
	close(stop)
	wg.Wait()
	if exists(login) {
		t.Error("the account is still there")
	}
	files, err := os.ReadDir(outside)
	if after := run(t, "stat", "-c", "%u %g %a", outside); len(files) != 50 || err != nil || after != before {
		t.Errorf("outside: %d files, %v, owner and mode %q; want 50, %q", len(files), err, after, before)
	}
}

// A listener of an account keeps it.
func TestAccountOfListener(t *testing.T) {
	m, login := newMaker(t, t.TempDir()), stranger(t, "l")
	ln, err := m.Listen(t.Context(), Account{Login: login, Create: &services.CreateAccount{}}, Endpoint{})
	if err != nil {
		t.Fatal(err)
	}
	if !exists(login) {
		t.Error("no account while it listens")
	}
	_ = ln.Close()
	_ = ln.Close()
	m.idle(t, login)
	wantLeft(t, m, login)
}
