//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"
)

// frugal makes accessd's collector keep next to no garbage, so that what a
// process's memory grows by is what it holds.
func frugal() []string { return []string{"GOGC=10"} }

// measureSessions measures what an open session takes: memory at the proxy and at
// the node, and the node's CPU time to open it.
func measureSessions(ctx context.Context, l *lab) ([]figure, error) {
	return l.own(func() ([]figure, error) {
		p, err := l.here()
		if err != nil {
			return nil, err
		}
		a, err := l.startAccessd(ctx, p, cluster{env: frugal(), apart: true})
		if err != nil {
			return nil, err
		}
		b, err := l.openssh(ctx)
		if err != nil {
			return nil, err
		}
		var held [2]footprints
		many, few := pick(l, 100, 10), pick(l, 20, 3) // an sshd is no small thing
		for i, s := range []*side{a, b} {
			if held[i], err = l.holdSessions(ctx, s, []int{many, few}[i]); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
		}
		cpu, err := paired(ctx, pick(l, 3, 1), []*side{a, b}, func(ctx context.Context, s *side) (sample, error) {
			return openSessions(ctx, s, pick(l, 20, 6))
		})
		if err != nil {
			return nil, err
		}
		proxy, node := pair(held[0].proxy/1000, held[1].proxy/1000), pair(held[0].node/(1<<20), held[1].node/(1<<20))
		return []figure{
			proxy.named("8", "memory per open session at the proxy", kb, atMost(80)).
				remark("growth of the proxy's proportional set size over %d sessions (OpenSSH: %d), each over a connection of its own; accessd's processes run with GOGC=10, so that what they hold is measured and not what is yet to be collected.", many, few),
			node.named("8", "memory per open session at the node", mib, atMost(3)).
				remark("without its shell, with a terminal, and recorded; OpenSSH records nothing."),
			cpu.compare(0, 1, "cpu").named("9", "node CPU to open a session with a terminal", millis, atMost(20)).
				remark("inner handshake, decision, events and terminal; without the shell itself. OpenSSH's figure has the shell in it, which is one of its own processes' child there."),
		}, nil
	})
}

// pair returns a figure of two values and their ratio.
func pair(accessd, openssh float64) figure {
	return figure{accessd: accessd, openssh: openssh, ratios: []float64{accessd / openssh}}
}

// footprints are bytes per session.
type footprints struct{ proxy, node float64 }

// holdSessions opens n sessions, each over a connection of its own, and returns
// what each holds.
func (l *lab) holdSessions(ctx context.Context, s *side, n int) (footprints, error) {
	for range 3 { // what is allocated once is not a session's
		if err := s.exec(ctx, "true"); err != nil {
			return footprints{}, err
		}
	}
	before, err := l.settled(ctx, s.proxy.pid(), s.node.pid())
	if err != nil {
		return footprints{}, err
	}
	for range n {
		c, err := s.chain(ctx)
		if err != nil {
			return footprints{}, err
		}
		defer c.close()
		session, err := c.terminal()
		if err != nil {
			return footprints{}, err
		}
		if _, err := session.StdinPipe(); err != nil {
			return footprints{}, err
		}
		if err := session.Start("exec cat"); err != nil {
			return footprints{}, fmt.Errorf("start a session: %w", err)
		}
	}
	after, err := l.settled(ctx, s.proxy.pid(), s.node.pid())
	if err != nil {
		return footprints{}, err
	}
	return footprints{(after[0] - before[0]) / float64(n), (after[1] - before[1]) / float64(n)}, nil
}

// terminal opens a session with a terminal.
func (c chain) terminal() (*ssh.Session, error) {
	session, err := c.inner.NewSession()
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	if err := session.RequestPty("xterm", 24, 80, ssh.TerminalModes{}); err != nil {
		return nil, fmt.Errorf("ask for a terminal: %w", err)
	}
	return session, nil
}

// settled returns the memory of processes and their kind once they have given back
// what they do not need: the least of several seconds, in bytes.
func (l *lab) settled(ctx context.Context, pids ...int) ([]float64, error) {
	least := make([]float64, len(pids))
	for round := range pick(l, 12, 2) {
		pause(ctx, 500*time.Millisecond)
		for i, pid := range pids {
			n, err := treePSS(pid)
			if err != nil {
				return nil, err
			}
			if round == 0 || n < least[i] {
				least[i] = n
			}
		}
	}
	return least, nil
}

// openSessions opens and ends n sessions and returns the node's CPU time of each.
func openSessions(ctx context.Context, s *side, n int) (sample, error) {
	size := s.size()
	before := nodeTime(s)
	for range n {
		if err := oneTerminal(ctx, s); err != nil {
			return nil, err
		}
	}
	if err := s.idle(ctx, size); err != nil {
		return nil, err
	}
	return sample{"cpu": 1000 * (nodeTime(s) - before).Seconds() / float64(n)}, nil
}

func oneTerminal(ctx context.Context, s *side) error {
	c, err := s.chain(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	defer time.AfterFunc(patience, c.close).Stop()
	session, err := c.terminal()
	if err != nil {
		return err
	}
	return session.Run("true")
}

// nodeTime returns the CPU time of the node's own work. accessd's node is one
// process whose children are shells; sshd's children are sshd.
func nodeTime(s *side) time.Duration {
	if s.name == "OpenSSH" {
		return treeTime(s.node.pid())
	}
	return cpuTime(s.node.pid())
}
