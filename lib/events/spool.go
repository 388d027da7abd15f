//go:build unix

package events

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
)

const (
	segmentSuffix = ".events"
	probeName     = "probe"
	// keptSuffix marks a segment that was read to its end but holds something
	// that could not be shipped; it stays for whoever looks into it.
	keptSuffix = ".kept"
	// segmentBytes is where a segment is full. Shipping again after a restart
	// begins at a segment's start, so it is small.
	segmentBytes = 4 << 20
	// idleSegmentBytes is where a segment whose every record was acknowledged is
	// replaced, so that a restart ships little again.
	idleSegmentBytes = 256 << 10
	// idleSegmentAge is when it is replaced whatever its size, so that what a restart
	// finds in the oldest segment tells how long it waits.
	idleSegmentAge = 24 * time.Hour
	// ageGrace is how long a spool whose events are too old tries to ship them before
	// it refuses others: after a restart the authority may be a moment away.
	ageGrace = 10 * time.Minute
)

// file is what the spool writes to.
type file interface {
	io.WriteCloser
	Sync() error
	Truncate(size int64) error
}

// position is a place in the spool: an offset in a segment.
type position struct {
	segment uint64
	offset  int64
}

func (p position) before(q position) bool {
	return p.segment < q.segment || p.segment == q.segment && p.offset < q.offset
}

// segment is one file of the spool.
type segment struct {
	number uint64
	size   int64     // durable bytes
	begun  time.Time // of one that may still grow
	open   bool      // may still grow
	keep   bool      // holds something that could not be shipped
}

func (s segment) name() string { return fmt.Sprintf("%020d%s", s.number, segmentSuffix) }

// spool is a bounded queue of records on disk. Records of concurrent callers
// become durable by one fsync.
type spool struct {
	dir    *privateDir
	max    int64
	maxAge time.Duration
	now    func() time.Time
	log    *zap.Logger
	create func(name string) (file, error)

	records *committer[[][]byte]
	active  file // last of segments while open; nil makes a new one; owned by whoever has the turn

	mu       sync.Mutex
	segments []segment // oldest first
	next     uint64    // number of the next segment
	kept     int64     // bytes in kept segments
	written  time.Time // when an earlier process wrote last, as the files say
	acked    position  // everything before it was shipped
	waiting  time.Time // of the oldest event that could not be shipped; zero when there is none
	tried    time.Time // when that was found out
	err      error     // of the last write
	stats    Stats
	grown    chan struct{} // closed at the next change of segments or acked
}

// openSpool opens the spool in path. What an earlier process left is shipped
// first; new records go to new segments.
func openSpool(path string, maxBytes int64, log *zap.Logger) (*spool, error) {
	dir, err := openPrivateDir(path)
	if err != nil {
		return nil, err
	}
	s := &spool{dir: dir, max: maxBytes, maxAge: defaultMaxAge, now: time.Now, log: log, next: 1, grown: make(chan struct{})}
	s.create = func(name string) (file, error) { return dir.New(name) }
	s.records = newCommitter[[][]byte]()
	if err := s.scan(); err != nil {
		_ = dir.Close()
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read the audit spool")
	}
	return s, nil
}

// scan lists the segments on disk.
func (s *spool) scan() error {
	entries, err := fs.ReadDir(s.dir.FS(), ".")
	if err != nil {
		return err
	}
	if info, err := s.dir.Stat("."); err == nil { // when the last segment was removed
		s.written = info.ModTime()
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return err
		}
		base, _ := strings.CutSuffix(entry.Name(), keptSuffix)
		digits, ok := strings.CutSuffix(base, segmentSuffix)
		number, err := strconv.ParseUint(digits, 10, 64)
		if !ok || err != nil {
			continue // not ours
		}
		if number >= s.next {
			s.next, s.written = number+1, info.ModTime()
		}
		switch {
		case !info.Mode().IsRegular():
			continue // not ours, but it has the name
		case base != entry.Name():
			s.kept += info.Size()
			continue
		case info.Size() == 0: // a crash came before the first write
			if err := s.dir.Remove(entry.Name()); err != nil {
				return err
			}
			continue
		}
		s.segments = append(s.segments, segment{number: number, size: info.Size()})
	}
	slices.SortFunc(s.segments, func(a, b segment) int { return strings.Compare(a.name(), b.name()) })
	return nil
}

// write makes the records of several callers durable, all or none of them. It has
// the turn.
func (s *spool) write(callers [][][]byte) error {
	records := slices.Concat(callers...)
	if len(records) == 0 {
		return nil
	}
	var buf []byte
	for _, r := range records {
		buf = appendFrame(buf, r)
	}
	err := s.append(buf)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteLocked(err)
	if err != nil {
		s.stats.Refused += uint64(len(records))
		return err
	}
	s.stats.Emitted += uint64(len(records))
	s.changedLocked()
	return nil
}

// noteLocked keeps the outcome of a write, and says when it changes.
func (s *spool) noteLocked(err error) {
	switch {
	case err != nil && s.err == nil:
		s.log.Error("the audit spool refuses events", zap.Error(err))
	case err == nil && s.err != nil:
		s.log.Info("the audit spool takes events again")
	}
	s.err = err
}

// probe tries to write without leaving anything behind.
func (s *spool) probe() error {
	s.records.acquire()
	defer s.records.release()
	err := s.room(maxFrame)
	if err == nil {
		err = s.try()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteLocked(err)
	return err
}

func (s *spool) try() error {
	f, err := s.create(probeName)
	if err != nil {
		return unwritable(errors.Join(err, s.remove(probeName))) // a crash may have left it
	}
	_, err = f.Write(make([]byte, maxFrame))
	if err == nil {
		err = f.Sync()
	}
	return unwritable(errors.Join(err, f.Close(), s.remove(probeName)))
}

// remove removes a file that may be absent.
func (s *spool) remove(name string) error {
	if err := s.dir.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func unwritable(err error) error {
	if err == nil {
		return nil
	}
	return fault.Wrap(fault.Unavailable, err, "the audit spool cannot be written")
}

// room returns an error unless n more bytes fit.
func (s *spool) room(n int) error {
	if _, total := s.sizes(); total+int64(n) > s.max {
		return fault.New(fault.Unavailable, "the audit spool is full").
			WithHint("the authority has been away for long; once it is back the spool drains by itself")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.now(); !s.waiting.IsZero() && now.Sub(s.waiting) > s.maxAge && now.Sub(s.tried) > ageGrace {
		return fault.New(fault.Unavailable, "the audit spool has had events for the authority since %s", s.waiting.UTC().Format(time.RFC3339)).
			WithHint("once the authority is back the spool drains by itself")
	}
	return nil
}

// refused notes that the event could not be shipped, before which all others were.
func (s *spool) refused(oldest []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting.IsZero() {
		s.tried = s.now()
		s.waiting = s.tried
		if ev, err := ParseEvent(oldest); err == nil && ev.Time.Before(s.tried) {
			s.waiting = ev.Time
		}
	}
}

func (s *spool) append(buf []byte) error {
	if err := s.room(len(buf)); err != nil {
		return err
	}
	size, _ := s.sizes()
	if s.active != nil && size+int64(len(buf)) > segmentBytes && size > int64(len(segmentMagic)) {
		s.seal()
	}
	return unwritable(s.appendActive(buf))
}

// sizes returns the bytes of the last segment and of all.
func (s *spool) sizes() (last, total int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, seg := range s.segments {
		total += seg.size
		last = seg.size
	}
	return last, total + s.kept
}

// appendActive writes buf to the active segment and syncs it. After a failure
// nothing that the kernel says about that file is trusted any more: it is cut
// back to what was durable and the next write begins another.
func (s *spool) appendActive(buf []byte) error {
	fresh := s.active == nil
	if fresh {
		f, err := s.create(segment{number: s.next}.name())
		if err != nil {
			s.next++ // the name may be taken
			return err
		}
		s.active = f
		buf = append([]byte(segmentMagic), buf...)
	}
	_, err := s.active.Write(buf)
	if err == nil {
		err = s.active.Sync()
	}
	if err == nil && fresh {
		err = s.dir.Sync(".")
	}
	if err != nil {
		s.abandon(fresh)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if fresh {
		s.segments = append(s.segments, segment{number: s.next, open: true, begun: s.now()})
		s.next++
	}
	s.segments[len(s.segments)-1].size += int64(len(buf))
	return nil
}

// abandon gives up the active segment after a failed write.
func (s *spool) abandon(fresh bool) {
	var err error
	if fresh {
		err = s.dir.Remove(segment{number: s.next}.name())
		s.next++ // in case it could not be removed
	} else {
		size, _ := s.sizes()
		err = s.active.Truncate(size)
	}
	if err != nil {
		s.log.Warn("an unacknowledged tail stays in the audit spool", zap.Error(err))
	}
	s.seal()
}

// seal ends the active segment.
func (s *spool) seal() {
	if s.active == nil {
		return
	}
	if err := s.active.Close(); err != nil {
		s.log.Warn("cannot close a spool segment", zap.Error(err)) // it was synced
	}
	s.active = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.segments {
		s.segments[i].open = false
	}
}

// changedLocked wakes who waits for a change.
func (s *spool) changedLocked() {
	close(s.grown)
	s.grown = make(chan struct{})
}

// end returns the place behind the last durable record, the place before which
// everything was shipped, and a channel that closes when either moves.
func (s *spool) end() (end, acked position, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.segments); n > 0 {
		end = position{s.segments[n-1].number, s.segments[n-1].size}
	}
	return end, s.acked, s.grown
}

// close seals the active segment, removes it when all of it was shipped, and
// unlocks the directory.
func (s *spool) close() error {
	s.records.acquire()
	defer s.records.release()
	s.seal()
	if seg, from, ok := s.oldest(); ok && from == seg.size && !seg.keep {
		if err := s.dir.Remove(seg.name()); err != nil {
			s.log.Warn("a shipped segment stays in the audit spool", zap.Error(err)) // its events are known by uid
		}
	}
	s.create = func(string) (file, error) { return nil, errors.New("closed") }
	return s.dir.Close()
}
