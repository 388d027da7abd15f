package authz

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// Fixed is a policy that is written down rather than live: it never changes, and
// has no elevations and no locks.
type Fixed struct {
	Roles map[names.RoleName]services.Role
	Users map[names.UserName]services.User
}

// Role implements [Policy].
func (f Fixed) Role(name names.RoleName) (services.Role, bool) {
	r, ok := f.Roles[name]
	return r, ok
}

// User implements [Policy].
func (f Fixed) User(name names.UserName) (services.User, bool) {
	u, ok := f.Users[name]
	return u, ok
}

// Revision implements [Policy].
func (f Fixed) Revision() uint64 { return 1 }

// Elevation implements [Policy].
func (f Fixed) Elevation(string) (services.Elevation, bool) { return services.Elevation{}, false }

// Stale implements [Policy].
func (f Fixed) Stale() bool { return false }

// Locked implements [Policy].
func (f Fixed) Locked(services.Subject, time.Time) (services.Lock, bool) {
	return services.Lock{}, false
}

// Holder returns the identity of u with a fresh certificate, and a second factor
// for its connection.
func Holder(u services.User) *sshca.Identity {
	return &sshca.Identity{Kind: sshca.KindUser, User: u.Name, Roles: u.Roles, Logins: u.Logins, Factor: "totp"}
}

// Effect is what a [Change] does to somebody.
type Effect string

// The effects.
const (
	Gains   Effect = "gains"
	Loses   Effect = "loses"
	Changes Effect = "changes" // allowed before and after, within other limits
)

// Change is what other roles would change for a user: either on nodes, as a login,
// or about a resource.
type Change struct {
	Effect        Effect
	User          names.UserName
	Nodes         []names.NodeName // all of the same labels; sorted
	Login         names.Login
	Actions       []Action
	Resource      string
	Verbs         []string
	Before, After Decision
	Limits        string // of Changes: what differs
}

// maxAsked bounds the questions of one [Compare]: some ten seconds.
const maxAsked = 500_000

// Compare returns what users gain, lose, or may only within other limits, when
// before becomes after: sorted by user, node and login. Users are asked about as
// if each had a fresh certificate and a second factor. More than half a million
// questions are a [fault.BadInput].
func Compare(before, after Fixed, users []names.UserName, nodes []NodeView) ([]Change, error) {
	old, err := New(Config{Policy: before})
	if err != nil {
		return nil, err
	}
	renewed, err := New(Config{Policy: after})
	if err != nil {
		return nil, err
	}
	c := comparison{old: old, renewed: renewed, before: before, after: after, groups: alike(nodes)}
	asked := 0
	for _, name := range users {
		asked += 2 * len(c.groups) * len(c.logins(after.Users[name])) * len(services.Actions())
	}
	if asked > maxAsked {
		return nil, fault.New(fault.BadInput, "that is %d questions, want at most %d", asked, maxAsked).WithHint("compare for fewer users")
	}
	for _, name := range slices.Sorted(slices.Values(users)) {
		c.user(after.Users[name])
	}
	return c.changes, nil
}

// comparison is a [Compare] under way.
type comparison struct {
	old, renewed  *Engine
	before, after Fixed
	groups        [][]NodeView // rules tell nodes apart by their labels alone
	changes       []Change
}

// alike returns nodes in groups of equal labels.
func alike(nodes []NodeView) [][]NodeView {
	byLabels := map[string][]NodeView{}
	for _, n := range nodes {
		key := fmt.Sprint(n.Labels) // fmt sorts the keys of a map
		byLabels[key] = append(byLabels[key], n)
	}
	groups := make([][]NodeView, 0, len(byLabels))
	for _, g := range byLabels {
		slices.SortFunc(g, func(a, b NodeView) int { return cmp.Compare(a.Name, b.Name) })
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(a, b []NodeView) int { return cmp.Compare(a[0].Name, b[0].Name) })
	return groups
}

// logins returns every login that a rule of u's roles names for u, before or
// after.
func (c *comparison) logins(u services.User) []names.Login {
	var out []names.Login
	for _, p := range []Fixed{c.before, c.after} {
		for _, name := range u.Roles {
			for _, r := range p.Roles[name].Allow {
				out = append(out, r.ExpandLogins(u)...)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// user compares what u may do.
func (c *comparison) user(u services.User) {
	id, logins := Holder(u), c.logins(u)
	for _, group := range c.groups {
		for _, login := range logins {
			for _, action := range services.Actions() {
				c.add(c.onNode(id, group, login, Action(action)))
			}
		}
	}
	for _, resource := range services.Resources() {
		for _, verb := range services.Verbs() {
			b, a := c.old.Resource(id, resource, verb), c.renewed.Resource(id, resource, verb)
			c.add(Change{Effect: effect(b, a, ""), User: id.User, Resource: resource, Verbs: []string{verb}, Before: b, After: a})
		}
	}
}

// onNode compares one login and action on the nodes of a group.
func (c *comparison) onNode(id *sshca.Identity, group []NodeView, login names.Login, action Action) Change {
	r := Request{Identity: id, Node: group[0], Login: login, Action: action}
	ch := Change{User: id.User, Login: login, Actions: []Action{action}, Before: c.old.Decide(r), After: c.renewed.Decide(r)}
	for _, n := range group {
		ch.Nodes = append(ch.Nodes, n.Name)
	}
	if ch.Before.Allow && ch.After.Allow {
		ch.Limits = differ(c.old.limits(r, ch.Before), c.renewed.limits(r, ch.After))
	}
	ch.Effect = effect(ch.Before, ch.After, ch.Limits)
	return ch
}

func effect(before, after Decision, limits string) Effect {
	switch {
	case before.Allow && !after.Allow:
		return Loses
	case !before.Allow && after.Allow:
		return Gains
	case limits != "":
		return Changes
	}
	return ""
}

// add notes ch, together with the one before where only the action or the verb is
// another.
func (c *comparison) add(ch Change) {
	if ch.Effect == "" {
		return
	}
	if n := len(c.changes); n > 0 {
		last := &c.changes[n-1]
		if last.Effect == ch.Effect && last.User == ch.User && slices.Equal(last.Nodes, ch.Nodes) && last.Login == ch.Login &&
			last.Resource == ch.Resource && last.Limits == ch.Limits && last.Before.Rule == ch.Before.Rule && last.After.Rule == ch.After.Rule {
			last.Actions, last.Verbs = append(last.Actions, ch.Actions...), append(last.Verbs, ch.Verbs...)
			return
		}
	}
	c.changes = append(c.changes, ch)
}

// A limit is one thing that bounds what is allowed, as words.
type limit struct{ name, value string }

// limits returns what bounds the answer d to r, in an order that is always the
// same.
func (e *Engine) limits(r Request, d Decision) []limit {
	o := d.Options
	out := []limit{
		{"session_ttl", o.SessionTTL.String()},
		{"idle_timeout", o.IdleTimeout.String()},
		{"max_sessions", fmt.Sprint(o.MaxSessions)},
		{"pin_source", fmt.Sprint(o.PinSource)},
		{"mfa", string(o.MFA)},
		{"key", string(o.Key)},
		{"locks", string(o.Locks)},
		{"record", string(o.Record)},
		{"record_input", fmt.Sprint(o.RecordInput)},
		{"create_account", account(o.CreateAccount)},
	}
	var commands, targets, barred []string
	m, err := e.current()
	if err != nil {
		return out
	}
	set, err := m.set(e, r.Identity, holderOf(r.Identity))
	if err != nil {
		return out
	}
	a := ask{question: question{node: r.Node.ID, login: r.Login, action: r.Action}, node: r.Node}
	for rl := range set.rules() {
		if !rl.coversNode(&a) || !rl.coversLogin(&a) || !rl.coversAction(&a) {
			continue
		}
		switch {
		case rl.deny:
			barred = append(barred, texts(rl.ForwardTo)...)
		case r.Action == ActionExec:
			commands = append(commands, texts(rl.Commands)...)
		case r.Action == ActionForwardLocal:
			targets = append(targets, texts(rl.ForwardTo)...)
		}
	}
	return append(out, limit{"commands", oneOf(commands)}, limit{"forward_to", oneOf(targets)}, limit{"denied forward_to", oneOf(barred)})
}

func account(a *services.CreateAccount) string {
	if a == nil {
		return ""
	}
	return fmt.Sprintf("%+v", *a)
}

// anything stands for a rule that lists nothing.
const anything = "anything"

// texts returns what a rule lists.
func texts[P fmt.Stringer](list []P) []string {
	if len(list) == 0 {
		return []string{anything}
	}
	out := make([]string, len(list))
	for i, p := range list {
		out[i] = p.String()
	}
	return out
}

// oneOf returns the words of list that count.
func oneOf(list []string) string {
	if slices.Contains(list, anything) {
		return anything
	}
	slices.Sort(list)
	return strings.Join(slices.Compact(list), ", ")
}

// differ returns how after differs from before, or "".
func differ(before, after []limit) string {
	var out []string
	for i := range min(len(before), len(after)) {
		if b, a := before[i], after[i]; b != a {
			out = append(out, fmt.Sprintf("%s: %s, was %s", a.name, cmp.Or(a.value, "none"), cmp.Or(b.value, "none")))
		}
	}
	return strings.Join(out, "; ")
}
