package srv

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/sftp"
	"github.com/accessd/accessd/lib/sshwire"
)

// request is what a client asked for on one channel.
type request struct {
	kind     Kind
	line     string    // command, for KindExec; name, for KindSubsystem
	argv     []string  // runs instead of line, without a shell
	scp      *sftp.SCP // what line is, when it is the remote end of scp
	env      []sshwire.Env
	terminal *Terminal
	agent    bool                // the client's agent was granted
	x11      *sshwire.X11Request // and the client's display
}

// actions are those of which one must be allowed.
func (r request) actions() []authz.Action {
	switch {
	case r.scp != nil && r.scp.Write:
		return []authz.Action{authz.ActionSFTPWrite}
	case r.scp != nil:
		return []authz.Action{authz.ActionSFTPRead}
	case r.kind == KindSubsystem:
		return []authz.Action{authz.ActionSFTPRead, authz.ActionSFTPWrite}
	case r.kind == KindExec:
		return []authz.Action{authz.ActionExec}
	}
	return []authz.Action{authz.ActionShell}
}

// extras are those that must all be allowed besides.
func (r request) extras() []authz.Action {
	var list []authz.Action
	if r.agent {
		list = append(list, authz.ActionForwardAgent)
	}
	if r.x11 != nil {
		list = append(list, authz.ActionX11)
	}
	return list
}

// errTerminal refuses a terminal where rules list commands: a pager or an editor
// that one of these opens there runs whatever is typed.
var errTerminal = fault.New(fault.Denied, "the roles list which commands may run, and these run without a terminal (ssh -T)")

// localeOnly returns those of env that only choose a language. Other variables
// may name programs to run.
func localeOnly(env []sshwire.Env) []sshwire.Env {
	var out []sshwire.Env
	for _, v := range env {
		switch v.Name {
		case "LANG", "LC_ALL", "LC_COLLATE", "LC_CTYPE", "LC_MESSAGES", "LC_MONETARY", "LC_NUMERIC", "LC_TIME":
			out = append(out, v)
		}
	}
	return out
}

// session is one session from open to ended.
type session struct {
	id       names.SessionID
	client   *Client
	request  request
	action   authz.Action
	decision authz.Decision
	started  time.Time // by the server's clock, for the log
	begun    time.Time // monotonic, for limits
	cancel   context.CancelCauseFunc

	recorded services.Recording   // how it is to be recorded
	tape     *recording.Recording // nil: it is not
	untaped  error                // why not, though it should be
	gap      atomic.Bool          // the log says that the recording has a gap, which goes on

	in, out atomic.Int64 // bytes from and to the client
	active  atomic.Int64 // when data last flowed, in nanoseconds since begun
	stage   stage        // what others see of it
	stdin   shared       // of its process; set before anything runs

	mu     sync.Mutex
	notice func(line string) // shows the person words without waiting; nil before it runs
	timers []*time.Timer     // what ends it; nil once it has ended
	ended  bool
}

// outcome is how a session ended: its process did, or something cut it.
type outcome struct {
	exit   *Exit           // nil when it is not known
	reason string          // why it was cut, or ""
	lock   services.LockID // that cut it, or ""
}

// open decides about r and begins a session for it: when it returns one its
// session.start is durable, and end must be called. The error is recorded
// already, and its public text is for the person.
func (c *Client) open(ctx context.Context, r request, cancel context.CancelCauseFunc) (*session, error) {
	s := &session{
		id: names.NewSessionID(), client: c, request: r, cancel: cancel,
		started: c.m.cfg.Now(), begun: time.Now(),
	}
	s.action, s.decision = c.decideAny(r)
	if r.scp != nil {
		if d := c.decideLine(r.line); !d.Allow || d.Confined {
			// A shell would do more than copy, if only by its startup files.
			s.request.argv = r.scp.Argv
		}
	}
	if s.decision.Confined {
		s.request.env = localeOnly(r.env)
	}
	decided := c.decisionEvent(s.decision, s.action, "")
	if err := s.admit(ctx); err != nil {
		return nil, s.reject(ctx, decided, err)
	}
	if err := s.begin(ctx, decided); err != nil {
		c.m.remove(s)
		c.m.running.Done()
		return nil, c.unrecorded(err)
	}
	if s.untaped != nil {
		s.reportGap(ctx, s.untaped)
	}
	s.bind(s.decision.Options)
	c.m.metrics.started.Inc()
	return s, nil
}

// admit makes s live if nothing speaks against it.
func (s *session) admit(ctx context.Context) error {
	c := s.client
	if !s.decision.Allow {
		return s.decision.Err("")
	}
	if s.decision.Confined && s.request.terminal != nil {
		return errTerminal
	}
	if c.expired() {
		return errExpired
	}
	if err := c.cfg.Executor.Check(ctx, c.account(s.decision)); err != nil {
		return err
	}
	if err := c.m.add(s, s.decision.Options.MaxSessions); err != nil {
		return err
	}
	// The policy may have changed since the decision, and the review that
	// followed has not seen this session.
	var err error
	if d := s.review(); d.Allow {
		err = s.record(ctx)
	} else {
		err = d.Err("")
	}
	if err != nil {
		c.m.remove(s)
		c.m.running.Done()
	}
	return err
}

// review decides about s again.
func (s *session) review() authz.Decision {
	_, d := s.client.decideAny(s.request)
	if d.Confined && s.request.terminal != nil {
		return authz.Decision{Reason: fault.Public(errTerminal)}
	}
	for _, extra := range s.request.extras() {
		if e := s.client.decide(extra); !e.Allow {
			return e
		}
	}
	return d
}

// reject records the decision and that s was refused because of err, and returns
// err.
func (s *session) reject(ctx context.Context, decided events.Event, err error) error {
	c := s.client
	c.m.metrics.rejected.Inc()
	e := c.rejectionEvent(refusal{action: s.action, kind: string(s.request.kind)}, fault.Public(err))
	e.Fields["lock"] = services.LockOf(err)
	if s.request.kind == KindExec {
		e.Fields["command"] = s.request.line
	}
	if limit, ok := errors.AsType[*limitError](err); ok {
		e.Fields["maximum"] = limit.limit
	}
	e.Error = err.Error()
	if err := c.refusals.Wait(ctx); err != nil {
		return errGone
	}
	if err := c.m.cfg.Events.EmitAll(ctx, decided, e); err != nil {
		return c.unrecorded(err)
	}
	return err
}

// unrecorded returns what the person reads when the audit log refuses.
func (c *Client) unrecorded(err error) error {
	c.m.metrics.rejected.Inc()
	c.m.cfg.Log.Error("a session is refused, since events cannot be written", zap.Error(err))
	return errSessions
}

// begin makes the decision and the beginning of s durable.
func (s *session) begin(ctx context.Context, decided events.Event) error {
	start := s.startEvent()
	if err := s.client.m.cfg.Ledger.Begin(start); err != nil {
		s.rewind()
		s.client.m.cfg.Recorder.Release(s.id)
		return err
	}
	list := []events.Event{decided, start}
	if s.request.kind == KindExec {
		list = append(list, s.execEvent())
	}
	err := s.client.m.cfg.Events.EmitAll(ctx, list...)
	if err != nil {
		// Nobody knows whether start is durable, so both ends of s are written; a
		// second start has the uid of the first, and is dropped.
		s.close(ctx, start, s.endEvent(outcome{reason: "the audit log could not be written"}))
	}
	return err
}

// close makes the end of s durable. When that fails the ledger keeps s for the
// next start.
func (s *session) close(ctx context.Context, list ...events.Event) {
	m := s.client.m
	err := m.cfg.Events.EmitAll(context.WithoutCancel(ctx), list...)
	if err == nil {
		err = m.cfg.Ledger.End(s.id)
	}
	if err == nil {
		m.cfg.Recorder.Release(s.id)
	}
	if err != nil {
		m.cfg.Log.Error("the end of a session is not recorded; the next start will do it",
			zap.String("sid", string(s.id)), zap.Error(err))
	}
}

// retire stops what could still end s and takes it off the list of live
// sessions, so that its place is free before its client hears of its end.
func (s *session) retire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended = true
		s.stopLocked()
		s.client.m.remove(s)
	}
}

// end makes the end of a retired session durable.
func (s *session) end(ctx context.Context, o outcome) {
	defer s.client.m.running.Done()
	s.close(ctx, s.endEvent(o))
}

func (s *session) stopLocked() {
	for _, t := range s.timers {
		t.Stop()
	}
	s.timers = nil
}

// bind makes o, and the end of the certificate, the limits of s.
func (s *session) bind(o services.RoleOptions) {
	c := s.client
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.stopLocked()
	if !c.m.cfg.OutliveCertificate {
		s.timers = append(s.timers, time.AfterFunc(c.cfg.Identity.ValidBefore.Sub(c.m.cfg.Now()), func() {
			s.cancel(errExpired)
		}))
	}
	if o.SessionTTL > 0 {
		s.timers = append(s.timers, time.AfterFunc(o.SessionTTL-time.Since(s.begun), func() {
			s.cancel(fault.New(fault.Denied, "the session lasted %v, as long as the role allows", o.SessionTTL))
		}))
	}
	if o.IdleTimeout > 0 {
		s.timers = append(s.timers, s.watchIdle(o.IdleTimeout))
	}
}

// watchIdle ends s once no data has flowed for limit, in either direction.
func (s *session) watchIdle(limit time.Duration) *time.Timer {
	left := func() time.Duration { return limit - (time.Since(s.begun) - time.Duration(s.active.Load())) }
	var t *time.Timer
	t = time.AfterFunc(left(), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !slices.Contains(s.timers, t) {
			return // stopped when it had fired already
		}
		if d := left(); d > 0 {
			t.Reset(d)
			return
		}
		s.cancel(fault.New(fault.Denied, "idle for %v", limit))
	})
	return t
}

// count notes that n bytes have flowed and adds them to total.
func (s *session) count(total *atomic.Int64, n int) {
	total.Add(int64(n))
	s.active.Store(int64(time.Since(s.begun)))
}

func (s *session) describe() services.LiveSession {
	c := s.client
	node := c.cfg.Node()
	l := services.LiveSession{
		ID: s.id, User: c.cfg.Identity.User, Login: c.cfg.Login, Node: node.ID, NodeName: node.Name,
		Kind: string(s.request.kind), Started: s.started,
	}
	if c.cfg.Remote.IsValid() {
		l.Client = c.cfg.Remote.String()
	}
	return l
}
