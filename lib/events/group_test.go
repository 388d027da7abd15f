package events

import (
	"context"
	"errors"
	"testing"
)

// A commit that panics takes its caller with it, and nobody else.
func TestCommitterSurvivesAPanic(t *testing.T) {
	broken := true
	c := newCommitter(func(context.Context, []int) error {
		if broken {
			panic("broken")
		}
		return nil
	})
	c.acquire()
	first, others := make(chan any, 3), make(chan error, 3)
	for range 3 {
		go func() {
			defer func() {
				if r := recover(); r != nil {
					first <- r
				}
			}()
			others <- c.do(t.Context(), 1)
		}()
	}
	for gathered := 0; gathered < 3; {
		c.mu.Lock()
		gathered = len(c.next.items)
		c.mu.Unlock()
	}
	c.release()
	if r := <-first; r != "broken" {
		t.Errorf("recovered %v", r)
	}
	for range 2 {
		if err := <-others; !errors.Is(err, errUnfinished) {
			t.Errorf("do = %v, want %v", err, errUnfinished)
		}
	}
	broken = false
	if err := c.do(t.Context(), 2); err != nil {
		t.Errorf("do = %v after the panic", err)
	}
}

func TestCommitterLetsCallersGo(t *testing.T) {
	var committed []int
	c := newCommitter(func(_ context.Context, items []int) error { committed = append(committed, items...); return nil })
	c.acquire()
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	cancel(gone)
	if err := c.do(ctx, 1); !errors.Is(err, gone) {
		t.Errorf("do = %v, want %v", err, gone)
	}
	c.release()
	if err := c.do(t.Context(), 2); err != nil || len(committed) != 2 {
		t.Errorf("do = %v, committed %v; want both", err, committed)
	}
}
