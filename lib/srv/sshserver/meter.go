package sshserver

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// clients keeps an account per client over all its connections.
type clients struct {
	lim   Limits
	total atomic.Int64 // bytes held by all

	mu   sync.Mutex
	open map[string]*account
}

func newClients(lim Limits) *clients { return &clients{lim: lim, open: map[string]*account{}} }

// account is what one client makes us hold. Its mutex guards the meters of all
// its connections too, since one may have to give way to another.
type account struct {
	all  *clients
	name string
	refs int // guarded by all.mu

	mu     sync.Mutex
	held   int64 // sum over its meters
	meters map[*meter]struct{}
	eased  chan struct{} // closed when held falls; nil while nobody waits
}

// join adds m to the account of the named client. What m has received before
// does not count: the peer was unauthenticated, and held to maxPreAuth.
func (cs *clients) join(name string, m *meter) {
	cs.mu.Lock()
	a := cs.open[name]
	if a == nil {
		a = &account{all: cs, name: name, meters: map[*meter]struct{}{}}
		cs.open[name] = a
	}
	a.refs++
	cs.mu.Unlock()

	a.mu.Lock()
	defer a.mu.Unlock()
	a.meters[m] = struct{}{}
	m.account.Store(a)
}

// leave takes m out of its account.
func (cs *clients) leave(m *meter) {
	a := m.account.Load()
	if a == nil {
		return
	}
	a.mu.Lock()
	delete(a.meters, m)
	a.chargeLocked(m, 0)
	a.mu.Unlock()

	cs.mu.Lock()
	defer cs.mu.Unlock()
	if a.refs--; a.refs == 0 {
		delete(cs.open, a.name)
	}
}

func (a *account) chargeLocked(m *meter, held int64) {
	change := held - m.held
	m.held = held
	a.held += change
	a.all.total.Add(change)
	if change < 0 && a.eased != nil {
		close(a.eased)
		a.eased = nil
	}
}

func (a *account) overLocked() bool {
	limit := a.all.lim.MaxBuffered
	if a.all.total.Load() > a.all.lim.MaxBufferedTotal {
		limit /= 16
	}
	return a.held > limit
}

// meter counts what one connection received and what its handlers took, and so
// knows a bound of what lies between.
type meter struct {
	account atomic.Pointer[account] // nil until the peer has authenticated

	total atomic.Int64 // bytes received, for all to see
	heard atomic.Int64 // when last something was received, in Unix nanoseconds

	looked atomic.Int64 // total when held was last computed

	// Guarded by account.mu.
	taken   int64 // bytes taken by handlers
	held    int64
	sources map[*source]struct{}
}

// source is a place where received bytes can wait: the data of a channel, its
// requests, the global requests, or everything, while a write is stuck.
// Guarded by account.mu.
type source struct {
	// drop makes the source let go of what it holds. nil where nothing can.
	drop func()

	idle    bool  // nothing waits, or it is being taken just now
	clean   state // nothing received before waits any more
	mark    state // a moment after clean
	since   int64 // bytes taken since mark
	touched time.Time
	dropped bool
}

// state is a moment of a meter.
type state struct{ total, taken int64 }

func newMeter() *meter {
	m := &meter{sources: map[*source]struct{}{}}
	m.heard.Store(time.Now().UnixNano())
	return m
}

// maxWindow is x/crypto's channel window: no channel holds more bytes of data.
const maxWindow = 2 << 20

// lookEvery bounds how often what is held is computed, in bytes received.
const lookEvery = 16 << 10

func (m *meter) nowLocked() state { return state{total: m.total.Load(), taken: m.taken} }

// add begins to watch a source that holds nothing.
func (m *meter) add(s *source) {
	a := m.account.Load()
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s.clean = m.nowLocked()
	s.mark, s.touched = s.clean, time.Now()
	m.sources[s] = struct{}{}
}

// remove forgets a source, which holds nothing any more.
func (m *meter) remove(s *source) {
	a := m.account.Load()
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(m.sources, s)
	m.settleLocked(a)
}

// rest tells that nothing waits in s, or that whatever does is being taken.
func (m *meter) rest(s *source) {
	a := m.account.Load()
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s.idle = true
	m.settleLocked(a)
}

// wake tells that from now on something may wait in s, which was at rest and
// held nothing.
func (m *meter) wake(s *source) {
	a := m.account.Load()
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.idle && !s.dropped {
		s.idle = false
		s.clean = m.nowLocked()
		s.mark, s.since, s.touched = s.clean, 0, time.Now()
	}
}

// took tells that n bytes were taken out of s, and whether that emptied it.
func (m *meter) took(s *source, n int, empty bool) {
	a := m.account.Load()
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	m.taken += int64(n)
	s.idle = s.dropped
	s.touched = time.Now()
	s.since += int64(n)
	switch {
	case empty:
		s.clean = m.nowLocked()
		s.mark, s.since = s.clean, 0
	case s.since >= maxWindow:
		// More than fits has come out since the mark, so what was in then is
		// out: first in, first out.
		s.clean, s.mark, s.since = s.mark, m.nowLocked(), 0
	}
	m.settleLocked(a)
}

// settleLocked computes what the connection holds if it was said to hold
// anything: most never do.
func (m *meter) settleLocked(a *account) {
	if m.held > 0 {
		a.chargeLocked(m, m.boundLocked())
	}
}

// boundLocked returns a bound of the received bytes that wait: all that came
// since the earliest moment from which something still may, less what was taken
// since.
func (m *meter) boundLocked() int64 {
	oldest := m.oldestLocked()
	if oldest == nil {
		return 0
	}
	now := m.nowLocked()
	return max(0, now.total-oldest.clean.total-(now.taken-oldest.clean.taken))
}

func (m *meter) oldestLocked() *source {
	var oldest *source
	for s := range m.sources {
		if !s.idle && (oldest == nil || s.clean.total < oldest.clean.total) {
			oldest = s
		}
	}
	return oldest
}

// received counts n bytes from the network.
func (m *meter) received(n int) {
	if n == 0 {
		return
	}
	m.total.Add(int64(n))
	m.heard.Store(time.Now().UnixNano())
}

// admit returns once the client holds little enough that more may be read. It
// drops what has not been touched for the stall timeout while the client holds
// too much.
func (m *meter) admit(ctx context.Context) error {
	a := m.account.Load()
	if a == nil || m.total.Load()-m.looked.Load() < lookEvery {
		return nil
	}
	for {
		drop, wait, eased := m.look(a)
		if drop != nil {
			drop()
			continue
		}
		if eased == nil {
			return nil
		}
		t := time.NewTimer(wait)
		select {
		case <-eased:
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
		t.Stop()
	}
}

// look computes what is held. If it is too much it returns either how to drop
// the longest untouched source of the client's connections, or how long to wait
// for the next such and what tells that less is held now.
func (m *meter) look(a *account) (drop func(), wait time.Duration, eased <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m.looked.Store(m.total.Load())
	a.chargeLocked(m, m.boundLocked())
	if !a.overLocked() {
		return nil, 0, nil
	}
	now := time.Now()
	wait = a.all.lim.StallTimeout
	if owner, s := a.stalestLocked(); s != nil {
		if left := a.all.lim.StallTimeout - now.Sub(s.touched); left > 0 {
			wait = left
		} else {
			s.dropped, s.idle = true, true
			owner.settleLocked(a)
			return s.drop, 0, nil
		}
	}
	if a.eased == nil {
		a.eased = make(chan struct{})
	}
	return nil, wait, a.eased
}

// stalestLocked returns the source that has gone untouched for longest and can
// be dropped.
func (a *account) stalestLocked() (owner *meter, stalest *source) {
	for m := range a.meters {
		for s := range m.sources {
			if s.idle || s.drop == nil || s.dropped {
				continue
			}
			if stalest == nil || s.touched.Before(stalest.touched) {
				owner, stalest = m, s
			}
		}
	}
	return owner, stalest
}
