package events

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"
)

const (
	// blockSize is how many entries a bundle of the log holds.
	blockSize = layout.EntryBundleWidth
	// maxBundle, maxTile and maxCheckpoint bound what is read of a log.
	maxBundle     = blockSize * (2 + MaxEvent)
	maxTile       = layout.TileWidth * 32
	maxCheckpoint = 64 << 10

	// cosignedDir holds for each witness, named by the hash of its key, the last
	// checkpoint that it cosigned.
	cosignedDir = "cosigned"
	// maxWitnesses bounds how many of these are read.
	maxWitnesses = 100

	// mirrorState is how far a mirror is, in the form of treeState. It is written
	// after the checkpoint, so that a verifier does not take what is on its way for
	// entries whose checkpoint was replaced.
	mirrorState = "mirror"
)

// tiles reads the files of a tlog-tiles tree. It follows no link out of its
// directory.
type tiles struct {
	root *os.Root
	dir  string // the tree's own, below root; "" is root
}

// file returns the content of the file at name, which has at most limit bytes.
func (t tiles) file(name string, limit int64) ([]byte, error) {
	info, err := t.stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", name, limit)
	}
	return t.root.ReadFile(path.Join(t.dir, name))
}

func (t tiles) stat(name string) (fs.FileInfo, error) { return t.root.Stat(path.Join(t.dir, name)) }

// list returns what is in the directory at name.
func (t tiles) list(name string) ([]fs.DirEntry, error) {
	return fs.ReadDir(t.root.FS(), path.Join(t.dir, name))
}

// resource returns a tile or bundle of partial width p, or the full one that
// replaced it, and its path.
func (t tiles) resource(path func(p uint8) string, p uint8, limit int64) (data []byte, from string, err error) {
	from = path(p)
	data, err = t.file(from, limit)
	if p > 0 && errors.Is(err, fs.ErrNotExist) {
		if full, fullErr := t.file(path(0), limit); fullErr == nil {
			return full, path(0), nil
		}
	}
	return data, from, err
}

// bundle returns the entries of the block in a tree of the given size, and the
// path of their file.
func (t tiles) bundle(block, size uint64) (entries [][]byte, path string, err error) {
	data, path, err := t.resource(func(p uint8) string { return layout.EntriesPath(block, p) },
		layout.PartialTileSize(0, block, size), maxBundle)
	if err != nil {
		return nil, path, err
	}
	var b api.EntryBundle
	if err := b.UnmarshalText(data); err != nil {
		return nil, path, fmt.Errorf("%s: %w", path, err)
	}
	want := int(min(size-block*blockSize, blockSize))
	if err := checkWidth(path, len(b.Entries), want); err != nil {
		return nil, path, err
	}
	return b.Entries[:want], path, nil
}

// tile returns the hashes of a tile in a tree of the given size, and the path of
// their file.
func (t tiles) tile(level, index, size uint64) (hashes [][]byte, path string, err error) {
	p := layout.PartialTileSize(level, index, size)
	data, path, err := t.resource(func(p uint8) string { return layout.TilePath(level, index, p) }, p, maxTile)
	if err != nil {
		return nil, path, err
	}
	var h api.HashTile
	if err := h.UnmarshalText(data); err != nil {
		return nil, path, fmt.Errorf("%s: %w", path, err)
	}
	want := int(p)
	if p == 0 {
		want = layout.TileWidth
	}
	if err := checkWidth(path, len(h.Nodes), want); err != nil {
		return nil, path, err
	}
	return h.Nodes[:want], path, nil
}

// checkWidth compares how many things the file at path holds with how many are
// wanted. Only a full file may hold more: it is the one that replaced a partial.
func checkWidth(path string, got, want int) error {
	if got == want || got == blockSize && got > want && !strings.Contains(path, ".p/") {
		return nil
	}
	return fmt.Errorf("%s holds %d things, want %d", path, got, want)
}
