//go:build unix

package events

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// VerifyIndex checks that the index knows every entry, so that no query leaves out
// what the log has. What the log has is [Verify]'s matter. The error wraps a
// [*TamperedError] that names the first entry that is not found by way of the
// index.
func (l *Log) VerifyIndex(ctx context.Context) error {
	var sound string
	if err := l.index.db.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&sound); err != nil {
		return unavailable(err)
	}
	if sound != "ok" {
		return &TamperedError{indexName, -1, "it is damaged: " + sound}
	}
	size, indexed, _ := l.state()
	for block := uint64(0); block*blockSize < indexed; block++ {
		if err := ctx.Err(); err != nil {
			return unavailable(err)
		}
		entries, _, err := l.tiles.bundle(block, size)
		if err != nil {
			return unavailable(err)
		}
		entries = entries[:min(uint64(len(entries)), indexed-block*blockSize)]
		if err := l.index.verifyBlock(ctx, block, entries); err != nil {
			return err
		}
	}
	return nil
}

// verifyBlock checks what the index has of the entries of a block, or of its
// beginning. It may say "perhaps" to more than that.
func (x *index) verifyBlock(ctx context.Context, block uint64, entries [][]byte) error {
	first := int64(block * blockSize)
	var (
		earliest, latest int64
		terms, grams     []byte
	)
	err := x.db.QueryRowContext(ctx, "SELECT earliest, latest, terms, grams FROM blocks LEFT JOIN texts USING (block) WHERE block = ?", block).
		Scan(&earliest, &latest, &terms, &grams)
	if errors.Is(err, sql.ErrNoRows) {
		return &TamperedError{indexName, first, "its block is missing" + anew}
	} else if err != nil {
		return unavailable(err)
	}
	for i, data := range entries {
		e, err := parseEntry(data)
		if err != nil {
			continue // [Verify] and the start of the log say so
		}
		var one summary
		one.add(e)
		if one.earliest < earliest || one.latest > latest || !covers(terms, one.terms[:]) || grams != nil && !covers(grams, one.grams[:]) {
			return &TamperedError{indexName, first + int64(i), fmt.Sprintf("%s %s would not be found%s", e.event.Name, e.uid, anew)}
		}
		if err := x.verifyUID(ctx, e.uid, first+int64(i), entries); err != nil {
			return err
		}
	}
	return nil
}

// anew ends what is wrong with an index.
const anew = "; delete the index while accessd is stopped, and it is made anew"

// verifyUID checks that uid leads to its entry. Of entries with one uid, which a
// crash of long ago may have left, it leads to the first.
func (x *index) verifyUID(ctx context.Context, uid uuid.UUID, entry int64, entries [][]byte) error {
	var found int64
	err := x.db.QueryRowContext(ctx, "SELECT entry FROM uids WHERE uid = ?", uid[:]).Scan(&found)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return unavailable(err)
	}
	if err == nil && found == entry {
		return nil
	}
	if err == nil && found < entry && found >= entry-entry%blockSize {
		if e, err := parseEntry(entries[found%blockSize]); err == nil && e.uid == uid {
			return nil
		}
	}
	return &TamperedError{indexName, entry, fmt.Sprintf("event %s is not where the index says%s", uid, anew)}
}

// covers reports whether set has all the bits of part.
func covers(set, part []byte) bool {
	if len(set) != len(part) {
		return false
	}
	both := make([]byte, len(part))
	for i := range part {
		both[i] = set[i] & part[i]
	}
	return bytes.Equal(both, part)
}
