package events

import "time"

// summaryBits is the size of a block's set of terms. A block of 256 events has
// some 200 to 600 different terms; at four bits each the set says "perhaps" for
// about 1 in 200 terms that are not there, and never "no" for one that is.
const summaryBits = 8192

// summary tells what a block of 256 neighbouring entries of the log may hold: the
// span of their times, and a Bloom filter of their terms.
type summary struct {
	earliest, latest int64 // Unix microseconds
	terms            [summaryBits / 8]byte
	used             bool
}

// add includes an event. The zero summary becomes that event's own.
func (s *summary) add(when time.Time, terms []uint64) {
	t := when.UnixMicro()
	if !s.used {
		s.earliest, s.latest, s.used = t, t, true
	}
	s.earliest, s.latest = min(s.earliest, t), max(s.latest, t)
	for _, h := range terms {
		for range 4 {
			bit := h % summaryBits
			s.terms[bit/8] |= 1 << (bit % 8)
			h /= summaryBits
		}
	}
}

// mayHold reports whether an event that f selects, whose terms are given, may be
// in the block.
func (s *summary) mayHold(f Filter, terms []uint64) bool {
	if !f.Since.IsZero() && s.latest < f.Since.UnixMicro() || !f.Until.IsZero() && s.earliest >= f.Until.UnixMicro() {
		return false
	}
	for _, h := range terms {
		for range 4 {
			bit := h % summaryBits
			if s.terms[bit/8]&(1<<(bit%8)) == 0 {
				return false
			}
			h /= summaryBits
		}
	}
	return true
}
