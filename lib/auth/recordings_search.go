package auth

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/durationpb"
	_ "modernc.org/sqlite" // the driver "sqlite"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

const (
	linesName = "lines.db"
	// linesVersion changes with the form, and with what a line is; an index of
	// another version is made anew.
	linesVersion = 2
	// maxLines bounds the text of one recording that can be searched, in bytes, of
	// which each line takes lineCost more than it has.
	maxLines = 4 << 20
	lineCost = 64
	// maxSearched bounds the output of one recording that is gone through, in bytes.
	maxSearched = 64 << 20
	// paced is for how long the index works until it rests for as long: people's
	// sessions come first.
	paced = 10 * time.Millisecond
	// Bounds of a search.
	defaultMatches = 100
	maxMatches     = 1000
	maxWords       = 32
	maxWordsLength = 1 << 10 // bytes
)

// linesForm is the index: one row of recordings for each that was gone through,
// whose lines stand together from first on.
const linesForm = `
CREATE TABLE recordings (
	id INTEGER PRIMARY KEY, session TEXT NOT NULL UNIQUE, started INTEGER NOT NULL,
	user TEXT NOT NULL, node_id TEXT NOT NULL, node_name TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL);
CREATE VIRTUAL TABLE lines USING fts5(line, at UNINDEXED, recording UNINDEXED, tokenize = 'unicode61 remove_diacritics 2');
INSERT INTO lines(lines, rank) VALUES ('secure-delete', 1);
`

// searchIndex finds words in the output of recordings that are not sealed. It is
// derived from the store: deleting it loses nothing but the time to make it anew.
type searchIndex struct {
	dir string

	mu sync.Mutex // guards db, which is nil until it is needed
	db *sql.DB
}

func newSearchIndex(dir string) *searchIndex { return &searchIndex{dir: dir} }

// open returns the index's database; one that is of no use is made anew.
func (x *searchIndex) open(ctx context.Context) (*sql.DB, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.db != nil {
		return x.db, nil
	}
	if err := os.MkdirAll(x.dir, 0o700); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot make the index of recordings")
	}
	db, err := x.load(ctx)
	if err != nil && ctx.Err() == nil {
		for _, suffix := range []string{"", "-wal", "-shm"} {
			_ = os.Remove(filepath.Join(x.dir, linesName+suffix)) // or else the next open says so
		}
		db, err = x.load(ctx)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot open the index of recordings")
	}
	x.db = db
	return db, nil
}

func (x *searchIndex) load(ctx context.Context) (*sql.DB, error) {
	params := url.Values{"_pragma": {"journal_mode(wal)", "synchronous(normal)", "busy_timeout(60000)", "secure_delete(on)"}, "_txlock": {"immediate"}}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: filepath.Join(x.dir, linesName)}).EscapedPath()+"?"+params.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(4)
	var version int
	err = db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version)
	if err == nil && version == 0 {
		_, err = db.ExecContext(ctx, fmt.Sprintf("BEGIN; %s PRAGMA user_version=%d; COMMIT;", linesForm, linesVersion))
	} else if err == nil && version != linesVersion {
		err = fmt.Errorf("index of version %d, want %d", version, linesVersion)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func (x *searchIndex) close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.db != nil {
		_ = x.db.Close() // it is derived
		x.db = nil
	}
}

// sessions returns those whose recordings were gone through.
func (x *searchIndex) sessions(ctx context.Context) (map[names.SessionID]bool, error) {
	db, err := x.open(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := db.QueryContext(ctx, "SELECT session FROM recordings")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	out := map[names.SessionID]bool{}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		out[names.SessionID(id)] = true
	}
	return out, rows.Err()
}

// add puts the lines that read calls emit with into the index, all or none.
func (x *searchIndex) add(ctx context.Context, r services.SessionRecording, read func(emit func(at time.Duration, line string) error) error) error {
	db, err := x.open(ctx)
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // of what was not committed
	var first int64
	if err := tx.QueryRowContext(ctx, "SELECT coalesce(max(last), 0) + 1 FROM recordings").Scan(&first); err != nil {
		return err
	}
	done, err := tx.ExecContext(ctx, "INSERT OR IGNORE INTO recordings VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)",
		r.Session, r.Started.UnixMicro(), r.User, r.NodeID, r.NodeName, first, first-1)
	if err != nil {
		return err
	}
	if n, err := done.RowsAffected(); err != nil || n == 0 {
		return err // somebody else was faster
	}
	id, err := done.LastInsertId()
	if err != nil {
		return err
	}
	insert, err := tx.PrepareContext(ctx, "INSERT INTO lines(rowid, line, at, recording) VALUES (?, ?, ?, ?)")
	if err != nil {
		return err
	}
	defer func() { _ = insert.Close() }()
	last, size := first-1, 0
	err = read(func(at time.Duration, line string) error {
		if size += lineCost + len(line); size > maxLines {
			return errEnoughLines
		}
		last++
		_, err := insert.ExecContext(ctx, last, line, at.Microseconds(), id)
		return err
	})
	if err != nil && !errors.Is(err, errEnoughLines) {
		return err
	}
	if _, err := tx.ExecContext(ctx, "UPDATE recordings SET last = ? WHERE id = ?", last, id); err != nil {
		return err
	}
	return tx.Commit()
}

// errEnoughLines ends the reading of a recording of which no more can be searched.
var errEnoughLines = errors.New("enough lines")

// rest waits for as long as the work since began took, unless that is short, and
// returns when the work goes on.
func rest(ctx context.Context, began time.Time) (time.Time, error) {
	took := time.Since(began)
	if took < paced {
		return began, nil
	}
	select {
	case <-time.After(took):
		return time.Now(), nil
	case <-ctx.Done():
		return began, context.Cause(ctx)
	}
}

// forget removes the lines of a recording, and what they left in the file.
func (x *searchIndex) forget(ctx context.Context, session names.SessionID) error {
	db, err := x.open(ctx)
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot change the index of recordings")
	}
	defer func() { _ = tx.Rollback() }() // of what was not committed
	var id, first, last int64
	err = tx.QueryRowContext(ctx, "SELECT id, first, last FROM recordings WHERE session = ?", session).Scan(&id, &first, &last)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err == nil {
		_, err = tx.ExecContext(ctx, "DELETE FROM lines WHERE rowid BETWEEN ? AND ?", first, last)
	}
	if err == nil {
		_, err = tx.ExecContext(ctx, "DELETE FROM recordings WHERE id = ?", id)
	}
	if err == nil {
		err = tx.Commit()
	}
	if err == nil {
		_, err = db.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot change the index of recordings")
	}
	return nil
}

// match is a line that has the words.
type match struct {
	session names.SessionID
	at      time.Duration
	line    string
}

// search returns lines with all words, those of the newest recordings first.
func (x *searchIndex) search(ctx context.Context, m *accessdv1.SearchRecordingsRequest, words []string, limit int) ([]match, error) {
	db, err := x.open(ctx)
	if err != nil {
		return nil, err
	}
	until := int64(1<<63 - 1)
	if t := timeOf(m.GetUntil()); !t.IsZero() {
		until = t.UnixMicro()
	}
	var since int64
	if t := timeOf(m.GetSince()); !t.IsZero() {
		since = t.UnixMicro()
	}
	rows, err := db.QueryContext(ctx, `
		SELECT r.session, l.at, l.line FROM lines l JOIN recordings r ON r.id = l.recording
		WHERE lines MATCH ? AND r.started >= ? AND r.started < ? AND (? = '' OR r.user = ?) AND (? = '' OR r.node_id = ? OR r.node_name = ?)
		ORDER BY r.started DESC, l.rowid LIMIT ?`,
		strings.Join(words, " "), since, until, m.GetUser(), m.GetUser(), m.GetNode(), m.GetNode(), m.GetNode(), limit)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot search the index of recordings")
	}
	defer func() { _ = rows.Close() }()
	var out []match
	for rows.Next() {
		var f match
		var at int64
		if err := rows.Scan(&f.session, &at, &f.line); err != nil {
			return nil, err
		}
		f.at = time.Duration(at) * time.Microsecond
		out = append(out, f)
	}
	return out, rows.Err()
}

// parseWords returns what was asked for as words of a query that has no operators.
func parseWords(s string) ([]string, error) {
	var out []string
	for w := range strings.FieldsSeq(s) {
		if strings.ContainsFunc(w, func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }) {
			out = append(out, `"`+strings.ReplaceAll(w, `"`, `""`)+`"`)
		}
	}
	if len(out) == 0 || len(out) > maxWords || len(s) > maxWordsLength || strings.ContainsFunc(s, unicode.IsControl) {
		return nil, fault.New(fault.BadInput, "want 1 to %d words of letters and digits to search for, of %d bytes at most", maxWords, maxWordsLength)
	}
	return out, nil
}

// SearchRecordings returns lines of recordings' output that have all words. What
// was searched for is in the log before.
func (s archiveService) SearchRecordings(ctx context.Context, req *connect.Request[accessdv1.SearchRecordingsRequest]) (*connect.Response[accessdv1.SearchRecordingsResponse], error) {
	m, c := req.Msg, callerOf(ctx)
	words, err := parseWords(m.GetWords())
	if err != nil {
		return nil, err
	}
	limit, err := limitOf(m.GetLimit(), defaultMatches, maxMatches)
	if err != nil {
		return nil, err
	}
	ev := events.Event{Name: events.RecordingSearch, Success: true, AddrRemote: c.addr, Fields: map[string]any{"by": c.by, "words": m.GetWords()}}
	if err := s.record(ctx, ev); err != nil {
		return nil, err
	}
	list, err := s.visible(ctx)
	if err != nil {
		return nil, err
	}
	res := &accessdv1.SearchRecordingsResponse{}
	there := map[names.SessionID]services.SessionRecording{}
	asked := &accessdv1.ListRecordingsRequest{User: m.GetUser(), Node: m.GetNode(), Since: m.GetSince(), Until: m.GetUntil()}
	for _, r := range list {
		there[r.Session] = r
		if r.Sealed && wanted(asked, r) {
			res.Sealed++
		}
	}
	found, err := s.archive.index.search(ctx, m, words, limit)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		if r, ok := there[f.session]; ok { // else another authority has just removed it
			res.Matches = append(res.Matches, &accessdv1.RecordingMatch{Recording: recordingMessage(r), At: durationpb.New(f.at), Line: f.line})
		}
	}
	return connect.NewResponse(res), nil
}

// catchUp makes the index one of the recordings in list that are complete and not
// sealed.
func (k *archive) catchUp(ctx context.Context, list []services.SessionRecording) error {
	have, err := k.index.sessions(ctx)
	if err != nil {
		return err
	}
	for _, r := range list {
		if r.End == nil || r.Sealed {
			continue
		}
		known := have[r.Session]
		delete(have, r.Session)
		if known {
			continue
		}
		if err := k.index.add(ctx, r, k.linesOf(ctx, r)); err != nil {
			if ctx.Err() != nil {
				return err
			}
			k.cfg.Log.Warn("a recording cannot be searched yet", zap.String("session", string(r.Session)), zap.Error(err))
		}
	}
	for session := range have { // whose recordings another authority has removed
		if err := k.index.forget(ctx, session); err != nil {
			return err
		}
	}
	return nil
}

// linesOf reads the lines of a recording. What is damaged or missing in it has
// none.
func (k *archive) linesOf(ctx context.Context, r services.SessionRecording) func(emit func(time.Duration, string) error) error {
	return func(emit func(time.Duration, string) error) error {
		parts, err := k.cfg.Store.RecordingParts(ctx, r.Session, 1)
		if err != nil {
			return err
		}
		reader, lines := recording.NewReader(nil), recording.NewLineReader(emit)
		left, began := maxSearched, time.Now()
		for _, p := range parts {
			data, err := k.part(ctx, r, p)
			if fault.Is(err, fault.Conflict) {
				continue
			}
			if err != nil {
				return err
			}
			frames, err := reader.Part(p.Number, data)
			if err != nil { // it is no recording that this version knows
				break
			}
			if left -= shown(frames); left < 0 {
				return errEnoughLines
			}
			if err := takeAll(lines, frames); err != nil {
				return err
			}
			if began, err = rest(ctx, began); err != nil {
				return err
			}
		}
		return lines.Close()
	}
}

// shown returns how many bytes frames show.
func shown(frames []*accessdv1.Frame) (n int) {
	for _, f := range frames {
		n += len(f.GetPrint().GetData())
	}
	return n
}

// takeAll gives frames to lines.
func takeAll(lines *recording.LineReader, frames []*accessdv1.Frame) error {
	for _, f := range frames {
		if err := lines.Frame(f); err != nil {
			return err
		}
	}
	return nil
}
