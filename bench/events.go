//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
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
	m := &members{}
	running, stop := context.WithCancel(ctx)
	m.run(func() error { return log.Run(running) })
	for i := range spools {
		var spool *events.Emitter
		if spool, err = events.NewEmitter(events.EmitterConfig{
			Dir: filepath.Join(dir, fmt.Sprintf("spool-%d", i)), ServerID: string(names.NewNodeID()), ServerHostname: fmt.Sprintf("n%d", i), MaxBytes: 8 << 30,
		}); err != nil {
			break
		}
		m.spools = append(m.spools, spool)
		m.run(func() error { return spool.Run(running, log.Append) })
	}
	var figures []figure
	if err == nil {
		figures, err = m.measure(ctx, l)
	}
	stop()
	return figures, errors.Join(err, m.close(), log.Close())
}

// The load of goal 14: so many members ship to one authority, and so many callers
// in all emit at once.
const (
	spools  = 8
	callers = 1000
)

// members are the spools of several members, which drain into one log.
type members struct {
	spools []*events.Emitter
	wg     sync.WaitGroup
	ended  []error // of what ran, once wg is done
	mu     sync.Mutex
}

// run runs a part until the measurement is over.
func (m *members) run(part func() error) {
	m.wg.Go(func() {
		err := part()
		m.mu.Lock()
		defer m.mu.Unlock()
		m.ended = append(m.ended, err)
	})
}

func (m *members) close() error {
	m.wg.Wait()
	for _, s := range m.spools {
		m.ended = append(m.ended, s.Close())
	}
	return errors.Join(m.ended...)
}

func startEvent() events.Event {
	return events.Event{
		Name: events.SessionStart, User: "alice", Login: "root", SID: names.NewSessionID(), AddrRemote: "203.0.113.7:50122", Proto: "ssh", Success: true,
		Fields: map[string]any{"kind": "shell", "pty": true, "term": "xterm-256color", "rule": "access.allow[0]", "roles": []names.RoleName{"access"}},
	}
}

func (m *members) measure(ctx context.Context, l *lab) ([]figure, error) {
	var one, through []float64
	for range pick(l, 200, 40) {
		start := time.Now()
		if err := m.spools[0].Emit(ctx, startEvent()); err != nil {
			return nil, fmt.Errorf("emit: %w", err)
		}
		one = append(one, 1000*time.Since(start).Seconds())
		if err := m.spools[0].Flush(ctx); err != nil {
			return nil, fmt.Errorf("drain: %w", err)
		}
		through = append(through, 1000*time.Since(start).Seconds())
	}
	var spooled, logged, cpu []float64
	for range pick(l, 5, 1) {
		b, err := m.burst(ctx, pick(l, 2*time.Second, time.Second))
		if err != nil {
			return nil, err
		}
		spooled, logged, cpu = append(spooled, b.spooled), append(logged, b.logged), append(cpu, b.cpu)
	}
	return []figure{
		figure{accessd: median(logged)}.named("14", "durable events into one log", perSecond, atLeast(20_000)).
			remark("%d callers emit at once into %d spools, which drain into one Merkle log and its index; counted when the last one is in the log. Everything is fsynced on this machine's disk, and members and authority share its cores.", callers, spools),
		figure{accessd: median(spooled)}.named("14", "of which acknowledged by the spools, meanwhile", perSecond, goal{}),
		figure{accessd: median(cpu)}.named("14", "CPU of one durable event, from emit to index", micros, goal{}),
		figure{accessd: median(one)}.named("14", "one event alone, to the spool", millis, atMost(1)),
		figure{accessd: median(through)}.named("14", "one event alone, to the log", millis, atMost(10)),
	}, nil
}

// burst is what one load of events came to.
type burst struct {
	spooled, logged float64 // events a second
	cpu             float64 // microseconds an event
}

// burst emits for the time spell and waits until all of it is in the log.
func (m *members) burst(ctx context.Context, spell time.Duration) (burst, error) {
	var next atomic.Uint64
	start, used := time.Now(), cpuTime(os.Getpid())
	n, took, err := rate(ctx, callers, spell, func(ctx context.Context) error {
		return m.spools[next.Add(1)%spools].Emit(ctx, startEvent())
	})
	if err != nil {
		return burst{}, fmt.Errorf("emit: %w", err)
	}
	for _, s := range m.spools {
		if err := s.Flush(ctx); err != nil {
			return burst{}, fmt.Errorf("drain: %w", err)
		}
	}
	each := (cpuTime(os.Getpid()) - used).Seconds() * 1e6 / float64(n)
	return burst{float64(n) / took.Seconds(), float64(n) / time.Since(start).Seconds(), each}, nil
}
