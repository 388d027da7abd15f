//go:build unix

package events

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/transparency-dev/tessera"
	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/lockdir"
)

// Rotation says when a log begins a new tree without being asked.
type Rotation string

// The rotations. Periods are those of UTC.
const (
	Never   Rotation = "never"
	Monthly Rotation = "monthly"
	Yearly  Rotation = "yearly"
)

const (
	// nextTree is where the tree of the next period is made. It gets its name when
	// it is whole; what a crash left there is thrown away.
	nextTree = "next"
	// rotateRetry is the pause after a rotation that failed.
	rotateRetry = time.Minute
	// rotateLook is how often the clock is looked at, at least, since it may be set.
	rotateLook = 15 * time.Minute
	// maxPeriods bounds the trees of one log: thirty years of months, and more by hand.
	maxPeriods = 1000
)

// due returns when a log whose newest tree began then is to be rotated; the zero
// time is never.
func (r Rotation) due(began time.Time) time.Time {
	began = began.UTC()
	switch {
	case began.IsZero():
	case r == Monthly:
		return time.Date(began.Year(), began.Month()+1, 1, 0, 0, 0, 0, time.UTC)
	case r == Yearly:
		return time.Date(began.Year()+1, time.January, 1, 0, 0, 0, 0, time.UTC)
	}
	return time.Time{}
}

// findTrees learns which trees there are, and that each goes on where the one
// before ended. It looks at their ends only; [Verify] looks at everything.
func (l *Log) findTrees(ctx context.Context) error {
	if err := os.RemoveAll(filepath.Join(l.cfg.Dir, nextTree)); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot tidy the audit directory")
	}
	if err := l.resumeRemoval(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "what is left of an archived period cannot be removed")
	}
	root := l.top()
	names, err := root.periods()
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "the audit log cannot be read")
	}
	if len(names) == 0 {
		names = []string{""}
	}
	if len(names) > maxPeriods {
		return fault.New(fault.Unavailable, "the audit log has %d periods, want at most %d", len(names), maxPeriods).
			WithHint("move the oldest to an archive")
	}
	for i, name := range names {
		p, err := l.findTree(root.sub(name), name)
		if err == nil && i > 0 {
			err = follows(&l.trees[i-1], p)
		}
		if wrong, ok := errors.AsType[*TamperedError](err); ok {
			return fault.New(fault.Internal, "the audit log is not as it was left: period %q: %w", name, wrong).
				WithHint("bring the log back from a copy, or move it away to begin a new one")
		}
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "the audit log cannot be read")
		}
		l.trees = append(l.trees, p)
	}
	return ctx.Err()
}

// findTree reads how a tree begins.
func (l *Log) findTree(t tiles, name string) (period, error) {
	key, err := l.key.as(joinOrigin(l.key.Name(), name))
	if err != nil {
		return period{}, err
	}
	p := period{name: name, tiles: t, key: key}
	if name == "" {
		return p, nil
	}
	written, err := t.state(treeState)
	if err != nil || written.Size == 0 {
		return p, &TamperedError{treeState, -1, fmt.Sprintf("it does not say how long the period is: %v", err)}
	}
	entries, path, err := t.bundle(0, written.Size)
	if err != nil {
		return p, unreadable(err, path, 0)
	}
	if p.prev, err = parseEnding(entries[0], key); err != nil {
		return p, &TamperedError{path, 0, err.Error()}
	}
	p.base, p.began = p.prev.base, p.prev.began
	return p, nil
}

// follows closes p: the tree after it says where it ends.
func follows(p *period, after period) error {
	if after.prev.name != p.name {
		return nil // one in between was archived
	}
	raw, err := p.signed()
	if err != nil {
		return err
	}
	c, err := parseCheckpoint(p.name, raw, p.key)
	if err != nil {
		return err
	}
	v := verifier{close: &after.prev}
	if err := v.closed(c); err != nil {
		return err
	}
	if p.size = c.Size; align(p.end()) != after.base {
		return &TamperedError{after.name, 0, fmt.Sprintf("it numbers its entries from %d, want %d", after.base, align(p.end()))}
	}
	return nil
}

// Rotate closes the tree that is written to and goes on with a new one, whose
// entry 0 is an [AuditRotate] with the closed one's last checkpoint: who asked, and
// why. It returns the new tree's verifier key, whose name is its origin. A log without entries is a
// [fault.Conflict].
//
// The new tree is made aside and named when it is signed. Killed before, or
// failing before, the log goes on with the old one.
func (l *Log) Rotate(ctx context.Context, by, reason string) (verifierKey string, err error) {
	select {
	case l.groups.turn <- struct{}{}:
	case <-ctx.Done():
		return "", fault.Wrap(fault.Unavailable, ctx.Err(), "the audit log is busy")
	}
	defer l.groups.release()
	if l.isClosed() {
		return "", errLogClosed()
	}
	p, err := l.rotate(context.WithoutCancel(ctx), by, reason)
	if err != nil {
		if fault.KindOf(err) == fault.Internal {
			err = fault.Wrap(fault.Unavailable, err, "the audit log cannot be rotated; it goes on as it is")
		}
		return "", err
	}
	l.cfg.Log.Info("the audit log goes on in a new period", zap.String("origin", p.key.Name()))
	return p.key.text, nil
}

// rotate has the turn.
func (l *Log) rotate(ctx context.Context, by, reason string) (period, error) {
	if l.pending != nil {
		if err := l.pending(ctx); err != nil {
			return period{}, err
		}
	}
	old, raw, err := l.ending(ctx)
	if err != nil {
		return period{}, err
	}
	if len(l.trees) >= maxPeriods {
		return old, fault.New(fault.Conflict, "the audit log has %d periods already", maxPeriods).WithHint("move the oldest to an archive, and start the authority again")
	}
	now := l.cfg.Now()
	p := period{name: nextPeriod(old.name, now), base: align(old.end()), began: now.UTC()}
	p.tiles = l.top().sub(p.name)
	if p.key, err = l.key.as(joinOrigin(l.key.Name(), p.name)); err != nil {
		return p, err
	}
	ev := l.cfg.Stamp
	ev.Name, ev.Success, ev.Time = AuditRotate, true, now
	ev.Fields = map[string]any{"by": by, "reason": reason, "period": p.name, "base": p.base, "checkpoint": string(raw)}
	first, err := newSchema().encode(ev, MaxEvent)
	if err != nil {
		return p, err
	}
	if p.prev, err = parseEnding(first, p.key); err != nil { // nobody could verify what it begins
		return p, fmt.Errorf("events: internal error: the period's first entry: %w", err)
	}
	if err := l.makeTree(ctx, p, first); err != nil {
		return p, errors.Join(err, os.RemoveAll(filepath.Join(l.cfg.Dir, nextTree)))
	}
	return p, l.follow(ctx, old, p)
}

// ending returns the tree that is written to, and the checkpoint that signs all of
// it.
func (l *Log) ending(ctx context.Context) (period, []byte, error) {
	size, err := l.reader.IntegratedSize(ctx)
	if err != nil {
		return period{}, nil, err
	}
	old := l.view().newest()
	if old.size = size; size == 0 {
		return old, nil, fault.New(fault.Conflict, "the audit log has no entries yet")
	}
	if err := l.probe(); err != nil {
		return old, nil, err
	}
	if err := l.awaitCheckpoint(ctx, old); err != nil {
		return old, nil, err
	}
	raw, err := old.signed()
	return old, raw, err
}

// makeTree makes the tree of p, with its first entry, and names it.
func (l *Log) makeTree(ctx context.Context, p period, first []byte) error {
	aside := filepath.Join(l.cfg.Dir, nextTree)
	if err := os.RemoveAll(aside); err != nil {
		return err
	}
	if err := os.Mkdir(aside, 0o700); err != nil {
		return err
	}
	a, err := l.startTree(ctx, nextTree, p.key)
	if err != nil {
		return err
	}
	if _, err = a.tree.Add(ctx, tessera.NewEntry(first))(); err == nil {
		made := p
		made.tiles = l.top().sub(nextTree)
		made.size = 1
		err = l.awaitCheckpoint(ctx, made)
	}
	a.stop()
	if err != nil {
		return err
	}
	if err := syncTree(aside); err != nil {
		return err
	}
	// Rename takes the place of an empty directory, at most.
	if err := l.dir.Rename(nextTree, p.name); err != nil {
		return err
	}
	return l.dir.Sync(".")
}

// syncTree syncs every file and directory of a small tree.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !d.Type().IsRegular() {
			return err
		}
		return lockdir.Sync(path)
	})
}

// follow goes on with p, which is on disk, behind old. When that fails nothing is
// appended until it is done.
func (l *Log) follow(ctx context.Context, old, p period) error {
	a, err := l.startTree(ctx, p.name, p.key)
	if err != nil {
		l.pending = func(ctx context.Context) error { return l.follow(ctx, old, p) }
		return err
	}
	l.stop()
	l.pending = nil
	l.tree, l.reader, l.stop = a.tree, a.reader, a.stop
	l.mu.Lock()
	l.trees, l.size = append(l.trees[:len(l.trees)-1:len(l.trees)-1], old, p), p.base+1
	l.mu.Unlock()
	l.stale = true
	if err := l.catchUp(ctx); err != nil {
		l.cfg.Log.Warn("cannot write the audit index; catching up later", zap.Error(err))
	}
	l.note(ctx, nil)
	return nil
}

// rotateByPeriod rotates the log when its period ends, until ctx ends.
func (l *Log) rotateByPeriod(ctx context.Context) {
	complained := false
	for ctx.Err() == nil {
		pause := rotateLook
		began, err := l.began()
		due := l.cfg.Rotate.due(began)
		switch now := l.cfg.Now(); {
		case err != nil || due.IsZero():
		case now.Before(due):
			pause = min(pause, due.Sub(now))
		default:
			_, err = l.Rotate(ctx, l.cfg.By, "a new period began: audit.rotate is "+string(l.cfg.Rotate))
		}
		if err != nil {
			pause = rotateRetry
		}
		if failed := err != nil; failed != complained && ctx.Err() == nil {
			if complained = failed; failed {
				l.cfg.Log.Error("the audit log cannot be rotated; it goes on in the old period", zap.Error(err))
			}
		}
		wait(ctx, pause)
	}
}

// began returns when the tree that is written to began, the zero time when it is
// empty.
func (l *Log) began() (time.Time, error) {
	p := l.view().newest()
	if name, ok := parsePeriod(p.name); ok {
		return time.Date(name.year, time.Month(name.month), 1, 0, 0, 0, 0, time.UTC), nil
	}
	if p.size == 0 {
		return time.Time{}, nil
	}
	entries, _, err := p.tiles.bundle(0, p.size)
	if err != nil {
		return time.Time{}, err
	}
	e, err := parseEntry(entries[0])
	return e.event.Time, err
}

// VerifierKeys returns the public keys of the log's trees, the first tree's first:
// the same key, under the name of each.
func (l *Log) VerifierKeys() []string {
	list := []string{l.cfg.VerifierKey}
	for _, p := range l.view().trees {
		if p.name != "" {
			list = append(list, p.key.text)
		}
	}
	return list
}
