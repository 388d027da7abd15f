//go:build unix

package recording

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

const (
	// partTime bounds the time that a part covers.
	partTime = 5 * time.Second
	// maxWaiting bounds the parts of one recording that are full and not closed;
	// as many are closed at once, so that they share the disk's commits. A print
	// waits while there are more.
	maxWaiting = 4
	// maxAllWaiting is the same over all recordings; beyond it each has one.
	maxAllWaiting = 16
	// retryTime is the wait before a part that could not be closed is tried again
	// when nobody prints.
	retryTime = time.Second
	// frameOverhead bounds what a frame adds to its text or data, in bytes.
	frameOverhead = 64
)

// Recording is a recording being written. Its methods are safe from several
// goroutines.
type Recording struct {
	session *session
	r       *Recorder
	started time.Time
	onFail  func(error)

	mu      sync.Mutex
	changed sync.Cond // full or sealing changed
	next    uint32    // number of the next part
	open    *openPart // nil when nothing was written since the last was full
	full    []*openPart
	busy    bool // the part before was full before its time
	sealing bool // somebody closes the full ones
	first   *time.Timer
	err     error // why they cannot be closed
	told    bool  // onFail knows
	retry   *time.Timer
	again   *time.Timer // closes after a Close that failed
	guard   *time.Timer // tells that the disk keeps mu locked
	at      uint64      // of the last frame
	total   int64       // bytes of the frames
	lost    uint64      // bytes that could not be written since the last gap
	reason  string      // why
	closed  bool        // no more prints
	ended   bool        // the end frame was written
}

// openPart is a part on its way to its file.
type openPart struct {
	partRecord

	records []byte // as in the journal
	buffer  *[]byte
	journal *os.File
	timer   *time.Timer

	// From here on it is full, and belongs to who closes it.
	journaled int64  // bytes in the journal
	plain     []byte // as in the part, in the place of records
	stored    []byte // plain, compressed and sealed
	stated    bool   // is in the state
	renamed   bool   // has its name
}

// errShut is what happens after [Recorder.Close].
var errShut = fault.New(fault.Unavailable, "the recorder is shut")

func newRecording(s *session, h Header) *Recording {
	w := &Recording{session: s, r: s.r, started: h.Started, onFail: h.OnFail, next: 1}
	w.changed.L = &w.mu
	w.guard = time.AfterFunc(s.r.cfg.Patience, w.stall)
	w.guard.Stop()
	w.first = time.AfterFunc(partTime, w.introduce)
	return w
}

// introduce opens the first part of a session that has printed nothing yet, so that
// the store knows of it.
func (w *Recording) introduce() {
	w.lock()
	defer w.unlock()
	if w.closed || w.open != nil || w.next > 1 {
		return
	}
	_, err := w.openLocked()
	if err == nil {
		err = w.flushLocked(0)
	}
	if err == nil {
		w.fullLocked()
	} // else the first print says so
}

// Print records bytes of a stream. They are on disk when it returns nil. After an
// error the next Print tries again; what was lost in between is recorded as a gap.
func (w *Recording) Print(s accessdv1.Stream, p []byte) error {
	w.lock()
	defer w.unlock()
	for len(p) > 0 {
		n := min(len(p), maxData)
		from, err := w.prepareLocked(n)
		if err == nil {
			w.open.records = appendPrint(w.open.records, w.nowLocked(), s, p[:n])
			err = w.flushLocked(from)
		}
		if err != nil {
			return w.failedLocked(err, len(p))
		}
		p = p[n:]
	}
	return nil
}

// Resize records a new size of the terminal.
func (w *Recording) Resize(columns, rows uint32) error {
	w.lock()
	defer w.unlock()
	err := w.writeLocked(&accessdv1.Frame{What: &accessdv1.Frame_Resize{Resize: &accessdv1.FrameResize{Columns: columns, Rows: rows}}})
	return w.failedLocked(err, 0)
}

// Gap records that something is not recorded: so many bytes, where that is known.
// What a failed Print lost needs no Gap.
func (w *Recording) Gap(reason string, bytes uint64) error {
	w.lock()
	defer w.unlock()
	return w.failedLocked(w.writeLocked(gapFrame(0, reason, bytes)), 0)
}

// failedLocked counts a failure and the bytes it lost.
func (w *Recording) failedLocked(err error, lost int) error {
	if err == nil || errors.Is(err, os.ErrClosed) {
		return err
	}
	err = unwritable(err)
	w.r.metrics.failures.Inc()
	w.r.metrics.lost.Add(float64(lost))
	w.lost += uint64(lost)
	w.reason = fault.Public(err)
	return err
}

// nowLocked returns the time of a frame.
func (w *Recording) nowLocked() uint64 {
	w.at = max(w.at, uint64(max(0, w.r.cfg.Now().Sub(w.started).Microseconds())))
	w.open.at = w.at
	return w.at
}

// writeLocked writes a frame at this time.
func (w *Recording) writeLocked(f *accessdv1.Frame) error {
	from, err := w.prepareLocked(proto.Size(f))
	if err != nil {
		return err
	}
	f.AtUs = w.nowLocked()
	w.open.records = appendFrame(w.open.records, f)
	return w.flushLocked(from)
}

// prepareLocked makes room for a frame with n bytes of data in the open part, and
// returns where what is to be written begins. A gap may stand there.
func (w *Recording) prepareLocked(n int) (from int, err error) {
	if w.closed {
		return 0, os.ErrClosed
	}
	if w.err != nil {
		w.closePartsLocked()
		w.awaitLocked()
	}
	w.makeRoomLocked(n)
	switch {
	case w.closed:
		return 0, os.ErrClosed
	case w.err != nil:
		return 0, w.err
	}
	if limit := w.r.cfg.MaxSession(); limit > 0 && w.total+int64(n) > limit {
		return 0, fault.New(fault.Unavailable, "the recording has reached the %d bytes that are allowed", limit)
	}
	if err := w.r.room(n); err != nil {
		return 0, err
	}
	return w.openLocked()
}

// makeRoomLocked ends the open part when n more bytes do not fit into it, and waits
// while too many are full.
func (w *Recording) makeRoomLocked(n int) {
	limit := maxWaiting
	if w.r.waiting.Load() > maxAllWaiting {
		limit = 1
	}
	for {
		if w.open != nil && len(w.open.records)+n+frameOverhead > fullBytes {
			w.busy = true
			w.fullLocked()
		}
		if len(w.full) <= limit || !w.sealing {
			return
		}
		w.changed.Wait()
	}
}

// awaitLocked waits until the full parts are closed, or cannot be.
func (w *Recording) awaitLocked() {
	for len(w.full) > 0 && w.sealing {
		w.changed.Wait()
	}
}

// openLocked opens a part unless one is.
func (w *Recording) openLocked() (from int, err error) {
	if w.open == nil {
		journal, err := w.r.dir.replace(w.session.path(journalName(w.next)))
		if err != nil {
			return 0, err
		}
		buffer := w.r.buffer(w.busy)
		p := &openPart{partRecord: partRecord{number: w.next}, journal: journal, buffer: buffer, records: (*buffer)[:0]}
		p.timer = time.AfterFunc(partTime, func() { w.timeUp(p) })
		w.open = p
		w.next++
	}
	from = len(w.open.records)
	if from == 0 && w.open.number == 1 { // at its own time, before any other
		w.open.records = appendFrame(w.open.records, startFrame(w.session.start))
	}
	if w.lost > 0 {
		w.open.records = appendFrame(w.open.records, gapFrame(w.nowLocked(), w.reason, w.lost))
	}
	return from, nil
}

// flushLocked writes the open part's records from an offset on to the journal. After
// a failure nothing of them stays.
func (w *Recording) flushLocked(from int) error {
	p := w.open
	if _, err := p.journal.Write(p.records[from:]); err != nil {
		p.records = p.records[:from]
		w.dropLocked(p, err)
		return err
	}
	n := int64(len(p.records) - from)
	w.r.used.Add(n)
	w.total += n
	w.lost = 0
	return nil
}

// dropLocked undoes a failed write. Where the kernel says more than that there is
// no room, the journal is not written any more: what it holds becomes a part.
func (w *Recording) dropLocked(p *openPart, cause error) {
	if len(p.records) == 0 {
		p.timer.Stop()
		p.journal.Close()
		_ = w.r.dir.remove(w.session.path(journalName(p.number))) // else the next one takes its place
		w.open, w.next = nil, p.number
		w.recycle(p)
		return
	}
	err := p.journal.Truncate(int64(len(p.records)))
	if err != nil || !errors.Is(cause, syscall.ENOSPC) && !errors.Is(cause, syscall.EDQUOT) {
		w.fullLocked()
	}
}

// timeUp ends a part that has covered its time.
func (w *Recording) timeUp(p *openPart) {
	w.lock()
	defer w.unlock()
	if w.open == p {
		w.busy = false
		w.fullLocked()
	}
}

// fullLocked ends the open part: it is to be closed.
func (w *Recording) fullLocked() {
	p := w.open
	w.open = nil
	p.timer.Stop()
	p.journal.Close()
	p.journaled = int64(len(p.records))
	w.full = append(w.full, p)
	w.r.waiting.Add(1)
	w.closePartsLocked()
}

// closePartsLocked has full parts closed, unless somebody does already.
func (w *Recording) closePartsLocked() {
	if w.sealing || len(w.full) == 0 {
		return
	}
	if w.retry != nil {
		w.retry.Stop()
		w.retry = nil
	}
	w.sealing = w.r.start(w.closeParts)
}

// closeParts closes full parts until there are none.
func (w *Recording) closeParts() {
	for {
		w.mu.Lock()
		batch := w.full[:min(len(w.full), maxWaiting)]
		w.mu.Unlock()
		var err error
		if len(batch) > 0 {
			guard := time.AfterFunc(w.r.cfg.Patience, w.stall)
			err = w.store(batch)
			guard.Stop()
		}
		if done, tell := w.stored(len(batch), err); done {
			if tell != nil && w.onFail != nil {
				w.onFail(tell)
			}
			return
		}
	}
}

// stored notes what became of n parts, and reports whether nothing is left to do
// now, and what to tell.
func (w *Recording) stored(n int, err error) (done bool, tell error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.changed.Broadcast()
	w.err = unwritable(err)
	if err != nil {
		w.sealing = false
		w.r.metrics.failures.Inc()
		w.retry = time.AfterFunc(retryTime, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.closePartsLocked()
		})
		if w.told {
			return true, nil
		}
		w.told = true
		w.r.cfg.Log.Error("a recording cannot be written", zap.String("session", string(w.session.id)), zap.Error(err))
		return true, w.err
	}
	w.told = false
	w.full = w.full[n:]
	w.r.waiting.Add(-int64(n))
	if len(w.full) == 0 {
		w.full = nil
		w.sealing = false
	}
	return !w.sealing, nil
}

// store makes parts durable under their names, and hands them to the uploads. It
// may be called again for the same parts after an error.
func (w *Recording) store(batch []*openPart) error {
	var writes errgroup.Group // the disk commits files together that are synced together
	for _, p := range batch {
		writes.Go(func() error {
			if err := w.seal(p); err != nil {
				return err
			}
			return w.write(p)
		})
	}
	if err := writes.Wait(); err != nil {
		return err
	}
	s := w.session
	if err := errors.Join(s.state(batch), s.syncEnd(batch[len(batch)-1])); err != nil {
		return err
	}
	for _, p := range batch {
		if !p.renamed {
			name := s.path(partName(p.number))
			if err := w.r.dir.Rename(name+tmpSuffix, name); err != nil {
				return err
			}
			p.renamed = true
		}
		if err := w.r.dir.remove(s.path(journalName(p.number))); err != nil {
			return err
		}
	}
	if err := s.syncDir(batch[0].number == 1); err != nil {
		return err
	}
	for _, p := range batch {
		w.r.used.Add(p.size - p.journaled)
		w.r.metrics.parts.Inc()
		s.publish(p.partRecord)
	}
	return nil
}

// syncDir makes names in the session's directory durable, and its own.
func (s *session) syncDir(first bool) error {
	if err := s.r.dir.Sync(string(s.id)); err != nil || !first {
		return err
	}
	return s.r.dir.Sync(".")
}

// seal makes what is stored of p.
func (w *Recording) seal(p *openPart) error {
	if p.stored != nil {
		return nil
	}
	if p.plain == nil {
		p.plain = unjournal(p.records)
	}
	stored, sealed, err := w.r.sealer.seal(p.plain)
	if err != nil {
		return err
	}
	if sealed {
		p.flags |= flagSealed
	}
	p.stored, p.size, p.digest = stored, int64(len(stored)), sha256.Sum256(stored)
	w.recycle(p)
	return nil
}

// recycle gives the buffer of p to the next part.
func (w *Recording) recycle(p *openPart) {
	*p.buffer = p.records[:0]
	w.r.keep(p.buffer)
	p.records, p.plain, p.buffer = nil, nil, nil
}

// write writes and syncs the file of p under a name for the time being.
func (w *Recording) write(p *openPart) error {
	if p.renamed {
		return nil
	}
	return w.r.writeFile(w.session.path(partName(p.number))+tmpSuffix, p.stored)
}

// writeFile makes a file of data anew and durable.
func (r *Recorder) writeFile(name string, data []byte) error {
	f, err := r.dir.replace(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err != nil {
		_ = r.dir.remove(name) // else it is made anew the next time
	}
	return err
}

// state notes parts whose content is durable.
func (s *session) state(batch []*openPart) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var records []byte
	for _, p := range batch {
		if !p.stated {
			records = p.append(records)
		}
	}
	if len(records) == 0 {
		return nil
	}
	if err := s.appendStateLocked(records); err != nil {
		return err
	}
	for _, p := range batch {
		if !p.stated {
			s.addLocked(p.partRecord)
			p.stated = true
		}
	}
	return nil
}

// syncEnd makes the state durable when p ends the recording: its root is told.
func (s *session) syncEnd(p *openPart) error {
	if p.flags&flagLast == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.syncStateLocked(p.number)
}

// Close ends the recording. When it returns nil the last part is durable. After an
// error it may be called again; the recorder itself tries again, too, and goes on
// with what the disk keeps beyond its patience.
func (w *Recording) Close() (Summary, error) {
	var sum Summary
	err := w.r.within(func() (err error) { sum, err = w.close(); return err }, func(error) {})
	if err != nil {
		return Summary{}, err
	}
	return sum, nil
}

func (w *Recording) close() (Summary, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.closeLocked()
	if w.r.giveReserve(err) {
		err = w.closeLocked()
	}
	if err != nil {
		if !w.ended && w.again == nil { // else the full parts are tried again
			w.again = time.AfterFunc(retryTime, w.closeAgain)
		}
		return Summary{}, err
	}
	return w.session.summary(), nil
}

func (w *Recording) closeLocked() error {
	if err := w.endLocked(); err != nil {
		return w.failedLocked(err, 0)
	}
	w.closePartsLocked()
	w.awaitLocked()
	if len(w.full) > 0 {
		return cmp.Or(w.err, error(errShut))
	}
	return nil
}

// closeAgain ends a recording that could not be closed in time.
func (w *Recording) closeAgain() {
	w.mu.Lock()
	w.again = nil
	w.mu.Unlock()
	if w.r.isClosed() {
		return
	}
	if _, err := w.close(); err == nil {
		w.r.cfg.Log.Info("a recording could be closed", zap.String("session", string(w.session.id)))
	}
}

func (r *Recorder) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// endLocked writes the end frame, once.
func (w *Recording) endLocked() error {
	if w.ended {
		return nil
	}
	w.closed = true // but the end may be tried again
	w.first.Stop()
	from, err := w.openLocked()
	if err != nil {
		return err
	}
	w.open.records = appendFrame(w.open.records, endFrame(w.nowLocked(), false, ""))
	if err := w.flushLocked(from); err != nil {
		return err
	}
	w.ended = true
	w.open.flags |= flagLast
	w.fullLocked()
	return nil
}
