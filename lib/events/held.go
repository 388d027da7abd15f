//go:build unix

package events

import (
	"bytes"
	"context"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// heldAtOnce is how many uids are looked up at once.
const heldAtOnce = 500

// Held reports which of some events the log has before a place, byte for byte: one
// of the same uid that is another event is not held.
func (l *Log) Held(ctx context.Context, list [][]byte, before string) ([]bool, error) {
	end, err := parsePlace("before", before, l.Size(), l.Size())
	if err != nil {
		return nil, err
	}
	held := make([]bool, len(list))
	at := map[uuid.UUID]int{}
	for i, data := range list {
		e, err := parseEntry(data)
		if err != nil {
			return nil, err
		}
		at[e.uid] = i
	}
	uids := make([]any, 0, len(at))
	for uid := range at {
		uids = append(uids, uid[:])
	}
	v := l.view().present()
	for some := range slices.Chunk(uids, heldAtOnce) {
		found, err := l.index.places(ctx, some)
		if err != nil {
			return nil, unavailable(err)
		}
		for uid, entry := range found {
			if entry >= end {
				continue
			}
			entries, ok, err := v.bundle(entry / blockSize)
			if err != nil {
				return nil, unavailable(err)
			}
			if n := int(entry % blockSize); ok && n < len(entries) {
				held[at[uid]] = bytes.Equal(entries[n], list[at[uid]])
			}
		}
	}
	return held, nil
}

// places returns the entries of those uids that the index knows.
func (x *index) places(ctx context.Context, uids []any) (map[uuid.UUID]uint64, error) {
	rows, err := x.db.QueryContext(ctx, "SELECT uid, entry FROM uids WHERE uid IN (?"+strings.Repeat(", ?", len(uids)-1)+")", uids...) //nolint:gosec // it is question marks
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	out := map[uuid.UUID]uint64{}
	for rows.Next() {
		var uid []byte
		var entry uint64
		if err := rows.Scan(&uid, &entry); err != nil {
			return nil, err
		}
		out[uuid.UUID(uid)] = entry
	}
	return out, rows.Err()
}
