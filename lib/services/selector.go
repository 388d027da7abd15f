package services

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

const (
	// maxPattern bounds a regular expression in a selector, in bytes. RE2 takes
	// time linear in it and in the label, so this and the grammar of labels bound
	// a match.
	maxPattern = 256
	// maxAlternatives bounds the values a selector lists for one key.
	maxAlternatives = 64
	// maxTerms bounds the keys of a selector; a node has no more labels.
	maxTerms = 64
)

// LabelSelector selects nodes by their labels. Every key must match, and a key
// matches when one of its values does: a value in the grammar of labels matches
// itself, "*" any value of a label that is there, "~regexp~" what the whole
// expression (RE2) matches, and "{{user.traits.x}}" each value of that trait.
// The selector {"*": ["*"]} matches every node. The zero value matches none.
type LabelSelector struct { //nolint:recvcheck // a value that only UnmarshalJSON changes
	terms []term // by key; none together with all means every node
	all   bool
}

type term struct {
	key  string
	alts []alternative
}

// alternative is one value for a key; text is its source, and at most one of
// the others is set.
type alternative struct {
	text  string
	any   bool
	re    *regexp.Regexp
	trait string
}

// traitTemplate is the one template a selector takes; logins take it too.
var traitTemplate = regexp.MustCompile(`^\{\{user\.traits\.([A-Za-z0-9._/-]{1,63})\}\}$`)

// ParseSelector returns the selector for a map from keys to alternative values,
// or a [fault.BadInput] error.
func ParseSelector(m map[string][]string) (LabelSelector, error) {
	var s LabelSelector
	if len(m) > maxTerms {
		return LabelSelector{}, fault.New(fault.BadInput, "%d label keys: want at most %d", len(m), maxTerms)
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if err := s.add(key, m[key]); err != nil {
			return LabelSelector{}, err
		}
	}
	return s, nil
}

// add makes key with values one more condition of s.
func (s *LabelSelector) add(key string, values []string) error {
	if key == wildcard {
		if len(values) != 1 || values[0] != wildcard {
			return fault.New(fault.BadInput, `label key "*": the only value it takes is "*"; together they mean every node`)
		}
		s.all = true
		return nil
	}
	if err := (names.Labels{key: "x"}).Check(); err != nil {
		return err
	}
	if len(values) == 0 || len(values) > maxAlternatives {
		return fault.New(fault.BadInput, "label %q: want 1 to %d values", key, maxAlternatives)
	}
	t := term{key: key, alts: make([]alternative, len(values))}
	for i, v := range values {
		a, err := parseAlternative(key, v)
		if err != nil {
			return err
		}
		t.alts[i] = a
	}
	s.terms = append(s.terms, t)
	return nil
}

func parseAlternative(key, v string) (alternative, error) {
	if v == wildcard {
		return alternative{text: v, any: true}, nil
	}
	if m := traitTemplate.FindStringSubmatch(v); m != nil {
		return alternative{text: v, trait: m[1]}, nil
	}
	if len(v) > 2 && strings.HasPrefix(v, "~") && strings.HasSuffix(v, "~") {
		if len(v) > maxPattern {
			return alternative{}, fault.New(fault.BadInput, "label %q: a regular expression has at most %d bytes", key, maxPattern)
		}
		re, err := regexp.Compile("^(?:" + v[1:len(v)-1] + ")$")
		if err != nil {
			return alternative{}, fault.New(fault.BadInput, "label %q: %w", key, err)
		}
		return alternative{text: v, re: re}, nil
	}
	if err := (names.Labels{key: v}).Check(); err != nil {
		return alternative{}, err
	}
	return alternative{text: v}, nil
}

// Match reports whether s selects a node with these labels for a user with
// these traits.
func (s LabelSelector) Match(labels names.Labels, traits map[string][]string) bool {
	for _, t := range s.terms {
		v, ok := labels[t.key]
		if !ok || !t.match(v, traits) {
			return false
		}
	}
	return s.all || len(s.terms) > 0
}

func (t term) match(v string, traits map[string][]string) bool {
	for i := range t.alts {
		if t.alts[i].match(v, traits) {
			return true
		}
	}
	return false
}

func (a *alternative) match(v string, traits map[string][]string) bool {
	switch {
	case a.any:
		return true
	case a.re != nil:
		return a.re.MatchString(v)
	case a.trait != "":
		return slices.Contains(traits[a.trait], v)
	}
	return a.text == v
}

// IsZero reports whether s is the zero selector, which matches nothing.
func (s LabelSelector) IsZero() bool { return !s.all && len(s.terms) == 0 }

// MarshalJSON writes s as a map from keys to lists of values.
func (s LabelSelector) MarshalJSON() ([]byte, error) { return json.Marshal(s.values()) }

// UnmarshalJSON reads what MarshalJSON wrote and refuses everything that
// [ParseSelector] refuses.
func (s *LabelSelector) UnmarshalJSON(data []byte) error {
	var m map[string][]string
	if err := json.Unmarshal(data, &m); err != nil {
		return err
	}
	p, err := ParseSelector(m)
	*s = p
	return err
}

// values returns the map that [ParseSelector] reads.
func (s LabelSelector) values() map[string][]string {
	m := make(map[string][]string, len(s.terms)+1)
	if s.all {
		m[wildcard] = []string{wildcard}
	}
	for _, t := range s.terms {
		for _, a := range t.alts {
			m[t.key] = append(m[t.key], a.text)
		}
	}
	return m
}
