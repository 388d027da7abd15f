package events

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/accessd/accessd/lib/fault"
)

// Words are what a filter looks for in the text of events, in any case. An event
// has them when each occurs in one of its values, as a word or inside one.
type Words struct {
	folded []string
}

// ParseWords reads words with white space between them.
func ParseWords(s string) (Words, error) {
	list := strings.Fields(s)
	if len(s) > maxFilterText || len(list) > maxFilterTerms {
		return Words{}, fault.New(fault.BadInput, "text of %d bytes and %d words: want at most %d and %d", len(s), len(list), maxFilterText, maxFilterTerms)
	}
	if !utf8.ValidString(s) {
		return Words{}, fault.New(fault.BadInput, "text %q: want UTF-8", clip(s))
	}
	for i, word := range list {
		list[i] = fold(word)
	}
	return Words{list}, nil
}

// fold returns s with one case. A character of ASCII stays one, and no other
// becomes one: so the ASCII in a folded word is in the canonical form of every
// event that has it, but for the case.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		if r < utf8.RuneSelf {
			return rune(lower(byte(r)))
		}
		if l := unicode.ToLower(r); l >= utf8.RuneSelf {
			return l
		}
		return r
	}, s)
}

// lower returns the small letter of c in ASCII.
func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// in reports whether e has each of w.
func (w Words) in(e Event) bool {
	if len(w.folded) == 0 {
		return true
	}
	missing := append([]string(nil), w.folded...)
	e.texts(func(s string) bool {
		s = fold(s)
		kept := missing[:0]
		for _, word := range missing {
			if !strings.Contains(s, word) {
				kept = append(kept, word)
			}
		}
		missing = kept
		return len(missing) > 0
	})
	return len(missing) == 0
}

// texts calls fn with every value of e as text, until fn returns false.
func (e Event) texts(fn func(string) bool) {
	for _, s := range []string{string(e.Name), e.Code, e.Time.UTC().Format(timeForm), e.UID, e.Error} {
		if s != "" && !fn(s) {
			return
		}
	}
	for _, f := range e.common() {
		if *f.text != "" && !fn(*f.text) {
			return
		}
	}
	for _, v := range e.Fields {
		if !textsOf(v, fn) {
			return
		}
	}
}

// textsOf calls fn with what v, a field's value, holds, until fn returns false.
func textsOf(v any, fn func(string) bool) bool {
	switch v := v.(type) {
	case string:
		return fn(v)
	case int64:
		return fn(strconv.FormatInt(v, 10))
	case []string:
		for _, s := range v {
			if !fn(s) {
				return false
			}
		}
	case map[string]string:
		for key, s := range v {
			if !fn(key) || !fn(s) {
				return false
			}
		}
	}
	return true
}

// pieces returns what the canonical form of every event that has w contains, in
// small letters: the words, without what is escaped there.
func (w Words) pieces() []string {
	var out []string
	for _, word := range w.folded {
		out = append(out, strings.FieldsFunc(word, func(r rune) bool {
			return r < ' ' || r > '~' || r == '"' || r == '\\'
		})...)
	}
	return out
}
