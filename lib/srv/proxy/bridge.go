package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/relay"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshwire"
)

// serveDirectTCPIP serves one direct-tcpip channel: it bridges to the node that
// is named, if the rules allow it, and returns when the bridge is gone.
func (s *Server) serveDirectTCPIP(c *sshserver.Conn, nc ssh.NewChannel) {
	who, ok := c.Value.(*person)
	if !ok {
		refuse(nc, fault.New(fault.Denied, "this is for people"))
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
	if err := s.mayOpen(c, who); err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(c.Context())
	defer end(nil)
	q := asked{host: d.Host, port: d.Port}
	q.node, q.known = parseTarget(d.Host, d.Port).find(s.cfg.Policy)
	b := &bridge{conn: c, who: who, node: q.node.ID, end: end}
	if err := s.live.span(b); err != nil { // from before the decision: a change of mind is not missed
		return err
	}
	defer s.live.fold(b)
	if err := s.decide(ctx, c, q); err != nil {
		return err
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
	if cause := context.Cause(ctx); cause != nil {
		s.log.Info("bridge ended early", zap.String("user", string(c.Identity.User)), zap.String("node", string(q.node.Name)), zap.Error(cause))
	}
	return nil
}

// mayOpen refuses a person who may not open anything to a node, and holds up
// one who opens too much.
func (s *Server) mayOpen(c *sshserver.Conn, who *person) error {
	switch now := s.cfg.Now(); {
	case who.signed != nil:
		return fault.New(fault.Denied, `this connection was signed in with a password: it can only run "login"`)
	case !now.Before(c.Identity.ValidBefore):
		return fault.New(fault.Denied, "your certificate expired at %s", moment(c.Identity.ValidBefore))
	}
	if err := who.usage.opens.Wait(c.Context()); err != nil {
		return fault.Wrap(fault.Unavailable, err, "too many connections at once")
	}
	return nil
}

// decide asks the rules and writes the answer down. Who is refused learns no
// more than that there is no such node, unless listing nodes would tell.
func (s *Server) decide(ctx context.Context, c *sshserver.Conn, q asked) error {
	d := authz.Decision{Reason: "there is no such node"}
	if q.known {
		d = s.cfg.Engine.Reach(c.Identity, view(q.node))
	}
	if err := s.audit.decided(ctx, c, q, d); err != nil {
		return err
	}
	if d.Allow {
		return nil
	}
	if q.known && s.cfg.Engine.Resource(c.Identity, "nodes", "read").Allow {
		return fault.New(fault.Denied, "node %q: %s", q.node.Name, d.Reason)
	}
	return fault.New(fault.NotFound, "no node named %s that you may reach", quote(q.host))
}

// dial connects to node on behalf of a client at from.
func (s *Server) dial(ctx context.Context, node services.Node, from netip.AddrPort) (net.Conn, error) {
	if node.Kind != services.NodeAccessd {
		return nil, fault.New(fault.Unavailable, "node %q runs plain sshd, which this version does not reach", node.Name)
	}
	conn, err := s.cfg.Tunnels.Dial(ctx, node.ID, from)
	if err != nil {
		s.log.Info("node not reached", zap.String("node", string(node.Name)), zap.Error(err))
		return nil, fault.Wrap(fault.Unavailable, err, fmt.Sprintf("node %q is not connected", node.Name))
	}
	return conn, nil
}

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

// accept accepts nc and refuses every request on it. done closes the channel
// and waits until it is gone.
func accept(nc ssh.NewChannel) (ch ssh.Channel, done func(), err error) {
	ch, reqs, err := nc.Accept()
	if err != nil {
		return nil, nil, err
	}
	var wg sync.WaitGroup
	wg.Go(func() { refuseAll(reqs) })
	return ch, func() { _ = ch.Close(); wg.Wait() }, nil
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
