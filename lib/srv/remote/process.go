package remote

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/relay"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshwire"
)

// lossTime is how long the end of all output waits to learn whether the sshd is
// gone, so that the person reads about it.
const lossTime = 100 * time.Millisecond

// exitUnknown is the code of a session that ended without one. A client turns it
// into 255, as it does by itself (OpenSSH's ssh).
const exitUnknown = -1

// Start implements [srv.Executor].
func (x *Executor) Start(ctx context.Context, c srv.Command) (srv.Process, error) {
	l, err := x.connect(ctx, purpose{
		login: c.Login, session: string(c.Session), role: c.Role, start: startOf(c), channels: backChannels(c),
	})
	if err != nil {
		return nil, err
	}
	p, err := x.begin(ctx, l, c)
	if err != nil {
		l.Cut(err)
		return nil, err
	}
	return p, nil
}

// begin starts c on l.
func (x *Executor) begin(ctx context.Context, l *link, c srv.Command) (*process, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout,
		fault.New(fault.Unavailable, "the sshd of node %q does not answer", l.node))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Cut(context.Cause(ctx)) })
	defer stop()
	ch, requests, err := l.OpenChannel(sshwire.ChannelSession, nil)
	if err != nil {
		return nil, l.refusal(ctx, err, "a session")
	}
	p := &process{link: l, ch: ch, exited: make(chan srv.Exit, 1), told: make(chan struct{}), ended: make(chan struct{})}
	if !x.spawn(func() { p.follow(requests) }) {
		return nil, errClosed
	}
	notes, err := p.request(c)
	if err != nil {
		return nil, l.refusal(ctx, err, "the "+string(c.Kind))
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	if !p.terminal {
		p.pipes = srv.Pipes{Stdin: input{p}, Stdout: p.output(ch, "", false), Stderr: p.output(ch.Stderr(), notes, true)}
		return p, nil
	}
	p.pipes = srv.Pipes{Stdin: input{p}, Stdout: p.output(ch, strings.ReplaceAll(notes, "\n", "\r\n"), true)}
	if !x.spawn(func() { _, _ = io.Copy(io.Discard, ch.Stderr()) }) { // a terminal has none
		return nil, errClosed
	}
	return p, nil
}

// refusedError says that the sshd refused a channel request.
type refusedError struct{}

func (refusedError) Error() string { return "the sshd refused the request" }

// refusal returns why the sshd did not begin what was asked for, for the person.
func (l *link) refusal(ctx context.Context, err error, what string) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if o, ok := openError(err); ok {
		return fault.Wrap(fault.Unavailable, err, fmt.Sprintf("the sshd of node %q refuses %s: %s", l.node, what, o))
	}
	if _, ok := err.(refusedError); ok { //nolint:errorlint // it is never wrapped
		return fault.Wrap(fault.Unavailable, err, fmt.Sprintf("the sshd of node %q refuses %s", l.node, what))
	}
	return fault.Wrap(fault.Unavailable, err, fmt.Sprintf("the sshd of node %q ended the connection before %s began", l.node, what))
}

// request asks for all that belongs to c, in the order in which it is to be had,
// and returns what the person should read first.
func (p *process) request(c srv.Command) (notes string, err error) {
	notes = p.link.banner
	for _, v := range c.Env {
		if _, err := p.ch.SendRequest(sshwire.RequestEnv, false, v.Marshal()); err != nil {
			return "", err
		}
	}
	if c.Terminal != nil {
		if p.terminal, err = p.ch.SendRequest(sshwire.RequestPTY, true, terminal(c.Terminal).Marshal()); err != nil {
			return "", err
		}
		if !p.terminal {
			notes += "accessd: the node gives no terminal\n"
		}
	}
	if c.Agent {
		if _, err := p.ch.SendRequest(sshwire.RequestAgent, false, nil); err != nil {
			return "", err
		}
	}
	if c.X11 != nil {
		ok, err := p.ch.SendRequest(sshwire.RequestX11, true, c.X11.Marshal())
		if err != nil {
			return "", err
		}
		if !ok {
			notes += "accessd: the node does not forward X11\n"
		}
	}
	name, payload := begin(c)
	ok, err := p.ch.SendRequest(name, true, payload)
	if err == nil && !ok {
		err = refusedError{}
	}
	return notes, err
}

// startOf returns what the sshd is asked to start for c, which the certificate
// may force.
func startOf(c srv.Command) *accessdv1.SessionStart {
	switch c.Kind {
	case srv.KindShell:
	case srv.KindExec:
		if len(c.Argv) > 0 {
			return &accessdv1.SessionStart{Kind: sshwire.RequestExec, Line: []byte(quote(c.Argv))}
		}
		return &accessdv1.SessionStart{Kind: sshwire.RequestExec, Line: []byte(c.Line)}
	case srv.KindSubsystem:
		return &accessdv1.SessionStart{Kind: sshwire.RequestSubsystem, Line: []byte(c.Line)}
	}
	return &accessdv1.SessionStart{Kind: sshwire.RequestShell}
}

// begin returns the request that starts c (RFC 4254, section 6.5).
func begin(c srv.Command) (name string, payload []byte) {
	switch s := startOf(c); s.GetKind() {
	case sshwire.RequestExec:
		return sshwire.RequestExec, sshwire.Exec{Command: string(s.GetLine())}.Marshal()
	case sshwire.RequestSubsystem:
		return sshwire.RequestSubsystem, sshwire.Subsystem{Name: string(s.GetLine())}.Marshal()
	}
	return sshwire.RequestShell, nil
}

// quote returns a line of which a POSIX shell makes the words of argv again.
func quote(argv []string) string {
	words := make([]string, len(argv))
	for i, w := range argv {
		special := func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_-./,:@%+", r)
		}
		if w == "" || strings.IndexFunc(w, special) >= 0 {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		words[i] = w
	}
	return strings.Join(words, " ")
}

// terminal returns the request for t (RFC 4254, sections 6.2 and 8).
func terminal(t *srv.Terminal) sshwire.PtyRequest {
	var modes []byte
	for _, m := range t.Modes {
		modes = binary.BigEndian.AppendUint32(append(modes, m.Opcode), m.Value)
	}
	w := t.Window
	return sshwire.PtyRequest{
		Term: t.Term, Columns: w.Columns, Rows: w.Rows, Width: w.Width, Height: w.Height,
		Modes: append(modes, 0), // TTY_OP_END
	}
}

// backChannels are the channels that the sshd may open for c.
func backChannels(c srv.Command) map[string]func(*sshserver.Conn, ssh.NewChannel) {
	channels := map[string]func(*sshserver.Conn, ssh.NewChannel){}
	if c.Agent {
		channels[sshwire.ChannelAgent] = func(conn *sshserver.Conn, nc ssh.NewChannel) {
			join(conn, nc, func() (ssh.Channel, error) { return c.Open(sshwire.ChannelAgent, nil) })
		}
	}
	if c.X11 != nil {
		var used atomic.Bool
		channels[sshwire.ChannelX11] = func(conn *sshserver.Conn, nc ssh.NewChannel) {
			x, err := sshwire.ParseX11Open(nc.ExtraData())
			if err != nil || used.Swap(true) && c.X11.SingleConnection {
				nc.Reject(ssh.Prohibited, "refused")
				return
			}
			join(conn, nc, func() (ssh.Channel, error) { return c.Open(sshwire.ChannelX11, x.Marshal()) })
		}
	}
	return channels
}

// join connects nc, which the sshd opens, to a channel to the client until
// either has ended.
func join(conn *sshserver.Conn, nc ssh.NewChannel, open func() (ssh.Channel, error)) {
	near, err := open()
	if err != nil {
		nc.Reject(ssh.ConnectionFailed, "the client does not take it")
		return
	}
	defer near.Close()
	far, requests, err := nc.Accept()
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests) // ends with the channel
	relay.Pipe(conn.Context(), near, far)
}

// process is a session on the sshd.
type process struct {
	link     *link
	ch       ssh.Channel
	pipes    srv.Pipes
	terminal bool
	exited   chan srv.Exit
	told     chan struct{} // closed when the sshd has said how it ended
	ended    chan struct{} // closed when nothing more is heard of the session

	closed atomic.Bool // by us
	deaf   atomic.Bool // it reads no more
}

// Pipes implements [srv.Process].
func (p *process) Pipes() srv.Pipes { return p.pipes }

// Exited implements [srv.Process].
func (p *process) Exited() <-chan srv.Exit { return p.exited }

// Resize implements [srv.Process].
func (p *process) Resize(w sshwire.WindowChange) {
	if p.terminal {
		_, _ = p.ch.SendRequest(sshwire.RequestWindowChange, false, w.Marshal()) // fails when it has ended
	}
}

// Signal implements [srv.Process]. Whether it arrives the sshd does not say;
// OpenSSH knows of signals from 7.9 on.
func (p *process) Signal(name string) error {
	if !slices.Contains(signals(), ssh.Signal(name)) {
		return fault.New(fault.BadInput, "no signal %q", name)
	}
	select {
	case <-p.told:
		return os.ErrProcessDone
	default:
	}
	_, err := p.ch.SendRequest(sshwire.RequestSignal, false, sshwire.Signal{Name: name}.Marshal())
	return err
}

// signals returns the names of RFC 4254, section 6.10.
func signals() []ssh.Signal {
	return []ssh.Signal{
		ssh.SIGABRT, ssh.SIGALRM, ssh.SIGFPE, ssh.SIGHUP, ssh.SIGILL, ssh.SIGINT, ssh.SIGKILL,
		ssh.SIGPIPE, ssh.SIGQUIT, ssh.SIGSEGV, ssh.SIGTERM, ssh.SIGUSR1, ssh.SIGUSR2,
	}
}

// Close implements [srv.Process]. The end of the connection is what makes an
// sshd hang up.
func (p *process) Close() {
	p.closed.Store(true)
	p.link.Cut(errHungUp)
}

// follow takes what the sshd says of the session until it has closed, and yields
// its exit. A malformed message is as none.
func (p *process) follow(requests <-chan *ssh.Request) {
	known := false
	exit := func(e srv.Exit) {
		if !known {
			known = true
			p.exited <- e
		}
	}
	tell := sync.OnceFunc(func() { close(p.told) })
	for r := range requests {
		switch r.Type {
		case sshwire.RequestExitStatus:
			if x, err := sshwire.ParseExitStatus(r.Payload); err == nil {
				exit(srv.Exit{Code: int(x.Code)})
				tell()
			}
		case sshwire.RequestExitSignal:
			if x, err := sshwire.ParseExitSignal(r.Payload); err == nil && x.Name != "" {
				exit(srv.Exit{Signal: x.Name, Core: x.CoreDumped})
				tell()
			}
		case sshwire.RequestEOW: // (OpenSSH PROTOCOL, section 2.1)
			p.deaf.Store(true)
		}
		r.Reply(false, nil) // a keepalive is content with any answer
	}
	close(p.ended)
	exit(srv.Exit{Code: exitUnknown})
}

// input is the standard input of a process.
type input struct{ p *process }

// Write implements [io.Writer]. It fails once nobody reads what it writes.
func (i input) Write(b []byte) (int, error) {
	if i.p.deaf.Load() {
		return 0, io.ErrClosedPipe
	}
	return i.p.ch.Write(b)
}

// Close implements [io.Closer].
func (i input) Close() error { return i.p.ch.CloseWrite() }

// output is an output of a process.
type output struct {
	from  io.Reader
	p     *process
	notes strings.Reader // come first
	tells bool           // and last comes that the connection was lost
}

// output returns what from yields, after notes.
func (p *process) output(from io.Reader, notes string, tells bool) *output {
	o := &output{from: from, p: p, tells: tells}
	o.notes.Reset(notes)
	return o
}

// Read implements [io.Reader].
func (o *output) Read(b []byte) (int, error) {
	if o.notes.Len() > 0 {
		return o.notes.Read(b)
	}
	n, err := o.from.Read(b)
	if err == nil || !o.tells {
		return n, err
	}
	o.tells = false
	if o.p.lost() {
		end := "\n"
		if o.p.terminal {
			end = "\r\n"
		}
		o.notes.Reset(fmt.Sprintf("accessd: the connection to node %q is lost%s", o.p.link.node, end))
		return n, nil
	}
	return n, err
}

// Close implements [io.Closer]: it tells the process that nobody reads its
// output any more (OpenSSH PROTOCOL, section 2.1).
func (o *output) Close() error {
	_, err := o.p.ch.SendRequest(sshwire.RequestEOW, false, nil)
	return err
}

// lost reports whether the output ended because the connection did. It waits a
// moment for what usually follows the end of all output.
func (p *process) lost() bool {
	t := time.NewTimer(lossTime)
	defer t.Stop()
	select {
	case <-p.told:
		return false
	case <-p.ended:
	case <-t.C:
		return false // it has closed its output, and goes on
	}
	select {
	case <-p.told:
		return false
	default:
	}
	select {
	case <-p.link.Context().Done():
	case <-t.C:
		return false // an sshd that never says how a session ended
	}
	return !p.closed.Load()
}
