//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/names"
)

// measureAudit measures what a log of many events takes on disk, and how fast an
// auditor's verifier reads all of it.
func measureAudit(ctx context.Context, l *lab) ([]figure, error) {
	dir, err := l.folder()
	if err != nil {
		return nil, err
	}
	signerKey, verifierKey, err := events.NewAuditKey("bench/audit")
	if err != nil {
		return nil, err
	}
	signer, err := note.NewSigner(signerKey)
	if err != nil {
		return nil, err
	}
	n := pick(l, 200_000, 20_000)
	if err := fillLog(ctx, events.LogConfig{Dir: dir, Signer: signer, VerifierKey: verifierKey}, n); err != nil {
		return nil, err
	}
	kept, index, err := logSize(dir)
	if err != nil {
		return nil, err
	}
	var speeds []float64
	for range pick(l, 5, 1) {
		start := time.Now()
		report, err := events.Verify(ctx, dir, verifierKey)
		if err != nil {
			return nil, err
		}
		speeds = append(speeds, float64(report.Size)/time.Since(start).Seconds())
	}
	return []figure{
		figure{accessd: kept / float64(n)}.named("–", "disk for an event in the log", eachBytes, goal{}).
			remark("the start of a session, of %d in the log: entries, hashes and what the log keeps of partial files. Its index, which can be made again, takes %.0f more.", n, index/float64(n)),
		figure{accessd: median(speeds)}.named("–", "`audit verify`, whole log", perSecond, goal{}).
			remark("every entry, every hash and the checkpoint, from a directory of that size that the page cache has."),
	}, nil
}

// fillLog makes a log of n events.
func fillLog(ctx context.Context, cfg events.LogConfig, n int) error {
	log, err := events.OpenLog(ctx, cfg)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	m := &members{}
	m.run(func() error { return log.Run(running) })
	spool, err := events.NewEmitter(events.EmitterConfig{Dir: cfg.Dir + "-spool", ServerID: string(names.NewNodeID()), ServerHostname: "n1", MaxBytes: 8 << 30})
	if err == nil {
		m.spools = append(m.spools, spool)
		m.run(func() error { return spool.Run(running, log.Append) })
		for range callers {
			m.run(func() error {
				for range n / callers {
					if err := spool.Emit(ctx, startEvent()); err != nil {
						return err
					}
				}
				return nil
			})
		}
		err = await(ctx, "the events are in the log", func() bool { return log.Size() >= uint64(n/callers*callers) })
	}
	stop()
	return errors.Join(err, m.close(), log.Close())
}

// logSize returns the bytes on disk of a log's files, and of its index.
func logSize(dir string) (kept, index float64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if strings.HasPrefix(d.Name(), "index.db") {
			index += float64(info.Size())
		} else {
			kept += float64(info.Size())
		}
		return nil
	})
	return kept, index, err
}

// measureIndex asks a log of a month what auditors ask of one day. Its generator
// writes the index itself, so it belongs to the package that does.
func measureIndex(ctx context.Context, l *lab) ([]figure, error) {
	if _, err := exec.LookPath("go"); err != nil {
		return nil, fmt.Errorf("the generator is a benchmark of lib/events: %w", err)
	}
	n := pick(l, l.index, min(l.index, 20_000))
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkQueryDay$", "-benchtime", "5x", "-timeout", "60m", "./lib/events")
	cmd.Env = append(os.Environ(), fmt.Sprintf("ACCESSD_BENCH_EVENTS=%d", n))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go test: %w: %s%s", err, stderr.String(), out)
	}
	times := queryTimes(string(out))
	if len(times) == 0 {
		return nil, fmt.Errorf("the benchmark told no times: %s", out)
	}
	slowest := slices.MaxFunc(slices.Collect(maps.Keys(times)), func(a, b string) int { return int(times[a]*1000) - int(times[b]*1000) })
	return []figure{
		figure{accessd: times[slowest]}.named("–", "the slowest question about one day", millis, atMost(1000)).
			remark("%q, of %d kinds of questions, to a log of 30 days with %d events of 200 people on 500 nodes; %d is what -index says, 10,000,000 is what the goal is about.", slowest, len(times), n, n),
		figure{accessd: median(slices.Collect(maps.Values(times)))}.named("–", "the median of such questions", millis, goal{}),
	}, nil
}

// queryTimes returns the milliseconds of each question about a day, from what a
// benchmark prints.
func queryTimes(text string) map[string]float64 {
	times := map[string]float64{}
	for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) < 4 || f[3] != "ns/op" || !strings.HasPrefix(f[0], "BenchmarkQueryDay/") {
			continue
		}
		name := strings.TrimPrefix(f[0], "BenchmarkQueryDay/")
		if i := strings.LastIndex(name, "-"); i > 0 { // of the number of cores
			name = name[:i]
		}
		if ns, err := strconv.ParseFloat(f[2], 64); err == nil && name != "whole_log" {
			times[strings.ReplaceAll(name, "_", " ")] = ns / 1e6
		}
	}
	return times
}
