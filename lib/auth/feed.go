package auth

import (
	"context"
	"sync"

	"google.golang.org/protobuf/proto"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

const (
	// feedHistory is how many changes a follower may be behind. One that is
	// further behind gets everything again, so that a slow one costs nothing.
	feedHistory = 4096
	// maxUpdate bounds the resources of one message of a stream, in bytes; one
	// resource more than that goes alone.
	maxUpdate = 256 << 10
)

// A resourceKey names one resource of the policy.
type resourceKey struct{ kind, name string }

func keyOf(k *accessdv1.ResourceKey) resourceKey { return resourceKey{k.GetKind(), k.GetName()} }

// A feedChange is the newest state of a resource; nil is gone.
type feedChange struct {
	key resourceKey
	now *accessdv1.Resource
}

// A feed passes the store's policy to any number of followers. It keeps one
// copy and a short history; a follower is a position in that history. The
// resources are shared and never changed.
type feed struct {
	mu        sync.Mutex // guards what follows
	current   map[resourceKey]*accessdv1.Resource
	coming    map[resourceKey]*accessdv1.Resource // the copy after a reset, until it is complete
	history   [feedHistory]feedChange
	next      uint64 // number of the next change; change n is at n modulo feedHistory
	ready     bool   // the copy was complete once
	beats     uint64 // times that it was known to be up to date, without news
	followers map[*follower]struct{}
}

func newFeed() *feed {
	return &feed{current: map[resourceKey]*accessdv1.Resource{}, followers: map[*follower]struct{}{}}
}

// apply takes one update of the store's stream.
func (f *feed) apply(u *accessdv1.PolicyUpdate) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if u.GetReset_() {
		f.coming = map[resourceKey]*accessdv1.Resource{}
	}
	for _, r := range u.GetPut() {
		f.putLocked(keyOf(r.GetKey()), r)
	}
	for _, k := range u.GetRemove() {
		f.putLocked(keyOf(k), nil)
	}
	if u.GetSynced() {
		f.syncedLocked()
	}
	if !u.GetReset_() && !u.GetSynced() && len(u.GetPut())+len(u.GetRemove()) == 0 {
		f.beats++
		for fo := range f.followers {
			fo.poke()
		}
	}
}

// putLocked changes the copy that is being made, or the current one and tells
// the followers.
func (f *feed) putLocked(k resourceKey, r *accessdv1.Resource) {
	target := f.current
	if f.coming != nil {
		target = f.coming
	}
	if r == nil {
		delete(target, k)
	} else {
		target[k] = r
	}
	if f.coming == nil {
		f.publishLocked(k, r)
	}
}

// syncedLocked makes the copy that is complete now the current one; followers
// see what differs, as if it had changed just now.
func (f *feed) syncedLocked() {
	if f.coming != nil {
		old := f.current
		f.current, f.coming = f.coming, nil
		for k, r := range f.current {
			if before, ok := old[k]; !ok || !proto.Equal(before, r) {
				f.publishLocked(k, r)
			}
		}
		for k := range old {
			if _, ok := f.current[k]; !ok {
				f.publishLocked(k, nil)
			}
		}
	}
	if !f.ready {
		f.ready = true
		for fo := range f.followers {
			fo.poke()
		}
	}
}

func (f *feed) publishLocked(k resourceKey, r *accessdv1.Resource) {
	f.history[f.next%feedHistory] = feedChange{k, r}
	f.next++
	for fo := range f.followers {
		if fo.wants(k) {
			fo.poke()
		}
	}
}

// A follower reads a feed in its own time. Only one goroutine may use it.
type follower struct {
	feed  *feed
	wants func(resourceKey) bool
	wake  chan struct{} // holds one token once there may be something new

	cursor  uint64                // next change to read, once begun
	beats   uint64                // of the feed, that it has passed on
	begun   bool                  // the first copy was taken
	pending []*accessdv1.Resource // of that copy, still to be sent
	reset   bool                  // the next message begins a copy
}

func (f *feed) follow(wants func(resourceKey) bool) *follower {
	fo := &follower{feed: f, wants: wants, wake: make(chan struct{}, 1)}
	fo.poke()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.followers[fo] = struct{}{}
	return fo
}

func (fo *follower) close() {
	fo.feed.mu.Lock()
	defer fo.feed.mu.Unlock()
	delete(fo.feed.followers, fo)
}

func (fo *follower) poke() {
	select {
	case fo.wake <- struct{}{}:
	default: // it has not seen the last one yet
	}
}

// next returns the next message for the follower, waiting until there is one.
func (fo *follower) next(ctx context.Context) (*accessdv1.PolicyUpdate, error) {
	for {
		if len(fo.pending) > 0 || fo.reset {
			return fo.copyOut(), nil
		}
		if u := fo.catchUp(); u != nil {
			return u, nil
		}
		if len(fo.pending) > 0 || fo.reset {
			continue
		}
		select {
		case <-fo.wake:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// catchUp returns what changed since the last call, the newest state of each
// resource once, or nil. A follower that has nothing yet, or is too far behind,
// gets a fresh copy to send instead.
func (fo *follower) catchUp() *accessdv1.PolicyUpdate {
	f := fo.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ready {
		return nil
	}
	if !fo.begun || f.next-fo.cursor > feedHistory {
		fo.begun, fo.reset, fo.cursor, fo.beats = true, true, f.next, f.beats
		for k, r := range f.current {
			if fo.wants(k) {
				fo.pending = append(fo.pending, r)
			}
		}
		return nil
	}
	latest := map[resourceKey]*accessdv1.Resource{}
	for size := 0; fo.cursor < f.next && size < maxUpdate; fo.cursor++ {
		if c := f.history[fo.cursor%feedHistory]; fo.wants(c.key) {
			latest[c.key] = c.now
			size += len(c.now.GetJson())
		}
	}
	if len(latest) == 0 {
		if fo.beats == f.beats {
			return nil
		}
		fo.beats = f.beats
		return &accessdv1.PolicyUpdate{}
	}
	if fo.cursor < f.next {
		fo.poke()
	}
	u := &accessdv1.PolicyUpdate{}
	for k, r := range latest {
		if r == nil {
			u.Remove = append(u.Remove, &accessdv1.ResourceKey{Kind: k.kind, Name: k.name})
		} else {
			u.Put = append(u.Put, r)
		}
	}
	return u
}

// copyOut returns the next part of a copy.
func (fo *follower) copyOut() *accessdv1.PolicyUpdate {
	u := &accessdv1.PolicyUpdate{Reset_: fo.reset}
	fo.reset = false
	n := 0
	for size := 0; n < len(fo.pending) && (n == 0 || size < maxUpdate); n++ {
		size += len(fo.pending[n].GetJson())
	}
	u.Put, fo.pending = fo.pending[:n:n], fo.pending[n:]
	if len(fo.pending) == 0 {
		fo.pending, u.Synced = nil, true
	}
	return u
}
