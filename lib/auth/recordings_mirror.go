package auth

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

const (
	// mirrorRetry is the pause after a round that failed.
	mirrorRetry = 10 * time.Second
	// mirrorAtOnce bounds the recordings that are copied at once: a part takes a
	// distant bucket three answers.
	mirrorAtOnce = 16
	// mirrorMark names the object with the mirror's own name. A bucket that was
	// emptied or exchanged has none, gets another, and is brought everything again.
	mirrorMark = "recordings/mirror"
	// proofPatience is how long the proof of an end is waited for, since the log that
	// has it may be another authority's, and away.
	proofPatience = time.Hour
)

// recordingsMirror copies recordings to a second store, under the same names. It works beside
// the store, which does not wait for it. What it has brought of a recording that
// goes on it knows by heart, and brings again after a restart, which changes
// nothing; that a recording is whole there is in the recording's record. So of
// several authorities each goes on where any of them stopped.
type recordingsMirror struct {
	*Authority

	offered chan []services.SessionRecording // the newest list of all, unless it was taken
	name    atomic.Pointer[string]           // of the mirror; nil before it has answered
	failing atomic.Bool

	mu      sync.Mutex
	brought map[names.SessionID]uint32 // of those that go on: parts from the first on without a hole

	waiting  prometheus.Gauge
	failures prometheus.Counter
}

// newMirror returns what brings recordings to the mirror, or nil.
func newMirror(a *Authority) (*recordingsMirror, error) {
	if a.cfg.Recordings.Mirror == nil {
		return nil, nil //nolint:nilnil // there need not be one
	}
	m := &recordingsMirror{
		Authority: a, offered: make(chan []services.SessionRecording, 1), brought: map[names.SessionID]uint32{},
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "accessd", Subsystem: "recording", Name: "mirror_waiting", Help: "Recordings that have ended and are not in the mirror.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "accessd", Subsystem: "recording", Name: "mirror_failures_total", Help: "Attempts to mirror recordings that failed.",
		}),
	}
	if r := a.cfg.Recordings.Registerer; r != nil {
		return m, errors.Join(r.Register(m.waiting), r.Register(m.failures))
	}
	return m, nil
}

// offer gives m the list of all recordings. One caller at a time may offer.
func (m *recordingsMirror) offer(list []services.SessionRecording) {
	if m == nil {
		return
	}
	select {
	case <-m.offered:
	default:
	}
	m.offered <- slices.Clone(list)
}

// lacks reports whether there is a mirror that is not known to have all of r.
func (m *recordingsMirror) lacks(r services.SessionRecording) bool {
	if m == nil {
		return false
	}
	name := m.name.Load()
	return name == nil || r.Mirrored != *name
}

// erase removes a recording from the mirror, where what is removed is.
func (m *recordingsMirror) erase(ctx context.Context, id names.SessionID) error {
	if m == nil || !m.cfg.Recordings.MirrorDelete {
		return nil
	}
	return m.cfg.Recordings.Mirror.DeleteAll(ctx, recordingDir(id))
}

// run brings what is offered until ctx ends.
func (m *recordingsMirror) run(ctx context.Context) {
	if m == nil {
		return
	}
	var list []services.SessionRecording
	for {
		select {
		case <-ctx.Done():
			return
		case list = <-m.offered:
		}
		for !m.round(ctx, list) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(mirrorRetry):
			}
			select {
			case list = <-m.offered:
			default:
			}
		}
	}
}

// round brings what the mirror lacks of a list, says what changed, and reports
// whether that was all.
func (m *recordingsMirror) round(ctx context.Context, list []services.SessionRecording) bool {
	err := m.bringAll(ctx, list)
	if ctx.Err() != nil {
		return false
	}
	switch {
	case err != nil:
		m.failures.Inc()
		if !m.failing.Load() {
			m.cfg.Log.Error("recordings cannot be mirrored; they are kept, and what is missing is brought later", zap.Error(err))
		}
	case m.failing.Load():
		m.cfg.Log.Info("recordings are mirrored again")
	}
	m.failing.Store(err != nil)
	return err == nil
}

func (m *recordingsMirror) bringAll(ctx context.Context, list []services.SessionRecording) error {
	name, err := m.known(ctx)
	if err != nil {
		return err
	}
	m.name.Store(&name)
	list = slices.DeleteFunc(list, func(r services.SessionRecording) bool {
		return r.Removing != nil || r.End != nil && r.Mirrored == name
	})
	m.forgetOthers(list)
	var left atomic.Int64
	for _, r := range list {
		if r.End != nil {
			left.Add(1)
		}
	}
	m.waiting.Set(float64(left.Load()))
	var (
		g    errgroup.Group
		mu   sync.Mutex
		told error
		away atomic.Bool // it makes no sense to go on
	)
	g.SetLimit(mirrorAtOnce)
	for _, r := range list {
		if away.Load() || ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			whole, err := m.bring(ctx, name, r)
			if whole && r.End != nil {
				m.waiting.Set(float64(left.Add(-1)))
			}
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				told = cmp.Or(told, err)
				away.Store(away.Load() || !fault.Is(err, fault.Conflict))
			}
			return nil
		})
	}
	return errors.Join(g.Wait(), told)
}

// known returns the name that the mirror has, or is given now.
func (m *recordingsMirror) known(ctx context.Context) (string, error) {
	to := m.cfg.Recordings.Mirror
	mark, err := to.Get(ctx, mirrorMark)
	if fault.Is(err, fault.NotFound) {
		mark = []byte(uuid.NewString() + "\n")
		if err = to.Put(ctx, mirrorMark, mark); fault.Is(err, fault.Conflict) { // another authority was faster
			mark, err = to.Get(ctx, mirrorMark)
		}
	}
	if err != nil {
		return "", err
	}
	name, err := uuid.ParseBytes(mark[:min(len(mark), len(uuid.Nil.String()))])
	if err != nil {
		return "", fault.New(fault.Unavailable, "the mirror of recordings: %q is not what it was given", mirrorMark)
	}
	return name.String(), nil
}

// forgetOthers forgets what was brought of recordings that are not in the list.
func (m *recordingsMirror) forgetOthers(list []services.SessionRecording) {
	m.mu.Lock()
	defer m.mu.Unlock()
	kept := map[names.SessionID]uint32{}
	for _, r := range list {
		if n := m.brought[r.Session]; n > 0 {
			kept[r.Session] = n
		}
	}
	m.brought = kept
}

// bring brings what the mirror lacks of a recording, and once that has ended and all
// of it is there, what says so. whole reports that nothing is missing any more.
func (m *recordingsMirror) bring(ctx context.Context, name string, r services.SessionRecording) (whole bool, err error) {
	r, err = m.cfg.Store.Recording(ctx, r.Session)
	if fault.Is(err, fault.NotFound) || err == nil && r.Removing != nil {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if r.End != nil && r.Mirrored == name {
		return true, nil // another authority did it
	}
	m.mu.Lock()
	first := m.brought[r.Session] + 1
	m.mu.Unlock()
	if r.End != nil {
		first = 1 // for the sums
	}
	parts, err := m.cfg.Store.RecordingParts(ctx, r.Session, first)
	if err != nil {
		return false, err
	}
	if err := m.bringParts(ctx, r, parts); err != nil {
		return false, err
	}
	if r.End == nil {
		return true, m.unlessGone(ctx, r.Session, nil)
	}
	if err := m.close(ctx, r, parts); err != nil {
		return false, err
	}
	return true, m.unlessGone(ctx, r.Session, func(now *services.SessionRecording) { now.Mirrored = name })
}

// bringParts brings parts. One that is not in the store any more as it came is left
// out: the log has that, and the sums say which it was.
func (m *recordingsMirror) bringParts(ctx context.Context, r services.SessionRecording, parts []services.RecordingPart) error {
	for _, p := range parts {
		m.mu.Lock()
		done := m.brought[r.Session]
		m.mu.Unlock()
		if p.Number <= done {
			continue
		}
		data, err := m.part(ctx, r, p)
		switch {
		case fault.Is(err, fault.NotFound):
			return nil // it was removed meanwhile
		case err == nil:
			if err := m.cfg.Recordings.Mirror.Put(ctx, partKey(r.Session, p.Number), data); err != nil {
				return err
			}
		case !fault.Is(err, fault.Conflict):
			return err
		}
		if p.Number == done+1 {
			m.mu.Lock()
			m.brought[r.Session] = p.Number
			m.mu.Unlock()
		}
	}
	return nil
}

// close brings what stands beside the parts of a recording that has ended.
func (m *recordingsMirror) close(ctx context.Context, r services.SessionRecording, parts []services.RecordingPart) error {
	var sums []byte
	for _, p := range parts {
		sums = recording.AppendSum(sums, p.Number, p.Sum)
	}
	of, err := recording.Copied{
		Session: r.Session, User: r.User, Login: r.Login, NodeID: r.NodeID, NodeName: r.NodeName, Kind: r.Kind, Command: r.Command,
		Terminal: r.Terminal, Sealed: r.Sealed, Started: r.Started, Ended: r.End.At, Parts: r.End.Parts, Root: r.End.Root, Recovered: r.End.Recovered,
	}.Encode()
	if err != nil {
		return err
	}
	proof, err := m.proof(ctx, r)
	if err != nil {
		return err
	}
	to := m.cfg.Recordings.Mirror
	if err := to.Put(ctx, recordingDir(r.Session)+recording.CopySums, sums); err != nil {
		return err
	}
	if len(proof) > 0 {
		// One that is there already proves the same by another checkpoint.
		if err := to.Put(ctx, recordingDir(r.Session)+recording.CopyProof, proof); err != nil && !fault.Is(err, fault.Conflict) {
			return err
		}
	}
	return to.Put(ctx, recordingDir(r.Session)+recording.CopyOf, of)
}

// proof returns the proof that a log of the cluster has the event of the recording's
// end, or nothing when that can no longer be had.
func (m *recordingsMirror) proof(ctx context.Context, r services.SessionRecording) ([]byte, error) {
	if r.End.Event == "" { // it ended before that was noted
		return nil, nil
	}
	m.flush(ctx)
	proof, err := m.prove(ctx, r.End.Event)
	if err != nil && m.cfg.Now().Sub(r.End.At) > proofPatience {
		m.cfg.Log.Warn("a recording is mirrored without a proof", zap.String("session", string(r.Session)), zap.Error(err))
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.Conflict, err, "the end of a recording cannot be proven yet") // of this one: the others go on
	}
	return proof, nil
}

// unlessGone makes a change of a recording that was brought; one that was removed
// meanwhile is removed from the mirror, too, where what is removed is.
func (m *recordingsMirror) unlessGone(ctx context.Context, id names.SessionID, change func(*services.SessionRecording)) error {
	now, err := m.cfg.Store.Recording(ctx, id)
	if err == nil && now.Removing == nil && change != nil {
		now, err = m.cfg.Store.ChangeRecording(ctx, id, func(r *services.SessionRecording) error {
			if r.Removing == nil {
				change(r)
			}
			return nil
		})
	}
	if fault.Is(err, fault.NotFound) || err == nil && now.Removing != nil {
		return m.erase(ctx, id)
	}
	return err
}
