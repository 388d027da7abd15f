package recording

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"filippo.io/age"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

// MaxPart bounds a part as stored, in bytes: frames that do not compress, and an
// age header with a hundred recipients.
const MaxPart = partBytes + 128<<10

// Open returns the frames of a part as stored; ids open it when it is sealed. It
// takes hostile input. Beside an error it returns the frames before the damage.
func Open(part []byte, ids []age.Identity) ([]*accessdv1.Frame, error) {
	if len(part) > MaxPart {
		return nil, fault.New(fault.BadInput, "a part of the recording has more than %d bytes", MaxPart)
	}
	data, err := unseal(part, ids)
	frames, damage := parseFrames(data)
	if err == nil && damage != nil {
		err = fault.Wrap(fault.BadInput, damage, "a part of the recording is damaged")
	}
	return frames, err
}

// Chain is the digest chain over the parts of a recording. The zero value is its
// beginning.
type Chain struct {
	last  [sha256.Size]byte
	parts uint32
}

// Add adds the next part as stored.
func (c *Chain) Add(part []byte) { c.add(sha256.Sum256(part)) }

func (c *Chain) add(digest [sha256.Size]byte) {
	var both [2 * sha256.Size]byte
	copy(both[:], c.last[:])
	copy(both[sha256.Size:], digest[:])
	c.last = sha256.Sum256(both[:])
	c.parts++
}

// Root returns the last of the chain, hex.
func (c *Chain) Root() string { return hex.EncodeToString(c.last[:]) }

// Reader reads a recording part by part, as the parts are read from the store or,
// while the session goes on, as they come.
type Reader struct {
	ids   []age.Identity
	chain Chain
	next  uint32 // number of the next part
	at    uint64 // of the last frame

	opened bool // a sealed part
}

// NewReader returns a Reader; ids open sealed parts.
func NewReader(ids []age.Identity) *Reader { return &Reader{ids: ids, next: 1} }

// Part returns the frames of part number, which comes after those before. Where
// parts are missing, or damaged, a gap says so: what can be played is. The times
// of the frames never go back. An error means that no part could be opened with
// these identities yet, or that the recording is of a later version.
func (r *Reader) Part(number uint32, part []byte) ([]*accessdv1.Frame, error) {
	if number < r.next {
		return nil, fault.New(fault.BadInput, "part %d of the recording comes again", number)
	}
	var frames []*accessdv1.Frame
	if number > r.next {
		frames = append(frames, gapFrame(0, fmt.Sprintf("parts %d to %d are missing", r.next, number-1), 0))
	}
	r.chain.Add(part)
	r.next = number + 1
	opened, err := Open(part, r.ids)
	if fault.Is(err, fault.Denied) && !r.opened {
		return nil, err
	}
	r.opened = r.opened || err == nil && IsSealed(part)
	frames = append(frames, opened...)
	if err != nil {
		frames = append(frames, gapFrame(0, fmt.Sprintf("part %d: %s", number, fault.Public(err)), 0))
	}
	for _, f := range frames {
		r.at = max(r.at, f.GetAtUs())
		f.AtUs = r.at
		if start := f.GetStart(); start != nil && start.GetVersion() != version {
			return nil, fault.New(fault.BadInput, "the recording has version %d of the format, which this accessd does not know", start.GetVersion())
		}
	}
	return frames, nil
}

// Verify reports whether what was read is the recording whose root is given, all of
// it and nothing else.
func (r *Reader) Verify(root string) error {
	if got := r.chain.Root(); got != root {
		return fault.New(fault.BadInput, "the recording is not the one in the log: the root over its %d parts is %s, the log has %s", r.chain.parts, got, root)
	}
	return nil
}
