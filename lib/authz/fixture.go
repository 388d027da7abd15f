package authz

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// KindRoleTest is the kind of a document of fixtures.
const KindRoleTest = "role_test"

// maxFixtures bounds the bytes of a stream of fixtures.
const maxFixtures = 1 << 20

// A Fixture says what roles have to answer to users and about nodes that need not
// be there.
type Fixture struct {
	Kind  string                          `yaml:"kind"`
	Users map[names.UserName]FixtureUser  `yaml:"users"`
	Nodes map[names.NodeName]names.Labels `yaml:"nodes"`
	Tests []Expectation                   `yaml:"tests"`
}

// FixtureUser is a user as a fixture has it.
type FixtureUser struct {
	Roles  []names.RoleName    `yaml:"roles"`
	Logins []names.Login       `yaml:"logins"`
	Traits map[string][]string `yaml:"traits"`
}

// Expectation is one question and its answer.
type Expectation struct {
	User     names.UserName `yaml:"user"`
	Node     names.NodeName `yaml:"node"`
	Login    names.Login    `yaml:"login"`
	Action   Action         `yaml:"action"`
	Command  string         `yaml:"command"`
	Target   string         `yaml:"target"`
	Resource string         `yaml:"resource"`
	Verb     string         `yaml:"verb"`
	Allow    *bool          `yaml:"allow"`
	Rule     string         `yaml:"rule"` // "": whichever

	Line int `yaml:"-"` // where it stands
}

// UnmarshalYAML notes the line of e, and refuses fields that are none.
func (e *Expectation) UnmarshalYAML(n *yaml.Node) error {
	type plain Expectation
	var fields yaml.Node
	fields.Kind, fields.Content = yaml.DocumentNode, []*yaml.Node{n}
	text, err := yaml.Marshal(&fields)
	if err != nil {
		return err
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode((*plain)(e)); err != nil {
		return fmt.Errorf("line %d: %s", n.Line, strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\n", ""), "yaml: unmarshal errors:"))
	}
	e.Line = n.Line
	return nil
}

// String returns e as a sentence's subject.
func (e Expectation) String() string {
	if e.Resource != "" {
		return fmt.Sprintf("%s: %s %s", e.User, e.Verb, e.Resource)
	}
	s := fmt.Sprintf("%s: %s as %s@%s", e.User, e.Action, e.Login, e.Node)
	if what := cmp.Or(e.Command, e.Target); what != "" {
		s += fmt.Sprintf(" %q", what)
	}
	return s
}

// Outcome is what roles answered to an expectation.
type Outcome struct {
	Expectation

	Got  Decision
	Good bool
}

// ParseFixtures reads a stream of YAML documents, each a [Fixture]. Its errors
// are a [fault.BadInput] that names source and line.
func ParseFixtures(source string, data []byte) ([]Fixture, error) {
	if len(data) > maxFixtures {
		return nil, fault.New(fault.BadInput, "%s: %d bytes of fixtures, want at most %d", source, len(data), maxFixtures)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	var out []Fixture
	for {
		var f Fixture
		err := dec.Decode(&f)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fault.New(fault.BadInput, "%s: %s", source, strings.TrimPrefix(err.Error(), "yaml: "))
		}
		if f.Kind != KindRoleTest {
			return nil, fault.New(fault.BadInput, "%s: kind %.40q: want %s", source, f.Kind, KindRoleTest)
		}
		for _, e := range f.Tests {
			if err := f.check(e); err != nil {
				return nil, fault.New(fault.BadInput, "%s:%d: %w", source, e.Line, err)
			}
		}
		out = append(out, f)
	}
	if !slices.ContainsFunc(out, func(f Fixture) bool { return len(f.Tests) > 0 }) {
		return nil, fault.New(fault.BadInput, "%s: no test in it", source)
	}
	return out, nil
}

// check returns what is wrong with e, one of f's tests.
func (f Fixture) check(e Expectation) error {
	_, user := f.Users[e.User]
	_, node := f.Nodes[e.Node]
	onNode := e.Node != "" || e.Login != "" || e.Action != "" || e.Command != "" || e.Target != ""
	onResource := e.Resource != "" || e.Verb != ""
	switch {
	case !user:
		return fmt.Errorf("there is no user %.80q among its users", e.User)
	case e.Allow == nil:
		return errors.New("allow is missing")
	case onNode == onResource:
		return errors.New("want either node, login and action, or resource and verb")
	case onNode && !node:
		return fmt.Errorf("there is no node %.80q among its nodes", e.Node)
	case onNode && (e.Login == "" || !slices.Contains(services.Actions(), string(e.Action))):
		return fmt.Errorf("login %.80q and action %.80q: want a login, and one of %s", e.Login, e.Action, strings.Join(services.Actions(), ", "))
	case e.Command != "" && e.Action != ActionExec:
		return fmt.Errorf("command goes with action %s", ActionExec)
	case e.Target != "" && e.Action != ActionForwardLocal:
		return fmt.Errorf("target goes with action %s", ActionForwardLocal)
	case onResource && (!slices.Contains(services.Resources(), e.Resource) || !slices.Contains(services.Verbs(), e.Verb)):
		return fmt.Errorf("there is no resource %.80q to %.80q", e.Resource, e.Verb)
	}
	_, err := ParseTarget(e.Target)
	return err
}

// Run asks roles what f's tests ask. Each user has a fresh certificate and a second
// factor.
func (f Fixture) Run(roles map[names.RoleName]services.Role) ([]Outcome, error) {
	p := Fixed{Roles: roles, Users: map[names.UserName]services.User{}}
	for name, u := range f.Users {
		user := services.User{Name: name, Roles: u.Roles, Logins: u.Logins, Traits: u.Traits}
		if err := user.Check(); err != nil {
			return nil, err
		}
		for _, r := range u.Roles {
			if _, ok := roles[r]; !ok {
				return nil, fault.New(fault.BadInput, "user %q: there is no role %q", name, r)
			}
		}
		p.Users[name] = user
	}
	e, err := New(Config{Policy: p})
	if err != nil {
		return nil, err
	}
	out := make([]Outcome, len(f.Tests))
	for i, t := range f.Tests {
		target, err := ParseTarget(t.Target)
		if err != nil {
			return nil, err
		}
		id := Holder(p.Users[t.User])
		var d Decision
		if t.Resource != "" {
			d = e.Resource(id, t.Resource, t.Verb)
		} else {
			d = e.Decide(Request{
				Identity: id, Node: NodeView{ID: names.NodeID(t.Node), Name: t.Node, Labels: f.Nodes[t.Node]},
				Login: t.Login, Action: t.Action, Command: t.Command, Target: target,
			})
		}
		out[i] = Outcome{t, d, d.Allow == *t.Allow && (t.Rule == "" || t.Rule == d.Rule)}
	}
	return out, nil
}

// ParseTarget reads HOST:PORT, or the path of a Unix socket; "" is the zero
// Target.
func ParseTarget(s string) (Target, error) {
	if s == "" || strings.HasPrefix(s, "/") {
		return Target{Path: s}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return Target{}, fault.New(fault.BadInput, "target %.80q: want HOST:PORT or /PATH", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return Target{}, fault.New(fault.BadInput, "target %.80q: want a port from 1 to 65535", s)
	}
	t := Target{Host: host, Port: uint16(n)}
	if addr, err := netip.ParseAddr(host); err == nil {
		t.Addr = addr
	}
	return t, nil
}
