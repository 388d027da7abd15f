package daemon

import (
	"context"

	"github.com/accessd/accessd/lib/events"
)

// startSinks starts what gives audit events to others besides the log, which
// waits for none of them. They end before it closes.
func (d *Daemon) startSinks(ctx context.Context, log *events.Log) error {
	if len(d.cfg.Audit.Sinks) == 0 {
		return nil
	}
	list := make([]events.SinkConfig, len(d.cfg.Audit.Sinks))
	for i, s := range d.cfg.Audit.Sinks {
		f := s.Filter
		list[i] = events.SinkConfig{
			Name: s.Name, Type: s.Type, URL: s.URL, HeadersFile: s.HeadersFile,
			Filter: events.FilterText{
				Event: f.Event, User: f.User, Login: f.Login, Node: f.Node, Labels: f.Labels,
				Address: f.Address, Outcome: f.Outcome, Text: f.Text,
			},
		}
	}
	sinks, err := events.OpenSinks(events.SinksConfig{Log: log, Dir: d.path("sinks"), Sinks: list, Registerer: d.metrics})
	if err != nil {
		return err
	}
	d.run.start(ctx, rankLink, "sinks of audit events", sinks.Run)
	return nil
}
