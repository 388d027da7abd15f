package srv

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// ObserverUser is the SSH user name of a person who comes to take part in
// another's session. No login is called so.
const ObserverUser = "+sessions"

// The subsystems by which they say what they want, followed by a session's id.
const (
	subsystemWatch = "watch:"
	subsystemJoin  = "join:"
)

// How somebody takes part; the words are those of audit events.
const (
	modeWatch = "watch" // sees the output
	modeJoin  = "join"  // types, too
)

var (
	errOver     = fault.New(fault.NotFound, "the session has ended")
	errBehind   = fault.New(fault.Unavailable, "you were too slow to follow the session")
	errNoInput  = fault.New(fault.BadInput, "files are carried in that session; there is nothing to see")
	errNotYours = fault.New(fault.NotFound, "no live session with that id that you may see")
)

// Observer is the connection of a person who takes part in another's sessions.
type Observer struct {
	m   *Manager
	cfg ClientConfig
}

// Observe returns an Observer. Of cfg, the login and what belongs to a node of
// the person's own mean nothing.
func (m *Manager) Observe(cfg ClientConfig) *Observer { return &Observer{m: m, cfg: cfg} }

// Session serves the session channel nc until it has closed.
func (o *Observer) Session(ctx context.Context, nc ssh.NewChannel) {
	ch, requests, err := nc.Accept()
	if err != nil {
		return // the connection has ended
	}
	ctx, cancel := context.WithCancelCause(ctx)
	v := &visit{Observer: o, ch: ch, cancel: cancel, done: make(chan struct{})}
	begun := false
	for r := range requests {
		x, err := sshwire.ParseSubsystem(r.Payload)
		begins := r.Type == sshwire.RequestSubsystem && err == nil && !begun
		if r.Type == sshwire.RequestPTY {
			v.raw = true
		}
		// Fails when the connection has ended; then so does the loop.
		_ = r.Reply(begins || r.Type == sshwire.RequestPTY, nil)
		if begins { // not before the answer, since it may close the channel
			begun = true
			go v.run(ctx, x.Name)
		}
	}
	cancel(errGone)
	if begun {
		<-v.done
	}
}

// visit is somebody's taking part in one session.
type visit struct {
	*Observer

	ch      ssh.Channel
	raw     bool // the person's terminal is raw: lines end in CR LF
	cancel  context.CancelCauseFunc
	done    chan struct{}
	in, out atomic.Int64
}

// run does what the subsystem called name stands for and ends the channel.
func (v *visit) run(ctx context.Context, name string) {
	defer close(v.done)
	code := 0
	if err := v.attend(ctx, name); err != nil {
		v.say("accessd: " + fault.Public(err))
		code = exitRefused
	}
	_, _ = v.ch.SendRequest(sshwire.RequestExitStatus, false, sshwire.ExitStatus{Code: uint32(code)}.Marshal()) // fails when the person is gone
	_ = v.ch.Close()
}

// say writes one line of words.
func (v *visit) say(text string) {
	end := "\n"
	if v.raw {
		end = "\r\n"
	}
	_, _ = io.WriteString(v.ch.Stderr(), text+end) // fails when the person is gone
}

// attend takes part in the session that name ends with until it or ctx ends.
func (v *visit) attend(ctx context.Context, name string) error {
	mode := modeWatch
	id, ok := strings.CutPrefix(name, subsystemWatch)
	if !ok {
		mode = modeJoin
		if id, ok = strings.CutPrefix(name, subsystemJoin); !ok {
			return errNoSubsystem
		}
	}
	sid, err := names.ParseSessionID(id)
	if err != nil {
		return err
	}
	v.m.mu.Lock()
	s := v.m.sessions[sid]
	v.m.mu.Unlock()
	begun := time.Now()
	if err := v.admit(ctx, s, sid, mode); err != nil {
		return err
	}
	who := string(v.cfg.Identity.User)
	s.announce(map[string]string{modeWatch: who + " watches this session", modeJoin: who + " has joined this session"}[mode])
	err = v.follow(ctx, s, mode)
	s.announce(who + " has left")
	ev := v.event(events.SessionLeave, s, mode, err)
	ev.Fields["duration_ms"] = time.Since(begun).Milliseconds()
	ev.Fields["bytes_in"], ev.Fields["bytes_out"] = v.in.Load(), v.out.Load()
	if failed := v.m.cfg.Events.Emit(context.WithoutCancel(ctx), ev); failed != nil {
		return errSessions
	}
	return err
}

// admit decides whether the person may take part and records it. A session that
// is not the person's to see does not exist for them.
func (v *visit) admit(ctx context.Context, s *session, sid names.SessionID, mode string) error {
	err := error(nil)
	switch d := v.decide(s, mode); {
	case s == nil:
		err = errNotYours
	case d.NeedsFactor:
		err = fault.New(fault.Denied, "%s", d.Reason)
	case !d.Allow && v.decide(s, modeWatch).Allow:
		err = d.Err("you may watch this session, not join it")
	case d.Lock != nil:
		err = d.Err("")
	case !d.Allow:
		err = fault.Wrap(fault.NotFound, fault.New(fault.Denied, "%s", d.Reason), fault.Public(errNotYours))
	case s.request.kind == KindSubsystem || s.request.scp != nil:
		err = errNoInput
	}
	if s == nil {
		s = &session{id: sid}
	}
	if failed := v.m.cfg.Events.Emit(ctx, v.event(events.SessionJoin, s, mode, err)); failed != nil {
		return errSessions
	}
	return err
}

// decide asks whether the person may take part in s. To type is an action on the
// node; to see is that, or to read recordings.
func (v *visit) decide(s *session, mode string) authz.Decision {
	if s == nil {
		return authz.Decision{}
	}
	c, id := s.client, v.cfg.Identity
	if !v.m.cfg.Now().Before(id.ValidBefore) {
		return authz.Decision{Reason: fault.Public(errExpired)}
	}
	d := v.m.cfg.Engine.Decide(authz.Request{Identity: id, Node: c.cfg.Node(), Login: c.cfg.Login, Action: authz.ActionJoin})
	if d.Allow || mode == modeJoin {
		return d
	}
	if r := v.m.cfg.Engine.Resource(id, "recordings", "read"); r.Allow || r.NeedsFactor {
		return r
	}
	return d
}

// NeedsFactor reports whether there is a live session that id could take part in
// with a second factor for the connection, and cannot without.
func (m *Manager) NeedsFactor(id *sshca.Identity) bool {
	v := visit{Observer: m.Observe(ClientConfig{Identity: id})}
	return slices.ContainsFunc(m.live(), func(s *session) bool {
		return v.decide(s, modeWatch).NeedsFactor || v.decide(s, modeJoin).NeedsFactor
	})
}

// follow shows the session to the person, and with join the person's input to
// the session, until either ends.
func (v *visit) follow(ctx context.Context, s *session, mode string) error {
	w := newWatcher()
	if err := s.stage.enter(w); err != nil {
		return err
	}
	defer s.stage.leave(w)
	defer context.AfterFunc(ctx, func() { s.stage.leave(w) })()
	defer v.review(ctx, s, mode)()
	go v.input(ctx, s, mode) // ends with the channel, which run closes
	for {
		p, err := w.next()
		if errors.Is(err, io.EOF) {
			if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errGone) {
				return cause
			}
			return nil
		}
		if err != nil {
			return err
		}
		v.out.Add(int64(len(p)))
		if _, err := v.ch.Write(p); err != nil {
			return nil // the person is gone
		}
	}
}

// input passes on what the person types. Who only watches leaves with Ctrl-C,
// Ctrl-D or q.
func (v *visit) input(ctx context.Context, s *session, mode string) {
	var buf [1 << 10]byte
	for {
		n, err := v.ch.Read(buf[:])
		switch {
		case mode == modeJoin && n > 0:
			v.in.Add(int64(n))
			s.count(&s.in, n)
			if err := s.input(ctx, buf[:n]); err != nil {
				return
			}
			if _, err := s.stdin.Write(buf[:n]); err != nil {
				return
			}
		case n > 0 && strings.ContainsAny(string(buf[:n]), "\x03\x04q"):
			v.cancel(errGone)
			return
		}
		if err != nil {
			if mode == modeJoin {
				v.cancel(errGone)
			}
			return
		}
	}
}

// review ends the visit when the policy no longer allows it; the function it
// returns ends the reviewing.
func (v *visit) review(ctx context.Context, s *session, mode string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			changed := v.m.cfg.Changed()
			if d := v.decide(s, mode); !d.Allow {
				v.cancel(d.Err("the policy no longer allows this"))
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// event is about the person's taking part in s.
func (v *visit) event(name events.Name, s *session, mode string, err error) events.Event {
	id := v.cfg.Identity
	e := events.Event{
		Name: name, User: id.User, SID: s.id, Proto: "ssh", Success: err == nil,
		Fields: map[string]any{"mode": mode, "connection": v.cfg.ID, "fingerprint": id.Fingerprint, "cert_serial": id.Serial, "roles": id.Roles},
	}
	if v.cfg.Remote.IsValid() {
		e.AddrRemote = v.cfg.Remote.String()
	}
	if err != nil {
		e.Error, e.Fields["reason"], e.Fields["lock"] = err.Error(), fault.Public(err), services.LockOf(err)
	}
	if s.client != nil {
		node := s.client.cfg.Node()
		e.Login = s.client.cfg.Login
		e.Fields["participant"], e.Fields["node_id"], e.Fields["node_name"] = string(s.client.cfg.Identity.User), node.ID, node.Name
	}
	return e
}

// announce tells everybody in s who comes and goes.
func (s *session) announce(text string) {
	line := "\r\naccessd: " + events.Display(text) + "\r\n"
	s.stage.show([]byte(line), false)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.notice != nil && !s.ended {
		s.notice(line)
	}
}
