//go:build linux

package main

import (
	"context"
	"fmt"
	"time"
)

// workers is how many connections the load client makes at once: enough to keep
// every core busy, few enough that no server's start-up limits matter.
const workers = 16

// measureConnect measures authenticated connections to the proxy: how many a
// second, what CPU time of the proxy each takes, and how long one takes alone.
func measureConnect(ctx context.Context, l *lab) ([]figure, error) {
	sides, err := l.both(ctx)
	if err != nil {
		return nil, err
	}
	spell := pick(l, 3*time.Second, 500*time.Millisecond)
	all, err := paired(ctx, pick(l, 5, 2), sides, func(ctx context.Context, s *side) (sample, error) {
		return connectLoad(ctx, s, spell)
	})
	if err != nil {
		return nil, err
	}
	var agreed [2]string
	for i, s := range sides {
		if agreed[i], err = s.algorithms(ctx); err != nil {
			return nil, err
		}
	}
	return []figure{
		all.compare(0, 1, "rate").named("1", "authenticated connections", perSecond, ratioAtLeast(15)).
			remark("%d at once, x/crypto load client with a certificate; agreed on %s with accessd and %s with OpenSSH. The load client takes its share of the cores.", workers, agreed[0], agreed[1]),
		all.compare(0, 1, "cpu").named("1", "proxy CPU per handshake", millis, atMost(1)).
			remark("all of the proxy's process, so the audit events of a login are in it; of sshd with its children."),
		all.compare(0, 1, "alone").named("1", "set-up of one connection alone", millis, goal{}),
	}, nil
}

// connectLoad connects for the time spell, then a few times alone.
func connectLoad(ctx context.Context, s *side, spell time.Duration) (sample, error) {
	size := s.size()
	before := treeTime(s.proxy.pid())
	op := func(ctx context.Context) error {
		c, err := s.connect(ctx)
		if err != nil {
			return err
		}
		return c.Close()
	}
	n, took, err := rate(ctx, workers, spell, op)
	if err != nil {
		return nil, err
	}
	if err := s.idle(ctx, size); err != nil {
		return nil, err
	}
	got := sample{
		"rate": float64(n) / took.Seconds(),
		"cpu":  1000 * (treeTime(s.proxy.pid()) - before).Seconds() / float64(n),
	}
	var alone []float64
	for range 10 {
		start := time.Now()
		if err := op(ctx); err != nil {
			return nil, fmt.Errorf("alone: %w", err)
		}
		alone = append(alone, 1000*time.Since(start).Seconds())
	}
	got["alone"] = median(alone)
	return got, nil
}
