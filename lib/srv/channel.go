package srv

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/srv/sftp"
	"github.com/accessd/accessd/lib/sshwire"
)

// maxEnv is how many variables one session takes; sshd's own bound (session.c).
const maxEnv = 128

// maxEnvBytes bounds what they hold together. An exec takes as much as a
// quarter of the stack, 2 MiB; this leaves all but an eighth of that to the
// command.
const maxEnvBytes = 256 << 10

const (
	exitRefused  = 255 // what ssh itself exits with when it cannot run a command
	exitNotBegun = 1   // what sshd exits with when it cannot execute the shell
)

// channel is one session channel. Its requests are served one after the other
// by [Client.Session]; what is below run belongs to the session's goroutine.
type channel struct {
	client *Client
	ch     ssh.Channel
	ctx    context.Context //nolint:containedctx // lives as long as the channel, not longer than Session
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // the session and its pumps

	request  request
	envBytes int
	begun    bool            // shell, exec or subsystem was asked for
	granted  map[string]bool // what was asked for beside it, and the answer
	process  Process         // nil until it runs
	session  *session        // and what it runs for
}

// Session serves the session channel nc until it has closed. It returns when
// nothing of the session runs any more, but for processes that ignored a
// hangup. ctx must end with the connection.
func (c *Client) Session(ctx context.Context, nc ssh.NewChannel) {
	ch, requests, err := nc.Accept()
	if err != nil {
		return // the connection has ended
	}
	ctx, cancel := context.WithCancelCause(ctx)
	h := &channel{client: c, ch: ch, ctx: ctx, cancel: cancel, granted: map[string]bool{}}
	for r := range requests {
		h.serve(r)
	}
	cancel(errGone)
	h.wg.Wait()
}

// serve answers r.
func (h *channel) serve(r *ssh.Request) {
	var ok bool
	var then func() // what follows the answer
	switch r.Type {
	case sshwire.RequestPTY:
		ok = h.pty(r.Payload)
	case sshwire.RequestEnv:
		ok = h.env(r.Payload)
	case sshwire.RequestShell:
		ok = len(r.Payload) == 0
		if ok {
			ok, then = h.begin(KindShell, "")
		}
	case sshwire.RequestExec:
		x, err := sshwire.ParseExec(r.Payload)
		if ok = err == nil; ok {
			ok, then = h.begin(KindExec, x.Command)
		}
	case sshwire.RequestSubsystem:
		x, err := sshwire.ParseSubsystem(r.Payload)
		if ok = err == nil; ok {
			ok, then = h.begin(KindSubsystem, x.Name)
		}
	case sshwire.RequestWindowChange:
		ok = h.resize(r.Payload)
	case sshwire.RequestSignal:
		ok = h.signal(r.Payload)
	case sshwire.RequestEOW:
		ok = h.endOutput()
	case sshwire.RequestAgent:
		ok = h.grant(r.Type, authz.ActionForwardAgent)
		h.request.agent = h.request.agent || ok
	case sshwire.RequestX11:
		ok = h.x11(r)
	}
	if !ok {
		h.client.m.metrics.refused.Inc()
	}
	if r.WantReply {
		_ = r.Reply(ok, nil) // fails when the connection has ended; then so does the loop
	}
	if then != nil {
		then()
	}
}

// pty notes the terminal a client asks for (RFC 4254, section 6.2).
func (h *channel) pty(payload []byte) bool {
	if h.begun || h.request.terminal != nil {
		return false
	}
	x, err := sshwire.ParsePtyRequest(payload)
	if err != nil {
		return false
	}
	modes, err := sshwire.ParseModes(x.Modes)
	if err != nil {
		return false
	}
	h.request.terminal = &Terminal{
		Term:   x.Term,
		Window: sshwire.WindowChange{Columns: x.Columns, Rows: x.Rows, Width: x.Width, Height: x.Height},
		Modes:  modes,
	}
	return true
}

// env notes a variable of the environment when its name is on the list.
func (h *channel) env(payload []byte) bool {
	x, err := sshwire.ParseEnv(payload)
	if err != nil || h.begun || !accepts(h.client.m.cfg.AcceptEnv, x.Name) {
		return false
	}
	size := len(x.Name) + len(x.Value) + len("=\x00")
	if len(h.request.env) >= maxEnv || h.envBytes+size > maxEnvBytes {
		return false
	}
	h.envBytes += size
	h.request.env = append(h.request.env, x)
	return true
}

// accepts reports whether patterns has name.
func accepts(patterns []string, name string) bool {
	for _, p := range patterns {
		prefix, open := strings.CutSuffix(p, "*")
		if name == p || open && strings.HasPrefix(name, prefix) && isWord(name) {
			return true
		}
	}
	return false
}

func isWord(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool {
		return r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) < 0
}

// resize follows the size of the client's terminal (RFC 4254, section 6.7).
func (h *channel) resize(payload []byte) bool {
	w, err := sshwire.ParseWindowChange(payload)
	if err != nil || h.request.terminal == nil {
		return false
	}
	if h.process != nil {
		h.process.Resize(w)
		h.session.resize(h.ctx, w)
	} else {
		h.request.terminal.Window = w
	}
	return true
}

// signal passes a signal on (RFC 4254, section 6.9).
func (h *channel) signal(payload []byte) bool {
	x, err := sshwire.ParseSignal(payload)
	return err == nil && h.process != nil && h.process.Signal(x.Name) == nil
}

// endOutput follows a client that reads no more (OpenSSH PROTOCOL, section 2.1):
// the process learns it from its next write. A terminal has but one end for both
// directions, and stays.
func (h *channel) endOutput() bool {
	if h.process == nil || h.request.terminal != nil {
		return false
	}
	out, ok := h.process.Pipes().Stdout.(io.Closer)
	if ok {
		_ = out.Close() // a stream that nobody reads has nothing to lose
	}
	return ok
}

// x11 notes that the client offers its display.
func (h *channel) x11(r *ssh.Request) bool {
	x, err := sshwire.ParseX11Request(r.Payload)
	if err != nil || h.request.x11 != nil || !h.grant(r.Type, authz.ActionX11) {
		return false
	}
	h.request.x11 = &x
	return true
}

// grant decides whether the session gets what a request called kind offers it,
// and records the answer, once for each kind and channel.
func (h *channel) grant(kind string, action authz.Action) bool {
	c := h.client
	if h.begun || c.cfg.Open == nil {
		return false
	}
	if ok, asked := h.granted[kind]; asked {
		return ok
	}
	h.granted[kind] = false
	d := c.decide(action)
	decided := c.decisionEvent(d, action, "")
	if !d.Allow {
		c.refuse(h.ctx, refusal{action: action, kind: kind, decided: []events.Event{decided}}, d.Err(""))
		return false
	}
	if err := c.m.cfg.Events.Emit(h.ctx, decided); err != nil {
		c.unrecorded(err) //nolint:errcheck // the person reads it when the session is refused, too
		return false
	}
	h.granted[kind] = true
	return true
}

// begin starts a session. It returns false when the channel had one already,
// and else what follows the answer.
func (h *channel) begin(kind Kind, line string) (ok bool, then func()) {
	if h.begun {
		return false, nil
	}
	h.begun = true
	h.request.kind, h.request.line = kind, line
	if kind == KindSubsystem && line != SubsystemSFTP {
		reason := h.client.refuse(h.ctx, refusal{kind: string(kind), target: line}, errNoSubsystem)
		return true, func() { h.spawn(func() { h.dismiss(prefix+reason, exitRefused) }) }
	}
	if scp, ok := sftp.ParseSCP(line); ok && kind == KindExec {
		h.request.scp = &scp
	}
	s, err := h.client.open(h.ctx, h.request, h.cancel)
	if err != nil {
		return true, func() { h.spawn(func() { h.dismiss(prefix+fault.Public(err), exitRefused) }) }
	}
	p, err := h.start(s)
	if err != nil {
		s.retire()
		s.end(h.ctx, outcome{reason: "not started: " + err.Error()})
		words, code := prefix+fault.Public(err), uint32(exitRefused)
		if _, ok := errors.AsType[*fs.PathError](err); ok { // the program cannot be run: as sshd says it
			words, code = fault.Public(err), exitNotBegun
		}
		return true, func() { h.spawn(func() { h.dismiss(words, code) }) }
	}
	h.process, h.session = p, s
	return true, func() { h.spawn(func() { h.run(s, p) }) }
}

// errNoSubsystem refuses what is not [SubsystemSFTP].
var errNoSubsystem = fault.New(fault.BadInput, "no such subsystem")

func (h *channel) start(s *session) (Process, error) {
	c, r := h.client, s.request
	return c.cfg.Executor.Start(h.ctx, Command{
		Account: c.account(s.decision), Session: s.id, Role: s.decision.Role, Kind: r.kind, Line: r.line, Argv: r.argv, Env: r.env, Terminal: r.terminal,
		Open: h.opener(), Agent: r.agent, X11: r.x11, Remote: c.cfg.Remote, Local: c.cfg.Local,
	})
}

// maxBack bounds the channels of one session to its client's agent and display.
const maxBack = 64

// opener returns what opens channels to the client for as long as the session
// lasts.
func (h *channel) opener() Opener {
	slots := make(chan struct{}, maxBack)
	return func(kind string, payload []byte) (ssh.Channel, error) {
		select {
		case slots <- struct{}{}:
		default:
			return nil, fault.New(fault.Unavailable, "%d channels to the client are open already", maxBack)
		}
		ch, err := h.client.openChannel(h.ctx, kind, payload, func() { <-slots })
		if err != nil {
			<-slots
		}
		return ch, err
	}
}
