package reversetunnel

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
)

// Why a slot's link is over, other than by a fault.
var (
	errStopping  = errors.New("the agent stops")
	errDraining  = errors.New("the proxy drains")
	errAway      = errors.New("the address leads to a proxy that drains")
	errDuplicate = errors.New("the address leads to a proxy that has a link already")
)

// slot keeps one link, to a proxy that no other slot has one to.
type slot struct {
	*Agent
	links *sync.WaitGroup // of Run

	pace    backoff
	last    string // address tried last
	failing bool   // and the log says so
}

// keep dials, again and again, until ctx ends.
func (s *slot) keep(ctx context.Context) {
	for {
		addr, ok := s.take(ctx)
		if !ok {
			return
		}
		up, err := s.hold(ctx, addr)
		s.update(func() { s.busy[addr]-- })
		d := s.after(addr, up, err)
		if errors.Is(err, errDuplicate) {
			d = s.news(ctx, d)
		}
		if ctx.Err() != nil || !s.pause(ctx, d) {
			return
		}
	}
}

// after logs how a link ended, once per change of state, and returns the pause
// before the next.
func (s *slot) after(addr string, up time.Duration, err error) time.Duration {
	switch {
	case errors.Is(err, errDraining):
		s.log.Info("proxy drains; looking for another", zap.String("proxy", addr))
		s.pace.reset()
		return 0
	case errors.Is(err, errAway):
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.untilBackLocked(time.Now())
	case errors.Is(err, errDuplicate):
		return lazyPause/2 + rand.N(lazyPause) //nolint:gosec // G404: when to dial is no secret
	case up > 0:
		s.failing = true
		s.log.Warn("link down; dialing again", zap.String("proxy", addr), zap.Duration("after", up), zap.Error(err))
	case !s.failing:
		s.failing = true
		s.log.Warn("no link; dialing until there is one", zap.String("proxy", addr), zap.Error(err))
	default:
		s.log.Debug("dial failed", zap.String("proxy", addr), zap.Error(err))
	}
	return s.pace.next(up)
}

// pause waits for d, or until the network changes, and reports whether to go on.
func (s *slot) pause(ctx context.Context, d time.Duration) bool {
	s.mu.Lock()
	network := s.network
	s.mu.Unlock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	case <-network:
		s.pace.reset()
	}
	timer.Reset(quickPause) // changes come in flocks
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// news waits for an address that was not worth dialing before, at most for d, and
// returns how much longer to pause. A proxy that starts again is such news: nobody
// is to do without it because there was nothing but duplicates meanwhile.
func (s *slot) news(ctx context.Context, d time.Duration) time.Duration {
	s.mu.Lock()
	network := s.network
	s.mu.Unlock()
	old, _ := s.free()
	over := time.NewTimer(d)
	defer over.Stop()
	for {
		changed := s.Changed()
		now, again := s.free()
		if slices.ContainsFunc(now, func(addr string) bool { return !slices.Contains(old, addr) }) {
			return rand.N(newsPause) //nolint:gosec // G404: when to dial is no secret
		}
		back := time.NewTimer(again)
		select {
		case <-changed:
		case <-back.C:
		case <-over.C:
			d = 0
		case <-ctx.Done():
			d = 0
		case <-network:
			s.pace.reset()
			d = quickPause
		}
		if back.Stop(); d <= quickPause {
			return d
		}
	}
}

// free returns the addresses to dial to which no slot has a link, and when to look
// for one that is back.
func (s *slot) free() ([]string, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.welcomeBackLocked(now)
	list := slices.DeleteFunc(s.candidatesLocked(s.cfg.Addresses()), func(addr string) bool { return s.busy[addr] > 0 })
	return list, s.untilBackLocked(now)
}

// take waits for an address worth dialing and marks it busy.
func (s *slot) take(ctx context.Context) (string, bool) {
	for {
		changed := s.Changed()
		addr, wait := s.choose(s.cfg.Addresses())
		if addr != "" {
			s.last = addr
			return addr, ctx.Err() == nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return "", false
		}
	}
}

// choose returns an address to dial, marked busy, or how long to wait for one.
func (s *slot) choose(configured []string) (addr string, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.welcomeBackLocked(now)
	list := s.candidatesLocked(configured)
	if len(list) == 0 && len(s.away) > 0 {
		return "", s.untilBackLocked(now)
	}
	if len(list) == 0 {
		return "", recheck
	}
	if i := slices.Index(list, s.last); i >= 0 && len(list) > 1 {
		list = slices.Delete(list, i, i+1) // another first
	}
	addr = list[rand.IntN(len(list))] //nolint:gosec // G404: where to dial is no secret
	s.busy[addr]++
	return addr, 0
}

// welcomeBackLocked forgets that proxies went away whose time is over.
func (s *slot) welcomeBackLocked(now time.Time) {
	for what, until := range s.away {
		if !now.Before(until) {
			delete(s.away, what)
		}
	}
}

func (s *slot) untilBackLocked(now time.Time) time.Duration {
	wait := recheck
	for _, until := range s.away {
		wait = min(wait, until.Sub(now))
	}
	return wait
}

// candidatesLocked returns the addresses to choose from: those of proxies without
// a link, and the configured ones that are not known to be another's. One that a
// slot dials already counts only when there is no other: there may be several
// proxies behind it. Once every proxy known has a link, there is none.
func (s *slot) candidatesLocked(configured []string) []string {
	var wanted []string
	known := map[string]bool{} // belongs to a proxy we know
	for _, p := range s.peers {
		wants := s.holds[p.id] == 0 && !s.awayLocked(string(p.id))
		for _, addr := range p.addresses {
			known[addr] = true
			if wants {
				wanted = append(wanted, addr)
			}
		}
	}
	if len(wanted) > 0 || len(s.peers) == 0 || !s.linkedLocked() {
		for _, addr := range configured {
			if !known[addr] && !s.awayLocked(addr) {
				wanted = append(wanted, addr)
			}
		}
	}
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	if free := slices.DeleteFunc(slices.Clone(wanted), func(addr string) bool { return s.busy[addr] > 0 }); len(free) > 0 || len(s.peers) == 0 {
		return free
	}
	return wanted
}

// linkedLocked reports whether any proxy that is known has a link.
func (s *slot) linkedLocked() bool {
	return slices.ContainsFunc(s.peers, func(p peer) bool { return s.holds[p.id] > 0 })
}

func (s *slot) awayLocked(what string) bool {
	_, away := s.away[what]
	return away
}

// hold connects to addr and returns when the link is over or drains, with how
// long it was up.
func (s *slot) hold(ctx context.Context, addr string) (time.Duration, error) {
	l, err := s.connect(ctx, addr)
	if err != nil {
		return 0, err
	}
	if err := s.claim(l); err != nil {
		l.raw.Close()
		l.finish()
		return 0, err
	}
	over := make(chan error, 1)
	s.links.Go(func() { over <- l.run(ctx) })
	select {
	case <-l.up:
		s.failing = false
	case err := <-over:
		s.unclaim(l)
		return 0, err
	}
	began := time.Now()
	select {
	case err = <-over:
	case <-l.drains:
		err = errDraining
	}
	s.unclaim(l)
	return max(time.Since(began), 1), err
}

// claim takes l's proxy for this slot.
func (s *slot) claim(l *link) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case l.proxy == "": // it is known by its address alone
	case s.awayLocked(string(l.proxy)):
		return errAway
	case s.holds[l.proxy] > 0:
		return errDuplicate
	default:
		s.holds[l.proxy]++
	}
	return nil
}

func (s *slot) unclaim(l *link) {
	s.update(func() {
		if l.proxy != "" {
			s.holds[l.proxy]--
		}
	})
}

// learn remembers the proxies a proxy tells of.
func (a *Agent) learn(peers []peer) {
	a.update(func() { a.peers = peers })
}

// leaves remembers that l's proxy goes away for a while, and where to go instead.
func (a *Agent) leaves(l *link, after time.Duration, instead []string) {
	a.update(func() {
		back := time.Now().Add(after)
		a.away[l.addr] = back
		if l.proxy != "" {
			a.away[string(l.proxy)] = back
		}
		if len(instead) > 0 {
			a.peers = append(slices.Clone(a.peers), peer{addresses: instead})
		}
	})
}

// errNoWelcome tells that a proxy does not speak as it should.
var errNoWelcome = fault.New(fault.Unavailable, "the proxy did not welcome the tunnel")
