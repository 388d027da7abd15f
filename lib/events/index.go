//go:build unix

package events

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/accessd/accessd/lib/fault"
)

const (
	indexName = "index.db"
	// indexVersion changes with the form; an index of another version is rebuilt.
	indexVersion = 2
)

// indexForm is the index. uids answers "is it there already?"; blocks answers
// "where may it be?" for 256 entries at a time, spans finds blocks by their times,
// and texts has the grams of whole blocks. One row of progress says how far the
// index got, and which uid the last entry had.
const indexForm = `
CREATE TABLE uids (uid BLOB PRIMARY KEY, entry INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE blocks (block INTEGER PRIMARY KEY, earliest INTEGER NOT NULL, latest INTEGER NOT NULL, terms BLOB NOT NULL);
CREATE INDEX spans ON blocks (latest, earliest);
CREATE TABLE texts (block INTEGER PRIMARY KEY, grams BLOB NOT NULL);
CREATE TABLE progress (one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL, last BLOB NOT NULL);
INSERT INTO progress VALUES (1, 0, x'');
`

// entry is an event on its way into the log.
type entry struct {
	data  []byte
	event Event
	uid   uuid.UUID
}

func parseEntry(data []byte) (entry, error) {
	ev, err := ParseEvent(data)
	if err != nil {
		return entry{}, err
	}
	return entry{data: data, event: ev, uid: uuid.MustParse(ev.UID)}, nil
}

// index is what is derived from the log to find things in it. It may be deleted
// at any time the log is closed.
type index struct {
	db   *sql.DB
	size uint64    // entries in it
	last uuid.UUID // of entry size-1
	tail summary   // of the block that entry size belongs to
}

// openIndex opens the index in dir, or begins a new one where there is none that
// can be read.
func openIndex(ctx context.Context, dir string) (*index, error) {
	x, err := loadIndex(ctx, dir)
	if err == nil || errors.Is(err, context.Canceled) {
		return x, err
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(filepath.Join(dir, indexName+suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fault.Wrap(fault.Unavailable, err, "cannot replace the audit index")
		}
	}
	if x, err = loadIndex(ctx, dir); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot make the audit index")
	}
	return x, nil
}

// loadIndex opens the index in dir and makes it when it is empty. An error means
// that it is of no use.
func loadIndex(ctx context.Context, dir string) (*index, error) {
	// Losing the newest of the index to a power cut is harmless: it is caught up
	// from the log. Losing its consistency is not.
	params := url.Values{"_pragma": {"journal_mode(wal)", "synchronous(normal)", "busy_timeout(10000)", "cache_size(-16384)"}}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: filepath.Join(dir, indexName)}).EscapedPath()+"?"+params.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(8)
	x := &index{db: db}
	if err := x.load(ctx); err != nil {
		_ = db.Close()
		return nil, err
	}
	return x, nil
}

func (x *index) load(ctx context.Context) error {
	var version int
	if err := x.db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version == 0 {
		if _, err := x.db.ExecContext(ctx, fmt.Sprintf("BEGIN; %s PRAGMA user_version=%d; COMMIT;", indexForm, indexVersion)); err != nil {
			return err
		}
	} else if version != indexVersion {
		return fmt.Errorf("index of version %d, want %d", version, indexVersion)
	}
	var last []byte
	if err := x.db.QueryRowContext(ctx, "SELECT size, last FROM progress").Scan(&x.size, &last); err != nil {
		return err
	}
	copy(x.last[:], last)
	if x.size%blockSize == 0 {
		return nil
	}
	tail, err := x.summary(ctx, x.size/blockSize)
	x.tail = tail
	return err
}

// summary returns the summary of a block that is not whole.
func (x *index) summary(ctx context.Context, block uint64) (summary, error) {
	s := summary{used: true}
	var terms []byte
	err := x.db.QueryRowContext(ctx, "SELECT earliest, latest, terms FROM blocks WHERE block = ?", block).
		Scan(&s.earliest, &s.latest, &terms)
	if err == nil && len(terms) != len(s.terms) {
		err = fmt.Errorf("summary of block %d has %d bytes", block, len(terms))
	}
	copy(s.terms[:], terms)
	s.forget()
	return s, err
}

// window returns the blocks of s between the first and the last that hold events
// of the right time.
func (x *index) window(ctx context.Context, f Filter, s span) (span, error) {
	if f.Since.IsZero() && f.Until.IsZero() {
		return s, nil
	}
	since, until := int64(math.MinInt64), int64(math.MaxInt64)
	if !f.Since.IsZero() {
		since = f.Since.UnixMicro()
	}
	if !f.Until.IsZero() {
		until = f.Until.UnixMicro()
	}
	var first, last sql.Null[uint64]
	err := x.db.QueryRowContext(ctx, "SELECT min(block), max(block) FROM blocks INDEXED BY spans WHERE latest >= ? AND earliest <= ?", since, until).
		Scan(&first, &last)
	if err != nil || !first.Valid {
		return span{}, err
	}
	return span{max(s.from, first.V), min(s.end, last.V+1)}, nil
}

// find returns at most atOnce of the blocks of w that may hold an event that is
// selected, and the part that is left.
func (x *index) find(ctx context.Context, w walk) (found []uint64, rest span, err error) {
	const atOnce = 64
	sel, s, back := w.sel, w.span, w.back
	if s.from >= s.end {
		return nil, span{}, nil
	}
	what, from, order := "block, earliest, latest, terms, NULL", "blocks", "block"
	if len(sel.grams) > 0 {
		what, from = "block, earliest, latest, terms, grams", "blocks LEFT JOIN texts USING (block)"
	}
	if back {
		order = "block DESC"
	}
	rows, err := x.db.QueryContext(ctx, "SELECT "+what+" FROM "+from+" WHERE block >= ? AND block < ? ORDER BY "+order, s.from, s.end)
	if err != nil {
		return nil, span{}, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var block uint64
		var earliest, latest int64
		var terms, grams sql.RawBytes
		if err := rows.Scan(&block, &earliest, &latest, &terms, &grams); err != nil {
			return nil, span{}, err
		}
		if !sel.during(earliest, latest) || !hasTerms(terms, sel.terms) || grams != nil && !hasGrams(grams, sel.grams) {
			continue
		}
		if found = append(found, block); len(found) < atOnce {
			continue
		}
		if back {
			return found, span{s.from, block}, nil
		}
		return found, span{block + 1, s.end}, nil
	}
	return found, span{}, rows.Err()
}

// addition is a change of the index that is not committed yet. Its entries are
// those that follow the index's last one.
type addition struct {
	*sql.Tx

	x       *index
	size    uint64
	last    uuid.UUID
	tail    summary
	uids    *sql.Stmt
	changed map[uint64]*summary
}

// begin begins an addition; only one may be open.
func (x *index) begin(ctx context.Context) (*addition, error) {
	tx, err := x.db.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	uids, err := tx.PrepareContext(ctx, "INSERT OR IGNORE INTO uids VALUES (?, ?)")
	if err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	return &addition{Tx: tx, x: x, size: x.size, last: x.last, tail: x.tail, uids: uids, changed: map[uint64]*summary{}}, nil
}

// add adds e as the next entry; fresh is false, and nothing is added, when its
// uid is there already.
func (a *addition) add(ctx context.Context, e entry) (fresh bool, err error) {
	done, err := a.uids.ExecContext(ctx, e.uid[:], a.size)
	if err != nil {
		return false, err
	}
	if n, err := done.RowsAffected(); err != nil || n == 0 {
		return false, err
	}
	a.tail.add(e)
	a.advance(e.uid)
	return true, nil
}

// advance ends the next entry's place in the index.
func (a *addition) advance(uid uuid.UUID) {
	block := a.size / blockSize
	a.changed[block] = &a.tail
	a.last = uid
	if a.size++; a.size%blockSize == 0 {
		whole := a.tail
		a.changed[block], a.tail = &whole, summary{}
	}
}

// jump goes on at the beginning of another tree; the block that the tree before
// ends with is whole.
func (a *addition) jump(to uint64) {
	if to <= a.size {
		return
	}
	if a.size%blockSize != 0 {
		whole := a.tail
		a.changed[a.size/blockSize], a.tail = &whole, summary{}
	}
	a.size = to
}

// commit makes the addition part of the index.
func (a *addition) commit(ctx context.Context) error {
	for block, s := range a.changed {
		if _, err := a.ExecContext(ctx, "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?)",
			block, s.earliest, s.latest, s.terms[:]); err != nil {
			return errors.Join(err, a.Rollback())
		}
		if (block+1)*blockSize > a.size { // not whole: its grams are still to come
			continue
		}
		if _, err := a.ExecContext(ctx, "INSERT OR REPLACE INTO texts VALUES (?, ?)", block, s.grams[:]); err != nil {
			return errors.Join(err, a.Rollback())
		}
	}
	if _, err := a.ExecContext(ctx, "UPDATE progress SET size = ?, last = ?", a.size, a.last[:]); err != nil {
		return errors.Join(err, a.Rollback())
	}
	if err := a.Commit(); err != nil {
		return err
	}
	a.x.size, a.x.last, a.x.tail = a.size, a.last, a.tail
	return nil
}
