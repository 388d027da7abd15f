//go:build unix

package recording

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

const (
	// uploads is how many recordings are uploaded at once. The parts of one go up
	// one after the other.
	uploads = 4
	// uploadTimeout bounds one upload, so that a store which hangs is asked again; on
	// a slow link a part has a second more for each slowest bytes.
	uploadTimeout = 30 * time.Second
	slowest       = 8 << 10
	// The wait after an upload that failed doubles from minBackoff to maxBackoff.
	minBackoff = 250 * time.Millisecond
	maxBackoff = 30 * time.Second
)

// Run uploads until ctx ends, and closes first what an earlier process left open.
func (r *Recorder) Run(ctx context.Context) error {
	var group errgroup.Group
	group.Go(func() error { r.recoverUntil(ctx); return nil })
	if r.cfg.Upload != nil {
		for range uploads {
			group.Go(func() error { r.upload(ctx); return nil })
		}
	}
	return group.Wait()
}

// recoverUntil recovers until all is recovered.
func (r *Recorder) recoverUntil(ctx context.Context) {
	for attempt := 1; ; attempt++ {
		_, err := r.Recover()
		if err == nil {
			break
		}
		r.cfg.Log.Error("cannot close the recordings that an earlier process left open", zap.Error(err))
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff(attempt)):
		}
	}
	<-ctx.Done()
}

// backoff returns the wait after so many failures.
func backoff(failures int) time.Duration {
	d := min(maxBackoff, minBackoff<<min(failures-1, 10))
	return d/2 + rand.N(d/2) //nolint:gosec // jitter is no secret
}

// publish hands a part, which is durable, to the uploads.
func (s *session) publish(p partRecord) {
	s.mu.Lock()
	s.queue = append(s.queue, p)
	s.published = p.number
	push := !s.queued
	s.queued = true
	s.mu.Unlock()
	if push {
		s.r.push(s)
	}
}

// push makes s the last one to be uploaded.
func (r *Recorder) push(s *session) {
	r.mu.Lock()
	r.ready = append(r.ready, s)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default: // as many as there are have been woken
	}
}

func (r *Recorder) pop() *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ready) == 0 {
		r.ready = nil
		return nil
	}
	s := r.ready[0]
	r.ready = r.ready[1:]
	return s
}

// upload uploads, one part of each session in turn.
func (r *Recorder) upload(ctx context.Context) {
	for ctx.Err() == nil {
		s := r.pop()
		if s == nil {
			select {
			case <-ctx.Done():
			case <-r.wake:
			}
			continue
		}
		more, err := s.uploadOne(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			s.retryLater(err)
		case more || err != nil:
			r.push(s)
		}
	}
}

// uploadOne uploads the next part of s, or says that there are no more. It reports
// whether there is more to do.
func (s *session) uploadOne(ctx context.Context) (more bool, err error) {
	s.mu.Lock()
	var part *partRecord
	limit := uploadTimeout
	if len(s.queue) > 0 {
		part = &s.queue[0]
		limit += time.Duration(part.size/slowest) * time.Second
	}
	of, ended := s.ofLocked(), s.unconfirmedLocked()
	complete := s.completeLocked()
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()

	switch {
	case part != nil:
		err = s.uploadPart(ctx, *part, of)
	case ended:
		err = s.complete(ctx, complete)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		return true, err
	}
	s.attempts = 0
	s.queued = len(s.queue) > 0 || s.unconfirmedLocked()
	return s.queued, nil
}

// uploadPart uploads a part and removes it from the spool once the store has it.
func (s *session) uploadPart(ctx context.Context, p partRecord, of *accessdv1.RecordingOf) error {
	name := partName(p.number)
	data, err := s.r.dir.read(s.path(name), MaxPart)
	if errors.Is(err, errDamaged) || err == nil && sha256.Sum256(data) != p.digest {
		return s.giveUp(p, errDamaged)
	}
	if errors.Is(err, fs.ErrNotExist) {
		s.r.cfg.Log.Error("a part of a recording is not in the spool any more", zap.String("session", string(s.id)), zap.Uint32("part", p.number))
		s.drop(p)
		return nil
	}
	if err != nil {
		return err
	}
	err = s.r.cfg.Upload.UploadPart(ctx, &accessdv1.UploadPartRequest{Session: string(s.id), Part: p.number, Data: data, Of: of})
	if fault.Is(err, fault.Conflict) || fault.Is(err, fault.BadInput) {
		return s.giveUp(p, err)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	err = s.syncStateLocked(p.number) // else nobody would know the part's digest after a loss of power
	s.mu.Unlock()
	if err == nil {
		err = s.r.dir.remove(s.path(name))
	}
	if err != nil {
		return err
	}
	s.r.used.Add(-p.size)
	s.drop(p)
	return nil
}

// giveUp sets a part aside that can never be uploaded.
func (s *session) giveUp(p partRecord, cause error) error {
	if err := s.r.setAside(s.id, partName(p.number), cause); err != nil {
		return err
	}
	s.drop(p)
	return nil
}

// drop takes the first part off the queue.
func (s *session) drop(p partRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) > 0 && s.queue[0].number == p.number {
		s.queue = s.queue[1:]
	}
}

// complete says that there are no more parts.
func (s *session) complete(ctx context.Context, req *accessdv1.CompleteRecordingRequest) error {
	err := s.r.cfg.Upload.Complete(ctx, req)
	if err != nil && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.BadInput) {
		return err
	}
	if err != nil {
		s.r.cfg.Log.Error("the store does not take the end of a recording", zap.String("session", string(s.id)), zap.Error(err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.completed = true
	if err := s.appendStateLocked(appendMark(nil, stateCompleted)); err != nil {
		s.r.cfg.Log.Warn("the end of a recording is uploaded again after a restart", zap.Error(err))
	}
	s.forgetLocked()
	return nil
}

// retryLater uploads s again after a while.
func (s *session) retryLater(cause error) {
	s.r.metrics.uploadFailures.Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attempts++
	wait := backoff(s.attempts)
	s.r.cfg.Log.Warn("a recording could not be uploaded", zap.String("session", string(s.id)),
		zap.Int("attempt", s.attempts), zap.Duration("retry", wait), zap.Error(cause))
	s.retry = time.AfterFunc(wait, func() { s.r.push(s) })
}

func (s *session) stopRetry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retry != nil {
		s.retry.Stop()
	}
}
