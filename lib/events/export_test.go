package events

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"strings"
	"testing"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// The forms that other people's parsers were set up for do not change.
func TestGoldenExports(t *testing.T) {
	lines := bytes.Split(bytes.TrimSpace(read(t, "testdata", "export.jsonl")), []byte("\n"))
	lines = append(lines, encode(t, nasty()))
	for _, f := range Formats() {
		got, err := f.Append(f.Head(), lines)
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if f == JSONL {
			if want := append(bytes.Join(lines, []byte("\n")), '\n'); !bytes.Equal(got, want) {
				t.Errorf("jsonl is not the canonical form:\n%s", got)
			}
			continue
		}
		golden(t, "export."+string(f), got)
	}
	if _, err := ParseFormat("xml"); err == nil {
		t.Error("xml is a format")
	}
}

// nasty is an event in which a client and a node wrote what they could.
func nasty() Event {
	return Event{
		Name: Exec, UID: "0195510c-9a40-7bb2-8c51-0b5e6f1f2a11", Time: testTime, Success: false,
		User: `=cmd|' /C calc'!A0`, Login: "  @SUM(1)", ServerHostname: "web 1\n\x1b]0;x\a", Error: "a\"b\\c]d\n<34>1 - - - - - forged",
		Fields: map[string]any{"command": "=1+1\r\n\"x\",\x1b[2J\u202e]", "truncated": []string{"command"}},
	}
}

// F31: what an event holds neither drives a terminal nor forges a record.
func TestF31HostileExports(t *testing.T) {
	line := encode(t, nasty())
	for _, f := range Formats() {
		got, err := f.Append(nil, [][]byte{line, line})
		if err != nil {
			t.Fatal(err)
		}
		want := 2
		if f == OTLP {
			want = 1
		}
		if n := bytes.Count(got, []byte("\n")); n != want {
			t.Errorf("%s: %d lines, want %d:\n%s", f, n, want, got)
		}
		if i := strings.IndexFunc(strings.ReplaceAll(string(got), "\n", ""), hidden); i >= 0 {
			t.Errorf("%s: a hidden character at %d of %q", f, i, got)
		}
	}
}

func TestCSV(t *testing.T) {
	line := encode(t, nasty())
	got, err := CSV.Append(CSV.Head(), [][]byte{line})
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(bytes.NewReader(got)).ReadAll()
	if err != nil || len(rows) != 2 || len(rows[0]) != len(rows[1]) {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	row := map[string]string{}
	for i, name := range rows[0] {
		row[name] = rows[1][i]
	}
	for name, want := range map[string]string{
		"event": "exec", "user": `'=cmd|' /C calc'!A0`, "login": "'  @SUM(1)", "success": "false", "time": "2026-03-01T09:30:00.123456Z", "sid": "",
	} {
		if row[name] != want {
			t.Errorf("%s = %q, want %q", name, row[name], want)
		}
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(row["fields"]), &fields); err != nil || fields["command"] != nasty().Fields["command"] {
		t.Errorf("fields = %v, %v", fields, err)
	}
	for _, s := range []string{"=", "+1", "-1", "@x", "\tx", "|x", "%x", " =x", "＝x", "－x"} {
		if c := cell(s); strings.IndexAny(c, "'\\") != 0 {
			t.Errorf("cell(%q) = %q, which a spreadsheet may run", s, c)
		}
	}
	if c := cell("web-1"); c != "web-1" {
		t.Errorf("cell = %q", c)
	}
}

func TestSyslog(t *testing.T) {
	got, err := Syslog.Append(nil, [][]byte{encode(t, nasty())})
	if err != nil {
		t.Fatal(err)
	}
	want := `<108>1 2026-03-01T09:30:00.123456Z web_1__]0;x_ accessd - exec [accessd@32473 code="` // six fields, then the data
	if !strings.HasPrefix(string(got), want) {
		t.Errorf("message = %s\nwant it to begin with %s", got, want)
	}
	for _, part := range []string{` error="a\"b\\c\]d\\x0a<34>1 - - - - - forged"`, ` truncated="command"`, "] exec failed by"} {
		if !strings.Contains(string(got), part) {
			t.Errorf("message = %s\nhas no %s", got, part)
		}
	}
}

// The official messages read what is written, in both encodings.
func TestOTLP(t *testing.T) {
	e := sample(Table()[0])
	line := encode(t, e)
	parsed, err := ParseEvent(line)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := OTLP.Append(nil, [][]byte{line, encode(t, nasty())})
	if err != nil {
		t.Fatal(err)
	}
	asProto, err := encodeOTLP([]Event{parsed, nasty()})
	if err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func(m proto.Message) error{
		"JSON":     func(m proto.Message) error { return protojson.Unmarshal(asJSON, m) },
		"protobuf": func(m proto.Message) error { return proto.Unmarshal(asProto, m) },
	} {
		var got collectorpb.ExportLogsServiceRequest
		if err := read(&got); err != nil || len(got.GetResourceLogs()) != 2 {
			t.Fatalf("%s: %d resources, %v", name, len(got.GetResourceLogs()), err)
		}
		r := got.GetResourceLogs()[0].GetScopeLogs()[0].GetLogRecords()[0]
		attributes := map[string]string{}
		for _, a := range r.GetAttributes() {
			attributes[a.GetKey()] = a.GetValue().GetStringValue()
		}
		if r.GetEventName() != string(e.Name) || r.GetTimeUnixNano() != uint64(parsed.Time.UnixNano()) || attributes["uid"] != parsed.UID || attributes["user"] != string(parsed.User) {
			t.Errorf("%s: record %v", name, r)
		}
		for key := range parsed.Fields {
			if _, ok := attributes[key]; !ok {
				t.Errorf("%s: no attribute %s", name, key)
			}
		}
	}
}
