package daemon

import (
	"slices"
	"strings"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// stands reports whether a user name that somebody claims stands for something in
// the cluster: a user, a node or member, or a login on one of them.
func (d *Daemon) stands(name string) bool {
	if _, ok := d.cache.User(names.UserName(name)); ok {
		return true
	}
	if i := strings.IndexAny(name, "@:+"); i > 0 {
		if _, err := names.ParseLogin(name[:i]); err != nil {
			return false
		}
		name = name[i+1:]
	}
	_, ok := d.cache.NodeByName(names.NodeName(name))
	return ok || slices.ContainsFunc(d.cache.Members(), func(m services.Member) bool { return string(m.Name) == name })
}
