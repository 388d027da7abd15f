package sshserver

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// account in a test: one client with a few connections.
func testAccount(limit int64, n int) (*clients, []*meter) {
	cs := newClients(Limits{MaxBuffered: limit, MaxBufferedTotal: 16 * limit, StallTimeout: 10 * time.Second})
	var ms []*meter
	for range n {
		m := newMeter()
		cs.join("alice", m)
		ms = append(ms, m)
	}
	return cs, ms
}

// settle computes what m holds now.
func settle(m *meter) int64 {
	a := m.account.Load()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.chargeLocked(m, m.boundLocked())
	return m.held
}

func TestMeter(t *testing.T) {
	const tiny = 36 // bytes on the wire for one of data
	_, ms := testAccount(1<<20, 1)
	m := ms[0]
	s := &source{}
	m.add(s)
	step := func(what string, want int64) {
		t.Helper()
		if got := settle(m); got != want {
			t.Errorf("%s: %d bytes held, want %d", what, got, want)
		}
	}
	m.received(1000 * tiny)
	step("nothing read", 1000*tiny)
	m.rest(s)
	step("while being read", 0)
	m.took(s, 400, false)
	step("read in part: a byte on the wire is at least one of data", 1000*tiny-400)
	m.rest(s)
	m.took(s, 600, true)
	step("read until empty", 0)
	m.received(500)
	step("more came", 500)

	// Another source that is never read does not let the first one's traffic
	// look unread, but for its headers.
	stalled := &source{}
	m.add(stalled)
	m.rest(s)
	m.took(s, 0, true)
	for range 100 {
		m.received(32<<10 + tiny)
		m.rest(s)
		m.took(s, 32<<10, true)
	}
	step("100 packets beside a stalled channel", 100*tiny)
	m.remove(stalled)
	step("the stalled channel is gone", 0)

	// A reader that never catches up is charged for a window or two, not for
	// all that went through it.
	for range 10_000 {
		m.received(32<<10 + tiny)
		m.rest(s)
		m.took(s, 32<<10, false)
	}
	if got := settle(m); got > 200*tiny {
		t.Errorf("after 320 MB through a full channel: %d bytes held", got)
	}
	m.rest(s) // at its end, for good
	m.received(5000)
	step("after the end", 0)
}

// TestMeterDropsTheStalled: while a client holds too much, whichever of its
// connections reads next drops what has gone unread for longest, on whichever
// connection that is; if nothing has for long enough it waits.
func TestMeterDropsTheStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cs, ms := testAccount(100<<10, 2)
		var dropped []string
		add := func(m *meter, name string) *source {
			s := &source{}
			s.drop = func() { dropped = append(dropped, name) }
			m.add(s)
			return s
		}
		add(ms[0], "old")
		<-time.After(3 * time.Second)
		add(ms[1], "new")
		ms[0].received(60 << 10)
		if err := ms[0].admit(t.Context()); err != nil || len(dropped) != 0 {
			t.Fatalf("admit below the bound: %v, dropped %v", err, dropped)
		}
		ms[1].received(60 << 10)
		start := time.Now()
		if err := ms[1].admit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(start); got != 7*time.Second || len(dropped) != 1 || dropped[0] != "old" {
			t.Errorf("dropped %v after %v, want the old one after 7 s", dropped, got)
		}
		if got := cs.total.Load(); got != 60<<10 {
			t.Errorf("%d bytes are held, want those of the new one", got)
		}
		ms[1].received(60 << 10)
		if err := ms[1].admit(t.Context()); err != nil || len(dropped) != 2 {
			t.Errorf("admit = %v, dropped %v", err, dropped)
		}
		for _, m := range ms {
			cs.leave(m)
		}
		if cs.total.Load() != 0 || len(cs.open) != 0 {
			t.Errorf("%d bytes and %d clients are left", cs.total.Load(), len(cs.open))
		}
	})
}

// TestMeterWaitsForTheHandler: reading goes on as soon as a handler has caught
// up, and ends with the connection.
func TestMeterWaitsForTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ms := testAccount(100<<10, 1)
		m := ms[0]
		s := &source{drop: func() { t.Error("dropped") }}
		m.add(s)
		m.received(200 << 10)
		time.AfterFunc(time.Second, func() { m.rest(s); m.took(s, 50<<10, false) })    // not enough
		time.AfterFunc(2*time.Second, func() { m.rest(s); m.took(s, 100<<10, false) }) // enough
		start := time.Now()
		if err := m.admit(t.Context()); err != nil || time.Since(start) != 2*time.Second {
			t.Errorf("admit = %v after %v, want nil after 2 s", err, time.Since(start))
		}
		m.received(200 << 10)
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		time.AfterFunc(time.Second, func() { cancel(gone) })
		if err := m.admit(ctx); !errors.Is(err, gone) {
			t.Errorf("admit = %v, want %v", err, gone)
		}
	})
}

// TestMeterInAll: when all clients together hold too much, each has less.
func TestMeterInAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cs := newClients(Limits{MaxBuffered: 160 << 10, MaxBufferedTotal: 320 << 10, StallTimeout: time.Second})
		drops := map[string]int{}
		admit := func(name string, bytes int) {
			m := newMeter()
			cs.join(name, m)
			s := &source{}
			s.drop = func() { drops[name]++ }
			m.add(s)
			m.received(bytes)
			if err := m.admit(t.Context()); err != nil {
				t.Error(err)
			}
		}
		for _, name := range []string{"a", "b"} {
			admit(name, 150<<10)
		}
		admit("frugal", 9<<10)
		if len(drops) != 0 {
			t.Errorf("dropped %v while all is well", drops)
		}
		admit("c", 150<<10)
		admit("frugal too", 9<<10)
		if drops["c"] != 1 || len(drops) != 1 {
			t.Errorf("dropped %v, want one of c's", drops)
		}
	})
}
