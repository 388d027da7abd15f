//go:build unix

package events

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"go.uber.org/zap"
)

const (
	// batchEvents and batchBytes bound what is shipped at once.
	batchEvents = 1000
	batchBytes  = 1 << 20
)

// read returns the next events to ship and the place behind them; ok is false
// when everything was shipped. There may be a place to acknowledge and no events.
func (s *spool) read() (events [][]byte, to position, ok bool, err error) {
	seg, from, ok := s.oldest()
	if !ok || from == seg.size {
		return nil, position{seg.number, seg.size}, ok, nil
	}
	data, err := s.chunk(seg, from)
	if err != nil {
		return nil, to, true, fmt.Errorf("read segment %d: %w", seg.number, err)
	}
	if len(data) == 0 {
		s.gone(seg, from)
		return nil, position{seg.number, seg.size}, true, nil
	}
	if len(data) < batchBytes+maxFrame {
		seg.size = from + int64(len(data)) // somebody may have cut it
	}
	n, events := s.decode(seg, from, data)
	return events, position{seg.number, from + int64(n)}, true, nil
}

// chunk returns what of seg is to be read at once; nothing when it is not there.
func (s *spool) chunk(seg segment, from int64) ([]byte, error) {
	f, err := s.dir.open(seg.name())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, min(seg.size-from, batchBytes+maxFrame))
	n, err := f.ReadAt(data, from)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return data[:n], err
}

// gone notes that somebody removed or cut a segment, and ends it, so that new
// records go where they can be read.
func (s *spool) gone(seg segment, from int64) {
	s.lost(seg, from, int(seg.size-from), true)
	if seg.open {
		s.records.acquire()
		defer s.records.release()
		s.seal()
	}
}

// oldest returns the oldest segment and the offset of what of it is to be
// shipped next.
func (s *spool) oldest() (seg segment, from int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.segments) == 0 {
		return segment{}, 0, false
	}
	seg = s.segments[0]
	if s.acked.segment == seg.number {
		from = s.acked.offset
	}
	return seg, from, from < seg.size || !seg.open
}

// decode returns the events that data, which begins at offset of seg, holds, and
// how many of its bytes they and what is unreadable take.
func (s *spool) decode(seg segment, offset int64, data []byte) (n int, events [][]byte) {
	last := offset+int64(len(data)) == seg.size
	if offset == 0 {
		if len(data) < len(segmentMagic) || string(data[:len(segmentMagic)]) != segmentMagic {
			s.lost(seg, offset, len(data), len(data) >= len(segmentMagic))
			return int(seg.size), nil
		}
		n = len(segmentMagic)
	}
	for size := 0; len(events) < batchEvents && size < batchBytes && n < len(data); {
		event, length, err := nextFrame(data[n:])
		switch {
		case err == nil:
			events = append(events, event)
			size += len(event)
		case !last && len(data)-n < maxFrame:
			return n, events // the rest of it is in the next read
		case length > 0 && wholeFrame(data[n+length:]):
			s.lost(seg, offset+int64(n), length, true)
		default: // a write that was never acknowledged
			s.lost(seg, offset+int64(n), int(seg.size-offset)-n, false)
			return int(seg.size - offset), events
		}
		n += length
	}
	return n, events
}

func wholeFrame(data []byte) bool {
	_, _, err := nextFrame(data)
	return err == nil
}

// lost notes unreadable bytes. Damage, as opposed to the torn end of a write that
// a crash cut off, keeps the segment.
func (s *spool) lost(seg segment, offset int64, bytes int, damage bool) {
	fields := []zap.Field{zap.String("segment", seg.name()), zap.Int64("offset", offset), zap.Int("bytes", bytes)}
	if !damage {
		s.log.Warn("the audit spool ends with a write that was cut off", fields...)
		return
	}
	s.log.Error("a record of the audit spool is damaged", fields...)
	s.keep(seg.number)
}

// keep marks a segment that must not be deleted when it was read.
func (s *spool) keep(number uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Damaged++
	for i := range s.segments {
		if s.segments[i].number == number {
			s.segments[i].keep = true
		}
	}
}

// ack notes that the events before to were shipped, and removes what is not
// needed any more.
func (s *spool) ack(to position, events int) error {
	s.mu.Lock()
	s.acked, s.waiting = to, time.Time{}
	s.stats.Shipped += uint64(events)
	seg := s.segments[0]
	done := to.segment == seg.number && to.offset >= seg.size
	s.changedLocked()
	s.mu.Unlock()
	if !done || seg.open && seg.size < min(idleSegmentBytes, s.max/4) && s.now().Sub(seg.begun) < idleSegmentAge {
		return nil
	}
	return s.retire(seg)
}

// retire removes the oldest segment, unless records were added to it meanwhile.
func (s *spool) retire(seg segment) error {
	s.records.acquire() // so that nobody writes to it
	defer s.records.release()
	s.mu.Lock()
	now := s.segments[0]
	s.mu.Unlock()
	if now.size > seg.size {
		return nil
	}
	if now.open {
		s.seal()
	}
	var err error
	if now.keep {
		err = s.dir.Rename(seg.name(), seg.name()+keptSuffix)
	} else {
		err = s.dir.Remove(seg.name())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("retire segment %d: %w", seg.number, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.segments = s.segments[1:]
	if now.keep && err == nil {
		s.kept += seg.size
	}
	return nil
}
