//go:build unix

package recording

import (
	"time"

	"go.uber.org/zap"
)

// within calls f and returns what f does, or ErrStalled when the disk keeps it
// beyond the recorder's patience; late is told what f returned in the end.
func (r *Recorder) within(f func() error, late func(error)) error {
	done, gone := make(chan error), make(chan struct{})
	started := r.start(func() {
		err := f()
		select {
		case done <- err:
		case <-gone:
			r.stalled.Add(-1)
			late(err)
		}
	})
	if !started { // everything is closed, or says that it cannot be
		return f()
	}
	patience := time.NewTimer(r.cfg.Patience)
	defer patience.Stop()
	select {
	case err := <-done:
		return err
	case <-patience.C:
		r.stalled.Add(1)
		close(gone)
		return ErrStalled
	}
}

// stall tells the session that the disk keeps whoever writes or closes its parts.
// Whoever that is may hold the lock.
func (w *Recording) stall() {
	w.r.metrics.failures.Inc()
	w.r.cfg.Log.Error("the disk does not answer", zap.String("session", string(w.session.id)), zap.Duration("after", w.r.cfg.Patience))
	if w.onFail != nil {
		w.onFail(ErrStalled)
	}
}

// lock locks w, and watches whether the disk keeps it locked.
func (w *Recording) lock() {
	w.mu.Lock()
	w.guard.Reset(w.r.cfg.Patience)
}

func (w *Recording) unlock() {
	w.guard.Stop()
	w.mu.Unlock()
}
