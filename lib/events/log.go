//go:build unix

package events

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/storage/posix"
	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"
	"k8s.io/klog/v2"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// maxAppend bounds the events of one Append.
	maxAppend = 10_000
	// chunkEntries and chunkBytes bound what goes into the tree at once. Tessera
	// writes a batch of chunkEntries at once and a smaller one after batchAge: long
	// enough to hand a whole chunk over, so that a chunk is seldom split.
	chunkEntries = 1024
	chunkBytes   = 16 << 20
	batchAge     = 2 * time.Millisecond
	// signInterval is the shortest Tessera takes between two checkpoints.
	signInterval = 100 * time.Millisecond
	// sweepInterval is how often partial tiles are removed that full ones replaced.
	sweepInterval = 20 * time.Second
	// closeTimeout bounds the wait for the last checkpoint.
	closeTimeout = 5 * time.Second
	// signTimeout is how long the checkpoint may lag behind before Run complains.
	signTimeout = 5 * time.Second
)

// LogConfig configures a [Log].
type LogConfig struct {
	Dir         string      // the log's own directory; required, made when absent
	Signer      note.Signer // signs checkpoints; its name is the log's origin; required
	VerifierKey string      // its public half, as [NewAuditKey] makes it; required
	Log         *zap.Logger // nil discards

	Rotate Rotation // when a new tree is begun without being asked for; "" means never
	By     string   // who then asks, in the event that says so
	Stamp  Event    // who this authority is, for the events that the log itself writes: ClusterName, ServerID, ServerHostname

	Now func() time.Time // nil means time.Now
}

// Log is the transparency log of one authority.
type Log struct {
	cfg    LogConfig
	dir    *privateDir
	key    logKey // the first tree's
	groups *committer[[]entry]

	// Whoever has the groups' turn owns these.
	tree   *tessera.Appender // the newest tree's
	reader tessera.LogReader
	stop   func() // ends Tessera
	index  *index
	// pending opens the tree that the log was rotated to, where that failed at once.
	pending func(ctx context.Context) error
	stale   bool // the trees may hold entries that the index does not

	archiving chan struct{} // holds the turn to archive

	mu      sync.Mutex
	trees   []period                      // oldest first; not changed, but replaced
	behind  []func(p period) (who string) // who has not seen all of a period
	size    uint64                        // the place behind the newest tree's last entry
	indexed uint64                        // the one behind the last that the index knows
	err     error                         // of the last append
	grown   chan struct{}                 // closed when any of it changes
	closed  bool
}

// OpenLog opens the log in cfg.Dir, or begins one. It refuses a log whose last
// checkpoint does not fit its entries, one that was cut back since the index was
// written, and, with [fault.Conflict], one that is open already.
func OpenLog(ctx context.Context, cfg LogConfig) (*Log, error) {
	key, err := note.NewVerifier(cfg.VerifierKey)
	if err != nil {
		return nil, fault.New(fault.BadInput, "verifier key %q: %w", clip(cfg.VerifierKey), err)
	}
	if key.Name() != cfg.Signer.Name() || key.KeyHash() != cfg.Signer.KeyHash() {
		return nil, fault.New(fault.BadInput, "verifier key of %q is not the signer's", key.Name())
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Log = cfg.Log.Named("audit")
	dir, err := openPrivateDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, dir: dir, key: logKey{key, cfg.VerifierKey}, grown: make(chan struct{}), archiving: make(chan struct{}, 1), stop: func() {}}
	l.groups = newCommitter[[]entry]()
	if err := l.open(ctx); err != nil {
		l.stop()
		return nil, errors.Join(err, dir.Close())
	}
	return l, nil
}

func (l *Log) open(ctx context.Context) error {
	if err := l.findTrees(ctx); err != nil {
		return err
	}
	newest := l.view().newest()
	if err := checkHistory(ctx, newest.tiles, newest.key); err != nil {
		return err
	}
	if err := l.openTree(ctx, newest); err != nil {
		return err
	}
	var err error
	if l.index, err = openIndex(ctx, l.cfg.Dir); err != nil {
		return err
	}
	if err = l.checkIndex(ctx); err == nil {
		err = l.catchUp(ctx)
	}
	if err == nil {
		err = l.awaitCheckpoint(ctx, l.view().newest())
	}
	if err != nil {
		return errors.Join(err, l.index.db.Close())
	}
	l.note(ctx, nil)
	return nil
}

// quietTessera keeps Tessera from writing to our stderr. What matters of it
// reaches us as errors, and Run watches its checkpoints.
//
//nolint:gochecknoglobals // klog is process-wide, and must be set before it is used
var quietTessera = sync.OnceFunc(func() { klog.SetLogger(logr.Discard()) })

// openTree starts Tessera on the newest tree.
func (l *Log) openTree(ctx context.Context, p period) error {
	a, err := l.startTree(ctx, p.tiles.dir, p.key)
	if err != nil {
		return err
	}
	size, err := a.reader.IntegratedSize(ctx)
	if err != nil {
		a.stop()
		return fault.Wrap(fault.Unavailable, err, "cannot read the audit log")
	}
	l.tree, l.reader, l.stop = a.tree, a.reader, a.stop
	l.mu.Lock()
	defer l.mu.Unlock()
	l.size = p.base + size
	return nil
}

// appender is Tessera at work on one tree.
type appender struct {
	tree   *tessera.Appender
	reader tessera.LogReader
	stop   func()
}

// startTree starts Tessera in a directory below the log's. Its goroutines end soon
// after stop.
func (l *Log) startTree(ctx context.Context, dir string, key logKey) (appender, error) {
	quietTessera()
	driver, err := posix.New(ctx, posix.Config{Path: filepath.Join(l.cfg.Dir, dir)})
	if err != nil {
		return appender{}, fmt.Errorf("open audit log: %w", err)
	}
	options := tessera.NewAppendOptions().
		WithCheckpointSigner(treeSigner{l.cfg.Signer, key}).
		WithCheckpointInterval(signInterval).
		WithCheckpointRepublishInterval(0).
		WithBatching(chunkEntries, batchAge).
		WithGarbageCollectionInterval(sweepInterval).
		WithShutdownTimeout(closeTimeout)
	live, cancel := context.WithCancel(context.WithoutCancel(ctx))
	tree, shutdown, reader, err := tessera.NewAppender(live, driver, options)
	if err != nil {
		cancel()
		return appender{}, fault.Wrap(fault.Unavailable, err, "cannot open the audit log")
	}
	return appender{tree, reader, sync.OnceFunc(func() {
		if err := shutdown(live); err != nil {
			l.cfg.Log.Warn("the last audit events are not signed yet; the next start signs them", zap.Error(err))
		}
		cancel()
	})}, nil
}

// Append puts events, each in canonical form, into the log, in order, and leaves
// out those whose uid is there already. When it returns nil all of them are in
// the log and durable; after an error of kind [fault.Unavailable] some may be,
// and the same call may be made again. One malformed event is a
// [fault.BadInput], and none is taken.
func (l *Log) Append(ctx context.Context, events [][]byte) error {
	if len(events) > maxAppend {
		return fault.New(fault.BadInput, "%d events at once: want at most %d", len(events), maxAppend)
	}
	entries := make([]entry, len(events))
	for i, data := range events {
		var err error
		if entries[i], err = parseEntry(data); err != nil {
			return err
		}
		if entries[i].event.Name == AuditRotate {
			return fault.New(fault.BadInput, "an event %s comes from the log itself", AuditRotate)
		}
	}
	err := l.groups.do(ctx.Done(), entries, func(groups [][]entry) error {
		return l.commit(context.WithoutCancel(ctx), groups) // others wait for it, too
	})
	if err != nil && fault.KindOf(err) == fault.Internal {
		return fault.Wrap(fault.Unavailable, err, "the audit log cannot be written")
	}
	return err
}

// commit appends what concurrent callers bring. It has the turn.
func (l *Log) commit(ctx context.Context, groups [][]entry) error {
	if l.isClosed() {
		return fault.New(fault.Unavailable, "the audit log is closed")
	}
	var chunk []entry
	size := 0
	for _, g := range groups {
		for _, e := range g {
			if len(chunk) == chunkEntries || size > chunkBytes {
				if err := l.commitChunk(ctx, chunk); err != nil {
					return err
				}
				chunk, size = chunk[:0], 0
			}
			chunk = append(chunk, e)
			size += len(e.data)
		}
	}
	return l.commitChunk(ctx, chunk)
}

// commitChunk brings the new ones of chunk into the tree and the index. The
// index's change is committed last: after a crash in between, the index is caught
// up from the tree, and so the uids stay exact.
func (l *Log) commitChunk(ctx context.Context, chunk []entry) (err error) {
	defer func() { l.note(ctx, err) }()
	if l.pending != nil {
		if err := l.pending(ctx); err != nil {
			return err
		}
	}
	if l.stale {
		if err := l.catchUp(ctx); err != nil {
			return err
		}
	}
	a, err := l.index.begin(ctx)
	if err != nil {
		return err
	}
	fresh := make([]entry, 0, len(chunk))
	for _, e := range chunk {
		isNew, err := a.add(ctx, e)
		if err != nil {
			return errors.Join(err, a.Rollback())
		}
		if isNew {
			fresh = append(fresh, e)
		}
	}
	if len(fresh) == 0 {
		return a.Rollback()
	}
	l.stale = true // until both are known to be done
	inOrder, err := l.grow(ctx, fresh)
	if err != nil {
		return errors.Join(err, a.Rollback())
	}
	// From here on the events are in the log, and the index only a matter of time.
	if inOrder {
		err = a.commit(ctx)
		l.stale = err != nil
	} else {
		err = a.Rollback()
	}
	if err != nil {
		l.cfg.Log.Warn("cannot write the audit index; catching up later", zap.Error(err))
	}
	return nil
}

// grow adds entries to the tree and returns when they are durable there. inOrder
// is false when they are not where the index ends, one after the other: Tessera
// splits a batch when this process stalls, and may then swap the parts.
func (l *Log) grow(ctx context.Context, entries []entry) (inOrder bool, err error) {
	base := l.view().newest().base
	if err := l.probe(); err != nil {
		return false, err
	}
	leaves := make([]*tessera.Entry, len(entries))
	for i, e := range entries {
		leaves[i] = tessera.NewEntry(e.data)
	}
	futures := make([]tessera.IndexFuture, len(leaves))
	for i, leaf := range leaves {
		futures[i] = l.tree.Add(ctx, leaf)
	}
	inOrder = true
	for i, future := range futures {
		at, failed := future() // wait for all: what is still on its way would come later
		inOrder = inOrder && base+at.Index == l.index.size+uint64(i)
		switch {
		case failed != nil:
			err = failed
		case base+at.Index < l.index.size: // between probe's look and Tessera's own
			err = errCutBack
		}
	}
	return inOrder, err
}

// errCutBack is that the tree has fewer entries than it had. Tessera begins a new
// one, in the same files, when its state is gone.
var errCutBack = errors.New("the tree's state was removed, or an older one put in its place, while the log is open: bring it back, and the log goes on")

// probe opens the file whose lock Tessera takes for each batch. Where that fails,
// on a read-only file system or without descriptors, Tessera would panic. And it
// looks whether the tree is as large as it was.
func (l *Log) probe() error {
	newest := l.view().newest()
	f, err := os.OpenFile(filepath.Join(l.cfg.Dir, newest.name, treeState+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil || l.index.size == 0 {
		return err
	}
	s, err := newest.tiles.state(treeState)
	if errors.Is(err, fs.ErrNotExist) || err == nil && newest.base+s.Size < l.index.size {
		return errCutBack
	}
	return err
}

// note publishes the outcome of a chunk to readers.
func (l *Log) note(ctx context.Context, failed error) {
	size, err := l.reader.IntegratedSize(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.size = l.trees[len(l.trees)-1].base + size
	}
	l.indexed = l.index.size
	l.err = errors.Join(failed, err)
	close(l.grown)
	l.grown = make(chan struct{})
}

// catchUp adds to the index what the trees hold beyond it.
func (l *Log) catchUp(ctx context.Context) error {
	size, err := l.reader.IntegratedSize(ctx)
	if err != nil {
		return err
	}
	v := l.view()
	v.end = v.newest().base + size
	for i := range v.trees {
		for p := v.tree(i); l.index.size < p.end(); {
			if err := l.indexBlock(ctx, p); err != nil {
				return fmt.Errorf("index entries from %d: %w", l.index.size, err)
			}
		}
	}
	l.stale = false
	return nil
}

// indexBlock adds the rest of the block of p where the index ends.
func (l *Log) indexBlock(ctx context.Context, p period) error {
	a, err := l.index.begin(ctx)
	if err != nil {
		return err
	}
	a.jump(p.base)
	datas, _, err := p.tiles.bundle((a.size-p.base)/blockSize, p.size)
	if err != nil {
		return errors.Join(err, a.Rollback())
	}
	for _, data := range datas[a.size%blockSize:] {
		e, err := parseEntry(data)
		if err != nil {
			l.cfg.Log.Error("an entry of the audit log is not an event", zap.Uint64("entry", a.size), zap.Error(err))
			a.advance(e.uid)
			continue
		}
		fresh, err := a.add(ctx, e)
		if err != nil {
			return errors.Join(err, a.Rollback())
		}
		if !fresh {
			a.advance(e.uid)
		}
	}
	return a.commit(ctx)
}

// checkIndex makes sure that the index is of this log and not ahead of it.
func (l *Log) checkIndex(context.Context) error {
	v := l.view()
	if l.index.size == 0 {
		return nil
	}
	wrong := fault.New(fault.Internal, "the audit log was cut back or replaced: it ends at entry %d, and its index knows another %d", v.end, l.index.size).
		WithHint("bring the log back from a copy; or delete %s to accept what is there", filepath.Join(l.cfg.Dir, indexName))
	if l.index.size > v.end {
		return wrong
	}
	last := l.index.size - 1
	if last < v.trees[0].base {
		return nil // that period was archived
	}
	datas, ok, err := v.bundle(last / blockSize)
	if err != nil {
		return err
	}
	if !ok || last%blockSize >= uint64(len(datas)) {
		return wrong
	}
	if e, _ := parseEntry(datas[last%blockSize]); e.uid != l.index.last { // no event has no uid
		return wrong
	}
	return nil
}

// Healthy returns why the last append failed, or nil.
func (l *Log) Healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Size returns the place behind the log's last entry. Entries are numbered through
// all periods; each begins at the next multiple of 256.
func (l *Log) Size() uint64 { return l.view().end }

// Checkpoint returns the latest signed checkpoint, for safekeeping elsewhere.
func (l *Log) Checkpoint() ([]byte, error) { return l.view().newest().signed() }

// signed returns the tree's latest signed checkpoint.
func (p period) signed() ([]byte, error) {
	raw, err := p.tiles.file(layout.CheckpointPath, maxCheckpoint)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read the audit checkpoint")
	}
	return raw, nil
}

// Verify is [Verify] of this log.
func (l *Log) Verify(ctx context.Context, earlier ...[]byte) (Report, error) {
	return Verify(ctx, l.cfg.Dir, l.cfg.VerifierKey, earlier...)
}

// state returns the trees, the place up to which they are indexed, and a channel
// that closes when either changes or the log closes.
func (l *Log) state() (v view, indexed uint64, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return view{l.trees, l.size}, l.indexed, l.grown
}

// top returns the files of the log's directory.
func (l *Log) top() tiles { return tiles{root: l.dir.Root} }

func (l *Log) view() view {
	v, _, _ := l.state()
	return v
}

func (l *Log) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// Close signs what is in the log and unlocks it.
func (l *Log) Close() error {
	l.groups.acquire()
	defer l.groups.release()
	if l.isClosed() {
		return nil
	}
	l.mu.Lock()
	l.closed = true
	close(l.grown)
	l.grown = make(chan struct{})
	l.mu.Unlock()
	l.stop()
	return errors.Join(l.index.db.Close(), l.dir.Close())
}
