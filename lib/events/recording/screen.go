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
	// maxMarks bounds the combining characters in one place, in bytes.
	maxMarks = 32
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
			t.screen = newScreen(what.Start.GetColumns(), what.Start.GetRows(), func(r row) { t.line(r.text()) })
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

// cell is a place on the screen.
type cell struct {
	r     rune   // covered below the second half of a wide character
	marks string // combining characters that stand on it
}

// covered is the rune of a place that the wide character before it covers.
const covered = -1

// row is a row of the screen, as long as what was written on it.
type row struct {
	cells []cell
	at    uint64 // when it was begun, in microseconds
	full  bool   // what was written goes on in the row below
}

// text is a row without what is blank at its end.
func (r row) text() string { return strings.TrimRight(r.whole(), " ") }

func (r row) whole() string {
	var b strings.Builder
	for _, c := range r.cells {
		if c.r != covered {
			b.WriteRune(c.r)
			b.WriteString(c.marks)
		}
	}
	return b.String()
}

// mend makes blanks of halves of wide characters, after places between from and to
// changed.
func (r row) mend(from, to int) {
	for x := max(from, 0); x < min(to+1, len(r.cells)); x++ {
		next := x+1 < len(r.cells) && r.cells[x+1].r == covered
		switch {
		case r.cells[x].r == covered && (x == 0 || !wide(r.cells[x-1].r)), wide(r.cells[x].r) && !next:
			r.cells[x] = cell{r: ' '}
		}
	}
}

// width returns how many places a character takes.
func width(r rune) int {
	if r < 0x300 { // the first that combines
		return 1
	}
	return ansi.StringWidth(string(r))
}

func wide(r rune) bool { return r >= 0x1100 && width(r) > 1 }

// screen is what a terminal shows, without colours. Lines that leave it at the top,
// or are erased with the whole of it, are given to line.
type screen struct {
	parser        *ansi.Parser
	line          func(row)
	all           bool   // also those that leave the alternate screen
	now           uint64 // of what is written, in microseconds
	columns, rows int

	cells       []row
	x, y        int
	top, bottom int // of the region that scrolls; bottom is its last row
	wrap        bool
	saved       [2]int
	alternate   bool // the alternate screen is shown
}

func newScreen(columns, rows uint32, line func(row)) *screen {
	s := &screen{parser: ansi.NewParser(), line: line}
	s.parser.SetParamsSize(maxParams)
	s.parser.SetDataSize(16) // strings show nothing
	s.parser.SetHandler(ansi.Handler{Print: s.print, Execute: s.execute, HandleCsi: s.csi, HandleEsc: s.esc})
	s.columns, s.rows = size(columns, rows)
	s.cells = make([]row, s.rows)
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
		if s.y < s.rows && len(s.cells[len(s.cells)-1].cells) == 0 {
			s.cells = s.cells[:len(s.cells)-1]
			continue
		}
		s.leave(0)
		s.cells = s.cells[1:]
		s.y = max(0, s.y-1)
	}
	for len(s.cells) < s.rows {
		s.cells = append(s.cells, row{})
	}
	s.top, s.bottom = 0, s.rows-1
	s.x, s.y = min(s.x, s.columns-1), min(s.y, s.rows-1)
}

// leave gives away row y.
func (s *screen) leave(y int) {
	if !s.alternate || s.all {
		s.line(s.cells[y])
	}
}

// empty gives away every row that has something on it, or below it.
func (s *screen) empty() {
	last := len(s.cells)
	for last > 0 && s.cells[last-1].text() == "" {
		last--
	}
	for _, row := range s.cells[:last] {
		s.line(row)
	}
	s.cells = make([]row, s.rows)
	s.x, s.y, s.wrap = 0, 0, false
}

func (s *screen) print(r rune) {
	if !harmless(r) {
		return
	}
	n := width(r)
	if n == 0 {
		s.mark(r)
		return
	}
	if s.wrap || s.x+n > s.columns {
		s.cells[s.y].full = true
		s.x = 0
		s.index()
	}
	s.wrap = false
	s.put(r, n)
	if s.x += n; s.x >= s.columns {
		s.x, s.wrap = s.columns-1, true
	}
}

// mark puts a combining character on what was printed before.
func (s *screen) mark(r rune) {
	x := s.x - 1
	if s.wrap {
		x = s.x
	}
	cells := s.cells[s.y].cells
	if x > 0 && x < len(cells) && cells[x].r == covered {
		x--
	}
	if x >= 0 && x < len(cells) && len(cells[x].marks) < maxMarks {
		cells[x].marks += string(r)
	}
}

// put writes r, which takes n places, where the cursor is.
func (s *screen) put(r rune, n int) {
	row := &s.cells[s.y]
	if len(row.cells) == 0 {
		row.at = s.now
	}
	for len(row.cells) < s.x+n {
		row.cells = append(row.cells, cell{r: ' '})
	}
	if s.x+n >= s.columns {
		row.full = false
	}
	old := row.cells[s.x : s.x+n]
	whole := old[0].r != covered && !wide(old[n-1].r)
	old[0] = cell{r: r}
	if n > 1 {
		old[1] = cell{r: covered}
	}
	if !whole {
		row.mend(s.x-1, s.x+n)
	}
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
		places := s.cells[s.top].cells[:0]
		copy(s.cells[s.top:s.bottom], s.cells[s.top+1:s.bottom+1])
		s.cells[s.bottom] = row{cells: places}
	}
}

// scrollDown moves the region, from row from on, down by n rows.
func (s *screen) scrollDown(from, n int) {
	for range min(n, s.bottom-from+1) {
		copy(s.cells[from+1:s.bottom+1], s.cells[from:s.bottom])
		s.cells[from] = row{}
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
				s.cells[s.bottom] = row{}
			}
		}
	default:
		s.editRow(&s.cells[s.y], final, n)
	}
}

// editRow deletes, inserts and erases places of the cursor's row.
func (s *screen) editRow(row *row, final byte, n int) {
	cells := row.cells
	if s.x >= len(cells) {
		return
	}
	switch final {
	case 'P':
		row.cells = append(cells[:s.x], cells[min(len(cells), s.x+n):]...)
		row.full = false
		row.mend(s.x-1, s.x)
	case '@':
		cells = append(cells[:s.x:s.x], append(blanks(min(n, s.columns)), cells[s.x:]...)...)
		row.cells = cells[:min(len(cells), s.columns)]
		row.mend(s.x-1, len(row.cells))
	case 'X':
		copy(cells[s.x:], blanks(min(len(cells)-s.x, n)))
		row.mend(s.x-1, s.x+n)
	}
}

// blanks returns n places with nothing on them.
func blanks(n int) []cell {
	out := make([]cell, n)
	for i := range out {
		out[i].r = ' '
	}
	return out
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
	if !s.alternate || s.all {
		s.empty()
	}
	clear(s.cells)
	s.x, s.y = x, y
}

func (s *screen) eraseLine(which int) {
	r := &s.cells[s.y]
	switch which {
	case 0:
		r.cells, r.full = r.cells[:min(len(r.cells), s.x)], false
		r.mend(s.x-1, s.x)
	case 1:
		copy(r.cells, blanks(min(len(r.cells), s.x+1)))
		r.mend(s.x, s.x+1)
	case 2:
		*r = row{}
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
