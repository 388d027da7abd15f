package srv

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

const (
	// refusalBurst and refusalRate bound how fast one connection is refused:
	// each refusal is two durable events, and a client that asks in a loop must
	// not fill the spool.
	refusalBurst = 64
	refusalRate  = 16 // a second
	// expelDelay is how long a connection whose permission ended stays, so that
	// its sessions can say why.
	expelDelay = time.Second
)

// The reasons that need no figures.
var (
	errStopping = fault.New(fault.Unavailable, "this node is stopping")
	errExpired  = fault.New(fault.Denied, "the certificate has expired")
	errGone     = fault.New(fault.Unavailable, "the client is gone")
	errSessions = fault.New(fault.Unavailable, "the audit log cannot be written, so no session can begin")
)

// ClientConfig says who is at the other end of a connection.
type ClientConfig struct {
	Identity      *sshca.Identity // proven; required
	Login         names.Login     // the account it asked for
	Remote, Local netip.AddrPort  // the zero AddrPort means unknown
	ID            string          // names the connection in audit events
	// Cut closes the connection at once; required.
	Cut func(cause error)
}

// Client is one authenticated connection.
type Client struct {
	m   *Manager
	cfg ClientConfig

	refusals *rate.Limiter

	mu      sync.Mutex
	expiry  *time.Timer // nil when the certificate's end does not end the connection
	cutting *time.Timer // set once the connection is to be cut
	closed  bool
}

// Connect registers an authenticated connection. The caller must call
// [Client.Close] when it has ended. The connection is cut when its certificate
// expires and when the policy no longer allows its login at all.
func (m *Manager) Connect(cfg ClientConfig) *Client {
	c := &Client{m: m, cfg: cfg, refusals: rate.NewLimiter(refusalRate, refusalBurst)}
	if !m.cfg.OutliveCertificate {
		c.expiry = time.AfterFunc(cfg.Identity.ValidBefore.Sub(m.cfg.Now()), func() { c.expel(errExpired) })
	}
	m.mu.Lock()
	m.clients[c] = struct{}{}
	m.mu.Unlock()
	return c
}

// Close forgets the connection.
func (c *Client) Close() {
	c.m.mu.Lock()
	delete(c.m.clients, c)
	c.m.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.expiry != nil {
		c.expiry.Stop()
	}
	if c.cutting != nil {
		c.cutting.Stop()
	}
}

// expel cuts the connection once its sessions had the time to say why they end.
func (c *Client) expel(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.cutting != nil {
		return
	}
	c.cutting = time.AfterFunc(expelDelay, func() { c.cfg.Cut(cause) })
}

// Admit decides whether id may do anything at all as login on this node. The
// decision is the first that allows, or that about a shell.
func (m *Manager) Admit(id *sshca.Identity, login names.Login) authz.Decision {
	node := m.cfg.Node()
	var refusal *authz.Decision
	for _, action := range services.Actions() {
		d := m.cfg.Engine.Decide(authz.Request{Identity: id, Node: node, Login: login, Action: authz.Action(action)})
		if d.Allow {
			return d
		}
		if refusal == nil || authz.Action(action) == authz.ActionShell {
			refusal = &d
		}
	}
	return *refusal
}

func (c *Client) decide(action authz.Action) authz.Decision {
	return c.m.cfg.Engine.Decide(authz.Request{
		Identity: c.cfg.Identity, Node: c.m.cfg.Node(), Login: c.cfg.Login, Action: action,
	})
}

// expired reports whether the certificate's time is over. Then nothing new
// begins, also where what runs goes on.
func (c *Client) expired() bool { return !c.m.cfg.Now().Before(c.cfg.Identity.ValidBefore) }

// Refusal is something that a client asks for and this node does not have.
type Refusal struct {
	Action authz.Action // what the rules are asked about
	Kind   string       // channel or request type
	Target string       // destination as the client named it, or ""
	What   string       // what it is to a person, as in "port forwarding"
}

// Refuse decides about r, records the decision, and returns what to tell the
// person: that the rules deny it or, where they allow it, that it is not
// available.
func (c *Client) Refuse(ctx context.Context, r Refusal) string {
	if err := c.refusals.Wait(ctx); err != nil {
		return "too many refused requests"
	}
	d := c.decide(r.Action)
	reason := d.Reason
	if d.Allow {
		reason = r.What + " is not available on this node yet"
	}
	if err := c.m.cfg.Events.EmitAll(ctx, c.decisionEvent(d, r.Action, r.Target), c.rejectionEvent(r, reason)); err != nil {
		c.m.cfg.Log.Error("a refusal is not recorded", zap.Error(err))
	}
	return reason
}

// limitError says which limit refused a session.
type limitError struct {
	limit int
	what  string
}

func (e *limitError) Error() string { return fmt.Sprintf("at most %d %s", e.limit, e.what) }

func (e *limitError) Unwrap() error { return &fault.Error{Kind: fault.Denied, Public: e.Error()} }
