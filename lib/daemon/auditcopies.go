package daemon

import (
	"context"
	"path"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/store"
)

// startCopies starts what tells others of the audit log: its witnesses and its
// mirror. The log waits for neither, and they end before it closes.
func (d *Daemon) startCopies(ctx context.Context, log *events.Log) error {
	list := make([]events.Witness, len(d.cfg.Audit.Witnesses))
	for i, w := range d.cfg.Audit.Witnesses {
		list[i] = events.Witness{URL: w.URL, Key: w.Key}
	}
	witnesses, err := events.NewWitnesses(events.WitnessesConfig{Log: log, Witnesses: list, Registerer: d.metrics})
	if err != nil {
		return err
	}
	if len(list) > 0 {
		d.run.start(ctx, rankLink, "witnesses of the audit log", witnesses.Run)
	}
	if d.cfg.Audit.Mirror == "" {
		return nil
	}
	objects, err := store.Open(ctx, d.cfg.Audit.Mirror)
	if err != nil {
		return err
	}
	d.run.atStop(ctx, rankStore, "mirror of the audit log", objects.Close)
	mirror, err := events.NewMirror(events.MirrorConfig{
		Log: log, Store: objects, Name: d.cfg.Audit.Mirror, Prefix: path.Join("audit", string(d.id)), Registerer: d.metrics,
	})
	if err != nil {
		return err
	}
	d.run.start(ctx, rankLink, "mirror of the audit log", mirror.Run)
	return nil
}
