package events

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

const (
	// syslogInfo and syslogWarning are priorities (RFC 5424, Section 6.2.1): facility
	// 13, log audit, times 8, and the severity.
	syslogInfo    = 13*8 + 6
	syslogWarning = 13*8 + 4
	// syslogID names our structured data. 32473 is the enterprise number for those
	// who have none (RFC 5612).
	syslogID = "accessd@32473"
	// maxSyslogName bounds a parameter's name and a message id, maxSyslogHost a host
	// name, in bytes (RFC 5424, Section 6).
	maxSyslogName = 32
	maxSyslogHost = 255
)

// appendSyslog appends e as one message of RFC 5424, without a frame.
func appendSyslog(dst []byte, e Event) []byte {
	priority := syslogInfo
	if !e.Success {
		priority = syslogWarning
	}
	dst = append(dst, '<')
	dst = strconv.AppendInt(dst, int64(priority), 10)
	dst = append(dst, ">1 "+e.Time.UTC().Format(timeForm)+" "+syslogToken(e.ServerHostname, maxSyslogHost)...)
	dst = append(dst, " accessd - "+syslogToken(string(e.Name), maxSyslogName)+" ["+syslogID...)
	dst = appendParam(dst, "code", e.Code)
	dst = appendParam(dst, "uid", e.UID)
	for _, f := range e.common() {
		if *f.text != "" {
			dst = appendParam(dst, f.key, *f.text)
		}
	}
	dst = appendParam(dst, "success", strconv.FormatBool(e.Success))
	if e.Error != "" {
		dst = appendParam(dst, "error", e.Error)
	}
	for _, key := range slices.Sorted(maps.Keys(e.Fields)) {
		dst = appendParams(dst, key, e.Fields[key])
	}
	return append(dst, "] "+e.summary()...)
}

// appendParams appends a field: of a list each element, of a map each "key=value".
func appendParams(dst []byte, key string, value any) []byte {
	switch v := value.(type) {
	case []string:
		for _, s := range v {
			dst = appendParam(dst, key, s)
		}
		return dst
	case map[string]string:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			dst = appendParam(dst, key, k+"="+v[k])
		}
		return dst
	case string:
		return appendParam(dst, key, v)
	case bool:
		return appendParam(dst, key, strconv.FormatBool(v))
	case int64:
		return appendParam(dst, key, strconv.FormatInt(v, 10))
	}
	return dst
}

// appendParam appends one parameter (RFC 5424, Section 6.3.3). Names of fields
// have no character that it forbids.
func appendParam(dst []byte, key, value string) []byte {
	dst = append(dst, ' ')
	dst = append(dst, key[:min(len(key), maxSyslogName)]...)
	dst = append(dst, '=', '"')
	for _, c := range []byte(Display(value)) {
		if c == '"' || c == '\\' || c == ']' {
			dst = append(dst, '\\')
		}
		dst = append(dst, c)
	}
	return append(dst, '"')
}

// syslogToken returns s as a field of the header: printable ASCII without spaces,
// or "-" for nothing.
func syslogToken(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, s)
	if s == "" {
		return "-"
	}
	return s[:min(len(s), limit)]
}

// summary says in one line what e is about.
func (e Event) summary() string {
	var b strings.Builder
	b.WriteString(string(e.Name))
	if !e.Success {
		b.WriteString(" failed")
	}
	for _, part := range []struct{ word, text string }{
		{"by", string(e.User)}, {"as", string(e.Login)}, {"on", e.ServerHostname}, {"from", e.AddrRemote}, {"because", e.Error},
	} {
		if part.text != "" {
			b.WriteString(" " + part.word + " " + Display(part.text))
		}
	}
	return b.String()
}
