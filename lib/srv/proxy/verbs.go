package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// VerbCall is one line of the command line that a person runs at the proxy, with
// all that it may use. Nothing of the proxy's machine is among it.
type VerbCall struct {
	Args []string // without a program's name

	In       io.Reader
	Out, Err io.Writer // which give lines the ends that the person's terminal wants
	Terminal bool      // whether there is one

	User names.UserName
	API  *http.Client // calls the authority as the person

	// Certificate let the person in; authorized_keys format.
	Certificate string
	// Agent calls fn with the agent that the person forwards; nil when there is
	// none.
	Agent func(fn func(agent.ExtendedAgent) error) error

	Nodes func() []Reachable // the nodes that the person may reach, in the order of their names

	// Attach shows the person the session sid, whose output goes to the
	// terminal; with join, the person's input goes to the session. It returns
	// when either has ended.
	Attach func(ctx context.Context, sid names.SessionID, join bool) error
}

// Reachable is a node that a person may reach.
type Reachable struct {
	services.Node
	Online bool
	Logins []names.Login // that the person may use there
}

// Why a verb was ended.
var (
	errInterrupted = errors.New("interrupted")
	errStopping    = fault.New(fault.Unavailable, "the proxy is stopping")
)

// verb runs one line of the command line and returns its exit code.
func (x *session) verb(ctx context.Context, args []string) int {
	ctx, cancel, err := x.begin(ctx)
	if err != nil {
		x.ignoreInput()
		return x.fail(err)
	}
	defer x.s.live.finish(x.who)
	defer cancel(nil)
	x.work.Go(func() { x.attend(cancel, func(r *ssh.Request) bool { return false }) })
	var in io.Reader = x.ch
	if x.pty != nil {
		k := newKeys(func() { cancel(errInterrupted) })
		x.work.Go(func() { k.pump(ctx, x.ch) })
		in = k
	}
	if x.nounNeedsFactor(args) {
		if err := x.obtain(ctx, in); err != nil {
			return x.fail(err)
		}
	}
	calls, hangUp := x.s.callsAs(x.conn, x.who, x.given)
	defer hangUp()
	call := VerbCall{
		Args: args, In: in, Out: lineEnds{x, x.ch}, Err: lineEnds{x, x.ch.Stderr()}, Terminal: x.pty != nil,
		User: x.conn.Identity.User, API: calls, Nodes: func() []Reachable { return x.s.reachable(x.conn.Identity) },
		Certificate: x.who.cert,
	}
	if x.agent {
		call.Agent = x.withAgent
	}
	call.Attach = func(ctx context.Context, sid names.SessionID, join bool) error {
		if k, ok := in.(*keys); ok {
			defer k.lend()()
		}
		return x.observe(ctx, observation{calls: calls, sid: sid, join: join, in: in})
	}
	code := x.s.cfg.Verbs(ctx, call)
	if errors.Is(context.Cause(ctx), errInterrupted) {
		return exitInterrupted
	}
	return code
}

// exitInterrupted is the exit code of what was interrupted from the keyboard, as a
// shell reports it.
const exitInterrupted = 130

// begin counts a verb, if the person may run any now. Its context ends with the
// channel, and when the server stops.
func (x *session) begin(ctx context.Context) (context.Context, context.CancelCauseFunc, error) {
	if !x.s.cfg.Now().Before(x.conn.Identity.ValidBefore) {
		return nil, nil, fault.New(fault.Denied, "your certificate expired at %s", moment(x.conn.Identity.ValidBefore))
	}
	if err := x.s.live.begin(x.who); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, cancel, nil
}

// attend answers requests until the channel is gone, which ends what runs, as the
// end of the server does.
func (x *session) attend(cancel context.CancelCauseFunc, answer func(r *ssh.Request) bool) {
	draining, leaving := x.conn.Draining(), x.who.leaving
	for {
		select {
		case r, ok := <-x.reqs:
			if !ok {
				cancel(errGone)
				return
			}
			_ = r.Reply(answer(r), nil)
		case <-draining:
			cancel(errStopping)
			draining = nil
		case <-leaving:
			cancel(x.who.why)
			leaving = nil
		}
	}
}

// lineEnds writes text with the line ends of the client's terminal.
type lineEnds struct {
	x *session
	w io.Writer
}

// Write implements [io.Writer].
func (l lineEnds) Write(p []byte) (int, error) {
	if l.x.pty == nil {
		return l.w.Write(p)
	}
	if _, err := l.w.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// maxKeys bounds what is typed ahead, in bytes; a terminal of the system keeps as
// much (termios(3), MAX_INPUT).
const maxKeys = 4096

// keys is the input from a terminal. Ctrl-C interrupts, unless somebody has
// borrowed the keys; what is typed ahead beyond a bound is lost.
type keys struct {
	interrupt func()

	mu    sync.Mutex
	moved sync.Cond // of mu
	buf   []byte
	err   error // behind buf
	lent  bool
}

func newKeys(interrupt func()) *keys {
	k := &keys{interrupt: interrupt}
	k.moved.L = &k.mu
	return k
}

// pump reads r until that ends or ctx does.
func (k *keys) pump(ctx context.Context, r io.Reader) {
	defer context.AfterFunc(ctx, func() { k.end(context.Cause(ctx)) })()
	var chunk [512]byte
	for {
		n, err := r.Read(chunk[:])
		k.put(chunk[:n])
		if err != nil {
			k.end(err)
			return
		}
	}
}

func (k *keys) put(b []byte) {
	const ctrlC = 3
	k.mu.Lock()
	lent := k.lent
	k.mu.Unlock()
	if !lent && bytes.IndexByte(b, ctrlC) >= 0 {
		k.interrupt()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for k.lent && len(k.buf)+len(b) > maxKeys && k.err == nil {
		k.moved.Wait()
	}
	k.buf = append(k.buf, b[:min(len(b), maxKeys-len(k.buf))]...)
	k.moved.Broadcast()
}

func (k *keys) end(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		k.err = err
	}
	k.moved.Broadcast()
}

// Read implements [io.Reader].
func (k *keys) Read(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.buf) == 0 {
		if k.err != nil {
			return 0, k.err
		}
		k.moved.Wait()
	}
	n := copy(p, k.buf)
	k.buf = k.buf[n:]
	k.moved.Broadcast()
	return n, nil
}

// lend has every key go to the reader, until the function it returns is called.
func (k *keys) lend() (back func()) {
	set := func(lent bool) {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.lent = lent
		k.moved.Broadcast()
	}
	set(true)
	return func() { set(false) }
}

// reachable returns the nodes that id may reach, by name.
func (s *Server) reachable(id *sshca.Identity) []Reachable {
	var list []Reachable
	for _, n := range s.cfg.Policy.Nodes() {
		if !s.cfg.Engine.Reach(id, authz.ViewOf(n)).Allow {
			continue
		}
		r := Reachable{Node: n, Online: n.Address != "" || len(s.cfg.Policy.Presence(n.ID)) > 0}
		for _, login := range id.Logins {
			if s.mayUse(id, n, login) {
				r.Logins = append(r.Logins, login)
			}
		}
		list = append(list, r)
	}
	return list
}

// mayUse reports whether id may do anything as login on n.
func (s *Server) mayUse(id *sshca.Identity, n services.Node, login names.Login) bool {
	return slices.ContainsFunc(services.Actions(), func(action string) bool {
		d := s.cfg.Engine.Decide(authz.Request{Identity: id, Node: authz.ViewOf(n), Login: login, Action: authz.Action(action)})
		return d.Allow || d.NeedsFactor
	})
}

// callsAs returns a client of the authority's services for the person at the
// other end of c, and what ends its connection.
func (s *Server) callsAs(c *sshserver.Conn, who *person, given factor) (calls *http.Client, hangUp func()) {
	if s.cfg.Authority != nil {
		return rpc.Local(s.cfg.Authority, rpc.Peer{Identity: given.of(c.Identity), Addr: c.Remote}), func() {}
	}
	calls = rpc.Client(func(ctx context.Context) (net.Conn, error) { return s.dialAuthority(ctx, c, who, given) })
	return calls, calls.CloseIdleConnections
}

// dialAuthority connects to the services of an authority elsewhere as the person
// at the other end of c: for all it knows, that is who calls.
func (s *Server) dialAuthority(ctx context.Context, c *sshserver.Conn, who *person, given factor) (net.Conn, error) {
	if s.cfg.OpenAuthority == nil {
		return nil, fault.New(fault.Unavailable, "this process reaches no authority")
	}
	user := c.Identity.User
	signer, _, err := s.delegate(ctx, delegation{client: c.Remote, certificate: who.cert, user: user, proof: given.proof})
	if err != nil {
		return nil, err
	}
	raw, err := s.cfg.OpenAuthority(ctx, c.Remote)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the authority is away")
	}
	far, err := s.dialer.Connect(ctx, raw, sshserver.Outgoing{Account: "user " + string(user), Auth: ssh.ClientConfig{
		User: string(user), Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: s.cfg.Policy.Trust().HostKeyCallback(defaults.AuthorityName, s.cfg.Now),
	}})
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the authority does not let this proxy in")
	}
	context.AfterFunc(c.Context(), func() { far.Cut(errGone) })
	ch, reqs, err := far.OpenChannel(sshwire.ChannelAPI, nil)
	if err != nil {
		far.Cut(errGone)
		far.Wait()
		return nil, fault.Wrap(fault.Unavailable, err, "the authority does not answer")
	}
	s.forwards.Go(func() { refuseAll(reqs); far.Wait() })
	return apiConn{rpc.ChannelConn(ch, raw.LocalAddr(), raw.RemoteAddr()), far}, nil
}

// apiConn is a channel to an authority that has its connection for itself.
type apiConn struct {
	net.Conn
	far *sshserver.Outbound
}

// Close ends both.
func (a apiConn) Close() error {
	err := a.Conn.Close()
	a.far.Cut(errGone)
	return err
}
