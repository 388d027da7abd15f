package events

import (
	"context"
	"errors"
	"sync"
)

// errUnfinished is what the others of a group get when its commit panicked.
var errUnfinished = errors.New("events: internal error: a commit did not return")

// committer commits what concurrent callers bring in groups: while one group is
// being written, the next one gathers, and whoever of it comes first writes it
// for all. It needs no goroutine of its own.
type committer[T any] struct {
	commit func(ctx context.Context, items []T) error // called by one at a time
	turn   chan struct{}                              // holds a token while somebody commits

	mu   sync.Mutex
	next *group[T] // gathers
}

// group is what is committed at once. err is set before done is closed.
type group[T any] struct {
	items []T
	done  chan struct{}
	err   error
}

func newCommitter[T any](commit func(context.Context, []T) error) *committer[T] {
	c := &committer[T]{commit: commit, turn: make(chan struct{}, 1)}
	c.next = &group[T]{done: make(chan struct{})}
	return c
}

// do returns when item was committed or could not be. An ended ctx ends the
// wait, but item is committed with the next group all the same.
func (c *committer[T]) do(ctx context.Context, item T) error {
	c.mu.Lock()
	g := c.next
	g.items = append(g.items, item)
	c.mu.Unlock()

	select {
	case <-g.done:
		return g.err
	case <-ctx.Done():
		return context.Cause(ctx)
	case c.turn <- struct{}{}:
	}
	defer c.release()
	select {
	case <-g.done: // by the one who had the turn before
		return g.err
	default:
	}
	c.mu.Lock()
	c.next = &group[T]{done: make(chan struct{})}
	c.mu.Unlock()
	g.err = errUnfinished // unless commit returns
	defer close(g.done)
	g.err = c.commit(context.WithoutCancel(ctx), g.items) // others wait for it, too
	return g.err
}

// acquire waits until nobody commits and keeps it so until release.
func (c *committer[T]) acquire() { c.turn <- struct{}{} }

func (c *committer[T]) release() { <-c.turn }
