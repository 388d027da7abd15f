package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
)

// chain checks the trees of one log, from the newest back, and that each ends
// where the one after it begins.
type chain struct {
	tiles

	keys     []logKey
	archived bool // the oldest may be absent
	earlier  [][]byte

	names []string // of the trees that are here, oldest first
	own   string   // the period of the one tree that is here, when it stands alone
	kept  map[string][]namedCheckpoint
	after *ending // what the tree after the next one to check says of it
}

func (c *chain) run(ctx context.Context) (Report, error) {
	var err error
	if c.names, err = c.periods(); err != nil {
		return Report{}, unreadable(err, ".", -1)
	}
	if n := len(c.names); n > 1 && c.onItsWay(c.names[n-1]) {
		c.names = c.names[:n-1]
	}
	if len(c.names) == 0 {
		c.names = []string{""}
	}
	if raw, err := c.file(layout.CheckpointPath, maxCheckpoint); err == nil && len(c.names) == 1 && c.names[0] == "" {
		_, c.own = splitOrigin(originOf(raw))
	}
	if err := c.sort(); err != nil {
		return Report{}, err
	}
	var all []Report
	for _, name := range slices.Backward(c.names) {
		r, err := c.tree(ctx, name)
		if err != nil {
			if len(all) == 0 {
				return r, err
			}
			return all[0], err
		}
		all = append(all, r)
	}
	report := all[0]
	report.Before = all[1:]
	for _, r := range report.Before {
		report.Cosigned = append(report.Cosigned, r.Cosigned...)
	}
	if c.after != nil {
		return c.missing(report)
	}
	for name, list := range c.kept {
		return report, &TamperedError{path.Join(name, layout.CheckpointPath), -1, fmt.Sprintf("%s is of a period that the log does not have", list[0].name)}
	}
	return report, nil
}

// onItsWay reports whether a mirror is about to be brought that period, and has
// nothing of it yet that is signed.
func (c *chain) onItsWay(name string) bool {
	sub := c.sub(name)
	s, err := sub.state(mirrorState)
	_, missing := sub.stat(layout.CheckpointPath)
	return err == nil && s.Size == 0 && errors.Is(missing, fs.ErrNotExist)
}

// originOf returns the origin that a checkpoint begins with, unchecked.
func originOf(raw []byte) string {
	origin, _, _ := strings.Cut(string(raw[:min(len(raw), maxCheckpoint)]), "\n")
	return origin
}

// period returns the period of the tree in the directory of that name.
func (c *chain) period(name string) string {
	if name == "" {
		return c.own
	}
	return name
}

// sort gives each earlier checkpoint to the tree it is of.
func (c *chain) sort() error {
	c.kept = map[string][]namedCheckpoint{}
	dir := c.names[len(c.names)-1]
	newest := c.period(dir)
	for i, raw := range c.earlier {
		k := namedCheckpoint{fmt.Sprintf("earlier checkpoint %d", i+1), raw}
		_, name := splitOrigin(originOf(raw))
		if comparePeriods(name, newest) > 0 {
			return &TamperedError{path.Join(dir, layout.CheckpointPath), -1, fmt.Sprintf(
				"the log was cut back: it ends with this period, but %s is of the later period %s", k.name, name)}
		}
		c.kept[name] = append(c.kept[name], k)
	}
	return nil
}

// tree checks one tree.
func (c *chain) tree(ctx context.Context, name string) (Report, error) {
	sub := c.sub(name)
	if c.after != nil && c.after.name != name {
		if slices.Contains(c.names, c.after.name) {
			return Report{}, &TamperedError{
				path.Join(name, layout.CheckpointPath), -1,
				fmt.Sprintf("the period after it goes on from %s, so that no period goes on from this one", c.called(c.after.name)),
			}
		}
		return Report{}, &TamperedError{
			path.Join(c.after.name, layout.CheckpointPath), -1,
			fmt.Sprintf("the period is not here, though the older %s is", c.called(name)),
		}
	}
	v := verifier{tiles: sub, keys: c.keys, close: c.after, tree: (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)}
	report, err := v.run(ctx, c.kept[c.period(name)])
	if err == nil {
		err = c.begins(&v, name)
	}
	if wrong, ok := errors.AsType[*TamperedError](err); ok {
		return report, &TamperedError{path.Join(name, wrong.File), wrong.Entry, wrong.Reason}
	}
	delete(c.kept, c.period(name))
	return report, err
}

// called is what a message calls a tree.
func (c *chain) called(name string) string {
	if name == "" {
		return "the first period"
	}
	return "period " + name
}

// begins checks how a tree begins: the first with anything, a later one with the
// end of the one before. A tree alone may be one of a log in periods.
func (c *chain) begins(v *verifier, name string) error {
	_, own := splitOrigin(v.key.Name())
	if own != c.period(name) {
		return &TamperedError{layout.CheckpointPath, -1, fmt.Sprintf("it is of the log %q, which is not this period's", clip(v.key.Name()))}
	}
	was := c.after
	c.after = nil
	begin := uint64(0)
	if own != "" {
		if v.first == nil {
			return &TamperedError{layout.CheckpointPath, -1, "the period is empty, and does not say where the one before ended"}
		}
		end, err := parseEnding(v.first, v.key)
		if err != nil {
			return &TamperedError{layout.EntriesPath(0, 0), 0, err.Error()}
		}
		c.after, begin = &end, end.base
	}
	if was != nil && was.base != align(begin+v.size) {
		return &TamperedError{layout.CheckpointPath, -1, fmt.Sprintf(
			"the period after it numbers its entries from %d, want %d", was.base, align(begin+v.size))}
	}
	return nil
}

// missing says what is not here of the log, and compares it with checkpoints of it
// as far as that goes.
func (c *chain) missing(report Report) (Report, error) {
	base, _ := splitOrigin(report.Origin)
	end := c.after.checkpoint
	report.Absent = &Absent{Origin: joinOrigin(base, c.after.name), Size: end.Size, Checkpoint: c.after.raw}
	at := path.Join(c.after.name, layout.CheckpointPath)
	for name, list := range c.kept {
		for _, k := range list {
			key := pickKey(k.raw, c.keys)
			got, err := parseCheckpoint(k.name, k.raw, key)
			switch {
			case err != nil:
				return report, err
			case name != c.after.name || got.Size < end.Size:
				return report, &TamperedError{
					path.Join(name, layout.CheckpointPath), -1,
					fmt.Sprintf("%s is of %s, which is not here: bring it back from the archive to compare them", k.name, c.called(name)),
				}
			case got.Size > end.Size:
				return report, &TamperedError{at, int64(end.Size), fmt.Sprintf(
					"the period was cut short: the one after it says that it ends here, but %s signed %d entries", k.name, got.Size)}
			case !bytes.Equal(got.Hash, end.Hash):
				return report, &TamperedError{at, -1, fmt.Sprintf("it is not the period that %s signed", k.name)}
			}
		}
	}
	if c.archived {
		return report, nil
	}
	return report, &TamperedError{at, -1, fmt.Sprintf("%s, which had %d entries, is not here: it was archived or removed", c.called(c.after.name), end.Size)}
}
