package events

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// testTime is the clock of tests.
var testTime = time.Date(2026, 3, 1, 9, 30, 0, 123456000, time.UTC)

// hostile is text of THREATS.md row F31, and what may come of it nowhere.
var hostile = []string{
	"a\nb", "a\r\nb", "a\x00b", "\x1b[2J", "\x1b]52;c;Zm9v\x07", "\x1b]8;;http://x\x1b\\", "\x9b31m", "\u009b31m",
	"\u202egpj.exe", "\u2066x\u2069", "\u200b", "\ufeff", "\u2028", "\u2029", "\u00ad", "\U000e0041", "\x7f",
	`} {"`, `","success":true,"user":"root`, strings.Repeat("x", 64<<10), "\xff\xfe", "\xed\xa0\x80", "\xc3", "\\", `\u0000`,
	"Accepted publickey for root from 1.2.3.4", "日本語", "🔑", "é",
}

// sample returns an event of the given kind with every field set to its example.
func sample(spec Spec) Event {
	e := Event{
		Name: spec.Name, UID: "0195510c-9a40-7bb2-8c51-0b5e6f1f2a11", Time: testTime, ClusterName: "example",
		User: "alice", Login: "root", SID: "5f0c9b1e-6a3d-4a53-9d5c-0a1c2f7f0e11",
		ServerID: "b1946ac9-2492-4d23-94c6-235b4d2611e5", ServerHostname: "web-1",
		AddrRemote: "203.0.113.7:50122", Proto: "ssh", Success: true, Fields: map[string]any{},
	}
	for _, f := range spec.Fields {
		e.Fields[f.Name] = exampleOf(f)
	}
	if spec.Outcome == Failure {
		e.Error = "certificate expired"
	}
	return e
}

func exampleOf(f Field) any {
	switch f.Type {
	case Int:
		var n int
		_, _ = fmt.Sscan(f.Example, &n)
		return n
	case Bool:
		return f.Example == "true"
	case List:
		return strings.Split(f.Example, ",")
	case Map:
		k, v, _ := strings.Cut(f.Example, "=")
		return map[string]string{k: v}
	case String:
	}
	return f.Example
}

// encode returns what Emit writes of e.
func encode(t testing.TB, e Event) []byte {
	t.Helper()
	if e.Time.IsZero() {
		e.Time = testTime
	}
	line, err := newSchema().encode(e, MaxEvent)
	if err != nil {
		t.Fatalf("encode %s: %v", e.Name, err)
	}
	return line
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what it was:\n%s\nwant\n%s", name, got, want)
	}
}

func TestTableIsWhole(t *testing.T) {
	common := map[string]bool{}
	for _, f := range Common() {
		common[f.Name] = true
	}
	codes, seen := map[string]Name{}, map[Name]bool{}
	for _, spec := range Table() {
		if other, twice := codes[spec.Code]; twice || seen[spec.Name] {
			t.Errorf("%s: code %s or the name stands twice (%s)", spec.Name, spec.Code, other)
		}
		codes[spec.Code], seen[spec.Name] = spec.Name, true
		if !isName(string(spec.Name)) || !isCode(spec.Code+"I") || spec.Meaning == "" {
			t.Errorf("%s: malformed row %+v", spec.Name, spec)
		}
		fields := map[string]bool{}
		for _, f := range spec.Fields {
			if common[f.Name] || fields[f.Name] {
				t.Errorf("%s.%s stands twice", spec.Name, f.Name)
			}
			fields[f.Name] = true
			if !isName(f.Name) || f.Meaning == "" || f.Example == "" {
				t.Errorf("%s.%s: malformed row %+v", spec.Name, f.Name, f)
			}
			if _, ok := convert(f.Type, exampleOf(f)); !ok {
				t.Errorf("%s.%s: example %q is not a %s", spec.Name, f.Name, f.Example, f.Type)
			}
		}
	}
}

func TestCommonFieldsAreWrittenInTheirOrder(t *testing.T) {
	e := sample(Table()[0])
	e.Error, e.Fields = "x", map[string]any{}
	line := string(encode(t, e))
	at := -1
	for _, f := range Common() {
		if f.Name == truncatedField {
			continue
		}
		i := strings.Index(line, `"`+f.Name+`":`)
		if i <= at {
			t.Errorf("%s stands at %d, after it %d, in %s", f.Name, i, at, line)
		}
		at = i
	}
}

func TestGoldenEvents(t *testing.T) {
	var lines []byte
	for _, spec := range Table() {
		lines = append(append(lines, encode(t, sample(spec))...), '\n')
	}
	golden(t, "events.jsonl", lines)
	for line := range bytes.Lines(lines) {
		if _, err := ParseEvent(bytes.TrimSuffix(line, []byte("\n"))); err != nil {
			t.Errorf("ParseEvent(%s) = %v", line, err)
		}
	}
}

func TestEncode(t *testing.T) {
	type role string
	e := Event{
		Name: CertCreate, Time: testTime, Success: true, User: "alice",
		Fields: map[string]any{
			"cert_serial": uint64(1<<64 - 1), "roles": []role{"a", "b"}, "valid_before": testTime.Add(time.Hour),
			"node_labels": names.Labels{"env": "prod"}, "principals": []string{},
		},
	}
	got, err := ParseEvent(encode(t, e))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"cert_serial": "18446744073709551615", "roles": []string{"a", "b"}, "valid_before": "2026-03-01T10:30:00Z",
		"node_labels": map[string]string{"env": "prod"}, "principals": []string{},
	}
	for key, v := range want {
		if fmt.Sprint(got.Fields[key]) != fmt.Sprint(v) {
			t.Errorf("%s = %v, want %v", key, got.Fields[key], v)
		}
	}
	if got.Code != "A1003I" || got.UID == "" || !got.Time.Equal(testTime) {
		t.Errorf("got code %s, uid %q, time %v", got.Code, got.UID, got.Time)
	}
	e = Event{Name: SessionEnd, SID: "5f0c9b1e-6a3d-4a53-9d5c-0a1c2f7f0e11", Fields: map[string]any{"duration_ms": 1500 * time.Millisecond}}
	got, _ = ParseEvent(encode(t, e))
	if got.Fields["duration_ms"] != int64(1500) || !got.Success {
		t.Errorf("session.end = %+v, want 1500 ms and success", got)
	}
}

func TestOutcomeDecidesTheCode(t *testing.T) {
	for _, tt := range []struct {
		name    Name
		success bool
		want    string
	}{
		{UserLogin, true, "A1000I"},
		{UserLogin, false, "A1000W"},
		{SessionStart, false, "A3000I"},
		{SessionRejected, true, "A3002W"},
	} {
		got, err := ParseEvent(encode(t, Event{Name: tt.name, Success: tt.success}))
		if err != nil || got.Code != tt.want || got.Success != strings.HasSuffix(tt.want, "I") {
			t.Errorf("%s, success %v: code %s, success %v, %v; want %s", tt.name, tt.success, got.Code, got.Success, err, tt.want)
		}
	}
}

func TestCheckRefusesWhatIsNotInTheTable(t *testing.T) {
	for _, e := range []Event{
		{Name: "user.logn"},
		{},
		{Name: UserLogin, Fields: map[string]any{"methd": "x"}},
		{Name: UserLogin, Fields: map[string]any{"user": "x"}},
		{Name: UserLogin, Fields: map[string]any{"method": 3.5}},
		{Name: UserLogin, Fields: map[string]any{"method": nil}},
		{Name: UserLogin, Fields: map[string]any{"roles": "a"}},
		{Name: SessionEnd, Fields: map[string]any{"exit_code": "0"}},
		{Name: SessionStart, Fields: map[string]any{"pty": 1}},
		{Name: SessionStart, Fields: map[string]any{"env": map[string]int{}}},
		{Name: UserLogin, UID: "x"},
	} {
		if err := Check(e); !fault.Is(err, fault.Internal) || err == nil {
			t.Errorf("Check(%+v) = %v, want an internal error", e, err)
		}
	}
}

func TestSessionUIDsFollowFromTheSession(t *testing.T) {
	sid := names.NewSessionID()
	uid := func(n Name) string {
		e, err := ParseEvent(encode(t, Event{Name: n, SID: sid}))
		if err != nil {
			t.Fatal(err)
		}
		return e.UID
	}
	start, end, exec := uid(SessionStart), uid(SessionEnd), uid(Exec)
	if start != uid(SessionStart) || end != uid(SessionEnd) || start == end {
		t.Error("a session's start and end do not have one uid each")
	}
	if exec == uid(Exec) {
		t.Error("two commands of a session have one uid")
	}
}

// F31: whatever a peer sends, an event is one line of printable ASCII, and reads
// back as what was sent, with bytes that are no text visibly replaced.
func TestF31HostileTextIsOneLine(t *testing.T) {
	for _, text := range hostile {
		e := Event{
			Name: Exec, User: names.UserName(text), Login: names.Login(text), SID: names.SessionID(text), AddrRemote: text, Proto: text,
			Error: text, ServerID: text, ServerHostname: text, ClusterName: text,
			Fields: map[string]any{"command": text, "client": text, "reason": text},
		}
		line := encode(t, e)
		if i := bytes.IndexFunc(line, func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
			t.Errorf("%q: byte %#x in %q", clip(text), line[i], line)
		}
		if len(line) > MaxEvent {
			t.Errorf("%q: %d bytes", clip(text), len(line))
		}
		var plain map[string]any
		if err := json.Unmarshal(line, &plain); err != nil {
			t.Errorf("%q: not JSON: %v", clip(text), err)
		}
		back, err := ParseEvent(line)
		if err != nil {
			t.Fatalf("%q: %v", clip(text), err)
		}
		want := strings.ToValidUTF8(text, "\ufffd")
		if text == "\xff\xfe" {
			want = "\ufffd\ufffd"
		}
		if text == "\xed\xa0\x80" {
			want = "\ufffd\ufffd\ufffd"
		}
		if got := back.Fields["command"]; len(text) <= maxCommand && got != want {
			t.Errorf("command %q reads back as %q", text, got)
		}
		if plain["success"] != false || string(back.User) == "root" {
			t.Errorf("%q changed another field: %s", clip(text), line)
		}
	}
}

func TestF31Display(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"plain text, 日本語 é 🔑", "plain text, 日本語 é 🔑"},
		{"", ""},
		{"a\nb\r\t", `a\x0ab\x0d\x09`},
		{"\x1b[31m\x07", `\x1b[31m\x07`},
		{"\x9b31m", `\x9b31m`},
		{"\u009b31m", `\x9b31m`},
		{"\x00\x7f", `\x00\x7f`},
		{"\u202etxt.exe\u2028", `\u{202e}txt.exe\u{2028}`},
		{"a\u200bb\ufeff\u00ad", `a\u{200b}b\u{feff}\xad`},
		{"\U000e0041", `\u{e0041}`},
		{"\ufffd", "\ufffd"},
		{"\xff", `\xff`},
	} {
		if got := Display(tt.in); got != tt.want {
			t.Errorf("Display(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
	for _, text := range hostile {
		if got := Display(text); strings.IndexFunc(got, hidden) >= 0 {
			t.Errorf("Display(%q) = %q holds something hidden", clip(text), clip(got))
		}
	}
}

func TestLongTextIsCutAndMarked(t *testing.T) {
	for _, tt := range []struct {
		name string
		text string
	}{
		{"ASCII", strings.Repeat("x", 200_000)},
		{"control", strings.Repeat("\x01", 200_000)},
		{"three bytes", strings.Repeat("語", 70_000)},
		{"four bytes", strings.Repeat("🔑", 70_000)},
		{"no UTF-8", strings.Repeat("\x80", 200_000)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			long := tt.text
			list := slices.Repeat([]string{long}, 300)
			e := Event{
				Name: SessionStart, User: names.UserName(long), Error: long, ServerHostname: long, ServerID: long, ClusterName: long, Login: names.Login(long), AddrRemote: long, Proto: long,
				Fields: map[string]any{"command": long, "term": long, "roles": list, "env": map[string]string{long: long, "a": long}, "key_id": long, "client": long},
			}
			line := encode(t, e)
			if len(line) > MaxEvent {
				t.Fatalf("%d bytes, want at most %d", len(line), MaxEvent)
			}
			back, err := ParseEvent(line)
			if err != nil {
				t.Fatal(err)
			}
			for _, key := range []string{"command", "user", "roles", "env"} {
				if cut, _ := back.Fields[truncatedField].([]string); !slices.Contains(cut, key) {
					t.Errorf("%s is not marked as cut: %v", key, cut)
				}
			}
		})
	}
	short := encode(t, Event{Name: Exec, Fields: map[string]any{"command": strings.Repeat("x", maxCommand)}})
	if back, err := ParseEvent(short); err != nil || len(back.Fields["command"].(string)) != maxCommand || back.Fields[truncatedField] != nil {
		t.Errorf("a command of %d bytes was cut: %v", maxCommand, err)
	}
}

func TestEncodeLeavesTheCallersFieldsAlone(t *testing.T) {
	long := strings.Repeat("x", 2*maxText)
	fields := map[string]any{"roles": []string{long}, "env": map[string]string{"a": long}}
	encode(t, Event{Name: SessionStart, Fields: fields})
	if len(fields["roles"].([]string)[0]) != len(long) || len(fields["env"].(map[string]string)["a"]) != len(long) || len(fields) != 2 {
		t.Error("the caller's fields were changed")
	}
}

func TestParseEventRefuses(t *testing.T) {
	good := string(encode(t, Event{Name: Exec, UID: "0195510c-9a40-7bb2-8c51-0b5e6f1f2a11", User: "alice", Success: true, Fields: map[string]any{"command": "ls"}}))
	if _, err := ParseEvent([]byte(good)); err != nil {
		t.Fatal(err)
	}
	swap := func(old, with string) string {
		t.Helper()
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in %s", old, good)
		}
		return strings.Replace(good, old, with, 1)
	}
	cases := map[string]string{
		"empty":              "",
		"null":               "null",
		"array":              "[]",
		"no members":         "{}",
		"trailing newline":   good + "\n",
		"trailing event":     good + good,
		"leading space":      " " + good,
		"inner space":        swap(`,"uid"`, `, "uid"`),
		"order":              swap(`"user":"alice",`, ``)[:len(good)-len(`"user":"alice",`)-1] + `,"user":"alice"}`,
		"member twice":       swap(`"success":true`, `"success":false,"success":true`),
		"field twice":        swap(`"command":"ls"`, `"command":"rm","command":"ls"`),
		"empty common":       swap(`"user":"alice"`, `"user":""`),
		"raw UTF-8":          swap(`"ls"`, `"é"`),
		"other escape":       swap(`"ls"`, `"\n"`),
		"capital escape":     swap(`"ls"`, `"\u00E9"`),
		"escaped ASCII":      swap(`"ls"`, `"\u006cs"`),
		"lone surrogate":     swap(`"ls"`, `"\ud800"`),
		"raw control":        swap(`"ls"`, "\"l\x01s\""),
		"float":              swap(`"ls"`, `1.5`),
		"exponent":           swap(`"ls"`, `1e3`),
		"minus zero":         swap(`"ls"`, `-0`),
		"huge number":        swap(`"ls"`, `9223372036854775808`),
		"null field":         swap(`"ls"`, `null`),
		"nested":             swap(`"ls"`, `{"a":{"b":"c"}}`),
		"mixed list":         swap(`"ls"`, `["a",1]`),
		"unsorted map":       swap(`"ls"`, `{"b":"c","a":"d"}`),
		"success as text":    swap(`true`, `"true"`),
		"no success":         swap(`,"success":true`, ``),
		"uid upper case":     swap("0195510c", "0195510C"),
		"uid braces":         swap(`"0195510c-9a40-7bb2-8c51-0b5e6f1f2a11"`, `"{0195510c-9a40-7bb2-8c51-0b5e6f1f2a11}"`),
		"no uid":             swap(`,"uid":"0195510c-9a40-7bb2-8c51-0b5e6f1f2a11"`, ``),
		"name":               swap(`"event":"exec"`, `"event":"Exec"`),
		"name with space":    swap(`"event":"exec"`, `"event":"exec x"`),
		"code":               swap(`"A3004I"`, `"3004"`),
		"time zone":          swap(`123456Z`, `123456+00:00`),
		"time precision":     swap(`123456Z`, `123Z`),
		"time number":        swap(`"time":"2026-03-01T09:30:00.123456Z"`, `"time":1`),
		"time with comma":    swap(`00.123456Z`, `00,123456Z`),
		"hour of one digit":  swap(`T09:30`, `T9:30`),
		"common as a field":  swap(`"user":"alice",`, ``)[:len(good)-len(`"user":"alice",`)-1] + `,"proto":"alice"}`,
		"trailing comma":     swap(`"ls"}`, `"ls",}`),
		"no key":             swap(`"command":`, ``),
		"open list":          swap(`"ls"}`, `["a"`),
		"list with comma":    swap(`"ls"`, `["a",]`),
		"list of nothing":    swap(`"ls"`, `[,]`),
		"map without value":  swap(`"ls"`, `{"a"}`),
		"map with comma":     swap(`"ls"`, `{"a":"b",}`),
		"map key twice":      swap(`"ls"`, `{"a":"b","a":"c"}`),
		"swapped surrogates": swap(`"ls"`, `"\udc00\ud800"`),
		"escape cut off":     swap(`"ls"}`, `"\u00`),
		"backslash at end":   swap(`"ls"}`, `"\`),
		"empty number":       swap(`"ls"`, `-`),
		"plus":               swap(`"ls"`, `+1`),
		"leading zero":       swap(`"ls"`, `01`),
		"month 13":           swap(`2026-03-01`, `2026-13-01`),
		"field name":         swap(`"command"`, `"Command"`),
		"user as a number":   swap(`"alice"`, `7`),
		"deep":               strings.Repeat(`{"a":`, 10000) + "1" + strings.Repeat("}", 10000),
		"too long":           swap(`"ls"`, `"`+strings.Repeat("x", MaxEvent)+`"`),
		"not closed":         good[:len(good)-1],
		"invalid UTF-8":      swap(`"ls"`, "\"\xff\""),
		"long name":          swap(`"event":"exec"`, `"event":"`+strings.Repeat("a", 65)+`"`),
		"field with a quote": swap(`"command"`, `"a\"b"`),
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		if e, err := ParseEvent([]byte(cases[name])); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: ParseEvent(%s) = %+v, %v; want it refused", name, clip(cases[name]), e, err)
		}
	}
}

// A log outlives its writers: what a newer member emits is kept.
func TestParseEventTakesUnknownNamesAndFields(t *testing.T) {
	line := `{"event":"lock.created","code":"B7000W","time":"2031-01-02T03:04:05.000006Z","uid":"0195510c-9a40-7bb2-8c51-0b5e6f1f2a11","success":false,"lock.target":{"user":"bob"},"ttl_s":-5}`
	e, err := ParseEvent([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := json.Marshal(e); err != nil || string(got) != line {
		t.Errorf("it is encoded as %s, %v", got, err)
	}
	var again Event
	if err := json.Unmarshal([]byte(line), &again); err != nil || again.Fields["ttl_s"] != int64(-5) {
		t.Errorf("Unmarshal = %+v, %v", again, err)
	}
}

func FuzzParseEvent(f *testing.F) {
	for _, spec := range Table() {
		f.Add(encode(f, sample(spec)))
	}
	for _, text := range hostile {
		f.Add(encode(f, Event{Name: Exec, Fields: map[string]any{"command": clip(text)}}))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEvent(data)
		if err != nil {
			if !fault.Is(err, fault.BadInput) {
				t.Errorf("error %v is not of kind bad input", err)
			}
			return
		}
		if got := e.appendTo(nil); !bytes.Equal(got, data) {
			t.Errorf("%q is encoded as %q", data, got)
		}
		if bytes.ContainsFunc(data, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q is not one line of ASCII", data)
		}
	})
}

func FuzzText(f *testing.F) {
	for _, text := range hostile {
		f.Add(clip(text))
	}
	f.Fuzz(func(t *testing.T, text string) {
		line := encode(t, Event{Name: SessionStart, User: names.UserName(text), Error: text, Fields: map[string]any{
			"command": text, "roles": []string{text, "x"}, "env": map[string]string{text: text, "\xff" + text: "a", "\xfe" + text: "b", "x": text},
		}})
		e, err := ParseEvent(line)
		if err != nil {
			t.Fatalf("ParseEvent(%s) = %v", line, err)
		}
		if again := e.appendTo(nil); !bytes.Equal(again, line) {
			t.Errorf("%s is encoded again as %s", line, again)
		}
		got := appendText(nil, text)
		if len(got) != textSize(text) {
			t.Errorf("textSize(%q) = %d, want %d", text, textSize(text), len(got))
		}
		var back string
		if err := json.Unmarshal(got, &back); err != nil || !bytes.Equal(appendText(nil, back), got) {
			t.Errorf("%q reads back as %q, %v", got, back, err)
		}
		if strings.IndexFunc(Display(text), hidden) >= 0 {
			t.Errorf("Display(%q) holds something hidden", text)
		}
	})
}
