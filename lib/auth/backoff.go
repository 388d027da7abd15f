package auth

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// A gate makes whoever fails wait: after free failures for base, and twice as
// long after each further one, up to most. Every forgive without a failure
// takes one back.
type gate struct {
	free    int
	base    time.Duration
	most    time.Duration
	forgive time.Duration
}

// The gates of a sign-in. The first is strict and holds one guesser at one
// place. The second holds a person's guessers at all places together; it is
// soft, so that they cannot keep the person out: it never asks for more than
// half a minute, and for nothing when the key was proven that the person
// signed in with before. The third holds a place that tries many names.
//
//nolint:gochecknoglobals // constants the language cannot write as such
var (
	pairGate   = gate{free: 4, base: 10 * time.Second, most: 15 * time.Minute, forgive: 10 * time.Minute}
	userGate   = gate{free: 20, base: time.Second, most: 30 * time.Second, forgive: time.Minute}
	sourceGate = gate{free: 30, base: time.Second, most: 5 * time.Minute, forgive: 20 * time.Second}
)

// gateSlots is the number of counters of each gate. Names and addresses are
// hashed onto them with a key of this process: the table can neither grow nor
// be flushed by a guesser with many addresses, and the price is that two who
// share a slot share their failures.
const gateSlots = 1 << 13

// maxDoublings keeps a gate's shift within its type; every gate is at its most
// long before.
const maxDoublings = 20

type slot struct {
	failures int
	last     time.Time // when failures were last counted
	until    time.Time // refused before this
}

// A backoff counts failed sign-ins and says who has to wait. It lives in
// memory: a restart forgives, and each of several authorities counts alone.
type backoff struct {
	now  func() time.Time
	seed maphash.Seed

	mu     sync.Mutex // guards the slots
	pair   [gateSlots]slot
	user   [gateSlots]slot
	source [gateSlots]slot
}

func newBackoff(now func() time.Time) *backoff {
	return &backoff{now: now, seed: maphash.MakeSeed()}
}

// sourceOf returns the network that answers for addr: an IPv4 address or an
// IPv6 /64, which one customer usually has whole.
func sourceOf(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // the zero address: all unknown sources are one
	}
	return p
}

// try charges one failure to user and to source, whatever is comparable and
// stands for the place where it is made, beforehand, so that tries made
// at the same time count too, or refuses while one of them has to wait. Whether
// there is such a user makes no difference; known spares a person the second
// gate. Call succeeded when the try was none of a guesser.
func (b *backoff) try(user names.UserName, source any, known bool) (succeeded func(), err error) {
	type place struct {
		user   names.UserName
		source any
	}
	pair := &b.pair[maphash.Comparable(b.seed, place{user, source})%gateSlots]
	all := &b.user[maphash.Comparable(b.seed, user)%gateSlots]
	from := &b.source[maphash.Comparable(b.seed, source)%gateSlots]

	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	wait := max(pair.until.Sub(now), from.until.Sub(now))
	if !known {
		wait = max(wait, all.until.Sub(now))
	}
	if wait > 0 {
		wait = max(wait.Round(time.Second), time.Second)
		return nil, fault.New(fault.Denied, "too many failed sign-ins").WithHint("try again in %v", wait)
	}
	pair.charge(pairGate, now)
	undoAll, undoFrom := all.charge(userGate, now), from.charge(sourceGate, now)
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		*pair = slot{}
		undoAll()
		undoFrom()
	}, nil
}

// charge counts one failure and returns what takes it back.
func (s *slot) charge(g gate, now time.Time) (undo func()) {
	if past := now.Sub(s.last); past >= g.forgive {
		s.failures = max(0, s.failures-int(min(past/g.forgive, gateSlots)))
	}
	s.failures++
	s.last = now
	before := s.until
	if over := s.failures - g.free; over >= 0 {
		s.until = now.Add(min(g.most, g.base<<min(over, maxDoublings)))
	}
	after := s.until
	return func() {
		s.failures = max(0, s.failures-1)
		if s.until.Equal(after) {
			s.until = before
		}
	}
}
