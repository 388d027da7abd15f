package listener

import (
	"net/netip"
	"time"

	"github.com/accessd/accessd/lib/fault"
)

// Penalties says how long a source is refused for what it did. The time of all
// its offences adds up and passes with the clock; nothing is refused before it
// has come to Min. The zero value of a field means OpenSSH's figure
// (PerSourcePenalties in sshd_config(5)).
type Penalties struct {
	Off         bool          // no penalties
	NoAuth      time.Duration // 0 means 1 s
	AuthFailed  time.Duration // 0 means 5 s
	InvalidUser time.Duration // 0 means 5 s
	Grace       time.Duration // 0 means 10 s
	Protocol    time.Duration // 0 means 10 s
	Min         time.Duration // 0 means 15 s
	Max         time.Duration // 0 means 10 min
	Sources     int           // sources remembered; 0 means 65536
	// DenyOverflow refuses every source that is not remembered while no more
	// fit. Otherwise those are let in. What is remembered is never forgotten
	// early: a flood of sources buys nobody out.
	DenyOverflow bool
}

func (p Penalties) withDefaults() Penalties {
	set(&p.NoAuth, time.Second)
	set(&p.AuthFailed, 5*time.Second)
	set(&p.InvalidUser, 5*time.Second)
	set(&p.Grace, 10*time.Second)
	set(&p.Protocol, 10*time.Second)
	set(&p.Min, 15*time.Second)
	set(&p.Max, 10*time.Minute)
	set(&p.Sources, 1<<16)
	return p
}

func (p Penalties) check() error {
	for _, d := range []time.Duration{p.NoAuth, p.AuthFailed, p.InvalidUser, p.Grace, p.Protocol, p.Min} {
		if d < 0 || d > p.Max {
			return fault.New(fault.BadInput, "penalty %v: want between 0 and the maximum, %v", d, p.Max)
		}
	}
	if p.Sources < 0 {
		return fault.New(fault.BadInput, "penalties of %d sources: the number cannot be negative", p.Sources)
	}
	return nil
}

func (p Penalties) cost(o Offence) time.Duration {
	switch o {
	case OffenceNoAuth:
		return p.NoAuth
	case OffenceAuthFailed:
		return p.AuthFailed
	case OffenceInvalidUser:
		return p.InvalidUser
	case OffenceGrace:
		return p.Grace
	case OffenceProtocol:
		return p.Protocol
	}
	return 0
}

// penaltyBox remembers what sources owe. It has no clock of its own and is
// guarded by its gate's mutex.
type penaltyBox struct {
	cfg   Penalties
	debts map[netip.Prefix]debt
	swept time.Time // when it last looked for debts that have passed
}

// debt ends at a time. It refuses once it has been as long as Min, and then
// until it ends.
type debt struct {
	until   time.Time
	refuses bool
}

// sweepInterval bounds how often a full box looks through all its debts: each
// look costs about a millisecond.
const sweepInterval = time.Second

func newPenaltyBox(cfg Penalties) *penaltyBox {
	return &penaltyBox{cfg: cfg, debts: map[netip.Prefix]debt{}}
}

// refuses reports whether the source has to wait at the time now.
func (b *penaltyBox) refuses(source netip.Prefix, now time.Time) bool {
	if b.cfg.Off {
		return false
	}
	if d, ok := b.debts[source]; ok {
		if now.Before(d.until) {
			return d.refuses
		}
		delete(b.debts, source)
	}
	return b.cfg.DenyOverflow && b.full(now)
}

// add records an offence and reports whether it is the one from which on the
// source is refused.
func (b *penaltyBox) add(source netip.Prefix, o Offence, now time.Time) bool {
	cost := b.cfg.cost(o)
	if b.cfg.Off || cost <= 0 {
		return false
	}
	d, known := b.debts[source]
	if !known && b.full(now) {
		return false
	}
	if d.until.Before(now) {
		d = debt{until: now}
	}
	d.until = d.until.Add(cost)
	if latest := now.Add(b.cfg.Max); d.until.After(latest) {
		d.until = latest
	}
	was := d.refuses
	d.refuses = was || d.until.Sub(now) >= b.cfg.Min
	b.debts[source] = d
	return d.refuses && !was
}

// full reports whether no further source fits, having forgotten those whose
// debt has passed.
func (b *penaltyBox) full(now time.Time) bool {
	if len(b.debts) < b.cfg.Sources {
		return false
	}
	if now.Sub(b.swept) >= sweepInterval {
		b.swept = now
		for s, d := range b.debts {
			if !now.Before(d.until) {
				delete(b.debts, s)
			}
		}
	}
	return len(b.debts) >= b.cfg.Sources
}
