package events

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/lib/fault"
)

// Report is what [Verify] found of a whole log.
type Report struct {
	Size     uint64 // entries
	RootHash string // base64, as in the checkpoint
	Origin   string
	Key      string // the public key that signed it, under the log's own origin

	Checkpoint []byte   // the signed note that all of it agrees with
	Cosigned   [][]byte // those that witnesses cosigned last; [Cosignatures] checks them

	Before []Report // the periods before, newest first; each goes on where the next one ends
	Absent *Absent  // what is not here of them; nil when it is whole
}

// Absent is the newest of the periods that are not here. What it was is signed.
type Absent struct {
	Origin     string
	Size       uint64
	Checkpoint []byte // its last
}

// TamperedError says what is wrong with a log. It is in the chain of [Verify]'s errors
// when the log's content is at fault, and not when it could not be read.
type TamperedError struct {
	File   string // the first wrong file, relative to the log's directory
	Entry  int64  // the first wrong entry, counted from 0; -1 when no single one
	Reason string
}

// Error returns the fault in one line.
func (t *TamperedError) Error() string {
	if t.Entry >= 0 {
		return fmt.Sprintf("entry %d (%s): %s", t.Entry, t.File, t.Reason)
	}
	return fmt.Sprintf("%s: %s", t.File, t.Reason)
}

const (
	// publishWait is how long Verify waits for a running authority to sign what
	// it wrote a moment ago.
	publishWait = 2 * time.Second
	publishPoll = 20 * time.Millisecond
)

// NewAuditKey returns a fresh Ed25519 key pair for a log named origin, in the
// form of C2SP signed-note: the signer's half is a secret.
func NewAuditKey(origin string) (signerKey, verifierKey string, err error) {
	return note.GenerateKey(rand.Reader, origin)
}

// Verify checks the log in dir, a copy or a live one, from its files and the
// public key alone (of several, one a line, that of this log counts): the checkpoint's signature, every entry against its hash,
// every tile against the entries, and all of it against the checkpoint. Each of
// the earlier checkpoints, kept by somebody else, must be of this log and a prefix
// of it: that finds a log that was cut back or replaced as a whole, which nothing
// inside the log can.
//
// Of a log in periods it checks each, and that each ends where the one after it
// begins; one that is not here is a fault.
//
// It reports the first fault as an error of kind [fault.Internal] that wraps a
// [*TamperedError].
func Verify(ctx context.Context, dir, verifierKeys string, earlier ...[]byte) (Report, error) {
	return verify(ctx, dir, verifierKeys, chain{earlier: earlier})
}

// VerifyArchived is [Verify] of a log whose oldest periods may be absent; the
// report says so.
func VerifyArchived(ctx context.Context, dir, verifierKeys string, earlier ...[]byte) (Report, error) {
	return verify(ctx, dir, verifierKeys, chain{earlier: earlier, archived: true})
}

func verify(ctx context.Context, dir, verifierKeys string, c chain) (Report, error) {
	var err error
	if c.keys, err = parseKeys(verifierKeys); err != nil {
		return Report{}, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Report{}, fault.New(fault.NotFound, "open log: %w", err)
	}
	defer func() { _ = root.Close() }()
	c.tiles = tiles{root: root}
	report, err := c.run(ctx)
	if _, wrong := errors.AsType[*TamperedError](err); wrong {
		return report, fault.New(fault.Internal, "%w", err).
			WithHint("keep a copy of the log as it is now, and compare it with the copies held elsewhere")
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return report, fault.New(fault.Unavailable, "verify was stopped")
	}
	return report, err
}

// CheckCheckpoint returns what a signed checkpoint says of a log with one of these
// keys, one a line, or of one of the log's periods.
func CheckCheckpoint(raw []byte, verifierKeys string) (Report, error) {
	keys, err := parseKeys(verifierKeys)
	if err != nil {
		return Report{}, err
	}
	key := pickKey(raw, keys)
	c, err := openCheckpoint(raw, key)
	if err != nil {
		return Report{}, fault.New(fault.BadInput, "the checkpoint does not count: %w", err)
	}
	return Report{Size: c.Size, RootHash: base64.StdEncoding.EncodeToString(c.Hash), Origin: c.Origin, Key: key.text, Checkpoint: raw}, nil
}

// verifier rebuilds one tree of a log.
type verifier struct {
	tiles

	keys   []logKey
	key    logKey  // the one of keys that is this tree's
	close  *ending // what the tree after it says of its end; nil when it is the newest
	first  []byte  // its entry 0
	size   uint64
	tree   *compact.Range
	upper  [][][]byte // hashes of the tile being filled, of each level above 0
	broken error      // of the upper tiles
	waited uint64     // size that a checkpoint was waited for
	prefix map[uint64][]*log.Checkpoint
}

// run checks the tree. Each of earlier is a checkpoint of it, and what to call it.
func (v *verifier) run(ctx context.Context, earlier []namedCheckpoint) (Report, error) {
	kept, err := v.cosigned() // before the checkpoint, which may be newer only
	if err != nil {
		return Report{}, err
	}
	current, raw, err := v.checkpoint(ctx)
	if err != nil {
		return Report{}, err
	}
	v.size = current.Size
	if err := v.closed(current); err != nil {
		return Report{}, err
	}
	base, _ := splitOrigin(current.Origin)
	own, err := v.key.as(base)
	if err != nil {
		return Report{}, err
	}
	report := Report{
		Size: current.Size, RootHash: base64.StdEncoding.EncodeToString(current.Hash), Origin: current.Origin, Key: own.text, Checkpoint: raw,
	}
	for _, k := range kept {
		report.Cosigned = append(report.Cosigned, k.raw)
	}
	if err := v.expect(current, append(kept, earlier...)); err != nil {
		return report, err
	}
	if err := v.compare(); err != nil { // of size 0
		return report, err
	}
	for block := uint64(0); block*blockSize < v.size; block++ {
		if err := ctx.Err(); err != nil {
			return report, err
		}
		if err := v.block(block); err != nil {
			return report, err
		}
	}
	if err := v.partialTiles(); err != nil {
		return report, err
	}
	if err := v.compare(); err != nil {
		return report, err
	}
	return report, v.unsigned(ctx)
}

// checkpoint returns the log's own checkpoint. A running authority signs a moment
// after it writes, so it waits for a checkpoint of all that is there now.
func (v *verifier) checkpoint(ctx context.Context) (*log.Checkpoint, []byte, error) {
	v.waited = v.written()
	deadline := time.Now().Add(publishWait)
	for {
		raw, err := v.file(layout.CheckpointPath, maxCheckpoint)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, &TamperedError{layout.CheckpointPath, -1, "there is no checkpoint"}
		} else if err != nil {
			return nil, nil, err
		}
		v.key = pickKey(raw, v.keys)
		c, err := parseCheckpoint(layout.CheckpointPath, raw, v.key)
		if err != nil || c.Size >= v.waited || time.Now().After(deadline) {
			return c, raw, err
		}
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-time.After(publishPoll):
		}
	}
}

// written returns the size of the tree that the authority says it wrote, signed
// or not, or that a mirror says it has; 0 when a copy has neither.
func (v *verifier) written() uint64 {
	s, err := v.state(treeState)
	if err != nil {
		if s, err = v.state(mirrorState); err != nil {
			return 0
		}
	}
	return s.Size
}

func parseCheckpoint(name string, raw []byte, key note.Verifier) (*log.Checkpoint, error) {
	c, err := openCheckpoint(raw, key)
	if err != nil {
		return nil, &TamperedError{name, -1, err.Error()}
	}
	return c, nil
}

// expect notes the checkpoints that the tree must pass through.
func (v *verifier) expect(current *log.Checkpoint, kept []namedCheckpoint) error {
	v.prefix = map[uint64][]*log.Checkpoint{current.Size: {current}}
	for _, k := range kept {
		if err := v.passThrough(current, k.name, k.raw); err != nil {
			return err
		}
	}
	return nil
}

// closed compares the end of a tree that is closed with what the tree after it says.
func (v *verifier) closed(current *log.Checkpoint) error {
	if v.close == nil {
		return nil
	}
	want := v.close.checkpoint
	switch {
	case current.Size < want.Size:
		return &TamperedError{layout.CheckpointPath, int64(current.Size), fmt.Sprintf(
			"the period was cut short: it ends here, but the one after it says that it has %d entries", want.Size)}
	case current.Size > want.Size:
		return &TamperedError{layout.CheckpointPath, int64(want.Size), "the period goes on behind the end that the one after it names"}
	case !bytes.Equal(current.Hash, want.Hash):
		return &TamperedError{layout.CheckpointPath, -1, "it is not the period that the one after it goes on from"}
	}
	return nil
}

// passThrough notes a checkpoint that the tree must pass through.
func (v *verifier) passThrough(current *log.Checkpoint, name string, raw []byte) error {
	c, err := parseCheckpoint(name, raw, v.key)
	if err != nil {
		return err
	}
	if c.Size > current.Size {
		return &TamperedError{layout.CheckpointPath, int64(current.Size), fmt.Sprintf(
			"the log was cut back: it ends here, but %s signed %d entries", name, c.Size)}
	}
	v.prefix[c.Size] = append(v.prefix[c.Size], c)
	return nil
}

// namedCheckpoint is a checkpoint, and its file, or what else to call it.
type namedCheckpoint struct {
	name string
	raw  []byte
}

// cosigned returns the checkpoints that witnesses cosigned last.
func (t tiles) cosigned() ([]namedCheckpoint, error) {
	list, err := t.list(cosignedDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil || len(list) > maxWitnesses {
		return nil, unreadable(cmp.Or(err, fmt.Errorf("%d files, want at most %d", len(list), maxWitnesses)), cosignedDir, -1)
	}
	var kept []namedCheckpoint
	for _, f := range list {
		if strings.Contains(f.Name(), ".") { // left by a crash while it was written
			continue
		}
		name := cosignedDir + "/" + f.Name()
		raw, err := t.file(name, maxCheckpoint)
		if err != nil {
			return nil, unreadable(err, name, -1)
		}
		kept = append(kept, namedCheckpoint{name, raw})
	}
	return kept, nil
}

// compare compares the tree as far as it is rebuilt with the checkpoints of its
// size.
func (v *verifier) compare() error {
	for _, c := range v.prefix[v.tree.End()] {
		root := rfc6962.DefaultHasher.EmptyRoot()
		if v.tree.End() > 0 {
			var err error
			if root, err = v.tree.GetRootHash(nil); err != nil {
				return fmt.Errorf("root of %d entries: %w", v.tree.End(), err)
			}
		}
		if !bytes.Equal(root, c.Hash) {
			return &TamperedError{layout.CheckpointPath, -1, fmt.Sprintf("the first %d entries are not those that were signed", c.Size)}
		}
	}
	return nil
}

// block checks one block of entries against its tile, and adds it to the tree.
func (v *verifier) block(block uint64) error {
	first := int64(block * blockSize)
	entries, path, err := v.bundle(block, v.size)
	if err != nil {
		return unreadable(err, path, first)
	}
	hashes, tilePath, err := v.tile(0, block, v.size)
	if err != nil {
		return unreadable(err, tilePath, first)
	}
	if block == 0 {
		v.first = entries[0]
	}
	for i, entry := range entries {
		leaf := rfc6962.DefaultHasher.HashLeaf(entry)
		if !bytes.Equal(leaf, hashes[i]) {
			return &TamperedError{path, first + int64(i), describe(entry) + ": its hash is not the one in " + tilePath}
		}
		if err := v.tree.Append(leaf, v.visit); err != nil {
			return fmt.Errorf("add entry %d: %w", first+int64(i), err)
		}
		if v.broken != nil {
			return v.broken
		}
		if v.tree.End() < v.size {
			if err := v.compare(); err != nil {
				return err
			}
		}
	}
	return nil
}

// describe says which event a wrong entry is now.
func describe(entry []byte) string {
	ev, err := ParseEvent(entry)
	if err != nil {
		return "it is no event now"
	}
	return fmt.Sprintf("it is %s %s now", ev.Name, ev.UID)
}

// unreadable turns the error of a file that is missing or malformed into a fault
// of the log; what the disk refuses stays an error of the disk.
func unreadable(err error, path string, entry int64) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &TamperedError{path, entry, "the file is missing"}
	}
	if _, ok := errors.AsType[syscall.Errno](err); ok {
		return fault.Wrap(fault.Unavailable, err, "the log cannot be read")
	}
	return &TamperedError{path, entry, err.Error()}
}

// visit collects the hashes of tiles above the lowest level, as the tree makes
// them, and checks each tile once it is full.
func (v *verifier) visit(id compact.NodeID, hash []byte) {
	if id.Level == 0 || id.Level%layout.TileHeight != 0 || v.broken != nil {
		return
	}
	level := int(id.Level / layout.TileHeight)
	for len(v.upper) < level {
		v.upper = append(v.upper, nil)
	}
	v.upper[level-1] = append(v.upper[level-1], hash)
	if len(v.upper[level-1]) == layout.TileWidth {
		v.broken = v.upperTile(level, id.Index/layout.TileWidth)
		v.upper[level-1] = nil
	}
}

// partialTiles checks the last tile of each level above the lowest.
func (v *verifier) partialTiles() error {
	for i, hashes := range v.upper {
		level := i + 1
		if len(hashes) > 0 {
			if err := v.upperTile(level, v.size>>(layout.TileHeight*(level+1))); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *verifier) upperTile(level int, index uint64) error {
	span := int64(1) << (layout.TileHeight * level)
	first := int64(index) * span * layout.TileWidth
	hashes, path, err := v.tile(uint64(level), index, v.size)
	if err != nil {
		return unreadable(err, path, -1)
	}
	for i, want := range v.upper[level-1] {
		if from := first + int64(i)*span; !bytes.Equal(hashes[i], want) {
			return &TamperedError{path, -1, fmt.Sprintf("hash %d is not that of entries %d to %d", i, from, from+span-1)}
		}
	}
	return nil
}

// unsigned reports entries that the checkpoint does not cover: a checkpoint that
// was replaced by an older one, or a crash in the moment before signing.
func (v *verifier) unsigned(ctx context.Context) error {
	written := v.written()
	if written == v.size {
		return nil
	}
	if written < v.size {
		return v.strayEntries() // a copy without the authority's state
	}
	if written > v.waited { // it grew while it was verified
		if current, _, err := v.checkpoint(ctx); err != nil || current.Size > v.size {
			return err
		}
	}
	return v.behind(written)
}

// strayEntries looks for files of entries behind the checkpoint's.
func (v *verifier) strayEntries() error {
	last := layout.EntriesPath(v.size/blockSize, 0)
	if _, err := v.stat(last); err == nil {
		return v.behind((v.size/blockSize + 1) * blockSize)
	}
	partials, err := v.list(last + ".p")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Unavailable, err, "the log cannot be read")
	}
	for _, p := range partials {
		width, err := strconv.ParseUint(p.Name(), 10, 64)
		if err == nil && width > v.size%blockSize && width < blockSize {
			return v.behind(v.size - v.size%blockSize + width)
		}
	}
	return nil
}

func (v *verifier) behind(written uint64) error {
	return &TamperedError{layout.CheckpointPath, int64(v.size), fmt.Sprintf(
		"the log holds %d entries, of which the checkpoint signs %d: it was replaced by an older one, or the authority was killed before it signed the rest and has not been started since",
		written, v.size)}
}
