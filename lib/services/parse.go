package services

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// Bounds of what [ParseRoles] reads.
const (
	maxRolesYAML = 1 << 20 // bytes
	maxRoles     = 128     // roles of one stream, since they are applied in one change
	maxRules     = 64      // rules in one of a role's lists
	maxList      = 64      // entries of a list in a rule
	maxProblems  = 50      // told at once; the rest is counted
	maxSource    = 200     // bytes of a source's name in an error
)

// ParseRoles reads a stream of YAML documents, each one role, and returns the
// roles in their order. It refuses unknown and duplicate fields, wrong types,
// aliases, and words that mean nothing; the [fault.BadInput] error has one line
// "source:LINE: mistake" for each mistake. Empty documents are passed over.
func ParseRoles(source string, data []byte) ([]Role, error) {
	p := &roleParser{source: printable(source), lines: map[names.RoleName]int{}}
	if len(data) > maxRolesYAML {
		return nil, fault.New(fault.BadInput, "%s: %d bytes of roles, want at most %d", p.source, len(data), maxRolesYAML)
	}
	roles := p.stream(data)
	if len(p.problems) == 0 && len(roles) == 0 {
		p.failLine(1, "no role in it")
	}
	if len(p.problems) > 0 {
		return nil, p.err()
	}
	return roles, nil
}

// printable makes a name from a peer fit for an error message.
func printable(source string) string {
	source = strings.ToValidUTF8(source[:min(len(source), maxSource)], "?")
	return strings.Map(func(r rune) rune {
		if !strconv.IsGraphic(r) {
			return '?'
		}
		return r
	}, source)
}

// roleParser walks documents and notes every mistake.
type roleParser struct {
	source   string
	problems []problem
	lines    map[names.RoleName]int // where each role began
}

type problem struct {
	line int
	text string
}

func (p *roleParser) failLine(line int, format string, args ...any) {
	p.problems = append(p.problems, problem{line, fmt.Sprintf(format, args...)})
}

func (p *roleParser) fail(n *yaml.Node, format string, args ...any) {
	p.failLine(n.Line, format, args...)
}

// err returns all problems, by line.
func (p *roleParser) err() error {
	slices.SortStableFunc(p.problems, func(a, b problem) int { return a.line - b.line })
	var out strings.Builder
	for i, pr := range p.problems[:min(len(p.problems), maxProblems)] {
		if i > 0 {
			out.WriteByte('\n')
		}
		fmt.Fprintf(&out, "%s:%d: %s", p.source, pr.line, pr.text)
	}
	if more := len(p.problems) - maxProblems; more > 0 {
		fmt.Fprintf(&out, "\n%s: and %d more", p.source, more)
	}
	return fault.New(fault.BadInput, "%s", out.String())
}

// stream reads all documents.
func (p *roleParser) stream(data []byte) []Role {
	var roles []Role
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return roles
		}
		if err != nil {
			p.syntax(err)
			return nil // where one document is broken the next cannot be found
		}
		for _, root := range doc.Content { // there is one
			if root.ShortTag() != "!!null" {
				roles = append(roles, p.role(root))
			}
		}
		if len(roles) > maxRoles {
			p.fail(&doc, "too many roles: want at most %d at once", maxRoles)
			return nil
		}
	}
}

// syntaxLine finds the line in an error of the YAML parser, which has no type.
var syntaxLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

func (p *roleParser) syntax(err error) {
	line, text := 1, err.Error()
	if m := syntaxLine.FindStringSubmatch(text); m != nil {
		text = m[2]
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
	}
	p.failLine(line, "not YAML: %s", text)
}

// fields calls take for each field of a mapping with the field's value.
func (p *roleParser) fields(n *yaml.Node, what string, take func(key *yaml.Node, value *yaml.Node)) {
	if !p.is(n, yaml.MappingNode, "!!map") {
		p.fail(n, "%s: want a mapping of fields, got %s", what, describe(n))
		return
	}
	seen := map[string]int{}
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if !p.is(key, yaml.ScalarNode, "!!str") {
			p.fail(key, "%s: want a name, got %s; quote it", what, describe(key))
			continue
		}
		if line, twice := seen[key.Value]; twice {
			p.fail(key, "%s: %q stands twice, first in line %d", what, clip(key.Value), line)
			continue
		}
		seen[key.Value] = key.Line
		take(key, value)
	}
}

func (*roleParser) is(n *yaml.Node, kind yaml.Kind, tag string) bool {
	return n.Kind == kind && n.ShortTag() == tag
}

// describe names what n is, for somebody who wrote it.
func describe(n *yaml.Node) string {
	switch n.Kind { //nolint:exhaustive // a document is no value
	case yaml.AliasNode:
		return "an alias (they are not taken)"
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch tag := n.ShortTag(); tag {
	case "!!null":
		return "nothing"
	case "!!str":
		return fmt.Sprintf("%q", clip(n.Value))
	default:
		return fmt.Sprintf("%s (%s)", strconv.Quote(clip(n.Value)), strings.TrimLeft(clip(tag), "!"))
	}
}

// clip bounds a text from the input in an error message.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// text returns a string, or notes that n is none.
func (p *roleParser) text(n *yaml.Node, what string) (string, bool) {
	if !p.is(n, yaml.ScalarNode, "!!str") {
		p.fail(n, "%s: want text, got %s; quote it", what, describe(n))
		return "", false
	}
	return n.Value, true
}

// list calls take for each text of a list.
func (p *roleParser) list(n *yaml.Node, what string, take func(*yaml.Node, string)) {
	if !p.is(n, yaml.SequenceNode, "!!seq") {
		p.fail(n, "%s: want a list, such as [a, b], got %s", what, describe(n))
		return
	}
	if len(n.Content) == 0 || len(n.Content) > maxList {
		p.fail(n, "%s: want 1 to %d entries", what, maxList)
		return
	}
	seen := map[string]bool{}
	for _, entry := range n.Content {
		s, ok := p.text(entry, what)
		if !ok {
			continue
		}
		if seen[s] {
			p.fail(entry, "%s: %q stands twice", what, clip(s))
			continue
		}
		seen[s] = true
		take(entry, s)
	}
}

// words returns the entries of a list, each one of known or "*".
func (p *roleParser) words(n *yaml.Node, what string, known []string) []string {
	var out []string
	p.list(n, what, func(entry *yaml.Node, s string) {
		if s != wildcard && !slices.Contains(known, s) {
			p.fail(entry, "%s: %q is not one of %s", what, clip(s), strings.Join(known, ", "))
			return
		}
		out = append(out, s)
	})
	return out
}

func (p *roleParser) role(n *yaml.Node) Role {
	var r Role
	p.fields(n, "role", func(key, value *yaml.Node) {
		switch key.Value {
		case "kind":
			if kind, ok := p.text(value, "kind"); ok && kind != KindRole {
				p.fail(value, `kind: want "role", got %q`, clip(kind))
			}
		case "name":
			r.Name = p.roleName(value)
		case "allow":
			r.Allow = p.rules(value, "allow", checkAllow)
		case "deny":
			r.Deny = p.rules(value, "deny", checkDeny)
		case "options":
			r.Options = p.options(value)
		case "requests":
			r.Requests = p.requestRules(value)
		case "review":
			r.Review = p.reviewRules(value)
		default:
			p.fail(key, "unknown field %q in a role", clip(key.Value))
		}
	})
	if n.Kind == yaml.MappingNode {
		p.complete(n)
	}
	return r
}

// complete notes which fields a role lacks.
func (p *roleParser) complete(n *yaml.Node) {
	has := func(name string) bool {
		for i := 0; i < len(n.Content); i += 2 {
			if n.Content[i].Value == name {
				return true
			}
		}
		return false
	}
	if !has("kind") {
		p.fail(n, `a role begins with "kind: role"`)
	}
	if !has("name") {
		p.fail(n, "a role needs a name")
	}
	if !has("allow") && !has("deny") && !has("requests") && !has("review") {
		p.fail(n, "a role needs rules under allow, deny, requests or review")
	}
}

func (p *roleParser) roleName(n *yaml.Node) names.RoleName {
	s, ok := p.text(n, "name")
	if !ok {
		return ""
	}
	name, err := names.ParseRoleName(s)
	if err != nil {
		p.fail(n, "name: %v", err)
		return ""
	}
	if line, twice := p.lines[name]; twice {
		p.fail(n, "name: role %q stands twice, first in line %d", name, line)
	}
	p.lines[name] = n.Line
	return name
}

// rules reads a list of rules; check says what is missing in one.
func (p *roleParser) rules(n *yaml.Node, what string, check func(Rule) string) []Rule {
	if !p.is(n, yaml.SequenceNode, "!!seq") {
		p.fail(n, "%s: want a list of rules, got %s", what, describe(n))
		return nil
	}
	if len(n.Content) == 0 || len(n.Content) > maxRules {
		p.fail(n, "%s: want 1 to %d rules", what, maxRules)
		return nil
	}
	var out []Rule
	for _, entry := range n.Content {
		before := len(p.problems)
		r := p.rule(entry, what)
		if len(p.problems) > before {
			continue // what is missing shows when the rest is right
		}
		if missing := check(r); missing != "" {
			p.fail(entry, "%s: %s", what, missing)
		}
		out = append(out, r)
	}
	return out
}

func (p *roleParser) rule(n *yaml.Node, what string) Rule {
	var r Rule
	p.fields(n, what, func(key, value *yaml.Node) {
		switch key.Value {
		case "nodes":
			r.Nodes = p.selector(value)
		case "logins":
			r.Logins = p.logins(value)
		case "actions":
			r.Actions = p.words(value, "actions", Actions())
		case "resources":
			r.Resources = p.resources(value)
		case "forward_to":
			r.ForwardTo = p.forwards(value)
		case "commands":
			r.Commands = p.commands(value)
		default:
			p.fail(key, "unknown field %q in a rule", clip(key.Value))
		}
	})
	return r
}

// checkAllow returns what is wrong with an allow rule as a whole, or "". It
// grants only what it names.
func checkAllow(r Rule) string {
	if r.aboutNodes() && len(r.Resources) == 0 && (r.Nodes.IsZero() || len(r.Logins) == 0 || len(r.Actions) == 0) {
		return "a rule about nodes needs nodes, logins and actions"
	}
	if wrong := cmp.Or(checkForwards(r, false), checkCommands(r, false)); wrong != "" {
		return wrong
	}
	return checkSubject(r)
}

// checkDeny returns what is wrong with a deny rule as a whole, or "". What it
// does not name it denies in every form.
func checkDeny(r Rule) string {
	if wrong := cmp.Or(checkForwards(r, true), checkCommands(r, true)); wrong != "" {
		return wrong
	}
	return checkSubject(r)
}

// checkSubject returns what is wrong with what r is about, or "".
func checkSubject(r Rule) string {
	switch {
	case r.aboutNodes() && len(r.Resources) > 0:
		return "a rule is about nodes or about resources; make two of it"
	case !r.aboutNodes() && len(r.Resources) == 0:
		return "an empty rule; it needs nodes, logins and actions, or resources"
	}
	return ""
}

func (r Rule) aboutNodes() bool {
	return !r.Nodes.IsZero() || len(r.Logins) > 0 || len(r.Actions) > 0 || len(r.ForwardTo) > 0 || len(r.Commands) > 0
}

// selector reads label conditions: "*", or a mapping from keys to a value or a
// list of values.
func (p *roleParser) selector(n *yaml.Node) LabelSelector {
	if n.Kind == yaml.ScalarNode && n.Value == wildcard && n.ShortTag() == "!!str" {
		return LabelSelector{all: true}
	}
	var s LabelSelector
	p.fields(n, "nodes", func(key, value *yaml.Node) {
		var values []string
		before := len(p.problems)
		if value.Kind == yaml.SequenceNode {
			p.list(value, "label "+strconv.Quote(clip(key.Value)), func(_ *yaml.Node, v string) { values = append(values, v) })
		} else if v, ok := p.text(value, "label "+strconv.Quote(clip(key.Value))); ok {
			values = []string{v}
		}
		if len(p.problems) > before {
			return
		}
		if err := s.add(key.Value, values); err != nil {
			p.fail(value, "nodes: %v", err)
		}
	})
	switch {
	case n.Kind == yaml.MappingNode && len(n.Content) == 0:
		p.fail(n, `nodes: want labels, or "*" for every node`)
	case len(s.terms) > maxTerms:
		p.fail(n, "nodes: want at most %d label keys", maxTerms)
	}
	slices.SortFunc(s.terms, func(a, b term) int { return strings.Compare(a.key, b.key) })
	return s
}

func (p *roleParser) logins(n *yaml.Node) []string {
	var out []string
	p.list(n, "logins", func(entry *yaml.Node, s string) {
		if _, err := names.ParseLogin(s); err != nil && !isTemplate(s) {
			p.fail(entry, "logins: %q is no login and neither %s nor {{user.traits.NAME}}", clip(s), loginsTemplate)
			return
		}
		out = append(out, s)
	})
	return out
}

func (p *roleParser) forwards(n *yaml.Node) []ForwardPattern {
	var out []ForwardPattern
	p.list(n, "forward_to", func(entry *yaml.Node, s string) {
		pattern, err := ParseForwardPattern(s)
		if err != nil {
			p.fail(entry, "forward_to: %v", err)
			return
		}
		out = append(out, pattern)
	})
	return out
}

func (p *roleParser) commands(n *yaml.Node) []CommandPattern {
	var out []CommandPattern
	p.list(n, "commands", func(entry *yaml.Node, s string) {
		pattern, err := ParseCommandPattern(s)
		if err != nil {
			p.fail(entry, "commands: %v", err)
			return
		}
		out = append(out, pattern)
	})
	return out
}

func (p *roleParser) resources(n *yaml.Node) map[string][]string {
	known := Resources()
	out := map[string][]string{}
	p.fields(n, "resources", func(key, value *yaml.Node) {
		if key.Value != wildcard && !slices.Contains(known, key.Value) {
			p.fail(key, "resources: %q is not one of %s", clip(key.Value), strings.Join(known, ", "))
			return
		}
		out[key.Value] = p.words(value, "resources", Verbs())
	})
	return out
}

func (p *roleParser) options(n *yaml.Node) RoleOptions {
	var o RoleOptions
	p.fields(n, "options", func(key, value *yaml.Node) {
		switch key.Value {
		case "session_ttl":
			o.SessionTTL = p.duration(value, "session_ttl")
		case "idle_timeout":
			o.IdleTimeout = p.duration(value, "idle_timeout")
		case "max_sessions":
			o.MaxSessions = p.count(value, "max_sessions")
		case "pin_source":
			o.PinSource = p.boolean(value, "pin_source")
		case "plain_keys":
			o.PlainKeys = p.boolean(value, "plain_keys")
		case "create_account":
			o.CreateAccount = p.createAccount(value)
		case "record":
			o.Record = p.recording(value)
		case "record_input":
			o.RecordInput = p.boolean(value, "record_input")
		case "mfa":
			o.MFA = p.mfa(value)
		case "key":
			o.Key = p.securityKey(value)
		case "locks":
			o.Locks = p.lockMode(value)
		default:
			p.fail(key, "unknown field %q in options", clip(key.Value))
		}
	})
	return o
}

func (p *roleParser) mfa(n *yaml.Node) MFA {
	s, ok := p.text(n, "mfa")
	if ok && MFA(s) != MFASession {
		p.fail(n, "mfa: want %s, got %q", MFASession, clip(s))
	}
	return MFA(s)
}

func (p *roleParser) securityKey(n *yaml.Node) sshca.SecurityKey {
	s, ok := p.text(n, "key")
	k := sshca.SecurityKey(s)
	if ok && k != sshca.SecurityKeyTouch && k != sshca.SecurityKeyPIN {
		p.fail(n, "key: want %s or %s, got %q", sshca.SecurityKeyTouch, sshca.SecurityKeyPIN, clip(s))
	}
	return k
}

func (p *roleParser) boolean(n *yaml.Node, what string) bool {
	if !p.is(n, yaml.ScalarNode, "!!bool") {
		p.fail(n, "%s: want true or false, got %s", what, describe(n))
	}
	return strings.EqualFold(n.Value, "true")
}

func (p *roleParser) duration(n *yaml.Node, what string) time.Duration {
	d, err := time.ParseDuration(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || d < time.Second {
		p.fail(n, "%s: want a duration of at least a second, such as 30m or 8h, got %s", what, describe(n))
		return 0
	}
	return d
}

func (p *roleParser) count(n *yaml.Node, what string) int {
	c, err := strconv.Atoi(n.Value)
	if !p.is(n, yaml.ScalarNode, "!!int") || err != nil || c < 1 {
		p.fail(n, "%s: want a number from 1 on, got %s", what, describe(n))
		return 0
	}
	return c
}
