package events

import (
	"errors"
	"testing"
)

// A commit that panics takes its caller with it, and nobody else.
func TestCommitterSurvivesAPanic(t *testing.T) {
	broken := true
	c := newCommitter[int]()
	commit := func([]int) error {
		if broken {
			panic("broken")
		}
		return nil
	}
	c.acquire()
	first, others := make(chan any, 3), make(chan error, 3)
	for range 3 {
		go func() {
			defer func() {
				if r := recover(); r != nil {
					first <- r
				}
			}()
			others <- c.do(nil, 1, commit)
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
	if err := c.do(nil, 2, commit); err != nil {
		t.Errorf("do = %v after the panic", err)
	}
}

func TestCommitterLetsCallersGo(t *testing.T) {
	var committed []int
	c := newCommitter[int]()
	commit := func(items []int) error { committed = append(committed, items...); return nil }
	c.acquire()
	gone := make(chan struct{})
	close(gone)
	if err := c.do(gone, 1, commit); !errors.Is(err, errAbandoned) {
		t.Errorf("do = %v, want %v", err, errAbandoned)
	}
	c.release()
	if err := c.do(nil, 2, commit); err != nil || len(committed) != 2 {
		t.Errorf("do = %v, committed %v; want both", err, committed)
	}
}
