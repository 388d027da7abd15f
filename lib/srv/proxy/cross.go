package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/relay"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshwire"
)

// statusTime is how long the end of a session's output may be held back for its
// exit status. A node that has sent the status before is heard at once; some
// clients stop reading at the end of the output.
const statusTime = 250 * time.Millisecond

// exitOurs is the exit status of what a node had no part in (ssh(1)).
const exitOurs = 255

// maxWords bounds what is passed on of a node's reason, in bytes.
const maxWords = 256

// crossing is one channel that crosses a passage: near is the client's side of
// it, far the node's.
type crossing struct {
	p                 *passage
	near, far         ssh.Channel
	nearReqs, farReqs <-chan *ssh.Request

	pty    bool           // the client's terminal is raw: lines end in CR LF
	wants  map[opens]bool // what the session has asked for on behalf of the passage
	flows  sync.WaitGroup // of output
	inputs sync.WaitGroup // of input
	status chan struct{}  // closed once an exit status was passed on
	told   bool           // and it was
	ended  bool           // the client knows of the end of the output; set by flows
	gone   chan struct{}  // closed when the node has closed the channel
}

// serveVisitor passes on a channel that a visitor opens, or says why not.
func (s *Server) serveVisitor(c *sshserver.Conn, who *person, nc ssh.NewChannel) {
	if who.usage.opens.Wait(c.Context()) != nil {
		return // the connection has ended
	}
	p, err := s.wayOf(c, who)
	switch {
	case err == nil:
		p.carry(nc)
	case nc.ChannelType() == sshwire.ChannelSession:
		s.turnAway(c, who, nc, err)
	default:
		refuse(nc, err)
	}
}

// wayOf returns a visitor's passage, which begins with the first use.
func (s *Server) wayOf(c *sshserver.Conn, who *person) (*passage, error) {
	v := who.visitor
	return v.passage(func() (*passage, error) {
		p, err := s.pass(c.Context(), c, who, errand{visit: v.visit, signer: v.signer})
		if err == nil {
			p.lasts()
		}
		return p, err
	})
}

// serveDirectStreamlocal serves a channel to a Unix socket, which only nodes
// have.
func (s *Server) serveDirectStreamlocal(c *sshserver.Conn, nc ssh.NewChannel) {
	if who, ok := c.Value.(*person); ok && who.visitor != nil {
		s.serveVisitor(c, who, nc)
		return
	}
	_ = nc.Reject(ssh.UnknownChannelType, "unknown channel type")
}

// turnAway lets a session begin only to tell the person why there is none: of a
// channel that is refused, stock ssh does not say it as well.
func (s *Server) turnAway(c *sshserver.Conn, who *person, nc ssh.NewChannel, why error) {
	x := &session{s: s, conn: c, who: who}
	x.serve(nc, func(_ context.Context, r *ssh.Request) int {
		_ = r.Reply(true, nil)
		x.ignoreInput()
		x.fail(why)
		return exitOurs
	})
}

// carry passes on a channel that the client opens, until it ends.
func (p *passage) carry(nc ssh.NewChannel) {
	if !p.enter() {
		refuse(nc, errGone)
		return
	}
	defer p.crossings.Done()
	far, farReqs, err := p.far.OpenChannel(nc.ChannelType(), nc.ExtraData())
	if err != nil {
		passRefusal(nc, err)
		return
	}
	near, nearReqs, err := nc.Accept()
	if err != nil {
		abandon(far, farReqs)
		return
	}
	x := &crossing{
		p: p, near: near, far: far, nearReqs: nearReqs, farReqs: farReqs,
		wants: map[opens]bool{}, status: make(chan struct{}), gone: make(chan struct{}),
	}
	if nc.ChannelType() == sshwire.ChannelSession {
		x.session()
		return
	}
	x.stream()
}

// back passes on a channel that the node opens, if the client has asked for it.
func (p *passage) back(_ *sshserver.Conn, nc ssh.NewChannel) {
	if !p.wanted(nc) {
		p.s.log.Warn("node opens a channel that nobody asked for", zap.String("node", string(p.to.node.Name)), zap.String("type", nc.ChannelType()))
		refuse(nc, fault.New(fault.Denied, "nobody asked for this"))
		return
	}
	near, nearReqs, err := p.near.OpenChannel(nc.ChannelType(), nc.ExtraData())
	if err != nil {
		passRefusal(nc, err)
		return
	}
	far, farReqs, err := nc.Accept()
	if err != nil {
		abandon(near, nearReqs)
		return
	}
	(&crossing{p: p, near: near, far: far, nearReqs: nearReqs, farReqs: farReqs}).stream()
}

// passRefusal refuses nc for the reason for which the other side has refused the
// channel it was to be joined with.
func passRefusal(nc ssh.NewChannel, err error) {
	reason, words := ssh.ConnectionFailed, "the other side is gone"
	if open, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
		words = plain(open.Message)
		if open.Reason >= ssh.Prohibited && open.Reason <= ssh.ResourceShortage {
			reason = open.Reason
		}
	}
	_ = nc.Reject(reason, words)
}

// plain returns the beginning of s without what a terminal might obey.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s[:min(len(s), maxWords)])
}

// abandon closes a channel whose other half has not come about.
func abandon(ch ssh.Channel, reqs <-chan *ssh.Request) {
	ch.Close()
	refuseAll(reqs)
}

// stream passes on a channel that is nothing but bytes.
func (x *crossing) stream() {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { refuseBoth(x.nearReqs, x.farReqs) })
	relay.Pipe(x.p.ctx, x.near, x.far)
}

// refuseBoth refuses requests until both channels are gone.
func refuseBoth(a, b <-chan *ssh.Request) {
	for a != nil || b != nil {
		select {
		case r, ok := <-a:
			if !ok {
				a = nil
				continue
			}
			_ = r.Reply(false, nil)
		case r, ok := <-b:
			if !ok {
				b = nil
				continue
			}
			_ = r.Reply(false, nil)
		}
	}
}

// session passes on a session channel: requests in order and with their answers,
// and, once something runs, its streams. It returns when both sides have closed
// the channel.
func (x *crossing) session() {
	defer x.unwant()
	near, far, runs := x.nearReqs, x.farReqs, false
	for far != nil {
		select {
		case r, ok := <-near:
			if !ok { // the client has closed the channel: so do we, and the node will answer
				near = nil
				x.far.Close()
				continue
			}
			if x.ask(r) && !runs {
				runs = true
				x.flow()
			}
		case r, ok := <-far:
			if !ok {
				far = nil
				continue
			}
			x.tell(r)
		}
	}
	close(x.gone)
	if !runs {
		x.flow() // what a node says that closes a channel early
	}
	x.flows.Wait()
	if near != nil {
		x.conclude()
	}
	if !x.ended {
		_ = x.near.CloseWrite() // fails when the client has gone
	}
	x.near.Close()
	if near != nil {
		refuseAll(near)
	}
	x.inputs.Wait()
}

// ask passes on one of the client's requests and reports whether it has started
// something.
func (x *crossing) ask(r *ssh.Request) bool {
	switch r.Type {
	case sshwire.RequestAgent:
		x.want(opens{kind: sshwire.ChannelAgent})
	case sshwire.RequestX11:
		x.want(opens{kind: sshwire.ChannelX11})
	}
	starts := r.Type == sshwire.RequestShell || r.Type == sshwire.RequestExec || r.Type == sshwire.RequestSubsystem
	ok, err := x.far.SendRequest(r.Type, r.WantReply || starts, r.Payload)
	ok = ok && err == nil
	x.pty = x.pty || ok && r.Type == sshwire.RequestPTY
	_ = r.Reply(ok, nil)
	return ok && starts
}

// want remembers what the node may open from now on, for as long as the session
// is there.
func (x *crossing) want(o opens) {
	if !x.wants[o] && x.p.want(o, 1) {
		x.wants[o] = true
	}
}

func (x *crossing) unwant() {
	for o := range x.wants {
		x.p.want(o, -1)
	}
}

// tell passes on one of the node's requests, if it is one that a node makes.
func (x *crossing) tell(r *ssh.Request) {
	var err error
	switch r.Type {
	case sshwire.RequestExitStatus:
		_, err = sshwire.ParseExitStatus(r.Payload)
	case sshwire.RequestExitSignal:
		_, err = sshwire.ParseExitSignal(r.Payload)
	case sshwire.RequestEOW:
	default:
		err = errors.New("no request of a node's")
	}
	if err == nil && (r.Type == sshwire.RequestEOW || !x.told) {
		_, err = x.near.SendRequest(r.Type, false, r.Payload)
	}
	if r.Type != sshwire.RequestEOW && err == nil && !x.told {
		x.told = true
		close(x.status)
	}
	_ = r.Reply(false, nil)
}

// flow begins to pass on the streams.
func (x *crossing) flow() {
	if words := x.p.tell(); words != "" {
		x.say(words)
	}
	var errors sync.WaitGroup
	errors.Go(func() { _, _ = relay.Copy(x.near.Stderr(), x.far.Stderr()) }) // ends with the channel
	x.flows.Go(func() {
		_, _ = relay.Copy(x.near, x.far)
		errors.Wait()
		if x.ended = x.awaitStatus(); x.ended {
			_ = x.near.CloseWrite() // fails when the client has gone
		}
	})
	x.inputs.Go(func() {
		_, _ = relay.Copy(x.far, x.near)
		_ = x.far.CloseWrite() // fails when the node has closed the channel
	})
}

// awaitStatus waits for the exit status that should come before the end of the
// output does, and reports whether more may come after that end.
func (x *crossing) awaitStatus() bool {
	t := time.NewTimer(statusTime)
	defer t.Stop()
	select {
	case <-x.status:
	case <-t.C:
	case <-x.gone:
		return false
	}
	return true
}

// conclude tells the person why a session ended that had no chance to.
func (x *crossing) conclude() {
	if x.told {
		return
	}
	t := time.NewTimer(statusTime) // a connection's end is known a little later than its channels'
	defer t.Stop()
	select {
	case <-x.p.far.Context().Done():
	case <-t.C: // the node has closed the channel, and says no more
		return
	}
	err := context.Cause(x.p.ctx)
	if fault.KindOf(err) == fault.Internal || errors.Is(err, errGone) {
		err = fault.New(fault.Unavailable, "the connection to node %q was lost", x.p.to.node.Name)
	}
	x.say(fmt.Sprintf("accessd: error: %s\n", fault.Public(err)))
	_, _ = x.near.SendRequest(sshwire.RequestExitStatus, false, sshwire.ExitStatus{Code: exitOurs}.Marshal())
}

// say writes words for the person.
func (x *crossing) say(words string) {
	words = strings.ReplaceAll(words, "\r\n", "\n")
	if x.pty {
		words = strings.ReplaceAll(words, "\n", "\r\n")
	}
	_, _ = io.WriteString(x.near.Stderr(), words) // there is nobody else to tell
}
