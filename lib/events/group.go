package events

import (
	"errors"
	"sync"
	"time"
)

var (
	// errUnfinished is what the others of a group get when its commit panicked.
	errUnfinished = errors.New("events: internal error: a commit did not return")
	// errAbandoned is what a caller gets who did not wait for the end.
	errAbandoned = errors.New("nobody committed it in time")
)

// committer commits what concurrent callers bring in groups: while one group is
// being written, the next one gathers, and whoever of it comes first writes it
// for all. It needs no goroutine of its own.
type committer[T any] struct {
	turn chan struct{} // holds a token while somebody commits

	mu   sync.Mutex
	next *group[T] // gathers
}

// group is what is committed at once. err is set before done is closed.
type group[T any] struct {
	items []T
	done  chan struct{}
	err   error
}

func newCommitter[T any]() *committer[T] {
	return &committer[T]{turn: make(chan struct{}, 1), next: &group[T]{done: make(chan struct{})}}
}

// do returns when item was committed or could not be. One of the callers of a
// group commits all of it with its commit, while no other commit runs. When quit
// closes do returns errAbandoned, but item goes with its group all the same.
func (c *committer[T]) do(quit <-chan struct{}, item T, commit func(items []T) error) error {
	c.mu.Lock()
	g := c.next
	g.items = append(g.items, item)
	c.mu.Unlock()

	select {
	case <-g.done:
		return g.err
	case <-quit:
		return errAbandoned
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
	g.err = commit(g.items)
	return g.err
}

// acquire waits until nobody commits and keeps it so until release.
func (c *committer[T]) acquire() { c.turn <- struct{}{} }

func (c *committer[T]) release() { <-c.turn }

// writeTimeout bounds the wait for another caller's write, so that a disk that
// hangs refuses instead of hanging everybody.
const writeTimeout = 10 * time.Second

// patience returns a channel that closes after writeTimeout, unless stop is
// called before.
func patience() (quit <-chan struct{}, stop func() bool) {
	over := make(chan struct{})
	return over, time.AfterFunc(writeTimeout, func() { close(over) }).Stop
}
