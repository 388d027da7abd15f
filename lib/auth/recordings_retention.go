package auth

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

const (
	// archiveInterval is how often the archive looks after what it keeps, unless
	// a recording has just come to its end.
	archiveInterval = time.Minute
	// archiveRest is how many times as long as it worked the archive rests before it
	// looks again: each look goes through all recordings, however few have ended.
	archiveRest = 20
	// removalTime is how long a removal may take whoever began it. One that takes
	// longer is gone on with: its authority was killed, or the store was away.
	removalTime = 10 * time.Minute
)

// archive looks after the recordings that are kept: it removes what is past its
// time and keeps the search index as they are.
type archive struct {
	*Authority

	index  *searchIndex
	mirror *recordingsMirror // nil without one
	wake   chan struct{}     // holds one token once there may be something to do
	turn   chan struct{}     // holds the turn to go through all recordings
}

func newArchive(a *Authority) (*archive, error) {
	m, err := newMirror(a)
	return &archive{
		Authority: a, index: newSearchIndex(a.cfg.Recordings.Dir), mirror: m, wake: make(chan struct{}, 1), turn: make(chan struct{}, 1),
	}, err
}

func (k *archive) poke() {
	select {
	case k.wake <- struct{}{}:
	default: // it has not seen the last one yet
	}
}

// run does the archive's work until ctx ends.
func (k *archive) run(ctx context.Context) error {
	defer k.index.close()
	var mirroring sync.WaitGroup
	defer mirroring.Wait()
	mirroring.Go(func() { k.mirror.run(ctx) })
	tick := time.NewTicker(archiveInterval)
	defer tick.Stop()
	for {
		began := time.Now()
		if err := k.tend(ctx); err != nil && ctx.Err() == nil {
			k.cfg.Log.Warn("recordings are not looked after", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(archiveRest*time.Since(began), archiveInterval)):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-k.wake:
		}
	}
}

// tend goes through all recordings once.
func (k *archive) tend(ctx context.Context) error {
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	list, err := k.cfg.Store.Recordings(ctx)
	if err != nil {
		return err
	}
	list = k.retain(ctx, list)
	k.mirror.offer(list)
	return k.catchUp(ctx, list)
}

// retain removes what is past its time and then, the oldest first, what is too
// much, and returns the rest. What is on hold or goes on is never removed, though
// it counts. Time waits for the mirror, which may be all that is left then; a full
// disk does not, since nobody could begin a session.
func (k *archive) retain(ctx context.Context, list []services.SessionRecording) []services.SessionRecording {
	slices.SortFunc(list, func(a, b services.SessionRecording) int { return a.Started.Compare(b.Started) })
	total := int64(0)
	for _, r := range list {
		total += r.Size
	}
	now, c := k.cfg.Now(), k.cfg.Recordings
	return slices.DeleteFunc(list, func(r services.SessionRecording) bool {
		why := services.RecordingRemoval{By: byAuthority}
		switch {
		case r.Removing != nil:
			if now.Sub(r.Removing.At) < removalTime {
				total -= r.Size
				return true
			}
			why = *r.Removing
		case r.Hold != "" || r.End == nil:
			return false
		case c.Retain > 0 && now.Sub(r.End.At) > c.Retain && !k.mirror.lacks(r):
			why.Reason = "older than " + c.Retain.String()
		case c.MaxSize > 0 && total > c.MaxSize:
			why.Reason = "the oldest, and all together are too large"
		default:
			return false
		}
		if err := k.remove(ctx, r, why, ""); err != nil && !fault.Is(err, fault.Conflict) { // or another authority does
			k.cfg.Log.Warn("a recording was not removed", zap.String("session", string(r.Session)), zap.Error(err))
			return false
		}
		total -= r.Size
		return true
	})
}

// remove removes r, or goes on with a removal that somebody has begun. A mark says
// that it is being removed, from when on nobody sees it; of several that would
// remove it one puts the mark. Then comes the event, and then its parts, what is
// known of it and its lines go. Without its event it stays.
func (k *archive) remove(ctx context.Context, r services.SessionRecording, why services.RecordingRemoval, addr string) error {
	if r.Hold != "" {
		return fault.New(fault.Conflict, "the recording of session %s is on hold: %s", r.Session, r.Hold)
	}
	why.At = k.cfg.Now()
	r.Removing = &why
	if err := k.cfg.Store.UpdateRecording(ctx, r); err != nil {
		return err
	}
	ev := about(events.RecordingDelete, r)
	ev.Success, ev.AddrRemote, ev.Fields["by"], ev.Fields["recording_bytes"] = true, addr, why.By, r.Size
	ev.Fields["recording_parts"] = int64(r.Parts)
	if r.End != nil {
		ev.Fields["recording_parts"], ev.Fields["recording_root"] = int64(r.End.Parts), r.End.Root
	}
	set(ev, "reason", why.Reason)
	if k.mirror != nil {
		ev.Fields["mirrored"] = r.Mirrored != "" && !k.cfg.Recordings.MirrorDelete
	}
	if err := k.record(ctx, ev); err != nil {
		_, undone := k.cfg.Store.ChangeRecording(ctx, r.Session, func(now *services.SessionRecording) error {
			now.Removing = nil
			return nil
		})
		return errors.Join(err, undone)
	}
	err := k.mirror.erase(ctx, r.Session)
	if err == nil {
		err = k.erase(ctx, r.Session)
	}
	if err != nil {
		k.note(ctx, failed(ev, err))
	}
	return err
}

// erase removes what there is of a recording: its parts, the mark, and then its
// lines, which take far longer (tried: two seconds for 700 KB) and which nobody
// finds any more. Lines of what is gone go with the next round, should they be left.
func (k *archive) erase(ctx context.Context, session names.SessionID) error {
	if err := k.cfg.Recordings.Store.DeleteAll(ctx, recordingDir(session)); err != nil {
		return err
	}
	if err := k.cfg.Store.DeleteRecording(ctx, session); err != nil {
		return err
	}
	return k.index.forget(ctx, session)
}
