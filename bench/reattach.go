//go:build linux

package main

import (
	"context"
	"fmt"
	"time"
)

// measureReattach kills a proxy with many nodes and measures what it takes until
// all of them are back at the next one on the same address.
func measureReattach(ctx context.Context, l *lab) ([]figure, error) {
	return l.own(func() ([]figure, error) {
		n := pick(l, 300, 24)
		here := place{host: "127.0.0.1"}
		a, err := l.startAuthority(ctx, here, cluster{})
		if err != nil {
			return nil, err
		}
		join, err := a.joinArgs(ctx, "node", n)
		if err != nil {
			return nil, err
		}
		if err := l.joinNodes(ctx, "many", n, join); err != nil {
			return nil, err
		}
		_ = a.proxy.cmd.Process.Kill()
		<-a.proxy.done
		start := time.Now()
		if err := a.start(ctx, here, cluster{}, "--data-dir", a.dir, "--roles", "auth,proxy", "--listen", a.addr); err != nil {
			return nil, err
		}
		before := cpuTime(a.proxy.pid())
		for back := 0; back < n; back = a.online(ctx) {
			if time.Since(start) > patience {
				return nil, fmt.Errorf("%d of %d nodes are back after %v", back, n, patience)
			}
			pause(ctx, 100*time.Millisecond) // asking takes CPU, too
		}
		took, cpu := time.Since(start), cpuTime(a.proxy.pid())-before
		return []figure{
			figure{accessd: took.Seconds()}.named("10", fmt.Sprintf("%d nodes re-attached after the proxy was killed", n), seconds, goal{}).
				remark("from the kill on, with the start of the next proxy in it; the goal is for 10,000 nodes, which this machine does not run beside a proxy."),
			figure{accessd: 1000 * cpu.Seconds() / float64(n)}.named("10", "proxy CPU of it per node", millis, goal{}).
				remark("auth and proxy in one process, until the last node was seen online; asking for that is in it."),
		}, nil
	})
}
