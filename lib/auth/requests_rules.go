package auth

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// defaultElevation is how long a request is for that does not say, unless the
// rules allow less.
const defaultElevation = 4 * time.Hour

// terms are what an access request takes: those of all rules that are about one
// of its roles.
type terms struct {
	sets      []services.ApprovalSet
	longest   time.Duration
	signature bool
}

// termsFor returns the terms on which sub may have roles, on node alone unless
// that is nil, or a refusal. Roles that a request gives let nobody ask for more.
func termsFor(sub subject, roles []names.RoleName, node *services.Node) (terms, error) {
	t := terms{longest: services.MaxElevation}
	for _, name := range roles {
		rules := requestRules(sub, name, node)
		if len(rules) == 0 {
			where := ""
			if node != nil {
				where = " on node \"" + string(node.Name) + "\""
			}
			return t, fault.New(fault.Denied, "no role of yours lets you ask for role %q%s", name, where).
				WithHint("the section \"requests\" of a role says what its holders may ask for")
		}
		for _, r := range rules {
			t.add(r)
		}
	}
	return t, nil
}

// requestRules returns the rules by which sub may ask for role name, on node.
func requestRules(sub subject, name names.RoleName, node *services.Node) []services.RequestRule {
	var out []services.RequestRule
	for _, held := range sub.roles {
		for _, r := range held.Requests {
			if slices.Contains(r.Roles, name) && (r.Nodes.IsZero() || node != nil && r.Nodes.Match(node.Labels, sub.Traits)) {
				out = append(out, r)
			}
		}
	}
	return out
}

func (t *terms) add(r services.RequestRule) {
	t.signature = t.signature || r.RequireSignature
	if r.MaxTTL != 0 {
		t.longest = min(t.longest, r.MaxTTL)
	}
	sets := r.Approvals
	if len(sets) == 0 {
		sets = []services.ApprovalSet{{Count: 1}}
	}
	for _, s := range sets {
		// The same set of two rules is one set: two leads are not needed because two
		// roles were asked for.
		s.Roles = slices.Compact(slices.Sorted(slices.Values(s.Roles)))
		same := func(o services.ApprovalSet) bool { return slices.Equal(o.Roles, s.Roles) }
		if i := slices.IndexFunc(t.sets, same); i >= 0 {
			t.sets[i].Count = max(t.sets[i].Count, s.Count)
		} else {
			t.sets = append(t.sets, s)
		}
	}
}

// askable returns the roles that sub may ask for on node and does not have,
// sorted.
func askable(sub subject, node *services.Node) []names.RoleName {
	var out []names.RoleName
	for _, held := range sub.roles {
		for _, r := range held.Requests {
			for _, name := range r.Roles {
				if !slices.Contains(sub.Roles, name) && len(requestRules(sub, name, node)) > 0 {
					out = append(out, name)
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// mayReview reports whether sub may review r: never one's own.
func mayReview(sub subject, r services.AccessRequest) bool {
	return sub.Name != r.User && slices.ContainsFunc(sub.roles, func(held services.Role) bool {
		return slices.ContainsFunc(held.Review, func(rule services.ReviewRule) bool { return rule.Covers(r.Roles) })
	})
}

// missing returns the sets with what is still missing in each, given the roles
// of those who have approved. Nobody counts twice; who counts where is chosen so
// that the least is missing.
func (t *terms) missing(approvers [][]names.RoleName) []services.ApprovalSet {
	m := seating{sets: t.sets, approvers: approvers}
	for i, s := range t.sets {
		for range s.Count {
			m.slots = append(m.slots, i)
		}
	}
	m.holder = make([]int, len(m.slots))
	for who := range approvers {
		m.place(who, make([]bool, len(m.slots)))
	}
	var out []services.ApprovalSet
	for i, s := range t.sets {
		s.Count = 0
		for slot, set := range m.slots {
			if set == i && m.holder[slot] == 0 {
				s.Count++
			}
		}
		if s.Count > 0 {
			out = append(out, s)
		}
	}
	return out
}

// A seating says which approval counts in which set.
type seating struct {
	sets      []services.ApprovalSet
	approvers [][]names.RoleName
	slots     []int // the set of each approval that is wanted
	holder    []int // who has a slot, from 1 on
}

// place finds a slot for who, moving others if that helps: an augmenting path of
// a bipartite matching. It reports whether there is one.
func (m *seating) place(who int, tried []bool) bool {
	for slot, set := range m.slots {
		if tried[slot] || !m.sets[set].Takes(m.approvers[who]) {
			continue
		}
		tried[slot] = true
		if m.holder[slot] == 0 || m.place(m.holder[slot]-1, tried) {
			m.holder[slot] = who + 1
			return true
		}
	}
	return false
}

// span returns how long a request is for that asks for ttl.
func (t *terms) span(ttl time.Duration) (time.Duration, error) {
	if ttl > t.longest {
		return 0, fault.New(fault.Denied, "the rules allow %v at most, not %v", t.longest, ttl)
	}
	return cmp.Or(ttl, min(t.longest, defaultElevation)), nil
}

// roleList returns roles as people write them.
func roleList(roles []names.RoleName) string {
	list := make([]string, len(roles))
	for i, r := range roles {
		list[i] = string(r)
	}
	return strings.Join(list, ",")
}
