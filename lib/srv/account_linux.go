package srv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

const (
	// getentTime bounds one look-up in a directory service.
	getentTime = 10 * time.Second

	secondsPerDay = 24 * 60 * 60
)

// account is an account of the operating system (passwd(5)).
type account struct {
	name     string
	uid, gid uint32
	comment  string
	home     string
	shell    string
}

// accounts reads the system's accounts, afresh at each look-up.
type accounts struct {
	root string // where etc and run are; "/" but in tests
	now  func() time.Time
}

func (a accounts) file(name string) string { return filepath.Join(a.root, name) }

// find returns the account called login.
func (a accounts) find(ctx context.Context, login names.Login) (account, error) {
	acct, err := a.passwd(func(name string, _ uint32) bool { return name == string(login) })
	if fault.Is(err, fault.NotFound) && a.beyondFiles("passwd") {
		acct, err = a.askPasswd(ctx, login)
	}
	if fault.Is(err, fault.NotFound) {
		return account{}, fault.Wrap(fault.Denied, errNoAccount, fmt.Sprintf("there is no account %q on this node", login))
	}
	return acct, err
}

// passwd returns the first account that match takes.
func (a accounts) passwd(match func(name string, uid uint32) bool) (account, error) {
	var found *account
	err := a.lines("etc/passwd", func(line string) bool {
		acct, ok := parsePasswd(line)
		if ok && match(acct.name, acct.uid) {
			found = &acct
		}
		return found == nil
	})
	if err != nil {
		return account{}, err
	}
	if found == nil {
		return account{}, fault.New(fault.NotFound, "no such account")
	}
	return *found, nil
}

// parsePasswd reads one line of passwd(5).
func parsePasswd(line string) (account, bool) {
	f := strings.Split(line, ":")
	if len(f) != 7 || f[0] == "" || strings.ContainsAny(f[0][:1], "+-") {
		return account{}, false
	}
	uid, ok := parseID(f[2])
	gid, ok2 := parseID(f[3])
	if !ok || !ok2 {
		return account{}, false
	}
	shell := f[6]
	if shell == "" {
		shell = "/bin/sh" // passwd(5)
	}
	return account{name: f[0], uid: uid, gid: gid, comment: f[4], home: f[5], shell: shell}, true
}

// parseID reads a user or group id. The largest means "no change" to setuid(2)
// and is refused.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != math.MaxUint32
}

// groupsOf returns what initgroups(3) would set, the primary group first.
func (a accounts) groupsOf(ctx context.Context, acct account) ([]uint32, error) {
	groups := []uint32{acct.gid}
	add := func(s string) {
		if gid, ok := parseID(s); ok && !slices.Contains(groups, gid) {
			groups = append(groups, gid)
		}
	}
	if a.beyondFiles("group") || a.beyondFiles("initgroups") {
		answer, err := a.getent(ctx, "initgroups", acct.name) // the name, then the groups
		if err != nil {
			return nil, err
		}
		for i, f := range strings.Fields(answer) {
			if i > 0 {
				add(f)
			}
		}
		return groups, nil
	}
	err := a.lines("etc/group", func(line string) bool {
		f := strings.Split(line, ":")
		if len(f) == 4 && slices.Contains(strings.Split(f[3], ","), acct.name) {
			add(f[2])
		}
		return true
	})
	return groups, err
}

// ttyGroup returns the group terminals belong to, if there is one.
func (a accounts) ttyGroup() (uint32, bool) {
	var gid uint32
	var found bool
	err := a.lines("etc/group", func(line string) bool {
		if f := strings.Split(line, ":"); len(f) == 4 && f[0] == "tty" {
			gid, found = parseID(f[2])
		}
		return !found
	})
	return gid, found && err == nil
}

// expired returns whether acct has expired (shadow(5), field 8), as pam_unix
// judges it.
func (a accounts) expired(acct account) (bool, error) {
	expired := false
	err := a.lines("etc/shadow", func(line string) bool {
		f := strings.Split(line, ":")
		if len(f) != 9 || f[0] != acct.name {
			return true
		}
		day, err := strconv.ParseInt(f[7], 10, 64)
		expired = err == nil && day >= 0 && a.now().Unix()/secondsPerDay >= day
		return false
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return expired, err
}

// beyondFiles reports whether /etc/nsswitch.conf gives database a source that
// is not a file of this machine.
func (a accounts) beyondFiles(database string) bool {
	beyond := false
	err := a.lines("etc/nsswitch.conf", func(line string) bool {
		line, _, _ = strings.Cut(line, "#")
		name, sources, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) != database {
			return true
		}
		for source := range strings.FieldsSeq(sources) {
			if source != "files" && source != "compat" && !strings.ContainsAny(source, "[]=") {
				beyond = true
			}
		}
		return false
	})
	return beyond && err == nil
}

// askPasswd asks all sources for login.
func (a accounts) askPasswd(ctx context.Context, login names.Login) (account, error) {
	answer, err := a.getent(ctx, "passwd", string(login))
	if err != nil {
		return account{}, err
	}
	acct, ok := parsePasswd(strings.TrimSpace(answer))
	if !ok || acct.name != string(login) {
		return account{}, fault.New(fault.NotFound, "no such account")
	}
	return acct, nil
}

// getent runs getent(1), which asks what /etc/nsswitch.conf names. An account
// that is not found is [fault.NotFound].
func (a accounts) getent(ctx context.Context, database, key string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, getentTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/usr/bin/getent", database, key) //nolint:gosec // key is a login by its grammar, or a name from passwd
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	out, err := cmd.Output()
	const notFound = 2 // getent(1)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == notFound {
		return "", fault.New(fault.NotFound, "no such account")
	}
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "this node cannot look up accounts")
	}
	return string(out), nil
}

// lines calls f with each line of a file until it returns false.
func (a accounts) lines(name string, f func(line string) bool) error {
	data, err := os.ReadFile(a.file(name))
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "this node cannot look up accounts")
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if !f(line) {
			break
		}
	}
	return nil
}
