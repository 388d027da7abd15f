//go:build unix

package events

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/tessera/api/layout"
	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"
)

const (
	// mirrorInterval is the shortest time between two checkpoints that are
	// mirrored: each costs a handful of objects.
	mirrorInterval = 10 * time.Second
	// mirrorDir holds for each mirror the last checkpoint that it has.
	mirrorDir = "mirrored"
)

// mirrorStore is what a [Mirror] writes to. When its methods return nil the object
// is there and durable.
type mirrorStore interface {
	// Put keeps an object that is never changed.
	Put(ctx context.Context, key string, data []byte) error
	// Replace keeps an object in place of what was there.
	Replace(ctx context.Context, key string, data []byte) error
	// DeleteAll removes the objects whose key begins with dir.
	DeleteAll(ctx context.Context, dir string) error
}

// MirrorConfig configures a [Mirror].
type MirrorConfig struct {
	Log        *Log // required
	Store      mirrorStore
	Name       string                // tells this store from another; what is known of a mirror is kept by it
	Prefix     string                // of every key; no other log may have it
	Interval   time.Duration         // between two rounds at least; 0 means 10 s
	Registerer prometheus.Registerer // nil means no metrics
}

// Mirror copies a log to a store. It works beside the log, which does not wait for
// it, and brings whole checkpoints only: entries first, then tiles, then the
// checkpoint, so that what is below the prefix is always a log that [Verify]
// takes. It never removes an entry.
type Mirror struct {
	cfg     MirrorConfig
	log     *zap.Logger
	key     note.Verifier
	size    uint64 // entries of the last checkpoint that the store has
	failing bool

	entries  prometheus.Gauge
	failures prometheus.Counter
}

// NewMirror returns what mirrors cfg.Log once it runs.
func NewMirror(cfg MirrorConfig) (*Mirror, error) {
	if cfg.Interval == 0 {
		cfg.Interval = mirrorInterval
	}
	key, err := note.NewVerifier(cfg.Log.cfg.VerifierKey)
	if err != nil {
		return nil, err
	}
	m := &Mirror{
		cfg: cfg, log: cfg.Log.cfg.Log.Named("mirror"), key: key,
		entries: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "accessd", Subsystem: "audit", Name: "mirror_entries", Help: "Entries of the audit log that its mirror has.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "accessd", Subsystem: "audit", Name: "mirror_failures_total", Help: "Attempts to mirror the audit log that failed.",
		}),
	}
	if cfg.Registerer != nil {
		if err := errors.Join(cfg.Registerer.Register(m.entries), cfg.Registerer.Register(m.failures)); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Run mirrors the log until ctx ends. It never fails.
func (m *Mirror) Run(ctx context.Context) error {
	m.recall()
	tick := time.NewTicker(m.cfg.Interval)
	defer tick.Stop()
	for {
		m.round(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// cursorFile is the file with the last checkpoint that the store has.
func (m *Mirror) cursorFile() string {
	return fmt.Sprintf("%s/%x", mirrorDir, sha256.Sum256([]byte(m.cfg.Name+"\n"+m.cfg.Prefix)))
}

// recall learns from the log's directory how far an earlier process got. Without
// that, all is brought again, which changes nothing that is there.
func (m *Mirror) recall() {
	raw, err := m.cfg.Log.tiles.file(m.cursorFile(), maxCheckpoint)
	if err != nil {
		return
	}
	if c, err := openCheckpoint(raw, m.key); err == nil && c.Size <= m.cfg.Log.Size() {
		m.size = c.Size
		m.entries.Set(float64(c.Size))
	}
}

// round brings the latest checkpoint to the store, and logs what changed.
func (m *Mirror) round(ctx context.Context) {
	err := m.bring(ctx)
	if ctx.Err() != nil {
		return
	}
	switch {
	case err != nil:
		m.failures.Inc()
		if !m.failing {
			m.log.Error("the audit log cannot be mirrored; it goes on, and what is missing is brought later", zap.Error(err))
		}
	case m.failing:
		m.log.Info("the audit log is mirrored again")
	}
	m.failing = err != nil
}

// errMoved is that the log grew so fast that a file of its checkpoint was replaced
// by the full one; a newer checkpoint has that.
var errMoved = errors.New("the log moved on")

// bring brings what the store does not have.
func (m *Mirror) bring(ctx context.Context) error {
	for {
		raw, err := m.cfg.Log.Checkpoint()
		if err != nil {
			return err
		}
		c, err := openCheckpoint(raw, m.key)
		if err != nil {
			return fmt.Errorf("the audit log's checkpoint does not count: %w", err)
		}
		if c.Size == m.size {
			return nil
		}
		if err = m.files(ctx, c.Size); err == nil {
			return m.publish(ctx, raw, c)
		} else if !errors.Is(err, errMoved) || ctx.Err() != nil {
			return err
		}
	}
}

// files brings the entries and the tiles of a tree of the given size, as far as
// they are not those of the tree that the store has.
func (m *Mirror) files(ctx context.Context, size uint64) error {
	for block := m.size / blockSize; block*blockSize < size; block++ {
		entries := func(p uint8) string { return layout.EntriesPath(block, p) }
		if err := m.file(ctx, entries, layout.PartialTileSize(0, block, size), maxBundle); err != nil {
			return err
		}
	}
	for level := uint64(0); size>>(level*layout.TileHeight) > 0; level++ {
		first, nodes := m.size>>(level*layout.TileHeight)/layout.TileWidth, size>>(level*layout.TileHeight)
		for index := first; index*layout.TileWidth < nodes; index++ {
			tile := func(p uint8) string { return layout.TilePath(level, index, p) }
			if err := m.file(ctx, tile, layout.PartialTileSize(level, index, size), maxTile); err != nil {
				return err
			}
		}
	}
	return nil
}

// file brings one file of the log.
func (m *Mirror) file(ctx context.Context, name func(p uint8) string, p uint8, limit int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	data, from, err := m.cfg.Log.tiles.resource(name, p, limit)
	switch {
	case err != nil:
		return err
	case from != name(p):
		return errMoved
	}
	return m.cfg.Store.Put(ctx, path.Join(m.cfg.Prefix, from), data)
}

// publish brings the checkpoint, when all of its files are there, and then what
// only goes with it.
func (m *Mirror) publish(ctx context.Context, raw []byte, c *log.Checkpoint) error {
	told, err := json.Marshal(state{Size: c.Size, Root: c.Hash})
	if err != nil {
		return err
	}
	if err := m.replace(ctx, layout.CheckpointPath, raw); err != nil {
		return err
	}
	if err := m.replace(ctx, mirrorState, told); err != nil {
		return err
	}
	kept, err := m.cfg.Log.tiles.cosigned()
	if err != nil {
		return err
	}
	for _, k := range kept {
		if seen, err := openCheckpoint(k.raw, m.key); err != nil || seen.Size > c.Size {
			continue // with the checkpoint that has it
		}
		if err := m.replace(ctx, k.name, k.raw); err != nil {
			return err
		}
	}
	if err := m.cfg.Log.dir.replace(m.cursorFile(), raw); err != nil {
		return err
	}
	before := m.size
	m.size = c.Size
	m.entries.Set(float64(c.Size))
	return m.tidy(ctx, before)
}

func (m *Mirror) replace(ctx context.Context, name string, data []byte) error {
	return m.cfg.Store.Replace(ctx, path.Join(m.cfg.Prefix, name), data)
}

// tidy removes the partial files that full ones replaced since the store had the
// given size. One that is missed costs space only.
func (m *Mirror) tidy(ctx context.Context, before uint64) error {
	var errs []error
	remove := func(full string) {
		errs = append(errs, m.cfg.Store.DeleteAll(ctx, path.Join(m.cfg.Prefix, full)+".p/"))
	}
	if old := before / blockSize; before%blockSize > 0 && m.size/blockSize > old {
		remove(layout.EntriesPath(old, 0))
	}
	for level := uint64(0); before>>(level*layout.TileHeight) > 0; level++ {
		was, is := before>>(level*layout.TileHeight), m.size>>(level*layout.TileHeight)
		if old := was / layout.TileWidth; was%layout.TileWidth > 0 && is/layout.TileWidth > old {
			remove(layout.TilePath(level, old, 0))
		}
	}
	return errors.Join(errs...)
}
