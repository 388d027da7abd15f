package recording

import (
	"bufio"
	"io"
	"strings"

	"github.com/charmbracelet/x/ansi"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

// The size of a screen whose size is not known, and bounds of any.
const (
	defaultColumns, defaultRows = 80, 24
	maxColumns, maxRows         = 1000, 500
)

// WriteText writes what a person would have read: lines in the order in which they
// left the screen, and at the end what is on it. A full-screen program is shown as
// it looked when it ended. Of a session without a terminal it is what was printed,
// with what is not text escaped.
func WriteText(w io.Writer, frames Frames) error {
	out := bufio.NewWriter(w)
	t := &textWriter{out: out}
	for f, err := range frames {
		if err == nil {
			err = t.frame(f)
		}
		if err != nil {
			t.close()
			_ = out.Flush() // what is good was there before what is not
			return err
		}
	}
	t.close()
	return out.Flush() // what went wrong with any write, too
}

// textWriter makes text of frames.
type textWriter struct {
	out    *bufio.Writer
	screen *screen // nil without a terminal
	lines  map[accessdv1.Stream][]byte
}

// longestLine bounds a line of a session without a terminal; a longer one is
// several.
const longestLine = 64 << 10

func (t *textWriter) frame(f *accessdv1.Frame) error {
	switch what := f.GetWhat().(type) {
	case *accessdv1.Frame_Start:
		if what.Start.GetTerminal() && t.screen == nil {
			t.screen = newScreen(what.Start.GetColumns(), what.Start.GetRows(), t.line)
		}
	case *accessdv1.Frame_Resize:
		if t.screen != nil {
			t.screen.resize(what.Resize.GetColumns(), what.Resize.GetRows())
		}
	case *accessdv1.Frame_Gap:
		t.flush()
		t.line("[" + missing(what.Gap) + "]")
	case *accessdv1.Frame_Print:
		if what.Print.GetStream() != accessdv1.Stream_STREAM_STDIN {
			t.print(what.Print.GetStream(), what.Print.GetData())
		}
	}
	_, err := t.out.Write(nil) // the error of an earlier write
	return err
}

// print shows output on the screen, or line by line and stream by stream.
func (t *textWriter) print(s accessdv1.Stream, p []byte) {
	if t.screen != nil {
		t.screen.write(p)
		return
	}
	if t.lines == nil {
		t.lines = map[accessdv1.Stream][]byte{}
	}
	for _, b := range p {
		switch line := t.lines[s]; {
		case b == '\n':
			t.line(plain(line))
			t.lines[s] = line[:0]
		case len(line) >= longestLine:
			t.line(plain(line))
			t.lines[s] = append(line[:0], b)
		default:
			t.lines[s] = append(line, b)
		}
	}
}

// plain is a line of output that no terminal has seen, with tabs as they are.
func plain(line []byte) string {
	cells := strings.Split(strings.TrimSuffix(string(line), "\r"), "\t")
	for i := range cells {
		cells[i] = escaped(cells[i])
	}
	return strings.Join(cells, "\t")
}

func (t *textWriter) line(s string) {
	_, _ = t.out.WriteString(s) // its error stays, and is Flush's
	_ = t.out.WriteByte('\n')
}

// flush writes what has no end yet.
func (t *textWriter) flush() {
	if t.screen != nil {
		t.screen.empty()
		return
	}
	for _, s := range []accessdv1.Stream{accessdv1.Stream_STREAM_STDOUT, accessdv1.Stream_STREAM_STDERR} {
		if len(t.lines[s]) > 0 {
			t.line(plain(t.lines[s]))
			t.lines[s] = t.lines[s][:0]
		}
	}
}

func (t *textWriter) close() { t.flush() }

// screen is what a terminal shows, without colours. Lines that leave it at the top,
// or are erased with the whole of it, are given to line.
type screen struct {
	parser        *ansi.Parser
	line          func(string)
	columns, rows int

	cells       [][]rune // rows, each as long as what was written on it
	x, y        int
	top, bottom int // of the region that scrolls; bottom is its last row
	wrap        bool
	saved       [2]int
	alternate   bool // the alternate screen is shown
}

func newScreen(columns, rows uint32, line func(string)) *screen {
	s := &screen{parser: ansi.NewParser(), line: line}
	s.parser.SetParamsSize(maxParams)
	s.parser.SetDataSize(16) // strings show nothing
	s.parser.SetHandler(ansi.Handler{Print: s.print, Execute: s.execute, HandleCsi: s.csi, HandleEsc: s.esc})
	s.columns, s.rows = size(columns, rows)
	s.cells = make([][]rune, s.rows)
	s.bottom = s.rows - 1
	return s
}

func size(columns, rows uint32) (x, y int) {
	if columns == 0 || rows == 0 {
		return defaultColumns, defaultRows
	}
	return int(min(columns, maxColumns)), int(min(rows, maxRows))
}

func (s *screen) write(p []byte) {
	for _, b := range p {
		s.parser.Advance(b)
	}
}

// resize changes the size. Rows that find no place any more leave at the top.
func (s *screen) resize(columns, rows uint32) {
	s.columns, s.rows = size(columns, rows)
	for len(s.cells) > s.rows {
		if s.y < s.rows && len(s.cells[len(s.cells)-1]) == 0 {
			s.cells = s.cells[:len(s.cells)-1]
			continue
		}
		s.leave(0)
		s.cells = s.cells[1:]
		s.y = max(0, s.y-1)
	}
	for len(s.cells) < s.rows {
		s.cells = append(s.cells, nil)
	}
	s.top, s.bottom = 0, s.rows-1
	s.x, s.y = min(s.x, s.columns-1), min(s.y, s.rows-1)
}

// leave gives away row y.
func (s *screen) leave(y int) {
	if !s.alternate {
		s.line(shownRow(s.cells[y]))
	}
}

// covered is a cell that the wide character before it covers.
const covered = -1

// shownRow is a row without what is blank at its end.
func shownRow(cells []rune) string {
	var b strings.Builder
	for _, r := range cells {
		if r != covered {
			b.WriteRune(r)
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// empty gives away every row that has something on it, or below it.
func (s *screen) empty() {
	last := len(s.cells)
	for last > 0 && shownRow(s.cells[last-1]) == "" {
		last--
	}
	for _, row := range s.cells[:last] {
		s.line(shownRow(row))
	}
	s.cells = make([][]rune, s.rows)
	s.x, s.y, s.wrap = 0, 0, false
}

func (s *screen) print(r rune) {
	if !harmless(r) {
		return
	}
	width := ansi.StringWidth(string(r))
	if width == 0 {
		return // an accent; the letter stays
	}
	if s.wrap || s.x+width > s.columns {
		s.x = 0
		s.index()
	}
	s.wrap = false
	s.put(r)
	if width > 1 {
		s.x++
		s.put(covered)
	}
	if s.x++; s.x >= s.columns {
		s.x, s.wrap = s.columns-1, true
	}
}

// put writes r where the cursor is.
func (s *screen) put(r rune) {
	row := s.cells[s.y]
	for len(row) <= s.x {
		row = append(row, ' ')
	}
	row[s.x] = r
	s.cells[s.y] = row
}

// index goes down a row, and scrolls at the end of the region.
func (s *screen) index() {
	switch {
	case s.y == s.bottom:
		s.scroll(1)
	case s.y < s.rows-1:
		s.y++
	}
}

// scroll moves the region up by n rows. What leaves the screen at its top was seen.
func (s *screen) scroll(n int) {
	for range min(n, s.bottom-s.top+1) {
		if s.top == 0 {
			s.leave(0)
		}
		copy(s.cells[s.top:s.bottom], s.cells[s.top+1:s.bottom+1])
		s.cells[s.bottom] = nil
	}
}

// scrollDown moves the region, from row from on, down by n rows.
func (s *screen) scrollDown(from, n int) {
	for range min(n, s.bottom-from+1) {
		copy(s.cells[from+1:s.bottom+1], s.cells[from:s.bottom])
		s.cells[from] = nil
	}
}

func (s *screen) execute(b byte) {
	switch b {
	case '\b':
		s.x = max(0, s.x-1)
	case '\t':
		s.x = min(s.columns-1, (s.x/8+1)*8)
	case '\r':
		s.x = 0
	case '\n', '\v', '\f':
		s.index()
	default:
		return
	}
	s.wrap = false
}

func (s *screen) esc(cmd ansi.Cmd) {
	if cmd.Intermediate() != 0 {
		return
	}
	switch cmd.Final() {
	case '7':
		s.saved = [2]int{s.x, s.y}
	case '8':
		s.moveTo(s.saved[0], s.saved[1])
	case 'D':
		s.index()
	case 'E':
		s.x = 0
		s.index()
	case 'M':
		if s.y == s.top {
			s.scrollDown(s.top, 1)
		} else {
			s.y = max(0, s.y-1)
		}
	case 'c':
		s.empty()
	}
}

func (s *screen) moveTo(x, y int) {
	s.x, s.y = min(max(x, 0), s.columns-1), min(max(y, 0), s.rows-1)
	s.wrap = false
}

// csi does what ECMA-48, section 8.3, says of the sequences that move and erase.
func (s *screen) csi(cmd ansi.Cmd, params ansi.Params) {
	n := func(i int) int {
		v, _, _ := params.Param(i, 1)
		return min(max(v, 1), maxParam)
	}
	if cmd.Prefix() == '?' {
		s.mode(cmd.Final(), params)
		return
	}
	if cmd.Prefix() != 0 || cmd.Intermediate() != 0 {
		return
	}
	switch cmd.Final() {
	case 'A':
		s.moveTo(s.x, s.y-n(0))
	case 'B', 'e':
		s.moveTo(s.x, s.y+n(0))
	case 'C', 'a':
		s.moveTo(s.x+n(0), s.y)
	case 'D':
		s.moveTo(s.x-n(0), s.y)
	case 'E':
		s.moveTo(0, s.y+n(0))
	case 'F':
		s.moveTo(0, s.y-n(0))
	case 'G', '`':
		s.moveTo(n(0)-1, s.y)
	case 'd':
		s.moveTo(s.x, n(0)-1)
	case 'H', 'f':
		s.moveTo(n(1)-1, n(0)-1)
	case 's':
		s.saved = [2]int{s.x, s.y}
	case 'u':
		s.moveTo(s.saved[0], s.saved[1])
	case 'r':
		s.region(params)
	default:
		s.edit(cmd.Final(), n(0), params)
	}
}

// edit erases, inserts, deletes and scrolls.
func (s *screen) edit(final byte, n int, params ansi.Params) {
	which, _, _ := params.Param(0, 0)
	inside := s.y >= s.top && s.y <= s.bottom
	switch final {
	case 'J':
		s.erase(which)
	case 'K':
		s.eraseLine(which)
	case 'S':
		s.scroll(n)
	case 'T':
		s.scrollDown(s.top, n)
	case 'L':
		if inside {
			s.scrollDown(s.y, n)
		}
	case 'M':
		if inside {
			for range min(n, s.bottom-s.y+1) {
				copy(s.cells[s.y:s.bottom], s.cells[s.y+1:s.bottom+1])
				s.cells[s.bottom] = nil
			}
		}
	case 'P':
		if row := s.cells[s.y]; s.x < len(row) {
			s.cells[s.y] = append(row[:s.x], row[min(len(row), s.x+n):]...)
		}
	case '@':
		if row := s.cells[s.y]; s.x < len(row) {
			blank := []rune(strings.Repeat(" ", min(n, s.columns)))
			row = append(row[:s.x:s.x], append(blank, row[s.x:]...)...)
			s.cells[s.y] = row[:min(len(row), s.columns)]
		}
	case 'X':
		row := s.cells[s.y]
		for x := s.x; x < min(len(row), s.x+n); x++ {
			row[x] = ' '
		}
	}
}

// erase erases from the cursor on, up to it, or everything.
func (s *screen) erase(which int) {
	switch which {
	case 0:
		if s.x == 0 && s.y == 0 {
			s.clear()
			return
		}
		s.eraseLine(0)
		clear(s.cells[s.y+1:])
	case 1:
		s.eraseLine(1)
		clear(s.cells[:s.y])
	case 2:
		s.clear()
	}
}

// clear erases everything; what was there was seen.
func (s *screen) clear() {
	x, y := s.x, s.y
	if !s.alternate {
		s.empty()
	}
	clear(s.cells)
	s.x, s.y = x, y
}

func (s *screen) eraseLine(which int) {
	row := s.cells[s.y]
	switch which {
	case 0:
		s.cells[s.y] = row[:min(len(row), s.x)]
	case 1:
		for x := range min(len(row), s.x+1) {
			row[x] = ' '
		}
	case 2:
		s.cells[s.y] = nil
	}
}

// region sets which rows scroll.
func (s *screen) region(params ansi.Params) {
	top, _, _ := params.Param(0, 1)
	bottom, _, _ := params.Param(1, s.rows)
	if bottom == 0 {
		bottom = s.rows
	}
	top, bottom = max(top, 1)-1, min(bottom, s.rows)-1
	if top < bottom {
		s.top, s.bottom = top, bottom
		s.moveTo(0, 0)
	}
}

// mode shows the alternate screen, or hides it. What is on the other then was seen,
// in that order; a shell that goes on below what it had printed does so at the top.
func (s *screen) mode(final byte, params ansi.Params) {
	alternate := false
	params.ForEach(0, func(_, v int, _ bool) { alternate = alternate || v == 47 || v == 1047 || v == 1049 })
	if shown := final == 'h'; alternate && shown != s.alternate {
		s.empty()
		s.alternate, s.top, s.bottom = shown, 0, s.rows-1
	}
}
