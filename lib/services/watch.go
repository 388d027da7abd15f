package services

import (
	"context"
	"errors"
	"slices"
	"strings"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/fault"
)

const (
	// updateBytes is how large an update gets, about, when a policy is sent as a
	// whole; messages have 4 MiB at most.
	updateBytes = 256 << 10
	// maxBehind bounds the changes that wait for a function that is slow. Past it
	// they are dropped and the policy is told anew.
	maxBehind = 1024
)

// errBehind ends a watch whose function is too slow for the changes.
var errBehind = errors.New("too many changes wait")

// Watch calls fn with the policy: at first all resources of the kinds asked for
// (none means every kind), in updates of which the first resets and the last is
// synced; then every change, in order, where what changed together comes
// together. When fn is too slow or the state store has forgotten what comes next,
// it begins again with a reset: no change is ever missed. All kinds are public.
//
// Watch returns when ctx ends, when fn fails, or when the state store does not
// answer as it begins.
func (s *Store) Watch(ctx context.Context, kinds []string, fn func(*accessdv1.PolicyUpdate) error) error {
	w, err := newWatch(kinds)
	if err != nil {
		return err
	}
	for {
		err := s.watchOnce(ctx, w, fn)
		if !errors.Is(err, errBehind) && !errors.Is(err, backend.ErrCompacted) {
			return err
		}
	}
}

// watch is what a stream is about.
type watch struct {
	kinds []string
	dir   string // the lowest one that holds all of them
}

func newWatch(asked []string) (watch, error) {
	if len(asked) == 0 {
		asked = kinds()
	}
	w := watch{kinds: asked, dir: dirPolicy}
	for _, k := range asked {
		if !slices.Contains(kinds(), k) {
			return w, fault.New(fault.BadInput, "no kind of resource is named %q", k)
		}
		if !strings.HasPrefix(dirOf(k), dirPolicy) {
			w.dir = dirLive
		}
	}
	return w, nil
}

// key returns what a stream calls the resource under a key, if it is of a kind
// that was asked for.
func (w watch) key(key string) (*accessdv1.ResourceKey, bool) {
	_, rest, _ := strings.Cut(strings.TrimPrefix(key, dirLive), "/") // policy/ or fleet/
	kind, name, _ := strings.Cut(rest, "/")
	return &accessdv1.ResourceKey{Kind: kind, Name: name}, slices.Contains(w.kinds, kind)
}

// watchOnce tells everything and then every change, as long as it can.
func (s *Store) watchOnce(ctx context.Context, w watch, fn func(*accessdv1.PolicyUpdate) error) error {
	items, revision, err := s.b.List(ctx, w.dir)
	if err != nil {
		return err
	}
	if err := w.tellAll(items, fn); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	waiting, ended := make(chan []backend.Event, maxBehind), make(chan error, 1)
	go func() {
		defer close(waiting)
		ended <- s.b.Watch(ctx, w.dir, revision+1, func(events []backend.Event) error {
			select {
			case waiting <- events:
				return nil
			default:
				return errBehind
			}
		})
	}()
	for events := range waiting {
		if err = w.tell(events, fn); err != nil {
			cancel()
			break
		}
	}
	if watchErr := <-ended; err == nil {
		err = watchErr
	}
	return err
}

// tellAll calls fn with a whole policy.
func (w watch) tellAll(items []backend.Item, fn func(*accessdv1.PolicyUpdate) error) error {
	update, size := &accessdv1.PolicyUpdate{Reset_: true}, 0
	for _, item := range items {
		key, wanted := w.key(item.Key)
		if !wanted {
			continue
		}
		if size += len(item.Key) + len(item.Value); size > updateBytes && len(update.Put) > 0 {
			if err := fn(update); err != nil {
				return err
			}
			update, size = &accessdv1.PolicyUpdate{}, len(item.Value)
		}
		update.Put = append(update.Put, &accessdv1.Resource{Key: key, Json: item.Value, Revision: item.Revision})
	}
	update.Synced = true
	return fn(update)
}

// tell calls fn with changes, if some of them were asked for.
func (w watch) tell(events []backend.Event, fn func(*accessdv1.PolicyUpdate) error) error {
	update := &accessdv1.PolicyUpdate{}
	last := map[string]int{} // the newest event of each key
	for i, e := range events {
		last[e.Key] = i
	}
	for i, e := range events {
		key, wanted := w.key(e.Key)
		if !wanted || last[e.Key] != i {
			continue // an update first puts and then removes, so each key is in it once
		}
		if e.Deleted {
			update.Remove = append(update.Remove, key)
		} else {
			update.Put = append(update.Put, &accessdv1.Resource{Key: key, Json: e.Value, Revision: e.Revision})
		}
	}
	if len(update.Put)+len(update.Remove) == 0 {
		return nil
	}
	return fn(update)
}
