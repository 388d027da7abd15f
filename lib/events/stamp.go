package events

import (
	"maps"
	"reflect"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// truncatedField lists the fields of an event that were cut.
const truncatedField = "truncated"

// schema is [Table] by name.
type schema map[Name]Spec

func newSchema() schema {
	s := schema{}
	for _, spec := range Table() {
		s[spec.Name] = spec
	}
	return s
}

// Check returns an error when ev is not as the table says: an event, a field or a
// type of a value that it does not have. [Emitter.Emit] refuses what Check does;
// whoever fakes an emitter in a test should, too.
func Check(ev Event) error {
	_, err := newSchema().encode(ev, MaxEvent)
	return err
}

// encode returns the canonical form of ev in at most limit bytes, brought into the form the table gives
// it: its code, its outcome, its uid, its fields' types and bounds. An event or a
// field that is not in the table is a mistake of the program.
func (s schema) encode(ev Event, limit int) ([]byte, error) {
	spec, ok := s[ev.Name]
	if !ok {
		return nil, fault.New(fault.Internal, "events: internal error: no event %q in the table", ev.Name)
	}
	ev.Success = spec.Outcome == Success || spec.Outcome == Either && ev.Success
	ev.Code = spec.Code + "W"
	if ev.Success {
		ev.Code = spec.Code + "I"
	}
	if ev.UID == "" {
		ev.UID = newUID(ev)
	}
	c := cutter{cut: map[string]bool{}}
	values := make(map[string]any, len(ev.Fields)+1)
	for key, v := range ev.Fields {
		if list, ok := v.([]string); ok && key == truncatedField { // emitted before
			for _, cut := range list {
				c.cut[cut] = true
			}
			continue
		}
		i := slices.IndexFunc(spec.Fields, func(f Field) bool { return f.Name == key })
		if i < 0 {
			return nil, fault.New(fault.Internal, "events: internal error: %s has no field %q in the table", ev.Name, key)
		}
		value, ok := convert(spec.Fields[i].Type, v)
		if !ok {
			return nil, fault.New(fault.Internal, "events: internal error: %s.%s is a %s in the table, not a %T", ev.Name, key, spec.Fields[i].Type, v)
		}
		values[key] = c.value(key, value, cmpOr(spec.Fields[i].Max, maxText))
	}
	for _, f := range append(ev.common(), textField{"error", &ev.Error}) {
		*f.text = c.text(f.key, *f.text, maxCommon)
	}
	ev.Fields = values
	if err := ev.check(); err != nil {
		return nil, fault.New(fault.Internal, "events: internal error: %w", err)
	}
	return c.fit(ev, limit), nil
}

func cmpOr(n, otherwise int) int {
	if n == 0 {
		return otherwise
	}
	return n
}

// newUID returns the uid of ev. A session begins and ends once, so the uids of
// these two follow from its id: emitting one of them again after a crash does not
// double it.
func newUID(ev Event) string {
	switch {
	case ev.Name == SessionStart && ev.SID != "":
		return sessionUID(ev.SID, "start")
	case ev.Name == SessionEnd && ev.SID != "":
		return sessionUID(ev.SID, "end")
	}
	return uuid.Must(uuid.NewV7()).String() // ordered by time, which keeps the index compact
}

// sessionSpace is the name space of derived uids (RFC 9562, Section 5.5).
const sessionSpace = "5d8a3c0e-3b0e-4f57-9a63-0d6f0b7c6a52"

func sessionUID(sid names.SessionID, moment string) string {
	return uuid.NewSHA1(uuid.MustParse(sessionSpace), []byte(moment+":"+string(sid))).String()
}

// convert returns v as a field of type t holds it.
func convert(t Type, v any) (any, bool) {
	switch x := v.(type) {
	case time.Time:
		return x.UTC().Format(time.RFC3339), t == String
	case time.Duration:
		if t == Int {
			return x.Milliseconds(), true
		}
		return x.String(), t == String
	}
	r := reflect.ValueOf(v)
	if !r.IsValid() {
		return nil, false
	}
	switch t {
	case String:
		return convertText(r)
	case Bool:
		return r.Kind() == reflect.Bool && r.Bool(), r.Kind() == reflect.Bool
	case Int:
		return convertInt(r)
	case List:
		return convertList(r)
	case Map:
		return convertMap(r)
	}
	return nil, false
}

func convertText(r reflect.Value) (any, bool) {
	switch {
	case r.Kind() == reflect.String:
		return r.String(), true
	case r.CanUint(): // a serial number: JSON's numbers would not hold it
		return strconv.FormatUint(r.Uint(), 10), true
	case r.CanInt():
		return strconv.FormatInt(r.Int(), 10), true
	}
	return nil, false
}

func convertInt(r reflect.Value) (any, bool) {
	switch {
	case r.CanInt():
		return r.Int(), true
	case r.CanUint():
		return int64(min(r.Uint(), 1<<63-1)), true
	}
	return nil, false
}

func convertList(r reflect.Value) (any, bool) {
	if r.Kind() != reflect.Slice || r.Type().Elem().Kind() != reflect.String {
		return nil, false
	}
	list := make([]string, r.Len())
	for i := range list {
		list[i] = r.Index(i).String()
	}
	return list, true
}

func convertMap(r reflect.Value) (any, bool) {
	if r.Kind() != reflect.Map || r.Type().Key().Kind() != reflect.String || r.Type().Elem().Kind() != reflect.String {
		return nil, false
	}
	m := make(map[string]string, r.Len())
	for it := r.MapRange(); it.Next(); {
		m[it.Key().String()] = it.Value().String()
	}
	return m, true
}

// cutter shortens what is too long and notes the names of those fields.
type cutter struct {
	cut map[string]bool
}

// text returns at most limit bytes of s, whole characters only, as it will be read
// back: each byte that is not UTF-8 becomes U+FFFD.
func (c cutter) text(key, s string, limit int) string {
	if len(s) > limit {
		c.cut[key] = true
		s = prefix(s, limit)
	}
	if !utf8.ValidString(s) {
		s = string([]rune(s))
	}
	return s
}

// value bounds v: limit bytes for each text, maxElements of a list or map.
func (c cutter) value(key string, v any, limit int) any {
	switch v := v.(type) {
	case string:
		return c.text(key, v, limit)
	case []string:
		if len(v) > maxElements {
			c.cut[key] = true
			v = v[:maxElements]
		}
		for i := range v {
			v[i] = c.text(key, v[i], limit)
		}
		return v
	case map[string]string:
		return c.texts(key, v, limit)
	}
	return v
}

func (c cutter) texts(key string, m map[string]string, limit int) map[string]string {
	out := make(map[string]string, min(len(m), maxElements))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if len(out) == maxElements {
			c.cut[key] = true
			break
		}
		out[c.text(key, k, limit)] = c.text(key, m[k], limit)
	}
	return out
}

// fit returns the canonical form of ev, with the longest values cut until it has at
// most limit bytes: hostile text grows sixfold when it is escaped.
func (c cutter) fit(ev Event, limit int) []byte {
	for each := limit / 2; ; each /= 2 {
		if len(c.cut) > 0 {
			ev.Fields[truncatedField] = slices.Sorted(maps.Keys(c.cut))
		}
		if line := ev.appendTo(make([]byte, 0, 512)); len(line) <= limit {
			return line
		}
		for key, v := range ev.Fields {
			if key != truncatedField {
				ev.Fields[key] = c.shrink(key, v, each)
			}
		}
	}
}

// shrink returns v cut to at most limit bytes as written.
func (c cutter) shrink(key string, v any, limit int) any {
	switch v := v.(type) {
	case string:
		return c.encoded(key, v, limit)
	case []string:
		for i, n := 0, 0; i < len(v); i++ {
			if n += textSize(v[i]) + 1; n > limit {
				c.cut[key] = true
				return v[:i]
			}
		}
	case map[string]string:
		n := 0
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if n += textSize(k) + textSize(v[k]) + 2; n > limit {
				c.cut[key] = true
				delete(v, k)
			}
		}
	}
	return v
}

// encoded returns the beginning of s that is at most limit bytes as written.
func (c cutter) encoded(key, s string, limit int) string {
	for textSize(s) > limit {
		c.cut[key] = true
		s = prefix(s, len(s)*9/10)
	}
	return s
}
