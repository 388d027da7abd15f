package sshserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
)

// DialerConfig configures a [Dialer]. The zero value of every field but Name is
// usable.
type DialerConfig struct {
	Name       string // tells this one from others of the process in metrics and logs; required
	Limits     Limits // those that concern a connection after authentication
	Keepalive  Keepalive
	Registerer prometheus.Registerer // nil keeps the counters private
	Log        *zap.Logger           // nil discards
}

// Dialer makes connections to servers of other people. They are held to the
// bounds of those that people make here: what a server may open, ask for and
// make us hold, and how long it may be silent.
type Dialer struct{ server *Server }

// NewDialer returns a Dialer that has started nothing.
func NewDialer(cfg DialerConfig) (*Dialer, error) {
	if cfg.Name == "" {
		return nil, fault.New(fault.BadInput, "SSH dialer: a name is required")
	}
	s := &Server{cfg: Config{
		Name: cfg.Name, Limits: cfg.Limits.withDefaults(), Keepalive: cfg.Keepalive, Log: cfg.Log,
	}}
	set(&s.cfg.Keepalive.Interval, defaults.KeepaliveInterval)
	set(&s.cfg.Keepalive.Misses, defaults.KeepaliveMisses)
	if s.cfg.Log == nil {
		s.cfg.Log = zap.NewNop()
	}
	s.cfg.Log = s.cfg.Log.Named("ssh").Named(cfg.Name)
	s.clients = newClients(s.cfg.Limits)
	var err error
	if s.metrics, err = newMetrics(cfg.Name, s.clients, cfg.Registerer); err != nil {
		return nil, fmt.Errorf("register the metrics of SSH dialer %q: %w", cfg.Name, err)
	}
	return &Dialer{server: s}, nil
}

// Outgoing says how one connection is made.
type Outgoing struct {
	// Auth has the user, how it is authenticated and which host keys are taken.
	// Ciphers, key exchanges and MACs are set here, and so is the version.
	Auth ssh.ClientConfig
	// Account names whom the connection's buffers are charged to.
	Account string
	// Channels has a handler per channel type that the server may open, as
	// [Config.Channels] has. All others are refused and counted, and so is every
	// global request.
	Channels map[string]func(c *Conn, nc ssh.NewChannel)
}

// Outbound is a connection to a server of other people, from [Dialer.Connect].
type Outbound struct {
	*Conn

	done chan struct{}
}

// Wait returns when the connection has ended and nothing of it runs any more.
// The cause of its context says why it ended.
func (o *Outbound) Wait() { <-o.done }

// Connect authenticates to the server at the other end of nc. The end of ctx
// stops that, and has no effect afterwards. On an error nc is closed. The caller
// must call Cut or Close at the end, and then Wait.
func (d *Dialer) Connect(ctx context.Context, nc net.Conn, o Outgoing) (*Outbound, error) {
	c := d.server.newConn(ctx, nc)
	c.dialled = true
	w := &dialled{Conn: nc, c: c}
	stop := context.AfterFunc(ctx, func() { c.Cut(context.Cause(ctx)) })
	cfg := o.Auth
	cfg.Config, cfg.ClientVersion = clientConfig(hasAES()), Version
	cc, channels, requests, err := ssh.NewClientConn(w, "", &cfg)
	if err == nil && !stop() {
		cc.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		stop()
		c.Cut(err)
		return nil, err
	}
	c.ServerConn = &ssh.ServerConn{Conn: cc}
	d.server.clients.join(o.Account, c.meter)
	w.live.Store(true)
	w.out.gcm.Store(writesGCM(c.ServerConn))
	c.meter.add(&c.writing)
	c.meter.add(&c.global)
	d.server.metrics.open.Inc()
	c.mu.Lock()
	c.beat = time.AfterFunc(d.server.cfg.Keepalive.Interval, c.keepalive)
	c.mu.Unlock()
	out := &Outbound{Conn: c, done: make(chan struct{})}
	go func() { // Wait waits for it
		defer close(out.done)
		defer d.server.metrics.open.Dec()
		c.follow(channels, requests, o.Channels)
	}()
	return out, nil
}

// follow serves what the server opens and asks for until the connection ends.
func (c *Conn) follow(channels <-chan ssh.NewChannel, requests <-chan *ssh.Request, handlers map[string]func(*Conn, ssh.NewChannel)) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for r := range requests {
			r.Reply(c.serveRequest(r, nil))
		}
	})
	for nc := range channels {
		wg.Go(func() { c.serveChannel(nc, handlers[nc.ChannelType()]) })
	}
	err := c.Wait()
	if errors.Is(err, io.EOF) {
		err = errLeft
	}
	c.cancel(err)
	wg.Wait()
	c.finish()
}

// errLeft is why a connection ended that the server closed in order.
var errLeft = errors.New("the server closed the connection")

// clientConfig returns what is negotiated with a server. Whatever OpenSSH 7.4
// and dropbear offer has something of each; nothing here is of SHA-1 or CBC.
func clientConfig(aes bool) ssh.Config {
	ciphers := defaultCiphers(aes)
	for _, c := range []string{
		ssh.CipherChaCha20Poly1305, ssh.CipherAES128CTR, ssh.CipherAES192CTR, ssh.CipherAES256CTR,
	} {
		if !slices.Contains(ciphers, c) {
			ciphers = append(ciphers, c)
		}
	}
	return ssh.Config{
		KeyExchanges: []string{
			ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519,
			ssh.KeyExchangeECDHP256, ssh.KeyExchangeECDHP384, ssh.KeyExchangeECDHP521,
			ssh.KeyExchangeDH16SHA512, ssh.KeyExchangeDHGEXSHA256, ssh.KeyExchangeDH14SHA256,
		},
		Ciphers: ciphers,
		MACs:    []string{ssh.HMACSHA256ETM, ssh.HMACSHA512ETM, ssh.HMACSHA256, ssh.HMACSHA512},
	}
}

// dialled is a connection to a server as x/crypto sees it: it counts what is
// received and reads no more than the server is allowed.
type dialled struct {
	net.Conn
	c *Conn

	live atomic.Bool
	in   reader
	out  writer
}

func (w *dialled) Read(b []byte) (int, error) {
	if err := w.c.admit(); err != nil {
		return 0, err
	}
	n, fresh, err := w.in.read(w.Conn, b)
	w.c.meter.received(fresh)
	if !w.live.Load() && w.c.meter.total.Load() > maxPreAuth {
		return 0, errPreAuthBytes
	}
	return n, err
}

func (w *dialled) Write(b []byte) (int, error) {
	w.c.meter.wake(&w.c.writing)
	defer w.c.meter.rest(&w.c.writing)
	return w.out.write(w.Conn, b)
}

// Close is called by x/crypto, also after an error of its own.
func (w *dialled) Close() error { return w.c.net.Close() }
