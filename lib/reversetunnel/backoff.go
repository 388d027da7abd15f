package reversetunnel

import (
	"math/rand/v2"
	"time"
)

// The pauses between attempts to dial a proxy.
const (
	quickTries = 3                      // with about quickPause each
	quickPause = 100 * time.Millisecond // half to one and a half times this
	maxPause   = 30 * time.Second
	steady     = time.Minute // up for this long, a link begins anew when it fails
)

// backoff paces the attempts of one slot: a few quick ones, for a proxy that
// restarts, then ever fewer, drawn over the whole pause so that many nodes do
// not come at once.
type backoff struct {
	tries int
	draw  func(n time.Duration) time.Duration // from 0 to n, without n; nil means by chance
}

// next returns the pause before the next attempt, after one whose link was up
// for the given time.
func (b *backoff) next(up time.Duration) time.Duration {
	if up >= steady {
		b.tries = 0
	}
	draw := b.draw
	if draw == nil {
		draw = rand.N[time.Duration]
	}
	b.tries++
	if b.tries <= quickTries {
		return quickPause/2 + draw(quickPause)
	}
	doublings := min(b.tries-quickTries, 10) // beyond maxPause already
	return draw(min(quickPause<<doublings, maxPause))
}

// reset makes the next attempts quick again.
func (b *backoff) reset() { b.tries = 0 }
