package recording

import (
	"bytes"
	"hash/maphash"
	"strings"
	"time"
	"unicode"

	"github.com/charmbracelet/x/ansi"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

const (
	// MaxLine bounds a line of a [LineReader], in bytes as the process wrote them; a
	// longer one is several.
	MaxLine = 4 << 10
	// dwell is how long something must stand on the screen to have been seen.
	dwell = 200 * time.Millisecond
	// maxKnown bounds the lines that are remembered as told; beyond it they may be
	// told again.
	maxKnown = 1 << 16
)

// LineReader makes lines of text of a recording's frames, as they were seen: of a
// session with a terminal those that left the screen at its top, stood on it for a
// moment or were on it in the end, whatever drew them, and a line that took several
// rows as one. Of a session without one they are what was printed. No line is told
// twice. What was typed is not among them.
type LineReader struct {
	emit  func(at time.Duration, line string) error
	err   error // of emit
	seed  maphash.Seed
	known map[uint64]struct{} // the lines told

	screen *screen // nil without a terminal
	head   joined  // of rows that have left the screen
	at     uint64  // of the frame before

	pending map[accessdv1.Stream][]byte // of each stream, what has no end yet
	began   map[accessdv1.Stream]time.Duration
	told    []byte // the line before; what is the same again costs nothing
}

// NewLineReader returns a LineReader that calls emit with each line and the time at
// which it began. An error of emit is the last call's.
func NewLineReader(emit func(at time.Duration, line string) error) *LineReader {
	return &LineReader{
		emit: emit, seed: maphash.MakeSeed(), known: map[uint64]struct{}{},
		pending: map[accessdv1.Stream][]byte{}, began: map[accessdv1.Stream]time.Duration{},
	}
}

// Frame takes the next frame.
func (l *LineReader) Frame(f *accessdv1.Frame) error {
	if start := f.GetStart(); start.GetTerminal() && l.screen == nil {
		l.screen = newScreen(start.GetColumns(), start.GetRows(), l.left)
		l.screen.all = true
	}
	s, data := f.GetPrint().GetStream(), f.GetPrint().GetData()
	shown := s == accessdv1.Stream_STREAM_STDOUT || s == accessdv1.Stream_STREAM_STDERR
	switch {
	case l.screen != nil && (shown || f.GetResize() != nil):
		if at := f.GetAtUs(); at-l.at >= uint64(dwell/time.Microsecond) {
			l.look()
		}
		l.at = f.GetAtUs()
		l.screen.now = l.at
		l.screen.write(data)
		if size := f.GetResize(); size != nil {
			l.screen.resize(size.GetColumns(), size.GetRows())
		}
	case shown:
		l.print(s, data, micros(f.GetAtUs()))
	}
	return l.err
}

// Close tells of the lines that never ended.
func (l *LineReader) Close() error {
	if l.screen != nil {
		l.screen.empty()
		l.tell(l.head.at, l.head.text)
	}
	l.flush(accessdv1.Stream_STREAM_STDOUT)
	l.flush(accessdv1.Stream_STREAM_STDERR)
	return l.err
}

func micros(us uint64) time.Duration { return time.Duration(us) * time.Microsecond }

// tell tells of a line unless it was told before.
func (l *LineReader) tell(at uint64, line string) {
	line = strings.TrimSpace(line)
	if line == "" || l.err != nil {
		return
	}
	id := maphash.String(l.seed, line)
	if _, again := l.known[id]; again {
		return
	}
	if len(l.known) >= maxKnown {
		clear(l.known)
	}
	l.known[id] = struct{}{}
	l.err = l.emit(micros(at), line)
}

// joined is the text of rows of which each but the last was full.
type joined struct {
	text string
	at   uint64
}

// add adds a row and returns the line when it ends there.
func (j *joined) add(r row) (at uint64, line string) {
	if j.text == "" {
		j.at = r.at
	}
	j.text += r.whole()
	if r.full && len(j.text) < MaxLine {
		return 0, ""
	}
	at, line = j.at, j.text
	*j = joined{}
	return at, line
}

// left takes a row that has left the screen.
func (l *LineReader) left(r row) { l.tell(l.head.add(r)) }

// look tells of what has stood on the screen, but for the line in which the cursor
// is: that is being written, unless a program fills the screen.
func (l *LineReader) look() {
	s, line, cursor := l.screen, l.head, false
	for y, r := range s.cells {
		cursor = cursor || y == s.y && !s.alternate
		at, text := line.add(r)
		if line.text != "" {
			continue
		}
		if !cursor {
			l.tell(at, text)
		}
		cursor = false
	}
}

// print takes output that no terminal has seen.
func (l *LineReader) print(s accessdv1.Stream, data []byte, at time.Duration) {
	for len(data) > 0 && l.err == nil {
		pending := l.pending[s]
		if len(pending) == 0 {
			l.began[s] = at
			if data = l.unlike(data); len(data) == 0 {
				return
			}
		}
		n := min(len(data), MaxLine-len(pending)) // no further, or long lines are gone through again and again
		end := lineEnd(data[:n])
		if end >= 0 {
			n = end + 1
		}
		l.pending[s] = append(pending, data[:n]...)
		data = data[n:]
		if end == n-1 || len(l.pending[s]) == MaxLine {
			l.flush(s)
		}
	}
}

// lineEnd returns where the first line of data ends, or -1. It is bytes.IndexAny of
// both, which goes byte by byte.
func lineEnd(data []byte) int {
	end := bytes.IndexByte(data, '\n')
	if end >= 0 {
		data = data[:end]
	}
	if cr := bytes.IndexByte(data, '\r'); cr >= 0 {
		end = cr
	}
	return end
}

// unlike returns data without the lines at its beginning that are the one before.
func (l *LineReader) unlike(data []byte) []byte {
	if n := len(l.told); n == 0 || l.told[n-1] != '\n' && l.told[n-1] != '\r' {
		return data
	}
	for bytes.HasPrefix(data, l.told) {
		data = bytes.TrimPrefix(data[len(l.told):], []byte{'\n'})
	}
	return data
}

// flush tells of what is pending of a stream, without what drives a terminal.
func (l *LineReader) flush(s accessdv1.Stream) {
	pending := l.pending[s]
	l.pending[s] = pending[:0]
	// A line feed behind a carriage return ends nothing.
	if bytes.Equal(pending, l.told) || len(bytes.TrimSpace(pending)) == 0 {
		return
	}
	l.told = append(l.told[:0], pending...)
	var text []rune
	for _, r := range ansi.Strip(strings.ToValidUTF8(string(pending), "\ufffd")) {
		switch {
		case r == '\b':
			text = text[:max(len(text)-1, 0)]
		case unicode.IsControl(r):
			text = append(text, ' ')
		default:
			text = append(text, r)
		}
	}
	l.tell(uint64(l.began[s].Microseconds()), string(text))
}
