// Package daemon builds the roles of one process from its configuration, starts
// them, and stops them in order.
//
// A [Daemon] is also how another program embeds a cluster: [New] with a
// [config.Config], [Daemon.Run] in a goroutine, [Daemon.Ready] to wait, and
// [Daemon.Admin] for the API that admin.sock serves.
//
// Nothing here decides anything: this package only connects the parts, in the
// order in which they depend on each other. docs/ARCHITECTURE.md tells the
// order in which they stop.
package daemon

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/config"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/proxy"
	"github.com/accessd/accessd/lib/sshca"
)

// Options are what a configuration file cannot say.
type Options struct {
	Stderr io.Writer   // diagnostics; nil discards them
	Log    *zap.Logger // takes diagnostics instead of Stderr; nil makes one

	// Verbs runs a line of the command line for a person at the proxy, as
	// [proxy.Config] has it; nil runs none. lib/cli has them.
	Verbs func(ctx context.Context, call proxy.VerbCall) int
}

// Daemon is one process's part in a cluster.
type Daemon struct {
	cfg   *config.Config
	log   *zap.Logger
	run   *runner
	verbs func(ctx context.Context, call proxy.VerbCall) int

	id      names.NodeID
	name    names.NodeName
	cluster atomic.Pointer[string]

	metrics *prometheus.Registry
	events  *events.Emitter
	cache   *services.Cache
	engine  *authz.Engine
	labels  *labeller

	authority *authorityRole // nil without the auth role
	peers     *peers         // nil without the auth role
	server    *seat          // of auth and proxy; nil on a mere node
	edge      *edge          // nil on a mere node
	node      *nodeRole      // nil without the node role

	ready chan struct{}
}

// New returns a daemon for cfg, which it checks. It opens nothing yet.
func New(cfg *config.Config, o Options) (*Daemon, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	log := o.Log
	if log == nil {
		var err error
		if log, err = newLogger(cfg.Log, cmp.Or(o.Stderr, io.Discard)); err != nil {
			return nil, err
		}
	}
	d := &Daemon{
		cfg: cfg, log: log, run: newRunner(log, cfg.Grace), verbs: o.Verbs,
		name:    names.NodeName(cmp.Or(cfg.Node.Name, hostName())),
		metrics: prometheus.NewRegistry(), cache: services.NewCache(),
		ready: make(chan struct{}),
	}
	d.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	d.labels = &labeller{static: cfg.NodeLabels(), commands: cfg.Node.LabelCommands, log: log.Named("labels")}
	d.cluster.Store(new(string))
	return d, nil
}

// Ready is closed once every role serves.
func (d *Daemon) Ready() <-chan struct{} { return d.ready }

// Addr returns the address people and members connect to, or "" on a mere node.
func (d *Daemon) Addr() string {
	if d.edge == nil {
		return ""
	}
	return d.edge.addr()
}

// NodeName returns the name of this process in the cluster.
func (d *Daemon) NodeName() string { return string(d.name) }

// Status describes the daemon in key=value fields, for the ready line.
func (d *Daemon) Status() string {
	fields := []string{"roles=" + strings.Join(d.cfg.Roles, ",")}
	if addr := d.Addr(); addr != "" {
		fields = append(fields, "listen="+addr)
	}
	fields = append(fields, "name="+string(d.name), "id="+string(d.id))
	if c := *d.cluster.Load(); c != "" {
		fields = append(fields, "cluster="+c)
	}
	return strings.Join(fields, " ")
}

// Run starts every role and serves until ctx ends, then stops in order. It
// returns nil after an orderly stop.
func (d *Daemon) Run(ctx context.Context) error {
	tuneMemory()
	unlock, err := d.openDataDir()
	if err != nil {
		return err
	}
	defer unlock()
	err = d.start(ctx)
	if err == nil {
		d.log.Info("ready", zap.String("status", d.Status()), zap.String("version", defaults.Version))
		close(d.ready)
		select {
		case <-ctx.Done():
		case err = <-d.run.failed:
			d.log.Error("a part failed; stopping", zap.Error(err))
		}
		d.record(ctx, events.ProcessStop, err)
	} else if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // stopped while it started
	}
	return errors.Join(err, d.run.stop())
}

// start brings up the roles in the order in which they need each other.
func (d *Daemon) start(ctx context.Context) error {
	if err := d.openEvents(ctx); err != nil {
		return err
	}
	if d.cfg.Role("auth") {
		if err := d.startAuthority(ctx); err != nil {
			return err
		}
	}
	if d.cfg.Role("auth") || d.cfg.Role("proxy") {
		if err := d.startEdge(ctx); err != nil {
			return err
		}
	}
	if d.cfg.Role("node") {
		if err := d.startNode(ctx); err != nil {
			return err
		}
	}
	primary := d.server
	if primary == nil {
		primary = d.node.seat
	}
	d.startReports(ctx, primary)
	d.run.start(ctx, rankEvents, "events", func(ctx context.Context) error { return d.events.Run(ctx, primary.drain) })
	d.record(ctx, events.ProcessStart, nil)
	return d.awaitServing(ctx)
}

// openDataDir makes the data directory and takes its lock.
func (d *Daemon) openDataDir() (unlock func(), err error) {
	if err := os.MkdirAll(d.cfg.DataDir, 0o700); err != nil {
		return nil, fault.New(fault.BadInput, "make data directory: %w", err).WithHint("name another one with --data-dir")
	}
	f, err := os.OpenFile(d.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fault.New(fault.BadInput, "open data directory: %w", err).WithHint("name another one with --data-dir")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fault.New(fault.Conflict, "data directory %q is in use by another accessd", d.cfg.DataDir).
			WithHint("stop that one first, or name another directory with --data-dir")
	}
	if d.id, err = d.openID(); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// openID returns the id this process keeps for as long as its data directory
// lives.
func (d *Daemon) openID() (names.NodeID, error) {
	path := d.path("identity", "id")
	text, err := os.ReadFile(path)
	if err == nil {
		id, err := names.ParseNodeID(strings.TrimSpace(string(text)))
		if err != nil {
			return "", fault.New(fault.BadInput, "file %q: %w", path, err)
		}
		return id, nil
	}
	if err := os.MkdirAll(d.path("identity"), 0o700); err != nil {
		return "", fault.New(fault.BadInput, "make identity directory: %w", err)
	}
	id := names.NewNodeID()
	return id, writeDurably(path, []byte(id+"\n"))
}

// openEvents opens the spool; whoever emits from here on is held to it.
func (d *Daemon) openEvents(ctx context.Context) error {
	var err error
	d.events, err = events.NewEmitter(events.EmitterConfig{
		Dir: d.path("spool"), Cluster: func() string { return *d.cluster.Load() },
		ServerID: string(d.id), ServerHostname: string(d.name), Known: d.stands, Log: d.log.Named("events"),
	})
	if err != nil {
		return err
	}
	d.run.atStop(ctx, rankLog, "spool", d.events.Close)
	return nil
}

// record emits an event about the process itself. A spool that cannot be
// written is no reason to stop: it refuses whatever would need it.
func (d *Daemon) record(ctx context.Context, name events.Name, cause error) {
	ev := events.Event{Name: name, Success: cause == nil, Fields: map[string]any{"roles": d.cfg.Roles, "version": defaults.Version}}
	if cause != nil {
		ev.Error = fault.Public(cause)
	}
	if err := d.events.Emit(context.WithoutCancel(ctx), ev); err != nil {
		d.log.Error("the process's own event was not written", zap.Error(err))
	}
}

// awaitServing waits until every role has said that it serves.
func (d *Daemon) awaitServing(ctx context.Context) error {
	for {
		if len(d.unready()) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-d.run.failed:
			return err
		case <-time.After(readyPoll):
		}
	}
}

// readyPoll is how often start looks whether every role serves.
const readyPoll = 5 * time.Millisecond

// unready returns the names of the roles that do not serve.
func (d *Daemon) unready() []string {
	var waiting []string
	for _, r := range d.cfg.Roles {
		if !d.roleServes(r) {
			waiting = append(waiting, r)
		}
	}
	return waiting
}

func (d *Daemon) roleServes(role string) bool {
	synced := false
	select {
	case <-d.cache.Synced():
		synced = true
	default:
	}
	switch role {
	case "auth":
		return synced && d.events.Healthy() == nil
	case "proxy":
		return synced && d.edge != nil && d.edge.announced()
	case "node":
		return synced && d.node != nil && d.node.connected()
	}
	return false
}

// publicAddresses are the addresses under which this process is reached.
func (d *Daemon) publicAddresses() []string {
	addr := d.Addr()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil
	}
	var list []string
	for _, a := range d.cfg.PublicAddresses {
		if _, _, err := net.SplitHostPort(a); err != nil {
			a = net.JoinHostPort(a, port)
		}
		list = append(list, a)
	}
	if len(list) > 0 {
		return list
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return []string{net.JoinHostPort(cmp.Or(resolvableHostName(), "127.0.0.1"), port)}
	}
	return []string{addr}
}

// resolvableHostName returns the host's full name, or "" when it has none that
// could be a name in a certificate.
func resolvableHostName() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	if _, err := names.ParseNodeName(strings.ToLower(name)); err != nil {
		return ""
	}
	return strings.ToLower(name)
}

// trust returns the authorities' keys: as the authority in this process has
// them, as the policy says, or as they were when this process joined.
func (d *Daemon) trust() sshca.Trust {
	if d.authority != nil {
		return d.authority.keys.Trust()
	}
	return d.cache.Trust()
}
