package listener

import (
	"net/netip"
	"sync"
	"time"

	"github.com/accessd/accessd/lib/fault"
)

// Limits bounds peers that have not authenticated. A zero field means its
// default.
type Limits struct {
	// From Start unauthenticated connections on, a new one is dropped with a
	// probability of Rate percent, which grows to all of them at Full, as
	// OpenSSH's MaxStartups does. 0 means 100, 30 and 1000.
	Start, Rate, Full int
	// PerSource bounds the unauthenticated connections of one source, an IPv4
	// address or an IPv6 /64. 0 means 50: less than Start, so that one source
	// alone never costs another its connection.
	PerSource int
	// Parked and ParkedPerSource bound the interactive sign-ins under way. 0
	// means 200 and 10.
	Parked, ParkedPerSource int
	// Penalties make a source that fails wait.
	Penalties Penalties
	// Exempt sources are never penalised and know no bound per source, such as
	// the shared address of an office.
	Exempt []netip.Prefix
}

func (l Limits) withDefaults() Limits {
	set(&l.Start, 100)
	set(&l.Rate, 30)
	set(&l.Full, 1000)
	set(&l.PerSource, 50)
	set(&l.Parked, 200)
	set(&l.ParkedPerSource, 10)
	l.Penalties = l.Penalties.withDefaults()
	return l
}

func (l Limits) check() error {
	switch {
	case l.Start < 0 || l.Full < l.Start:
		return fault.New(fault.BadInput, "startup limits %d and %d: want 0 < start <= full", l.Start, l.Full)
	case l.Rate < 0 || l.Rate > 100:
		return fault.New(fault.BadInput, "startup rate %d: want a percentage", l.Rate)
	case l.PerSource < 0 || l.Parked < 0 || l.ParkedPerSource < 0:
		return fault.New(fault.BadInput, "limits per source and of parked sign-ins cannot be negative")
	}
	return l.Penalties.check()
}

func (l Limits) exempt(addr netip.Addr) bool { return within(l.Exempt, addr) }

func set[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func within(prefixes []netip.Prefix, addr netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// dropPercent returns how likely a new connection is dropped while n others are
// unauthenticated: drop_connection of OpenSSH's sshd.c.
func dropPercent(n int, l Limits) int {
	switch {
	case n < l.Start:
		return 0
	case n >= l.Full:
		return 100
	}
	return l.Rate + (100-l.Rate)*(n-l.Start)/(l.Full-l.Start)
}

// SourceOf returns what limits and penalties take for one source: an IPv4
// address or an IPv6 /64, which is the least that a site has. No address is the zero
// prefix: all unknown sources are one.
func SourceOf(addr netip.Addr) netip.Prefix {
	if !addr.IsValid() {
		return netip.Prefix{}
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is4() {
		return netip.PrefixFrom(addr, 32)
	}
	p, err := addr.Prefix(64)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// refusal says why a connection was refused; "" is none. The values label a
// metric.
type refusal string

const (
	refusedPenalty   refusal = "penalty"    // its source has to wait
	refusedSource    refusal = "per_source" // its source has too many
	refusedStartups  refusal = "startups"   // there are too many in all
	refusedHeader    refusal = "proxy_header"
	refusedGarbage   refusal = "garbage"   // begins like no protocol of ours
	refusedProtocol  refusal = "protocol"  // a protocol not served at this address
	refusedHandshake refusal = "handshake" // TLS failed
	refusedSlow      refusal = "slow"      // said too little in time
)

// gate keeps count of the unauthenticated and decides who may join them. Time
// and chance are given to it.
type gate struct {
	lim  Limits
	now  func() time.Time
	roll func() int // uniform in [0, 100)

	mu      sync.Mutex
	open    int // unauthenticated connections
	parked  int // interactive sign-ins
	sources map[netip.Prefix]*tally
	box     *penaltyBox
}

// tally counts what one source holds.
type tally struct{ open, parked int }

func newGate(lim Limits, now func() time.Time, roll func() int) *gate {
	return &gate{lim: lim, now: now, roll: roll, sources: map[netip.Prefix]*tally{}, box: newPenaltyBox(lim.Penalties)}
}

// place is one connection's place among the unauthenticated. Its fields are
// guarded by the gate's mutex.
type place struct {
	g      *gate
	addr   netip.Addr
	source netip.Prefix // zero while or when unknown
	state  placeState
}

type placeState uint8

const (
	placeOpen placeState = iota
	placeParked
	placeFree
)

// admit gives a place to a connection from addr, which is not valid for one
// whose source is not known yet.
func (g *gate) admit(addr netip.Addr) (*place, refusal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if why := g.refuseSourceLocked(addr); why != "" {
		return nil, why
	}
	if p := dropPercent(g.open, g.lim); p > 0 && g.roll() < p {
		return nil, refusedStartups
	}
	p := &place{g: g}
	g.open++
	p.ownLocked(addr)
	return p, ""
}

// attribute tells the source of a place that was admitted without one. The
// place is kept either way.
func (p *place) attribute(addr netip.Addr) refusal {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	if why := p.g.refuseSourceLocked(addr); why != "" {
		return why
	}
	p.ownLocked(addr)
	return ""
}

func (g *gate) refuseSourceLocked(addr netip.Addr) refusal {
	if !addr.IsValid() || g.lim.exempt(addr) {
		return ""
	}
	source := SourceOf(addr)
	if g.box.refuses(source, g.now()) {
		return refusedPenalty
	}
	if t := g.sources[source]; t != nil && t.open >= g.lim.PerSource {
		return refusedSource
	}
	return ""
}

func (p *place) ownLocked(addr netip.Addr) {
	if p.source = SourceOf(addr); !p.source.IsValid() {
		return
	}
	p.addr = addr
	t := p.g.sources[p.source]
	if t == nil {
		t = &tally{}
		p.g.sources[p.source] = t
	}
	t.open++
}

// park moves an unauthenticated connection to the parked ones.
func (p *place) park() error {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	if p.state != placeOpen {
		return nil
	}
	t := p.g.sources[p.source]
	full := p.g.parked >= p.g.lim.Parked
	if t != nil && t.parked >= p.g.lim.ParkedPerSource && !p.g.lim.exempt(p.addr) {
		full = true
	}
	if full {
		return fault.New(fault.Unavailable, "too many sign-ins are under way").WithHint("try again in a minute")
	}
	p.state = placeParked
	p.g.open--
	p.g.parked++
	if t != nil {
		t.open--
		t.parked++
	}
	return nil
}

// free gives the place back.
func (p *place) free() {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	t := p.g.sources[p.source]
	if t == nil {
		t = &tally{}
	}
	switch p.state {
	case placeOpen:
		p.g.open--
		t.open--
	case placeParked:
		p.g.parked--
		t.parked--
	case placeFree:
		return
	}
	p.state = placeFree
	if t.open <= 0 && t.parked <= 0 {
		delete(p.g.sources, p.source)
	}
}

// penalize adds an offence to the source's account and reports whether the
// source is refused from now on, having not been before.
func (p *place) penalize(o Offence) bool {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	if !p.source.IsValid() || p.g.lim.exempt(p.addr) {
		return false
	}
	return p.g.box.add(p.source, o, p.g.now())
}

// figures returns what the metrics show.
func (g *gate) figures() (open, parked, penalised int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open, g.parked, len(g.box.debts)
}
