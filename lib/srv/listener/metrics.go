package listener

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what the listener does. No label holds a peer's text.
type metrics struct {
	accepted *prometheus.CounterVec // by protocol
	refused  *prometheus.CounterVec // by refusal
	offences *prometheus.CounterVec // by offence
	errors   prometheus.Counter
}

func newMetrics(g *gate, r prometheus.Registerer) (*metrics, error) {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "accessd", Subsystem: "listener", Name: name, Help: help}, []string{label})
	}
	gauge := func(name, help string, read func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "accessd", Subsystem: "listener", Name: name, Help: help},
			func() float64 { return float64(read()) })
	}
	m := &metrics{
		accepted: counter("connections_total", "Connections given out, by protocol.", "protocol"),
		refused:  counter("refused_total", "Connections refused before authentication, by reason.", "reason"),
		offences: counter("offences_total", "Offences before authentication, by class.", "offence"),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "accessd", Subsystem: "listener", Name: "accept_errors_total",
			Help: "Times the system could not accept, such as for lack of file descriptors.",
		}),
	}
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.accepted, m.refused, m.offences, m.errors,
		gauge("unauthenticated", "Connections that have not authenticated.", func() int { n, _, _ := g.figures(); return n }),
		gauge("parked", "Interactive sign-ins under way.", func() int { _, n, _ := g.figures(); return n }),
		gauge("penalised_sources", "Sources with an unspent penalty.", func() int { _, _, n := g.figures(); return n }),
	} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}
