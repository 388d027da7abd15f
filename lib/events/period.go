package events

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/note"
)

// A log is a chain of trees. The first has the log's own origin and stands in the
// log's directory; each later one is of a period, has the period's name behind
// that origin, and stands in a directory of that name. Its entry 0 is an
// [AuditRotate] with the checkpoint of the tree before, whole: so the chain is
// signed from its newest end to its first.

// periodName names a period by the month (UTC) in which it began; of several that
// began in one month the second is 2.
type periodName struct {
	year, month, nth int
}

// periodForm is how names of periods are written: 2026-11, 2026-11.2.
const periodForm = `^([0-9]{4})-(0[1-9]|1[0-2])(?:\.([1-9][0-9]{0,5}))?$`

// parsePeriod returns the period that text names; ok is false when it names none.
func parsePeriod(text string) (p periodName, ok bool) {
	m := regexp.MustCompile(periodForm).FindStringSubmatch(text)
	if m == nil {
		return p, false
	}
	p.year, _ = strconv.Atoi(m[1])  // digits only
	p.month, _ = strconv.Atoi(m[2]) // the same
	p.nth = 1
	if m[3] != "" {
		p.nth, _ = strconv.Atoi(m[3]) // the same
	}
	return p, p.String() == text
}

// String returns the name.
func (p periodName) String() string {
	if p.nth > 1 {
		return fmt.Sprintf("%04d-%02d.%d", p.year, p.month, p.nth)
	}
	return fmt.Sprintf("%04d-%02d", p.year, p.month)
}

func (p periodName) compare(q periodName) int {
	return cmp.Or(cmp.Compare(p.year, q.year), cmp.Compare(p.month, q.month), cmp.Compare(p.nth, q.nth))
}

// comparePeriods orders names of trees as the log has them; "" is the first tree.
func comparePeriods(a, b string) int {
	p, _ := parsePeriod(a) // the first tree's is the zero name
	q, _ := parsePeriod(b)
	return p.compare(q)
}

// nextPeriod names the period that begins now, behind the one named last. Names
// only go up, also when the clock goes back.
func nextPeriod(last string, now time.Time) string {
	now = now.UTC()
	p := periodName{now.Year(), int(now.Month()), 1}
	if l, ok := parsePeriod(last); ok && p.compare(l) <= 0 {
		p = l
		p.nth++
	}
	return p.String()
}

// splitOrigin returns the log's own origin and the name of the tree that has the
// given origin.
func splitOrigin(origin string) (base, name string) {
	if i := strings.LastIndexByte(origin, '/'); i > 0 {
		if _, ok := parsePeriod(origin[i+1:]); ok {
			return origin[:i], origin[i+1:]
		}
	}
	return origin, ""
}

// joinOrigin is the inverse of splitOrigin.
func joinOrigin(base, name string) string {
	if name == "" {
		return base
	}
	return base + "/" + name
}

// as returns k under the given origin: the same public key, under another name.
func (k logKey) as(origin string) (logKey, error) {
	if origin == k.Name() {
		return k, nil
	}
	const ed25519 = 1 // the algorithm's byte, before the key (C2SP signed-note)
	parts := strings.SplitN(k.text, "+", 3)
	raw, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(raw) == 0 || raw[0] != ed25519 {
		return logKey{}, fmt.Errorf("the key of %q is not an Ed25519 key", k.Name())
	}
	text, err := note.NewEd25519VerifierKey(origin, raw[1:])
	if err != nil {
		return logKey{}, err
	}
	v, err := note.NewVerifier(text)
	return logKey{v, text}, err
}

// treeSigner signs with the log's key under the name of one of its trees.
type treeSigner struct {
	note.Signer

	as logKey
}

// Name returns the tree's origin.
func (s treeSigner) Name() string { return s.as.Name() }

// KeyHash returns the hash of the key under that name.
func (s treeSigner) KeyHash() uint32 { return s.as.KeyHash() }

// period is one of a log's trees, in a place that numbers the entries of all.
type period struct {
	name  string // "" for the first
	tiles tiles
	key   logKey
	base  uint64    // number of its entry 0, a multiple of blockSize
	size  uint64    // entries; of the newest tree those of the view it is in
	began time.Time // by the clock that wrote its entry 0; zero for the first
	prev  ending    // of the tree before; none for the first
}

// end is the place behind the last entry.
func (p period) end() uint64 { return p.base + p.size }

// gone reports whether the tree was moved away, or removed.
func (p period) gone() bool {
	_, err := p.tiles.stat(layout.CheckpointPath)
	return errors.Is(err, fs.ErrNotExist)
}

// ending is what the entry 0 of a tree says of the tree before it.
type ending struct {
	name       string // "" for the first
	raw        []byte // its last checkpoint
	checkpoint *log.Checkpoint
	base       uint64 // where the tree that says so begins
	began      time.Time
}

// errNoEnding is that an entry 0 is not what it has to be.
var errNoEnding = errors.New("it does not say where the period before ended")

// parseEnding reads the entry 0 of the tree with that key.
func parseEnding(entry []byte, key logKey) (ending, error) {
	ev, err := ParseEvent(entry)
	if err != nil || ev.Name != AuditRotate {
		return ending{}, errNoEnding
	}
	text, _ := ev.Fields["checkpoint"].(string)
	base, _ := ev.Fields["base"].(int64)
	origin, self := splitOrigin(key.Name())
	first, _, _ := strings.Cut(text, "\n")
	before, name := splitOrigin(first)
	switch {
	case before != origin:
		return ending{}, fmt.Errorf("it names a checkpoint of the log %q", clip(first))
	case comparePeriods(name, self) >= 0:
		return ending{}, fmt.Errorf("it names %q as the period before", name)
	case base <= 0 || base%blockSize != 0:
		return ending{}, errNoEnding
	}
	own, err := key.as(first)
	if err != nil {
		return ending{}, err
	}
	c, err := openCheckpoint([]byte(text), own)
	if err != nil {
		return ending{}, fmt.Errorf("the checkpoint it names does not count: %w", err)
	}
	if c.Size == 0 || align(c.Size) > uint64(base) {
		return ending{}, errNoEnding
	}
	return ending{name: name, raw: []byte(text), checkpoint: c, base: uint64(base), began: ev.Time}, nil
}

// align returns the next multiple of blockSize from n on. Each tree begins at one,
// so that a block of the log is a bundle of one tree.
func align(n uint64) uint64 { return (n + blockSize - 1) / blockSize * blockSize }

// periods returns the names of the trees in the directory, oldest first; the first
// tree's is "".
func (t tiles) periods() ([]string, error) {
	list, err := t.list(".")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range list {
		if _, ok := parsePeriod(f.Name()); ok && f.IsDir() {
			names = append(names, f.Name())
		} else if f.Name() == layout.CheckpointPath || f.Name() == "tile" || f.Name() == path.Dir(treeState) {
			names = append(names, "")
		}
	}
	slices.SortFunc(names, comparePeriods)
	return slices.Compact(names), nil
}

// sub returns the tiles of the tree of that name.
func (t tiles) sub(name string) tiles { return tiles{root: t.root, dir: path.Join(t.dir, name)} }

// view is the trees of a log at one moment.
type view struct {
	trees []period // oldest first; the last is written to
	end   uint64   // the place behind the log's last entry
}

// newest returns the tree that is written to.
func (v view) newest() period { return v.tree(len(v.trees) - 1) }

func (v view) tree(i int) period {
	p := v.trees[i]
	if i == len(v.trees)-1 {
		p.size = v.end - p.base
	}
	return p
}

// at returns the tree that has the block; ok is false when it is not here.
func (v view) at(block uint64) (p period, ok bool) {
	for i := range slices.Backward(v.trees) {
		if p = v.tree(i); block*blockSize >= p.base {
			return p, block*blockSize < p.end()
		}
	}
	return period{}, false
}

// bundle returns the entries of a block; ok is false when its tree is not here.
func (v view) bundle(block uint64) (entries [][]byte, ok bool, err error) {
	p, ok := v.at(block)
	if !ok {
		return nil, false, nil
	}
	entries, _, err = p.tiles.bundle(block-p.base/blockSize, p.size)
	return entries, true, err
}

// present returns v without the trees that somebody moved away meanwhile.
func (v view) present() view {
	kept := make([]period, 0, len(v.trees))
	for i, p := range v.trees {
		if i == len(v.trees)-1 || !p.gone() {
			kept = append(kept, p)
		}
	}
	return view{kept, v.end}
}

// absence is a tree that is not here; what was before it is unknown.
type absence struct {
	name  string
	end   uint64    // the place behind its last entry
	after uint64    // the place behind the last entry that is here before it
	until time.Time // when the tree after it began
}

// absent returns the trees that those of v say were before them, and are not here.
func (v view) absent() (list []absence) {
	for i, p := range v.trees {
		if p.name == "" || i > 0 && v.trees[i-1].name == p.prev.name {
			continue
		}
		size := p.prev.checkpoint.Size
		a := absence{name: p.prev.name, end: p.base - align(size) + size, until: p.began}
		if i > 0 {
			a.after = v.trees[i-1].end()
		}
		list = append(list, a)
	}
	return list
}
