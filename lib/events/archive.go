//go:build unix

package events

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/transparency-dev/tessera/api/layout"
	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// FirstPeriod is what the first tree of a log, which has no name, is called by who
	// archives it.
	FirstPeriod = "first"

	// removing names the tree that is being removed, since an archive has it. What a
	// crash left of that tree goes at the next start.
	removing = "removing"
	// archiveAge is how long a period must have ended: a spool may ship what is half
	// as old, and the log tells by what is here that it has it already.
	archiveAge = 60 * 24 * time.Hour
)

// Archiving says what of a log goes where.
type Archiving struct {
	Period string      // its name, or [FirstPeriod]
	Store  mirrorStore // gets it
	Prefix string      // of every key there, as that of a mirror
	Young  bool        // it may have ended a moment ago

	// Record is called when the archive has all of it. When that fails nothing is
	// removed here.
	Record func(Archived) error
}

// Archived is a period that an archive has.
type Archived struct {
	Period     string // its name, or [FirstPeriod]
	Origin     string
	Size       uint64 // entries
	RootHash   string // base64
	Checkpoint []byte // its last
}

// Archive verifies the log's oldest period, copies it to a store, as a mirror does,
// where each object is read back and compared, has that recorded, and only then
// removes it here. An archive may have any of it already. Killed at any step before
// the removal, nothing is missing here; killed later, the next start removes the
// rest.
func (l *Log) Archive(ctx context.Context, a Archiving) (Archived, error) {
	select {
	case l.archiving <- struct{}{}:
		defer func() { <-l.archiving }()
	default:
		return Archived{}, fault.New(fault.Conflict, "a period of the log is being archived already")
	}
	p, err := l.archivable(a)
	if err != nil {
		return Archived{}, err
	}
	done := Archived{Period: calledPeriod(p.name), Origin: p.key.Name()}
	report, err := l.verifyClosed(ctx, p)
	if wrong, ok := errors.AsType[*TamperedError](err); ok {
		return done, fault.New(fault.Conflict, "the period does not verify, and stays: %w", wrong)
	}
	if err != nil {
		return done, fault.Wrap(fault.Unavailable, err, "the period cannot be read, and stays")
	}
	done.Size, done.RootHash, done.Checkpoint = report.Size, report.RootHash, report.Checkpoint
	to := &Mirror{cfg: MirrorConfig{Log: l, Store: a.Store, Prefix: a.Prefix}, log: l.cfg.Log}
	if err := to.whole(ctx, p); err != nil {
		return done, fault.Wrap(fault.KindOf(err), err, "the period was not archived, and stays: "+fault.Public(err))
	}
	if err := a.Record(done); err != nil {
		return done, err
	}
	if err := l.remove(p.name); err != nil {
		return done, fault.Wrap(fault.Unavailable, err, "the period is in the archive, but not all of it could be removed here; the next start does that")
	}
	l.cfg.Log.Info("a period of the audit log was archived", zap.String("origin", done.Origin), zap.Uint64("entries", done.Size))
	return done, nil
}

// calledPeriod is what who archives calls a tree.
func calledPeriod(name string) string {
	if name == "" {
		return FirstPeriod
	}
	return name
}

// archivable returns the period that is named, if it may go: the oldest, closed long
// enough ago, which the mirrors and sinks of this log have seen.
func (l *Log) archivable(a Archiving) (period, error) {
	v := l.view().present()
	p := v.tree(0)
	if len(v.trees) == 1 {
		return p, fault.New(fault.Conflict, "the log is in its only period, %s, which is written to", calledPeriod(p.name)).
			WithHint("\"accessd audit rotate\" closes it")
	}
	if calledPeriod(p.name) != a.Period {
		return p, fault.New(fault.Conflict, "the oldest period here is %s, and only that can be archived: a hole would be a fault", calledPeriod(p.name))
	}
	next := v.tree(1)
	if next.prev.name != p.name {
		return p, fault.New(fault.Conflict, "the period after %s, %s, is not here", a.Period, calledPeriod(next.prev.name))
	}
	if age := l.cfg.Now().Sub(next.began); age < archiveAge && !a.Young {
		return p, fault.New(fault.Conflict, "period %s ended %d days ago, want at least %d: members may ship what is in it again",
			a.Period, int(age.Hours()/24), int(archiveAge.Hours()/24)).WithHint("--young archives it all the same")
	}
	l.mu.Lock()
	behind := l.behind
	l.mu.Unlock()
	for _, lacks := range behind {
		if who := lacks(p); who != "" {
			return p, fault.New(fault.Conflict, "%s does not have all of period %s yet", who, a.Period)
		}
	}
	return p, nil
}

// watched has a say in what is archived: lacks says who has not seen all of a period,
// or "".
func (l *Log) watched(lacks func(p period) (who string)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.behind = append(l.behind, lacks)
}

// verifyClosed checks a closed period, from its entries up to what the next one says
// of its end.
func (l *Log) verifyClosed(ctx context.Context, p period) (Report, error) {
	v := l.view().present()
	c := chain{tiles: l.top(), keys: []logKey{l.key}, archived: true}
	for _, t := range v.trees {
		c.names = append(c.names, t.name)
		if t.prev.name == p.name && t.name != p.name {
			c.after = &t.prev
		}
	}
	return c.tree(ctx, p.name)
}

// whole brings all of a closed period, whatever the store has of it.
func (m *Mirror) whole(ctx context.Context, p period) error {
	raw, err := p.signed()
	if err != nil {
		return err
	}
	c, err := openCheckpoint(raw, p.key)
	if err != nil {
		return err
	}
	m.sizes = map[string]uint64{p.name: 0}
	if err := m.files(ctx, p, c.Size); err != nil {
		return err
	}
	return m.checkpoints(ctx, p, signedCheckpoint{c, raw})
}

// remove removes a tree, which nothing may be left of: what is there of one is
// checked at every start. From the first step on it is gone to who reads.
func (l *Log) remove(name string) error {
	if err := l.dir.replace(removing, []byte(calledPeriod(name)+"\n")); err != nil {
		return err
	}
	return finishRemoval(l.dir, name)
}

// finishRemoval removes what is left of a tree, and then the note of it.
func finishRemoval(dir *privateDir, name string) error {
	for _, file := range []string{layout.CheckpointPath, path.Dir(treeState), "tile", cosignedDir} {
		if err := dir.RemoveAll(path.Join(name, file)); err != nil {
			return err
		}
	}
	if name != "" {
		if err := dir.RemoveAll(name); err != nil {
			return err
		}
	}
	if err := dir.Sync("."); err != nil {
		return err
	}
	if err := dir.Remove(removing); err != nil {
		return err
	}
	return dir.Sync(".")
}

// resumeRemoval goes on with the removal that a crash ended.
func (l *Log) resumeRemoval() error {
	raw, err := l.top().file(removing, maxText)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	name := string(bytes.TrimSpace(raw))
	if _, ok := parsePeriod(name); !ok && name != FirstPeriod {
		return fault.New(fault.Internal, "%q in the audit directory names no period", filepath.Join(l.cfg.Dir, removing))
	}
	return finishRemoval(l.dir, strings.TrimPrefix(name, FirstPeriod))
}
