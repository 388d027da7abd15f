package menu

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxFilter bounds what is typed to narrow a list, in characters.
const maxFilter = 80

// row is one line to pick.
type row struct {
	key   string // tells it from every other row, across refreshes
	name  string // as shown
	state string // as shown, beside the name
	rest  string // as shown, at the end
	hay   string // what a filter's words are looked for in
}

// list is rows, a filter that narrows them, and the one of them that is pointed
// at.
type list struct {
	rows   []row
	filter string
	shown  []int // indices into rows
	at     int   // index into shown
	top    int   // of the window, index into shown
	widest int   // name, in characters
}

// set replaces the rows; the row pointed at stays, if it is still there.
func (l *list) set(rows []row) {
	old, _ := l.current()
	l.rows, l.widest = rows, 0
	for _, r := range rows {
		l.widest = max(l.widest, utf8.RuneCountInString(r.name))
	}
	at := l.at
	l.narrow(l.filter)
	l.at = min(at, max(len(l.shown)-1, 0))
	for i, n := range l.shown {
		if rows[n].key == old.key {
			l.at = i
		}
	}
}

// narrow shows the rows in which every word of filter is found.
func (l *list) narrow(filter string) {
	words := strings.Fields(strings.ToLower(filter))
	l.filter, l.at, l.top = filter, 0, 0
	l.shown = l.shown[:0]
	for i, r := range l.rows {
		if matches(r.hay, words) {
			l.shown = append(l.shown, i)
		}
	}
}

func matches(hay string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(hay, w) {
			return false
		}
	}
	return true
}

// edit changes the filter as k does and reports whether k is such a key.
func (l *list) edit(k key) bool {
	switch {
	case k >= 0:
		if utf8.RuneCountInString(l.filter) < maxFilter {
			l.narrow(l.filter + string(k))
		}
	case l.filter == "":
		return k == keyBackspace || k == keyDeleteLine || k == keyDeleteWord
	case k == keyBackspace:
		_, n := utf8.DecodeLastRuneInString(l.filter)
		l.narrow(l.filter[:len(l.filter)-n])
	case k == keyDeleteWord:
		word := strings.TrimRightFunc(l.filter, unicode.IsSpace)
		l.narrow(word[:strings.LastIndexFunc(word, unicode.IsSpace)+1])
	case k == keyDeleteLine:
		l.narrow("")
	default:
		return false
	}
	return true
}

// move points elsewhere as k does; page is how many rows the window has.
func (l *list) move(k key, page int) {
	switch k {
	case keyUp:
		l.at--
	case keyDown:
		l.at++
	case keyPageUp:
		l.at -= page
	case keyPageDown:
		l.at += page
	case keyHome:
		l.at = 0
	case keyEnd:
		l.at = len(l.shown) - 1
	default:
	}
	l.at = max(min(l.at, len(l.shown)-1), 0)
}

// current returns the row pointed at.
func (l *list) current() (row, bool) {
	if l.at >= len(l.shown) {
		return row{}, false
	}
	return l.rows[l.shown[l.at]], true
}

// window returns the rows of a window of height rows that has the one pointed
// at in it, and which of them that is.
func (l *list) window(height int) (rows []row, at int) {
	l.top = max(min(l.top, l.at, len(l.shown)-height), 0)
	l.top = max(l.top, l.at-height+1)
	for _, n := range l.shown[l.top:min(l.top+height, len(l.shown))] {
		rows = append(rows, l.rows[n])
	}
	return rows, l.at - l.top
}

// nodeRows returns nodes as rows, in the order of their names.
func nodeRows(nodes []Node) []row {
	rows := make([]row, 0, len(nodes))
	for _, n := range nodes {
		r := row{key: n.ID, name: display(n.Name), rest: display(pairs(n.Labels))}
		if !n.Online {
			r.state = "offline"
		}
		r.hay = strings.ToLower(r.name + " " + r.rest)
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b row) int { return strings.Compare(a.name, b.name) })
	return rows
}

// loginRows returns logins as rows, in their own order.
func loginRows(logins []string) []row {
	rows := make([]row, 0, len(logins))
	for _, l := range logins {
		name := display(l)
		rows = append(rows, row{key: l, name: name, hay: strings.ToLower(name)})
	}
	return rows
}

// pairs shows labels as "k=v k=v" in the order of the keys, those last that a
// node gives itself: people look for their own.
func pairs(labels map[string]string) string {
	var out, own []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if pair := k + "=" + labels[k]; strings.HasPrefix(k, "accessd/") {
			own = append(own, pair)
		} else {
			out = append(out, pair)
		}
	}
	return strings.Join(append(out, own...), " ")
}

// maxText bounds one text from a peer, in bytes; no screen shows more.
const maxText = 1 << 10

// display returns s for a terminal: what has no glyph of its own, moves others
// or is no UTF-8 shows as an escape of Go's.
func display(s string) string {
	s = s[:min(len(s), maxText)]
	if utf8.ValidString(s) && strings.IndexFunc(s, hidden) < 0 {
		return s
	}
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}

func hidden(r rune) bool { return !unicode.IsPrint(r) }
