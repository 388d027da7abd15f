package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/menu"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/relay"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshwire"
)

// picker is a session in which a person picks nodes from a menu, one after the
// other.
type picker struct {
	*session
	t *menu.Terminal

	mu   sync.Mutex
	size sshwire.WindowChange
	far  ssh.Channel // of the session that has the terminal; nil while the menu has
}

// menu lets the person pick a node and connects them in place, again and again.
func (x *session) menu(ctx context.Context, plain bool) int {
	ctx, cancel, err := x.begin(ctx)
	if err != nil {
		x.ignoreInput()
		return x.fail(err)
	}
	defer x.s.live.finish(x.who)
	defer cancel(nil)
	p := &picker{
		session: x, t: menu.NewTerminal(x.ch, x.pty.Term, int(x.pty.Columns), int(x.pty.Rows)),
		size: sshwire.WindowChange{Columns: x.pty.Columns, Rows: x.pty.Rows, Width: x.pty.Width, Height: x.pty.Height},
	}
	x.work.Go(func() { x.attend(cancel, p.answer) })
	x.work.Go(func() { p.t.Pump(ctx, x.ch) })
	for notice := ""; ; {
		choice, ok, err := p.t.Menu(ctx, menu.Config{Nodes: p.nodes, User: string(x.conn.Identity.User), Notice: notice, Plain: plain})
		switch {
		case errors.Is(err, errStopping), services.LockOf(context.Cause(ctx)) != "":
			return x.fail(context.Cause(ctx))
		case err != nil, !ok:
			return 0
		}
		if notice, err = p.connect(ctx, choice); err != nil {
			notice = fault.Public(err)
		}
		notice = strings.ReplaceAll(notice, "\n", " ")
	}
}

// nodes are those the menu shows.
func (p *picker) nodes() []menu.Node {
	var list []menu.Node
	for _, n := range p.s.reachable(p.conn.Identity) {
		m := menu.Node{Name: string(n.Name), ID: string(n.ID), Labels: n.Labels, Online: n.Online}
		for _, l := range n.Logins {
			m.Logins = append(m.Logins, string(l))
		}
		list = append(list, m)
	}
	return list
}

// answer answers one request of the client's: what concerns the terminal goes to
// whoever has it.
func (p *picker) answer(r *ssh.Request) bool {
	p.mu.Lock()
	far := p.far
	p.mu.Unlock()
	switch r.Type {
	case sshwire.RequestWindowChange:
		w, err := sshwire.ParseWindowChange(r.Payload)
		if err != nil {
			return false
		}
		p.mu.Lock()
		p.size, far = w, p.far
		p.mu.Unlock()
		p.t.SetSize(int(w.Columns), int(w.Rows))
	case sshwire.RequestSignal, sshwire.RequestBreak:
	default:
		return false
	}
	if far == nil {
		return false
	}
	ok, err := far.SendRequest(r.Type, r.WantReply, r.Payload)
	return ok && err == nil
}

// take gives the terminal to far, whose session is to have it, and returns its
// size; nil gives it back.
func (p *picker) take(far ssh.Channel) sshwire.WindowChange {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.far = far
	return p.size
}

// connect runs a shell on the node that was picked and returns how it ended.
func (p *picker) connect(ctx context.Context, choice menu.Choice) (string, error) {
	login, err := names.ParseLogin(choice.Login)
	if err != nil {
		return "", err
	}
	if err := p.who.usage.opens.Wait(ctx); err != nil {
		return "", errGone
	}
	if _, ok := p.s.asksFactor(p.conn.Identity, visit{login, choice.Node}); ok {
		if err := p.obtain(ctx, p.t.Reader(ctx)); err != nil {
			return "", err
		}
	}
	way, err := p.s.pass(ctx, p.conn, p.who, errand{visit: visit{login, choice.Node}, proof: p.given.proof})
	if err != nil {
		return "", err
	}
	defer way.close()
	far, reqs, err := way.far.OpenChannel(sshwire.ChannelSession, nil)
	if err != nil {
		return "", way.lost(err)
	}
	defer far.Close()
	if p.agent && way.want(opens{kind: sshwire.ChannelAgent}, 1) {
		_, _ = far.SendRequest(sshwire.RequestAgent, false, nil) // fails when what follows does
	}
	for _, v := range p.env {
		_, _ = far.SendRequest(sshwire.RequestEnv, false, v.Marshal()) // the same
	}
	size, pty := p.take(far), *p.pty
	defer p.take(nil)
	pty.Columns, pty.Rows, pty.Width, pty.Height = size.Columns, size.Rows, size.Width, size.Height
	if ok, err := far.SendRequest(sshwire.RequestPTY, true, pty.Marshal()); err != nil || !ok {
		return "", way.lost(err)
	}
	if ok, err := far.SendRequest(sshwire.RequestShell, true, nil); err != nil || !ok {
		return "", way.lost(err)
	}
	return p.run(ctx, way, observed{far, reqs})
}

// run joins the terminal with far until that ends.
func (p *picker) run(ctx context.Context, way *passage, far observed) (string, error) {
	typing, stop := context.WithCancel(ctx)
	var in, out sync.WaitGroup
	in.Go(func() {
		_, _ = relay.Copy(far, p.t.Reader(typing))
		_ = far.CloseWrite() // fails when the session has ended
	})
	_, _ = io.WriteString(p.ch.Stderr(), p.lines(way.tell())) // there is nobody else to tell
	out.Go(func() { _, _ = relay.Copy(p.ch.Stderr(), far.Stderr()) })
	out.Go(func() { _, _ = relay.Copy(p.ch, far) })
	ended := ""
	for r := range far.reqs {
		switch r.Type {
		case sshwire.RequestExitStatus:
			if s, err := sshwire.ParseExitStatus(r.Payload); err == nil {
				ended = fmt.Sprintf("%s: session ended, exit status %d", way.to.node.Name, s.Code)
			}
		case sshwire.RequestExitSignal:
			if s, err := sshwire.ParseExitSignal(r.Payload); err == nil {
				ended = fmt.Sprintf("%s: session ended by signal %s", way.to.node.Name, plain(s.Name))
			}
		}
		_ = r.Reply(false, nil)
	}
	out.Wait()
	stop()
	in.Wait()
	if ended == "" {
		return "", way.lost(context.Cause(way.far.Context()))
	}
	return ended, nil
}
