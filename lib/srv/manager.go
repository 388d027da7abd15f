package srv

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// DefaultMaxSessions is how many sessions a server runs unless told otherwise:
// at 3 MiB each, what a machine of 4 GB has to spare.
const DefaultMaxSessions = 1000

// decider is asked before everything a person does; [authz.Engine] is one.
type decider interface {
	Decide(r authz.Request) authz.Decision
	Resource(id *sshca.Identity, resource, verb string) authz.Decision
}

// recorder writes the audit log; [events.Emitter] is one. When EmitAll returns
// nil the events are durable, in their order.
type recorder interface {
	Emit(ctx context.Context, e events.Event) error
	EmitAll(ctx context.Context, list ...events.Event) error
}

// ledger knows which sessions have begun and not ended; [events.OpenSessions] is
// one.
type ledger interface {
	Begin(start events.Event) error
	End(sid names.SessionID) error
	Recover(ctx context.Context, emit func(context.Context, events.Event) error) error
}

// Config configures a [Manager].
type Config struct {
	// Node is where the sessions run, as the rules see it now, and Executor starts
	// processes there. Both or neither: without them each client has its own.
	Node     func() authz.NodeView
	Executor Executor
	// Engine decides; required.
	Engine decider
	// Changed returns a channel that is closed at the next change of the policy:
	// live sessions are then decided again; required.
	Changed func() <-chan struct{}
	// Events and Ledger record; required.
	Events recorder
	Ledger ledger
	// Recorder records what sessions show; required, and this manager's own.
	Recorder *recording.Recorder

	// AcceptEnv are names of environment variables that clients may set; a
	// trailing * stands for any letters, digits and underscores. nil means LANG
	// and LC_*.
	AcceptEnv []string
	// OutliveCertificate lets sessions go on when the certificate that opened
	// them expires; new ones do not begin on the connection.
	OutliveCertificate bool
	// MaxSessions bounds the sessions of all people; 0 means DefaultMaxSessions.
	MaxSessions int
	// Grace is how long sessions may go on when the server stops; 0 means
	// defaults.Grace.
	Grace time.Duration

	Now        func() time.Time      // nil is time.Now
	Registerer prometheus.Registerer // nil keeps the counters private
	Log        *zap.Logger           // nil discards
}

// Manager has the sessions of one server.
type Manager struct {
	cfg     Config
	metrics *metrics
	buffers sync.Pool // of *[bufferSize]byte

	running sync.WaitGroup // sessions that have begun and not ended; Add under mu

	mu       sync.Mutex
	sessions map[names.SessionID]*session
	forwards map[*forward]struct{}
	clients  map[*Client]struct{}
	changed  chan struct{} // closed and replaced when sessions changes
	draining bool
}

// New returns a Manager that has started nothing.
func New(cfg Config) (*Manager, error) {
	if (cfg.Node == nil) != (cfg.Executor == nil) || cfg.Engine == nil || cfg.Changed == nil || cfg.Events == nil || cfg.Ledger == nil || cfg.Recorder == nil {
		return nil, fault.New(fault.Internal, "srv: a required field of Config is not set")
	}
	if cfg.AcceptEnv == nil {
		cfg.AcceptEnv = []string{"LANG", "LC_*"}
	}
	cfg.MaxSessions = cmp.Or(cfg.MaxSessions, DefaultMaxSessions)
	cfg.Grace = cmp.Or(cfg.Grace, defaults.Grace)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	cfg.Log = cfg.Log.Named("srv")
	m := &Manager{
		cfg:      cfg,
		sessions: map[names.SessionID]*session{},
		forwards: map[*forward]struct{}{},
		clients:  map[*Client]struct{}{},
		changed:  make(chan struct{}),
	}
	var err error
	m.metrics, err = newMetrics(cfg.Registerer, m)
	return m, err
}

// Recover ends the sessions that an earlier process left open. Call it once,
// before the first [Manager.Connect].
func (m *Manager) Recover(ctx context.Context) error {
	tapes, err := m.cfg.Recorder.Recover()
	if err != nil {
		return err
	}
	err = m.cfg.Ledger.Recover(ctx, func(ctx context.Context, e events.Event) error {
		if summary, ok := tapes[e.SID]; ok && e.Name == events.SessionEnd {
			maps.Copy(e.Fields, recordingFields(summary))
		}
		return m.cfg.Events.Emit(ctx, e)
	})
	if err != nil {
		return err
	}
	for sid := range tapes {
		m.cfg.Recorder.Release(sid)
	}
	return nil
}

// Run decides live sessions again whenever the policy changes. When ctx ends it
// refuses new sessions, gives live ones Grace to finish, cuts what is left and
// returns once every session has ended.
func (m *Manager) Run(ctx context.Context) error {
	for {
		changed := m.cfg.Changed()
		m.review()
		select {
		case <-changed:
		case <-ctx.Done():
			m.drain()
			return nil
		}
	}
}

func (m *Manager) drain() {
	m.mu.Lock()
	m.draining = true
	m.mu.Unlock()
	defer time.AfterFunc(m.cfg.Grace, func() {
		for _, s := range m.live() {
			s.cancel(errStopping)
		}
		for _, f := range m.liveForwards() {
			f.cancel(errStopping)
		}
	}).Stop()
	m.running.Wait()
}

// review decides everything that is live again.
func (m *Manager) review() {
	m.mu.Lock()
	clients := slices.Collect(maps.Keys(m.clients))
	m.mu.Unlock()
	for _, s := range m.live() {
		d := s.review()
		if !d.Allow {
			s.cancel(d.Err("the policy no longer allows this session"))
			continue
		}
		s.bind(d.Options)
	}
	for _, f := range m.liveForwards() {
		if d := f.decide(); !d.Allow {
			f.cancel(d.Err("the policy no longer allows this forward"))
		}
	}
	for _, c := range clients {
		if d := m.Admit(c.cfg.Identity, c.cfg.Login, c.cfg.Node()); !d.Allow {
			c.expel(d.Err("the policy no longer allows this connection"))
		}
	}
}

// List returns the live sessions, oldest first.
func (m *Manager) List() []services.LiveSession {
	live := m.live()
	list := make([]services.LiveSession, len(live))
	for i, s := range live {
		list[i] = s.describe()
	}
	slices.SortFunc(list, func(a, b services.LiveSession) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// Changed returns a channel that is closed when what [Manager.List] returns
// changes.
func (m *Manager) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// Kill ends session id; its person reads who asked for it and why. A session
// that is not live here is [fault.NotFound].
func (m *Manager) Kill(id names.SessionID, reason, by string) error {
	m.mu.Lock()
	s := m.sessions[id]
	m.mu.Unlock()
	if s == nil {
		return fault.New(fault.NotFound, "no live session %q on this node", id)
	}
	sentence := "ended by " + by
	if reason != "" {
		sentence += ": " + reason
	}
	s.cancel(fault.New(fault.Denied, "%s", events.Display(sentence)))
	return nil
}

// live returns the live sessions in no order.
func (m *Manager) live() []*session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.sessions))
}

// add makes s live unless a limit is reached; most bounds the sessions of its
// user and 0 is no bound. The caller must call remove and running.Done.
func (m *Manager) add(s *session, most int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.draining {
		return errStopping
	}
	if len(m.sessions) >= m.cfg.MaxSessions {
		return &limitError{limit: m.cfg.MaxSessions, what: "sessions on this node"}
	}
	if most > 0 && m.countLocked(s.client) >= most {
		return &limitError{limit: most, what: "sessions of one person on this node"}
	}
	m.running.Add(1)
	m.sessions[s.id] = s
	m.signalLocked()
	return nil
}

// countLocked counts the sessions of c's person on c's node.
func (m *Manager) countLocked(c *Client) int {
	n, node := 0, c.cfg.Node().ID
	for _, s := range m.sessions {
		if s.client.cfg.Identity.User == c.cfg.Identity.User && s.client.cfg.Node().ID == node {
			n++
		}
	}
	return n
}

// liveForwards returns the forwards under way in no order.
func (m *Manager) liveForwards() []*forward {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.forwards))
}

// remove takes s off the list of live sessions.
func (m *Manager) remove(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sessions, s.id)
	m.signalLocked()
}

func (m *Manager) signalLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}
