package events

import (
	"bytes"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// Filter selects events; every field that is set must match.
type Filter struct {
	Since   time.Time // not before
	Until   time.Time // before
	User    names.UserName
	Node    string // name or id of the server that emitted, or of the node that is meant
	Event   string // a name, or a family such as "session.*"
	Session names.SessionID
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

// matches reports whether f selects e.
func (f Filter) matches(e Event) bool {
	return (f.Since.IsZero() || !e.Time.Before(f.Since)) &&
		(f.Until.IsZero() || e.Time.Before(f.Until)) &&
		(f.User == "" || f.User == e.User) &&
		(f.Session == "" || f.Session == e.SID) &&
		(f.Event == "" || f.Event == string(e.Name) || f.Event == family(e.Name)+".*") &&
		(f.Node == "" || slices.Contains(e.subjects(), f.Node))
}

// needles returns what the canonical form of every event that f selects
// contains. Quotes inside a value are escaped, so little else contains it.
func (f Filter) needles() [][]byte {
	var out [][]byte
	if name, isFamily := strings.CutSuffix(f.Event, "*"); isFamily {
		out = append(out, []byte(`{"event":"`+name))
	} else if name != "" {
		out = append(out, appendMember(nil, "event", name)[1:])
	}
	if f.User != "" {
		out = append(out, appendMember(nil, "user", string(f.User)))
	}
	if f.Session != "" {
		out = append(out, appendMember(nil, "sid", string(f.Session)))
	}
	if f.Node != "" {
		out = append(out, appendText([]byte{':'}, f.Node))
	}
	return out
}

// containsAll reports whether data contains each of needles.
func containsAll(data []byte, needles [][]byte) bool {
	for _, n := range needles {
		if !bytes.Contains(data, n) {
			return false
		}
	}
	return true
}

// A term is the hash of one thing that a filter may ask for. Terms are stored, so
// their hash may never change.
func term(kind, value string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(kind + "\x00" + value)) // a hash never fails
	return h.Sum64()
}

// terms returns the terms of all filters without times that select e.
func (e Event) terms() []uint64 {
	out := []uint64{term("event", string(e.Name)), term("family", family(e.Name))}
	if e.User != "" {
		out = append(out, term("user", string(e.User)))
	}
	if e.SID != "" {
		out = append(out, term("session", string(e.SID)))
	}
	for _, s := range e.subjects() {
		if s != "" {
			out = append(out, term("node", s))
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
	if f.User != "" {
		out = append(out, term("user", string(f.User)))
	}
	if f.Session != "" {
		out = append(out, term("session", string(f.Session)))
	}
	if f.Node != "" {
		out = append(out, term("node", f.Node))
	}
	return out
}
