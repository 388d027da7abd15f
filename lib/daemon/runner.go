package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// rank says when a part is stopped: the lowest first, those of one rank at the
// same time. docs/ARCHITECTURE.md has the order and its reasons.
type rank int

const (
	rankTraffic   rank = iota // listener, proxy, node: let sessions finish, then cut
	rankTunnels               // both ends of tunnels
	rankMember                // policy, announcements, renewal
	rankAuthority             // API and its admin socket
	rankEvents                // the spool drains
	rankLink                  // the way to an authority elsewhere, by which it drained
	rankLog                   // the audit log closes
	rankStore                 // the backend closes
)

// stopMargin is how long a rank may take beyond the grace for sessions before
// the daemon goes on without it and says so.
const stopMargin = 15 * time.Second

// errStopping ends parts in an orderly stop.
var errStopping = errors.New("accessd is stopping")

// part is one running part of the daemon.
type part struct {
	name   string
	rank   rank
	cancel context.CancelCauseFunc
	done   chan struct{}
}

// runner starts parts and stops them in the order of their ranks. One part that
// fails stops all.
type runner struct {
	log    *zap.Logger
	grace  time.Duration
	failed chan error // the first failure

	mu    sync.Mutex
	parts []*part
}

func newRunner(log *zap.Logger, grace time.Duration) *runner {
	return &runner{log: log, grace: grace, failed: make(chan error, 1)}
}

// start runs a part until it is stopped. The part's context keeps ctx's values
// but not its end: the runner decides when its turn has come.
func (r *runner) start(ctx context.Context, at rank, name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	p := &part{name: name, rank: at, cancel: cancel, done: make(chan struct{})}
	r.mu.Lock()
	r.parts = append(r.parts, p)
	r.mu.Unlock()
	go func() { // stop waits for it
		defer close(p.done)
		err := run(ctx)
		if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
			return
		}
		if err == nil {
			err = errors.New("ended by itself")
		}
		select {
		case r.failed <- fmt.Errorf("%s: %w", name, err):
		default:
			r.log.Warn("another part ended", zap.String("part", name), zap.Error(err))
		}
	}()
}

// atStop registers what has no loop of its own but must be closed in turn.
func (r *runner) atStop(ctx context.Context, at rank, name string, closeIt func() error) {
	r.start(ctx, at, name, func(ctx context.Context) error {
		<-ctx.Done()
		if err := closeIt(); err != nil {
			r.log.Error("part did not close cleanly", zap.String("part", name), zap.Error(err))
		}
		return nil
	})
}

// stop ends every part, rank by rank, and reports those that outlived their
// time.
func (r *runner) stop() error {
	r.mu.Lock()
	parts := slices.Clone(r.parts)
	r.mu.Unlock()
	var late []error
	for at := rankTraffic; at <= rankStore; at++ {
		for _, p := range parts {
			if p.rank == at {
				p.cancel(errStopping)
			}
		}
		limit := time.NewTimer(r.grace + stopMargin)
		for _, p := range parts {
			if p.rank != at {
				continue
			}
			select {
			case <-p.done:
			case <-limit.C:
				late = append(late, fmt.Errorf("%s did not stop within %v", p.name, r.grace+stopMargin))
				limit.Reset(0)
			}
		}
		limit.Stop()
	}
	return errors.Join(late...)
}
