// Package authz decides who may do what: a person's certificate and the live
// policy in, a [Decision] with its reason out.
//
// # How a decision is made
//
// Nothing is allowed by default, and one deny rule wins over every allow rule.
// Only the person's own roles are looked at:
//
//   - allow rules count of roles that the certificate carries and that the user
//     still holds, so a certificate never grants what was taken away, and a new
//     role grants with the next certificate only;
//   - a role that the user does not hold counts while an approved access request
//     gives it that the certificate names; when that is for one node, on that node
//     alone, and for no resource;
//   - deny rules count of every role the user holds now, and of those that a
//     request gives, so that a certificate
//     from before a prohibition does not evade it.
//
// Where a local forward leads is part of the question. A rule with destinations
// is about forwards to these alone. A rule that denies one holds when the name or
// the address is meant; one that allows a network holds for an address that is
// known, never for a name.
//
// Logins and traits in rules are those of the live user. That the login is
// among the certificate's principals is [sshca.Trust.CheckLogin]'s to see to.
//
// A role's options bind only where that role grants: a decision carries the
// strictest of those whose allow rules grant it. Where one of these asks for a
// second factor for each connection, or for a security key to begin it with,
// nothing is allowed to an identity without;
// what may be reached, [Engine.Reach], is no secret from who will be asked.
//
// # How casbin is used
//
// Each set of roles of a user gets a casbin enforcer with the rules of these
// roles and no others; it is kept until the policy's revision changes. Its
// policy lines are numbers of rules and its matcher is a constant, so no text
// of a person's ever is part of an expression or of a policy line: names are
// compared, and labels matched, by Go functions the matcher calls.
//
// What a command line is made of is part of the question, too: a rule with
// commands grants only lines whose every command it lists, and no shell.
//
// Decisions are pure: no I/O, no clock, the same answer for the same policy.
// They are not written to the log here; who asks emits the event.
//
// # Locks
//
// A lock keeps out whom the rules let in. Who is kept out by the rules does not
// hear of locks, which may be about a node they know nothing of. Here alone a
// decision depends on the time, since locks expire.
package authz

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/casbin/casbin/v2/model"
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// Action is something a person does on a node.
type Action string

// The actions; the words are those of [services.Actions].
const (
	ActionShell         Action = "shell"
	ActionExec          Action = "exec"
	ActionSFTPRead      Action = "sftp:read"
	ActionSFTPWrite     Action = "sftp:write"
	ActionForwardLocal  Action = "forward:local"
	ActionForwardRemote Action = "forward:remote"
	ActionForwardAgent  Action = "forward:agent"
	ActionX11           Action = "x11"
	ActionJoin          Action = "join"
)

// NodeView is what a decision knows of a node.
type NodeView struct {
	ID     names.NodeID
	Name   names.NodeName
	Labels names.Labels
}

// ViewOf returns what a decision knows of n.
func ViewOf(n services.Node) NodeView { return NodeView{ID: n.ID, Name: n.Name, Labels: n.Labels} }

func (n NodeView) equal(o NodeView) bool {
	return n.ID == o.ID && n.Name == o.Name && maps.Equal(n.Labels, o.Labels)
}

// Target is where a forward leads, for [ActionForwardLocal]; other actions have
// none.
type Target struct {
	Host string     // as the client wrote it
	Port uint16     // of a host
	Addr netip.Addr // what Host stands for where it is dialled; zero when that is not known
	Path string     // of a Unix socket; the others mean nothing then
}

// String returns t as a client writes it.
func (t Target) String() string {
	if t.Path != "" {
		return t.Path
	}
	return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
}

// Request asks whether somebody may do something on a node.
type Request struct {
	Identity *sshca.Identity
	Node     NodeView
	Login    names.Login
	Action   Action
	Target   Target // the zero value asks whether there is any that is allowed
	Command  string // line, for ActionExec; "" asks whether there is any that is allowed
}

// Decision is the answer. The zero value is a refusal.
type Decision struct {
	Allow  bool
	Role   names.RoleName // whose rule decided; "" when no rule did
	Rule   string         // that rule, such as "developer.allow[0]"
	Reason string         // one sentence for the person and for the log
	Listed bool           // the rule that allows names the target, rather than any

	// Confined is set when a command is allowed by rules that list commands and by
	// no other.
	Confined bool

	// NeedsFactor is set of a refusal when the identity lacks nothing but a second
	// factor for this connection ([services.MFASession]).
	NeedsFactor bool

	// Lock is set when the rules allow it and this lock does not.
	Lock *services.Lock

	// Options are the strictest among the roles that grant; the zero value when
	// nothing is granted.
	Options services.RoleOptions
}

// Policy is the live policy; [services.Cache] is one.
type Policy interface {
	Role(name names.RoleName) (services.Role, bool)
	User(name names.UserName) (services.User, bool)
	Elevation(request string) (services.Elevation, bool)
	Revision() uint64 // changes with every change of a role, a user, an elevation or a lock
	// Locked returns a lock that keeps s out at now.
	Locked(s services.Subject, now time.Time) (services.Lock, bool)
	// Stale reports whether it may not know of all locks.
	Stale() bool
}

// DefaultCacheSize is how many decisions an [Engine] remembers unless told
// otherwise: a thousand people on a dozen nodes each. One takes about 1 KB.
const DefaultCacheSize = 16384

// maxSets bounds the sets of roles whose enforcers are kept. One takes about
// 25 KB, and building it again less than a millisecond.
const maxSets = 1024

// Config configures an [Engine].
type Config struct {
	Policy    Policy // required
	CacheSize int    // decisions remembered; 0 means DefaultCacheSize

	Now func() time.Time // when locks expire; nil is time.Now
}

// Engine makes decisions. Its methods may be called at the same time.
type Engine struct {
	policy    Policy
	cacheSize int
	now       func() time.Time
	template  model.Model // what every enforcer begins with

	actions, resources, verbs []string // the words there are

	memo atomic.Pointer[memo]
}

// memo is what is remembered of one revision of the policy. A new revision gets
// a new one; what is still being computed for the old goes away with it.
type memo struct {
	revision uint64
	sets     *lru.Cache[string, *ruleSet]
	answers  *lru.Cache[question, answer]
}

// question is what a decision is remembered by, beside the node's name and
// labels. A resource's has no node; that of [Engine.Reach] has no action.
type question struct {
	holder         string // see holderOf
	node           names.NodeID
	login          names.Login
	action         Action
	resource, verb string
}

type answer struct {
	node     NodeView
	decision Decision
}

// ask is one question as the matchers see it.
type ask struct {
	question
	node        NodeView
	target      Target
	destination *services.Destination // of target; nil asks for any
	command     string                // as the client sent it
	line        *services.CommandLine // of command; nil asks for any
}

// New returns an Engine.
func New(cfg Config) (*Engine, error) {
	if cfg.Policy == nil {
		return nil, fault.New(fault.Internal, "authz: no policy")
	}
	template, err := model.NewModelFromString(modelText)
	if err != nil {
		return nil, fmt.Errorf("read the casbin model: %w", err)
	}
	e := &Engine{
		policy: cfg.Policy, cacheSize: cfg.CacheSize, now: cfg.Now, template: template,
		actions: services.Actions(), resources: services.Resources(), verbs: services.Verbs(),
	}
	if e.cacheSize == 0 {
		e.cacheSize = DefaultCacheSize
	}
	if e.now == nil {
		e.now = time.Now
	}
	if e.cacheSize < 0 {
		return nil, fault.New(fault.Internal, "authz: cache size %d", e.cacheSize)
	}
	return e, nil
}

// Decide answers whether r is allowed.
func (e *Engine) Decide(r Request) Decision {
	if !slices.Contains(e.actions, string(r.Action)) {
		return Decision{Reason: fmt.Sprintf("there is no action %.80q", string(r.Action))}
	}
	a := ask{question: question{node: r.Node.ID, login: r.Login, action: r.Action}, node: r.Node}
	if r.Action == ActionForwardLocal {
		a.lead(r.Target)
	}
	if r.Action == ActionExec {
		a.command = r.Command
	}
	return e.answer(r.Identity, a, (*ruleSet).decide).held(r.Identity)
}

// held returns d for id, which needs a security key, or a second factor for its
// connection, where a role that grants asks for one.
func (d Decision) held(id *sshca.Identity) Decision {
	if d.Allow && !id.SecurityKey.Is(d.Options.Key) {
		why := "sign in with a security key: a role takes connections with no others (key: " + string(d.Options.Key) + ")"
		return Decision{Role: d.Role, Rule: d.Rule, Reason: why}
	}
	if d.Allow && d.Options.MFA == services.MFASession && id.Factor == "" {
		return Decision{Role: d.Role, Rule: d.Rule, NeedsFactor: true, Reason: "a second factor is needed for this connection"}
	}
	return d
}

// NeedsFactor answers whether there is anything that id may do as login on n
// with a second factor for the connection, and not without.
func (e *Engine) NeedsFactor(id *sshca.Identity, n NodeView, login names.Login) bool {
	return slices.ContainsFunc(e.actions, func(action string) bool {
		return e.Decide(Request{Identity: id, Node: n, Login: login, Action: Action(action)}).NeedsFactor
	})
}

// Reach answers whether id may do anything at all on n: whether there are a
// login and an action that [Engine.Decide] allows. The decision is that of one
// such pair.
func (e *Engine) Reach(id *sshca.Identity, n NodeView) Decision {
	return e.answer(id, ask{question: question{node: n.ID}, node: n}, (*ruleSet).reach)
}

// Resource answers whether id may do what verb says with a resource of the
// cluster.
func (e *Engine) Resource(id *sshca.Identity, resource, verb string) Decision {
	if !slices.Contains(e.resources, resource) || !slices.Contains(e.verbs, verb) {
		return Decision{Reason: fmt.Sprintf("there is no resource %.80q to %.80q", resource, verb)}
	}
	return e.answer(id, ask{question: question{resource: resource, verb: verb}}, (*ruleSet).resource).held(id)
}

// answer returns what the rules answer to a, unless that is yes and a lock says
// no. Locks are asked each time: they expire, and are about more than a decision
// is remembered by.
func (e *Engine) answer(id *sshca.Identity, a ask, decide func(*ruleSet, *ask) Decision) Decision {
	d := e.rules(id, a, decide)
	if !d.Allow {
		return d
	}
	l, locked := e.policy.Locked(services.Subject{Identity: id, Login: a.login, Node: a.node.ID, NodeName: a.node.Name}, e.now())
	if locked {
		return Decision{Lock: &l, Reason: l.Sentence()}
	}
	if d.Options.Locks == services.LocksStrict && e.policy.Stale() {
		return Decision{Role: d.Role, Reason: "whether somebody is locked out cannot be told at the moment, and the role wants to know (locks: strict)"}
	}
	return d
}

// rules returns the remembered answer to a, or asks decide.
func (e *Engine) rules(id *sshca.Identity, a ask, decide func(*ruleSet, *ask) Decision) Decision {
	if id == nil || id.Kind != sshca.KindUser {
		return Decision{Reason: "only people have roles"}
	}
	m, err := e.current()
	if err != nil {
		return broken(err)
	}
	a.holder = holderOf(id)
	// Clients choose targets, and could fill what is remembered with them.
	forget := a.destination != nil
	if a.command != "" {
		set, err := m.set(e, id, a.holder)
		if err != nil {
			return broken(err)
		}
		if forget = set.commands; forget {
			line := services.NewCommandLine(a.command)
			a.line = &line
		}
	}
	if !forget {
		if got, ok := m.answers.Get(a.question); ok && got.node.equal(a.node) {
			return got.decision
		}
	}
	set, err := m.set(e, id, a.holder)
	if err != nil {
		return broken(err)
	}
	d := decide(set, &a)
	if forget {
		return d
	}
	a.node.Labels = maps.Clone(a.node.Labels)
	m.answers.Add(a.question, answer{a.node, d})
	return d
}

// set returns the rules of id, which holder stands for.
func (m *memo) set(e *Engine, id *sshca.Identity, holder string) (*ruleSet, error) {
	if set, ok := m.sets.Get(holder); ok {
		return set, nil
	}
	set, err := e.build(id)
	if err == nil {
		m.sets.Add(holder, set)
	}
	return set, err
}

// lead makes t the target of a, unless it is the zero one.
func (a *ask) lead(t Target) {
	if t == (Target{}) {
		return
	}
	d := services.NewDestination(t.Host, t.Port, t.Addr)
	if t.Path != "" {
		d = services.NewSocketDestination(t.Path)
	}
	a.target, a.destination = t, &d
}

// broken is the answer when the machinery fails, which no input can bring
// about.
func broken(err error) Decision { return Decision{Reason: "internal error: " + err.Error()} }

// holderOf returns what, at one revision of the policy, determines the rules of
// id: the user and the certificate's roles and access requests. No grammar of
// these has a slash or a colon.
func holderOf(id *sshca.Identity) string {
	size := len(id.User)
	for _, r := range id.Roles {
		size += 1 + len(r)
	}
	for _, r := range id.Requests {
		size += 1 + len(r)
	}
	var b strings.Builder
	b.Grow(size)
	b.WriteString(string(id.User))
	for _, r := range id.Roles {
		b.WriteByte('/')
		b.WriteString(string(r))
	}
	for _, r := range id.Requests {
		b.WriteByte(':')
		b.WriteString(r)
	}
	return b.String()
}

// current returns the memo of the policy's revision. The revision is read
// before anything else is, so what a memo holds is never older than it says.
func (e *Engine) current() (*memo, error) {
	for {
		m, revision := e.memo.Load(), e.policy.Revision()
		if m != nil && m.revision == revision {
			return m, nil
		}
		sets, err := lru.New[string, *ruleSet](maxSets)
		if err != nil {
			return nil, err
		}
		answers, err := lru.New[question, answer](e.cacheSize)
		if err != nil {
			return nil, err
		}
		e.memo.CompareAndSwap(m, &memo{revision: revision, sets: sets, answers: answers})
	}
}

// Err returns what the person reads of a refusal, or nil: what has ended or is not
// to be, unless a lock is why.
func (d Decision) Err(what string) error {
	switch {
	case d.Allow:
		return nil
	case d.Lock != nil:
		return d.Lock.Refusal()
	case what == "":
		return fault.New(fault.Denied, "%s", d.Reason)
	}
	return fault.New(fault.Denied, "%s: %s", what, d.Reason)
}

// LockID returns the id of the lock that refuses, or "".
func (d Decision) LockID() string {
	if d.Lock == nil {
		return ""
	}
	return string(d.Lock.ID)
}
