//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// measureEcho measures how long a key takes to appear: one byte at a time through
// the stock client to a terminal on the node and back.
func measureEcho(ctx context.Context, l *lab) ([]figure, error) {
	sides, err := l.both(ctx)
	if err != nil {
		return nil, err
	}
	keyboards := map[*side]*keyboard{}
	for _, s := range sides {
		k, err := openKeyboard(ctx, s.config)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		defer k.close()
		if _, err := k.press(100); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		keyboards[s] = k
	}
	pressed := map[*side][]float64{}
	strokes := pick(l, 200, 100)
	all, err := paired(ctx, pick(l, 15, 5), sides, func(_ context.Context, s *side) (sample, error) {
		times, err := keyboards[s].press(strokes)
		pressed[s] = append(pressed[s], times...)
		return sample{"p50": median(times), "p99": quantile(times, 0.99)}, err
	})
	if err != nil {
		return nil, err
	}
	half, tail := all.compare(0, 1, "p50"), all.compare(0, 1, "p99")
	half.accessd, half.openssh = median(pressed[sides[0]]), median(pressed[sides[1]])
	tail.accessd, tail.openssh = quantile(pressed[sides[0]], 0.99), quantile(pressed[sides[1]], 0.99)
	return []figure{
		half.named("6", "keystroke echo, p50", millis, ratioAtMost(0.8)).
			remark("%d keys a side, one at a time, stock client, raw terminal with `cat` behind it; both quantiles are of all keys together.", len(pressed[sides[0]])),
		tail.named("6", "keystroke echo, p99", millis, atMost(0.8)),
	}, nil
}

// keyboard is an open terminal on the node that sends back what it gets.
type keyboard struct {
	cmd     *exec.Cmd
	in, out *os.File
}

func openKeyboard(ctx context.Context, config string) (*keyboard, error) {
	k := &keyboard{cmd: stock(ctx, config, "-tt", "n1", "stty raw -echo; echo READY; exec cat")}
	var stderr strings.Builder
	k.cmd.Stderr = &stderr
	var err error
	if k.in, k.out, err = pipes(k.cmd); err != nil {
		return nil, err
	}
	var seen []byte
	for buf := make([]byte, 256); !strings.HasSuffix(string(seen), "READY\n"); {
		n, err := k.out.Read(buf)
		if err != nil {
			k.close()
			return nil, fmt.Errorf("open terminal: %w: %s%s", err, seen, stderr.String())
		}
		seen = append(seen, buf[:n]...)
	}
	return k, nil
}

// press types n keys, each when the one before was seen, and returns the time that
// each took, in milliseconds.
func (k *keyboard) press(n int) ([]float64, error) {
	times := make([]float64, 0, n)
	key := []byte{'x'}
	for range n {
		start := time.Now()
		if _, err := k.in.Write(key); err != nil {
			return nil, fmt.Errorf("press a key: %w", err)
		}
		if _, err := k.out.Read(key); err != nil {
			return nil, fmt.Errorf("see a key: %w", err)
		}
		times = append(times, 1000*time.Since(start).Seconds())
	}
	return times, nil
}

func (k *keyboard) close() {
	k.in.Close()
	_ = k.cmd.Process.Kill()
	_ = k.cmd.Wait()
	k.out.Close()
}
