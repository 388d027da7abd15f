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
	sizes   map[string]uint64 // entries of each tree in the last checkpoint that the store has
	failing bool

	entries  prometheus.Gauge
	failures prometheus.Counter
}

// NewMirror returns what mirrors cfg.Log once it runs.
func NewMirror(cfg MirrorConfig) (*Mirror, error) {
	if cfg.Interval == 0 {
		cfg.Interval = mirrorInterval
	}
	m := &Mirror{
		cfg: cfg, log: cfg.Log.cfg.Log.Named("mirror"), sizes: map[string]uint64{},
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
	cfg.Log.watched(m.lacks)
	return m, nil
}

// Run mirrors the log until ctx ends. It never fails.
func (m *Mirror) Run(ctx context.Context) error {
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

// cursorFile is the file with the last checkpoint of a tree that the store has.
func (m *Mirror) cursorFile(p period) string {
	return fmt.Sprintf("%s/%x", path.Join(p.name, mirrorDir), sha256.Sum256([]byte(m.cfg.Name+"\n"+m.cfg.Prefix)))
}

// size returns how much of a tree the store has; of one that is met for the first
// time it learns that from the log's directory. Without that, all is brought again,
// which changes nothing that is there.
func (m *Mirror) size(p period) uint64 {
	if size, ok := m.sizes[p.name]; ok {
		return size
	}
	m.sizes[p.name] = 0
	raw, err := m.cfg.Log.top().file(m.cursorFile(p), maxCheckpoint)
	if err != nil {
		return 0
	}
	if c, err := openCheckpoint(raw, p.key); err == nil && c.Size <= p.size {
		m.reached(p, c.Size)
	}
	return m.sizes[p.name]
}

// reached notes how much of a tree the store has.
func (m *Mirror) reached(p period, size uint64) {
	m.sizes[p.name] = size
	sum := uint64(0)
	for _, n := range m.sizes {
		sum += n
	}
	m.entries.Set(float64(sum))
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

// bring brings what the store does not have, the oldest tree first, so that each
// that is there has the one before it.
func (m *Mirror) bring(ctx context.Context) error {
	v := m.cfg.Log.view().present()
	for i := range v.trees {
		if err := m.tree(ctx, v.tree(i)); err != nil {
			return err
		}
	}
	return nil
}

// tree brings one tree.
func (m *Mirror) tree(ctx context.Context, p period) error {
	for {
		raw, err := p.signed()
		if err != nil {
			return err
		}
		c, err := openCheckpoint(raw, p.key)
		if err != nil {
			return fmt.Errorf("the audit log's checkpoint does not count: %w", err)
		}
		if c.Size == m.size(p) {
			return nil
		}
		if p.name != "" && m.size(p) == 0 { // for [chain.onItsWay]
			told, err := json.Marshal(state{})
			if err == nil {
				err = m.cfg.Store.Replace(ctx, path.Join(m.cfg.Prefix, p.name, mirrorState), told)
			}
			if err != nil {
				return err
			}
		}
		if err = m.files(ctx, p, c.Size); err == nil {
			return m.publish(ctx, p, signedCheckpoint{c, raw})
		} else if !errors.Is(err, errMoved) || ctx.Err() != nil {
			return err
		}
	}
}

// signedCheckpoint is a checkpoint and the note that it was in.
type signedCheckpoint struct {
	*log.Checkpoint

	raw []byte
}

// files brings the entries and the tiles of a tree of the given size, as far as
// they are not those of the tree that the store has.
func (m *Mirror) files(ctx context.Context, p period, size uint64) error {
	before := m.size(p)
	for block := before / blockSize; block*blockSize < size; block++ {
		entries := func(p uint8) string { return layout.EntriesPath(block, p) }
		if err := m.file(ctx, p, object{entries, layout.PartialTileSize(0, block, size), maxBundle}); err != nil {
			return err
		}
	}
	for level := uint64(0); size>>(level*layout.TileHeight) > 0; level++ {
		first, nodes := before>>(level*layout.TileHeight)/layout.TileWidth, size>>(level*layout.TileHeight)
		for index := first; index*layout.TileWidth < nodes; index++ {
			tile := func(p uint8) string { return layout.TilePath(level, index, p) }
			if err := m.file(ctx, p, object{tile, layout.PartialTileSize(level, index, size), maxTile}); err != nil {
				return err
			}
		}
	}
	return nil
}

// object is a file of a tree: its name by its width, its width, and its greatest
// size in bytes.
type object struct {
	name  func(p uint8) string
	width uint8
	limit int64
}

// file brings one file of a tree.
func (m *Mirror) file(ctx context.Context, p period, o object) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	data, from, err := p.tiles.resource(o.name, o.width, o.limit)
	switch {
	case err != nil:
		return err
	case from != o.name(o.width):
		return errMoved
	}
	return m.cfg.Store.Put(ctx, path.Join(m.cfg.Prefix, p.name, from), data)
}

// publish brings the checkpoint, when all of its files are there, and remembers it.
func (m *Mirror) publish(ctx context.Context, p period, c signedCheckpoint) error {
	if err := m.checkpoints(ctx, p, c); err != nil {
		return err
	}
	if err := m.cfg.Log.dir.replace(m.cursorFile(p), c.raw); err != nil {
		return err
	}
	before := m.size(p)
	m.reached(p, c.Size)
	return m.tidy(ctx, p, span{before, c.Size})
}

// lacks says that the store is not known to have all of a closed tree.
func (m *Mirror) lacks(p period) string {
	raw, err := m.cfg.Log.top().file(m.cursorFile(p), maxCheckpoint)
	if err == nil {
		if c, err := openCheckpoint(raw, p.key); err == nil && c.Size >= p.size {
			return ""
		}
	}
	return "the mirror"
}

// checkpoints brings the checkpoint, and then what only goes with it.
func (m *Mirror) checkpoints(ctx context.Context, p period, c signedCheckpoint) error {
	told, err := json.Marshal(state{Size: c.Size, Root: c.Hash})
	if err != nil {
		return err
	}
	replace := func(name string, data []byte) error {
		return m.cfg.Store.Replace(ctx, path.Join(m.cfg.Prefix, p.name, name), data)
	}
	if err := replace(layout.CheckpointPath, c.raw); err != nil {
		return err
	}
	if err := replace(mirrorState, told); err != nil {
		return err
	}
	kept, err := p.tiles.cosigned()
	if err != nil {
		return err
	}
	for _, k := range kept {
		if seen, err := openCheckpoint(k.raw, p.key); err != nil || seen.Size > c.Size {
			continue // with the checkpoint that has it
		}
		if err := replace(k.name, k.raw); err != nil {
			return err
		}
	}
	return nil
}

// tidy removes the partial files that full ones replaced since the store had the
// beginning of grown. One that is missed costs space only.
func (m *Mirror) tidy(ctx context.Context, p period, grown span) error {
	var errs []error
	remove := func(full string) {
		errs = append(errs, m.cfg.Store.DeleteAll(ctx, path.Join(m.cfg.Prefix, p.name, full)+".p/"))
	}
	if old := grown.from / blockSize; grown.from%blockSize > 0 && grown.end/blockSize > old {
		remove(layout.EntriesPath(old, 0))
	}
	for level := uint64(0); grown.from>>(level*layout.TileHeight) > 0; level++ {
		was, is := grown.from>>(level*layout.TileHeight), grown.end>>(level*layout.TileHeight)
		if old := was / layout.TileWidth; was%layout.TileWidth > 0 && is/layout.TileWidth > old {
			remove(layout.TilePath(level, old, 0))
		}
	}
	return errors.Join(errs...)
}
