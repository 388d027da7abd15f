//go:build unix

package events

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// sinkBatch is how many events a sink is given at once, at most. After a failure
	// half as many are tried, in case they were too many.
	sinkBatch = 500
	// sinkTimeout bounds one delivery.
	sinkTimeout = 30 * time.Second
	// firstSinkPause and lastSinkPause bound the pause after a delivery that failed.
	firstSinkPause = time.Second
	lastSinkPause  = time.Minute
	// maxSinkPlace bounds the file that holds a place, in bytes.
	maxSinkPlace = 64
)

// SinkConfig says where events go besides the log.
type SinkConfig struct {
	Name string // how far it has got is kept under this name
	Type string // "webhook", "syslog", "otlp" or "file"
	// URL is http(s)://… for a webhook and OTLP, tcp://HOST:PORT or
	// tls://HOST:PORT?ca=FILE for syslog, and file:///PATH.
	URL         string
	HeadersFile string // lines "Name: value", for a webhook and OTLP; "" is none
	Filter      FilterText
}

// SinksConfig configures [Sinks].
type SinksConfig struct {
	Log        *Log   // required
	Dir        string // the sinks' own directory; required, made when absent
	Sinks      []SinkConfig
	Timeout    time.Duration         // of a delivery; 0 means 30 s
	Pause      time.Duration         // after the first failure; 0 means 1 s
	Registerer prometheus.Registerer // nil means no metrics
}

// Sinks gives a log's events to others, each at least once and in the order of
// the log. A sink's place moves on when its receiver has confirmed, so a receiver
// that fails gets the same events again, and none is skipped; nothing waits for
// it but its own sink. What an OTLP receiver says that it will never take is not
// sent again, as its specification demands: it is counted, and logged with its
// place. A new sink begins with the log's first event.
type Sinks struct {
	cfg SinksConfig
	log *zap.Logger
	dir *privateDir
	all []*outlet

	events, refused, failures *prometheus.CounterVec
	behind, failing           *prometheus.GaugeVec
}

// receiver is where a sink's events go.
type receiver interface {
	// deliver returns nil when the receiver has confirmed that it has all of events,
	// and a refusedError when it has those that it will ever take.
	deliver(ctx context.Context, events [][]byte) error
}

// outlet is one of [Sinks]; its own goroutine alone touches it.
type outlet struct {
	receiver

	name    string
	filter  Filter
	after   string        // the place behind what was delivered
	seen    atomic.Uint64 // that place, for others
	limit   int
	pause   time.Duration
	failing bool
}

// OpenSinks opens the sinks' directory and checks what they are told; it
// connects to nobody. A second opener of the directory is a [fault.Conflict].
func OpenSinks(cfg SinksConfig) (*Sinks, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = sinkTimeout
	}
	if cfg.Pause == 0 {
		cfg.Pause = firstSinkPause
	}
	s := &Sinks{cfg: cfg, log: cfg.Log.cfg.Log.Named("sink")}
	s.metrics()
	for _, c := range cfg.Sinks {
		one, err := newSink(c)
		if err != nil {
			return nil, fmt.Errorf("sink %s: %w", c.Name, err)
		}
		one.pause = cfg.Pause
		s.all = append(s.all, one)
	}
	if cfg.Registerer != nil {
		for _, m := range []prometheus.Collector{s.events, s.refused, s.failures, s.behind, s.failing} {
			if err := cfg.Registerer.Register(m); err != nil {
				return nil, err
			}
		}
	}
	var err error
	if s.dir, err = openPrivateDir(cfg.Dir); err == nil {
		cfg.Log.watched(s.lacks)
	}
	return s, err
}

func (s *Sinks) metrics() {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "accessd", Subsystem: "audit", Name: name, Help: help}, []string{"sink"})
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "accessd", Subsystem: "audit", Name: name, Help: help}, []string{"sink"})
	}
	s.events = counter("sink_events_total", "Events that a sink's receiver confirmed.")
	s.refused = counter("sink_refused_events_total", "Events that a sink's receiver will never take; it has those around them.")
	s.failures = counter("sink_failures_total", "Deliveries to a sink that failed, and are tried again.")
	s.behind = gauge("sink_behind_entries", "Entries of the audit log that a sink has not seen.")
	s.failing = gauge("sink_failing", "1 while the last delivery to a sink failed.")
}

func newSink(c SinkConfig) (*outlet, error) {
	if c.Name == "" || strings.ContainsAny(c.Name, "/.") {
		return nil, fault.New(fault.BadInput, "name %q: want letters, digits and -", c.Name)
	}
	filter, err := c.Filter.Parse()
	if err != nil {
		return nil, err
	}
	r, err := newReceiver(c)
	return &outlet{receiver: r, name: c.Name, filter: filter, limit: sinkBatch}, err
}

// Run delivers until ctx ends. It never fails: what a sink cannot do it tries
// again, logged and counted.
func (s *Sinks) Run(ctx context.Context) error {
	defer func() { _ = s.dir.Close() }()
	var wg sync.WaitGroup
	for _, one := range s.all {
		wg.Go(func() { s.serve(ctx, one) })
	}
	wg.Wait()
	return nil
}

// serve is one sink's life.
func (s *Sinks) serve(ctx context.Context, one *outlet) {
	err := s.recall(one)
	for pause := one.pause; ctx.Err() == nil; {
		more := false
		if err == nil {
			more, err = s.step(ctx, one)
		}
		if ctx.Err() != nil {
			return
		}
		s.tell(one, err)
		if err == nil {
			if pause = one.pause; !more {
				err = s.cfg.Log.Grown(ctx, one.after)
			}
			continue
		}
		wait(ctx, pause/2+rand.N(pause/2)) //nolint:gosec // jitter is no secret
		pause = min(2*pause, lastSinkPause)
		err = nil
		if one.after == "" {
			err = s.recall(one)
		}
	}
}

// step delivers the next batch, if there is one.
func (s *Sinks) step(ctx context.Context, one *outlet) (more bool, err error) {
	page, err := s.cfg.Log.Read(ctx, one.filter, one.limit, one.after)
	if err != nil {
		return false, err
	}
	if len(page.Events) > 0 {
		if err := s.deliver(ctx, one, page); err != nil {
			one.limit = max(one.limit/2, 1)
			return false, err
		}
		one.limit = min(2*one.limit, sinkBatch)
	}
	one.moved(page.After)
	return page.More, nil
}

// deliver hands a page to the receiver and then keeps the place behind it. Killed
// in between, it hands it over again.
func (s *Sinks) deliver(ctx context.Context, one *outlet, page Page) error {
	limited, stop := context.WithTimeout(ctx, s.cfg.Timeout)
	defer stop()
	err := one.deliver(limited, page.Events)
	taken := len(page.Events)
	if e, ok := errors.AsType[*refusedError](err); ok {
		n := min(e.events, taken)
		taken -= n
		s.refused.WithLabelValues(one.name).Add(float64(n))
		s.log.Error("a sink's receiver refuses audit events for good", zap.String("sink", one.name), zap.String("behind", one.after),
			zap.String("up_to", page.After), zap.Error(err))
	} else if err != nil {
		return err
	}
	s.events.WithLabelValues(one.name).Add(float64(taken))
	return s.dir.replace(placeFile(one), []byte(page.After+"\n"))
}

// placeFile holds the place of one.
func placeFile(one *outlet) string { return path.Join("place", one.name) }

// recall reads how far an earlier process got.
func (s *Sinks) recall(one *outlet) error {
	raw, err := tiles{root: s.dir.Root}.file(placeFile(one), maxSinkPlace)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	one.moved(strings.TrimSpace(string(raw)))
	return nil
}

// moved notes the place behind what was delivered.
func (one *outlet) moved(after string) {
	one.after = after
	if n, err := strconv.ParseUint(after, 10, 64); err == nil {
		one.seen.Store(n)
	}
}

// lacks names a sink that has not got all of a closed tree.
func (s *Sinks) lacks(p period) string {
	for _, one := range s.all {
		if one.seen.Load() < p.end() {
			return "sink " + one.name
		}
	}
	return ""
}

// measure says how far one is behind.
func (s *Sinks) measure(one *outlet) {
	size := s.cfg.Log.Size()
	if at, err := parsePlace("after", one.after, 0, size); err == nil {
		s.behind.WithLabelValues(one.name).Set(float64(size - at))
	}
}

// tell counts a failure, and logs what changed.
func (s *Sinks) tell(one *outlet, err error) {
	s.measure(one)
	state := 0.0
	if err != nil {
		state = 1
		s.failures.WithLabelValues(one.name).Inc()
	}
	s.failing.WithLabelValues(one.name).Set(state)
	if failing := err != nil; failing != one.failing {
		if one.failing = failing; failing {
			s.log.Error("audit events do not reach a sink; trying again", zap.String("sink", one.name), zap.Error(err))
		} else {
			s.log.Info("audit events reach a sink again", zap.String("sink", one.name))
		}
	}
}
