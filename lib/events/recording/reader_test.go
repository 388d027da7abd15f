package recording

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

// compressed returns data as a part holds it, with any options.
func compressed(t testing.TB, data []byte, options ...zstd.EOption) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil, options...)
	if err != nil {
		t.Fatal(err)
	}
	return enc.EncodeAll(data, nil)
}

func framesOf(frames ...*accessdv1.Frame) []byte {
	var records []byte
	for _, f := range frames {
		records = appendFrame(records, f)
	}
	return unjournal(records)
}

// The chain is what DESIGN.md says, counted by hand.
func TestChain(t *testing.T) {
	parts := [][]byte{[]byte("one"), []byte("two"), nil}
	d := make([]byte, 32)
	var c Chain
	if c.Root() != strings.Repeat("00", 32) {
		t.Errorf("the chain begins with %s", c.Root())
	}
	for _, p := range parts {
		digest := sha256.Sum256(p)
		next := sha256.Sum256(slices.Concat(d, digest[:]))
		d = next[:]
		c.Add(p)
	}
	root := hex.EncodeToString(d)
	if c.Root() != root {
		t.Errorf("Root = %s, want %s", c.Root(), root)
	}
	verify := func(parts ...[]byte) error {
		r := NewReader(nil)
		for i, p := range parts {
			if _, err := r.Part(uint32(i)+1, p); err != nil {
				t.Fatal(err)
			}
		}
		return r.Verify(root)
	}
	if err := verify(parts...); err != nil {
		t.Error(err)
	}
	for name, tampered := range map[string][][]byte{
		"edited": {parts[0], []byte("twp"), nil}, "reordered": {parts[1], parts[0], nil}, "cut": parts[:2], "added": append(parts[:3:3], nil),
		"doubled": {parts[0], parts[0], parts[1], nil}, "joined": {[]byte("onetwo"), nil}, "none": nil,
	} {
		if err := verify(tampered...); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: Verify = %v", name, err)
		}
	}
}

// Whoever can write to the store may put anything there. It costs the reader
// little memory, and what stands before the damage is played.
func TestHostileParts(t *testing.T) {
	good := framesOf(goldenFrames()[:2]...)
	bomb := compressed(t, make([]byte, 1<<28), zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	endless := bytes.Repeat(compressed(t, make([]byte, partBytes)), 1<<10) // many zstd frames
	for name, part := range map[string][]byte{
		"empty":              {},
		"not compressed":     good,
		"text":               []byte("hello"),
		"bomb":               bomb,
		"endless":            endless,
		"2 MiB and one":      compressed(t, make([]byte, partBytes+1)),
		"too long":           make([]byte, MaxPart+1),
		"huge window":        {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x01, 0x00, 0x00},
		"zero length":        compressed(t, append(bytes.Clone(good), 0)),
		"huge length":        compressed(t, append(bytes.Clone(good), protowire.AppendVarint(nil, 1<<63)...)),
		"length of 11 bytes": compressed(t, append(bytes.Clone(good), bytes.Repeat([]byte{0xff}, 11)...)),
		"length past end":    compressed(t, append(bytes.Clone(good), 2, 0)),
		"not protobuf":       compressed(t, append(bytes.Clone(good), 2, 0xff, 0xff)),
		"half a part":        compressed(t, good)[:20],
		"age header alone":   []byte(agePrefix),
		"age without end":    []byte(agePrefix + strings.Repeat("-> X25519 a\n", 1<<13)),
	} {
		if name == "empty" {
			if frames, err := Open(part, nil); err != nil || len(frames) != 0 {
				t.Errorf("an empty part has %v, %v", frames, err)
			}
			continue
		}
		ids := identitiesIn(t, "identity.age")
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		frames, err := Open(part, ids)
		runtime.ReadMemStats(&after)
		if !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: Open = %v", name, err)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 16<<20 {
			t.Errorf("%s: Open took %d bytes", name, used)
		}
		if want := goldenFrames()[:2]; strings.Contains(name, "length") || name == "not protobuf" {
			if !equalFrames(frames, want) {
				t.Errorf("%s: %d frames before the damage, want 2", name, len(frames))
			}
		}
	}
}

// A recording with holes and damage is played around them.
func TestReaderPlaysAroundDamage(t *testing.T) {
	all := goldenFrames()
	part := func(frames ...*accessdv1.Frame) []byte { return compressed(t, framesOf(frames...)) }
	r := NewReader(nil)
	var got []string
	read := func(n uint32, data []byte) {
		t.Helper()
		frames, err := r.Part(n, data)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames {
			switch {
			case f.GetGap() != nil:
				got = append(got, f.GetGap().GetReason())
			case f.GetPrint() != nil:
				got = append(got, string(f.GetPrint().GetData()))
			}
		}
	}
	late := proto.CloneOf(all[3])
	late.AtUs = 9_000_000
	read(1, part(all[0], late))
	read(4, part(all[3])) // earlier than what came before
	read(5, part(all[3])[:15])
	if _, err := r.Part(5, nil); !fault.Is(err, fault.BadInput) {
		t.Errorf("the same part again: %v", err)
	}
	read(6, part(all[3]))
	want := []string{"q", "parts 2 to 3 are missing", "q", "part 5: a part of the recording is damaged", "q"}
	if !slices.Equal(got, want) {
		t.Errorf("played %q, want %q", got, want)
	}
	if r.at != late.GetAtUs() {
		t.Errorf("the time went back to %d", r.at)
	}

	later := proto.CloneOf(all[0])
	later.GetStart().Version = 2
	if _, err := NewReader(nil).Part(1, part(later)); !fault.Is(err, fault.BadInput) {
		t.Errorf("a later version: %v", err)
	}
}

// Of a sealed recording with a part that an identity does not open, as before a
// rotation, the others are played.
func TestReaderPlaysAroundSealedParts(t *testing.T) {
	ids := identitiesIn(t, "identity.ssh")
	sealed := golden(t, "2.part")
	r := NewReader(ids)
	if _, err := r.Part(1, sealed); err != nil {
		t.Fatal(err)
	}
	other := bytes.Clone(sealed)
	other[bytes.Index(other, []byte("-> ssh-ed25519 "))+20] ^= 1
	frames, err := r.Part(2, other)
	if err != nil || len(frames) != 1 || frames[0].GetGap() == nil {
		t.Errorf("Part = %v, %v", frames, err)
	}
	if _, err := NewReader(ids).Part(1, other); !fault.Is(err, fault.Denied) && !fault.Is(err, fault.BadInput) {
		t.Errorf("Part = %v", err)
	}
}

// What the recorder writes without protobuf's own encoder is the same.
func TestAppendPrint(t *testing.T) {
	for _, at := range []uint64{0, 1, 127, 128, 1 << 62} {
		for s := range accessdv1.Stream(4) {
			for _, n := range []int{0, 1, 127, 128, 16384, maxData} {
				f := &accessdv1.Frame{AtUs: at, What: &accessdv1.Frame_Print{Print: &accessdv1.FramePrint{Stream: s, Data: make([]byte, n)}}}
				got := new(accessdv1.Frame)
				if err := proto.Unmarshal(appendPrint(nil, at, s, make([]byte, n))[recordHeader:], got); err != nil || !equalFrames([]*accessdv1.Frame{got}, []*accessdv1.Frame{f}) {
					t.Fatalf("%d bytes at %d: %v, %v", n, at, got, err)
				}
				if n == 0 || s == 0 {
					continue // proto.Marshal leaves them out
				}
				if !bytes.Equal(appendPrint(nil, at, s, make([]byte, n)), appendFrame(nil, f)) {
					t.Fatalf("%d bytes at %d have another encoding", n, at)
				}
			}
		}
	}
}

// FuzzOpen: any bytes give frames that can be written again, or an error; never a
// panic or much memory.
func FuzzOpen(f *testing.F) {
	for _, name := range []string{"1.part", "2.part", "3.part", "frames", "journal"} {
		f.Add(golden(f, name))
	}
	f.Add(compressed(f, golden(f, "frames")))
	ids := identitiesIn(f, "identity.age")
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, part := range [][]byte{data, compressed(t, data)} {
			frames, err := Open(part, ids)
			if err != nil {
				continue
			}
			frames = slices.DeleteFunc(frames, func(f *accessdv1.Frame) bool { return proto.Size(f) == 0 }) // nobody writes those
			again, err := parseFrames(framesOf(frames...))
			if err != nil || !equalFrames(again, frames) {
				t.Fatalf("%d frames came back as %d, %v", len(frames), len(again), err)
			}
		}
		if frames, err := NewReader(ids).Part(3, data); err == nil {
			last := uint64(0)
			for _, f := range frames {
				if f.GetAtUs() < last {
					t.Fatal("the time went back")
				}
				last = f.GetAtUs()
			}
		}
	})
}
