package auth

import (
	"bytes"
	"strings"
	"time"
	"unicode"

	"github.com/charmbracelet/x/ansi"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

// maxLine bounds a line that can be searched, in bytes as the process wrote them;
// a longer one is several.
const maxLine = 4 << 10

// lineReader makes lines of text of a recording's frames.
type lineReader struct {
	emit    func(at time.Duration, line string) error
	pending map[accessdv1.Stream][]byte // of each stream, what has no end yet
	began   map[accessdv1.Stream]time.Duration
	told    []byte // the line before; one that is the same again is not told again
}

func newLineReader(emit func(at time.Duration, line string) error) *lineReader {
	return &lineReader{emit: emit, pending: map[accessdv1.Stream][]byte{}, began: map[accessdv1.Stream]time.Duration{}}
}

// frame takes the next frame. What was typed is not searched.
func (l *lineReader) frame(f *accessdv1.Frame) error {
	s, data := f.GetPrint().GetStream(), f.GetPrint().GetData()
	if s != accessdv1.Stream_STREAM_STDOUT && s != accessdv1.Stream_STREAM_STDERR {
		return nil
	}
	at := time.Duration(f.GetAtUs()) * time.Microsecond
	for len(data) > 0 {
		if len(l.pending[s]) == 0 {
			l.began[s] = at
		}
		end := bytes.IndexAny(data, "\r\n")
		n := min(len(data), maxLine-len(l.pending[s]))
		if end >= 0 && end < n {
			n = end + 1
		}
		l.pending[s] = append(l.pending[s], data[:n]...)
		data = data[n:]
		if end == n-1 || len(l.pending[s]) == maxLine {
			if err := l.flush(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// flush tells of what is pending of a stream, without what drives a terminal.
func (l *lineReader) flush(s accessdv1.Stream) error {
	// A line feed behind a carriage return ends nothing.
	if again := bytes.Equal(l.pending[s], l.told); again || len(bytes.TrimSpace(l.pending[s])) == 0 {
		l.pending[s] = l.pending[s][:0]
		return nil
	}
	l.told = append(l.told[:0], l.pending[s]...)
	var text []rune
	for _, r := range ansi.Strip(strings.ToValidUTF8(string(l.pending[s]), "\ufffd")) {
		switch {
		case r == '\b': // so a shell takes back what was typed
			text = text[:max(len(text)-1, 0)]
		case unicode.IsControl(r):
			text = append(text, ' ')
		default:
			text = append(text, r)
		}
	}
	l.pending[s] = l.pending[s][:0]
	line := strings.TrimSpace(string(text))
	if line == "" {
		return nil
	}
	return l.emit(l.began[s], line)
}

// close tells of the lines that never ended.
func (l *lineReader) close() error {
	if err := l.flush(accessdv1.Stream_STREAM_STDOUT); err != nil {
		return err
	}
	return l.flush(accessdv1.Stream_STREAM_STDERR)
}
