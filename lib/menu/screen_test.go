package menu_test

import (
	"bytes"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
)

// screen is a terminal that knows the sequences a menu may send, and no more:
// an unknown one, a question or a character outside the screen fails the test.
type screen struct {
	t   *testing.T
	lax bool // lines wrap and the screen scrolls, as plain text does

	mu            sync.Mutex
	width, height int
	cells         [][]rune
	x, y          int
	top, bottom   int // of the scrolling region
	alternate     bool
	cursor        bool
	insert        bool
	off           string // modes that were turned off
	sent          int    // bytes, since forget
	all           bytes.Buffer
	pending       []byte
	changed       chan struct{}
}

func newScreen(t *testing.T, width, height int) *screen {
	s := &screen{t: t, cursor: true, changed: make(chan struct{})}
	s.resize(width, height)
	return s
}

// resize gives the screen a new size and fills it with rubbish, as terminals do.
func (s *screen) resize(width, height int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.width, s.height, s.top, s.bottom = width, height, 0, height-1
	s.cells = make([][]rune, height)
	for i := range s.cells {
		s.cells[i] = []rune(strings.Repeat("#", width))
	}
	s.x, s.y = min(s.x, width-1), min(s.y, height-1)
}

// text returns what stands on the screen, line by line.
func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := make([]string, s.height)
	for i, l := range s.cells {
		lines[i] = strings.TrimRight(string(l), " ")
	}
	return strings.Join(lines, "\n")
}

// await returns when ok holds of what is shown.
func (s *screen) await(what string, ok func(text string) bool) string {
	s.t.Helper()
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		text := s.text()
		if ok(text) {
			return text
		}
		select {
		case <-changed:
		case <-s.t.Context().Done():
			s.t.Fatalf("%s never came; the screen has\n%s", what, text)
		case <-timeout():
			s.t.Fatalf("%s did not come; the screen has\n%s", what, text)
		}
	}
}

// shows waits for part to be on the screen.
func (s *screen) shows(part string) string {
	s.t.Helper()
	return s.await(strconv.Quote(part), func(text string) bool { return strings.Contains(text, part) })
}

// lacks waits for part to be off the screen.
func (s *screen) lacks(part string) string {
	s.t.Helper()
	return s.await("a screen without "+strconv.Quote(part), func(text string) bool { return !strings.Contains(text, part) })
}

func (s *screen) forget() {
	s.mu.Lock()
	s.sent = 0
	s.mu.Unlock()
}

func (s *screen) bytes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// Write implements [io.Writer].
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent += len(p)
	s.all.Write(p)
	s.pending = append(s.pending, p...)
	for len(s.pending) > 0 {
		n := s.step(s.pending)
		if n == 0 {
			break
		}
		s.pending = s.pending[n:]
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return len(p), nil
}

// step does what stands at the beginning of b and returns its length, 0 when
// some of it is missing.
func (s *screen) step(b []byte) int {
	switch c := b[0]; {
	case c == '\r':
		s.x = 0
	case c == '\n':
		s.down()
	case c == '\b':
		s.x = max(s.x-1, 0)
	case c == 0x1b:
		return s.escape(b)
	case c < ' ':
		s.t.Errorf("control character %#x", c)
	default:
		if !utf8.FullRune(b) {
			return 0
		}
		r, n := utf8.DecodeRune(b)
		if s.x >= s.width && s.lax {
			s.x = 0
			s.down()
		}
		if s.x >= s.width {
			s.t.Errorf("%q is written past the last column of line %d", r, s.y+1)
			return n
		}
		if s.insert {
			copy(s.cells[s.y][s.x+1:], s.cells[s.y][s.x:])
		}
		s.cells[s.y][s.x] = r
		s.x++
		return n
	}
	return 1
}

func (s *screen) escape(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	if b[1] == 'M' { // reverse index
		if s.y == s.top {
			s.scroll(s.top, s.bottom, -1)
		} else {
			s.y--
		}
		return 2
	}
	if b[1] == '>' { // the numeric keypad
		return 2
	}
	if b[1] == '(' {
		if len(b) > 2 && b[2] != 'B' {
			s.t.Errorf("character set %q", b[2])
		}
		return min(3, len(b)/3*3)
	}
	if b[1] != '[' {
		s.t.Errorf("unknown escape %q", b[:2])
		return 2
	}
	for i := 2; i < len(b); i++ {
		if b[i] >= 0x40 && b[i] <= 0x7e {
			s.control(string(b[2:i]), b[i])
			return i + 1
		}
	}
	return 0
}

func (s *screen) control(params string, final byte) {
	arg := func(i, otherwise int) int {
		parts := strings.Split(params, ";")
		if i >= len(parts) || parts[i] == "" {
			return otherwise
		}
		n, err := strconv.Atoi(parts[i])
		if err != nil {
			s.t.Errorf("parameters %q of %c", params, final)
		}
		return n
	}
	blank := func(line, from, to int) {
		for x := max(from, 0); x < min(to, s.width); x++ {
			s.cells[line][x] = ' '
		}
	}
	switch final {
	case 'A':
		s.y = max(s.y-arg(0, 1), 0)
	case 'B':
		s.y = min(s.y+arg(0, 1), s.height-1)
	case 'C':
		s.x = min(s.x+arg(0, 1), s.width-1)
	case 'D':
		s.x = max(s.x-arg(0, 1), 0)
	case 'G', '`':
		s.x = arg(0, 1) - 1
	case 'd':
		s.y = arg(0, 1) - 1
	case 'H':
		s.y, s.x = arg(0, 1)-1, arg(1, 1)-1
	case 'J':
		switch arg(0, 0) {
		case 0:
			blank(s.y, s.x, s.width)
			for y := s.y + 1; y < s.height; y++ {
				blank(y, 0, s.width)
			}
		case 2:
			for y := range s.cells {
				blank(y, 0, s.width)
			}
		default:
			s.t.Errorf("erase %q", params)
		}
	case 'K':
		switch arg(0, 0) {
		case 0:
			blank(s.y, s.x, s.width)
		case 1:
			blank(s.y, 0, s.x+1)
		case 2:
			blank(s.y, 0, s.width)
		}
	case 'X':
		blank(s.y, s.x, s.x+arg(0, 1))
	case 'P':
		n := arg(0, 1)
		copy(s.cells[s.y][s.x:], s.cells[s.y][min(s.x+n, s.width):])
		blank(s.y, s.width-n, s.width)
	case '@':
		n := arg(0, 1)
		copy(s.cells[s.y][min(s.x+n, s.width):], s.cells[s.y][s.x:])
		blank(s.y, s.x, s.x+n)
	case 'L':
		s.scroll(s.y, s.bottom, -arg(0, 1))
	case 'M':
		s.scroll(s.y, s.bottom, arg(0, 1))
	case 'S':
		s.scroll(s.top, s.bottom, arg(0, 1))
	case 'T':
		s.scroll(s.top, s.bottom, -arg(0, 1))
	case 'r':
		s.top, s.bottom = arg(0, 1)-1, arg(1, s.height)-1
		s.x, s.y = 0, 0
	case 'm':
		for p := range strings.SplitSeq(params, ";") {
			if !strings.Contains(" 0 1 7 22 27 ", " "+p+" ") && p != "" {
				s.t.Errorf("attribute %q: only bold and reverse are for every terminal", p)
			}
		}
	case 'h', 'l':
		s.mode(params, final == 'h')
	default:
		s.t.Errorf("unknown sequence CSI %q %c", params, final)
	}
}

func (s *screen) mode(params string, on bool) {
	switch params {
	case "?25":
		s.cursor = on
	case "4":
		s.insert = on
	case "?1049":
		s.alternate = on
	case "?1", "?1000", "?1002", "?1003", "?1004", "?1006", "?2004":
		if on {
			s.t.Errorf("mode %q is set", params)
		}
		s.off += params
	default:
		s.t.Errorf("mode %q is changed", params)
	}
}

func (s *screen) down() {
	switch s.y {
	case s.bottom:
		s.scroll(s.top, s.bottom, 1)
	case s.height - 1:
	default:
		s.y++
	}
}

// scroll moves the lines from top to bottom up by n.
func (s *screen) scroll(top, bottom, n int) {
	for ; n > 0; n-- {
		copy(s.cells[top:bottom+1], s.cells[top+1:bottom+1])
		s.cells[bottom] = []rune(strings.Repeat(" ", s.width))
	}
	for ; n < 0; n++ {
		copy(s.cells[top+1:bottom+1], s.cells[top:bottom])
		s.cells[top] = []rune(strings.Repeat(" ", s.width))
	}
}
