package remote

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
)

const (
	// loginTimeout bounds the time from the dial to the login.
	loginTimeout = 10 * time.Second
	// startTimeout bounds the time from the login to a running session. An sshd
	// answers once PAM has opened the account, which may make a home first.
	startTimeout = 30 * time.Second
	// maxLogins bounds the logins that one Executor has under way. An sshd drops
	// connections at random once ten are not authenticated (MaxStartups).
	maxLogins = 6
)

var (
	errClosed = fault.New(fault.Unavailable, "the connection is ending")
	errHungUp = fault.New(fault.Unavailable, "the session has ended")
)

// certs is the part of the delegation service that is needed here.
type certs interface {
	SignSession(ctx context.Context, r *connect.Request[accessdv1.SignSessionRequest]) (*connect.Response[accessdv1.SignSessionResponse], error)
	PinHostKey(ctx context.Context, r *connect.Request[accessdv1.PinHostKeyRequest]) (*connect.Response[accessdv1.PinHostKeyResponse], error)
}

// emitter makes events durable; [events.Emitter] is one.
type emitter interface {
	Emit(ctx context.Context, e events.Event) error
}

// Config configures an [Executor]. Fields are required unless they say what
// their zero value means.
type Config struct {
	Node     func() (services.Node, bool) // as the policy has it now; false when it is gone
	Identity *sshca.Identity              // who is at the other end of the connection
	Client   netip.AddrPort               // where from
	Proof    string                       // that the person gave a second factor for the connection; "" without one
	ID       string                       // names the connection in audit events: 16 hexadecimal digits

	// Dial connects to the sshd of n on behalf of a client at from: by TCP when n
	// has an address, else through its tunnel.
	Dial func(ctx context.Context, n services.Node, from netip.AddrPort) (net.Conn, error)

	Certs  certs              // asked for certificates and told of host keys
	Trust  func() sshca.Trust // the authorities as they are now
	Events emitter

	Dialer *sshserver.Dialer // shared by all Executors of a process; nil makes one for this alone
	Now    func() time.Time  // nil is time.Now
	Log    *zap.Logger       // nil discards
}

// Executor is a [srv.Executor] whose sessions run on a plain sshd. It serves one
// connection of a client.
type Executor struct {
	cfg        Config
	credential string        // the certificate of Identity, authorized_keys format
	session    string        // stands for ID where the id of a session is wanted
	logins     chan struct{} // holds one of each login under way
	work       sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	links    map[*link]struct{}
	forwards map[names.Login]*forwards
}

// New returns an Executor that has connected to nothing.
func New(cfg Config) (*Executor, error) {
	switch {
	case cfg.Node == nil, cfg.Identity == nil, cfg.ID == "", cfg.Dial == nil, cfg.Certs == nil, cfg.Trust == nil, cfg.Events == nil:
		return nil, fault.New(fault.BadInput, "executor of an sshd node: a required field is missing")
	}
	session, err := sessionOf(cfg.ID)
	if err != nil {
		return nil, err
	}
	key, err := ssh.ParsePublicKey(cfg.Identity.Certificate)
	if err != nil {
		return nil, fault.Wrap(fault.BadInput, err, "executor of an sshd node: the identity has no certificate")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Dialer == nil {
		if cfg.Dialer, err = sshserver.NewDialer(sshserver.DialerConfig{Name: "sshd", Log: cfg.Log}); err != nil {
			return nil, err
		}
	}
	cfg.Log = cfg.Log.Named("remote")
	return &Executor{
		cfg: cfg, credential: string(ssh.MarshalAuthorizedKey(key)), session: session, logins: make(chan struct{}, maxLogins),
		links: map[*link]struct{}{}, forwards: map[names.Login]*forwards{},
	}, nil
}

// sessionOf returns a session id that begins with the id of a connection, for
// what belongs to no session.
func sessionOf(connection string) (string, error) {
	const digits = 16
	if len(connection) != digits {
		return "", fault.New(fault.BadInput, "connection id %.80q: want %d hexadecimal digits", connection, digits)
	}
	id, err := names.ParseSessionID(connection[:8] + "-" + connection[8:12] + "-" + connection[12:] + "-0000-000000000000")
	return string(id), err
}

// Close ends all that runs and returns when nothing of it is left.
func (x *Executor) Close() error {
	x.mu.Lock()
	x.closed = true
	for l := range x.links {
		l.Cut(errClosed)
	}
	x.mu.Unlock()
	x.work.Wait()
	return nil
}

// spawn runs f in a goroutine that Close waits for, unless it was called.
func (x *Executor) spawn(f func()) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return false
	}
	x.work.Go(f)
	return true
}

// Check implements [srv.Executor]. What the sshd has to say about the account it
// says when a session begins.
func (x *Executor) Check(context.Context, srv.Account) error {
	_, err := x.node()
	return err
}

// node returns the node if it is one of this kind.
func (x *Executor) node() (services.Node, error) {
	n, ok := x.cfg.Node()
	if !ok {
		return n, fault.New(fault.NotFound, "the node is no longer part of the cluster")
	}
	if n.Kind != services.NodeSSHD {
		return n, fault.New(fault.Unavailable, "the node %q has an SSH server of its own now; connect again", n.Name)
	}
	return n, nil
}
