//go:build unix

package events

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

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
	v, indexed, _ := l.state()
	v = v.present()
	for block := uint64(0); block*blockSize < indexed; block++ {
		if err := ctx.Err(); err != nil {
			return unavailable(err)
		}
		entries, ok, err := v.bundle(block)
		if err != nil {
			return unavailable(err)
		}
		if !ok { // archived
			continue
		}
		entries = entries[:min(uint64(len(entries)), indexed-block*blockSize)]
		if err := l.verifyBlock(ctx, block, entries); err != nil {
			return err
		}
	}
	return nil
}

// verifyBlock checks what the index has of the entries of a block, or of its
// beginning. It may say "perhaps" to more than that.
func (l *Log) verifyBlock(ctx context.Context, block uint64, entries [][]byte) error {
	first := int64(block * blockSize)
	var (
		earliest, latest int64
		terms, grams     []byte
	)
	err := l.index.db.QueryRowContext(ctx, "SELECT earliest, latest, terms, grams FROM blocks LEFT JOIN texts USING (block) WHERE block = ?", block).
		Scan(&earliest, &latest, &terms, &grams)
	if errors.Is(err, sql.ErrNoRows) {
		return &TamperedError{indexName, first, "its block is missing" + anew}
	} else if err != nil {
		return unavailable(err)
	}
	var (
		all  summary
		list = make([]entry, len(entries))
	)
	for i, data := range entries {
		if list[i], err = parseEntry(data); err == nil { // else [Verify] and the start of the log say so
			all.add(list[i])
		}
	}
	knows := func(s *summary) bool {
		return !s.used || s.earliest >= earliest && s.latest <= latest && covers(terms, s.terms[:]) && (grams == nil || covers(grams, s.grams[:]))
	}
	if !knows(&all) {
		for i, e := range list {
			var one summary
			if e.data != nil {
				one.add(e)
			}
			if !knows(&one) {
				return &TamperedError{indexName, first + int64(i), fmt.Sprintf("%s %s would not be found%s", e.event.Name, e.uid, anew)}
			}
		}
	}
	return l.verifyUIDs(ctx, first, list)
}

// anew ends what is wrong with an index.
const anew = "; delete the index while accessd is stopped, and it is made anew"

// verifyUIDs checks that the uids of a block's entries lead to them. Of entries
// with one uid, which a crash of long ago may have left, it leads to the first.
func (l *Log) verifyUIDs(ctx context.Context, first int64, list []entry) error {
	uids := make([]any, len(list))
	for i := range list {
		uids[i] = list[i].uid[:]
	}
	question := "SELECT uid, entry FROM uids WHERE uid IN (?" + strings.Repeat(",?", len(list)-1) + ")" //nolint:gosec // question marks only
	rows, err := l.index.db.QueryContext(ctx, question, uids...)
	if err != nil {
		return unavailable(err)
	}
	defer func() { _ = rows.Close() }()
	found := make(map[uuid.UUID]int64, len(list))
	for rows.Next() {
		var (
			uid   sql.RawBytes
			entry int64
		)
		if err := rows.Scan(&uid, &entry); err != nil {
			return unavailable(err)
		}
		if id, err := uuid.FromBytes(uid); err == nil {
			found[id] = entry
		}
	}
	if err := rows.Err(); err != nil {
		return unavailable(err)
	}
	for i, e := range list {
		at, ok := found[e.uid]
		if e.data == nil || ok && (at == first+int64(i) || at < first+int64(i) && l.isEntry(uint64(at), e.uid)) {
			continue
		}
		return &TamperedError{indexName, first + int64(i), fmt.Sprintf("event %s is not where the index says%s", e.uid, anew)}
	}
	return nil
}

// isEntry reports whether an entry is the event with that uid.
func (l *Log) isEntry(at uint64, uid uuid.UUID) bool {
	entries, ok, err := l.view().present().bundle(at / blockSize)
	if err != nil || !ok || at%blockSize >= uint64(len(entries)) {
		return false
	}
	e, err := parseEntry(entries[at%blockSize])
	return err == nil && e.uid == uid
}

// covers reports whether set has all the bits of part.
func covers(set, part []byte) bool {
	if len(set) != len(part) {
		return false
	}
	for i := range part {
		if part[i]&^set[i] != 0 {
			return false
		}
	}
	return true
}
