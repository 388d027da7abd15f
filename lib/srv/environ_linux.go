package srv

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// The paths Debian's sshd is built with, for users and for root.
const (
	userPath = "/usr/local/bin:/usr/bin:/bin:/usr/games"
	rootPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// environ is an environment in the order its variables were first set.
type environ []string

// set sets a variable; the last value counts.
func (e *environ) set(name, value string) {
	entry := name + "=" + value
	for i, old := range *e {
		if strings.HasPrefix(old, name+"=") {
			(*e)[i] = entry
			return
		}
	}
	*e = append(*e, entry)
}

// environment returns the environment of c as acct: what sshd sets, in its
// order, so that a client's variables never replace the server's.
func (a accounts) environment(acct account, c Command, tty string) []string {
	var e environ
	if tz, ok := os.LookupEnv("TZ"); ok {
		e.set("TZ", tz)
	}
	for _, v := range c.Env {
		e.set(v.Name, v.Value)
	}
	e.set("USER", acct.name)
	e.set("LOGNAME", acct.name)
	e.set("HOME", acct.home)
	e.set("PATH", userPath)
	if acct.uid == 0 {
		e.set("PATH", rootPath)
	}
	e.set("MAIL", "/var/mail/"+acct.name)
	e.set("SHELL", acct.shell)
	remote, remotePort := endpoint(c.Remote)
	local, localPort := endpoint(c.Local)
	e.set("SSH_CLIENT", fmt.Sprintf("%s %d %d", remote, remotePort, localPort))
	e.set("SSH_CONNECTION", fmt.Sprintf("%s %d %s %d", remote, remotePort, local, localPort))
	if c.Terminal != nil {
		e.set("SSH_TTY", tty)
		e.set("TERM", c.Terminal.Term)
	}
	a.readEnvironment("etc/environment", &e)
	a.readEnvironment("etc/default/locale", &e)
	return e
}

// endpoint returns an address as sshd writes it, which says UNKNOWN and 65535
// for a connection without one.
func endpoint(p netip.AddrPort) (addr string, port uint16) {
	if !p.IsValid() {
		return "UNKNOWN", 65535
	}
	return p.Addr().Unmap().String(), p.Port()
}

// readEnvironment sets what a file of pam_env(8) says, which Debian's sshd reads
// for every session. A line that is none is passed over, as there.
func (a accounts) readEnvironment(name string, e *environ) {
	_ = a.lines(name, func(line string) bool { // a missing file says nothing
		line = strings.TrimSpace(line)
		line = strings.TrimSpace(strings.TrimPrefix(line, "export "))
		key, value, ok := strings.Cut(line, "=")
		if ok && key != "" && isWord(key) && !strings.ContainsRune(value, 0) {
			e.set(key, unquote(value))
		}
		return true
	})
}

// unquote takes a pair of quotes off value.
func unquote(value string) string {
	if value == "" || value[0] != '"' && value[0] != '\'' {
		return value
	}
	return strings.TrimSuffix(value[1:], value[:1])
}
