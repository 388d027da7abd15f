package services

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// KindElevation is what an approved access request gives, on a policy stream,
// named by the request's id.
const KindElevation = "elevation"

// Bounds of access requests.
const (
	// MaxElevation is the longest that a request may give anything.
	MaxElevation = 7 * 24 * time.Hour
	// maxRequestRoles bounds the roles of one request.
	maxRequestRoles = 16
	// maxOpenRequests bounds the requests of one person that have not ended; a
	// certificate has room for as many.
	maxOpenRequests = 8
	// maxReviews bounds what is kept of what reviewers said.
	maxReviews = 32
	// maxRequestText bounds a reason or a note, in bytes.
	maxRequestText = 1 << 10
	// maxApprovalCount bounds how many approvals a set may ask for.
	maxApprovalCount = 16
)

// RequestRule says what the holders of a role may ask for and who has to agree.
// Where several rules are about one role all of them hold: every set of
// approvals, the shortest time.
type RequestRule struct {
	Roles []names.RoleName `json:"roles"` // that may be asked for
	// Nodes limits requests to ones for a single node among these; zero means
	// that the roles may be asked for as they are, or for any one node.
	Nodes            LabelSelector `json:"nodes,omitzero"`
	MaxTTL           time.Duration `json:"max_ttl,omitempty"`   // 0 means [MaxElevation]
	Approvals        []ApprovalSet `json:"approvals,omitempty"` // none means one, of anybody who may review
	RequireSignature bool          `json:"require_signature,omitempty"`
}

// ApprovalSet asks for a number of approvals by holders of one of some roles.
// Nobody counts in two sets.
type ApprovalSet struct {
	Roles []names.RoleName `json:"roles,omitempty"` // none means of anybody who may review
	Count int              `json:"count"`
}

// Takes reports whether the approval of somebody with these roles counts in s.
func (s ApprovalSet) Takes(roles []names.RoleName) bool {
	return len(s.Roles) == 0 || slices.ContainsFunc(s.Roles, func(r names.RoleName) bool { return slices.Contains(roles, r) })
}

// String returns s as in "2 of lead, security".
func (s ApprovalSet) String() string {
	if len(s.Roles) == 0 {
		return fmt.Sprintf("%d of any reviewer", s.Count)
	}
	list := make([]string, len(s.Roles))
	for i, r := range s.Roles {
		list[i] = string(r)
	}
	return fmt.Sprintf("%d of %s", s.Count, strings.Join(list, ", "))
}

// ReviewRule says which requests the holders of a role may review: those for no
// other roles than these.
type ReviewRule struct {
	Roles []string `json:"roles"` // names, or "*"
}

// Covers reports whether r is about all of roles.
func (r ReviewRule) Covers(roles []names.RoleName) bool {
	return !slices.ContainsFunc(roles, func(name names.RoleName) bool {
		return !slices.Contains(r.Roles, wildcard) && !slices.Contains(r.Roles, string(name))
	})
}

// RequestState says how far an access request has come.
type RequestState string

// The states. All but the first two are ends.
const (
	RequestPending  RequestState = "pending"
	RequestApproved RequestState = "approved" // it gives what it asks for until its end
	RequestDenied   RequestState = "denied"
	RequestDropped  RequestState = "dropped"
	RequestExpired  RequestState = "expired"
)

// The verdicts of a review.
const (
	VerdictApprove = "approve"
	VerdictDeny    = "deny"
)

// What proves a review.
const (
	ProofSignature  = "signature"  // of the statement, by the reviewer's key
	ProofConnection = "connection" // the reviewer's certificate let the connection in
	ProofAPIToken   = "api_token"  // a token of the reviewer's, made with that certificate
)

// AccessRequest asks for roles for a while.
type AccessRequest struct {
	ID       string           `json:"id"`
	User     names.UserName   `json:"user"`
	Roles    []names.RoleName `json:"roles"`               // sorted
	Node     names.NodeID     `json:"node,omitempty"`      // the only one they are for; "" is all they reach
	NodeName names.NodeName   `json:"node_name,omitempty"` // as it was then
	Reason   string           `json:"reason"`
	TTL      time.Duration    `json:"ttl"` // from the approval
	Created  time.Time        `json:"created"`
	Deadline time.Time        `json:"deadline"` // of the approval
	State    RequestState     `json:"state"`
	Until    time.Time        `json:"until,omitzero"` // end of what it gives, once approved
	Ended    time.Time        `json:"ended,omitzero"`
	EndedBy  string           `json:"ended_by,omitempty"`
	Reviews  []Review         `json:"reviews,omitempty"`

	Revision int64 `json:"-"`
}

// Review is what one person said about a request.
type Review struct {
	By          names.UserName `json:"by"`
	Verdict     string         `json:"verdict"`
	Note        string         `json:"note,omitempty"`
	Time        time.Time      `json:"time"`
	Proof       string         `json:"proof"`
	Statement   string         `json:"statement"`
	Signature   string         `json:"signature,omitempty"`   // armored
	Certificate string         `json:"certificate,omitempty"` // of By, authorized_keys format
	PublicKey   string         `json:"public_key,omitempty"`  // that signed, or that the certificate is for; same format
	Fingerprint string         `json:"fingerprint"`           // of it
	Client      string         `json:"client,omitempty"`
}

// Open reports whether r has not ended.
func (r AccessRequest) Open() bool { return r.State == RequestPending || r.State == RequestApproved }

// Ends returns when an open r ends by itself.
func (r AccessRequest) Ends() time.Time {
	if r.State == RequestApproved {
		return r.Until
	}
	return r.Deadline
}

// Check returns a [fault.BadInput] error unless every part of r that comes from
// people keeps its grammar and its bound.
func (r AccessRequest) Check() error {
	if err := names.CheckRequestID(r.ID); err != nil {
		return err
	}
	if _, err := names.ParseUserName(string(r.User)); err != nil {
		return err
	}
	if len(r.Roles) == 0 || len(r.Roles) > maxRequestRoles {
		return fault.New(fault.BadInput, "access request: %d roles, want 1 to %d", len(r.Roles), maxRequestRoles)
	}
	for i, name := range r.Roles {
		if _, err := names.ParseRoleName(string(name)); err != nil {
			return err
		}
		if i > 0 && r.Roles[i-1] >= name {
			return fault.New(fault.BadInput, "access request: role %q stands twice, or out of order", name)
		}
	}
	if r.TTL < time.Second || r.TTL > MaxElevation {
		return fault.New(fault.BadInput, "access request: a time of %v, want 1s to %v", r.TTL, MaxElevation)
	}
	if len(r.Reviews) > maxReviews {
		return fault.New(fault.Conflict, "access request: %d reviews, there is room for %d", len(r.Reviews), maxReviews)
	}
	if r.Reason == "" {
		return fault.New(fault.BadInput, "access request: want a reason")
	}
	return CheckRequestText("reason", r.Reason)
}

// CheckRequestText returns a [fault.BadInput] error unless s, which what names, is
// one line of a bounded length that shows as what it is.
func CheckRequestText(what, s string) error {
	if len(s) > maxRequestText {
		return fault.New(fault.BadInput, "%s: %d bytes, want at most %d", what, len(s), maxRequestText)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(c rune) bool { return unicode.In(c, unicode.C, unicode.Zl, unicode.Zp) }) {
		return fault.New(fault.BadInput, "%s: want one line of UTF-8 without control or format characters", what)
	}
	return nil
}

// Statement returns the text that a reviewer signs: exactly what is asked for,
// by whom, and what the reviewer says to it. Its form is that of version 1 for
// ever, so that old signatures can be checked.
func (r AccessRequest) Statement(cluster string, by names.UserName, verdict, note string) string {
	roles := make([]string, len(r.Roles))
	for i, name := range r.Roles {
		roles[i] = string(name)
	}
	node := "-"
	if r.Node != "" {
		node = string(r.Node) + " " + string(r.NodeName)
	}
	var b strings.Builder
	for _, line := range [][2]string{
		{"cluster", cluster},
		{"request", r.ID},
		{"user", string(r.User)},
		{"roles", strings.Join(roles, ",")},
		{"node", node},
		{"ttl", r.TTL.String()},
		{"reason", quoted(r.Reason)},
		{"created", r.Created.UTC().Format(time.RFC3339Nano)},
		{"deadline", r.Deadline.UTC().Format(time.RFC3339Nano)},
		{"reviewer", string(by)},
		{"verdict", verdict},
		{"note", quoted(note)},
	} {
		b.WriteString(line[0] + ": " + line[1] + "\n")
	}
	return "accessd access request 1\n" + b.String()
}

// quoted returns s, which CheckRequestText lets through, as a JSON text.
func quoted(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("services: internal error: encode a text: %v", err))
	}
	return string(b)
}

// Elevation is what an approved request gives, for as long as it stands. It is
// public, and on policy streams: a certificate names it, and no decision counts
// what is not there any more.
type Elevation struct {
	ID    string           `json:"id"` // the request's
	User  names.UserName   `json:"user"`
	Roles []names.RoleName `json:"roles"`
	Node  names.NodeID     `json:"node,omitempty"` // the only one they are for
	Until time.Time        `json:"until"`
	Asked time.Time        `json:"asked"` // when the request was made

	Revision int64 `json:"-"`
}

// Is reports whether g is u's, and not that of somebody who had the name before.
func (g Elevation) Is(u User) bool { return g.User == u.Name && !u.Created.After(g.Asked) }

// elevation returns what r gives.
func (r AccessRequest) elevation() Elevation {
	return Elevation{ID: r.ID, User: r.User, Roles: r.Roles, Node: r.Node, Until: r.Until, Asked: r.Created}
}

// requestRules reads the section requests of a role.
func (p *roleParser) requestRules(n *yaml.Node) []RequestRule {
	var out []RequestRule
	p.entries(n, "requests", func(entry *yaml.Node) {
		var r RequestRule
		p.fields(entry, "requests", func(key, value *yaml.Node) {
			switch key.Value {
			case "roles":
				r.Roles = p.roleNames(value, "roles")
			case "nodes":
				r.Nodes = p.selector(value)
			case "max_ttl":
				r.MaxTTL = p.duration(value, "max_ttl")
				if r.MaxTTL > MaxElevation {
					p.fail(value, "max_ttl: want at most %v", MaxElevation)
				}
			case "approvals":
				r.Approvals = p.approvals(value)
			case "require_signature":
				r.RequireSignature = p.boolean(value, "require_signature")
			default:
				p.fail(key, "unknown field %q in a request rule", clip(key.Value))
			}
		})
		if len(r.Roles) == 0 {
			p.fail(entry, "requests: a rule needs roles that may be asked for")
		}
		out = append(out, r)
	})
	return out
}

func (p *roleParser) approvals(n *yaml.Node) []ApprovalSet {
	var out []ApprovalSet
	p.entries(n, "approvals", func(entry *yaml.Node) {
		s := ApprovalSet{Count: 1}
		p.fields(entry, "approvals", func(key, value *yaml.Node) {
			switch key.Value {
			case "roles":
				s.Roles = p.roleNames(value, "roles")
			case "count":
				if s.Count = p.count(value, "count"); s.Count > maxApprovalCount {
					p.fail(value, "count: want at most %d", maxApprovalCount)
				}
			default:
				p.fail(key, "unknown field %q in a set of approvals", clip(key.Value))
			}
		})
		out = append(out, s)
	})
	return out
}

// reviewRules reads the section review of a role.
func (p *roleParser) reviewRules(n *yaml.Node) []ReviewRule {
	var out []ReviewRule
	p.entries(n, "review", func(entry *yaml.Node) {
		var r ReviewRule
		p.fields(entry, "review", func(key, value *yaml.Node) {
			if key.Value != "roles" {
				p.fail(key, "unknown field %q in a review rule", clip(key.Value))
				return
			}
			p.list(value, "roles", func(at *yaml.Node, s string) {
				if _, err := names.ParseRoleName(s); err != nil && s != wildcard {
					p.fail(at, "roles: %v", err)
				}
				r.Roles = append(r.Roles, s)
			})
		})
		if len(r.Roles) == 0 {
			p.fail(entry, "review: a rule needs the roles whose requests may be reviewed")
		}
		out = append(out, r)
	})
	return out
}

// entries calls take for each entry of a list of mappings.
func (p *roleParser) entries(n *yaml.Node, what string, take func(*yaml.Node)) {
	if !p.is(n, yaml.SequenceNode, "!!seq") {
		p.fail(n, "%s: want a list of rules, got %s", what, describe(n))
		return
	}
	if len(n.Content) == 0 || len(n.Content) > maxRules {
		p.fail(n, "%s: want 1 to %d rules", what, maxRules)
		return
	}
	for _, entry := range n.Content {
		take(entry)
	}
}

func (p *roleParser) roleNames(n *yaml.Node, what string) []names.RoleName {
	var out []names.RoleName
	p.list(n, what, func(at *yaml.Node, s string) {
		name, err := names.ParseRoleName(s)
		if err != nil {
			p.fail(at, "%s: %v", what, err)
			return
		}
		out = append(out, name)
	})
	return out
}

// requestDoc is a [RequestRule] as it stands in YAML.
type requestDoc struct {
	Roles            []names.RoleName    `yaml:"roles,flow"`
	Nodes            map[string][]string `yaml:"nodes,omitempty,flow"`
	MaxTTL           string              `yaml:"max_ttl,omitempty"`
	Approvals        []approvalDoc       `yaml:"approvals,omitempty"`
	RequireSignature bool                `yaml:"require_signature,omitempty"`
}

type approvalDoc struct {
	Roles []names.RoleName `yaml:"roles,omitempty,flow"`
	Count int              `yaml:"count"`
}

// reviewDoc is a [ReviewRule] as it stands in YAML.
type reviewDoc struct {
	Roles []string `yaml:"roles,flow"`
}

func requestDocs(rules []RequestRule) []requestDoc {
	out := make([]requestDoc, len(rules))
	for i, r := range rules {
		out[i] = requestDoc{Roles: r.Roles, Nodes: r.Nodes.values(), MaxTTL: shortDuration(r.MaxTTL), RequireSignature: r.RequireSignature}
		for _, s := range r.Approvals {
			out[i].Approvals = append(out[i].Approvals, approvalDoc(s))
		}
	}
	return out
}

func reviewDocs(rules []ReviewRule) []reviewDoc {
	out := make([]reviewDoc, len(rules))
	for i, r := range rules {
		out[i] = reviewDoc(r)
	}
	return out
}
