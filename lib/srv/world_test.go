package srv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// policy is a policy of one sentence per action.
type policy struct {
	mu      sync.Mutex
	deny    map[authz.Action]string
	targets func(authz.Target) (listed bool, deny string) // nil allows any
	options authz.Decision

	commands map[string]bool // the lines there are; nil allows any
	changed  chan struct{}
}

func (p *policy) Decide(r authz.Request) authz.Decision {
	p.mu.Lock()
	defer p.mu.Unlock()
	if reason := p.deny[r.Action]; reason != "" {
		return authz.Decision{Reason: reason, Rule: "tester.deny[0]", Role: "tester"}
	}
	d := p.options
	if r.Action == authz.ActionExec && r.Command != "" && p.commands != nil {
		if !p.commands[r.Command] {
			return authz.Decision{Reason: fmt.Sprintf("no role lists the command %q", r.Command), Rule: "tester.deny[2]", Role: "tester"}
		}
		d.Confined = true
	}
	if p.targets != nil && r.Target != (authz.Target{}) {
		listed, deny := p.targets(r.Target)
		if deny != "" {
			return authz.Decision{Reason: deny, Rule: "tester.deny[1]", Role: "tester"}
		}
		d.Listed = listed
	}
	d.Allow, d.Rule, d.Role, d.Reason = true, "tester.allow[0]", "tester", "role tester allows it"
	return d
}

func (p *policy) Resource(_ *sshca.Identity, resource, _ string) authz.Decision {
	p.mu.Lock()
	defer p.mu.Unlock()
	return authz.Decision{Allow: p.deny[authz.Action(resource)] == ""}
}

func (p *policy) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

func (p *policy) set(change func(*policy)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
	close(p.changed)
	p.changed = make(chan struct{})
}

// journal is the audit log and the ledger. It holds every event to the table.
type journal struct {
	t *testing.T

	mu     sync.Mutex
	list   []events.Event
	open   map[names.SessionID]bool
	broken map[events.Name]bool // cannot be written
	wake   chan struct{}
}

var errDisk = errors.New("no space left on device")

func (j *journal) EmitAll(ctx context.Context, list ...events.Event) error {
	for _, e := range list {
		if err := j.Emit(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

func (j *journal) Emit(_ context.Context, e events.Event) error {
	if err := events.Check(e); err != nil {
		j.t.Error(err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken[e.Name] {
		return fault.Wrap(fault.Unavailable, errDisk, "the audit spool cannot be written")
	}
	if e.Name == events.SessionStart && slices.ContainsFunc(j.list, func(o events.Event) bool { return o.Name == e.Name && o.SID == e.SID }) {
		return nil // the log does so by uid
	}
	j.list = append(j.list, e)
	close(j.wake)
	j.wake = make(chan struct{})
	return nil
}

func (j *journal) Begin(start events.Event) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.open[start.SID] = true
	return nil
}

func (j *journal) End(sid names.SessionID) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.open, sid)
	return nil
}

func (j *journal) Recover(context.Context, func(context.Context, events.Event) error) error {
	return nil
}

// named returns the events of that name so far.
func (j *journal) named(name events.Name) []events.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	var list []events.Event
	for _, e := range j.list {
		if e.Name == name {
			list = append(list, e)
		}
	}
	return list
}

// await returns the first n events of that name once there are so many.
func (j *journal) await(name events.Name, n int) []events.Event {
	j.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		j.mu.Lock()
		wake := j.wake
		j.mu.Unlock()
		if list := j.named(name); len(list) >= n {
			return list
		}
		select {
		case <-wake:
		case <-deadline:
			j.t.Fatalf("%d events %s, want %d", len(j.named(name)), name, n)
		}
	}
}

func (j *journal) breakEvents(list ...events.Name) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, n := range list {
		j.broken[n] = true
	}
}

// world is a manager behind a bare SSH server that lets everybody in.
type world struct {
	t       *testing.T
	policy  *policy
	journal *journal
	manager *Manager

	stop context.CancelFunc // of Run
	done chan struct{}      // Run has returned
	wg   sync.WaitGroup     // of the server
}

type setting func(*Config)

func newWorld(t *testing.T, executor Executor, settings ...setting) *world {
	t.Helper()
	w := &world{
		t:       t,
		policy:  &policy{deny: map[authz.Action]string{}, changed: make(chan struct{})},
		journal: &journal{t: t, open: map[names.SessionID]bool{}, broken: map[events.Name]bool{}, wake: make(chan struct{})},
		done:    make(chan struct{}),
	}
	cfg := Config{
		Node:   func() authz.NodeView { return authz.NodeView{ID: "0b0c1f2e-0000-4000-8000-000000000001", Name: "n1"} },
		Engine: w.policy, Changed: w.policy.Changed, Events: w.journal, Ledger: w.journal,
		Executor: executor, Log: zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel)),
	}
	for _, s := range settings {
		s(&cfg)
	}
	var err error
	if cfg.Recorder == nil {
		if cfg.Recorder, err = recording.New(recording.Config{Dir: t.TempDir() + "/recordings"}); err != nil {
			t.Fatal(err)
		}
	}
	if w.manager, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, w.stop = context.WithCancel(t.Context())
	go func() {
		defer close(w.done)
		_ = w.manager.Run(ctx)
	}()
	return w
}

// finish stops the manager and checks that nothing is left.
func (w *world) finish() {
	w.t.Helper()
	w.stop()
	<-w.done
	w.wg.Wait()
	if starts, ends := w.journal.named(events.SessionStart), w.journal.named(events.SessionEnd); len(starts) != len(ends) {
		w.t.Errorf("%d events session.start and %d session.end, want as many", len(starts), len(ends))
	}
	if n := len(w.journal.open); n != 0 {
		w.t.Errorf("%d sessions stay in the ledger, want 0", n)
	}
	if n := len(w.manager.List()); n != 0 {
		w.t.Errorf("%d sessions are live, want 0", n)
	}
}

// identity is whose certificate the user name stands for.
func identity(validBefore time.Time) *sshca.Identity {
	return &sshca.Identity{
		Kind: sshca.KindUser, User: "alice", Roles: []names.RoleName{"tester"}, Serial: 42, KeyID: "alice",
		Fingerprint: "SHA256:test", CAFingerprint: "SHA256:ca", ValidBefore: validBefore,
	}
}

// serve serves one connection until it has ended.
func (w *world) serve(conn net.Conn, id *sshca.Identity, hostKey ssh.Signer) {
	server := &ssh.ServerConfig{NoClientAuth: true}
	server.Ciphers = []string{ssh.CipherAES128GCM} // fast under the race detector, too
	server.AddHostKey(hostKey)
	sc, channels, requests, err := ssh.NewServerConn(conn, server)
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	remote, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	local, _ := netip.ParseAddrPort(conn.LocalAddr().String())
	c := w.manager.Connect(ClientConfig{
		Identity: id, Login: names.Login(sc.User()), Remote: remote, Local: local, ID: "c-1",
		Open: sc.OpenChannel,
		Cut:  func(cause error) { cancel(cause); _ = sc.Close() },
	})
	defer c.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for r := range requests {
			if strings.HasSuffix(r.Type, "forward") || strings.Contains(r.Type, "streamlocal") {
				_ = r.Reply(c.Listen(ctx, r)) // fails when the connection has ended
				continue
			}
			_ = r.Reply(false, nil) // the same
		}
	})
	defer func() { cancel(errors.New("connection lost")) }()
	for nc := range channels {
		if nc.ChannelType() != "session" {
			wg.Go(func() { c.Forward(ctx, nc) })
			continue
		}
		wg.Go(func() { c.Session(ctx, nc) })
	}
}

// listen serves connections on loopback until the test ends; it returns the
// address.
func (w *world) listen(id *sshca.Identity) string {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	_, hostKey := sshca.Generate()
	w.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() { w.serve(conn, id, hostKey) })
		}
	})
	w.t.Cleanup(func() { ln.Close(); w.finish() })
	return ln.Addr().String()
}

// dial returns a client of an in-memory connection; the test must close it.
func (w *world) dial(id *sshca.Identity) *ssh.Client {
	w.t.Helper()
	here, there := memoryPipe()
	_, hostKey := sshca.Generate()
	w.wg.Go(func() { w.serve(there, id, hostKey) })
	conn, channels, requests, err := ssh.NewClientConn(here, "pipe", &ssh.ClientConfig{
		User: "root", HostKeyCallback: ssh.InsecureIgnoreHostKey(), //nolint:forbidigo // both ends are the test
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return ssh.NewClient(conn, channels, requests)
}
