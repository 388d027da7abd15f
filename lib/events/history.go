package events

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"
	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/lib/fault"
)

// treeState is the file in which Tessera keeps the size and the root of the tree
// as written, signed or not.
const treeState = ".state/treeState"

// state is the content of treeState.
type state struct {
	Size uint64 `json:"size"`
	Root []byte `json:"root"`
}

func (t tiles) state(name string) (state, error) {
	var s state
	raw, err := t.file(name, maxCheckpoint)
	if err == nil {
		err = json.Unmarshal(raw, &s)
	}
	return s, err
}

// checkHistory returns an error unless the tree is one that key's owner may go on
// signing: the last checkpoint is theirs, the tree was not cut back behind it, and
// what it signed and what was written since have the roots they had. It looks at
// the right edge only; [Verify] looks at everything.
func checkHistory(ctx context.Context, t tiles, key note.Verifier) error {
	err := sameHistory(ctx, t, key)
	if _, wrong := errors.AsType[*TamperedError](err); wrong {
		return fault.New(fault.Internal, "the audit log is not as it was left: %w", err).
			WithHint("bring the log back from a copy, or move it away to begin a new one")
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "the audit log cannot be read")
	}
	return nil
}

func sameHistory(ctx context.Context, t tiles, key note.Verifier) error {
	written, err := t.state(treeState)
	fresh := errors.Is(err, fs.ErrNotExist)
	if err != nil && !fresh {
		return &TamperedError{treeState, -1, err.Error()}
	}
	raw, err := t.file(layout.CheckpointPath, maxCheckpoint)
	if errors.Is(err, fs.ErrNotExist) {
		if fresh || written.Size == 0 { // a crash may come before the first checkpoint
			return nil
		}
		return &TamperedError{layout.CheckpointPath, -1, "there is no checkpoint"}
	} else if err != nil {
		return err
	}
	signed, err := parseCheckpoint(layout.CheckpointPath, raw, key)
	if err != nil {
		return err
	}
	if written.Size < signed.Size {
		return &TamperedError{treeState, int64(written.Size), fmt.Sprintf("the log ends here, but its checkpoint signs %d entries", signed.Size)}
	}
	if err := t.sameRoot(ctx, layout.CheckpointPath, state{signed.Size, signed.Hash}); err != nil {
		return err
	}
	return t.sameRoot(ctx, treeState, written)
}

// sameRoot compares the root that name claims with the one that the tiles give.
func (t tiles) sameRoot(ctx context.Context, name string, claim state) error {
	root := rfc6962.DefaultHasher.EmptyRoot()
	if claim.Size > 0 {
		hashes, err := client.FetchRangeNodes(ctx, claim.Size, t.fetch)
		if err != nil {
			return &TamperedError{name, -1, err.Error()}
		}
		r, err := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewRange(0, claim.Size, hashes)
		if err != nil {
			return &TamperedError{name, -1, err.Error()}
		}
		if root, err = r.GetRootHash(nil); err != nil {
			return &TamperedError{name, -1, err.Error()}
		}
	}
	if !bytes.Equal(root, claim.Root) {
		return &TamperedError{name, -1, fmt.Sprintf("the first %d entries do not have the root it names", claim.Size)}
	}
	return nil
}

// fetch is the [client.TileFetcherFunc] of t.
func (t tiles) fetch(_ context.Context, level, index uint64, p uint8) ([]byte, error) {
	data, _, err := t.resource(func(p uint8) string { return layout.TilePath(level, index, p) }, p, maxTile)
	return data, err
}
