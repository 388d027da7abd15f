package services

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// Role says what its users may do. Nothing is allowed by default, and a deny
// rule of any role of a user wins over every allow rule.
type Role struct {
	Name    names.RoleName `json:"name"`
	Allow   []Rule         `json:"allow,omitempty"`
	Deny    []Rule         `json:"deny,omitempty"`
	Options RoleOptions    `json:"options,omitzero"` // bind where a rule of Allow grants
	Builtin bool           `json:"builtin,omitempty"`

	Requests []RequestRule `json:"requests,omitempty"` // what its users may ask for
	Review   []ReviewRule  `json:"review,omitempty"`   // which requests of others they may review

	Revision int64 `json:"-"`
}

// Rule is about nodes (Nodes, Logins, Actions, ForwardTo, Commands) or about resources of
// the cluster (Resources), never both. In an allow rule about nodes the first
// three are set; in a deny rule what is not set means every one.
//
// ForwardTo limits a rule to forwards to these destinations, as far as the action
// forward:local goes; the other actions of an allow rule are as if it was not
// there, and a deny rule that has it is about no others.
//
// Commands limit an allow rule to lines of these commands, as far as the action
// exec goes; it then grants no shell, whatever Actions say.
type Rule struct {
	Nodes     LabelSelector       `json:"nodes,omitzero"`
	Logins    []string            `json:"logins,omitempty"`     // exact names and templates; see [Rule.ExpandLogins]
	Actions   []string            `json:"actions,omitempty"`    // of [Actions], or "*"
	ForwardTo []ForwardPattern    `json:"forward_to,omitempty"` // none: wherever they lead
	Commands  []CommandPattern    `json:"commands,omitempty"`   // none: whatever they are
	Resources map[string][]string `json:"resources,omitempty"`  // of [Resources] or "*", to some of [Verbs] or "*"
}

// loginsTemplate stands for the user's own logins in a rule; a trait's template
// for the trait's values.
const loginsTemplate = "{{user.logins}}"

// ExpandLogins returns the logins r names for u, each once, in no certain
// order. A trait's value that could not be a login is left out.
func (r Rule) ExpandLogins(u User) []names.Login {
	var out []names.Login
	add := func(l names.Login) {
		if !slices.Contains(out, l) {
			out = append(out, l)
		}
	}
	for _, entry := range r.Logins {
		if entry == loginsTemplate {
			for _, l := range u.Logins {
				add(l)
			}
			continue
		}
		for _, v := range expandTrait(entry, u.Traits) {
			if l, err := names.ParseLogin(v); err == nil {
				add(l)
			}
		}
	}
	return out
}

// expandTrait returns the values of the trait that s is a template of, or s.
func expandTrait(s string, traits map[string][]string) []string {
	if m := traitTemplate.FindStringSubmatch(s); m != nil {
		return traits[m[1]]
	}
	return []string{s}
}

// RoleOptions limit what a role grants. A zero field is no limit.
type RoleOptions struct {
	SessionTTL  time.Duration `json:"session_ttl,omitempty"`
	IdleTimeout time.Duration `json:"idle_timeout,omitempty"`
	MaxSessions int           `json:"max_sessions,omitempty"`
	PinSource   bool          `json:"pin_source,omitempty"`
	PlainKeys   bool          `json:"plain_keys,omitempty"` // enrolled public keys will do; see [User.Keys]
	MFA         MFA           `json:"mfa,omitempty"`

	Key sshca.SecurityKey `json:"key,omitempty"` // connections must be begun with one

	CreateAccount *CreateAccount `json:"create_account,omitempty"` // nil: accounts are there or not

	Locks LockMode `json:"locks,omitempty"`

	Record      Recording `json:"record,omitempty"`       // see [RoleOptions.Recording]
	RecordInput bool      `json:"record_input,omitempty"` // what the process reads, too
}

// MFA says which second factor what a role grants takes, beside that of the
// sign-in.
type MFA string

// MFASession is a second factor for each connection.
const MFASession MFA = "session"

// Strictest returns the options that keep every limit of o and of p. PlainKeys is
// about signing in and no limit of what a role grants; the result has none.
func (o RoleOptions) Strictest(p RoleOptions) RoleOptions {
	return RoleOptions{
		SessionTTL:  lower(o.SessionTTL, p.SessionTTL),
		IdleTimeout: lower(o.IdleTimeout, p.IdleTimeout),
		MaxSessions: lower(o.MaxSessions, p.MaxSessions),
		PinSource:   o.PinSource || p.PinSource,
		MFA:         cmp.Or(o.MFA, p.MFA),
		Key:         strictestKey(o.Key, p.Key),

		CreateAccount: o.CreateAccount.strictest(p.CreateAccount),

		Locks: o.Locks.strictest(p.Locks),

		Record:      o.Record.strictest(p.Record),
		RecordInput: o.RecordInput || p.RecordInput,
	}
}

func strictestKey(a, b sshca.SecurityKey) sshca.SecurityKey {
	if a.Is(b) {
		return a
	}
	return b
}

// lower returns the lower limit, where zero is none.
func lower[T int | time.Duration](a, b T) T {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// BuiltinRoles returns the roles every cluster has.
func BuiltinRoles() []Role {
	everyNode := LabelSelector{all: true}
	own := []string{loginsTemplate}
	everything := []string{wildcard}
	read := []string{"read"}
	return []Role{
		{Name: "access", Builtin: true, Allow: []Rule{
			{Nodes: everyNode, Logins: own, Actions: everything},
		}},
		{Name: "admin", Builtin: true, Allow: []Rule{
			{Nodes: everyNode, Logins: own, Actions: everything},
			{Resources: map[string][]string{wildcard: everything}},
		}},
		{Name: "auditor", Builtin: true, Allow: []Rule{
			{Resources: map[string][]string{"audit": read, "nodes": read, "recordings": read, "sessions": read}},
		}},
	}
}

// isTemplate reports whether s is one of the templates a login may be.
func isTemplate(s string) bool {
	return s == loginsTemplate || strings.HasPrefix(s, "{{") && traitTemplate.MatchString(s)
}
