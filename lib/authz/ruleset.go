package authz

import (
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/casbin/casbin/v2"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// modelText is the casbin model of every enforcer. A policy line is the number
// of a list, a role's allow or deny rules, and what it does; p has the lists with
// rules about nodes, p2 those with rules about resources. The functions are those
// of functions: one for each matcher and a line for a whole list, since what casbin
// does for a call is more than what any of these does.
const modelText = `
[request_definition]
r = ask

[policy_definition]
p  = list, eft
p2 = list, eft

[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))

[matchers]
m  = covers(r.ask, p.list)
m2 = resource(r.ask, p2.list)
`

// functions are what the matchers call.
func functions() map[string]func(*rule, *ask) bool {
	return map[string]func(*rule, *ask) bool{
		"covers":   (*rule).covers,
		"resource": (*rule).coversResource,
	}
}

// ruleSet is the rules that count for one user with one set of roles in the
// certificate, and the enforcer over them.
type ruleSet struct {
	user     names.UserName
	refusal  string   // why nothing can be allowed; then there are no rules
	lists    [][]rule // of each role, those that deny first: the first that matches ends the search
	commands bool     // some rule lists commands
	enforcer *casbin.Enforcer
}

// build returns the ruleSet of id under the policy of now.
func (e *Engine) build(id *sshca.Identity) (*ruleSet, error) {
	s := &ruleSet{user: id.User}
	user, ok := e.policy.User(id.User)
	if !ok {
		s.refusal = fmt.Sprintf("there is no user %q any more", id.User)
		return s, nil
	}
	var allow [][]rule
	for _, name := range slices.Compact(slices.Sorted(slices.Values(user.Roles))) {
		role, ok := e.policy.Role(name)
		if !ok {
			continue
		}
		s.lists = append(s.lists, compile(role, true, &user))
		if slices.Contains(id.Roles, name) {
			allow = append(allow, compile(role, false, &user))
		}
	}
	for _, g := range e.given(id, user) {
		s.lists = append(s.lists, compile(g.role, true, &user))
		list := compile(g.role, false, &user)
		for i := range list {
			list[i].only = g.node
		}
		allow = append(allow, slices.DeleteFunc(list, func(r rule) bool { return r.only != "" && len(r.Resources) > 0 }))
	}
	s.lists = append(s.lists, allow...)
	for r := range s.rules() {
		s.commands = s.commands || len(r.Commands) > 0
	}
	return s, s.load(e)
}

// given is a role that an access request gives.
type given struct {
	role services.Role
	node names.NodeID // the only one it is for; "" is all it reaches
}

// given returns the roles that user does not hold, but that id carries and an
// access request gives which id names and which still stands.
func (e *Engine) given(id *sshca.Identity, user services.User) []given {
	var out []given
	for _, request := range id.Requests {
		g, ok := e.policy.Elevation(request)
		if !ok || !g.Is(user) {
			continue
		}
		for _, name := range g.Roles {
			role, ok := e.policy.Role(name)
			if ok && slices.Contains(id.Roles, name) && !slices.Contains(user.Roles, name) {
				out = append(out, given{role, g.Node})
			}
		}
	}
	return out
}

// rules yields all rules.
func (s *ruleSet) rules() iter.Seq[*rule] {
	return func(yield func(*rule) bool) {
		for _, list := range s.lists {
			for i := range list {
				if !yield(&list[i]) {
					return
				}
			}
		}
	}
}

// load makes the enforcer over s.lists.
func (s *ruleSet) load(e *Engine) error {
	m := e.template.Copy()
	for i, list := range s.lists {
		lines := map[string]string{} // what the list does, of each policy that it has rules for
		for _, r := range list {
			policy, effect := "p", "allow"
			if len(r.Resources) > 0 {
				policy = "p2"
			}
			if r.deny {
				effect = "deny"
			}
			lines[policy] = effect
		}
		for policy, effect := range lines {
			if err := m.AddPolicy("p", policy, []string{strconv.Itoa(i), effect}); err != nil {
				return err
			}
		}
	}
	enforcer, err := casbin.NewEnforcer(m)
	if err != nil {
		return err
	}
	for name, covers := range functions() {
		enforcer.AddFunction(name, s.function(covers))
	}
	s.enforcer = enforcer
	return nil
}

// function returns covers in the form casbin calls it, with the ask and the
// number of a list, one of whose rules is to cover it. Without policy lines casbin
// calls it once with "" for the number and would take true for allowed.
func (s *ruleSet) function(covers func(*rule, *ask) bool) func(args ...any) (any, error) {
	return func(args ...any) (any, error) {
		if len(args) != 2 {
			return nil, fault.New(fault.Internal, "matcher called with %d arguments", len(args))
		}
		a, isAsk := args[0].(*ask)
		number, isText := args[1].(string)
		if !isAsk || !isText {
			return nil, fault.New(fault.Internal, "matcher called with a %T and a %T", args[0], args[1])
		}
		if number == "" {
			return false, nil
		}
		list, err := s.list(number)
		return first(list, func(r *rule) bool { return covers(r, a) }) != nil, err
	}
}

// list returns the list of that number.
func (s *ruleSet) list(number string) ([]rule, error) {
	i, err := strconv.Atoi(number)
	if err != nil || i < 0 || i >= len(s.lists) {
		return nil, fault.New(fault.Internal, "no list of rules has the number %q", number)
	}
	return s.lists[i], nil
}

// first returns the first rule of a list for which is holds, or nil.
func first(list []rule, is func(*rule) bool) *rule {
	for i := range list {
		if is(&list[i]) {
			return &list[i]
		}
	}
	return nil
}

// decide answers a question about a login and an action on a node.
func (s *ruleSet) decide(a *ask) Decision {
	covers := func(r *rule) bool { return r.covers(a) }
	return s.enforce(covers, s.noRule, a, a)
}

// resource answers a question about a resource.
func (s *ruleSet) resource(a *ask) Decision {
	covers := func(r *rule) bool { return r.coversResource(a) }
	why := func(a *ask) string { return fmt.Sprintf("no role of %s allows to %s %s", s.user, a.verb, a.resource) }
	context := casbin.EnforceContext{RType: "r", PType: "p2", EType: "e", MType: "m2"}
	return s.enforce(covers, why, a, context, a)
}

// enforce asks casbin. covers tells which rules matched, for the one that decided
// and for the options of all that allow; why is the reason when no rule decided.
func (s *ruleSet) enforce(covers func(*rule) bool, why func(*ask) string, a *ask, rvals ...any) Decision {
	if s.refusal != "" {
		return Decision{Reason: s.refusal}
	}
	allow, line, err := s.enforcer.EnforceEx(rvals...)
	if err != nil {
		return broken(err)
	}
	if len(line) == 0 {
		return Decision{Reason: why(a)}
	}
	list, err := s.list(line[0])
	if err != nil {
		return broken(err)
	}
	decided := first(list, covers)
	if decided == nil {
		return broken(fault.New(fault.Internal, "no rule of list %q matches any more", line[0]))
	}
	d := decided.verdict
	if d.Allow = d.Allow && allow; !d.Allow {
		return d
	}
	d.Confined = a.line != nil
	for r := range s.rules() {
		if !r.deny && covers(r) {
			d.Confined = d.Confined && len(r.Commands) > 0
			d.Options = d.Options.Strictest(r.options)
			d.Listed = d.Listed || r.lists(a)
		}
	}
	return d
}

// reach answers a question about a node alone: it tries what the allow rules
// name until a pair of login and action is allowed.
func (s *ruleSet) reach(a *ask) Decision {
	refused := Decision{Reason: s.refusal}
	if s.refusal == "" {
		refused.Reason = fmt.Sprintf("no role of %s reaches node %q", s.user, a.node.Name)
	}
	for r := range s.rules() {
		if r.deny || !r.coversNode(a) {
			continue
		}
		for try := range r.pairs(a) {
			d := s.decide(&try)
			if d.Allow {
				return d
			}
			refused = d
		}
	}
	return refused
}

// noRule returns why no rule decided a question about a node: the first of
// node, login, action and target for which no allow rule stands.
func (s *ruleSet) noRule(a *ask) string {
	var node, login, action bool
	for r := range s.rules() {
		if !r.deny && r.coversNode(a) {
			node = true
			login = login || r.coversLogin(a)
			action = action || r.coversLogin(a) && r.coversAction(a)
		}
	}
	switch {
	case !node:
		return fmt.Sprintf("no role of %s reaches node %q", s.user, a.node.Name)
	case !login:
		return fmt.Sprintf("no role of %s allows login %.80q on node %q", s.user, string(a.login), a.node.Name)
	case a.line != nil && action:
		return s.noCommand(a)
	case a.action == ActionShell && s.confined(a) != "":
		return fmt.Sprintf("no role of %s allows %s as login %.80q on node %q, only commands: %s", s.user, a.action, string(a.login), a.node.Name, s.confined(a))
	case action:
		return fmt.Sprintf("no role of %s allows %s to %.80q as login %.80q on node %q", s.user, a.action, a.target.String(), string(a.login), a.node.Name)
	}
	return fmt.Sprintf("no role of %s allows %s as login %.80q on node %q", s.user, a.action, string(a.login), a.node.Name)
}

// maxHinted is how many patterns of commands a refusal tells.
const maxHinted = 8

// patterns returns the commands of the rules that allow some on a's node as a's
// login.
func (s *ruleSet) patterns(a *ask) []services.CommandPattern {
	exec := *a
	exec.action = ActionExec
	var out []services.CommandPattern
	for r := range s.rules() {
		if !r.deny && r.coversNode(&exec) && r.coversLogin(&exec) && r.coversAction(&exec) {
			out = append(out, r.Commands...)
		}
	}
	return out
}

// confined returns the first commands that a's person may run where a shell is
// not allowed, for the person.
func (s *ruleSet) confined(a *ask) string {
	patterns := s.patterns(a)
	var list []string
	for _, p := range patterns[:min(len(patterns), maxHinted)] {
		list = append(list, fmt.Sprintf("%.80q", p.String()))
	}
	if more := len(patterns) - len(list); more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(list, ", ")
}

// noCommand returns why no rule allows a's line: the first command in it that no
// rule lists.
func (s *ruleSet) noCommand(a *ask) string {
	as := fmt.Sprintf("as login %.80q on node %q", string(a.login), a.node.Name)
	why, ok := a.line.Granted(s.patterns(a))
	switch {
	case ok:
		return fmt.Sprintf("no one rule of %s allows all commands of the line %.80q %s", s.user, a.command, as)
	case a.line.Readable():
		return fmt.Sprintf("no role of %s allows command %.80q %s", s.user, why, as)
	}
	return fmt.Sprintf("no role of %s allows the line %.80q %s: %s", s.user, a.command, as, why)
}
