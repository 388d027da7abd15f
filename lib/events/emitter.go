//go:build unix

package events

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// defaultMaxBytes is the bound of a spool: about half a million events.
	defaultMaxBytes = 256 << 20

	// defaultMaxAge is how long a spool goes on without having shipped anything. The
	// log tells an event that comes again by the uids of the periods that are there,
	// so whoever archives those that are older than this gets none twice.
	defaultMaxAge = 30 * 24 * time.Hour

	// drainTimeout bounds the last attempt to ship at shutdown.
	drainTimeout = 5 * time.Second
	// busyBatch is the size of a batch that tells of a busy member, which pauses
	// for busyPause before the next: each batch costs the authority a dozen files.
	// A full batch tells of a backlog, and goes on at once.
	busyBatch = 8
	fullBatch = batchEvents / 2
	busyPause = 15 * time.Millisecond
	// firstBackoff and lastBackoff bound the pause after a failed attempt to ship.
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 30 * time.Second
)

// EmitterConfig configures an [Emitter].
type EmitterConfig struct {
	Dir            string        // the spool's own directory; required, made when absent
	Cluster        func() string // the cluster's name, "" while unknown; nil means unknown
	ServerID       string        // written where an event has none
	ServerHostname string        // written where an event has none
	// Known reports whether a user name that somebody typed stands for anything; one
	// that does not is not written. nil means that all do.
	Known    func(name string) bool
	MaxBytes int64         // bound of the spool; 0 means 256 MiB
	MaxAge   time.Duration // bound of what waits in the spool; 0 means 30 days

	Now func() time.Time // nil means time.Now
	// Steady is a clock that nobody sets: where Now moves against it, an event
	// clock.jump says so. nil means the system's, or, when Now is given, none.
	Steady func() time.Duration
	Log    *zap.Logger // nil discards
}

// Emitter records events in a local spool and ships them from there.
type Emitter struct {
	cfg     EmitterConfig
	schema  schema
	claims  claims
	spool   *spool
	clock   *clockWatch
	running atomic.Bool
	closed  atomic.Bool
}

// Stats are figures of an [Emitter] since it was made.
type Stats struct {
	Emitted uint64 // events made durable
	Refused uint64 // events that could not be written
	Shipped uint64 // events acknowledged by the authority
	Damaged uint64 // records lost to a damaged disk, or refused by the authority for good
	Bytes   int64  // the spool's size now
}

// NewEmitter opens the spool in cfg.Dir. A second emitter on the same directory
// is a [fault.Conflict].
func NewEmitter(cfg EmitterConfig) (*Emitter, error) {
	if cfg.Cluster == nil {
		cfg.Cluster = func() string { return "" }
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = defaultMaxBytes
	}
	if cfg.MaxAge == 0 {
		cfg.MaxAge = defaultMaxAge
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
		if cfg.Steady == nil {
			cfg.Steady = steadyClock
		}
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	cfg.Log = cfg.Log.Named("events")
	s, err := openSpool(cfg.Dir, cfg.MaxBytes, cfg.Log)
	if err != nil {
		return nil, err
	}
	s.maxAge, s.now = cfg.MaxAge, cfg.Now
	return &Emitter{cfg: cfg, schema: newSchema(), claims: newClaims(cfg.Known), spool: s, clock: newClockWatch(cfg, s.written)}, nil
}

// Emit records ev. When it returns nil the record is durable; when it returns an
// error of kind [fault.Unavailable] it is not, and what ev is about must not
// happen. What the table does not know is an internal error.
//
// The end of ctx does not stop the record: what happened is recorded.
func (e *Emitter) Emit(ctx context.Context, ev Event) error {
	return e.EmitAll(ctx, ev)
}

// EmitAll is Emit of several events at once, all or none of them, in their order
// and at the price of one.
func (e *Emitter) EmitAll(_ context.Context, evs ...Event) error {
	records := make([][]byte, len(evs))
	for i, ev := range evs {
		var err error
		if records[i], err = e.encode(ev); err != nil {
			return err
		}
	}
	quit, stop := patience()
	defer stop()
	err := e.spool.records.do(quit, records, e.write)
	if errors.Is(err, errAbandoned) {
		return fault.New(fault.Unavailable, "the audit spool does not answer")
	}
	return err
}

// encode fills in what ev leaves to the emitter.
func (e *Emitter) encode(ev Event) ([]byte, error) {
	ev = e.claims.veil(ev)
	if ev.Time.IsZero() {
		ev.Time = e.cfg.Now()
	}
	if ev.ClusterName == "" {
		ev.ClusterName = e.cfg.Cluster()
	}
	if ev.ServerID == "" {
		ev.ServerID = e.cfg.ServerID
	}
	if ev.ServerHostname == "" {
		ev.ServerHostname = e.cfg.ServerHostname
	}
	return e.schema.encode(ev, MaxEvent)
}

// Healthy returns why a record cannot be written, or nil. After a failure it
// tries to write, so that it also says when the disk is well again while nobody
// emits.
func (e *Emitter) Healthy() error {
	e.spool.mu.Lock()
	err := e.spool.err
	e.spool.mu.Unlock()
	if err != nil {
		err = e.spool.probe()
	}
	return err
}

// Stats returns the emitter's figures.
func (e *Emitter) Stats() Stats {
	_, bytes := e.spool.sizes()
	e.spool.mu.Lock()
	defer e.spool.mu.Unlock()
	stats := e.spool.stats
	stats.Bytes = bytes
	return stats
}

// Flush waits until everything that was emitted before the call is shipped;
// [Emitter.Run] must be running.
func (e *Emitter) Flush(ctx context.Context) error {
	target, acked, changed := e.spool.end()
	for acked.before(target) {
		select {
		case <-ctx.Done():
			return fault.Wrap(fault.Unavailable, context.Cause(ctx), "events are not shipped yet")
		case <-changed:
		}
		_, acked, changed = e.spool.end()
	}
	return nil
}

// Run ships events with drain, in the order they were emitted, until ctx ends;
// then it makes one bounded attempt to ship the rest. Each drain gets at most
// about a thousand events and a megabyte, each one JSON object, and returns nil
// once they are durable elsewhere; only then are they removed here. After a
// failure or a crash events are shipped again, so drain's end must tell them by
// uid. An error of kind [fault.BadInput] says that an event can never be taken:
// Run finds it, logs it, keeps its segment for inspection, and goes on.
func (e *Emitter) Run(ctx context.Context, drain func(ctx context.Context, events [][]byte) error) error {
	if e.running.Swap(true) {
		return fault.New(fault.Internal, "events: internal error: the spool is being drained already")
	}
	defer e.running.Store(false)
	var watching sync.WaitGroup
	defer watching.Wait()
	looking, stop := context.WithCancel(ctx)
	defer stop()
	watching.Go(func() { e.watchClock(looking) })
	backoff := firstBackoff
	for ctx.Err() == nil {
		_, _, changed := e.spool.end()
		shipped, n, err := e.step(ctx, drain)
		switch {
		case err != nil && ctx.Err() == nil:
			e.cfg.Log.Warn("cannot ship events; trying again", zap.Error(err), zap.Duration("pause", backoff))
			wait(ctx, backoff/2+rand.N(backoff/2)) //nolint:gosec // jitter is no secret
			backoff = min(2*backoff, lastBackoff)
		case shipped:
			backoff = firstBackoff
			if n >= busyBatch && n < fullBatch {
				wait(ctx, busyPause)
			}
		default:
			select {
			case <-ctx.Done():
			case <-changed:
			}
		}
	}
	return e.drainRest(ctx, drain)
}

// drainRest ships what is left once ctx has ended. What cannot be shipped stays
// for the next start, so a failure is no error.
func (e *Emitter) drainRest(ctx context.Context, drain func(context.Context, [][]byte) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	for {
		shipped, _, err := e.step(ctx, drain)
		if err != nil {
			e.cfg.Log.Info("events stay in the spool until the next start", zap.Error(err), zap.Int64("bytes", e.Stats().Bytes))
			return nil
		}
		if !shipped {
			return nil
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// step ships one batch, if there is one, of n events.
func (e *Emitter) step(ctx context.Context, drain func(context.Context, [][]byte) error) (shipped bool, n int, err error) {
	events, to, ok, err := e.spool.read()
	if err != nil || !ok {
		return false, 0, err
	}
	if err := e.ship(ctx, to.segment, events, drain); err != nil {
		e.spool.refused(events[0])
		return false, 0, err
	}
	return true, len(events), e.spool.ack(to, len(events))
}

// ship drains events; one that is refused for good is set aside.
func (e *Emitter) ship(ctx context.Context, segment uint64, events [][]byte, drain func(context.Context, [][]byte) error) error {
	if len(events) == 0 {
		return nil
	}
	err := drain(ctx, events)
	if !fault.Is(err, fault.BadInput) {
		return err
	}
	if len(events) == 1 {
		e.cfg.Log.Error("the authority refuses an event for good; its segment is kept",
			zap.Error(err), zap.Uint64("segment", segment))
		e.spool.keep(segment)
		return nil
	}
	half := len(events) / 2
	if err := e.ship(ctx, segment, events[:half], drain); err != nil {
		return err
	}
	return e.ship(ctx, segment, events[half:], drain)
}

// Close unlocks the spool; later Emits fail. Call it when Run has returned.
func (e *Emitter) Close() error {
	if e.closed.Swap(true) {
		return nil
	}
	return e.spool.close()
}
