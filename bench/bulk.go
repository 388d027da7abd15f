//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// transfer is one kind of bulk transfer.
type transfer struct{ cipher, way string }

func (t transfer) rate() string { return t.cipher + " " + t.way }
func (t transfer) cpu() string  { return t.rate() + " cpu" }

// transfers are all kinds, in the order of the table.
func transfers() []transfer {
	return []transfer{{"default", "down"}, {"default", "up"}, {"gcm", "down"}, {"gcm", "up"}}
}

// bulkGoals are the ratios to reach: of the rates by cipher, and of the proxy's
// CPU time per byte.
type bulkGoals struct {
	side  int // index of accessd's side among those measured
	apart int // the same of the one whose proxy is no authority
	words string
	rate  map[string]float64
	cpu   float64
}

// measureBulk measures what one channel of the stock client carries through the
// chain, down and up, with the client's own choice of cipher and with AES-GCM on
// every leg, and what CPU time that takes of the proxy: of one that is nothing else,
// as OpenSSH's is, and of one that is the authority, too, which keeps the log and the
// recordings of these sessions in the same process.
func measureBulk(ctx context.Context, l *lab) ([]figure, error) {
	sides, err := l.both(ctx)
	if err != nil {
		return nil, err
	}
	plain, err := l.plain(ctx)
	if err != nil {
		return nil, err
	}
	size := pick(l, 128, 32)
	for _, plain := range []bool{false, true} {
		alone, err := l.apart(ctx, plain)
		if err != nil {
			return nil, err
		}
		sides = append(sides, alone)
	}
	all, err := paired(ctx, pick(l, 5, 1), append(sides, plain), func(ctx context.Context, s *side) (sample, error) {
		return bulk(ctx, s, size)
	})
	if err != nil {
		return nil, err
	}
	var rates, cpu []figure
	for _, t := range transfers() {
		for _, g := range []bulkGoals{
			{0, 2, "TLS", map[string]float64{"default": 1.5, "gcm": 0.9}, 1.2},
			{4, 3, "plain", map[string]float64{"default": 2, "gcm": 1}, 1.05},
		} {
			budget, words := "3", "client's own ciphers"
			if t.cipher == "gcm" {
				budget, words = "4", "AES-GCM on every leg"
				cpu = append(cpu, all.compare(g.apart, 1, t.cpu()).named("5",
					fmt.Sprintf("proxy CPU, bulk %s, %s, %s data", t.way, words, g.words), cpuPerGiB, ratioAtMost(g.cpu)),
					all.compare(g.side, 1, t.cpu()).named("5", "the same where the proxy is the authority, too", cpuPerGiB, goal{}))
			}
			rates = append(rates, all.compare(g.side, 1, t.rate()).named(budget,
				fmt.Sprintf("bulk %s, %s, %s data", t.way, words, g.words), mibPerS, ratioAtLeast(g.rate[t.cipher])))
		}
	}
	rates[0] = rates[0].remark("%d MiB a transfer, one channel of the stock client; from the first byte, not from the connection. \"TLS data\" and \"plain data\" say what is around the node's data connections; OpenSSH's tunnel is the same in both rows.", size)
	cpu[0] = cpu[0].remark("of a proxy that is nothing else, as OpenSSH's is. Where it is the authority, too, one process also keeps, indexes and proves the events and the recordings of these sessions; the rates above are of such a one.")
	return append(rates, cpu...), nil
}

// bulk makes one transfer of each kind.
func bulk(ctx context.Context, s *side, size int) (sample, error) {
	got := sample{}
	for _, t := range transfers() {
		config := s.config
		if t.cipher == "gcm" {
			config = s.gcm
		}
		move := bulkDown
		if t.way == "up" {
			move = bulkUp
		}
		took, cpu, err := move(ctx, s, config, size)
		if err != nil {
			return nil, fmt.Errorf("bulk %s: %w", t.rate(), err)
		}
		got[t.rate()] = float64(size) / took.Seconds()
		got[t.cpu()] = cpu.Seconds() / (float64(size) / 1024)
	}
	return got, nil
}

// meter starts a watch; what it returns tells the time since and the CPU time that
// the proxy has used since.
func meter(s *side) func() (took, cpu time.Duration) {
	start, before := time.Now(), treeTime(s.proxy.pid())
	return func() (took, cpu time.Duration) { return time.Since(start), treeTime(s.proxy.pid()) - before }
}

// bulkDown copies so many MiB from the node and returns how long that took, and
// the proxy's CPU time.
func bulkDown(ctx context.Context, s *side, config string, size int) (took, cpu time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return down(s, stock(ctx, config, "n1", fmt.Sprintf("echo go >&2; exec dd if=/dev/zero bs=65536 count=%d status=none", size*16)))
}

// down runs a command of the stock client, which says "go" on stderr before it
// sends, and returns how long that took from then on, and the CPU time of the proxy.
func down(s *side, cmd *exec.Cmd) (took, cpu time.Duration, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return 0, 0, err
	}
	defer null.Close()
	cmd.Stdout = null // no pipe: the client's work alone is measured
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return 0, 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	line, readErr := bufio.NewReader(stderr).ReadString('\n')
	used := meter(s)
	rest, _ := io.ReadAll(stderr)
	err = cmd.Wait()
	took, cpu = used()
	return took, cpu, transferred(line, "go\n", string(rest), err, readErr)
}

// bulkUp copies so many MiB to the node and returns the same.
func bulkUp(ctx context.Context, s *side, config string, size int) (took, cpu time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := stock(ctx, config, "n1", "echo go; cat >/dev/null; echo done")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	in, out, err := pipes(cmd)
	if err != nil {
		return 0, 0, err
	}
	defer out.Close()
	lines := bufio.NewReader(out)
	line, readErr := lines.ReadString('\n')
	used := meter(s)
	block := make([]byte, 64<<10)
	for range size * 16 {
		if _, err = in.Write(block); err != nil {
			break
		}
	}
	in.Close()
	last, _ := lines.ReadString('\n')
	took, cpu = used()
	waited := cmd.Wait()
	return took, cpu, transferred(line+last, "go\ndone\n", stderr.String(), waited, err, readErr)
}

// transferred returns nil when a transfer ended as it should, having said want.
func transferred(said, want, stderr string, errs ...error) error {
	err := errors.Join(errs...)
	if err == nil && said != want {
		err = fmt.Errorf("said %q, want %q", said, want)
	}
	if err != nil {
		return fmt.Errorf("ssh: %w: %s", err, strings.TrimSpace(stderr))
	}
	return nil
}
