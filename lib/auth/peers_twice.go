package auth

import (
	"context"
	"crypto/sha256"

	"github.com/accessd/accessd/lib/names"
)

// maxTold bounds the events that a tour remembers to have told.
const maxTold = 1 << 14

// told remembers what a tour told last, by digest. A member whose authority died
// between writing and answering ships a batch again, soon, to another.
type told struct {
	at   map[[sha256.Size]byte]bool
	last [][sha256.Size]byte // in the order they came in, from next on
	next int
}

// fresh returns the events that are not among those told last, and counts all as
// told.
func (d *told) fresh(list [][]byte) [][]byte {
	if d.at == nil {
		d.at = map[[sha256.Size]byte]bool{}
	}
	out := make([][]byte, 0, len(list))
	for _, data := range list {
		sum := sha256.Sum256(data)
		if d.at[sum] {
			continue
		}
		out = append(out, data)
		d.at[sum] = true
		if len(d.last) < maxTold {
			d.last = append(d.last, sum)
			continue
		}
		delete(d.at, d.last[d.next])
		d.last[d.next] = sum
		d.next = (d.next + 1) % maxTold
	}
	return out
}

// unheard returns what of a log's page was not told from another log: from this
// authority's own, up to where that has been told, or lately from any. Only the
// same event, to the byte, is the same: who makes up a uid hides nothing.
func (t *tour) unheard(ctx context.Context, id names.NodeID, list [][]byte) ([][]byte, error) {
	own := t.cfg.Keys.authority
	if id != own && t.at[own] != "" && len(list) > 0 {
		held, err := t.cfg.Audit.Held(ctx, list, t.at[own])
		if err != nil {
			return nil, err
		}
		kept := make([][]byte, 0, len(list))
		for i, data := range list {
			if !held[i] {
				kept = append(kept, data)
			}
		}
		list = kept
	}
	return t.told.fresh(list), nil
}
