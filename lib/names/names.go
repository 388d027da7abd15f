// Package names holds the names and ids of a cluster's things, each a type of
// its own with one grammar.
//
// A Parse function is the only way a peer's or a person's text becomes a name;
// what it returns needs no further check. The grammars leave out every
// character that routing, lists, shells or terminals give a meaning to, so a
// name can be joined with any of @ % + : / , without ambiguity.
package names

import (
	"crypto/rand"
	"net/netip"
	"regexp"
	"strings"

	"github.com/google/uuid"

	"github.com/accessd/accessd/lib/fault"
)

// UserName names a person or a bot in the cluster.
type UserName string

// Login names an operating-system account on a node.
type Login string

// RoleName names a role.
type RoleName string

// NodeName names a node; it is a lower-case host name (RFC 1123, section 2.1).
type NodeName string

// NodeID identifies a node, a proxy or an authority for as long as it keeps its
// data; a UUID (RFC 9562) in lower case.
type NodeID string

// SessionID identifies one session; a UUID version 4 made by the node.
type SessionID string

// The grammars. Lengths are in bytes.
var (
	userGrammar  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,62}$`)
	loginGrammar = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,31}\$?$`)
	roleGrammar  = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	nodeGrammar  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	keyGrammar   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`)
	valueGrammar = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9 ._:/@+-]{0,126}[A-Za-z0-9])?$`)
)

// maxNodeName is the longest host name a resolver takes (RFC 1035, section
// 2.3.4), in bytes.
const maxNodeName = 253

func bad(what, s, rule string) error {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return fault.New(fault.BadInput, "%s %q: %s", what, s, rule)
}

// ParseUserName returns s as a user name or a [fault.BadInput] error.
func ParseUserName(s string) (UserName, error) {
	if !userGrammar.MatchString(s) {
		return "", bad("user name", s, "want 1 to 63 of A-Z a-z 0-9 . _ -, not beginning with . or -")
	}
	return UserName(s), nil
}

// ParseLogin returns s as a login or a [fault.BadInput] error.
func ParseLogin(s string) (Login, error) {
	if !loginGrammar.MatchString(s) {
		return "", bad("login", s, "want 1 to 32 of A-Z a-z 0-9 . _ -, not beginning with . or -")
	}
	return Login(s), nil
}

// ParseRoleName returns s as a role name or a [fault.BadInput] error.
func ParseRoleName(s string) (RoleName, error) {
	if !roleGrammar.MatchString(s) {
		return "", bad("role name", s, "want 1 to 63 of a-z 0-9 . _ -, not beginning with . or -")
	}
	return RoleName(s), nil
}

// ParseNodeName returns s as a node name or a [fault.BadInput] error. A name
// that could be taken for an address, for a UUID or for this machine is refused.
func ParseNodeName(s string) (NodeName, error) {
	if len(s) > maxNodeName || !nodeGrammar.MatchString(s) {
		return "", bad("node name", s, "want a lower-case host name: a-z 0-9 - in labels of at most 63, joined by dots")
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return "", bad("node name", s, "an address cannot be a name")
	}
	if _, err := uuid.Parse(s); err == nil {
		return "", bad("node name", s, "a UUID cannot be a name")
	}
	if s == "localhost" || strings.HasSuffix(s, ".localhost") {
		return "", bad("node name", s, "localhost is every machine's own name (RFC 6761, section 6.3)")
	}
	return NodeName(s), nil
}

// ParseNodeID returns s as a node id or a [fault.BadInput] error.
func ParseNodeID(s string) (NodeID, error) {
	if !isUUID(s) {
		return "", bad("node id", s, "want a lower-case UUID")
	}
	return NodeID(s), nil
}

// ParseSessionID returns s as a session id or a [fault.BadInput] error.
func ParseSessionID(s string) (SessionID, error) {
	if !isUUID(s) {
		return "", bad("session id", s, "want a lower-case UUID")
	}
	return SessionID(s), nil
}

// CheckRequestID returns a [fault.BadInput] error unless s has the form of an
// access request's id.
func CheckRequestID(s string) error {
	if !isUUID(s) {
		return bad("request id", s, "want a lower-case UUID")
	}
	return nil
}

// NewRequestID returns a fresh random id of an access request.
func NewRequestID() string { return uuid.NewString() }

// NewNodeID returns a fresh random node id.
func NewNodeID() NodeID { return NodeID(uuid.NewString()) }

// NewSessionID returns a fresh random session id.
func NewSessionID() SessionID { return SessionID(uuid.NewString()) }

// NewSecret returns a fresh secret of 256 random bits as 52 characters of
// lower-case base32, for tokens, invites and tickets.
func NewSecret() string {
	return strings.ToLower(rand.Text() + rand.Text())
}

func isUUID(s string) bool {
	u, err := uuid.Parse(s)
	return err == nil && u.String() == s
}

// Labels are a node's labels; keys and values keep [ParseLabels]'s grammar.
type Labels map[string]string

// maxLabels bounds the labels of one node.
const maxLabels = 64

// ParseLabels reads "key=value,key=value"; an empty s means none.
func ParseLabels(s string) (Labels, error) {
	l := Labels{}
	if s == "" {
		return l, nil
	}
	for pair := range strings.SplitSeq(s, ",") {
		k, v, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, bad("label", pair, "want key=value")
		}
		if _, twice := l[k]; twice {
			return nil, bad("label", pair, "the key stands twice")
		}
		l[k] = v
	}
	return l, l.Check()
}

// Check returns a [fault.BadInput] error unless every key and value of l keeps
// the grammar and l is not too large.
func (l Labels) Check() error {
	if len(l) > maxLabels {
		return fault.New(fault.BadInput, "%d labels: want at most %d", len(l), maxLabels)
	}
	for k, v := range l {
		if !keyGrammar.MatchString(k) {
			return bad("label key", k, "want 1 to 63 of A-Z a-z 0-9 . _ / -, beginning and ending with a letter or digit")
		}
		if !valueGrammar.MatchString(v) {
			return bad("label value", v, "want 1 to 128 letters, digits, spaces or . _ : / @ + -, beginning and ending with a letter or digit")
		}
	}
	return nil
}
