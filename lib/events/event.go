package events

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

const (
	// MaxEvent is the longest event in bytes: the longest entry of a tlog-tiles
	// bundle, whose length is a uint16.
	MaxEvent = 1<<16 - 1
	// maxText is how much of a field's text is kept, in bytes, unless [Field.Max]
	// says otherwise.
	maxText = 1 << 10
	// maxCommand is how much of a command line is kept, in bytes.
	maxCommand = 16 << 10
	// maxPath is how much of a path is kept, in bytes: PATH_MAX of Linux.
	maxPath = 4 << 10
	// maxDocument is how much of a resource's text is kept, in bytes.
	maxDocument = 8 << 10
	// maxCommon is how much of each common field is kept, in bytes. All nine of
	// them fit into an event even when every character is escaped.
	maxCommon = 512
	// maxElements bounds a list or a map.
	maxElements = 128
	// maxName bounds the name of an event or a field, in bytes.
	maxName = 64

	// timeForm has a fixed width, so that times compare as text.
	timeForm = "2006-01-02T15:04:05.000000Z"
)

// isName reports whether s has the grammar of an event's or a field's name: words
// of a-z, 0-9 and _ that begin with a letter, joined by dots. It is wider than
// [Table], so that a newer member's events are kept, too.
func isName(s string) bool {
	start := true
	for i := range len(s) {
		c := s[i]
		switch letter := c >= 'a' && c <= 'z'; {
		case start && !letter:
			return false
		case c == '.':
			start = true
			continue
		case !letter && c != '_' && (c < '0' || c > '9'):
			return false
		}
		start = false
	}
	return !start && len(s) <= maxName
}

// isCode reports whether s is a letter, four digits, and I or W.
func isCode(s string) bool {
	if len(s) != len("A0000I") || s[0] < 'A' || s[0] > 'Z' || s[5] != 'I' && s[5] != 'W' {
		return false
	}
	return strings.Trim(s[1:5], "0123456789") == ""
}

// Event is one audit record. The zero value of any field but Name means that
// the event has none; [Emitter.Emit] fills UID, Code, Time, ClusterName and the
// server from what it knows.
type Event struct { //nolint:recvcheck // a value must marshal, a pointer unmarshal
	UID            string
	Name           Name
	Code           string
	Time           time.Time
	ClusterName    string
	User           names.UserName
	Login          names.Login
	SID            names.SessionID
	ServerID       string
	ServerHostname string
	AddrRemote     string
	Proto          string
	Success        bool
	Error          string

	// Fields are what [Table] lists for Name. A value is a string, a bool, an
	// integer, a list of strings, a map of strings, or of types made of those;
	// Emit also takes [time.Time] as text and [time.Duration] as the text of a
	// string field or the milliseconds of an int field. After [ParseEvent] a
	// value is string, bool, int64, []string or map[string]string.
	Fields map[string]any
}

// common returns pointers to the text fields every event may carry, in the
// order they are written.
func (e *Event) common() []textField {
	return []textField{
		{"cluster_name", &e.ClusterName},
		{"user", (*string)(&e.User)},
		{"login", (*string)(&e.Login)},
		{"sid", (*string)(&e.SID)},
		{"server_id", &e.ServerID},
		{"server_hostname", &e.ServerHostname},
		{"addr.remote", &e.AddrRemote},
		{"proto", &e.Proto},
	}
}

type textField struct {
	key  string
	text *string
}

// MarshalJSON returns e in its canonical form.
func (e Event) MarshalJSON() ([]byte, error) { return e.appendTo(nil), nil }

// UnmarshalJSON is [ParseEvent].
func (e *Event) UnmarshalJSON(data []byte) error {
	parsed, err := ParseEvent(data)
	if err == nil {
		*e = parsed
	}
	return err
}

// appendTo appends e's canonical form to dst.
func (e Event) appendTo(dst []byte) []byte {
	dst = append(dst, `{"event":`...)
	dst = appendText(dst, string(e.Name))
	dst = appendMember(dst, "code", e.Code)
	dst = appendMember(dst, "time", e.Time.UTC().Format(timeForm))
	dst = appendMember(dst, "uid", e.UID)
	for _, f := range e.common() {
		if *f.text != "" {
			dst = appendMember(dst, f.key, *f.text)
		}
	}
	dst = append(dst, `,"success":`...)
	dst = strconv.AppendBool(dst, e.Success)
	if e.Error != "" {
		dst = appendMember(dst, "error", e.Error)
	}
	for _, key := range slices.Sorted(maps.Keys(e.Fields)) {
		dst = append(dst, ',')
		dst = appendText(dst, key)
		dst = append(dst, ':')
		dst = appendValue(dst, e.Fields[key])
	}
	return append(dst, '}')
}

func appendMember(dst []byte, key, value string) []byte {
	dst = append(dst, ',')
	dst = appendText(dst, key)
	dst = append(dst, ':')
	return appendText(dst, value)
}

func appendValue(dst []byte, v any) []byte {
	switch v := v.(type) {
	case string:
		return appendText(dst, v)
	case bool:
		return strconv.AppendBool(dst, v)
	case int64:
		return strconv.AppendInt(dst, v, 10)
	case []string:
		dst = append(dst, '[')
		for i, s := range v {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendText(dst, s)
		}
		return append(dst, ']')
	case map[string]string:
		dst = append(dst, '{')
		for i, k := range slices.Sorted(maps.Keys(v)) {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendText(dst, k)
			dst = append(dst, ':')
			dst = appendText(dst, v[k])
		}
		return append(dst, '}')
	}
	return append(dst, "null"...) // no parser of ours takes it
}

func (e Event) check() error {
	if !isName(string(e.Name)) {
		return fault.New(fault.BadInput, "event: name %q: want lower-case words joined by dots", clip(string(e.Name)))
	}
	if !isCode(e.Code) {
		return fault.New(fault.BadInput, "event: code %q: want a letter, four digits and I or W", clip(e.Code))
	}
	if u, err := uuid.Parse(e.UID); err != nil || u.String() != e.UID {
		return fault.New(fault.BadInput, "event: uid %q: want a lower-case UUID", clip(e.UID))
	}
	return nil
}
