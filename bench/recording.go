//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	megabytesPerHour unit = " MB/h"
	eachBytes        unit = " B"
)

// unrecorded is a role whose sessions are not recorded.
const unrecorded = `kind: role
name: unrecorded
allow:
  - {nodes: {"*": "*"}, logins: ["{{user.logins}}"], actions: ["*"]}
options: {record: off}
`

// measureRecording measures what it costs that sessions are recorded: the same
// streams and session starts with and without, in turn, and what is kept.
func measureRecording(ctx context.Context, l *lab) ([]figure, error) {
	return l.own(func() ([]figure, error) {
		a, on, off, err := l.startRecorded(ctx)
		if err != nil {
			return nil, err
		}
		size := pick(l, 128, 32)
		all, err := paired(ctx, pick(l, 7, 1), []*side{on, off}, func(ctx context.Context, s *side) (sample, error) {
			return a.streams(ctx, s, size)
		})
		if err != nil {
			return nil, err
		}
		starts, err := paired(ctx, pick(l, 9, 1), []*side{on, off}, func(ctx context.Context, s *side) (sample, error) {
			return a.firstBytes(ctx, s, 20)
		})
		if err != nil {
			return nil, err
		}
		hour, err := a.recordedHour(ctx, on, pick(l, 30*time.Second, 10*time.Second))
		if err != nil {
			return nil, err
		}
		added := median(starts.of(0, "first")) - median(starts.of(1, "first"))
		return []figure{
			toUnrecorded(all, "exec").named("16", "`yes` without a terminal, recorded", mibPerS, ratioAtLeast(0.85)).
				remark("%d MiB through the stock client. The ratio is to the same stream in the same round with `record: off`. Recorder, compression, upload, store, proxy and client share this machine's cores.", size),
			toUnrecorded(all, "terminal").named("16", "`yes` in a terminal, recorded", mibPerS, ratioAtLeast(0.85)).
				remark("a quarter of that; the terminal makes lines of it."),
			toUnrecorded(all, "cpu").named("16", "node CPU of such a stream, recorded", cpuPerGiB, goal{}).
				remark("without a terminal; the ratio is to `record: off`."),
			toUnrecorded(starts, "first").named("14", "a session on an open connection until its first byte, recorded", millis, goal{}).
				remark("one at a time; the ratio is to `record: off`."),
			figure{accessd: added}.named("14", "of which recording", millis, atMost(1)),
			figure{accessd: hour}.named("–", "disk for a busy recorded hour", megabytesPerHour, goal{}).
				remark("a listing of 24 lines every second in a terminal, as stored; taken from a shorter session."),
		}, nil
	})
}

// toUnrecorded compares the first side with the second, which is no OpenSSH.
func toUnrecorded(s samples, name string) figure {
	f := s.compare(0, 1, name)
	f.openssh = 0
	return f
}

// startRecorded starts a cluster with one node and two users, of whom one is not
// recorded.
func (l *lab) startRecorded(ctx context.Context) (a *authority, on, off *side, err error) {
	p, err := l.here()
	if err != nil {
		return nil, nil, nil, err
	}
	if a, err = l.startAuthority(ctx, p, cluster{}); err != nil {
		return nil, nil, nil, err
	}
	on = &side{name: "accessd", proxy: a.proxy, addr: a.addr, user: "bench", login: l.login, target: "n1:22"}
	if err := a.addNode(ctx, p, cluster{}, on); err != nil {
		return nil, nil, nil, err
	}
	role := filepath.Join(a.home, "role.yaml")
	if err := os.WriteFile(role, []byte(unrecorded), 0o600); err != nil {
		return nil, nil, nil, err
	}
	if _, err := a.admin(ctx, "roles", "apply", "-f", role); err != nil {
		return nil, nil, nil, err
	}
	if err := a.addUser(ctx, on); err != nil {
		return nil, nil, nil, err
	}
	second, apart := *on, *a
	second.name, second.user, second.role = "accessd, not recorded", "quiet", "unrecorded"
	if apart.home, err = l.folder(); err != nil {
		return nil, nil, nil, err
	}
	return a, on, &second, apart.addUser(ctx, &second)
}

// streams sends so many MiB of "yes" with the stock client without a terminal, and
// a quarter of it with one.
func (a *authority) streams(ctx context.Context, s *side, size int) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	before := nodeTime(s)
	took, _, err := down(s, stock(ctx, s.config, "n1", fmt.Sprintf("echo go >&2; yes accessd | head -c %d", size<<20)))
	if err != nil {
		return nil, err
	}
	if err := a.uploaded(ctx, s); err != nil {
		return nil, err
	}
	used := nodeTime(s) - before
	lines, err := throughTerminal(ctx, s, size<<18)
	if err != nil {
		return nil, err
	}
	// What one stream left to upload is not the next one's.
	return sample{
		"exec": float64(size) / took.Seconds(), "cpu": used.Seconds() / (float64(size) / 1024),
		"terminal": float64(size) / 4 / lines.Seconds(),
	}, a.uploaded(ctx, s)
}

// throughTerminal sends n bytes of "yes" through a terminal and returns how long
// that took from the first byte on.
func throughTerminal(ctx context.Context, s *side, n int) (time.Duration, error) {
	c, err := s.chain(ctx)
	if err != nil {
		return 0, err
	}
	defer c.close()
	defer time.AfterFunc(patience, c.close).Stop()
	session, err := c.terminal()
	if err != nil {
		return 0, err
	}
	out, err := session.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := session.Start(fmt.Sprintf("stty -opost; yes accessd | head -c %d", n)); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		return 0, err
	}
	start := time.Now()
	got, err := io.Copy(io.Discard, out)
	if err == nil && got != int64(n)-1 {
		err = fmt.Errorf("%d bytes of %d came through the terminal", got+1, n)
	}
	return time.Since(start), errors.Join(err, session.Wait())
}

// uploaded waits until nothing of a recording is left on the node.
func (a *authority) uploaded(ctx context.Context, s *side) error {
	args := s.node.cmd.Args
	spool := filepath.Join(args[slices.Index(args, "--data-dir")+1], "recordings-spool")
	return await(ctx, "recordings are uploaded", func() bool {
		n := 0
		_ = filepath.WalkDir(spool, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && d.Name() != "lock" && d.Name() != "reserve" {
				n++
			}
			return nil
		})
		return n == 0
	})
}

// firstBytes opens sessions one after the other on one connection, and returns the
// median time until the first byte of each. Each begins when the one before is in
// the store.
func (a *authority) firstBytes(ctx context.Context, s *side, n int) (sample, error) {
	c, err := s.chain(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	defer time.AfterFunc(patience, c.close).Stop()
	var times []float64
	for range n {
		start := time.Now()
		session, err := c.inner.NewSession()
		if err != nil {
			return nil, err
		}
		out, err := session.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := session.Start("echo"); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
			return nil, err
		}
		times = append(times, 1000*time.Since(start).Seconds())
		if err := session.Wait(); err != nil {
			return nil, err
		}
		if err := a.uploaded(ctx, s); err != nil {
			return nil, err
		}
	}
	return sample{"first": median(times)}, nil
}

// recordedHour records a busy terminal for a spell and returns the megabytes that
// an hour of it would take in the store.
func (a *authority) recordedHour(ctx context.Context, s *side, spell time.Duration) (float64, error) {
	c, err := s.chain(ctx)
	if err != nil {
		return 0, err
	}
	defer c.close()
	session, err := c.terminal()
	if err != nil {
		return 0, err
	}
	const listing = "ls -l /usr/bin | head -$((24*(i+1))) | tail -24; sleep 1; i=$((i+1))"
	if err := session.Run(fmt.Sprintf("i=0; while test $i -lt %d; do %s; done", int(spell.Seconds()), listing)); err != nil {
		return 0, err
	}
	var bytes float64
	err = await(ctx, "the session's end is in the log", func() bool {
		text, err := a.admin(ctx, "audit", "ls", "--event", "session.end", "--limit", "1", "--format", "json")
		var ends []struct {
			Bytes    float64 `json:"recording_bytes"`
			Duration float64 `json:"duration_ms"`
		}
		if err != nil || json.Unmarshal([]byte(text), &ends) != nil || len(ends) == 0 || ends[0].Duration < 900*spell.Seconds() {
			return false
		}
		bytes = ends[0].Bytes
		return true
	})
	return bytes / 1e6 * (time.Hour.Seconds() / spell.Seconds()), err
}
