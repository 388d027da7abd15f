package srv

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the counters of a [Manager].
type metrics struct {
	started, rejected, refused prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, m *Manager) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "accessd", Subsystem: "session", Name: name, Help: help})
	}
	x := &metrics{
		started:  counter("started_total", "Sessions begun."),
		rejected: counter("rejected_total", "Sessions refused."),
		refused:  counter("requests_refused_total", "Channel requests that were malformed, unknown or out of place."),
	}
	live := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "accessd", Subsystem: "session", Name: "live", Help: "Sessions under way.",
	}, func() float64 { return float64(len(m.live())) })
	if reg == nil {
		return x, nil
	}
	return x, errors.Join(reg.Register(x.started), reg.Register(x.rejected), reg.Register(x.refused), reg.Register(live))
}
