package recording

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/age"
	"google.golang.org/protobuf/proto"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

// The files in testdata were written by version 1 of the format. They are read
// for ever: a later version may add files, and changes none.

// goldenRoot is the root over 1.part, 2.part and 3.part.
const goldenRoot = "8f85a12b3f9b15c3b2358e9a2680efe1cacee483d7df9e6cef6e606d03227d5c"

func golden(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// goldenFrames are the frames in testdata/journal and testdata/frames. 1.part has
// the first, 2.part the next three, sealed for both identities, 3.part the others.
func goldenFrames() []*accessdv1.Frame {
	h := Header{
		Session: "5d1c5dd0-9e4b-4d53-8cde-3f4d5c3a0c01", Started: time.Date(2026, 11, 21, 12, 0, 0, 123456000, time.UTC), Cluster: "example.com",
		User: "alice", Login: "root", NodeID: "1b671a64-40d5-491e-99b0-da01ff1f3341", NodeName: "db-1", Kind: "exec",
		Command: "top é", Terminal: true, Term: "xterm-256color", Columns: 80, Rows: 24,
	}
	at := func(us uint64, f *accessdv1.Frame) *accessdv1.Frame { f.AtUs = us; return f }
	return []*accessdv1.Frame{
		startFrame(h.start()),
		{AtUs: 1, What: &accessdv1.Frame_Print{Print: &accessdv1.FramePrint{Stream: 1, Data: []byte("\x1b[1mbytes \xff\x00\r\n")}}},
		{AtUs: 250_000, What: &accessdv1.Frame_Print{Print: &accessdv1.FramePrint{Stream: 2, Data: bytes.Repeat([]byte("e"), 300)}}},
		{AtUs: 250_001, What: &accessdv1.Frame_Print{Print: &accessdv1.FramePrint{Stream: 3, Data: []byte("q")}}},
		{AtUs: 5_000_000, What: &accessdv1.Frame_Resize{Resize: &accessdv1.FrameResize{Columns: 132, Rows: 43}}},
		gapFrame(5_000_001, "no space left on device", 4096),
		at(3_600_000_000, endFrame(0, true, "the recorder was interrupted")),
	}
}

func equalFrames(a, b []*accessdv1.Frame) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !proto.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

func TestGoldenParts(t *testing.T) {
	var ids []age.Identity
	for _, name := range []string{"identity.age", "identity.ssh"} {
		id, err := ParseIdentities(golden(t, name), nil)
		if err != nil {
			t.Fatal(err)
		}
		if frames, err := Open(golden(t, "2.part"), id); err != nil || !equalFrames(frames, goldenFrames()[1:4]) {
			t.Errorf("2.part opens with %s to %v, %v", name, frames, err)
		}
		ids = append(ids, id...)
	}
	reader := NewReader(ids)
	var chain Chain
	var got []*accessdv1.Frame
	for n, name := range []string{"1.part", "2.part", "3.part"} {
		part := golden(t, name)
		chain.Add(part)
		frames, err := reader.Part(uint32(n)+1, part)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, frames...)
	}
	if want := goldenFrames(); !equalFrames(got, want) {
		t.Errorf("the golden recording has the frames %v", got)
	}
	if err := reader.Verify(goldenRoot); err != nil || chain.Root() != goldenRoot {
		t.Errorf("Verify = %v", err)
	}
}

// What the recorder writes today has the same bytes.
func TestGoldenJournal(t *testing.T) {
	var journal []byte
	for _, f := range goldenFrames() {
		if p := f.GetPrint(); p != nil {
			journal = appendPrint(journal, f.GetAtUs(), p.GetStream(), p.GetData())
		} else {
			journal = appendFrame(journal, f)
		}
	}
	if !bytes.Equal(journal, golden(t, "journal")) {
		t.Error("the journal has other bytes")
	}
	if frames := unjournal(journal); !bytes.Equal(frames, golden(t, "frames")) {
		t.Error("the frames have other bytes")
	}
	if frames, err := parseFrames(golden(t, "frames")); err != nil || !equalFrames(frames, goldenFrames()) {
		t.Errorf("the frames are %v, %v", frames, err)
	}
}

func identitiesIn(t testing.TB, name string) []age.Identity {
	t.Helper()
	ids, err := ParseIdentities(golden(t, name), nil)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}
