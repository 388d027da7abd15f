package recording

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

// told is what a test recording consists of.
func told(list ...*accessdv1.Frame) Frames {
	return func(yield func(*accessdv1.Frame, error) bool) {
		for _, f := range list {
			if !yield(f, nil) {
				return
			}
		}
	}
}

func begins(terminal bool) *accessdv1.Frame {
	return startFrame(&accessdv1.FrameStart{
		Version: version, Session: "5f0c9b1e-6a3d-4a53-9d5c-0a1c2f7f0e11", Started: timestamppb.New(time.Unix(1700000000, 0)),
		User: "alice", Login: "root", NodeName: "web-1", Kind: "shell", Terminal: terminal, Term: "xterm", Columns: 20, Rows: 4,
	})
}

func prints(at time.Duration, s accessdv1.Stream, data string) *accessdv1.Frame {
	return &accessdv1.Frame{AtUs: uint64(at.Microseconds()), What: &accessdv1.Frame_Print{Print: &accessdv1.FramePrint{Stream: s, Data: []byte(data)}}}
}

func resizes(at time.Duration, columns, rows uint32) *accessdv1.Frame {
	return &accessdv1.Frame{AtUs: uint64(at.Microseconds()), What: &accessdv1.Frame_Resize{Resize: &accessdv1.FrameResize{Columns: columns, Rows: rows}}}
}

const (
	toOut = accessdv1.Stream_STREAM_STDOUT
	toErr = accessdv1.Stream_STREAM_STDERR
	typed = accessdv1.Stream_STREAM_STDIN
)

// TestF32Filter feeds what could drive an auditor's terminal, whole and cut at
// each byte, and looks at the bytes that come out.
func TestF32Filter(t *testing.T) {
	for name, x := range map[string]struct{ in, want string }{
		"text":                       {"hé ✓\r\n\tx\b", "hé ✓\r\n\tx\b"},
		"colour":                     {"\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"},
		"colour with colons":         {"\x1b[38:2:1:2:3mx", "\x1b[38:2:1:2:3mx"},
		"cursor":                     {"\x1b[2;3H\x1b[K\x1b[2J\x1b[A", "\x1b[2;3H\x1b[K\x1b[2J\x1b[A"},
		"alternate screen":           {"\x1b[?1049h\x1b[?25l", "\x1b[?1049h\x1b[?25l"},
		"index and reverse index":    {"\x1bD\x1bM\x1b7\x1b8", "\x1bD\x1bM\x1b7\x1b8"},
		"clipboard":                  {"a\x1b]52;c;ZXZpbA==\x07b", "ab"},
		"clipboard, ST":              {"a\x1b]52;c;ZXZpbA==\x1b\\b", "ab"},
		"title":                      {"a\x1b]0;title\x07b", "ab"},
		"title, C1":                  {"a\x9d0;title\x9cb", "ab"},
		"hyperlink":                  {"\x1b]8;;file:///etc/passwd\x1b\\click\x1b]8;;\x1b\\", "click"},
		"file":                       {"a\x1b]1337;File=:AAAA\x07b", "ab"},
		"DCS":                        {"a\x1bP$q\"p\x1b\\b", "ab"},
		"termcap query":              {"a\x1bP+q544e\x1b\\b", "ab"},
		"sixel":                      {"a\x1bPq#0;2;0;0;0#0~~\x1b\\b", "ab"},
		"APC":                        {"a\x1b_Gf=24;AAAA\x1b\\b", "ab"},
		"PM":                         {"a\x1b^private\x1b\\b", "ab"},
		"SOS":                        {"a\x1bXstring\x1b\\b", "ab"},
		"device attributes":          {"a\x1b[cb\x1b[>cc\x1b[=c\x1bZ", "abc"},
		"device status":              {"a\x1b[5n\x1b[6n\x1b[?6nb", "ab"},
		"mode report":                {"a\x1b[?2004$p\x1b[4$pb", "ab"},
		"window manipulation":        {"a\x1b[21t\x1b[8;1;1tb", "ab"},
		"bracketed paste":            {"a\x1b[?2004hb", "ab"},
		"mouse":                      {"a\x1b[?1000h\x1b[?1006hb", "ab"},
		"several private modes":      {"\x1b[?1000;25;2004h", "\x1b[?25h"},
		"mouse highlighting":         {"a\x1b[1;1;1;1;1Tb", "ab"},
		"charset":                    {"a\x1b(0qqq\x1b(B\x0eb\x0f", "aqqqb"},
		"answerback":                 {"a\x05b", "ab"},
		"bell":                       {"a\x07b", "ab"},
		"keypad":                     {"a\x1b=\x1b>b", "ab"},
		"modify keys":                {"a\x1b[>4;2m\x1b[=1ub", "ab"},
		"soft reset":                 {"a\x1b[!pb", "ab"},
		"full reset":                 {"a\x1bcb", "a\x1b[0m\x1b[r\x1b[H\x1b[2Jb"},
		"CSI, C1":                    {"a\x9b5nb", "ab"},
		"CSI, C1 in UTF-8":           {"a\u009b5nb", "a5nb"},
		"RTL override":               {"a\u202eb", "ab"},
		"a parameter that overflows": {"a\x1b[99999999999999999999Cb", "ab"},
		"cancelled":                  {"a\x1b[31\x18mb", "amb"},
	} {
		for i := range len(x.in) + 1 {
			f := NewFilter()
			got := string(f.Filter([]byte(x.in[:i])))
			if got += string(f.Filter([]byte(x.in[i:]))); got != x.want {
				t.Errorf("%s, cut at %d: %q, want %q", name, i, got, x.want)
			}
		}
	}
}

// FuzzFilter: what comes out goes through unchanged, and holds nothing that makes
// a terminal answer.
func FuzzFilter(f *testing.F) {
	f.Add([]byte("a\x1b[31mb\x1b]52;c;x\x07"))
	f.Fuzz(func(t *testing.T, p []byte) {
		once := bytes.Clone(NewFilter().Filter(p))
		if again := NewFilter().Filter(once); !bytes.Equal(once, again) {
			t.Errorf("%q becomes %q", once, again)
		}
		for _, bad := range []string{"\x1b]", "\x1bP", "\x1b_", "\x1b^", "\x1bX", "\x05", "\x07", "\x0e"} {
			if bytes.Contains(once, []byte(bad)) {
				t.Errorf("%q is in %q", bad, once)
			}
		}
	})
}

// TestPlay: the pace, what is shown, what is missing, and a terminal as it was.
func TestPlay(t *testing.T) {
	var w bytes.Buffer
	var waits []time.Duration
	pace := Pace{Speed: 2, MaxIdle: 4 * time.Second, Wait: func(_ context.Context, d time.Duration) error {
		waits = append(waits, d)
		return nil
	}}
	gap := gapFrame(uint64((time.Hour + time.Second).Microseconds()), "no \x1b]0;space", 12)
	err := Play(t.Context(), &w, told(begins(true), prints(time.Second, toOut, "a\x1b]0;t\x07"), prints(time.Second, typed, "typed"), prints(time.Hour, toErr, "b"), gap), pace)
	if err != nil {
		t.Fatal(err)
	}
	if want := "ab\r\n[12 bytes are missing here: no \\x1b]0;space]\r\n" + terminalReset; w.String() != want {
		t.Errorf("%q, want %q", &w, want)
	}
	if len(waits) != 3 || waits[0] != time.Second/2 || waits[1] != 2*time.Second || waits[2] != time.Second/2 {
		t.Errorf("waits %v, want 500ms, 2s, 500ms", waits)
	}
	w.Reset()
	if err := Play(t.Context(), &w, told(begins(false), prints(0, toOut, "x\ny\n")), Pace{}); err != nil || w.String() != "x\r\ny\r\n"+terminalReset {
		t.Errorf("without a terminal: %q, %v", &w, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.Reset()
	if err := Play(ctx, &w, told(begins(true), prints(time.Hour, toOut, "late")), Pace{}); err != nil || w.String() != terminalReset {
		t.Errorf("given up: %q, %v, want a reset alone", &w, err)
	}
}

// TestWriteText: what a person would have read.
func TestWriteText(t *testing.T) {
	for name, x := range map[string]struct {
		terminal bool
		in, want string
	}{
		"lines":                {true, "one\r\ntwo\r\n", "one\ntwo\n"},
		"retyped":              {true, "lss\b\x1b[K -l\r\n", "ls -l\n"},
		"a line drawn anew":    {true, "10%\r20%\r30%\r\n", "30%\n"},
		"scrolled":             {true, "1\r\n2\r\n3\r\n4\r\n5\r\n6", "1\n2\n3\n4\n5\n6\n"},
		"wrapped":              {true, strings.Repeat("x", 25), strings.Repeat("x", 20) + "\nxxxxx\n"},
		"cleared":              {true, "secret\r\n\x1b[H\x1b[2Jnew", "secret\nnew\n"},
		"a full screen":        {true, "$ vi\r\n\x1b[?1049h\x1b[2;1Hfile\x1b[?1049l$ ", "$ vi\n\nfile\n$\n"},
		"moved":                {true, "\x1b[2;5Hx\x1b[1;1Hy", "y\n    x\n"},
		"inserted, deleted":    {true, "abd\b\x1b[@c\x1b[1;1H\x1b[P", "bcd\n"},
		"lines inserted":       {true, "a\r\nb\x1b[1;1H\x1b[Ln", "n\na\nb\n"},
		"a region scrolls":     {true, "h\x1b[2;3r\x1b[3;1Ha\r\nb\r\nc", "h\nb\nc\n"},
		"wide":                 {true, "你好!", "你好!\n"},
		"wide at the edge":     {true, strings.Repeat("x", 19) + "你", strings.Repeat("x", 19) + "\n你\n"},
		"half of a wide one":   {true, "你好\x1b[1;2Hx\x1b[1;3H\x1b[X\x1b[1;6H!", " x   !\n"},
		"a wide one deleted":   {true, "你好!\x1b[1;2H\x1b[P", " 好!\n"},
		"accents":              {true, "cafe\u0301, 가\u0323\u200d!" + strings.Repeat("x", 10) + "\u0308\r\n", "cafe\u0301, 가\u0323\u200d!" + strings.Repeat("x", 10) + "\u0308\n"},
		"an accent at the end": {true, strings.Repeat("x", 19) + "e\u0301", strings.Repeat("x", 19) + "e\u0301\n"},
		"accents for ever":     {true, "e" + strings.Repeat("\u0301", 1000), "e" + strings.Repeat("\u0301", maxMarks/2) + "\n"},
		"colours and titles":   {true, "\x1b]0;t\x07\x1b[31mred\x1b[0m", "red\n"},
		"without a terminal":   {false, "a\tb\x1b[31m\xff\u202e\nc", "a\tb\\x1b[31m\\xff\\u{202e}\nc\n"},
		"an endless line":      {false, strings.Repeat("y", longestLine+1), strings.Repeat("y", longestLine) + "\ny\n"},
		"wild parameters":      {true, "\x1b[999999999L\x1b[-1;0H\x1b[0;0r\x1b[99999@\x1b[5;2rok", "ok\n"},
		"below what is shown":  {true, "\x1b[99;99Hx\nz", "\n\n\n" + strings.Repeat(" ", 19) + "x\n" + strings.Repeat(" ", 19) + "z\n"},
	} {
		var w strings.Builder
		if err := WriteText(&w, told(begins(x.terminal), prints(0, toOut, x.in))); err != nil || w.String() != x.want {
			t.Errorf("%s: %q, %v, want %q", name, w.String(), err, x.want)
		}
	}
}

// FuzzWriteText: nothing printed breaks the screen, or gets through it.
func FuzzWriteText(f *testing.F) {
	f.Add([]byte("a\x1b[2;3r\x1b[5L\x1b[3M\x1b[?1049hx\x1b[?1049l"), uint32(10), uint32(3))
	f.Fuzz(func(t *testing.T, p []byte, columns, rows uint32) {
		var w strings.Builder
		if err := WriteText(&w, told(begins(true), prints(0, toOut, string(p)), resizes(0, columns, rows), prints(0, toOut, string(p)))); err != nil {
			t.Error(err)
		}
		if strings.IndexFunc(w.String(), func(r rune) bool { return r != '\n' && !harmless(r) }) >= 0 {
			t.Errorf("%q", w.String())
		}
	})
}

// TestWriteJSON: each line is an object with the time since the one before.
func TestWriteJSON(t *testing.T) {
	var w bytes.Buffer
	if err := WriteJSON(&w, told(begins(true), prints(time.Millisecond, toErr, "\xff\x1b"), resizes(3*time.Millisecond, 100, 30), endFrame(5000, true, "power"))); err != nil {
		t.Fatal(err)
	}
	type line struct {
		DelayUS   uint64 `json:"delay_us"`
		Type      string `json:"type"`
		Stream    string `json:"stream"`
		Data      string `json:"data"`
		Columns   int    `json:"columns"`
		Recovered bool   `json:"recovered"`
	}
	var got []line
	for text := range strings.Lines(w.String()) {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatal(err)
		}
		got = append(got, l)
	}
	want := []line{
		{Type: "start", Columns: 20},
		{DelayUS: 1000, Type: "print", Stream: "stderr", Data: base64.StdEncoding.EncodeToString([]byte("\xff\x1b"))},
		{DelayUS: 2000, Type: "resize", Columns: 100},
		{DelayUS: 2000, Type: "end", Recovered: true},
	}
	if len(got) != len(want) {
		t.Fatalf("%d lines, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("line %d: %+v, want %+v", i, got[i], want[i])
		}
	}
}

// TestWriteAsciicast: a header, then events whose text is whole characters.
func TestWriteAsciicast(t *testing.T) {
	var w bytes.Buffer
	if err := WriteAsciicast(&w, told(begins(true), prints(time.Second, toOut, "é\xe2\x9c"), prints(time.Second, toOut, "\x93\xff"),
		resizes(2*time.Second, 100, 30), prints(3*time.Second, typed, "q"), prints(3*time.Second, toOut, "\xe2"))); err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		`{"version":2,"width":20,"height":4,"timestamp":1700000000,"title":"alice as root on web-1","env":{"TERM":"xterm"}}`,
		`[1.000000,"o","é"]`, "[1.000000,\"o\",\"✓\ufffd\"]", `[2.000000,"r","100x30"]`, `[3.000000,"i","q"]`, "[3.000000,\"o\",\"\ufffd\"]", "",
	}, "\n")
	if w.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &w, want)
	}
}

// TestWritersStop: what was good is written before the error of what is not.
func TestWritersStop(t *testing.T) {
	broken := errors.New("broken")
	frames := func(yield func(*accessdv1.Frame, error) bool) {
		if yield(begins(true), nil) && yield(prints(0, toOut, "good"), nil) {
			yield(nil, broken)
		}
	}
	for name, write := range map[string]func(*bytes.Buffer) error{
		"text":      func(w *bytes.Buffer) error { return WriteText(w, frames) },
		"asciicast": func(w *bytes.Buffer) error { return WriteAsciicast(w, frames) },
		"play":      func(w *bytes.Buffer) error { return Play(t.Context(), w, frames, Pace{}) },
	} {
		var w bytes.Buffer
		if err := write(&w); !errors.Is(err, broken) || !strings.Contains(w.String(), "good") {
			t.Errorf("%s: %q, %v", name, &w, err)
		}
	}
}
