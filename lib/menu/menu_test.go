package menu_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/accessd/accessd/lib/menu"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// timeout ends a wait that has failed.
func timeout() <-chan time.Time { return time.After(20 * time.Second) }

// pass lets d pass on the clock of a synctest bubble.
func pass(d time.Duration) { time.Sleep(d) } //nolint:forbidigo // no real time passes

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

// opens starts the menu; the outcome comes when it is left.
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
	fleet := fleet(100)
	fleet[0].Labels["accessd/os"] = "linux" // which is last
	done := p.opens(t.Context(), menu.Config{Nodes: nodes(fleet...), User: "alice", Cluster: "example.org"})
	text := p.screen.shows("100 nodes")
	if first, _, _ := strings.Cut(text, "\n"); !strings.HasPrefix(first, "example.org alice") {
		t.Errorf("headline %q, want the cluster and the person", first)
	}
	p.screen.shows("> web-000  env=prod rack=r0 accessd/os=linux\n")
	p.types("PROD r3")
	text = p.screen.shows("node: PROD r3_")
	for _, line := range strings.Split(text, "\n")[2:23] {
		if line != "" && (!strings.Contains(line, "env=prod") || !strings.Contains(line, "rack=r3")) {
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
				if off := p.screen.off; !plain && off != "?1?1000?1002?1003?1006?1004?2004" {
					t.Errorf("turned off %q; want what a killed program may have left on, once", off)
				}
			})
		}
	}
}

func TestKeys(t *testing.T) {
	fleet := append(fleet(60), menu.Node{Name: "db-1", ID: "db", Online: true, Logins: []string{"groot", "root", "ubuntu"}},
		menu.Node{Name: "idle", ID: "idle", Online: true})
	const lone = "\x00" // stands for: wait until what was typed has its effect
	for _, c := range []struct {
		name, typed string
		want        outcome
	}{
		{"the first node", "web" + enter, picked("web-000", "root")},
		{"arrows", "web" + down + down + up + enter, picked("web-001", "root")},
		{"application arrows", "web\x1bOB\x1bOB\x1bOA" + enter, picked("web-001", "root")},
		{"control keys", "web\x0e\x0e\x0e\x10\x1b[B\t" + enter, picked("web-004", "root")},
		{"pages", "web" + pageDown + pageDown + pageUp + enter, picked("web-021", "root")},
		{"past the end", "web\x1b[F" + down + pageDown + enter, picked("web-059", "root")},
		{"past the beginning", "web" + down + "\x1b[H" + up + pageUp + enter, picked("web-000", "root")},
		{"backspace", "web-05x\x7f9" + enter, picked("web-059", "root")},
		{"a word", "web zzz\x17059" + enter, picked("web-059", "root")},
		{"the line", "zzz\x15web-007" + enter, picked("web-007", "root")},
		{"no match is no choice", "zzz" + enter + "\x15web-007" + enter, picked("web-007", "root")},
		{"escape clears", "zzz" + esc + esc + "web-008" + enter, picked("web-008", "root")},
		{"keys of no use", "web\x1b[3~\x1b[200~\x1bOP\x1b[1;5A\x1b]11;rgb:0/0/0\x1b\\\x1bx\x1bPq\x1b\\\xff\xc2\x9b\x1b[?62;c" + down + enter, picked("web-001", "root")},
		{"a login", "db" + enter + down + enter, picked("db-1", "root")},
		{"a login that is typed", "db" + enter + "root" + enter, picked("db-1", "root")},
		{"a login that is not allowed", "db" + enter + "postgres" + enter + "\x15ub" + enter, picked("db-1", "ubuntu")},
		{"back from the logins", "db" + enter + esc + esc + esc + "\x15web-003" + enter, picked("web-003", "root")},
		{"no login at all", "idle" + enter + "\x15web-003" + enter, picked("web-003", "root")},
		{"q", "q", outcome{}},
		{"q in a name", "qq", outcome{}},
		{"q behind a space is a character", " q\x7fweb-003" + enter, picked("web-003", "root")},
		{"q among logins is a character", "db" + enter + "q\x7fub" + enter, picked("db-1", "ubuntu")},
		{"control-C", "web" + ctrlC, outcome{}},
		{"control-D among logins", "db" + enter + ctrlD, outcome{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := sit(t, "xterm", 80, 24)
			done := p.opens(t.Context(), menu.Config{Nodes: nodes(fleet...)})
			for part := range strings.SplitSeq(c.typed, lone) {
				p.types(part)
			}
			p.wants(done, c.want)
		})
	}
}

// The escape key is the beginning of other keys' sequences: alone it counts
// after a moment, and a sequence that was split on its way is still one key.
func TestEscapeAloneAndSplitSequences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := sit(t, "xterm", 80, 24)
		done := p.opens(t.Context(), menu.Config{Nodes: nodes(fleet(60)...)})
		p.types("web-01")
		synctest.Wait()
		p.types("\x1b")
		pass(100 * time.Millisecond)
		p.types("[")
		pass(100 * time.Millisecond)
		p.types("B") // down
		p.types("\x1b")
		pass(time.Second) // the escape key
		p.screen.shows("node: _")
		p.types("w\xc3") // the first byte of a character whose rest never comes
		pass(time.Second)
		p.types("eb-02" + down + enter)
		p.wants(done, picked("web-021", "root"))
		p.leave()
	})
}

func TestRefreshKeepsWhatIsPointedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		list := fleet(10)
		p := sit(t, "xterm", 80, 24)
		done := p.opens(t.Context(), menu.Config{Nodes: func() []menu.Node {
			mu.Lock()
			defer mu.Unlock()
			return list
		}})
		p.types("web" + down + down + down)
		p.screen.shows("> web-003")
		mu.Lock()
		list = fleet(10)[2:]
		list[1].Online = false
		mu.Unlock()
		pass(16 * time.Second)
		text := p.screen.shows("8 nodes")
		if !strings.Contains(text, "> web-003  offline") {
			t.Errorf("web-003 is not pointed at, or not offline:\n%s", text)
		}
		p.types(enter)
		p.wants(done, picked("web-003", "root"))
		p.leave()
	})
}

func TestEndOfInputAndOfContext(t *testing.T) {
	for _, plain := range []bool{false, true} {
		p := sit(t, "xterm", 80, 24)
		p.screen.lax = plain
		cfg := menu.Config{Nodes: nodes(fleet(3)...), Plain: plain}
		killed := errors.New("killed")
		ctx, kill := context.WithCancelCause(t.Context())
		done := p.opens(ctx, cfg)
		p.screen.shows("web-002")
		kill(killed)
		p.wants(done, outcome{err: killed})
		if _, err := p.terminal.Reader(ctx).Read(make([]byte, 1)); !errors.Is(err, killed) {
			t.Errorf("Read after the end of its context = %v, want the cause", err)
		}
		done = p.opens(t.Context(), cfg)
		p.types("web")
		p.leave()
		p.wants(done, outcome{})
	}
}

// Screens of every size have the rows that fit, and nothing outside.
func TestSizes(t *testing.T) {
	for _, size := range [][2]int{{80, 24}, {20, 5}, {20, 3}, {40, 2}, {5, 5}, {1, 1}, {2, 4}, {250, 80}, {400, 100}, {132, 6}} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			p := sit(t, "xterm", size[0], size[1])
			done := p.opens(t.Context(), menu.Config{Nodes: nodes(fleet(300)...), Notice: "the last session ended"})
			p.screen.lacks("#")
			p.types("web" + down)
			if size[0] >= 20 && size[1] >= 2 {
				p.screen.shows("> web-001")
			}
			p.types(pageDown + pageDown + pageUp + up + pageUp + down)
			if size[0] >= 20 && size[1] >= 3 {
				p.screen.shows("node: web_")
			}
			p.types(enter)
			p.wants(done, picked("web-001", "root"))
		})
	}
}

// A client may claim any size; memory is for what a person could look at.
func TestHugeSizeIsBounded(t *testing.T) {
	p := sit(t, "xterm", 300, 100)
	p.terminal.SetSize(1<<31-1, 1<<31-1)
	done := p.opens(t.Context(), menu.Config{Nodes: nodes(fleet(300)...)})
	p.screen.shows("web-076")
	p.terminal.SetSize(-1, 0)
	p.screen.await("80 by 24", func(text string) bool { return strings.Contains(strings.Split(text, "\n")[23], "q quit") })
	p.types(ctrlC)
	p.wants(done, outcome{})
}

func TestFollowsResizes(t *testing.T) {
	p := sit(t, "xterm", 80, 24)
	done := p.opens(t.Context(), menu.Config{Nodes: nodes(fleet(300)...)})
	p.screen.shows("web-020")
	for _, size := range [][2]int{{100, 40}, {20, 5}, {79, 12}, {80, 24}} {
		p.screen.resize(size[0], size[1])
		p.terminal.SetSize(size[0], size[1])
		p.screen.await(fmt.Sprint(size), func(text string) bool {
			lines := strings.Split(text, "\n")
			return !strings.Contains(text, "#") && strings.HasPrefix(lines[len(lines)-1], "type to narrow")
		})
	}
	if w, h := p.terminal.Size(); w != 80 || h != 24 {
		t.Errorf("Size = %d, %d; want the last one", w, h)
	}
	p.types(ctrlC)
	p.wants(done, outcome{})
}

// A key costs what it changes on the screen, not the screen.
func TestBytesPerKey(t *testing.T) {
	for _, term := range []string{"xterm-256color", "screen.xterm", "linux", "vt100", "xterm-kitty", "unheard-of"} {
		t.Run(term, func(t *testing.T) {
			p := sit(t, term, 80, 24)
			done := p.opens(t.Context(), menu.Config{Nodes: nodes(fleet(500)...)})
			p.screen.shows("> web-000")
			for _, k := range []struct {
				name, typed, shows string
				limit              int
			}{
				{"down", down, "> web-001", 200},
				{"up", up, "> web-000", 200},
				{"a character that narrows nothing", "w", "node: w_", 200},
				{"a character that narrows", "eb-4", "node: web-4_", 1000},
				{"a page", pageDown, "> web-421", 1000},
				{"the line below the window", down, "> web-422", 400},
				{"escape", esc + esc + "\x00", "node: _", 1200},
			} {
				p.screen.forget()
				p.types(k.typed)
				p.screen.shows(k.shows)
				if got := p.screen.bytes(); got > k.limit {
					t.Errorf("%s: %d bytes, want at most %d", k.name, got, k.limit)
				}
			}
			p.types(ctrlC)
			p.wants(done, outcome{})
		})
	}
}

// Ten thousand nodes are as quick as ten: only what is seen is drawn.
func TestTenThousandNodes(t *testing.T) {
	p := sit(t, "xterm", 80, 24)
	done := p.opens(t.Context(), menu.Config{Nodes: nodes(fleet(10_000)...)})
	p.screen.shows("10000 nodes")
	start := time.Now()
	p.types("web-9999" + strings.Repeat("\x7f", 8) + "prod r6 web-777" + enter)
	p.wants(done, picked("web-7776", "root"))
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("%v for 32 keys over 10,000 nodes", took)
	}
}

// A node's name and labels are what the node says they are: nothing in them may
// move the cursor, write to the clipboard, or forge another line.
func TestHostileText(t *testing.T) {
	evil := "\x1b]52;c;AAAA\x07\x1b[2J\u202eroot\u009b31m\r\nweb-1\x00\xff" + strings.Repeat("z", 1<<16)
	for _, plain := range []bool{false, true} {
		p := sit(t, "xterm", 80, 24)
		p.screen.lax = plain
		done := p.opens(t.Context(), menu.Config{
			Nodes: nodes(menu.Node{Name: evil, ID: "x", Labels: map[string]string{evil: evil}, Logins: []string{evil, "root"}}),
			User:  evil, Cluster: evil, Notice: evil, Plain: plain,
		})
		p.screen.shows("x1b]52")
		if plain {
			p.types("1" + enter)
		} else {
			p.types(enter)
		}
		p.screen.shows("login on ")
		p.types("root" + enter)
		p.wants(done, picked(evil, "root"))
		sent := p.screen.all.String()
		for _, bad := range []string{"\x1b]", "\u202e", "\u009b", "\x00", "\xff"} {
			if strings.Contains(sent, bad) {
				t.Errorf("plain %v: %q went to the terminal", plain, bad)
			}
		}
	}
}

// Lines and questions only: what a screen reader reads from top to bottom.
func TestPlain(t *testing.T) {
	p := sit(t, "dumb", 80, 10)
	p.screen.lax = true
	fleet := append(fleet(12), menu.Node{Name: "db-1", ID: "db", Labels: map[string]string{"env": "prod"}, Logins: []string{"groot", "root"}})
	done := p.opens(t.Context(), menu.Config{Nodes: nodes(fleet...), User: "alice", Cluster: "example.org", Notice: "web-3: session ended"})
	p.types("?" + enter)
	p.types(enter)                  // more
	p.types("prod db" + enter)      // one node
	p.types("*" + enter)            // all nodes
	p.types("zzz" + enter)          // none
	p.types("db-1" + enter + enter) // a node, and back
	p.types("db-1" + enter + "postgres" + enter + "2x\x7f" + enter)
	p.wants(done, picked("db-1", "root"))
	got := p.screen.all.String()
	if strings.ContainsRune(got, 0x1b) {
		t.Error("an escape sequence went to a terminal that has none")
	}
	if want := plainTalk; strings.ReplaceAll(got, "\r\n", "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

const (
	question  = "node (number, name or words to filter; ? for help, q to quit): "
	dbLogins  = "1 groot\n2 root\nlogin on db-1 (number or name, nothing to go back): "
	firstPage = `1 db-1 offline env=prod
2 web-000 env=prod rack=r0
3 web-001 env=staging rack=r1
4 web-002 env=prod rack=r2
5 web-003 env=staging rack=r3
6 web-004 offline env=prod rack=r4
7 web-005 env=staging rack=r5
6 more: press Enter
`
	plainTalk = `web-3: session ended
example.org alice: 13 nodes
` + firstPage + question + `?
Type the number or the name of a node to log in to it, words to list the nodes whose name or labels have all of them, * to list all nodes, nothing for more of the list, q to quit.
` + question + `
8 web-006 env=prod rack=r6
9 web-007 env=staging rack=r0
10 web-008 env=prod rack=r1
11 web-009 offline env=staging rack=r2
12 web-010 env=prod rack=r3
13 web-011 env=staging rack=r4
` + question + `prod db
1 node with "prod db"
1 db-1 offline env=prod
` + question + "*\n" + firstPage + question + `zzz
0 nodes with "zzz"
` + question + "db-1\n" + dbLogins + "\n" + question + "db-1\n" + dbLogins + `postgres
you have no login "postgres" on db-1
login on db-1 (number or name, nothing to go back): 2x` + "\b" + " \b\n"
)
