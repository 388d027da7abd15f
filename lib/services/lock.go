package services

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// KindLock is a lock on a policy stream, named by its id.
const KindLock = "lock"

// LockID names a lock, a UUID.
type LockID string

// NewLockID returns an id that no lock has.
func NewLockID() LockID { return LockID(uuid.NewString()) }

// ParseLockID reads the id of a lock.
func ParseLockID(s string) (LockID, error) {
	id, err := uuid.Parse(s)
	if err != nil || id.String() != s {
		return "", fault.New(fault.BadInput, "lock id %q: want one that \"accessd locks ls\" lists", clip(s))
	}
	return LockID(s), nil
}

// Lock keeps out what its target describes, whatever the roles allow, until it
// expires or is removed. What is there already ends.
type Lock struct {
	ID      LockID     `json:"id"`
	Target  LockTarget `json:"target"`
	Message string     `json:"message,omitempty"` // shown to whom it keeps out
	By      string     `json:"by,omitempty"`      // who made it
	Created time.Time  `json:"created"`
	Expires time.Time  `json:"expires,omitzero"` // zero: never

	Revision int64 `json:"-"`
}

// LockTarget describes what a lock is about. All that is set must be so; the zero
// target is about nothing.
type LockTarget struct {
	User    names.UserName `json:"user,omitempty"`
	Role    names.RoleName `json:"role,omitempty"`  // who holds it, or has a certificate with it
	Login   names.Login    `json:"login,omitempty"` // the account on nodes
	Node    names.NodeName `json:"node,omitempty"`  // the name, and
	NodeID  names.NodeID   `json:"node_id,omitempty"`
	Address netip.Prefix   `json:"address,omitzero"` // where the person or the member comes from
	Serial  uint64         `json:"serial,string,omitempty"`
	Request string         `json:"request,omitempty"` // an access request whose roles a certificate has
}

// Check refuses a target about nothing, or one that is not in its form.
func (t LockTarget) Check() error {
	if t == (LockTarget{}) {
		return fault.New(fault.BadInput, "lock: want at least one of user, role, login, node, address, serial and request")
	}
	checks := []struct {
		set   bool
		parse func() error
	}{
		{t.User != "", func() error { _, err := names.ParseUserName(string(t.User)); return err }},
		{t.Role != "", func() error { _, err := names.ParseRoleName(string(t.Role)); return err }},
		{t.Login != "", func() error { _, err := names.ParseLogin(string(t.Login)); return err }},
		{t.Node != "", func() error { _, err := names.ParseNodeName(string(t.Node)); return err }},
		{t.NodeID != "", func() error { _, err := names.ParseNodeID(string(t.NodeID)); return err }},
		{t.Request != "", func() error { return checkRequestID(t.Request) }},
	}
	for _, c := range checks {
		if !c.set {
			continue
		}
		if err := c.parse(); err != nil {
			return err
		}
	}
	if a := t.Address; a != (netip.Prefix{}) && (!a.IsValid() || a != a.Masked() || a.Addr().Is4In6()) {
		return fault.New(fault.BadInput, "lock: address %q is no network", a)
	}
	return nil
}

func checkRequestID(s string) error {
	if id, err := uuid.Parse(s); err != nil || id.String() != s {
		return fault.New(fault.BadInput, "lock: request %q: want the id of an access request", clip(s))
	}
	return nil
}

// ParseLockAddress reads an address, or a network as "10.0.0.0/8".
func ParseLockAddress(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p != p.Masked() || p.Addr().Is4In6() {
		return netip.Prefix{}, fault.New(fault.BadInput, "address %q: want an address, or a network such as \"10.0.0.0/8\"", clip(s))
	}
	return p, nil
}

// String returns t as people read it: "user alice, node n1".
func (t LockTarget) String() string {
	var out []string
	add := func(what, value string) {
		if value != "" {
			out = append(out, what+" "+value)
		}
	}
	add("user", string(t.User))
	add("role", string(t.Role))
	add("login", string(t.Login))
	if t.Node == "" {
		add("node", string(t.NodeID))
	}
	add("node", string(t.Node))
	if t.Address.IsValid() {
		add("address", t.Address.String())
	}
	if t.Serial != 0 {
		add("serial", strconv.FormatUint(t.Serial, 10))
	}
	add("request", t.Request)
	return strings.Join(out, ", ")
}

// MaxLockMessage bounds what a lock says to whom it keeps out, in bytes.
const MaxLockMessage = 256

// Check refuses a lock that is not whole. What it says goes to terminals, so it is
// one line of letters, marks and blanks.
func (l Lock) Check() error {
	if _, err := ParseLockID(string(l.ID)); err != nil {
		return err
	}
	if len(l.Message) > MaxLockMessage {
		return fault.New(fault.BadInput, "lock: message of %d bytes: want at most %d", len(l.Message), MaxLockMessage)
	}
	if strings.ContainsFunc(l.Message, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return fault.New(fault.BadInput, "lock: message %q: want one line of text", l.Message)
	}
	return l.Target.Check()
}

// Active reports whether l has not expired at now.
func (l Lock) Active(now time.Time) bool { return l.Expires.IsZero() || now.Before(l.Expires) }

// Sentence is what somebody reads whom l keeps out.
func (l Lock) Sentence() string {
	s := "locked"
	if l.Message != "" {
		s += ": " + l.Message
	}
	if !l.Expires.IsZero() {
		s += " (until " + l.Expires.UTC().Format(time.DateTime+" MST") + ")"
	}
	return s
}

// Refusal returns the error of whom l keeps out. [LockOf] finds l in it.
func (l Lock) Refusal() error { return fault.Wrap(fault.Denied, &lockError{l}, l.Sentence()) }

// lockError says which lock keeps somebody out.
type lockError struct{ lock Lock }

// Error is for the log.
func (e *lockError) Error() string {
	return fmt.Sprintf("lock %s on %s", e.lock.ID, e.lock.Target)
}

// Subject is who or what might be locked out. What is not known yet is zero, and
// no lock on it holds.
type Subject struct {
	// Identity is whose credential it is, and its Addr where they come from. It may
	// have nothing but that.
	Identity *sshca.Identity
	Login    names.Login // on the node
	Node     names.NodeID
	NodeName names.NodeName
}

// holds reports whether t is about s, whose user now has these roles.
func (t LockTarget) holds(s Subject, roles []names.RoleName) bool {
	id := s.Identity
	switch {
	case t.User != "" && t.User != id.User,
		t.Role != "" && !slices.Contains(id.Roles, t.Role) && !slices.Contains(id.For.Roles, t.Role) && !slices.Contains(roles, t.Role),
		t.Login != "" && t.Login != s.Login,
		t.Address.IsValid() && !t.Address.Contains(id.Addr.Unmap().WithZone("")),
		t.Serial != 0 && t.Serial != id.Serial && !slices.Contains(id.For.Serials, t.Serial),
		t.Request != "" && !slices.Contains(id.Requests, t.Request) && !slices.Contains(id.For.Requests, t.Request):
		return false
	}
	return t.Node == "" && t.NodeID == "" || t.isNode(s)
}

// isNode reports whether t is about s's node. A machine that joins again may keep
// its name or its id, and is locked by either.
func (t LockTarget) isNode(s Subject) bool {
	return t.Node != "" && t.Node == s.NodeName || t.NodeID != "" && t.NodeID == s.Node
}

// A lockKey is one thing by which locks are found.
type lockKey struct {
	field  lockField
	text   string
	number uint64
}

type lockField uint8

const (
	lockSerial lockField = iota
	lockRequest
	lockUser
	lockNode // by name and by id
	lockLogin
	lockRole
	lockAddress // all of them
)

// keys returns those under which a lock on t is kept: of what is set, that which
// the fewest have.
func (t LockTarget) keys() []lockKey {
	switch {
	case t.Serial != 0:
		return []lockKey{{field: lockSerial, number: t.Serial}}
	case t.Request != "":
		return []lockKey{{field: lockRequest, text: t.Request}}
	case t.User != "":
		return []lockKey{{field: lockUser, text: string(t.User)}}
	case t.Node != "" || t.NodeID != "":
		var out []lockKey
		for _, text := range []string{string(t.Node), string(t.NodeID)} {
			if text != "" {
				out = append(out, lockKey{field: lockNode, text: text})
			}
		}
		return out
	case t.Login != "":
		return []lockKey{{field: lockLogin, text: string(t.Login)}}
	case t.Role != "":
		return []lockKey{{field: lockRole, text: string(t.Role)}}
	}
	return []lockKey{{field: lockAddress}}
}

// locks are those of one policy, by id and by what they are found with.
type locks struct {
	byID  map[LockID]Lock
	byKey map[lockKey][]LockID
}

func newLocks() locks { return locks{byID: map[LockID]Lock{}, byKey: map[lockKey][]LockID{}} }

func (ls locks) put(l Lock) {
	ls.remove(l.ID)
	ls.byID[l.ID] = l
	for _, k := range l.Target.keys() {
		ls.byKey[k] = append(ls.byKey[k], l.ID)
	}
}

func (ls locks) remove(id LockID) {
	l, ok := ls.byID[id]
	if !ok {
		return
	}
	delete(ls.byID, id)
	for _, k := range l.Target.keys() {
		left := slices.DeleteFunc(ls.byKey[k], func(other LockID) bool { return other == id })
		if ls.byKey[k] = left; len(left) == 0 {
			delete(ls.byKey, k)
		}
	}
}

// find returns a lock that keeps s out at now, whose user has these roles.
func (ls locks) find(s Subject, roles []names.RoleName, now time.Time) (Lock, bool) {
	if len(ls.byID) == 0 || s.Identity == nil {
		return Lock{}, false
	}
	for _, k := range s.lockKeys(roles) {
		for _, id := range ls.byKey[k] {
			if l := ls.byID[id]; l.Active(now) && l.Target.holds(s, roles) {
				return l, true
			}
		}
	}
	return Lock{}, false
}

// lockKeys returns all under which a lock may be kept that is about s.
func (s Subject) lockKeys(roles []names.RoleName) []lockKey {
	id := s.Identity
	const others = 6
	out := make([]lockKey, 0, others+len(id.For.Serials)+len(id.Requests)+len(id.For.Requests)+len(id.Roles)+len(id.For.Roles)+len(roles))
	out = append(out,
		lockKey{field: lockSerial, number: id.Serial},
		lockKey{field: lockUser, text: string(id.User)},
		lockKey{field: lockNode, text: string(s.NodeName)},
		lockKey{field: lockNode, text: string(s.Node)},
		lockKey{field: lockLogin, text: string(s.Login)},
		lockKey{field: lockAddress},
	)
	for _, n := range id.For.Serials {
		out = append(out, lockKey{field: lockSerial, number: n})
	}
	for _, list := range [][]string{id.Requests, id.For.Requests} {
		for _, r := range list {
			out = append(out, lockKey{field: lockRequest, text: r})
		}
	}
	for _, list := range [][]names.RoleName{id.Roles, id.For.Roles, roles} {
		for _, r := range list {
			out = append(out, lockKey{field: lockRole, text: string(r)})
		}
	}
	return out
}

// Locked returns a lock that keeps s out at now.
func (c *Cache) Locked(s Subject, now time.Time) (Lock, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var roles []names.RoleName
	if s.Identity != nil && s.Identity.User != "" {
		roles = c.current.users[s.Identity.User].Roles
	}
	return c.current.locks.find(s, roles, now)
}

// Locks returns all locks, expired ones too, by id.
func (c *Cache) Locks() []Lock {
	return sorted(c, func(p *policy) map[LockID]Lock { return p.locks.byID }, func(l Lock) string { return string(l.ID) })
}

// LockOf returns the id of the lock that err is about, or "".
func LockOf(err error) LockID {
	if e, ok := errors.AsType[*lockError](err); ok {
		return e.lock.ID
	}
	return ""
}
