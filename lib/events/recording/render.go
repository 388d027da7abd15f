package recording

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

// missing says what a gap is, with nothing that could drive a terminal.
func missing(g *accessdv1.FrameGap) string {
	text := "something is missing here"
	if n := g.GetBytes(); n > 0 {
		text = fmt.Sprintf("%d bytes are missing here", n)
	}
	if g.GetReason() != "" {
		text += ": " + escaped(g.GetReason())
	}
	return text
}

// escaped returns s with every control and format character, and every byte that
// is not UTF-8, in the form \xNN or \u{NNNN}.
func escaped(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return r == utf8.RuneError || !harmless(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case !harmless(r) && r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case !harmless(r):
			fmt.Fprintf(&b, `\u{%x}`, r)
		default:
			b.WriteRune(r)
		}
		s = s[n:]
	}
	return b.String()
}

// streamName is a stream in JSON and asciicast.
func streamName(s accessdv1.Stream) string {
	switch s {
	case accessdv1.Stream_STREAM_STDERR:
		return "stderr"
	case accessdv1.Stream_STREAM_STDIN:
		return "stdin"
	case accessdv1.Stream_STREAM_STDOUT, accessdv1.Stream_STREAM_UNSPECIFIED:
	}
	return "stdout"
}

// jsonFrame is a line of [WriteJSON].
type jsonFrame struct {
	DelayUS uint64     `json:"delay_us"` // since the line before
	Type    string     `json:"type"`     // start, print, resize, gap, end
	Stream  string     `json:"stream,omitempty"`
	Data    []byte     `json:"data,omitempty"` // base64
	Columns uint32     `json:"columns,omitempty"`
	Rows    uint32     `json:"rows,omitempty"`
	Reason  string     `json:"reason,omitempty"`
	Bytes   uint64     `json:"bytes,omitempty"`
	Start   *jsonStart `json:"start,omitempty"`

	Recovered bool `json:"recovered,omitempty"`
}

type jsonStart struct {
	Session  string `json:"session"`
	Started  string `json:"started"`
	Cluster  string `json:"cluster"`
	User     string `json:"user"`
	Login    string `json:"login"`
	NodeID   string `json:"node_id"`
	NodeName string `json:"node_name"`
	Kind     string `json:"kind"`
	Command  string `json:"command,omitempty"`
	Terminal bool   `json:"terminal"`
	Term     string `json:"term,omitempty"`
}

// WriteJSON writes frames as JSON objects, one on a line, with the bytes of
// streams in base64 and the time since the line before.
func WriteJSON(w io.Writer, frames Frames) error {
	out := bufio.NewWriter(w)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	var last uint64
	for f, err := range frames {
		if err != nil {
			_ = out.Flush() // what is good was there before what is not
			return err
		}
		line := jsonFrame{DelayUS: f.GetAtUs() - last}
		last = f.GetAtUs()
		switch what := f.GetWhat().(type) {
		case *accessdv1.Frame_Start:
			line.Type, line.Start = "start", startJSON(what.Start)
			line.Columns, line.Rows = what.Start.GetColumns(), what.Start.GetRows()
		case *accessdv1.Frame_Print:
			line.Type, line.Stream, line.Data = "print", streamName(what.Print.GetStream()), what.Print.GetData()
		case *accessdv1.Frame_Resize:
			line.Type, line.Columns, line.Rows = "resize", what.Resize.GetColumns(), what.Resize.GetRows()
		case *accessdv1.Frame_Gap:
			line.Type, line.Reason, line.Bytes = "gap", what.Gap.GetReason(), what.Gap.GetBytes()
		case *accessdv1.Frame_End:
			line.Type, line.Reason, line.Recovered = "end", what.End.GetReason(), what.End.GetRecovered()
		default:
			continue // from a newer version
		}
		if err := enc.Encode(line); err != nil {
			return err
		}
	}
	return out.Flush()
}

func startJSON(s *accessdv1.FrameStart) *jsonStart {
	return &jsonStart{
		Session: s.GetSession(), Started: s.GetStarted().AsTime().Format("2006-01-02T15:04:05.000000Z07:00"), Cluster: s.GetCluster(),
		User: s.GetUser(), Login: s.GetLogin(), NodeID: s.GetNodeId(), NodeName: s.GetNodeName(),
		Kind: s.GetKind(), Command: s.GetCommand(), Terminal: s.GetTerminal(), Term: s.GetTerm(),
	}
}

// WriteAsciicast writes frames as an asciicast, version 2
// (docs.asciinema.org/manual/asciicast/v2). The bytes of a session without a
// terminal get the CR that a terminal would have added.
func WriteAsciicast(w io.Writer, frames Frames) error {
	out := bufio.NewWriter(w)
	c := &cast{enc: json.NewEncoder(out)}
	c.enc.SetEscapeHTML(false)
	for f, err := range frames {
		if err == nil {
			err = c.frame(f)
		}
		if err != nil {
			_ = out.Flush() // what is good was there before what is not
			return err
		}
	}
	if err := c.rest(); err != nil {
		return err
	}
	return out.Flush()
}

// cast writes an asciicast.
type cast struct {
	enc      *json.Encoder
	begun    bool
	terminal bool
	at       float64
	partial  [2][]byte // of output and input: the beginning of a character
}

func (c *cast) frame(f *accessdv1.Frame) error {
	c.at = float64(f.GetAtUs()) / 1e6
	switch what := f.GetWhat().(type) {
	case *accessdv1.Frame_Start:
		if c.begun {
			return nil
		}
		return c.start(what.Start)
	case *accessdv1.Frame_Print:
		data := what.Print.GetData()
		if what.Print.GetStream() == accessdv1.Stream_STREAM_STDIN {
			return c.text("i", 1, data)
		}
		if !c.terminal {
			data = withReturns(data)
		}
		return c.text("o", 0, data)
	case *accessdv1.Frame_Resize:
		return c.event("r", fmt.Sprintf("%dx%d", what.Resize.GetColumns(), what.Resize.GetRows()))
	case *accessdv1.Frame_Gap:
		return c.event("m", missing(what.Gap))
	}
	return nil
}

// start writes the header.
func (c *cast) start(s *accessdv1.FrameStart) error {
	c.begun, c.terminal = true, s.GetTerminal()
	columns, rows := s.GetColumns(), s.GetRows()
	if columns == 0 || rows == 0 {
		columns, rows = defaultColumns, defaultRows
	}
	return c.enc.Encode(struct {
		Version   int               `json:"version"`
		Width     uint32            `json:"width"`
		Height    uint32            `json:"height"`
		Timestamp int64             `json:"timestamp"`
		Command   string            `json:"command,omitempty"`
		Title     string            `json:"title"`
		Env       map[string]string `json:"env,omitempty"`
	}{
		2, columns, rows, s.GetStarted().AsTime().Unix(), s.GetCommand(),
		escaped(s.GetUser() + " as " + s.GetLogin() + " on " + s.GetNodeName()), castEnv(s.GetTerm()),
	})
}

func castEnv(term string) map[string]string {
	if term == "" {
		return nil
	}
	return map[string]string{"TERM": term}
}

// text writes what a stream carried. A character whose bytes come in two pieces is
// written with the second.
func (c *cast) text(kind string, stream int, data []byte) error {
	data = append(c.partial[stream], data...)
	n := len(data) - unfinished(data)
	c.partial[stream] = append([]byte(nil), data[n:]...)
	if n == 0 {
		return nil
	}
	return c.event(kind, strings.ToValidUTF8(string(data[:n]), "\ufffd"))
}

// unfinished returns how many bytes at the end of p begin a character.
func unfinished(p []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(p); n++ {
		if b := p[len(p)-n]; utf8.RuneStart(b) {
			if b >= utf8.RuneSelf && !utf8.FullRune(p[len(p)-n:]) {
				return n
			}
			return 0
		}
	}
	return 0
}

// rest writes what never became a character.
func (c *cast) rest() error {
	for stream, kind := range []string{"o", "i"} {
		if len(c.partial[stream]) > 0 {
			if err := c.event(kind, "\ufffd"); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *cast) event(kind, data string) error {
	if !c.begun { // the part with the start frame is missing
		if err := c.start(&accessdv1.FrameStart{Terminal: true}); err != nil {
			return err
		}
	}
	return c.enc.Encode([]any{json.Number(fmt.Sprintf("%.6f", c.at)), kind, data})
}
