package authz

import (
	"fmt"
	"iter"
	"slices"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// wildcard stands for every action, resource or verb in a rule.
const wildcard = "*"

// rule is one rule of a role, made ready for one user: its templates are
// expanded. An allow rule grants what all of its parts name; in a deny rule a
// part that is not set names everything.
type rule struct {
	services.Rule

	deny    bool
	only    names.NodeID // the one node that it is about, of an access request; "" otherwise
	user    *services.User
	logins  []names.Login // Logins, expanded
	options services.RoleOptions
	verdict Decision // when this rule decides, without options
}

// compile returns the rules of role's allow or deny list for user.
func compile(role services.Role, deny bool, user *services.User) []rule {
	list, kind, verb := role.Allow, "allow", "allowed"
	if deny {
		list, kind, verb = role.Deny, "deny", "denied"
	}
	rules := make([]rule, len(list))
	for i, r := range list {
		rules[i] = rule{
			Rule: r, deny: deny, user: user, logins: r.ExpandLogins(*user), options: role.Options,
			verdict: Decision{
				Allow: !deny, Role: role.Name,
				Rule:   fmt.Sprintf("%s.%s[%d]", role.Name, kind, i),
				Reason: fmt.Sprintf("%s by role %q, %s[%d]", verb, role.Name, kind, i),
			},
		}
	}
	return rules
}

// covers reports whether r is about nodes and names all that a asks about.
func (r *rule) covers(a *ask) bool {
	return r.coversNode(a) && r.coversLogin(a) && r.coversAction(a) && r.coversTarget(a)
}

// coversNode reports whether r is about nodes and names a's.
func (r *rule) coversNode(a *ask) bool {
	if len(r.Resources) > 0 {
		return false
	}
	if r.only != "" && r.only != a.node.ID {
		return false
	}
	return r.deny && r.Nodes.IsZero() || r.Nodes.Match(a.node.Labels, r.user.Traits)
}

// coversLogin reports whether r names a's login. A list of templates that
// expand to nothing is a list of no logins, not of all.
func (r *rule) coversLogin(a *ask) bool {
	return r.deny && len(r.Logins) == 0 || slices.Contains(r.logins, a.login)
}

// coversAction reports whether r names a's action. A deny rule with
// destinations is about forwards alone, and a rule with commands grants nothing
// in which any other could be typed.
func (r *rule) coversAction(a *ask) bool {
	if len(r.Commands) > 0 && (a.action == ActionShell || a.action == ActionJoin) {
		return false
	}
	if r.deny && len(r.ForwardTo) > 0 && a.action != ActionForwardLocal {
		return false
	}
	return r.deny && len(r.Actions) == 0 || named(r.Actions, string(a.action))
}

// coversTarget reports whether r names a's target, or its command. Where a asks
// for any, there is one that a rule with destinations allows, and one that it
// does not deny.
func (r *rule) coversTarget(a *ask) bool {
	if len(r.Commands) > 0 && a.action == ActionExec && a.line != nil {
		_, ok := a.line.Granted(r.Commands)
		return ok && !r.deny
	}
	if len(r.ForwardTo) == 0 || a.action != ActionForwardLocal {
		return true
	}
	if a.destination == nil {
		return !r.deny
	}
	return slices.ContainsFunc(r.ForwardTo, func(p services.ForwardPattern) bool {
		if r.deny {
			return p.Forbids(*a.destination)
		}
		return p.Grants(*a.destination)
	})
}

// lists reports whether r, which allows a, has a pattern for a's target that is
// not one for everything.
func (r *rule) lists(a *ask) bool {
	return a.destination != nil && slices.ContainsFunc(r.ForwardTo, func(p services.ForwardPattern) bool {
		return !p.Everything() && p.Grants(*a.destination)
	})
}

// coversResource reports whether r is about resources and names a's, with its
// verb.
func (r *rule) coversResource(a *ask) bool {
	return named(r.Resources[a.resource], a.verb) || named(r.Resources[wildcard], a.verb)
}

// named reports whether list has word or the wildcard.
func named(list []string, word string) bool {
	return slices.Contains(list, word) || slices.Contains(list, wildcard)
}

// total reports whether r, a deny rule, covers login on every node for every
// action.
func (r *rule) total(login names.Login) bool {
	everyNode := ask{question: question{login: login}} // no labels: only a selector of every node matches
	if !r.coversNode(&everyNode) || !r.coversLogin(&everyNode) {
		return false
	}
	return !slices.ContainsFunc(services.Actions(), func(action string) bool {
		return !r.coversAction(&ask{question: question{action: Action(action)}})
	})
}

// Logins returns the logins that roles allow user on some node, which are the
// principals of the user's certificate: sorted, each once, without those that a
// deny rule takes away on every node.
func Logins(user services.User, roles []services.Role) []names.Login {
	var allowed []names.Login
	var denied []rule
	for _, role := range roles {
		for _, r := range compile(role, false, &user) {
			allowed = append(allowed, r.logins...)
		}
		denied = append(denied, compile(role, true, &user)...)
	}
	slices.Sort(allowed)
	return slices.DeleteFunc(slices.Compact(allowed), func(l names.Login) bool {
		return slices.ContainsFunc(denied, func(r rule) bool { return r.total(l) })
	})
}

// PlainKeyRoles returns those of roles that user holds and that let in who
// proves a key enrolled for the user: the ones a certificate may carry that
// stands on no better proof. What the user's other roles deny is denied all the
// same.
func PlainKeyRoles(user services.User, roles []services.Role) []services.Role {
	var out []services.Role
	for _, r := range roles {
		if r.Options.PlainKeys && slices.Contains(user.Roles, r.Name) {
			out = append(out, r)
		}
	}
	return out
}

// pairs yields a with every login and action that r, an allow rule, names.
func (r *rule) pairs(a *ask) iter.Seq[ask] {
	actions := r.Actions
	if slices.Contains(actions, wildcard) {
		actions = services.Actions()
	}
	return func(yield func(ask) bool) {
		for _, login := range r.logins {
			for _, action := range actions {
				try := *a
				try.login, try.action = login, Action(action)
				if !yield(try) {
					return
				}
			}
		}
	}
}
