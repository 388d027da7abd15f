package events

import (
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

const (
	// maxFilterText bounds the words of a filter together, in bytes, and
	// maxFilterTerms how many words or labels it has.
	maxFilterText  = 1 << 10
	maxFilterTerms = 16
)

// Filter selects events; every field that is set must match.
type Filter struct {
	Since   time.Time // not before
	Until   time.Time // before
	User    names.UserName
	Login   names.Login
	Node    string // name or id of the server that emitted, or of the node that is meant
	Event   string // a name, or a family such as "session.*"
	Session names.SessionID
	Labels  []Label // of the node
	Address Address // of the client
	Outcome Outcome // Success or Failure; else any
	Words   Words
}

// FilterText is a filter as people write it; "" or nil is any.
type FilterText struct {
	User, Login, Node, Event, Session string

	Labels  []string // "key=value", or a key alone
	Address string   // "ip", "ip:port" or a prefix in CIDR notation
	Outcome string   // "success" or "failure"
	Text    string   // words
}

// Parse returns the filter, without times, or a [fault.BadInput] error.
func (t FilterText) Parse() (Filter, error) {
	f := Filter{Node: t.Node, Event: t.Event, Outcome: Outcome(t.Outcome)}
	const longest = 253 // bytes of a node's name; an event's name is shorter
	if len(f.Node) > longest || len(f.Event) > longest {
		return f, fault.New(fault.BadInput, "filter: node or event is longer than %d bytes", longest)
	}
	if f.Outcome != "" && f.Outcome != Success && f.Outcome != Failure {
		return f, fault.New(fault.BadInput, "filter: outcome %q: want success or failure", clip(t.Outcome))
	}
	var wrong error
	check := func(err error) {
		if wrong == nil {
			wrong = err
		}
	}
	var err error
	if t.User != "" {
		f.User, err = names.ParseUserName(t.User)
		check(err)
	}
	if t.Login != "" {
		f.Login, err = names.ParseLogin(t.Login)
		check(err)
	}
	if t.Session != "" {
		f.Session, err = names.ParseSessionID(t.Session)
		check(err)
	}
	f.Labels, err = ParseLabels(t.Labels)
	check(err)
	f.Address, err = ParseAddress(t.Address)
	check(err)
	f.Words, err = ParseWords(t.Text)
	check(err)
	check(f.Check())
	return f, wrong
}

// Label is a label of a node, or with Any set every label of that key.
type Label struct {
	Key, Value string
	Any        bool
}

// ParseLabels reads labels, each "key=value" or a key alone.
func ParseLabels(list []string) ([]Label, error) {
	if len(list) > maxFilterTerms {
		return nil, fault.New(fault.BadInput, "%d labels: want at most %d", len(list), maxFilterTerms)
	}
	var out []Label
	for _, s := range list {
		key, value, equal := strings.Cut(s, "=")
		if key == "" || len(s) > maxFilterText {
			return nil, fault.New(fault.BadInput, "label %q: want key=value or a key", clip(s))
		}
		out = append(out, Label{Key: key, Value: value, Any: !equal})
	}
	return out, nil
}

// Address selects clients. The zero Address is every client.
type Address struct {
	net  netip.Prefix
	port uint16 // 0 is every port
}

// ParseAddress reads "ip", "ip:port" or a prefix in CIDR notation; "" is the zero
// Address.
func ParseAddress(s string) (Address, error) {
	if s == "" {
		return Address{}, nil
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		if ip := p.Addr(); ip.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(ip.Unmap(), p.Bits()-96)
		}
		return Address{net: p.Masked()}, nil
	}
	if a, ok := parseClient(s); ok {
		return Address{net: netip.PrefixFrom(a.Addr(), a.Addr().BitLen()), port: a.Port()}, nil
	}
	return Address{}, fault.New(fault.BadInput, "address %q: want an IP address, one with a port, or a prefix such as 10.0.0.0/8", clip(s))
}

// parseClient reads an address with or without a port.
func parseClient(s string) (netip.AddrPort, bool) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		ip, err := netip.ParseAddr(strings.Trim(s, "[]"))
		if err != nil {
			return a, false
		}
		a = netip.AddrPortFrom(ip, 0)
	}
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port()), true
}

// has reports whether the client at s, as an event has it, is of a.
func (a Address) has(s string) bool {
	if !a.net.IsValid() {
		return true
	}
	client, ok := parseClient(s)
	return ok && a.net.Contains(client.Addr()) && (a.port == 0 || a.port == client.Port())
}

// Check returns a [fault.BadInput] error when f asks for an event that the table
// does not have, or for a time that ends before it begins.
func (f Filter) Check() error {
	if !f.Since.IsZero() && !f.Until.IsZero() && f.Until.Before(f.Since) {
		return fault.New(fault.BadInput, "until %s is before since %s", f.Until.Format(time.RFC3339), f.Since.Format(time.RFC3339))
	}
	if f.Event == "" {
		return nil
	}
	for _, spec := range Table() {
		if f.Event == string(spec.Name) || f.Event == family(spec.Name)+".*" {
			return nil
		}
	}
	return fault.New(fault.BadInput, "no event is named %q", clip(f.Event)).
		WithHint(`events have names such as "session.start"; "session.*" means all of a family`)
}

// family returns the part of n before its first dot.
func family(n Name) string {
	head, _, _ := strings.Cut(string(n), ".")
	return head
}

// subjects returns the names and ids of the nodes that e is about.
func (e Event) subjects() []string {
	out := []string{e.ServerID, e.ServerHostname}
	keys := []string{"node_id", "node_name", "member_id"}
	if e.Name == NodeJoin || e.Name == NodeUpdate || e.Name == ProxyJoin {
		keys = append(keys, "name")
	}
	for _, key := range keys {
		if s, ok := e.Fields[key].(string); ok {
			out = append(out, s)
		}
	}
	return out
}

// labels returns the labels that the nodes e is about have or had.
func (e Event) labels() []map[string]string {
	keys := []string{"node_labels"}
	if family(e.Name) == family(NodeJoin) {
		keys = append(keys, "labels", "labels_before")
	}
	var out []map[string]string
	for _, key := range keys {
		if m, ok := e.Fields[key].(map[string]string); ok {
			out = append(out, m)
		}
	}
	return out
}

// outcome returns whether e went well, as a filter asks for it.
func (e Event) outcome() Outcome {
	if e.Success {
		return Success
	}
	return Failure
}

// anyOutcome reports whether f takes events whether they went well or not.
func (f Filter) anyOutcome() bool { return f.Outcome != Success && f.Outcome != Failure }

// matches reports whether f selects e.
func (f Filter) matches(e Event) bool {
	return (f.Since.IsZero() || !e.Time.Before(f.Since)) &&
		(f.Until.IsZero() || e.Time.Before(f.Until)) &&
		(f.User == "" || f.User == e.User) &&
		(f.Login == "" || f.Login == e.Login) &&
		(f.Session == "" || f.Session == e.SID) &&
		(f.Event == "" || f.Event == string(e.Name) || f.Event == family(e.Name)+".*") &&
		(f.Node == "" || slices.Contains(e.subjects(), f.Node)) &&
		(f.anyOutcome() || f.Outcome == e.outcome()) &&
		f.Address.has(e.AddrRemote) && f.hasLabels(e) && f.Words.in(e)
}

// hasLabels reports whether e has every label that f asks for.
func (f Filter) hasLabels(e Event) bool {
	for _, want := range f.Labels {
		if !slices.ContainsFunc(e.labels(), func(m map[string]string) bool {
			value, ok := m[want.Key]
			return ok && (want.Any || value == want.Value)
		}) {
			return false
		}
	}
	return true
}

// A term is the hash of one thing that a filter may ask for. Terms are stored:
// whoever changes them changes indexVersion.
func term(kind, value string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(kind + "\x00" + value)) // a hash never fails
	return h.Sum64()
}

// netWidths are the widths of the networks that have terms, narrowest first.
func netWidths(ip netip.Addr) []int {
	if ip.Is4() {
		return []int{32, 24, 16}
	}
	return []int{128, 64, 48}
}

// netTerm returns the term of ip's network of the given width.
func netTerm(ip netip.Addr, bits int) uint64 {
	return term("net", netip.PrefixFrom(ip, bits).Masked().String())
}

// labelTerm returns the term of a label, or of all that have its key.
func labelTerm(l Label) uint64 {
	if l.Any {
		return term("label", l.Key)
	}
	return term("label", l.Key+"="+l.Value)
}

// terms returns the terms of all filters without times and words that select e.
func (e Event) terms() []uint64 {
	out := []uint64{term("event", string(e.Name)), term("family", family(e.Name)), term("outcome", string(e.outcome()))}
	for _, t := range []struct{ kind, value string }{{"user", string(e.User)}, {"login", string(e.Login)}, {"session", string(e.SID)}} {
		if t.value != "" {
			out = append(out, term(t.kind, t.value))
		}
	}
	for _, s := range e.subjects() {
		if s != "" {
			out = append(out, term("node", s))
		}
	}
	for _, m := range e.labels() {
		for key, value := range m {
			out = append(out, labelTerm(Label{Key: key, Value: value}), labelTerm(Label{Key: key, Any: true}))
		}
	}
	if client, ok := parseClient(e.AddrRemote); ok {
		for _, bits := range netWidths(client.Addr()) {
			out = append(out, netTerm(client.Addr(), bits))
		}
	}
	return out
}

// terms returns the terms that every event has that f selects.
func (f Filter) terms() []uint64 {
	var out []uint64
	if name, isFamily := strings.CutSuffix(f.Event, ".*"); isFamily {
		out = append(out, term("family", name))
	} else if name != "" {
		out = append(out, term("event", name))
	}
	for _, t := range []struct{ kind, value string }{
		{"user", string(f.User)}, {"login", string(f.Login)}, {"session", string(f.Session)}, {"node", f.Node},
	} {
		if t.value != "" {
			out = append(out, term(t.kind, t.value))
		}
	}
	if !f.anyOutcome() {
		out = append(out, term("outcome", string(f.Outcome)))
	}
	for _, l := range f.Labels {
		out = append(out, labelTerm(l))
	}
	if net := f.Address.net; net.IsValid() {
		for _, bits := range netWidths(net.Addr()) {
			if bits <= net.Bits() {
				return append(out, netTerm(net.Addr(), bits))
			}
		}
	}
	return out
}
