package srv

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/relay"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshwire"
)

// sshPort is where a node's own sshd listens (RFC 4253, section 4.1).
const sshPort = 22

// forward is one connection that is carried for a client.
type forward struct {
	client *Client
	action authz.Action
	target authz.Target // where it leads, for [authz.ActionForwardLocal]
	begun  time.Time
	cancel context.CancelCauseFunc
	timer  *time.Timer // what ends it; nil without a limit

	toNode, toClient int64 // bytes, once it has ended
}

// decide asks the rules about f.
func (f *forward) decide() authz.Decision {
	c := f.client
	return c.m.cfg.Engine.Decide(authz.Request{
		Identity: c.cfg.Identity, Node: c.cfg.Node(), Login: c.cfg.Login, Action: f.action, Target: f.target,
	})
}

// String returns where e leads, as events and people read it.
func (e Endpoint) String() string {
	if e.Path != "" {
		return e.Path
	}
	return net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port)))
}

// Forward serves a direct-tcpip (RFC 4254, section 7.2) or a
// direct-streamlocal@openssh.com channel (OpenSSH PROTOCOL, section 2.4) until it
// has closed.
func (c *Client) Forward(ctx context.Context, nc ssh.NewChannel) {
	e, err := destination(nc)
	if err == nil {
		err = c.carry(ctx, nc, e)
	} else {
		err = fault.New(fault.BadInput, "%s", c.refuse(ctx, refusal{kind: nc.ChannelType()}, err))
	}
	if err == nil {
		return
	}
	reason := ssh.Prohibited
	if fault.Is(err, fault.Unavailable) {
		reason = ssh.ConnectionFailed
	}
	_ = nc.Reject(reason, fault.Public(err)) // fails when the connection has ended
}

// destination returns where nc is to lead.
func destination(nc ssh.NewChannel) (Endpoint, error) {
	if nc.ChannelType() == sshwire.ChannelDirectTCPIP {
		x, err := sshwire.ParseDirectTCPIP(nc.ExtraData())
		return Endpoint{Host: x.Host, Port: uint16(x.Port)}, err // the parser has bounded it
	}
	x, err := sshwire.ParseDirectStreamlocal(nc.ExtraData())
	if err == nil && !path.IsAbs(x.Path) {
		err = fault.New(fault.BadInput, "want the absolute path of a socket")
	}
	return Endpoint{Path: path.Clean(x.Path)}, err
}

// carry connects nc to e until either side has ended or the right to be there
// has. It returns an error only while nc is not accepted.
func (c *Client) carry(ctx context.Context, nc ssh.NewChannel, e Endpoint) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f := &forward{client: c, action: authz.ActionForwardLocal, begun: time.Now(), cancel: cancel}
	far, err := c.dial(ctx, f, nc.ChannelType(), e)
	if err != nil {
		return err
	}
	defer far.Close()
	near, requests, err := nc.Accept()
	if err != nil {
		c.closed(ctx, f, e, err)
		return nil // the client is gone; there is nobody to tell
	}
	var wg sync.WaitGroup
	wg.Go(func() { ssh.DiscardRequests(requests) })
	f.toNode, f.toClient = relay.Pipe(ctx, near, far)
	_ = near.Close() // it has ended
	wg.Wait()
	c.closed(ctx, f, e, nil)
	return nil
}

// dial connects to e for f, whose target it sets, once the rules allow an
// address of e and that is on record.
func (c *Client) dial(ctx context.Context, f *forward, kind string, e Endpoint) (net.Conn, error) {
	decision := f.decide() // whether there is any target; nobody looks e up otherwise
	refuse := func(why error) error {
		ev := c.targetEvent(f, decision, e, why)
		reason := c.refuse(ctx, refusal{action: f.action, kind: kind, target: e.String(), decided: []events.Event{ev}}, why)
		return fault.Wrap(fault.KindOf(why), why, reason)
	}
	switch {
	case !decision.Allow:
		return nil, refuse(decision.Err(""))
	case c.expired():
		return nil, refuse(errExpired)
	}
	f.target = authz.Target{Host: e.Host, Port: e.Port, Path: e.Path}
	account := c.account(decision)
	begun, forbidden := false, error(nil)
	far, err := c.cfg.Executor.Dial(ctx, account, e, func(addr netip.Addr) error {
		f.target.Addr = addr.Unmap()
		decision = f.decide()
		if forbidden = c.forbids(decision, f.target); forbidden != nil {
			return forbidden
		}
		begun = true
		return c.begin(ctx, f, e, decision)
	})
	switch {
	case err == nil && !begun: // an executor that has not asked
		far.Close()
		return nil, fault.New(fault.Internal, "internal error")
	case err != nil && begun:
		c.closed(ctx, f, e, err)
		return nil, err
	case forbidden != nil:
		return nil, refuse(forbidden)
	case err != nil:
		return nil, refuse(err)
	}
	c.enlist(f, decision)
	return far, nil
}

// forbids returns why t must not be dialled, if so. The node's own sshd knows
// nothing of the rules, so to go there takes a rule that names it.
func (c *Client) forbids(d authz.Decision, t authz.Target) error {
	if !d.Allow {
		return d.Err("")
	}
	if !d.Listed && t.Path == "" && c.isOwnSSHD(t) {
		return fault.New(fault.Denied, "a forward to the node's own sshd would go past the rules; no rule names it")
	}
	return nil
}

// isOwnSSHD reports whether t is the SSH server of the node itself.
func (c *Client) isOwnSSHD(t authz.Target) bool {
	if c.cfg.OwnSSHD != nil && c.cfg.OwnSSHD(t.Host, t.Addr, t.Port) {
		return true
	}
	if t.Port != sshPort {
		return false
	}
	addr := t.Addr
	if literal, ok := services.LiteralAddr(t.Host); ok && !addr.IsValid() {
		addr = literal
	}
	if strings.EqualFold(strings.TrimSuffix(t.Host, "."), "localhost") || addr.IsLoopback() || addr.IsUnspecified() {
		return true
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, a := range own {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == addr {
			return true
		}
	}
	return false
}

// begin makes it durable that f is about to be carried.
func (c *Client) begin(ctx context.Context, f *forward, e Endpoint, d authz.Decision) error {
	err := c.m.cfg.Events.EmitAll(ctx, c.targetEvent(f, d, e, nil), c.portEvent(f, e, "open", nil))
	if err != nil {
		return c.unrecorded(err)
	}
	return nil
}

// enlist puts f under the limits of d and on the list of what is live.
func (c *Client) enlist(f *forward, d authz.Decision) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.m.forwards[f] = struct{}{}
	if ttl := d.Options.SessionTTL; ttl > 0 {
		f.timer = time.AfterFunc(ttl, func() {
			f.cancel(fault.New(fault.Denied, "the forward lasted %v, as long as the role allows", ttl))
		})
	}
}

// closed records that f has ended, or came to nothing because of err.
func (c *Client) closed(ctx context.Context, f *forward, e Endpoint, err error) {
	c.m.mu.Lock()
	delete(c.m.forwards, f)
	c.m.mu.Unlock()
	if f.timer != nil {
		f.timer.Stop()
	}
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	ev := c.portEvent(f, e, "closed", err)
	if emitErr := c.m.cfg.Events.Emit(context.WithoutCancel(ctx), ev); emitErr != nil {
		_ = c.unrecorded(emitErr) // there is nobody left to tell
	}
}
