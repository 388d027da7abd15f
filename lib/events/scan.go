package events

import (
	"bytes"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/accessd/accessd/lib/fault"
)

// ParseEvent returns the event that data holds in canonical form, or a
// [fault.BadInput] error. Encoding the event again gives data, byte for byte.
// Events and fields that this version does not know pass, so that a log
// outlives its writers.
func ParseEvent(data []byte) (Event, error) {
	if len(data) > MaxEvent {
		return Event{}, fault.New(fault.BadInput, "event of %d bytes: want at most %d", len(data), MaxEvent)
	}
	s := scanner{rest: data}
	e, ok := s.event()
	if !ok || len(s.rest) > 0 {
		return Event{}, fault.New(fault.BadInput, "event is not in canonical form at byte %d", len(data)-len(s.rest))
	}
	if err := e.check(); err != nil {
		return Event{}, err
	}
	return e, nil
}

// scanner reads the canonical form, and nothing else. Every method returns false
// at the first byte that does not belong there.
type scanner struct {
	rest []byte
}

func (s *scanner) literal(lit string) bool {
	if !bytes.HasPrefix(s.rest, []byte(lit)) {
		return false
	}
	s.rest = s.rest[len(lit):]
	return true
}

// member reads the member of that name, which does not have to be there.
func (s *scanner) member(key string) (text string, there, ok bool) {
	if !s.literal(`,"` + key + `":`) {
		return "", false, true
	}
	text, ok = s.text()
	return text, true, ok
}

// required reads the member of that name.
func (s *scanner) required(key string) (string, bool) {
	text, there, ok := s.member(key)
	return text, there && ok
}

func (s *scanner) event() (Event, bool) {
	var e Event
	if !s.literal(`{"event":`) {
		return e, false
	}
	name, ok1 := s.text()
	code, ok2 := s.required("code")
	when, ok3 := s.required("time")
	uid, ok4 := s.required("uid")
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return e, false
	}
	e.Name, e.Code, e.UID = Name(name), code, uid
	var err error
	if e.Time, err = time.Parse(timeForm, when); err != nil || e.Time.Format(timeForm) != when {
		return e, false
	}
	return e, s.common(&e) && s.outcome(&e) && s.fields(&e)
}

// common reads the common text fields. One that is there is not empty.
func (s *scanner) common(e *Event) bool {
	for _, f := range e.common() {
		text, there, ok := s.member(f.key)
		if !ok || there && text == "" {
			return false
		}
		*f.text = text
	}
	return true
}

func (s *scanner) outcome(e *Event) bool {
	if !s.literal(`,"success":`) {
		return false
	}
	success, ok := s.boolean()
	if !ok {
		return false
	}
	e.Success = success
	text, there, ok := s.member("error")
	e.Error = text
	return ok && (!there || text != "")
}

func (s *scanner) boolean() (value, ok bool) {
	if s.literal("true") {
		return true, true
	}
	return false, s.literal("false")
}

// fields reads what is left, in the order of the names.
func (s *scanner) fields(e *Event) bool {
	last := ""
	for !s.literal("}") {
		if !s.literal(",") {
			return false
		}
		key, ok := s.text()
		if !ok || key <= last || !isName(key) || reserved(key) || !s.literal(":") {
			return false
		}
		value, ok := s.value()
		if !ok {
			return false
		}
		if e.Fields == nil {
			e.Fields = map[string]any{}
		}
		e.Fields[key], last = value, key
	}
	return true
}

// reserved reports whether key is the name of a common field, which stands in its
// own place. Of the common ones truncated alone is a field like others.
func reserved(key string) bool {
	switch key {
	case "event", "code", "time", "uid", "cluster_name", "user", "login", "sid", "server_id", "server_hostname",
		"addr.remote", "proto", "success", "error":
		return true
	}
	return false
}

func (s *scanner) value() (any, bool) {
	if len(s.rest) == 0 {
		return nil, false
	}
	switch s.rest[0] {
	case '"':
		return s.text()
	case 't', 'f':
		return s.boolean()
	case '[':
		return s.list()
	case '{':
		return s.texts()
	}
	return s.number()
}

func (s *scanner) number() (any, bool) {
	n := 0
	for n < len(s.rest) && (s.rest[n] == '-' || s.rest[n] >= '0' && s.rest[n] <= '9') {
		n++
	}
	digits := string(s.rest[:n])
	value, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || strconv.FormatInt(value, 10) != digits {
		return nil, false
	}
	s.rest = s.rest[n:]
	return value, true
}

func (s *scanner) list() (any, bool) {
	list := []string{}
	if s.literal("[]") {
		return list, true
	}
	for s.rest = s.rest[1:]; ; {
		text, ok := s.text()
		if !ok {
			return nil, false
		}
		list = append(list, text)
		if s.literal("]") {
			return list, true
		}
		if !s.literal(",") {
			return nil, false
		}
	}
}

func (s *scanner) texts() (any, bool) {
	texts := map[string]string{}
	if s.literal("{}") {
		return texts, true
	}
	last := ""
	for s.rest = s.rest[1:]; ; {
		key, ok := s.text()
		if !ok || len(texts) > 0 && key <= last || !s.literal(":") {
			return nil, false
		}
		if texts[key], ok = s.text(); !ok {
			return nil, false
		}
		last = key
		if s.literal("}") {
			return texts, true
		}
		if !s.literal(",") {
			return nil, false
		}
	}
}

// text reads a string as appendText writes it.
func (s *scanner) text() (string, bool) {
	if !s.literal(`"`) {
		return "", false
	}
	for i, c := range s.rest {
		switch {
		case c == '"':
			text := string(s.rest[:i])
			s.rest = s.rest[i+1:]
			return text, true
		case c == '\\':
			return s.escaped(i)
		case c < ' ' || c > '~':
			return "", false
		}
	}
	return "", false
}

// escaped reads the rest of a string whose first n bytes are plain.
func (s *scanner) escaped(n int) (string, bool) {
	text := append([]byte(nil), s.rest[:n]...)
	s.rest = s.rest[n:]
	for len(s.rest) > 0 {
		c := s.rest[0]
		switch {
		case c == '"':
			s.rest = s.rest[1:]
			return string(text), true
		case c < ' ' || c > '~':
			return "", false
		case c != '\\':
			text = append(text, c)
			s.rest = s.rest[1:]
			continue
		}
		r, ok := s.escape()
		if !ok {
			return "", false
		}
		text = utf8.AppendRune(text, r)
	}
	return "", false
}

// escape reads one escaped character.
func (s *scanner) escape() (rune, bool) {
	if s.literal(`\"`) {
		return '"', true
	}
	if s.literal(`\\`) {
		return '\\', true
	}
	r, ok := s.unit()
	if !ok || r >= ' ' && r <= '~' {
		return 0, false
	}
	if !utf16.IsSurrogate(r) {
		return r, true
	}
	low, ok := s.unit()
	r = utf16.DecodeRune(r, low)
	return r, ok && r != utf8.RuneError
}

// unit reads \uXXXX.
func (s *scanner) unit() (rune, bool) {
	if !s.literal(`\u`) || len(s.rest) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range s.rest[:4] {
		digit := strings.IndexByte(hexDigits, c)
		if digit < 0 {
			return 0, false
		}
		r = r<<4 | rune(digit)
	}
	s.rest = s.rest[4:]
	return r, true
}
