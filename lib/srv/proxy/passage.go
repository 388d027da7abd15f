package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

const (
	// passageTime bounds reaching a node and logging in there.
	passageTime = 20 * time.Second
	// flushTime is how long channels may take to pass on what a node has said
	// last before the client's connection is cut.
	flushTime = 5 * time.Second
	// maxNodeBanner bounds what a node says before it lets somebody in, in bytes.
	maxNodeBanner = 4 << 10
	// maxForwards bounds the forwards a client asks for on one passage.
	maxForwards = 256
)

// destination is where a passage leads.
type destination struct {
	node  services.Node
	login names.Login
}

// passage is an SSH connection to a node on which a person's channels and
// requests go on, one by one and both ways. The checks are the node's: it is told
// whose they are by a certificate, and where they come from.
type passage struct {
	s    *Server
	near *sshserver.Conn
	who  *person
	to   destination
	far  *sshserver.Outbound
	over func()          // folds the bridge and ends its context
	ctx  context.Context //nolint:containedctx // the passage's life, whose cause says why it ended

	banner string // what the node said before it let us in; "" once told

	mu        sync.Mutex
	closing   bool
	crossings sync.WaitGroup // guarded by mu while it grows
	asked     map[opens]int  // what the node may open, and how often the client has asked for it
}

// opens is something that a node may open a channel for once the client has
// asked for it.
type opens struct {
	kind string // channel type
	host string // or path
	port uint32 // 0: whatever the node chooses
}

// errand is what a passage is for.
type errand struct {
	visit
	signer   ssh.Signer // a certificate of our own for the person; nil buys one with theirs
	proof    string     // of a second factor given for the connection, where there is no signer; "" without one
	observes bool       // it follows sessions there; the login is observerUser
}

// pass opens a passage, which ends with ctx at the latest: it decides and records
// whether there may be one, reaches the node and logs in there.
func (s *Server) pass(ctx context.Context, c *sshserver.Conn, who *person, e errand) (*passage, error) {
	ctx, end := context.WithCancelCause(ctx)
	host, port := parsePlace(e.place)
	q := s.ask(c, who, host, port)
	b := &bridge{conn: c, who: who, node: q.node.ID, end: end, observes: e.observes}
	over := sync.OnceFunc(func() { end(nil) })
	if err := s.live.span(b); err == nil {
		over = sync.OnceFunc(func() { s.live.fold(b); end(nil) })
	} else {
		q.bar = err
	}
	if q.observes = e.observes; !e.observes {
		q.login = e.login
	}
	err := s.decide(ctx, c, q)
	if err == nil {
		p := &passage{
			s: s, near: c, who: who, to: destination{q.node, e.login}, over: over, ctx: ctx, asked: map[opens]int{},
		}
		if err = p.connect(e); err == nil {
			return p, nil
		}
	}
	over()
	return nil, err
}

// connect logs in to the node.
func (p *passage) connect(e errand) error {
	ctx, stop := context.WithTimeoutCause(p.ctx, passageTime, fault.New(fault.Unavailable, "node %q does not answer", p.to.node.Name))
	defer stop()
	signer := e.signer
	if signer == nil {
		d := delegation{client: p.near.Remote, certificate: p.who.cert, user: p.near.Identity.User, proof: e.proof}
		if !e.observes {
			d.login = e.login
		}
		var err error
		if signer, _, err = p.s.delegate(ctx, d); err != nil {
			return err
		}
	}
	raw, err := p.s.reach(ctx, p.ctx, p.to.node, p.near.Remote)
	if err != nil {
		return err
	}
	p.far, err = p.s.dialer.Connect(ctx, countedConn{Conn: raw, in: &p.who.out, out: &p.who.in}, sshserver.Outgoing{
		Auth: ssh.ClientConfig{
			User: string(p.to.login), Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
			HostKeyCallback: p.s.cfg.Policy.Trust().HostKeyCallback(string(p.to.node.Name), p.s.cfg.Now),
			BannerCallback:  p.hear,
		},
		Account: "user " + string(p.near.Identity.User),
		Channels: map[string]func(*sshserver.Conn, ssh.NewChannel){
			sshwire.ChannelForwardedTCPIP: p.back, sshwire.ChannelForwardedStreamlocal: p.back,
			sshwire.ChannelAgent: p.back, sshwire.ChannelX11: p.back,
		},
	})
	if err != nil {
		return p.explain(ctx, err)
	}
	context.AfterFunc(p.ctx, func() { p.far.Cut(context.Cause(p.ctx)) })
	return nil
}

// hear keeps what the node says before it lets us in, as far as it is text.
func (p *passage) hear(message string) error {
	text := strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || unicode.IsControl(r) && r != '\n' && r != '\t' {
			return -1
		}
		return r
	}, message)
	p.banner += text[:min(len(text), maxNodeBanner-len(p.banner))]
	return nil
}

// explain returns what the person reads of a login at the node that failed: the
// node's own words, if there are any.
func (p *passage) explain(ctx context.Context, err error) error {
	p.s.log.Info("passage not opened", zap.String("user", string(p.near.Identity.User)), zap.String("node", string(p.to.node.Name)), zap.Error(err))
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if _, ok := errors.AsType[*sshca.Refusal](err); ok {
		return fault.Wrap(fault.Unavailable, err, fmt.Sprintf("what answers for node %q is not that node", p.to.node.Name))
	}
	words := strings.TrimPrefix(strings.TrimSpace(p.banner), "accessd: ")
	return fault.Wrap(fault.Denied, err, cmp.Or(words, fmt.Sprintf("node %q does not let you in as %q", p.to.node.Name, p.to.login)))
}

// lasts ends the client's connection with the passage: nobody has any use for
// the one without the other.
func (p *passage) lasts() {
	p.s.forwards.Go(func() {
		<-p.far.Context().Done()
		p.flush()
		// Not wrapped: of an end of file it would be taken for the client's own.
		p.near.Cut(fault.New(fault.Unavailable, "the connection to node %q has ended: %s", p.to.node.Name, context.Cause(p.far.Context()).Error()))
	})
}

// flush lets channels that are under way pass on what the node has said last, and
// none begin.
func (p *passage) flush() {
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	slow := time.AfterFunc(flushTime, func() { p.near.Cut(fault.New(fault.Unavailable, "the client does not read")) })
	defer slow.Stop()
	p.far.Wait()
	p.crossings.Wait()
}

// enter counts a channel that crosses, unless the passage is ending.
func (p *passage) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closing {
		p.crossings.Add(1)
	}
	return !p.closing
}

// close ends the passage and returns when nothing of it runs any more.
func (p *passage) close() {
	p.far.Cut(errGone)
	p.far.Wait()
	p.over()
}

// tell returns the node's banner, once.
func (p *passage) tell() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := p.banner
	p.banner = ""
	return text
}

// want counts how often the client has asked for what o says; n may be negative.
func (p *passage) want(o opens, n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n > 0 && len(p.asked) >= maxForwards {
		return false
	}
	if p.asked[o] += n; p.asked[o] <= 0 {
		delete(p.asked, o)
	}
	return true
}

// wanted reports whether the client has asked for the channel nc.
func (p *passage) wanted(nc ssh.NewChannel) bool {
	o := opens{kind: nc.ChannelType()}
	var err error
	switch o.kind {
	case sshwire.ChannelForwardedTCPIP:
		var f sshwire.ForwardedTCPIP
		f, err = sshwire.ParseForwardedTCPIP(nc.ExtraData())
		o.host, o.port = f.Addr, f.Port
	case sshwire.ChannelForwardedStreamlocal:
		var f sshwire.ForwardedStreamlocal
		f, err = sshwire.ParseForwardedStreamlocal(nc.ExtraData())
		o.host = f.Path
	case sshwire.ChannelX11:
		_, err = sshwire.ParseX11Open(nc.ExtraData())
	case sshwire.ChannelAgent:
		if len(nc.ExtraData()) > 0 {
			return false
		}
	}
	if err != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asked[o] > 0 {
		return true
	}
	o.port = 0 // the node's choice, of which we have not heard yet
	return p.asked[o] > 0
}

// forwardVisitor passes on a request of a visitor for a forward from the node.
func (s *Server) forwardVisitor(c *sshserver.Conn, who *person, r *ssh.Request) (bool, []byte) {
	p, err := s.wayOf(c, who)
	if err != nil {
		return false, nil
	}
	return p.request(r)
}

// request passes on a request for a forward, or for its end.
func (p *passage) request(r *ssh.Request) (bool, []byte) {
	var o opens
	var err error
	var cancels bool
	switch r.Type {
	case sshwire.RequestTCPIPForward, sshwire.RequestCancelTCPIPForward:
		var f sshwire.TCPIPForward
		f, err = sshwire.ParseTCPIPForward(r.Payload)
		o = opens{sshwire.ChannelForwardedTCPIP, f.Addr, f.Port}
		cancels = r.Type == sshwire.RequestCancelTCPIPForward
	default:
		var f sshwire.StreamlocalForward
		f, err = sshwire.ParseStreamlocalForward(r.Payload)
		o = opens{kind: sshwire.ChannelForwardedStreamlocal, host: f.Path}
		cancels = r.Type == sshwire.RequestCancelStreamlocalForward
	}
	if err != nil || !cancels && !p.want(o, 1) { // what is asked for may come before the answer does
		return false, nil
	}
	ok, payload, err := p.far.SendRequest(r.Type, true, r.Payload)
	ok = ok && err == nil
	if cancels || !ok {
		if cancels == ok {
			p.want(o, -1)
		}
		return ok, nil
	}
	if o.kind != sshwire.ChannelForwardedTCPIP || o.port != 0 {
		return true, nil
	}
	defer p.want(o, -1) // it is the chosen port from now on
	reply, err := sshwire.ParseTCPIPForwardReply(payload)
	if err != nil || reply.Port == 0 {
		return false, nil
	}
	o.port = reply.Port
	return p.want(o, 1), reply.Marshal()
}
