package events

import (
	"bytes"
	"encoding/csv"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/accessd/accessd/lib/fault"
)

// Format is a form in which events leave for other programs.
type Format string

// The formats.
const (
	JSONL  Format = "jsonl"  // the canonical form, one a line
	CSV    Format = "csv"    // the common fields in columns, the others as JSON in the last one
	Syslog Format = "syslog" // RFC 5424, all fields as structured data, one a line
	OTLP   Format = "otlp"   // OpenTelemetry logs as JSON, one message a line
)

// Formats returns all formats.
func Formats() []Format { return []Format{JSONL, CSV, Syslog, OTLP} }

// ParseFormat returns the format of that name.
func ParseFormat(s string) (Format, error) {
	if f := Format(s); slices.Contains(Formats(), f) {
		return f, nil
	}
	return "", fault.New(fault.BadInput, "format %q: want jsonl, csv, syslog or otlp", clip(s))
}

// Head returns what a file of format f begins with.
func (f Format) Head() []byte {
	if f != CSV {
		return nil
	}
	return csvLine(append(csvColumns(), "fields"))
}

// Append appends events, each in canonical form, to dst in format f. All of it is
// printable: no terminal, spreadsheet or parser of lines is driven by what an
// event holds.
func (f Format) Append(dst []byte, events [][]byte) ([]byte, error) {
	if f == JSONL {
		for _, data := range events {
			dst = append(append(dst, data...), '\n')
		}
		return dst, nil
	}
	parsed := make([]Event, len(events))
	for i, data := range events {
		var err error
		if parsed[i], err = ParseEvent(data); err != nil {
			return dst, err
		}
	}
	if f == OTLP {
		return appendOTLP(dst, parsed)
	}
	for _, e := range parsed {
		if f == CSV {
			dst = append(dst, csvLine(csvRow(e))...)
		} else {
			dst = append(appendSyslog(dst, e), '\n')
		}
	}
	return dst, nil
}

// csvColumns are the common fields without the list of what was cut, which is
// among the others.
func csvColumns() []string {
	var out []string
	for _, f := range Common() {
		if f.Type != List {
			out = append(out, f.Name)
		}
	}
	return out
}

// csvRow returns e's cells in the order of csvColumns, and its other fields.
func csvRow(e Event) []string {
	row := []string{string(e.Name), e.Code, e.Time.UTC().Format(timeForm), e.UID}
	for _, f := range e.common() {
		row = append(row, cell(*f.text))
	}
	return append(row, strconv.FormatBool(e.Success), cell(e.Error), string(e.appendFields(nil)))
}

// appendFields appends the fields that are not common as one JSON object.
func (e Event) appendFields(dst []byte) []byte {
	dst = append(dst, '{')
	for i, key := range slices.Sorted(maps.Keys(e.Fields)) {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendText(dst, key), ':')
		dst = appendValue(dst, e.Fields[key])
	}
	return append(dst, '}')
}

// cell returns s for a spreadsheet. A cell that begins like a formula would be
// one: a quote before it makes it text (OWASP, "CSV Injection").
func cell(s string) string {
	s = Display(s)
	if first, _ := utf8.DecodeRuneInString(strings.TrimLeft(s, " ")); strings.ContainsRune("=+-@|%＝＋－＠", first) && s != "" {
		return "'" + s
	}
	return s
}

// csvLine returns one record of RFC 4180, but with a line feed alone.
func csvLine(row []string) []byte {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	_ = w.Write(row) // a buffer takes all
	w.Flush()
	return b.Bytes()
}
