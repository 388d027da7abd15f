package srv

import (
	"context"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/fault"
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
	begun    bool // shell, exec or subsystem was asked for
	refused  map[string]bool
	process  Process // nil until it runs
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
	h := &channel{client: c, ch: ch, ctx: ctx, cancel: cancel, refused: map[string]bool{}}
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
	case sshwire.RequestAgent:
		h.refuse(Refusal{Action: authz.ActionForwardAgent, Kind: r.Type, What: "agent forwarding"})
	case sshwire.RequestX11:
		h.refuse(Refusal{Action: authz.ActionX11, Kind: r.Type, What: "X11 forwarding"})
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

// refuse records a request for something this server does not have, once for
// each type and channel.
func (h *channel) refuse(r Refusal) {
	if !h.refused[r.Kind] {
		h.refused[r.Kind] = true
		h.client.Refuse(h.ctx, r)
	}
}

// begin starts a session. It returns false when the channel had one already,
// and else what follows the answer.
func (h *channel) begin(kind Kind, line string) (ok bool, then func()) {
	if h.begun {
		return false, nil
	}
	h.begun = true
	h.request.kind, h.request.line = kind, line
	if kind == KindSubsystem {
		reason := h.client.refuseSubsystem(h.ctx, line)
		return true, func() { h.spawn(func() { h.dismiss(reason, exitRefused) }) }
	}
	s, err := h.client.open(h.ctx, h.request, h.cancel)
	if err != nil {
		return true, func() { h.spawn(func() { h.dismiss(fault.Public(err), exitRefused) }) }
	}
	p, err := h.start()
	if err != nil {
		s.retire()
		s.end(h.ctx, outcome{reason: "not started: " + err.Error()})
		return true, func() { h.spawn(func() { h.dismiss(fault.Public(err), exitNotBegun) }) }
	}
	h.process = p
	return true, func() { h.spawn(func() { h.run(s, p) }) }
}

func (h *channel) start() (Process, error) {
	c := h.client
	return c.m.cfg.Executor.Start(h.ctx, Command{
		Account: Account{Login: c.cfg.Login}, Kind: h.request.kind, Line: h.request.line, Env: h.request.env,
		Terminal: h.request.terminal, Remote: c.cfg.Remote, Local: c.cfg.Local,
	})
}

// refuseSubsystem records that a subsystem is refused and returns the reason.
func (c *Client) refuseSubsystem(ctx context.Context, name string) string {
	if name == "sftp" {
		return c.Refuse(ctx, Refusal{
			Action: authz.ActionSFTPRead, Kind: string(KindSubsystem), Target: name,
			What: `sftp (which scp uses, too, unless called as "scp -O")`,
		})
	}
	reason := "no such subsystem"
	if err := c.refusals.Wait(ctx); err != nil {
		return reason
	}
	e := c.rejectionEvent(Refusal{Kind: string(KindSubsystem), Target: name}, reason)
	if err := c.m.cfg.Events.Emit(ctx, e); err != nil {
		return fault.Public(c.unrecorded(err))
	}
	return reason
}
