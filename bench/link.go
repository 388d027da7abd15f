//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"time"
)

// measureLink measures the echo of keys while another session of the same user
// fills the node's slow link.
func measureLink(ctx context.Context, l *lab) ([]figure, error) {
	if !l.link {
		return nil, errors.New("switched off by -link=false")
	}
	w, err := newWire(ctx)
	if err != nil {
		return nil, err
	}
	defer w.close()
	return l.own(func() ([]figure, error) {
		p, err := l.here()
		if err != nil {
			return nil, err
		}
		p = place{host: wireProxy, atNode: append(w.atNode(), p.atNode...)}
		a, err := l.startAccessd(ctx, p, cluster{})
		if err != nil {
			return nil, err
		}
		b, err := l.startOpenSSH(ctx, p)
		if err != nil {
			return nil, err
		}
		return fullLink(ctx, l, []*side{a, b})
	})
}

func fullLink(ctx context.Context, l *lab, sides []*side) ([]figure, error) {
	trip, err := roundTrip(ctx)
	if err != nil {
		return nil, err
	}
	var idle, full [2]float64
	for i, s := range sides {
		if idle[i], full[i], err = strokesOnFullLink(ctx, s, pick(l, 3*time.Second, time.Second), pick(l, 12*time.Second, 2*time.Second)); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return []figure{
		figure{accessd: full[0], openssh: full[1], ratios: []float64{full[0] / full[1]}}.
			named("7", "keystroke echo on a full 20 Mbit/s link, p99", millis, atMost(trip+15)).
			remark("a link of 20 Mbit/s and 25 ms each way with fair queueing of flows, emulated between two TUN devices by the bench; a measured round trip takes %.1f ms, which the goal's 15 ms are added to. Another session reads `/dev/zero` from the node meanwhile.", trip),
		figure{accessd: idle[0], openssh: idle[1], ratios: []float64{idle[0] / idle[1]}}.
			named("7", "the same with the link idle, p50", millis, goal{}),
	}, nil
}

// roundTrip returns the median time, in milliseconds, in which the far end of the
// wire refuses a connection to a port nobody listens on.
func roundTrip(ctx context.Context) (float64, error) {
	var trips []float64
	for range 9 {
		start := time.Now()
		c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(wireNode, "9"))
		if err == nil {
			c.Close()
			return 0, errors.New("somebody listens on the far end's discard port")
		}
		trips = append(trips, 1000*time.Since(start).Seconds())
	}
	return median(trips), nil
}

// strokesOnFullLink returns the median echo with the link idle, and the 99th
// percentile with it full, in milliseconds.
func strokesOnFullLink(ctx context.Context, s *side, fill, spell time.Duration) (idle, full float64, err error) {
	k, err := openKeyboard(ctx, s.config)
	if err != nil {
		return 0, 0, err
	}
	defer k.close()
	quiet, err := k.press(20)
	if err != nil {
		return 0, 0, err
	}
	reader, err := readForEver(ctx, s.config)
	if err != nil {
		return 0, 0, err
	}
	defer endClient(reader)
	pause(ctx, fill) // until the queues on the way are as full as they get
	var busy []float64
	for start := time.Now(); time.Since(start) < spell; {
		one, err := k.press(1)
		if err != nil {
			return 0, 0, err
		}
		busy = append(busy, one...)
	}
	return median(quiet), quantile(busy, 0.99), nil
}

// readForEver starts a client that reads zeros from the node; they flow when it
// returns.
func readForEver(ctx context.Context, config string) (*exec.Cmd, error) {
	cmd := stock(ctx, config, "n1", "echo go >&2; exec cat /dev/zero")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if line, err := bufio.NewReader(stderr).ReadString('\n'); err != nil {
		endClient(cmd)
		return nil, fmt.Errorf("start a reader: %w: %s", err, line)
	}
	return cmd, nil
}

func endClient(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}
