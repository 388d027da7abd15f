//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/names"
)

// measureEvents measures the audit log on this machine's disk: how many events a
// second become durable, and how long one takes to the spool and to the log.
func measureEvents(ctx context.Context, l *lab) ([]figure, error) {
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
	log, err := events.OpenLog(ctx, events.LogConfig{Dir: filepath.Join(dir, "log"), Signer: signer, VerifierKey: verifierKey})
	if err != nil {
		return nil, err
	}
	spool, err := events.NewEmitter(events.EmitterConfig{Dir: filepath.Join(dir, "spool"), ServerID: "b1946ac9-2492-4d23-94c6-235b4d2611e5", ServerHostname: "n1", MaxBytes: 8 << 30})
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 2)
	go func() { ended <- log.Run(running) }()
	go func() { ended <- spool.Run(running, log.Append) }()
	figures, err := emit(ctx, l, spool)
	stop()
	return figures, errors.Join(err, <-ended, <-ended, spool.Close(), log.Close())
}

func startEvent() events.Event {
	return events.Event{
		Name: events.SessionStart, User: "alice", Login: "root", SID: names.NewSessionID(), AddrRemote: "203.0.113.7:50122", Proto: "ssh", Success: true,
		Fields: map[string]any{"kind": "shell", "pty": true, "term": "xterm-256color", "rule": "access.allow[0]", "roles": []names.RoleName{"access"}},
	}
}

// emit measures one spool that drains into one log.
func emit(ctx context.Context, l *lab, spool *events.Emitter) ([]figure, error) {
	var one, through []float64
	for range pick(l, 200, 40) {
		start := time.Now()
		if err := spool.Emit(ctx, startEvent()); err != nil {
			return nil, fmt.Errorf("emit: %w", err)
		}
		one = append(one, 1000*time.Since(start).Seconds())
		if err := spool.Flush(ctx); err != nil {
			return nil, fmt.Errorf("drain: %w", err)
		}
		through = append(through, 1000*time.Since(start).Seconds())
	}
	const callers = 1000
	var spooled, logged []float64
	for range pick(l, 5, 2) {
		start := time.Now()
		n, took, err := rate(ctx, callers, pick(l, 2*time.Second, time.Second), func(ctx context.Context) error { return spool.Emit(ctx, startEvent()) })
		if err != nil {
			return nil, fmt.Errorf("emit: %w", err)
		}
		spooled = append(spooled, float64(n)/took.Seconds())
		if err := spool.Flush(ctx); err != nil {
			return nil, fmt.Errorf("drain: %w", err)
		}
		logged = append(logged, float64(n)/time.Since(start).Seconds())
	}
	return []figure{
		figure{accessd: median(logged)}.named("14", "durable events into the log", perSecond, atLeast(20_000)).
			remark("%d callers emit at once into one spool, which drains into one Merkle log and its index; counted when the last one is in the log. Everything is fsynced on this machine's disk.", callers),
		figure{accessd: median(spooled)}.named("14", "of which acknowledged by the spool, meanwhile", perSecond, goal{}),
		figure{accessd: median(one)}.named("14", "one event alone, to the spool", millis, atMost(1)),
		figure{accessd: median(through)}.named("14", "one event alone, to the log", millis, atMost(10)),
	}, nil
}
