package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/sshserver"
)

const (
	// attempts is how often a login is tried whose connection the sshd dropped
	// before it said who it is, as it does beyond MaxStartups.
	attempts = 4
	// retryAfter is the longest wait before the second attempt; each further one
	// doubles it.
	retryAfter = 200 * time.Millisecond
)

// purpose is what a connection is for.
type purpose struct {
	login    names.Login
	session  string // id of the session, or of the client's connection
	role     names.RoleName
	start    *accessdv1.SessionStart                          //  what the session begins with; nil: it is none
	channels map[string]func(*sshserver.Conn, ssh.NewChannel) // that the sshd may open
}

// link is one connection to the sshd.
type link struct {
	*sshserver.Outbound

	node   names.NodeName
	banner string // what the sshd said while logging in
}

// connect logs in for p. The caller must cut what it returns.
func (x *Executor) connect(ctx context.Context, p purpose) (*link, error) {
	node, err := x.node()
	if err != nil {
		return nil, err
	}
	select {
	case x.logins <- struct{}{}:
		defer func() { <-x.logins }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, loginTimeout,
		fault.New(fault.Unavailable, "the SSH server of node %q does not answer", node.Name))
	defer cancel()
	for n := range attempts {
		var l *link
		if l, err = x.attempt(ctx, node, p); err == nil {
			return x.keep(l)
		}
		if !errors.Is(err, errDropped) || !pause(ctx, retryAfter<<n) {
			break
		}
	}
	x.cfg.Log.Info("cannot log in to an sshd", zap.String("node", string(node.Name)), zap.Error(err))
	return nil, err
}

// pause waits for up to d, at random, and reports whether ctx lives.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d/2 + rand.N(d/2)) //nolint:gosec // spreads load; nothing is secret
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// attempt dials node and logs in for p.
func (x *Executor) attempt(ctx context.Context, node services.Node, p purpose) (*link, error) {
	nc, err := x.cfg.Dial(ctx, node, x.cfg.Client)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		if fault.KindOf(err) != fault.Internal {
			return nil, err // it says what is wrong
		}
		return nil, fault.Wrap(fault.Unavailable, err, fmt.Sprintf("cannot connect to the SSH server of node %q", node.Name))
	}
	g := &login{x: x, node: node, purpose: p}
	out, err := x.cfg.Dialer.Connect(ctx, nc, sshserver.Outgoing{
		Auth: g.config(ctx), Account: "sshd of " + x.cfg.ID, Channels: p.channels,
	})
	if err != nil {
		return nil, g.explain(ctx, err)
	}
	if !g.proven() {
		err := fault.New(fault.Denied, "the sshd of node %q lets anybody in as %q: it asked for no certificate", node.Name, p.login)
		out.Cut(err)
		out.Wait()
		return nil, err
	}
	return &link{Outbound: out, node: node.Name, banner: g.banner.String()}, nil
}

// keep sees to it that Close ends l and waits for it.
func (x *Executor) keep(l *link) (*link, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.work.Go(func() {
		l.Wait()
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.links, l)
	})
	if x.closed { // and Close waits for the caller, too, whose process has not begun
		l.Cut(errClosed)
		return nil, errClosed
	}
	x.links[l] = struct{}{}
	return l, nil
}

// errDropped is why an attempt failed that may be worth another.
var errDropped = errors.New("the SSH server dropped the connection before it said who it is")

// explain returns why g failed, for the person.
func (g *login) explain(ctx context.Context, err error) error {
	name := g.node.Name
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refused != nil {
		return g.refused
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if _, ok := errors.AsType[*ssh.AlgorithmNegotiationError](err); ok {
		return fault.Wrap(fault.Unavailable, err, fmt.Sprintf("the SSH server of node %q has no algorithm that is good enough", name))
	}
	switch {
	case g.trusted == nil && isEnd(err):
		return fault.Wrap(fault.Unavailable, errors.Join(errDropped, err), fmt.Sprintf("the SSH server of node %q drops connections", name))
	case g.trusted == nil:
		return fault.Wrap(fault.Unavailable, err, fmt.Sprintf("what answers for node %q speaks no SSH that is understood", name))
	case !isEnd(err):
		return fault.Wrap(fault.Denied, err, fmt.Sprintf(
			`the sshd of node %q does not let %q in: it does not trust the cluster's CA for this login (see "accessd nodes setup-sshd"), or the account is closed there`, name, g.login))
	}
	return fault.Wrap(fault.Unavailable, err, fmt.Sprintf("the sshd of node %q ended the login of %q", name, g.login))
}

// isEnd reports whether err says that the connection has ended.
func isEnd(err error) bool {
	return slices.ContainsFunc([]error{
		io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE,
	}, func(end error) bool { return errors.Is(err, end) })
}
