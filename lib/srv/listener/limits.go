package listener

import (
	"net/netip"
	"time"
)

// Limits bounds peers that have not authenticated. A zero field means its
// default.
type Limits struct {
	// From Start unauthenticated connections on, a new one is dropped with a
	// probability of Rate percent, which grows to all of them at Full, as
	// OpenSSH's MaxStartups does. 0 means 100, 30 and 1000.
	Start, Rate, Full int
	// PerSource bounds the unauthenticated connections of one source, an IPv4
	// address or an IPv6 /64. 0 means 50.
	PerSource int
	// Parked and ParkedPerSource bound the interactive sign-ins under way. 0
	// means 200 and 10.
	Parked, ParkedPerSource int
	// Penalties make a source that fails wait.
	Penalties Penalties
	// Exempt sources are never penalised and know no PerSource bound, such as
	// the shared address of an office.
	Exempt []netip.Prefix
}

// Penalties says how long a source is refused for what it did. The time of all
// its offences adds up; nothing is refused before it has come to Min. The zero
// value of a field means OpenSSH's figure.
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
	// fit. Otherwise those are let in; what is remembered is never forgotten
	// early.
	DenyOverflow bool
}
