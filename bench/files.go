//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// smallFiles is how many files a tree of small ones has, and their size in bytes.
const (
	smallFiles    = 200
	smallFileSize = 4 << 10
)

// measureFiles measures what the stock sftp client carries through the chain: one
// large file down and up, and a tree of small files, each of which is an event.
func measureFiles(ctx context.Context, l *lab) ([]figure, error) {
	sides, err := l.both(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "accessd-bench-files-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	size := pick(l, 256, 32) << 20
	large, tree := filepath.Join(dir, "large"), filepath.Join(dir, "tree")
	if err := os.WriteFile(large, make([]byte, size), 0o600); err != nil {
		return nil, err
	}
	if err := writeTree(tree); err != nil {
		return nil, err
	}
	all, err := paired(ctx, pick(l, 5, 1), sides, func(ctx context.Context, s *side) (sample, error) {
		got := sample{}
		for _, t := range []struct{ name, batch string }{
			{"down", "get " + large + " /dev/null"},
			{"up", "put " + large + " " + filepath.Join(dir, "copy")},
			{"small", "put -R " + tree + " " + filepath.Join(dir, "trees")},
		} {
			if err := os.RemoveAll(filepath.Join(dir, "trees")); err != nil {
				return nil, err
			}
			if err := os.Mkdir(filepath.Join(dir, "trees"), 0o700); err != nil {
				return nil, err
			}
			took, err := sftpBatch(ctx, s, t.batch)
			if err != nil {
				return nil, fmt.Errorf("sftp %s: %w", t.name, err)
			}
			got[t.name] = float64(size) / (1 << 20) / took.Seconds()
			if t.name == "small" {
				got[t.name] = smallFiles / took.Seconds()
			}
		}
		return got, nil
	})
	if err != nil {
		return nil, err
	}
	return []figure{
		all.compare(0, 1, "down").named("–", "one file down, stock sftp", mibPerS, goal{}).
			remark("%d MiB, with the time to connect; accessd hashes what passes and records it.", size>>20),
		all.compare(0, 1, "up").named("–", "one file up, stock sftp", mibPerS, goal{}),
		all.compare(0, 1, "small").named("–", "small files up, stock sftp", perSecond, goal{}).
			remark("%d files of %d KiB; accessd records each opening, each transfer and each change of attributes before the client hears of it.", smallFiles, smallFileSize>>10),
	}, nil
}

func writeTree(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for i := range smallFiles {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%03d", i)), make([]byte, smallFileSize), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// sftpBatch runs one command of the stock sftp client and returns how long it
// took, connecting included.
func sftpBatch(ctx context.Context, s *side, command string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sftp", "-q", "-F", s.config, "-b", "-", "n1")
	cmd.Stdin = strings.NewReader(command + "\n")
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return time.Since(start), nil
}

// measureChannels measures what one more session on a connection takes that has
// some already.
func measureChannels(ctx context.Context, l *lab) ([]figure, error) {
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
		many := pick(l, 50, 10)
		var held [2]footprints
		for i, s := range []*side{a, b} {
			if held[i], err = l.holdChannels(ctx, s, many); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
		}
		return []figure{
			pair(held[0].node/1000, held[1].node/1000).named("8", "memory per further session of one connection, at the node", kb, goal{}).
				remark("%d sessions of `cat` without a terminal on one connection, without the processes; OpenSSH's with theirs.", many),
			pair(held[0].proxy/1000, held[1].proxy/1000).named("8", "the same, at the proxy", kb, goal{}),
		}, nil
	})
}

// holdChannels opens n sessions on one connection and returns what each holds.
func (l *lab) holdChannels(ctx context.Context, s *side, n int) (footprints, error) {
	c, err := s.chain(ctx)
	if err != nil {
		return footprints{}, err
	}
	defer c.close()
	open := func() error {
		session, err := c.inner.NewSession()
		if err != nil {
			return fmt.Errorf("open session: %w", err)
		}
		if _, err := session.StdinPipe(); err != nil {
			return err
		}
		return session.Start("exec cat")
	}
	if err := open(); err != nil { // the first has the connection's own
		return footprints{}, err
	}
	before, err := l.settled(ctx, s.proxy.pid(), s.node.pid())
	if err != nil {
		return footprints{}, err
	}
	for range n {
		if err := open(); err != nil {
			return footprints{}, err
		}
	}
	after, err := l.settled(ctx, s.proxy.pid(), s.node.pid())
	if err != nil {
		return footprints{}, err
	}
	return footprints{(after[0] - before[0]) / float64(n), (after[1] - before[1]) / float64(n)}, nil
}
