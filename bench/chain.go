//go:build linux

package main

import (
	"context"
	"time"
)

// measureChain measures the way to a command on the node: jump, tunnel, inner
// handshake and exec, many at once with the load client and one after another
// with the stock client.
func measureChain(ctx context.Context, l *lab) ([]figure, error) {
	sides, err := l.both(ctx)
	if err != nil {
		return nil, err
	}
	spell := pick(l, 3*time.Second, 700*time.Millisecond)
	all, err := paired(ctx, pick(l, 5, 2), sides, func(ctx context.Context, s *side) (sample, error) {
		size, before := s.size(), s.cpu()
		n, took, err := rate(ctx, workers, spell, func(ctx context.Context) error { return s.exec(ctx, "true") })
		if err != nil {
			return nil, err
		}
		err = s.idle(ctx, size)
		return sample{"rate": float64(n) / took.Seconds(), "cpu": 1000 * (s.cpu() - before).Seconds() / float64(n)}, err
	})
	if err != nil {
		return nil, err
	}
	alone, err := paired(ctx, pick(l, 20, 3), sides, func(ctx context.Context, s *side) (sample, error) {
		start := time.Now()
		err := runStock(ctx, s.config, "true")
		return sample{"wall": time.Since(start).Seconds() * 1000}, err
	})
	if err != nil {
		return nil, err
	}
	return []figure{
		all.compare(0, 1, "rate").named("2", "jump, tunnel, inner handshake, exec: load client", perSecond, ratioAtLeast(10)).
			remark("%d at once, each over a connection of its own; the command is `true`.", workers),
		all.compare(0, 1, "cpu").named("2", "CPU of proxy, tunnel and node for it, shell included", millis, goal{}),
		alone.compare(0, 1, "wall").named("2", "the same with stock `ssh`, one after another", millis, ratioAtMost(0.7)),
	}, nil
}
