//go:build unix

package events

import (
	"bytes"
	"strings"
	"time"
)

// selector is a filter made ready to look at many events, for one goroutine.
// What it finds out from the bytes it need not parse.
type selector struct {
	Filter

	terms        []uint64
	grams        []uint32
	needles      [][]byte // what is in every event that is selected
	pieces       [][]byte // the same, in small letters
	since, until string   // times in canonical form; "" is none
	folded       []byte
}

func newSelector(f Filter) *selector {
	s := &selector{Filter: f, terms: f.terms(), needles: f.needles(), since: canonicalTime(f.Since), until: canonicalTime(f.Until)}
	for _, piece := range f.Words.pieces() {
		s.pieces = append(s.pieces, []byte(piece))
		s.grams = append(s.grams, gramsOf([]byte(piece))...)
	}
	return s
}

// canonicalTime returns the canonical form of the first time an event can have
// that is not before t, or "" when that form does not sort.
func canonicalTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	up := t.UTC().Add(time.Microsecond - 1).Truncate(time.Microsecond)
	if up.Year() < 0 || up.Year() > 9999 {
		return ""
	}
	return up.Format(timeForm)
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
	for _, m := range []struct{ key, value string }{{"user", string(f.User)}, {"login", string(f.Login)}, {"sid", string(f.Session)}} {
		if m.value != "" {
			out = append(out, appendMember(nil, m.key, m.value))
		}
	}
	if f.Node != "" {
		out = append(out, appendText([]byte{':'}, f.Node))
	}
	for _, l := range f.Labels {
		needle := append(appendText(nil, l.Key), ':')
		if !l.Any {
			needle = appendText(needle, l.Value)
		}
		out = append(out, needle)
	}
	switch f.Outcome {
	case Success:
		out = append(out, []byte(`,"success":true`))
	case Failure:
		out = append(out, []byte(`,"success":false`))
	case Either:
	}
	return out
}

// selects reports whether the event in canonical form that data holds is
// selected.
func (s *selector) selects(data []byte) bool {
	if !s.timely(data) || !containsAll(data, s.needles) || !s.near(data) || !s.says(data) {
		return false
	}
	e, err := ParseEvent(data)
	return err == nil && s.matches(e)
}

// timely reports whether the event may be of the right time.
func (s *selector) timely(data []byte) bool {
	if s.since == "" && s.until == "" {
		return true
	}
	when, ok := textBehind(data, `,"time":"`)
	return !ok || (s.since == "" || string(when) >= s.since) && (s.until == "" || string(when) < s.until)
}

// near reports whether the event may be of the right client.
func (s *selector) near(data []byte) bool {
	if !s.Address.net.IsValid() {
		return true
	}
	client, ok := textBehind(data, `,"addr.remote":"`)
	return ok && s.Address.has(string(client))
}

// says reports whether the event may have the right words.
func (s *selector) says(data []byte) bool {
	if len(s.pieces) == 0 {
		return true
	}
	s.folded = append(s.folded[:0], data...)
	for i, c := range s.folded {
		s.folded[i] = lower(c)
	}
	return containsAll(s.folded, s.pieces)
}

// textBehind returns the text behind the first head in data, as it is there. A common
// field's stands before every other that could look like it.
func textBehind(data []byte, head string) ([]byte, bool) {
	_, rest, ok := bytes.Cut(data, []byte(head))
	end := bytes.IndexByte(rest, '"')
	if !ok || end < 0 {
		return nil, false
	}
	return rest[:end], true
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
