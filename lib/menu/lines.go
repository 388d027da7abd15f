package menu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxLine bounds one typed line, in characters.
const maxLine = 200

// errQuit ends a question whose answer was to quit.
var errQuit = errors.New("the person quits")

// plain is the menu in lines: it prints, asks, and reads an answer.
type plain struct {
	t    *Terminal
	cfg  Config
	list list
	node map[string]Node // by id
	next int             // index into list.shown of the next page
}

// lines is [Terminal.Menu] in lines.
func (t *Terminal) lines(ctx context.Context, cfg Config) (Choice, bool, error) {
	p := &plain{t: t, cfg: cfg}
	choice, err := p.run(ctx)
	switch {
	case err == nil:
		return choice, true, nil
	case ctx.Err() != nil:
		return Choice{}, false, context.Cause(ctx)
	case errors.Is(err, errQuit), errors.Is(err, io.EOF):
		return Choice{}, false, nil
	}
	return Choice{}, false, err
}

func (p *plain) run(ctx context.Context) (Choice, error) {
	if p.cfg.Notice != "" {
		p.say("%s", p.cfg.Notice)
	}
	p.load()
	p.say("%s", strings.TrimSpace(p.cfg.Cluster+" "+p.cfg.User)+": "+count(len(p.list.rows)))
	p.page()
	for {
		answer, err := p.ask(ctx, "node (number, name or words to filter; ? for help, q to quit): ")
		if err != nil {
			return Choice{}, err
		}
		n, ok := p.find(answer)
		if !ok {
			continue
		}
		login, err := p.login(ctx, n)
		if err != nil || login != "" {
			return Choice{Node: n.Name, Login: login}, err
		}
	}
}

// load reads the nodes.
func (p *plain) load() {
	nodes := p.cfg.Nodes()
	p.node = make(map[string]Node, len(nodes))
	for _, n := range nodes {
		p.node[n.ID] = n
	}
	p.list.set(nodeRows(nodes))
}

// find returns the node that answer picks, or does what else it says.
func (p *plain) find(answer string) (Node, bool) {
	switch answer {
	case "?":
		p.say("Type the number or the name of a node to log in to it, words to list the nodes whose name or labels have all of them, * to list all nodes, nothing for more of the list, q to quit.")
		return Node{}, false
	case "":
		p.page()
		return Node{}, false
	case "*":
		p.filter("")
		return Node{}, false
	}
	if i, err := strconv.Atoi(answer); err == nil && i >= 1 && i <= len(p.list.shown) {
		return p.node[p.list.rows[p.list.shown[i-1]].key], true
	}
	for _, r := range p.list.rows {
		if r.name == answer {
			return p.node[r.key], true
		}
	}
	p.filter(answer)
	return Node{}, false
}

// filter lists the nodes that have every word of words.
func (p *plain) filter(words string) {
	p.load()
	p.list.narrow(words)
	p.next = 0
	if words != "" {
		p.say("%s with %q", count(len(p.list.shown)), words)
	}
	p.page()
}

// page prints the next page of the list.
func (p *plain) page() {
	_, height := p.t.screen()
	if p.next >= len(p.list.shown) {
		p.next = 0
	}
	end := min(p.next+max(height-3, 1), len(p.list.shown))
	for i := p.next; i < end; i++ {
		r := p.list.rows[p.list.shown[i]]
		p.say("%s", strings.TrimRight(fmt.Sprintf("%d %s %s", i+1, strings.TrimRight(r.name+" "+r.state, " "), r.rest), " "))
	}
	if p.next = end; end < len(p.list.shown) {
		p.say("%d more: press Enter", len(p.list.shown)-end)
	}
}

// login returns the login to use on n, or "" to go back to the nodes.
func (p *plain) login(ctx context.Context, n Node) (string, error) {
	switch len(n.Logins) {
	case 0:
		p.say("you have no login on %s", n.Name)
		return "", nil
	case 1:
		return n.Logins[0], nil
	}
	for i, l := range n.Logins {
		p.say("%d %s", i+1, l)
	}
	for {
		answer, err := p.ask(ctx, fmt.Sprintf("login on %s (number or name, nothing to go back): ", display(n.Name)))
		if err != nil || answer == "" {
			return "", err
		}
		if slices.Contains(n.Logins, answer) {
			return answer, nil
		}
		if i, err := strconv.Atoi(answer); err == nil && i >= 1 && i <= len(n.Logins) {
			return n.Logins[i-1], nil
		}
		p.say("you have no login %q on %s", answer, n.Name)
	}
}

// say prints one line.
func (p *plain) say(format string, args ...any) {
	_, _ = io.WriteString(p.t.out, display(fmt.Sprintf(format, args...))+"\r\n") // a reader that is gone ends the input, too
}

// ask prints question and returns the answer, without the space around it. The
// client's terminal echoes nothing, so this does.
func (p *plain) ask(ctx context.Context, question string) (string, error) {
	echo := func(s string) { _, _ = io.WriteString(p.t.out, s) }
	echo(question)
	var line string
	for {
		k, err := p.t.nextKey(ctx)
		if err != nil {
			return "", err
		}
		switch {
		case k >= 0:
			if utf8.RuneCountInString(line) < maxLine {
				line += string(k)
				echo(string(k))
			}
		case k == keyBackspace && line != "":
			_, n := utf8.DecodeLastRuneInString(line)
			line = line[:len(line)-n]
			echo("\b \b")
		case k == keyDeleteLine:
			line = ""
			echo("\r\n" + question)
		case k == keyEnter:
			echo("\r\n")
			if answer := strings.TrimSpace(line); answer != "q" {
				return answer, nil
			}
			return "", errQuit
		case k == keyQuit:
			echo("\r\n")
			return "", errQuit
		}
	}
}
