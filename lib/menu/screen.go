package menu

import (
	"fmt"
	"slices"
	"strings"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
)

// press tells the program of one key. The answer is whether it was the last.
type press struct {
	key  key
	done chan bool
}

// refreshed tells the program of the nodes as they are now.
type refreshed []Node

// model is the menu on a whole screen: the list of nodes and, once a node is
// picked where there is a choice of logins, that list.
type model struct {
	cfg           Config
	width, height int
	ready         chan struct{} // closed when the first size has come

	nodes  map[string]Node // by id
	list   list            // of nodes
	node   *Node           // whose logins are shown; nil: the nodes are
	logins list
	notice string

	choice Choice
	picked bool
}

func newModel(cfg Config, width, height int) *model {
	m := &model{cfg: cfg, width: width, height: height, ready: make(chan struct{}), notice: cfg.Notice}
	m.take(cfg.Nodes())
	return m
}

// take shows nodes.
func (m *model) take(nodes []Node) {
	m.nodes = make(map[string]Node, len(nodes))
	for _, n := range nodes {
		m.nodes[n.ID] = n
	}
	m.list.set(nodeRows(nodes))
}

// Init implements [tea.Model].
func (m *model) Init() tea.Cmd { return nil }

// Update implements [tea.Model].
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		select {
		case <-m.ready:
		default:
			close(m.ready)
		}
	case refreshed:
		m.take(msg)
	case press:
		cmd, last := m.press(msg.key)
		msg.done <- last
		return m, cmd
	}
	return m, nil
}

// press does what k says and reports whether it ends the menu.
func (m *model) press(k key) (cmd tea.Cmd, last bool) {
	if k != noKey {
		m.notice = ""
	}
	shown := m.active()
	switch {
	case k == keyQuit, k == 'q' && m.node == nil && shown.filter == "":
		return tea.Quit, true
	case k == keyRedraw:
		return tea.ClearScreen, false
	case k == keyEscape:
		m.back()
	case k == keyEnter:
		if m.enter(); m.picked {
			return tea.Quit, true
		}
	case shown.edit(k):
	default:
		shown.move(k, m.page())
	}
	return nil, false
}

// active returns the list that is shown.
func (m *model) active() *list {
	if m.node != nil {
		return &m.logins
	}
	return &m.list
}

// back leaves the logins, or undoes the filter.
func (m *model) back() {
	switch {
	case m.active().filter != "":
		m.active().narrow("")
	case m.node != nil:
		m.node = nil
	}
}

// enter picks what is pointed at.
func (m *model) enter() {
	r, ok := m.active().current()
	switch {
	case !ok && m.node != nil:
		m.notice = fmt.Sprintf("you have no login %q on %s", m.logins.filter, m.node.Name)
	case !ok:
		m.notice = "no node matches"
	case m.node != nil:
		m.pick(*m.node, m.login(r.key))
	default:
		m.open(m.nodes[r.key])
	}
}

// login returns the login that was typed whole, else the one pointed at: "root"
// is meant by it even while "groot" stands first.
func (m *model) login(at string) string {
	if slices.Contains(m.node.Logins, m.logins.filter) {
		return m.logins.filter
	}
	return at
}

// open picks n, or asks for the login there.
func (m *model) open(n Node) {
	switch len(n.Logins) {
	case 0:
		m.notice = "you have no login on " + n.Name
	case 1:
		m.pick(n, n.Logins[0])
	default:
		m.node, m.logins = &n, list{}
		m.logins.set(loginRows(n.Logins))
	}
}

func (m *model) pick(n Node, login string) {
	m.choice, m.picked = Choice{Node: n.Name, Login: login}, true
}

// Screens lower than this leave out the headline, or the line at the bottom.
const (
	headlineFrom = 6
	bottomFrom   = 4
)

// page returns how many rows of a list fit.
func (m *model) page() int {
	lines := m.height - 1 // the filter
	if m.height >= headlineFrom {
		lines--
	}
	if m.height >= bottomFrom {
		lines--
	}
	return max(lines, 1)
}

// View implements [tea.Model].
func (m *model) View() tea.View {
	var lines []string
	if m.height >= headlineFrom {
		lines = append(lines, bold(m.headline()))
	}
	shown := m.active()
	lines = append(lines, m.prompt(shown))
	rows, at := shown.window(m.page())
	name := min(shown.widest, max(m.width/3, 12))
	for i, r := range rows {
		lines = append(lines, m.row(r, name, i == at))
	}
	if m.height >= bottomFrom {
		for len(lines) < m.height-1 {
			lines = append(lines, "")
		}
		lines = append(lines, m.bottom())
	}
	view := tea.NewView(strings.Join(lines[:min(len(lines), m.height)], "\n"))
	view.AltScreen = true
	view.DisableBracketedPasteMode = true
	return view
}

// headline says where one is, and how much of it is shown.
func (m *model) headline() string {
	left := display(strings.TrimSpace(m.cfg.Cluster + " " + m.cfg.User))
	right := count(len(m.list.rows))
	if n := len(m.list.shown); n < len(m.list.rows) {
		right = fmt.Sprintf("%d of %s", n, right)
	}
	gap := m.width - ansi.StringWidth(left) - len(right) - 1
	if gap < 1 {
		return m.fit(right)
	}
	return left + strings.Repeat(" ", gap) + right
}

func count(n int) string {
	if n == 1 {
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", n)
}

// prompt shows what was typed.
func (m *model) prompt(l *list) string {
	label := "node: "
	if m.node != nil {
		label = "login on " + display(m.node.Name) + ": "
	}
	if room := m.width/2 - 2; ansi.StringWidth(label) > room {
		label = ansi.Truncate(label, max(room, 0), "") + " "
	}
	room := m.width - ansi.StringWidth(label) - 2 // the cursor, and the last column
	typed := l.filter
	if over := ansi.StringWidth(typed) - room; over > 0 {
		typed = ansi.TruncateLeft(typed, over, "")
	}
	return label + typed + "_"
}

// row shows r with names in a column of width name.
func (m *model) row(r row, name int, at bool) string {
	text := "  "
	if at {
		text = "> "
	}
	text += pad(r.name, name)
	if r.state != "" {
		text += "  " + r.state
	}
	if r.rest != "" {
		text += "  " + r.rest
	}
	text = m.fit(text)
	if at {
		return reverse(text)
	}
	return text
}

// bottom is the news, else what the keys do.
func (m *model) bottom() string {
	if m.notice != "" {
		return bold(m.fit(display(m.notice)))
	}
	if len(m.list.rows) == 0 {
		return m.fit("there is no node that you may reach   q quit")
	}
	if m.node != nil {
		return m.fit("Enter log in   Esc back   ^C quit")
	}
	return m.fit("type to narrow   Enter log in   Esc clear   q quit")
}

// fit cuts text to a line. The last column stays empty: writing there makes
// some terminals wrap.
func (m *model) fit(text string) string { return ansi.Truncate(text, m.width-1, "~") }

// pad gives text the width w.
func pad(text string, w int) string {
	text = ansi.Truncate(text, w, "~")
	return text + strings.Repeat(" ", max(w-ansi.StringWidth(text), 0))
}

func bold(text string) string    { return "\x1b[1m" + text + "\x1b[m" }
func reverse(text string) string { return "\x1b[7m" + text + "\x1b[m" }
