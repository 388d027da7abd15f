//go:build unix

package recording

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"strconv"
	"strings"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/names"
)

// Recover closes what an earlier process left open, marked recovered, and returns
// the summaries of all that an earlier process wrote and whose session.end may not
// be in the log. Every call returns the same. Beside an error, as of a full disk,
// it returns what could be recovered; the next call tries the others again.
func (r *Recorder) Recover() (map[names.SessionID]Summary, error) {
	r.recovering.Lock()
	defer r.recovering.Unlock()
	var again []names.SessionID
	var errs []error
	for _, id := range r.left {
		err := r.recoverSession(id)
		if r.giveReserve(err) {
			err = r.recoverSession(id)
		}
		if err != nil {
			again = append(again, id)
			errs = append(errs, fmt.Errorf("recover the recording of session %s: %w", id, unwritable(err)))
		}
	}
	r.left = again
	return maps.Clone(r.recovered), errors.Join(errs...)
}

// wreck is what is on disk of a session of an earlier process.
type wreck struct {
	session  *session
	records  map[uint32]partRecord // from the state
	parts    map[uint32]bool
	journals map[uint32]bool
	last     uint32 // the highest number of any of them

	state    []byte       // to be written anew
	queue    []partRecord // parts on disk
	damaged  []string     // files to set aside
	obsolete []string     // files to remove
}

func (r *Recorder) recoverSession(id names.SessionID) error {
	w := &wreck{
		session: &session{r: r, id: id}, records: map[uint32]partRecord{}, parts: map[uint32]bool{}, journals: map[uint32]bool{},
	}
	s := w.session
	before := r.measure(id)
	if err := w.list(); err != nil {
		return err
	}
	if err := w.readState(); err != nil {
		return err
	}
	if s.start == nil && w.last == 0 { // Begin had not returned
		return r.dir.RemoveAll(string(id))
	}
	if err := w.rebuild(); err != nil {
		return err
	}
	r.used.Add(r.measure(id) - before)
	r.mu.Lock()
	r.sessions[id] = s
	r.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flags&flagRecovered != 0 {
		r.metrics.recovered.Inc()
	}
	if !s.released {
		r.recovered[id] = s.summaryLocked()
	}
	s.queue, s.published, s.synced = w.queue, s.chain.parts, s.chain.parts
	if s.queued = len(s.queue) > 0 || s.unconfirmedLocked(); s.queued {
		r.push(s)
	} else {
		s.forgetLocked()
	}
	return nil
}

// measure returns how much a session has in the spool, in bytes.
func (r *Recorder) measure(id names.SessionID) (total int64) {
	entries, err := fs.ReadDir(r.dir.FS(), string(id))
	if err != nil {
		return 0
	}
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil {
			total += info.Size()
		}
	}
	return total
}

// list finds the session's files. What is not a plain file is set aside.
func (w *wreck) list() error {
	s := w.session
	entries, err := fs.ReadDir(s.r.dir.FS(), string(s.id))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		if !entry.Type().IsRegular() {
			if err := s.r.setAside(s.id, name, errDamaged); err != nil {
				return err
			}
			continue
		}
		suffix := path.Ext(name)
		number, err := strconv.ParseUint(strings.TrimSuffix(name, suffix), 10, 32)
		n := uint32(number)
		switch {
		case name == stateName:
			continue
		case suffix == partSuffix && err == nil && name == partName(n) && n > 0:
			w.parts[n] = true
		case suffix == journalSuffix && err == nil && name == journalName(n) && n > 0:
			w.journals[n] = true
		case suffix == tmpSuffix:
			w.obsolete = append(w.obsolete, name) // unless its part has use for it
			continue
		default:
			if err := s.r.setAside(s.id, name, errDamaged); err != nil {
				return err
			}
			continue
		}
		w.last = max(w.last, n)
	}
	return nil
}

// maxState bounds the state that is read, in bytes: a million parts.
const maxState = 1 << 26

// readState reads the state up to what is not whole.
func (w *wreck) readState() error {
	s := w.session
	data, err := s.r.dir.read(s.path(stateName), maxState)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil && !errors.Is(err, errDamaged) {
		return err
	}
	for len(data) > 0 && err == nil {
		var content []byte
		var n int
		if content, n, err = nextRecord(data); err == nil {
			err = w.stateRecord(content)
			data = data[n:]
		}
	}
	if errors.Is(err, errDamaged) {
		w.damaged = append(w.damaged, stateName)
	}
	return nil
}

func (w *wreck) stateRecord(content []byte) error {
	s := w.session
	switch content[0] {
	case stateStart:
		start := new(accessdv1.FrameStart)
		if proto.Unmarshal(content[1:], start) != nil || start.GetSession() != string(s.id) {
			return errDamaged
		}
		s.start = start
	case statePart:
		p, ok := parsePartRecord(content)
		if !ok {
			return errDamaged
		}
		w.records[p.number] = p
		w.last = max(w.last, p.number)
	case stateCompleted:
		s.completed = true
	case stateReleased:
		s.released = true
	default:
		return errDamaged
	}
	return nil
}

// rebuild gives every part of the session a file, unless the store has it, and
// closes the recording. It changes nothing that a second attempt would need before
// all is on disk.
func (w *wreck) rebuild() error {
	s := w.session
	for n := uint32(1); n <= w.last; n++ {
		if err := w.part(n); err != nil {
			return err
		}
	}
	if s.flags&flagLast == 0 {
		if err := w.end(); err != nil {
			return err
		}
	}
	if s.start == nil {
		s.start = &accessdv1.FrameStart{Version: version, Session: string(s.id)}
	}
	state := append(appendStart(nil, s.start), w.state...)
	if s.completed {
		state = appendMark(state, stateCompleted)
	}
	if s.released {
		state = appendMark(state, stateReleased)
	}
	return w.commit(state)
}

// end makes a part that ends the recording. Its journal tells a second attempt what
// it is.
func (w *wreck) end() error {
	s := w.session
	w.last++
	name := journalName(w.last)
	if err := s.r.writeFile(s.path(name), w.endRecord(s.at)); err != nil {
		return err
	}
	return w.fromJournal(w.last)
}

// endRecord returns the record of the end frame of a recording that was interrupted.
func (w *wreck) endRecord(at uint64) []byte {
	return appendFrame(nil, endFrame(at, true, "the recorder was interrupted"))
}

// commit puts the new state in the place of the old one, and clears up.
func (w *wreck) commit(state []byte) error {
	s, dir := w.session, w.session.r.dir
	if err := s.r.writeFile(s.path(stateName)+tmpSuffix, state); err != nil {
		return err
	}
	for _, name := range w.damaged {
		if err := s.r.setAside(s.id, name, errDamaged); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := dir.Rename(s.path(stateName)+tmpSuffix, s.path(stateName)); err != nil {
		return err
	}
	s.stateSize = int64(len(state))
	for _, name := range w.obsolete {
		if err := dir.remove(s.path(name)); err != nil {
			return err
		}
	}
	return s.syncDir(true)
}

// part finds part n, or makes it.
func (w *wreck) part(n uint32) error {
	s, name := w.session, partName(n)
	record, known := w.records[n]
	switch {
	case w.parts[n] && known && !w.journals[n]:
		w.add(record, true)
		return nil
	case w.parts[n]: // killed before its journal was removed, or before the state was on disk
		return w.adopt(n, name)
	case known && w.hasTmp(n, record):
		if err := s.r.dir.Rename(s.path(name)+tmpSuffix, s.path(name)); err != nil {
			return err
		}
		return w.adopt(n, name)
	case known && !w.journals[n]: // the store has it
		w.add(record, false)
		return nil
	case w.journals[n]:
		return w.fromJournal(n)
	}
	s.r.cfg.Log.Error("a part of a recording is lost", zap.String("session", string(s.id)), zap.Uint32("part", n))
	return w.makePart(n, appendFrame(nil, gapFrame(s.at, "a part was lost on the recorder's disk", 0)), n == w.last)
}

// hasTmp reports whether the part is on disk under its name for the time being.
func (w *wreck) hasTmp(n uint32, record partRecord) bool {
	s := w.session
	data, err := s.r.dir.read(s.path(partName(n))+tmpSuffix, MaxPart)
	return err == nil && sha256.Sum256(data) == record.digest
}

// adopt takes a part's file as it is.
func (w *wreck) adopt(n uint32, name string) error {
	s := w.session
	data, err := s.r.dir.read(s.path(name), MaxPart)
	if err != nil {
		return err
	}
	record := partRecord{number: n, size: int64(len(data)), at: s.at, digest: sha256.Sum256(data)}
	if IsSealed(data) {
		record.flags = flagSealed
	}
	var last *accessdv1.Frame
	known, ok := w.records[n]
	switch {
	case ok:
		record.flags, record.at = known.flags, known.at
	case w.journals[n]: // what the part was made of, but for an end
		records, err := s.r.dir.read(s.path(journalName(n)), maxJournal)
		if err != nil {
			return err
		}
		last = lastFrame(records)
	default:
		if frames, err := Open(data, nil); err == nil && len(frames) > 0 {
			last = frames[len(frames)-1]
		}
	}
	record.at = max(record.at, last.GetAtUs())
	if end := last.GetEnd(); end != nil {
		record.flags |= endFlags(end)
	}
	if w.journals[n] {
		w.obsolete = append(w.obsolete, journalName(n))
	}
	w.add(record, true)
	return nil
}

func endFlags(end *accessdv1.FrameEnd) byte {
	if end.GetRecovered() {
		return flagLast | flagRecovered
	}
	return flagLast
}

// add notes a part in the new state.
func (w *wreck) add(p partRecord, onDisk bool) {
	w.state = p.append(w.state)
	w.session.addLocked(p) // nobody else has the session yet
	if onDisk {
		w.queue = append(w.queue, p)
	}
}

// fromJournal makes a part of a journal.
func (w *wreck) fromJournal(n uint32) error {
	s, name := w.session, journalName(n)
	data, err := s.r.dir.read(s.path(name), maxJournal)
	if errors.Is(err, errDamaged) {
		w.damaged = append(w.damaged, name)
		data, err = make([]byte, recordHeader), nil // a damaged record
	}
	if err != nil {
		return err
	}
	records, damaged := salvage(data, s.at)
	if n == 1 && s.start != nil {
		if start := appendFrame(nil, startFrame(s.start)); !bytes.HasPrefix(records, start) { // damaged, or nothing was printed
			records = append(start, records...)
		}
	}
	if damaged {
		w.damaged = append(w.damaged, name)
	} else {
		w.obsolete = append(w.obsolete, name)
	}
	return w.makePart(n, records, n == w.last)
}

// maxJournal bounds a journal that is read, in bytes. None that is written is
// longer than a part.
const maxJournal = 2 * partBytes

// damagedJournal is the reason of a gap.
const damagedJournal = "a journal was damaged on the recorder's disk"

// salvage returns the whole records of a journal. What is damaged becomes a gap; a
// torn tail was never acknowledged.
func salvage(data []byte, at uint64) (records []byte, damaged bool) {
	var missing uint64
	for len(data) > 0 {
		content, n, err := nextRecord(data)
		f := new(accessdv1.Frame)
		if err == nil && proto.Unmarshal(content, f) != nil {
			err = errDamaged
		}
		if errors.Is(err, errTorn) {
			break
		}
		if n == 0 || len(records)+n > partBytes-2*maxReason { // nothing behind a damaged length can be told
			missing += uint64(len(data))
			break
		}
		if err != nil {
			missing += uint64(n)
		} else {
			if missing > 0 && !damaged {
				records, damaged = appendFrame(records, gapFrame(at, damagedJournal, missing)), true
				missing = 0
			}
			at = f.GetAtUs()
			records = append(records, data[:n]...)
		}
		data = data[n:]
	}
	if missing > 0 {
		records, damaged = appendFrame(records, gapFrame(at, damagedJournal, missing)), true
	}
	return records, damaged
}

// lastFrame returns the last of whole records, nil when there is none.
func lastFrame(records []byte) *accessdv1.Frame {
	f := new(accessdv1.Frame)
	for len(records) > 0 {
		content, n, err := nextRecord(records)
		if err != nil {
			return nil
		}
		if records = records[n:]; len(records) == 0 && proto.Unmarshal(content, f) == nil {
			return f
		}
	}
	return nil
}

// makePart makes part n of records, and ends the recording with it if it is the
// last one and does not.
func (w *wreck) makePart(n uint32, records []byte, last bool) error {
	s := w.session
	record := partRecord{number: n, at: s.at}
	f := lastFrame(records)
	if f != nil {
		record.at = max(record.at, f.GetAtUs())
	}
	switch {
	case f.GetEnd() != nil:
		record.flags = endFlags(f.GetEnd())
	case last:
		records = append(records, w.endRecord(record.at)...)
		record.flags = flagLast | flagRecovered
	}
	if s.start == nil && n == 1 {
		w.startFrom(records)
	}
	stored, sealed, err := s.r.sealer.seal(unjournal(records))
	if err != nil {
		return err
	}
	if sealed {
		record.flags |= flagSealed
	}
	record.size, record.digest = int64(len(stored)), sha256.Sum256(stored)
	name := s.path(partName(n))
	if err := s.r.writeFile(name+tmpSuffix, stored); err != nil {
		return err
	}
	if err := s.r.dir.Rename(name+tmpSuffix, name); err != nil {
		return err
	}
	s.r.metrics.parts.Inc()
	w.add(record, true)
	return nil
}

// startFrom takes the header from the first frame, when the state is lost.
func (w *wreck) startFrom(records []byte) {
	content, _, err := nextRecord(records)
	f := new(accessdv1.Frame)
	if err == nil && proto.Unmarshal(content, f) == nil && f.GetStart().GetSession() == string(w.session.id) {
		w.session.start = f.GetStart()
	}
}
