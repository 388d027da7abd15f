package sshserver

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what one server does. No label holds a peer's text.
type metrics struct {
	open       prometheus.Gauge
	handshakes *prometheus.CounterVec // that failed, by offence
	refused    *prometheus.CounterVec // by what was asked for
	dropped    prometheus.Counter
	panics     prometheus.Counter
}

func newMetrics(server string, cs *clients, r prometheus.Registerer) (*metrics, error) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{
			Namespace: "accessd", Subsystem: "ssh", Name: name, Help: help,
			ConstLabels: prometheus.Labels{"server": server},
		}
	}
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts(opts(name, help)), []string{label})
	}
	m := &metrics{
		open:       prometheus.NewGauge(prometheus.GaugeOpts(opts("connections", "Open connections."))),
		handshakes: counter("unauthenticated_total", "Connections that ended before authentication, by class.", "result"),
		refused:    counter("refused_total", "Channels and requests refused without a handler's say.", "what"),
		dropped:    prometheus.NewCounter(prometheus.CounterOpts(opts("dropped_channels_total", "Channels dropped since nobody read them while their client held too much."))),
		panics:     prometheus.NewCounter(prometheus.CounterOpts(opts("panics_total", "Connections ended by a bug."))),
	}
	if r == nil {
		return m, nil
	}
	held := prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("buffered_bytes", "Bound of the bytes received and not yet handled.")),
		func() float64 { return float64(cs.total.Load()) })
	var errs []error
	for _, c := range []prometheus.Collector{m.open, m.handshakes, m.refused, m.dropped, m.panics, held} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}
