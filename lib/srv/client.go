package srv

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/time/rate"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
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
	expelDelay = 500 * time.Millisecond
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

	Node     func() authz.NodeView // where its sessions run; nil: the Manager's
	Executor Executor              // how they do; nil: the Manager's

	// OwnSSHD reports whether a destination is the node's own SSH server, where
	// that is not told by loopback and this machine's addresses; nil never does.
	OwnSSHD func(host string, addr netip.Addr, port uint16) bool

	// Open opens a channel to the client, for what listens on its behalf; nil
	// opens none.
	Open func(kind string, payload []byte) (ssh.Channel, <-chan *ssh.Request, error)
	// Cut closes the connection at once; required.
	Cut func(cause error)
}

// Client is one authenticated connection.
type Client struct {
	m   *Manager
	cfg ClientConfig

	refusals *rate.Limiter
	work     sync.WaitGroup // listeners and their connections; Add under mu

	mu        sync.Mutex
	listeners map[Endpoint]*listener // by what the client asked for
	expiry    *time.Timer            // nil when the certificate's end does not end the connection
	cutting   *time.Timer            // set once the connection is to be cut
	gone      bool
}

// Connect registers an authenticated connection. The caller must call
// [Client.Close] when it has ended. The connection is cut when its certificate
// expires and when the policy no longer allows its login at all.
func (m *Manager) Connect(cfg ClientConfig) *Client {
	if cfg.Node == nil {
		cfg.Node = m.cfg.Node
	}
	if cfg.Executor == nil {
		cfg.Executor = m.cfg.Executor
	}
	c := &Client{m: m, cfg: cfg, refusals: rate.NewLimiter(refusalRate, refusalBurst), listeners: map[Endpoint]*listener{}}
	if !m.cfg.OutliveCertificate {
		c.expiry = time.AfterFunc(cfg.Identity.ValidBefore.Sub(m.cfg.Now()), func() { c.expel(errExpired) })
	}
	m.mu.Lock()
	m.clients[c] = struct{}{}
	m.mu.Unlock()
	return c
}

// Close forgets the connection, which has ended, and returns when nothing that
// listened for it runs any more.
func (c *Client) Close() {
	c.m.mu.Lock()
	delete(c.m.clients, c)
	c.m.mu.Unlock()
	c.stopTimers()
	c.closeListeners()
	c.work.Wait()
}

func (c *Client) stopTimers() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
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
	if c.gone || c.cutting != nil {
		return
	}
	c.cutting = time.AfterFunc(expelDelay, func() { c.cfg.Cut(cause) })
}

// Admit decides whether id may do anything at all as login on node. The decision
// is the first that allows, or that about a shell.
func (m *Manager) Admit(id *sshca.Identity, login names.Login, node authz.NodeView) authz.Decision {
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
		Identity: c.cfg.Identity, Node: c.cfg.Node(), Login: c.cfg.Login, Action: action,
	})
}

// decideLine decides about a command line. An empty one is as a blank one to a
// shell; to the rules it would be any.
func (c *Client) decideLine(line string) authz.Decision {
	return c.m.cfg.Engine.Decide(authz.Request{
		Identity: c.cfg.Identity, Node: c.cfg.Node(), Login: c.cfg.Login, Action: authz.ActionExec, Command: cmp.Or(line, " "),
	})
}

// decideAny returns the first decision about what r needs one of that allows, or
// that about the first of them.
func (c *Client) decideAny(r request) (authz.Action, authz.Decision) {
	var refusal authz.Decision
	actions := r.actions()
	for i, a := range actions {
		var d authz.Decision
		if a == authz.ActionExec {
			d = c.decideLine(r.line)
		} else {
			d = c.decide(a)
		}
		if d.Allow {
			return a, d
		}
		if i == 0 {
			refusal = d
		}
	}
	return actions[0], refusal
}

// account returns the account that something which d allows is done as.
func (c *Client) account(d authz.Decision) Account {
	return Account{Login: c.cfg.Login, Create: d.Options.CreateAccount}
}

// expired reports whether the certificate's time is over. Then nothing new
// begins, also where what runs goes on.
func (c *Client) expired() bool { return !c.m.cfg.Now().Before(c.cfg.Identity.ValidBefore) }

// refusal is a request that is turned down.
type refusal struct {
	action  authz.Action   // what the rules were asked about; "" when they were not
	kind    string         // channel or request type
	target  string         // destination as the client named it, or ""
	decided []events.Event // what the rules answered
}

// refuse records r and why, and returns what to tell the person.
func (c *Client) refuse(ctx context.Context, r refusal, why error) string {
	reason := fault.Public(why)
	if err := c.refusals.Wait(ctx); err != nil {
		return "too many refused requests"
	}
	e := c.rejectionEvent(r, reason)
	e.Error, e.Fields["lock"] = why.Error(), services.LockOf(why)
	if err := c.m.cfg.Events.EmitAll(ctx, append(r.decided, e)...); err != nil {
		return fault.Public(c.unrecorded(err))
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
