package events

import (
	"bytes"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strconv"
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
	// maxDocument is how much of a resource's text is kept, in bytes.
	maxDocument = 8 << 10
	// maxCommon is how much of each common field is kept, in bytes. All nine of
	// them fit into an event even when every character is escaped.
	maxCommon = 512
	// maxElements bounds a list or a map.
	maxElements = 128
	// maxKey bounds a field's name, in bytes.
	maxKey = 64

	// timeForm has a fixed width, so that times compare as text.
	timeForm = "2006-01-02T15:04:05.000000Z"
)

// The grammars of what a peer may call an event, its code and its fields. They
// are wider than [Table], so that a newer member's events are kept, too.
var (
	nameGrammar = regexp.MustCompile(`^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$`)
	codeGrammar = regexp.MustCompile(`^[A-Z][0-9]{4}[IW]$`)
)

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

// ParseEvent returns the event that data holds in canonical form, or a
// [fault.BadInput] error. Encoding the event again gives data, byte for byte.
// Events and fields that this version does not know pass, so that a log
// outlives its writers.
func ParseEvent(data []byte) (Event, error) {
	if len(data) > MaxEvent {
		return Event{}, fault.New(fault.BadInput, "event of %d bytes: want at most %d", len(data), MaxEvent)
	}
	var members map[string]any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(&members); err != nil {
		return Event{}, fault.Wrap(fault.BadInput, err, "event is not a JSON object")
	}
	e, err := fromMembers(members)
	if err != nil {
		return Event{}, err
	}
	if got := e.appendTo(make([]byte, 0, len(data))); !bytes.Equal(got, data) {
		return Event{}, fault.New(fault.BadInput, "event %s is not in canonical form", e.UID)
	}
	return e, nil
}

// fromMembers takes what it knows out of m and keeps the rest as fields.
func fromMembers(m map[string]any) (Event, error) {
	var e Event
	var name, when string
	take := append(e.common(),
		textField{"event", &name}, textField{"code", &e.Code}, textField{"time", &when},
		textField{"uid", &e.UID}, textField{"error", &e.Error})
	for _, f := range take {
		v, ok := m[f.key]
		if !ok {
			continue
		}
		if *f.text, ok = v.(string); !ok {
			return e, fault.New(fault.BadInput, "event: %s is not text", f.key)
		}
		delete(m, f.key)
	}
	var ok bool
	if e.Success, ok = m["success"].(bool); !ok {
		return e, fault.New(fault.BadInput, "event: success is not true or false")
	}
	delete(m, "success")
	e.Name = Name(name)
	if err := e.check(); err != nil {
		return e, err
	}
	var err error
	if e.Time, err = time.Parse(timeForm, when); err != nil {
		return e, fault.New(fault.BadInput, "event: time %q: want the form %s", clip(when), timeForm)
	}
	e.Fields, err = fieldValues(m)
	return e, err
}

func (e Event) check() error {
	if len(e.Name) > maxKey || !nameGrammar.MatchString(string(e.Name)) {
		return fault.New(fault.BadInput, "event: name %q: want lower-case words joined by dots", clip(string(e.Name)))
	}
	if !codeGrammar.MatchString(e.Code) {
		return fault.New(fault.BadInput, "event: code %q: want a letter, four digits and I or W", clip(e.Code))
	}
	if u, err := uuid.Parse(e.UID); err != nil || u.String() != e.UID {
		return fault.New(fault.BadInput, "event: uid %q: want a lower-case UUID", clip(e.UID))
	}
	return nil
}

func fieldValues(m map[string]any) (map[string]any, error) {
	if len(m) == 0 {
		return nil, nil //nolint:nilnil // a nil map is an event without fields
	}
	for key, v := range m {
		if len(key) > maxKey || !nameGrammar.MatchString(key) {
			return nil, fault.New(fault.BadInput, "event: field %q: want lower-case words joined by dots", clip(key))
		}
		value, ok := fieldValue(v)
		if !ok {
			return nil, fault.New(fault.BadInput, "event: field %s has a type that no field has", key)
		}
		m[key] = value
	}
	return m, nil
}

// fieldValue turns what encoding/json made into the types of [Event.Fields].
func fieldValue(v any) (any, bool) {
	switch v := v.(type) {
	case string, bool:
		return v, true
	case json.Number:
		n, err := v.Int64()
		return n, err == nil
	case []any:
		list := make([]string, len(v))
		for i := range v {
			s, ok := v[i].(string)
			if !ok {
				return nil, false
			}
			list[i] = s
		}
		return list, true
	case map[string]any:
		texts := make(map[string]string, len(v))
		for k, x := range v {
			s, ok := x.(string)
			if !ok {
				return nil, false
			}
			texts[k] = s
		}
		return texts, true
	}
	return nil, false
}
