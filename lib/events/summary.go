//go:build unix

package events

const (
	// termBits is the size of a block's set of terms. A block of 256 events has some
	// 300 to 1500 different terms; at four bits each the set says "perhaps" for at
	// most 1 in 100 terms that are not there, and never "no" for one that is. Two
	// blocks fit into a page of the index.
	termBits = 1984 * 8
	// gramBits is the size of a block's set of grams: a page of the index. The text
	// of a block has some 8,000 to 12,000 different ones, a fifth of the bits to a
	// third, and a word of n letters has n-2.
	gramBits = 4032 * 8
)

// summary tells what a block of 256 neighbouring entries of the log may hold: the
// span of their times, and Bloom filters of their terms and their grams.
type summary struct {
	earliest, latest int64 // Unix microseconds
	terms            [termBits / 8]byte
	grams            [gramBits / 8]byte
	used             bool
}

// add includes an event. The zero summary becomes that event's own.
func (s *summary) add(e entry) {
	t := e.event.Time.UnixMicro()
	if !s.used {
		s.earliest, s.latest, s.used = t, t, true
	}
	s.earliest, s.latest = min(s.earliest, t), max(s.latest, t)
	for _, h := range e.event.terms() {
		for range 4 {
			bit := h % termBits
			s.terms[bit/8] |= 1 << (bit % 8)
			h /= termBits
		}
	}
	addGrams(&s.grams, e.data)
}

// forget makes s say "perhaps" to every text. It is for a block whose first
// entries were added by another process.
func (s *summary) forget() {
	for i := range s.grams {
		s.grams[i] = 0xff
	}
}

// during reports whether an event of the right time may be in a block.
func (f Filter) during(earliest, latest int64) bool {
	return (f.Since.IsZero() || latest >= f.Since.UnixMicro()) && (f.Until.IsZero() || earliest <= f.Until.UnixMicro())
}

// hasTerms reports whether set may hold all of the terms.
func hasTerms(set []byte, terms []uint64) bool {
	for _, h := range terms {
		for range 4 {
			bit := h % termBits
			if set[bit/8]&(1<<(bit%8)) == 0 {
				return false
			}
			h /= termBits
		}
	}
	return true
}

// gram returns the bit of three bytes that follow each other in a text of small
// letters. Grams are stored: whoever changes them changes indexVersion.
func gram(three uint32) uint32 {
	const spread = 0x9e3779b1 // 2^32 by the golden ratio
	return uint32(uint64(three*spread) * gramBits >> 32)
}

// addGrams adds the grams of data, in small letters, to set.
func addGrams(set *[gramBits / 8]byte, data []byte) {
	var three uint32
	for i, c := range data {
		three = (three<<8 | uint32(lower(c))) & 0xffffff
		if i >= 2 {
			bit := gram(three)
			set[bit/8] |= 1 << (bit % 8)
		}
	}
}

// gramsOf returns the grams of piece, which is in small letters.
func gramsOf(piece []byte) []uint32 {
	var out []uint32
	for i := 2; i < len(piece); i++ {
		out = append(out, gram(uint32(piece[i-2])<<16|uint32(piece[i-1])<<8|uint32(piece[i])))
	}
	return out
}

// hasGrams reports whether set may hold all of the grams.
func hasGrams(set []byte, grams []uint32) bool {
	for _, bit := range grams {
		if set[bit/8]&(1<<(bit%8)) == 0 {
			return false
		}
	}
	return true
}
