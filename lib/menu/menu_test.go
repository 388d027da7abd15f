package menu_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/accessd/accessd/lib/menu"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// timeout ends a wait that has failed.
func timeout() <-chan time.Time { return time.After(20 * time.Second) }

// fleet returns n nodes, web-000 and so on.
func fleet(n int) []menu.Node {
	nodes := make([]menu.Node, n)
	for i := range nodes {
		nodes[i] = menu.Node{
			Name: fmt.Sprintf("web-%03d", i), ID: fmt.Sprint("id-", i), Online: i%5 != 4,
			Labels: map[string]string{"env": []string{"prod", "staging"}[i%2], "rack": fmt.Sprint("r", i%7)},
			Logins: []string{"root"},
		}
	}
	return nodes
}

// person is somebody at a terminal that has a menu.
type person struct {
	t        *testing.T
	screen   *screen
	terminal *menu.Terminal
	keys     *io.PipeWriter
	pumped   chan struct{}
	closed   sync.Once
}

func sit(t *testing.T, term string, width, height int) *person {
	r, w := io.Pipe()
	p := &person{t: t, screen: newScreen(t, width, height), keys: w, pumped: make(chan struct{})}
	p.terminal = menu.NewTerminal(p.screen, term, width, height)
	go func() {
		defer close(p.pumped)
		p.terminal.Pump(t.Context(), r)
	}()
	t.Cleanup(p.leave)
	return p
}

// leave ends the input.
func (p *person) leave() {
	p.keys.Close()
	<-p.pumped
}

func (p *person) types(keys string) {
	p.t.Helper()
	if _, err := io.WriteString(p.keys, keys); err != nil {
		p.t.Fatal(err)
	}
}

// outcome is what Menu returned.
type outcome struct {
	choice menu.Choice
	picked bool
	err    error
}

// opens opens the menu.
func (p *person) opens(ctx context.Context, cfg menu.Config) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		o.choice, o.picked, o.err = p.terminal.Menu(ctx, cfg)
		done <- o
	}()
	return done
}

func (p *person) wants(done <-chan outcome, want outcome) {
	p.t.Helper()
	select {
	case got := <-done:
		if got.choice != want.choice || got.picked != want.picked || !errors.Is(got.err, want.err) {
			p.t.Errorf("Menu = %+v, want %+v", got, want)
		}
	case <-timeout():
		p.t.Fatalf("the menu does not end; the screen has\n%s", p.screen.text())
	}
	p.screen.mu.Lock()
	defer p.screen.mu.Unlock()
	if p.screen.alternate || !p.screen.cursor {
		p.t.Errorf("after the menu: alternate screen %v, cursor %v; want the terminal as it was", p.screen.alternate, p.screen.cursor)
	}
}

func picked(node, login string) outcome {
	return outcome{choice: menu.Choice{Node: node, Login: login}, picked: true}
}

func nodes(n ...menu.Node) func() []menu.Node { return func() []menu.Node { return n } }

const (
	up, down     = "\x1b[A", "\x1b[B"
	pageDown     = "\x1b[6~"
	pageUp       = "\x1b[5~"
	esc          = "\x1b"
	enter        = "\r"
	ctrlC, ctrlD = "\x03", "\x04"
)

func TestTypingNarrowsAndEnterPicks(t *testing.T) {
	p := sit(t, "xterm-256color", 80, 24)
	done := p.opens(t.Context(), menu.Config{Nodes: nodes(fleet(100)...), User: "alice", Cluster: "example.org"})
	text := p.screen.shows("100 nodes")
	if first, _, _ := strings.Cut(text, "\n"); !strings.HasPrefix(first, "example.org alice") {
		t.Errorf("headline %q, want the cluster and the person", first)
	}
	p.types("PROD r3")
	text = p.screen.shows("node: PROD r3_")
	for _, line := range strings.Split(text, "\n")[2:23] {
		if line != "" && !(strings.Contains(line, "env=prod") && strings.Contains(line, "rack=r3")) {
			t.Errorf("line %q does not have every word", line)
		}
	}
	p.types(down + enter)
	p.wants(done, picked("web-024", "root"))
}

// What is typed right behind the key that ends the menu is for the next reader:
// all of it, in order, however the bytes are cut on their way.
func TestBytesBehindTheChoiceAreForTheNextReader(t *testing.T) {
	const behind = "whoami\r\x1b[A\x00\xff\x03tail"
	for _, cut := range []int{1, 2, 5, 100} {
		for _, plain := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d bytes at a time, plain %v", cut, plain), func(t *testing.T) {
				p := sit(t, "xterm", 80, 24)
				p.screen.lax = plain
				cfg := menu.Config{Nodes: nodes(fleet(3)...), Plain: plain}
				done := p.opens(t.Context(), cfg)
				typed := "web-001" + enter + behind
				go func() {
					for len(typed) > 0 {
						n := min(cut, len(typed))
						_, _ = io.WriteString(p.keys, typed[:n])
						typed = typed[n:]
					}
				}()
				p.wants(done, picked("web-001", "root"))
				got := make([]byte, len(behind))
				if n, err := io.ReadFull(p.terminal.Reader(t.Context()), got); err != nil || string(got) != behind {
					t.Fatalf("the next reader got %q, %v; want %q", got[:n], err, behind)
				}
				p.screen.resize(80, 24)
				done = p.opens(t.Context(), cfg) // the menu comes again, and reads on
				p.types("web-002" + enter)
				p.wants(done, picked("web-002", "root"))
			})
		}
	}
}
