package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/relay"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// serveDirectTCPIP serves one direct-tcpip channel: it bridges to the node that
// is named, if the rules allow it, and returns when the bridge is gone.
func (s *Server) serveDirectTCPIP(c *sshserver.Conn, nc ssh.NewChannel) {
	who, ok := c.Value.(*person)
	if !ok {
		refuse(nc, errPeopleOnly)
		return
	}
	if who.visitor != nil {
		s.serveVisitor(c, who, nc)
		return
	}
	d, err := sshwire.ParseDirectTCPIP(nc.ExtraData())
	if err == nil {
		err = s.bridge(c, who, d, nc)
	}
	if err != nil {
		refuse(nc, err)
	}
}

// bridge connects nc to the node d names until either side has ended or the
// right to be there has. It returns an error only while nc is not accepted.
func (s *Server) bridge(c *sshserver.Conn, who *person, d sshwire.DirectTCPIP, nc ssh.NewChannel) error {
	if err := who.usage.opens.Wait(c.Context()); err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(c.Context())
	defer end(nil)
	q := s.ask(c, who, d.Host, d.Port)
	b := &bridge{conn: c, who: who, node: q.node.ID, end: end}
	if err := s.live.span(b); err == nil {
		defer s.live.fold(b) // spanned before the decision, so that no change of mind is missed
	} else {
		q.bar = err
	}
	if err := s.decide(ctx, c, q); err != nil {
		return err
	}
	if q.node.Kind == services.NodeSSHD {
		return s.forwardTo(ctx, b, q.node, nc)
	}
	down, err := s.dial(ctx, q.node, c.Remote)
	if err != nil {
		return err
	}
	defer down.Close()
	up, done, err := accept(nc)
	if err != nil {
		return nil // the client is gone; there is nobody to tell
	}
	defer done()
	in, out := relay.Pipe(ctx, up, down)
	who.in.Add(in)
	who.out.Add(out)
	s.explain(ctx, b, q.node)
	return nil
}

// explain logs why a bridge ended that neither side did.
func (s *Server) explain(ctx context.Context, b *bridge, n services.Node) {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, net.ErrClosed) {
		s.log.Info("bridge ended early", zap.String("user", string(b.conn.Identity.User)), zap.String("node", string(n.Name)), zap.Error(cause))
	}
}

// ask finds the node that who calls host, on port.
func (s *Server) ask(c *sshserver.Conn, who *person, host string, port uint32) asked {
	q := asked{who: who, host: host, port: port}
	q.node, q.known, q.bar = parseTarget(host, port).find(s.cfg.Policy, func(n services.Node) bool {
		return s.cfg.Engine.Reach(c.Identity, authz.ViewOf(n)).Allow
	})
	return q
}

// decide asks the rules and writes the answer down, before it has an effect.
func (s *Server) decide(ctx context.Context, c *sshserver.Conn, q asked) error {
	d, refusal := s.answer(c.Identity, q)
	if err := s.audit.decided(ctx, c, q, d); err != nil {
		return err
	}
	return refusal
}

// answer returns the decision on q, and what the person reads of a refusal. That
// is no more than that there is no such node, unless listing nodes would tell.
func (s *Server) answer(id *sshca.Identity, q asked) (authz.Decision, error) {
	switch now := s.cfg.Now(); {
	case q.bar != nil:
		return authz.Decision{Reason: fault.Public(q.bar)}, q.bar
	case q.who.signed != nil:
		why := `this connection was signed in with a password: it can only run "login"`
		return authz.Decision{Reason: why}, fault.New(fault.Denied, "%s", why)
	case !now.Before(id.ValidBefore):
		why := "your certificate expired at " + moment(id.ValidBefore)
		return authz.Decision{Reason: why}, fault.New(fault.Denied, "%s", why)
	case q.login != "" && !slices.Contains(id.Logins, q.login):
		why := fmt.Sprintf("your certificate is not for the login %q", q.login)
		return authz.Decision{Reason: why}, fault.New(fault.Denied, "%s", why)
	}
	unknown := fault.New(fault.NotFound, "no node named %s that you may reach", quote(q.host))
	if !q.known {
		return authz.Decision{Reason: "there is no such node"}, unknown
	}
	d := s.reaches(id, q.node, q.observes)
	switch {
	case d.Allow:
		return d, nil
	case d.Lock != nil:
		return d, d.Err("")
	case s.cfg.Engine.Resource(id, "nodes", "read").Allow:
		return d, d.Err(fmt.Sprintf("node %q", q.node.Name))
	}
	return d, unknown
}

// reaches decides whether id may reach n. To follow sessions there, who may read
// recordings may; of each session the node decides.
func (s *Server) reaches(id *sshca.Identity, n services.Node, observes bool) authz.Decision {
	d := s.cfg.Engine.Reach(id, authz.ViewOf(n))
	if !d.Allow && d.Lock == nil && observes {
		if r := s.cfg.Engine.Resource(id, "recordings", "read"); r.Allow {
			return r
		}
	}
	return d
}

// dial connects to node, one of ours, on behalf of a client at from.
func (s *Server) dial(ctx context.Context, node services.Node, from netip.AddrPort) (net.Conn, error) {
	conn, err := s.cfg.Tunnels.Dial(ctx, node.ID, from)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return nil, cause
	}
	if err != nil {
		s.log.Info("node not reached", zap.String("node", string(node.Name)), zap.Error(err))
		return nil, fault.Wrap(fault.Unavailable, err, fmt.Sprintf("node %q is not connected", node.Name))
	}
	return conn, nil
}

// errPeopleOnly refuses members and joiners what is for people.
var errPeopleOnly = fault.New(fault.Denied, "this is for people")

// errMembersOnly refuses people and joiners what is for members.
var errMembersOnly = fault.New(fault.Denied, "this is for members of the cluster")

// refuse turns a channel down with what the peer may read of err.
func refuse(nc ssh.NewChannel, err error) {
	reason := ssh.Prohibited
	if fault.Is(err, fault.Unavailable) {
		reason = ssh.ConnectionFailed
	}
	_ = nc.Reject(reason, fault.Public(err))
}

// accept accepts nc and refuses every request on it. done closes the channel.
func accept(nc ssh.NewChannel) (ch ssh.Channel, done func(), err error) {
	ch, err = sshserver.AcceptStream(nc)
	if err != nil {
		return nil, nil, err
	}
	return ch, func() { _ = ch.Close() }, nil
}

// refuseAll refuses requests until their channel is gone.
func refuseAll(reqs <-chan *ssh.Request) {
	for r := range reqs {
		_ = r.Reply(false, nil)
	}
}

// discard reads r to its end.
func discard(r io.Reader) {
	var buf [256]byte // small, for it waits as long as the channel
	for {
		if _, err := r.Read(buf[:]); err != nil {
			return
		}
	}
}
