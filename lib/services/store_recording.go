package services

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

const (
	// partsPerPage is how many parts one key tells of, so that a new part rewrites
	// 2 KB at most and a long recording takes few keys.
	partsPerPage = 64
	// partBytes is the size of a part's entry in a page: its place there, its size,
	// its SHA-256.
	partBytes = 1 + 4 + sha256.Size
	// maxAhead is how far a part may be ahead of the newest one: those between may
	// have been lost by their recorder.
	maxAhead = 64
	// partEnd is in the place of a page once there will be no further parts.
	partEnd = "end"
	// changeTries is how often a change of a recording begins again since another
	// was faster.
	changeTries = 16
)

// SessionRecording is what is known of a recording without opening it.
type SessionRecording struct {
	Session names.SessionID `json:"session"`
	Member  names.NodeID    `json:"member"` // whose it is: nobody else adds to it

	User     names.UserName `json:"user"`
	Login    names.Login    `json:"login"`
	NodeID   names.NodeID   `json:"node_id"`
	NodeName names.NodeName `json:"node_name"`
	Kind     string         `json:"kind"`
	Command  string         `json:"command,omitempty"`
	Terminal bool           `json:"terminal,omitempty"`
	Started  time.Time      `json:"started"`

	Sealed bool          `json:"sealed,omitempty"` // at least one part is
	Parts  uint32        `json:"parts"`            // number of the newest
	Size   int64         `json:"size"`             // of all, in bytes
	Last   time.Time     `json:"last"`             // when the newest came
	End    *RecordingEnd `json:"end,omitempty"`    // nil while it goes on

	Mirrored string            `json:"mirrored,omitempty"` // the mirror that has all of it
	Hold     string            `json:"hold,omitempty"`     // why it must not be removed
	Fault    string            `json:"fault,omitempty"`    // what is wrong with it
	Removing *RecordingRemoval `json:"removing,omitempty"` // it is as good as gone

	Revision int64 `json:"-"`
}

// RecordingEnd is what a recorder says when there are no further parts.
type RecordingEnd struct {
	Parts     uint32    `json:"parts"`
	Root      string    `json:"root"` // of the digest chain, hex
	At        time.Time `json:"at"`
	Recovered bool      `json:"recovered,omitempty"`
	Event     string    `json:"event,omitempty"` // uid of what the log says of it
}

// RecordingRemoval marks a recording of which parts may be gone already.
type RecordingRemoval struct {
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// RecordingPart is one part of a recording as stored.
type RecordingPart struct {
	Number uint32 // from 1
	Size   uint32
	Sum    [sha256.Size]byte // SHA-256

	Sealed bool // said when it is added; kept of the recording as a whole
}

func recordingKey(id names.SessionID) string { return dirRecording + string(id) }
func partDir(id names.SessionID) string      { return dirPart + string(id) + "/" }

func pageKey(id names.SessionID, number uint32) string {
	return fmt.Sprintf("%s%08d", partDir(id), (number-1)/partsPerPage)
}

// ClaimRecording makes r, which has no parts, or returns the recording that the
// session has already, whose member may be another.
func (s *Store) ClaimRecording(ctx context.Context, r SessionRecording) (SessionRecording, error) {
	for range changeTries {
		revision, err := s.b.Create(ctx, recordingKey(r.Session), encode(r))
		if err == nil {
			r.Revision = revision
			return r, nil
		}
		if !fault.Is(err, fault.Conflict) {
			return SessionRecording{}, err
		}
		there, err := s.Recording(ctx, r.Session)
		if !fault.Is(err, fault.NotFound) {
			return there, err
		}
	}
	return SessionRecording{}, changed("recording", string(r.Session))
}

// Recording returns what is known of a session's recording, or [fault.NotFound].
func (s *Store) Recording(ctx context.Context, id names.SessionID) (SessionRecording, error) {
	r, revision, err := get[SessionRecording](ctx, s, recordingKey(id), "recording")
	r.Revision = revision
	return r, err
}

// Recordings returns all recordings, in no certain order.
func (s *Store) Recordings(ctx context.Context) ([]SessionRecording, error) {
	return list(ctx, s, dirRecording, func(r *SessionRecording, revision int64) { r.Revision = revision })
}

// UpdateRecording replaces a recording at r.Revision, or returns [fault.Conflict]
// or [fault.NotFound]. Once it has an end, who watches it is told.
func (s *Store) UpdateRecording(ctx context.Context, r SessionRecording) error {
	key := recordingKey(r.Session)
	tx := s.b.Txn().At(key, r.Revision).Put(key, encode(r))
	if r.End != nil {
		tx.Put(partDir(r.Session)+partEnd, nil)
	}
	_, err := s.update(ctx, key, "recording", tx)
	return err
}

// ChangeRecording makes a change that may be tried again when somebody else was
// faster. change returns an error to leave things as they are.
func (s *Store) ChangeRecording(ctx context.Context, id names.SessionID, change func(*SessionRecording) error) (SessionRecording, error) {
	for range changeTries {
		r, err := s.Recording(ctx, id)
		if err != nil {
			return r, err
		}
		if err := change(&r); err != nil {
			return r, err
		}
		if err := s.UpdateRecording(ctx, r); !fault.Is(err, fault.Conflict) {
			return r, err
		}
	}
	return SessionRecording{}, changed("recording", string(id))
}

// RecordingPart returns what is known of one part, or [fault.NotFound].
func (s *Store) RecordingPart(ctx context.Context, id names.SessionID, number uint32) (RecordingPart, error) {
	page, _, err := s.page(ctx, id, number)
	if err != nil {
		return RecordingPart{}, err
	}
	if i, found := findPart(page, number); found {
		return page[i], nil
	}
	return RecordingPart{}, fault.New(fault.NotFound, "recording %s has no part %d", id, number)
}

func findPart(page []RecordingPart, number uint32) (int, bool) {
	return slices.BinarySearchFunc(page, number, func(p RecordingPart, n uint32) int { return int(p.Number) - int(n) })
}

// page returns the parts that share a key with a number, and the key's revision.
func (s *Store) page(ctx context.Context, id names.SessionID, number uint32) ([]RecordingPart, int64, error) {
	item, err := s.b.Get(ctx, pageKey(id, number))
	if fault.Is(err, fault.NotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	page, err := decodePage(item)
	return page, item.Revision, err
}

// AddRecordingPart notes a part that is in the store. That is a [fault.Conflict]
// when there is another part of the number, [fault.BadInput] when it is too far
// ahead, and what may returns for the recording as it is then. Noting the same part
// again changes nothing.
func (s *Store) AddRecordingPart(ctx context.Context, id names.SessionID, part RecordingPart, may func(SessionRecording) error) error {
	for range changeTries {
		if err := s.addPart(ctx, id, part, may); !errors.Is(err, errAgain) {
			return err
		}
	}
	return changed("recording", string(id))
}

func (s *Store) addPart(ctx context.Context, id names.SessionID, part RecordingPart, may func(SessionRecording) error) error {
	sealed := part.Sealed
	part.Sealed = false
	r, err := s.Recording(ctx, id)
	if err != nil {
		return err
	}
	if err := may(r); err != nil {
		return err
	}
	if err := r.CheckNumber(part.Number); err != nil {
		return err
	}
	page, revision, err := s.page(ctx, id, part.Number)
	if err != nil {
		return err
	}
	i, found := findPart(page, part.Number)
	if found && page[i] != part {
		return fault.New(fault.Conflict, "recording %s has another part %d", id, part.Number)
	}
	if found {
		return nil
	}
	r.Parts, r.Size, r.Last, r.Sealed = max(r.Parts, part.Number), r.Size+int64(part.Size), s.now(), r.Sealed || sealed
	key, pages := recordingKey(id), pageKey(id, part.Number)
	_, err = s.b.Txn().At(key, r.Revision).At(pages, revision).
		Put(key, encode(r)).Put(pages, encodePage(slices.Insert(page, i, part))).Commit(ctx)
	if fault.Is(err, fault.Conflict) {
		return errAgain
	}
	return err
}

// CheckNumber returns a [fault.BadInput] unless a part of this number may come.
func (r SessionRecording) CheckNumber(number uint32) error {
	if number == 0 || int64(number) > int64(r.Parts)+maxAhead {
		return fault.New(fault.BadInput, "recording %s: part %d: want 1 to %d", r.Session, number, int64(r.Parts)+maxAhead)
	}
	return nil
}

// RecordingParts returns the parts of a recording from a number on, in order.
// Numbers may be missing.
func (s *Store) RecordingParts(ctx context.Context, id names.SessionID, from uint32) ([]RecordingPart, error) {
	items, _, err := s.b.List(ctx, partDir(id))
	if err != nil {
		return nil, err
	}
	var out []RecordingPart
	for _, item := range items {
		if lastName(item.Key) == partEnd {
			continue
		}
		page, err := decodePage(item)
		if err != nil {
			return nil, err
		}
		i, _ := findPart(page, from)
		out = append(out, page[i:]...)
	}
	return out, nil
}

// WatchRecording calls fn at once and after every new part or end of a recording,
// until fn fails or ctx ends. Several changes may come in one call.
func (s *Store) WatchRecording(ctx context.Context, id names.SessionID, fn func() error) error {
	for {
		_, revision, err := s.b.List(ctx, partDir(id))
		if err != nil {
			return err
		}
		if err := fn(); err != nil {
			return err
		}
		err = s.b.Watch(ctx, partDir(id), revision+1, func([]backend.Event) error { return fn() })
		if !errors.Is(err, backend.ErrCompacted) {
			return err
		}
	}
}

// DeleteRecording forgets a recording.
func (s *Store) DeleteRecording(ctx context.Context, id names.SessionID) error {
	pages, err := s.b.Keys(ctx, partDir(id))
	if err != nil {
		return err
	}
	for some := range slices.Chunk(pages, changesAtOnce) {
		tx := s.b.Txn()
		for _, key := range some {
			tx.Delete(key)
		}
		if _, err := tx.Commit(ctx); err != nil {
			return err
		}
	}
	return missing(s.b.Delete(ctx, recordingKey(id)), "recording", recordingKey(id))
}

func encodePage(page []RecordingPart) []byte {
	out := make([]byte, 0, len(page)*partBytes)
	for _, p := range page {
		out = append(out, byte((p.Number-1)%partsPerPage))
		out = binary.BigEndian.AppendUint32(out, p.Size)
		out = append(out, p.Sum[:]...)
	}
	return out
}

func decodePage(item backend.Item) ([]RecordingPart, error) {
	var number uint32
	_, err := fmt.Sscanf(lastName(item.Key), "%08d", &number)
	data := item.Value
	if err != nil || len(data)%partBytes != 0 || strings.HasSuffix(item.Key, "/") {
		return nil, fault.New(fault.Internal, "the stored %q is damaged", item.Key)
	}
	out := make([]RecordingPart, 0, len(data)/partBytes)
	for ; len(data) > 0; data = data[partBytes:] {
		p := RecordingPart{Number: number*partsPerPage + uint32(data[0]) + 1, Size: binary.BigEndian.Uint32(data[1:])}
		copy(p.Sum[:], data[5:])
		out = append(out, p)
	}
	return out, nil
}
