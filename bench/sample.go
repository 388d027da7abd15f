//go:build linux

package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// median returns the middle of values, NaN of none.
func median(values []float64) float64 { return quantile(values, 0.5) }

// quantile returns the value below which the part q of values lies.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

// sample is what one round measured of one side, by name.
type sample map[string]float64

// samples are all rounds of each side, in the order the sides were given.
type samples [][]sample

// paired measures each side in turn, as often as rounds says; every other round
// goes the other way round, so that neither side always comes first.
func paired(ctx context.Context, rounds int, sides []*side, measure func(context.Context, *side) (sample, error)) (samples, error) {
	all := make(samples, len(sides))
	for round := range rounds {
		for i := range sides {
			if round%2 == 1 {
				i = len(sides) - 1 - i
			}
			got, err := measure(ctx, sides[i])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", sides[i].name, err)
			}
			all[i] = append(all[i], got)
		}
	}
	return all, nil
}

// of returns one side's values of the named measure.
func (s samples) of(side int, name string) []float64 {
	var list []float64
	for _, one := range s[side] {
		list = append(list, one[name])
	}
	return list
}

// compare returns a figure with the medians of the named measure of two sides and
// the ratio of each round.
func (s samples) compare(accessd, openssh int, name string) figure {
	a, b := s.of(accessd, name), s.of(openssh, name)
	f := figure{accessd: median(a), openssh: median(b)}
	for i := range a {
		f.ratios = append(f.ratios, a[i]/b[i])
	}
	return f
}

// rate runs op from that many workers for the time d, lets those under way
// finish, and returns how many were done in how long. The first error ends it.
func rate(ctx context.Context, workers int, d time.Duration, op func(context.Context) error) (int, time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var n atomic.Int64
	start := time.Now()
	for range workers {
		wg.Go(func() {
			for ctx.Err() == nil && time.Since(start) < d {
				if err := op(ctx); err != nil {
					cancel(err)
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	return int(n.Load()), elapsed, context.Cause(ctx)
}

// patience bounds every wait for something to start, to stop or to settle.
const patience = 60 * time.Second

// await asks done every few milliseconds until it says true.
func await(ctx context.Context, what string, done func() bool) error {
	limit := time.After(patience)
	for tick := time.Tick(5 * time.Millisecond); !done(); {
		select {
		case <-tick:
		case <-limit:
			return fmt.Errorf("%s: not within %v", what, patience)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// pause waits for d.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
