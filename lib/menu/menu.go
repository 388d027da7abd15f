package menu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
)

// Node is a node that the person may reach.
type Node struct {
	Name, ID string
	Labels   map[string]string
	Online   bool
	Logins   []string // that the person may use there
}

// Choice is what the person picked.
type Choice struct {
	Node, Login string // the node's name, and one of its logins
}

// Config says what a menu shows.
type Config struct {
	// Nodes returns the nodes to list. It is called when the menu opens and
	// every [refreshEvery] after that; required.
	Nodes func() []Node

	User, Cluster string // for the headline
	Notice        string // one line of news, such as how the last session ended; "" is none

	// Plain asks for lines instead of a screen. Terminals that are known to have
	// nothing else get them anyway.
	Plain bool
}

// refreshEvery is how often the list is read anew while somebody looks at it.
const refreshEvery = 15 * time.Second

// frames is how often a changed screen is drawn, per second.
const frames = 20

// Menu shows the menu until the person has picked a node and a login there. It
// reports false without an error when the person quits or the input ends, and
// the cause when ctx ends. The terminal then is as it was, and no more input is
// taken than the keys up to the last one that counted. A write that the client
// does not take is waited for even then: it ends when its channel is closed.
func (t *Terminal) Menu(ctx context.Context, cfg Config) (Choice, bool, error) {
	if cfg.Nodes == nil {
		return Choice{}, false, errors.New("menu: Config.Nodes is nil")
	}
	if cfg.Plain || t.term == "" || t.term == "dumb" {
		return t.lines(ctx, cfg)
	}
	return t.full(ctx, cfg)
}

// full is [Terminal.Menu] on the whole screen.
func (t *Terminal) full(ctx context.Context, cfg Config) (Choice, bool, error) {
	if err := t.back(); err != nil {
		return Choice{}, false, fmt.Errorf("draw menu: %w", err)
	}
	inner, cancel := context.WithCancel(ctx)
	width, height := t.screen()
	m := newModel(cfg, width, height)
	program := tea.NewProgram(m,
		tea.WithContext(inner),
		tea.WithInput(nil), // keys are decoded here, one by one, so that none is taken too many
		tea.WithOutput(&lineEnds{w: t.out}),
		tea.WithEnvironment(drawingFor(t.term)),
		tea.WithColorProfile(colorprofile.ASCII),
		tea.WithoutSignalHandler(),
		tea.WithWindowSize(width, height),
		tea.WithFPS(frames),
	)
	var wg sync.WaitGroup
	wg.Go(func() { t.feed(inner, program) })
	wg.Go(func() { t.follow(inner, program, m.ready) })
	wg.Go(func() { refresh(inner, program, cfg.Nodes) })
	_, err := program.Run()
	cancel()
	wg.Wait()
	switch {
	case ctx.Err() != nil:
		return Choice{}, false, context.Cause(ctx)
	case err != nil:
		return Choice{}, false, fmt.Errorf("draw menu: %w", err)
	}
	return m.choice, m.picked, nil
}

// feed hands key after key to the program, each one only when the one before
// has had its effect: the bytes behind the key that ends the menu are for
// somebody else.
func (t *Terminal) feed(ctx context.Context, program *tea.Program) {
	for {
		k, err := t.nextKey(ctx)
		if err != nil {
			program.Quit()
			return
		}
		p := press{key: k, done: make(chan bool, 1)}
		program.Send(p)
		select {
		case last := <-p.done:
			if last {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// follow tells the program every new size. It begins when the program has seen
// the size it was started with, which it would otherwise believe last.
func (t *Terminal) follow(ctx context.Context, program *tea.Program, ready <-chan struct{}) {
	select {
	case <-ready:
	case <-ctx.Done():
		return
	}
	for {
		select {
		case <-t.resized:
			width, height := t.screen()
			program.Send(tea.WindowSizeMsg{Width: width, Height: height})
		case <-ctx.Done():
			return
		}
	}
}

func refresh(ctx context.Context, program *tea.Program, nodes func() []Node) {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			program.Send(refreshed(nodes()))
		case <-ctx.Done():
			return
		}
	}
}

// drawingFor returns the environment by which bubbletea knows how to draw on a
// terminal of type term. Of many types it asks questions that the person's own
// terminal would answer on the input, unless it hears that the way there is
// long; so only what the drawing differs by is told.
func drawingFor(term string) []string {
	kind, _, _ := strings.Cut(term, "-")
	switch {
	case slices.Contains([]string{"xterm", "rxvt", "alacritty", "contour", "foot", "ghostty", "kitty", "rio", "st", "wezterm", "putty"}, kind):
		kind = "xterm"
	case kind != "screen" && kind != "tmux" && kind != "linux":
		kind = "vt100"
	}
	return []string{"TERM=" + kind, "SSH_TTY=ssh"}
}

// lineEnds writes to a terminal whose lines end in CR LF, which bubbletea leaves
// to a device.
type lineEnds struct {
	w    io.Writer
	last byte
	buf  []byte
}

func (l *lineEnds) Write(p []byte) (int, error) {
	l.buf = l.buf[:0]
	for _, c := range p {
		if c == '\n' && l.last != '\r' {
			l.buf = append(l.buf, '\r')
		}
		l.buf = append(l.buf, c)
		l.last = c
	}
	if _, err := l.w.Write(l.buf); err != nil {
		return 0, err
	}
	return len(p), nil
}
