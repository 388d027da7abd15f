package recording

import (
	"slices"
	"strconv"
	"unicode"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
)

// Bounds of what a filter passes on in a sequence.
const (
	maxParams = 32
	maxParam  = 9999
)

// Filter makes what a recorded process printed fit for the terminal of whoever
// looks at it. It writes the sequences that draw anew and nothing else: what
// would make a terminal answer, put something on the clipboard, set a title,
// switch a character set or a mouse on, or load a string is not on its list. A
// sequence may be split anywhere between calls.
type Filter struct {
	parser *ansi.Parser
	out    []byte
}

// NewFilter returns a Filter.
func NewFilter() *Filter {
	f := &Filter{parser: ansi.NewParser()}
	f.parser.SetParamsSize(maxParams)
	f.parser.SetDataSize(16) // strings are dropped
	f.parser.SetHandler(ansi.Handler{Print: f.print, Execute: f.execute, HandleCsi: f.csi, HandleEsc: f.esc})
	return f
}

// Filter returns what of p may be shown, until the next call.
func (f *Filter) Filter(p []byte) []byte {
	f.out = f.out[:0]
	for _, b := range p {
		f.parser.Advance(b)
	}
	return f.out
}

// terminalReset ends what a recording has left behind: attributes, scroll region,
// modes, the alternate screen, a hidden cursor, and at last the state as a whole.
const terminalReset = "\x1b[?1049l\x1b[?7h\x1b[?25h\x1b[?6l\x1b[4l\x1b[r\x1b[0m\x1b(B\x0f\x1b[!p\r\n"

func (f *Filter) print(r rune) {
	if harmless(r) {
		f.out = utf8.AppendRune(f.out, r)
	}
}

// harmless reports whether r is shown where it stands, and nothing else.
func harmless(r rune) bool {
	const joiner = '\u200d' // holds emoji together
	return r >= ' ' && r <= '~' || r == joiner || !unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

func (f *Filter) execute(b byte) {
	switch b {
	case '\b', '\t', '\n', '\v', '\f', '\r':
		f.out = append(f.out, b)
	}
}

// drawing are the finals of CSI sequences, without prefix or intermediate, that
// move, erase, insert, delete, scroll and colour (ECMA-48, 8.3).
const drawing = "@ABCDEFGHIJKLMPSTXZ`abdefmrsu"

func (f *Filter) csi(cmd ansi.Cmd, params ansi.Params) {
	final := cmd.Final()
	switch {
	case cmd.Intermediate() != 0:
		return
	case cmd.Prefix() == '?' && (final == 'h' || final == 'l'):
		f.modes(params, final)
		return
	case cmd.Prefix() != 0 || !slices.Contains([]byte(drawing), final):
		return
	case final == 'T' && len(params) > 1: // once for highlighting with the mouse
		return
	}
	from := len(f.out)
	f.out = append(f.out, "\x1b["...)
	more := false
	for i, p := range params {
		if i > 0 {
			f.out = append(f.out, separator(more))
		}
		v := p.Param(-1)
		more = p.HasMore()
		switch {
		case v > maxParam || v < -1:
			f.out = f.out[:from]
			return
		case v >= 0:
			f.out = strconv.AppendInt(f.out, int64(v), 10)
		}
	}
	f.out = append(f.out, final)
}

func separator(sub bool) byte {
	if sub {
		return ':'
	}
	return ';'
}

// modes passes on the private modes that change how things are drawn: origin,
// wrapping, a visible cursor, the alternate screen.
func (f *Filter) modes(params ansi.Params, final byte) {
	for _, p := range params {
		switch v := p.Param(0); v {
		case 6, 7, 25, 47, 1047, 1048, 1049:
			f.out = append(strconv.AppendInt(append(f.out, "\x1b[?"...), int64(v), 10), final)
		}
	}
}

// esc passes on index, next line, reverse index, and saving the cursor.
func (f *Filter) esc(cmd ansi.Cmd) {
	switch final := cmd.Final(); final {
	case '7', '8', 'D', 'E', 'M':
		if cmd.Intermediate() == 0 && cmd.Prefix() == 0 {
			f.out = append(f.out, '\x1b', final)
		}
	case 'c': // a full reset, without what else that does
		if cmd.Intermediate() == 0 {
			f.out = append(f.out, "\x1b[0m\x1b[r\x1b[H\x1b[2J"...)
		}
	}
}
