package backend

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/accessd/accessd/lib/fault"
)

// ErrCompacted ends a watch whose next change is no longer kept: list anew and
// watch from there.
var ErrCompacted = errors.New("the changes asked for are no longer kept")

// Event is one change: a put, or a deletion, of which Value is nil.
type Event struct {
	Item
	Deleted bool
}

// How long a broken watch waits before it begins again.
const (
	minRetry = 50 * time.Millisecond
	maxRetry = 5 * time.Second
)

// Watch calls fn with the changes of keys under dir, which ends in "/", from
// revision from on (the one [Backend.List] returned, plus one), in order and
// each once; changes of one transaction come in one call. It goes on across
// members that restart. It returns when ctx ends, fn fails, or with
// [ErrCompacted].
func (b *Backend) Watch(ctx context.Context, dir string, from int64, fn func([]Event) error) error {
	if err := checkDir(dir); err != nil {
		return err
	}
	retry := minRetry
	for {
		before := from
		err := b.watchOnce(ctx, dir, &from, fn)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !errors.Is(err, errBroken) {
			return err
		}
		if b.client.Ctx().Err() != nil {
			return fault.New(fault.Unavailable, "the state store is closed")
		}
		if from != before {
			retry = minRetry
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(retry/2 + rand.N(retry/2)): //nolint:gosec // spreads load, keeps no secret
		}
		retry = min(2*retry, maxRetry)
	}
}

// errBroken says that a watch may begin again where it stopped.
var errBroken = errors.New("watch broken")

// watchOnce watches until something ends that, with from always the next
// revision to ask for.
func (b *Backend) watchOnce(ctx context.Context, dir string, from *int64, fn func([]Event) error) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for r := range b.client.Watch(ctx, b.prefix+dir, clientv3.WithPrefix(), clientv3.WithRev(*from), clientv3.WithProgressNotify()) {
		if r.CompactRevision != 0 {
			return fmt.Errorf("watch %q from revision %d: %w", dir, *from, ErrCompacted)
		}
		if err := r.Err(); err != nil {
			return fmt.Errorf("%w: %w", errBroken, err)
		}
		if r.IsProgressNotify() {
			*from = r.Header.Revision + 1
			continue
		}
		if len(r.Events) == 0 {
			continue
		}
		if err := fn(b.events(r.Events)); err != nil {
			return err
		}
		// The header's revision may be ahead of what a watch that catches up has
		// been told.
		*from = r.Events[len(r.Events)-1].Kv.ModRevision + 1
	}
	return errBroken
}

func (b *Backend) events(in []*clientv3.Event) []Event {
	out := make([]Event, len(in))
	for i, e := range in {
		out[i] = Event{
			Item:    Item{Key: string(e.Kv.Key[len(b.prefix):]), Value: e.Kv.Value, Revision: e.Kv.ModRevision},
			Deleted: e.Type == clientv3.EventTypeDelete,
		}
	}
	return out
}
