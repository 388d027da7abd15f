//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// measureFootprint measures the binary, how soon an all-in-one server on an
// existing data directory serves, and what it takes when idle.
func measureFootprint(ctx context.Context, l *lab) ([]figure, error) {
	info, err := os.Stat(l.accessd)
	if err != nil {
		return nil, err
	}
	dir, err := l.folder()
	if err != nil {
		return nil, err
	}
	if _, _, err := startAll(ctx, l, dir, 0); err != nil { // makes the cluster
		return nil, err
	}
	var ready, resident []float64
	rest := pick(l, 6*time.Second, time.Second)
	for range pick(l, 3, 2) {
		took, memory, err := startAll(ctx, l, dir, rest)
		if err != nil {
			return nil, err
		}
		ready, resident = append(ready, took), append(resident, memory)
	}
	return []figure{
		figure{accessd: float64(info.Size()) / 1e6}.named("17", "size of the binary", mb, atMost(60)),
		figure{accessd: median(ready)}.named("17", "ready, all-in-one server on an existing data directory", seconds, atMost(1)),
		figure{accessd: median(resident)}.named("17", "idle all-in-one server, resident", mb, atMost(100)).
			remark("proportional set size %v after it was ready.", rest),
	}, nil
}

// startAll starts a server of all roles on dir, and stops it after a rest. It
// returns the seconds until it was ready and its memory after the rest, in MB.
func startAll(ctx context.Context, l *lab, dir string, rest time.Duration) (ready, resident float64, err error) {
	mark := len(l.processes)
	defer l.end(mark) // it has stopped, unless something failed
	start := time.Now()
	p, err := l.launch(spec{what: "accessd", args: []string{l.accessd, "start", "--data-dir", dir, "--listen", "127.0.0.1:0", "--node-name", "n1"}})
	if err != nil {
		return 0, 0, err
	}
	if _, err := p.awaitReady(ctx); err != nil {
		return 0, 0, err
	}
	ready = time.Since(start).Seconds()
	pause(ctx, rest)
	bytes, err := pss(p.pid())
	if err != nil {
		return 0, 0, fmt.Errorf("memory of the server: %w", err)
	}
	p.stop(patience) // in order, so that the next start finds what a restart finds
	return ready, bytes / 1e6, nil
}
