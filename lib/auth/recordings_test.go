package auth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// A tape is a recording as its recorder has it.
type tape struct {
	id    names.SessionID
	of    *accessdv1.RecordingOf
	parts [][]byte
}

// newTape returns a recording of a session on m, one part for each text.
func (w *world) newTape(m *member, texts ...string) *tape {
	w.t.Helper()
	tp := &tape{id: names.NewSessionID(), of: &accessdv1.RecordingOf{
		User: "alice", Login: "deploy", NodeId: string(m.id), NodeName: m.name, Kind: "exec", Command: "make deploy",
		Started: timestamppb.New(w.clock.Now()),
	}}
	for i, text := range texts {
		f := &accessdv1.Frame{AtUs: uint64(i) * 1e6, What: &accessdv1.Frame_Print{
			Print: &accessdv1.FramePrint{Stream: accessdv1.Stream_STREAM_STDOUT, Data: []byte(text)},
		}}
		var frames bytes.Buffer
		if _, err := protodelim.MarshalTo(&frames, f); err != nil {
			w.t.Fatal(err)
		}
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			w.t.Fatal(err)
		}
		tp.parts = append(tp.parts, enc.EncodeAll(frames.Bytes(), nil))
		_ = enc.Close()
	}
	return tp
}

func (tp *tape) part(number int) *accessdv1.UploadPartRequest {
	return &accessdv1.UploadPartRequest{Session: string(tp.id), Part: uint32(number), Data: tp.parts[number-1], Of: tp.of}
}

func (tp *tape) end() *accessdv1.CompleteRecordingRequest {
	var chain recording.Chain
	for _, p := range tp.parts {
		chain.Add(p)
	}
	return &accessdv1.CompleteRecordingRequest{
		Session: string(tp.id), Parts: uint32(len(tp.parts)), Root: chain.Root(),
		Ended: timestamppb.New(tp.of.GetStarted().AsTime().Add(time.Minute)), Of: tp.of,
	}
}

// upload has m upload all of a tape and end it a minute after its start.
func (w *world) upload(m *member, tp *tape) {
	w.t.Helper()
	for n := range tp.parts {
		must(w.t, m.UploadPart, tp.part(n+1))
	}
	if until := tp.of.GetStarted().AsTime().Add(time.Minute).Sub(w.clock.Now()); until > 0 {
		w.clock.advance(until)
	}
	must(w.t, m.CompleteRecording, tp.end())
}

// recordings returns what the archive lists, as "id".
func (w *world) listed(req *accessdv1.ListRecordingsRequest) []names.SessionID {
	w.t.Helper()
	var out []names.SessionID
	for _, r := range must(w.t, w.admin().ListRecordings, req).GetRecordings() {
		out = append(out, names.SessionID(r.GetSession()))
	}
	return out
}

// read returns what reading a recording gives: its description and its parts by
// number.
func read(ctx context.Context, c clients, req *accessdv1.ReadRecordingRequest) (*accessdv1.Recording, map[uint32][]byte, error) {
	stream, err := c.ReadRecording(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = stream.Close() }()
	var what *accessdv1.Recording
	parts := map[uint32][]byte{}
	for stream.Receive() {
		if m := stream.Msg(); m.GetRecording() != nil {
			what = m.GetRecording()
		} else {
			parts[m.GetPart()] = m.GetData()
		}
	}
	return what, parts, stream.Err()
}

func TestRecordingFromFirstPartToReader(t *testing.T) {
	w := newWorld(t, plan{})
	m := w.join(sshca.KindNode, "web-1")
	tp := w.newTape(m, "one\n", "two\n", "three\n")
	tp.of.Command = strings.Repeat("x", 600) // the list has a part of it
	must(t, m.UploadPart, tp.part(1))
	must(t, m.UploadPart, tp.part(1)) // its answer was lost
	w.clock.advance(10 * time.Second)
	must(t, m.UploadPart, tp.part(2))

	list := must(t, w.admin().ListRecordings, &accessdv1.ListRecordingsRequest{}).GetRecordings()
	if len(list) != 1 {
		t.Fatalf("%d recordings are listed, want 1", len(list))
	}
	got := list[0]
	size := int64(len(tp.parts[0]) + len(tp.parts[1]))
	if !got.GetInProgress() || got.GetEnded() != nil || got.GetDuration().AsDuration() != 10*time.Second || got.GetParts() != 2 || got.GetSize() != size {
		t.Errorf("while it goes on it is %v, want 2 parts of %d bytes in 10 s", got, size)
	}
	if of := got.GetOf(); of.GetUser() != "alice" || of.GetLogin() != "deploy" || of.GetNodeId() != string(m.id) || of.GetNodeName() != "web-1" || len(of.GetCommand()) != 512 {
		t.Errorf("it is of %v", of)
	}

	must(t, m.UploadPart, tp.part(3))
	w.clock.advance(50 * time.Second)
	w.rec.take()
	must(t, m.CompleteRecording, tp.end())
	must(t, m.CompleteRecording, tp.end())
	ends := named(w.rec.take(), events.RecordingComplete)
	if len(ends) != 1 || !ends[0].Success || ends[0].Fields["recording_root"] != tp.end().GetRoot() || ends[0].SID != tp.id {
		t.Errorf("events of its end: %+v, want one that succeeded", ends)
	}

	what, parts, err := read(t.Context(), w.admin(), &accessdv1.ReadRecordingRequest{Session: string(tp.id)})
	if err != nil {
		t.Fatal(err)
	}
	if what.GetInProgress() || what.GetRoot() != tp.end().GetRoot() || what.GetDuration().AsDuration() != time.Minute || what.GetFault() != "" {
		t.Errorf("complete it is %v", what)
	}
	if len(parts) != 3 {
		t.Errorf("%d parts were read, want 3", len(parts))
	}
	for n, p := range tp.parts {
		if !bytes.Equal(parts[uint32(n+1)], p) {
			t.Errorf("part %d is not what was uploaded", n+1)
		}
	}
	reads := named(w.rec.take(), events.RecordingRead)
	if len(reads) != 1 || reads[0].Fields["by"] != "local:0" || reads[0].SID != tp.id || reads[0].User != "alice" {
		t.Errorf("events of reading: %+v, want one", reads)
	}
	_, parts, err = read(t.Context(), w.admin(), &accessdv1.ReadRecordingRequest{Session: string(tp.id), From: 3})
	if err != nil || len(parts) != 1 || parts[3] == nil {
		t.Errorf("read from part 3: %d parts, %v", len(parts), err)
	}
	_, _, err = read(t.Context(), w.admin(), &accessdv1.ReadRecordingRequest{Session: string(names.NewSessionID())})
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("read what is not there: %v", err)
	}
}

// Who may read recordings leaves a trace before the first byte, or reads nothing.
func TestNobodyReadsUnrecorded(t *testing.T) {
	w := newWorld(t, plan{})
	m := w.join(sshca.KindNode, "web-1")
	tp := w.newTape(m, "the secret of the day\n")
	w.upload(m, tp)
	if err := w.archive.tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.rec.breakFor(events.RecordingRead, events.RecordingSearch, events.RecordingHold, events.RecordingDelete)
	what, parts, err := read(t.Context(), w.admin(), &accessdv1.ReadRecordingRequest{Session: string(tp.id)})
	if !fault.Is(err, fault.Unavailable) || what != nil || len(parts) != 0 {
		t.Errorf("reading gave %v and %d parts, %v; want nothing", what, len(parts), err)
	}
	if res, err := call(t, w.admin().SearchRecordings, &accessdv1.SearchRecordingsRequest{Words: "secret"}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("searching gave %v, %v; want nothing", res, err)
	}
	if _, err := call(t, w.admin().HoldRecording, &accessdv1.HoldRecordingRequest{Session: string(tp.id), Reason: "x"}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("hold: %v", err)
	}
	if _, err := call(t, w.admin().RemoveRecording, &accessdv1.RemoveRecordingRequest{Session: string(tp.id)}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("remove: %v", err)
	}
	if r, err := w.cfg.Store.Recording(t.Context(), tp.id); err != nil || r.Hold != "" || r.Removing != nil {
		t.Errorf("afterwards it is %+v, %v; want it as it was", r, err)
	}
}

// A member adds to its own recordings, and to nothing that is closed or another's;
// what is refused for good is in the log.
func TestUploadsRefused(t *testing.T) {
	w := newWorld(t, plan{})
	m, other := w.join(sshca.KindNode, "web-1"), w.join(sshca.KindNode, "web-2")
	edge := w.join(sshca.KindProxy, "edge-1")
	tp := w.newTape(m, "one", "two", "three")
	must(t, m.UploadPart, tp.part(1))
	w.rec.take()

	changed := tp.part(1)
	changed.Data = tp.parts[1]
	far := tp.part(2)
	far.Part = 66
	zero := tp.part(1)
	zero.Part = 0
	empty := tp.part(2)
	empty.Data = nil
	large := tp.part(2)
	large.Data = make([]byte, recording.MaxPart+1)
	stolen := w.newTape(m, "x") // web-2 says that it happened on web-1
	edges := w.newTape(m, "x")
	nameless := w.newTape(m, "x")
	nameless.of = nil
	kind := w.newTape(m, "x")
	kind.of.Kind = "subsystem"
	farFirst := w.newTape(m, "x").part(1)
	farFirst.Part = 1000
	for _, tc := range []struct {
		what   string
		by     *member
		req    *accessdv1.UploadPartRequest
		kind   fault.Kind
		events int
	}{
		{"the next part of another's", other, tp.part(2), fault.Conflict, 1},
		{"a proxy's into a node's", edge, tp.part(2), fault.Conflict, 1},
		{"other bytes", m, changed, fault.Conflict, 1},
		{"far ahead", m, far, fault.BadInput, 0},
		{"far ahead at once", m, farFirst, fault.BadInput, 0},
		{"part 0", m, zero, fault.BadInput, 0},
		{"no bytes", m, empty, fault.BadInput, 0},
		{"too many bytes", m, large, fault.BadInput, 0},
		{"another node's session", other, stolen.part(1), fault.Denied, 0},
		{"a proxy for a node that records by itself", edge, edges.part(1), fault.Denied, 0},
		{"of nothing", m, nameless.part(1), fault.BadInput, 0},
		{"of no session that is recorded", m, kind.part(1), fault.BadInput, 0},
	} {
		_, err := call(t, tc.by.UploadPart, tc.req)
		if !fault.Is(err, tc.kind) {
			t.Errorf("%s: %v, want %v", tc.what, err, tc.kind)
		}
		if got := named(w.rec.take(), events.RecordingRejected); len(got) != tc.events {
			t.Errorf("%s: events %+v, want %d", tc.what, got, tc.events)
		}
	}
	for _, id := range []string{"", "../../etc/passwd", "a\x00b", strings.Repeat("a", 300), string(tp.id) + "/../x", strings.ToUpper(string(tp.id)), "con"} {
		req := tp.part(2)
		req.Session = id
		if _, err := call(t, m.UploadPart, req); !fault.Is(err, fault.BadInput) {
			t.Errorf("upload into session %q: %v, want bad input", id, err)
		}
		end := tp.end()
		end.Session = id
		if _, err := call(t, m.CompleteRecording, end); !fault.Is(err, fault.BadInput) {
			t.Errorf("end of session %q: %v, want bad input", id, err)
		}
		if _, _, err := read(t.Context(), w.admin(), &accessdv1.ReadRecordingRequest{Session: id}); !fault.Is(err, fault.BadInput) {
			t.Errorf("read of session %q: %v, want bad input", id, err)
		}
		if _, err := call(t, w.admin().RemoveRecording, &accessdv1.RemoveRecordingRequest{Session: id}); !fault.Is(err, fault.BadInput) {
			t.Errorf("removal of session %q: %v, want bad input", id, err)
		}
	}
	if _, err := call(t, other.CompleteRecording, tp.end()); !fault.Is(err, fault.Conflict) {
		t.Errorf("another ends it: %v", err)
	}
	short := tp.end()
	short.Root = "xyz"
	if _, err := call(t, m.CompleteRecording, short); !fault.Is(err, fault.BadInput) {
		t.Errorf("an end with no root: %v", err)
	}
	must(t, m.UploadPart, tp.part(2))
	must(t, m.UploadPart, tp.part(3))
	short = tp.end()
	short.Parts = 2
	if _, err := call(t, m.CompleteRecording, short); !fault.Is(err, fault.Conflict) {
		t.Errorf("an end before the newest part: %v", err)
	}
	must(t, m.CompleteRecording, tp.end())
	w.rec.take()
	tp.parts = append(tp.parts, []byte("more"))
	for what, err := range map[string]error{
		"a part after the end": second(call(t, m.UploadPart, tp.part(4))),
		"another end":          second(call(t, m.CompleteRecording, tp.end())),
	} {
		if !fault.Is(err, fault.Conflict) {
			t.Errorf("%s: %v, want a conflict", what, err)
		}
	}
	if got := named(w.rec.take(), events.RecordingRejected); len(got) != 2 {
		t.Errorf("after the end: events %+v, want 2", got)
	}
	if got := w.listed(&accessdv1.ListRecordingsRequest{}); !slices.Equal(got, []names.SessionID{tp.id}) {
		t.Errorf("recordings are %v, want only the one that was let in", got)
	}
	files, err := os.ReadDir(filepath.Join(w.dir, "recordings", "recordings", string(tp.id)))
	if err != nil || len(files) != 3 {
		t.Errorf("the store has %d parts, %v; want 3", len(files), err)
	}
}

func second[T any](_ T, err error) error { return err }

// Two members say that one session is theirs: one of them has it, whole, and the
// other is refused.
func TestTwoMembersRaceForOneSession(t *testing.T) {
	w := newWorld(t, plan{})
	rivals := []*member{w.join(sshca.KindNode, "web-1"), w.join(sshca.KindNode, "web-2")}
	for range 5 {
		id := names.NewSessionID()
		tapes := make([]*tape, len(rivals))
		refused := make([]error, len(rivals))
		var wg sync.WaitGroup
		for i, m := range rivals {
			tapes[i] = w.newTape(m, m.name+" one", m.name+" two")
			tapes[i].id = id
			wg.Go(func() {
				for n := range tapes[i].parts {
					if _, err := call(t, m.UploadPart, tapes[i].part(n+1)); err != nil {
						refused[i] = err
						return
					}
				}
			})
		}
		wg.Wait()
		winner := slices.Index(refused, nil)
		if winner < 0 || !fault.Is(refused[1-winner], fault.Conflict) {
			t.Fatalf("refused were %v, want one of two", refused)
		}
		_, parts, err := read(t.Context(), w.admin(), &accessdv1.ReadRecordingRequest{Session: string(id)})
		if err != nil || len(parts) != 2 {
			t.Fatalf("%d parts, %v; want 2", len(parts), err)
		}
		for n, p := range tapes[winner].parts {
			if !bytes.Equal(parts[uint32(n+1)], p) {
				t.Errorf("part %d is not the one of %s, who has the session", n+1, rivals[winner].name)
			}
		}
	}
}

// A proxy records what happens on plain sshd nodes.
func TestProxyRecordsForPlainNodes(t *testing.T) {
	w := newWorld(t, plan{})
	edge := w.join(sshca.KindProxy, "edge-1")
	gone := &member{id: names.NewNodeID(), name: "router"} // a node that was removed meanwhile
	tp := w.newTape(gone, "x")
	w.upload(edge, tp)
	if got := w.listed(&accessdv1.ListRecordingsRequest{Node: "router"}); len(got) != 1 {
		t.Errorf("recordings on it: %v, want 1", got)
	}
}

// failing is a store that fails when told to.
type failing struct {
	recordingStore

	mu     sync.Mutex
	err    error
	after  int    // calls that still succeed
	before func() // is called before the next
	gets   atomic.Int64
}

func (f *failing) fail(err error) { f.failAfter(0, err) }

func (f *failing) failAfter(calls int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.after, f.err = calls, err
}

func (f *failing) failed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.before != nil {
		f.before()
	}
	if f.after--; f.after >= 0 {
		return nil
	}
	return f.err
}

func (f *failing) Get(ctx context.Context, key string) ([]byte, error) {
	defer f.gets.Add(1)
	if err := f.failed(); err != nil {
		return nil, err
	}
	return f.recordingStore.Get(ctx, key)
}

func (f *failing) Put(ctx context.Context, key string, data []byte) error {
	if err := f.failed(); err != nil {
		return err
	}
	return f.recordingStore.Put(ctx, key, data)
}

func (f *failing) DeleteAll(ctx context.Context, dir string) error {
	if err := f.failed(); err != nil {
		return err
	}
	return f.recordingStore.DeleteAll(ctx, dir)
}

func withFailing(f *failing) func(*Config) {
	return func(c *Config) { f.recordingStore, c.Recordings.Store = c.Recordings.Store, f }
}

// What the store does not confirm is not known as uploaded, and comes again.
func TestStoreAway(t *testing.T) {
	f := &failing{}
	w := newWorld(t, plan{change: withFailing(f)})
	m := w.join(sshca.KindNode, "web-1")
	tp := w.newTape(m, "one", "two")
	must(t, m.UploadPart, tp.part(1))
	f.fail(fault.New(fault.Unavailable, "the store is away"))
	if _, err := call(t, m.UploadPart, tp.part(2)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a part that the store does not take: %v", err)
	}
	if _, err := w.cfg.Store.RecordingPart(t.Context(), tp.id, 2); !fault.Is(err, fault.NotFound) {
		t.Errorf("it is known as uploaded: %v", err)
	}
	f.fail(nil)
	must(t, m.UploadPart, tp.part(2))
	must(t, m.CompleteRecording, tp.end())
}

// A recording of which a part was lost at its recorder, or that is not what its
// recorder says, ends nevertheless, and says what is wrong with it.
func TestIncompleteRecordings(t *testing.T) {
	w := newWorld(t, plan{})
	m := w.join(sshca.KindNode, "web-1")
	hole := w.newTape(m, "one", "two", "three")
	must(t, m.UploadPart, hole.part(1))
	must(t, m.UploadPart, hole.part(3))
	must(t, m.CompleteRecording, hole.end())
	none := w.newTape(m, "one")
	must(t, m.CompleteRecording, none.end())
	lying := w.newTape(m, "one")
	must(t, m.UploadPart, lying.part(1))
	wrong := lying.end()
	wrong.Root = strings.Repeat("0", 64)
	must(t, m.CompleteRecording, wrong)
	nothing := w.newTape(m)
	must(t, m.CompleteRecording, nothing.end())
	sum := sha256.Sum256(append(make([]byte, 32), sumOf(lying.parts[0])...))
	for id, want := range map[names.SessionID]string{
		hole.id:    "1 of 3 parts never came, first part 2",
		none.id:    "1 of 1 parts never came, first part 1",
		lying.id:   "the root of its parts is " + hex.EncodeToString(sum[:]) + ", not the one it was given",
		nothing.id: "",
	} {
		r, err := w.cfg.Store.Recording(t.Context(), id)
		if err != nil || r.End == nil || r.Fault != want {
			t.Errorf("recording is %+v, %v; want complete with fault %q", r, err, want)
		}
		for _, ev := range named(w.rec.list, events.RecordingComplete) {
			if ev.SID == id && (ev.Success != (want == "") || ev.Error != want) {
				t.Errorf("event %+v, want error %q", ev, want)
			}
		}
	}
	_, parts, err := read(t.Context(), w.admin(), &accessdv1.ReadRecordingRequest{Session: string(hole.id)})
	if err != nil || len(parts) != 2 || parts[1] == nil || parts[3] == nil {
		t.Errorf("of the one with a hole %d parts were read, %v; want 1 and 3", len(parts), err)
	}
}

func sumOf(p []byte) []byte {
	sum := sha256.Sum256(p)
	return sum[:]
}

// What was changed or removed in the store behind the authority's back is not
// given out as the recording, and the log says so.
func TestTamperedStore(t *testing.T) {
	w := newWorld(t, plan{})
	m := w.join(sshca.KindNode, "web-1")
	for what, tamper := range map[string]func(path string) error{
		"part 2 was changed in the store": func(path string) error { return os.WriteFile(path, []byte("nothing happened"), 0o600) },
		"part 2 is gone from the store":   os.Remove,
	} {
		tp := w.newTape(m, "one", "two", "three")
		w.upload(m, tp)
		if err := tamper(filepath.Join(w.dir, "recordings", "recordings", string(tp.id), "000002.part")); err != nil {
			t.Fatal(err)
		}
		w.rec.take()
		_, parts, err := read(t.Context(), w.admin(), &accessdv1.ReadRecordingRequest{Session: string(tp.id)})
		if !fault.Is(err, fault.Conflict) || !strings.HasSuffix(fault.Public(err), what) || len(parts) != 1 {
			t.Errorf("%s: %d parts, %v", what, len(parts), err)
		}
		if got := named(w.rec.take(), events.RecordingFault); len(got) == 0 || got[0].Fields["reason"] != what || got[0].SID != tp.id {
			t.Errorf("events %+v, want one that %s", got, what)
		}
		if _, parts, err := read(t.Context(), w.admin(), &accessdv1.ReadRecordingRequest{Session: string(tp.id), From: 3}); err != nil || len(parts) != 1 {
			t.Errorf("what follows: %d parts, %v; want 1", len(parts), err)
		}
		if r, err := w.cfg.Store.Recording(t.Context(), tp.id); err != nil || r.Fault != what {
			t.Errorf("it says %q, %v", r.Fault, err)
		}
	}
}

// Who follows a recording gets each part once, as it comes, and ends with it.
func TestFollowRecording(t *testing.T) {
	w := newWorld(t, plan{})
	m := w.join(sshca.KindNode, "web-1")
	tp := w.newTape(m, "one", "two", "three")
	must(t, m.UploadPart, tp.part(1))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := w.admin().ReadRecording(ctx, connect.NewRequest(&accessdv1.ReadRecordingRequest{Session: string(tp.id), Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	for n := 0; stream.Receive(); n++ { // each part is uploaded when the one before was read
		got := stream.Msg()
		if n > 0 && (got.GetPart() != uint32(n) || !bytes.Equal(got.GetData(), tp.parts[n-1])) {
			t.Fatalf("answer %d is part %d", n, got.GetPart())
		}
		switch n {
		case 0:
		case len(tp.parts):
			must(t, m.CompleteRecording, tp.end())
		default:
			must(t, m.UploadPart, tp.part(n+1))
		}
	}
	if err := stream.Err(); err != nil {
		t.Errorf("the stream ended with %v, want its end", err)
	}
}

func TestListRecordings(t *testing.T) {
	w := newWorld(t, plan{})
	m := w.join(sshca.KindNode, "web-1")
	var ids []names.SessionID // the newest first
	for i := range 5 {
		tp := w.newTape(m, strings.Repeat("x", i))
		tp.of.User, tp.of.Terminal = fmt.Sprintf("user%d", i%2), i == 3
		if i == 4 {
			must(t, m.UploadPart, tp.part(1))
		} else {
			w.upload(m, tp)
		}
		ids = slices.Insert(ids, 0, tp.id)
		w.clock.advance(time.Minute)
	}
	yes, no := true, false
	start := func(i int) *timestamppb.Timestamp {
		r, err := w.cfg.Store.Recording(t.Context(), ids[i])
		if err != nil {
			t.Fatal(err)
		}
		return timestamppb.New(r.Started)
	}
	for what, tc := range map[string]struct {
		req  *accessdv1.ListRecordingsRequest
		want []names.SessionID
	}{
		"all":         {&accessdv1.ListRecordingsRequest{}, ids},
		"one's":       {&accessdv1.ListRecordingsRequest{User: "user1"}, []names.SessionID{ids[1], ids[3]}},
		"a login's":   {&accessdv1.ListRecordingsRequest{Login: "root"}, nil},
		"by node":     {&accessdv1.ListRecordingsRequest{Node: string(m.id)}, ids},
		"no node":     {&accessdv1.ListRecordingsRequest{Node: "web-2"}, nil},
		"since":       {&accessdv1.ListRecordingsRequest{Since: start(1)}, ids[:2]},
		"until":       {&accessdv1.ListRecordingsRequest{Until: start(1)}, ids[2:]},
		"terminal":    {&accessdv1.ListRecordingsRequest{Terminal: &yes}, ids[1:2]},
		"in progress": {&accessdv1.ListRecordingsRequest{InProgress: &yes}, ids[:1]},
		"complete":    {&accessdv1.ListRecordingsRequest{InProgress: &no}, ids[1:]},
		"large":       {&accessdv1.ListRecordingsRequest{MinSize: 1 << 20}, nil},
	} {
		if got := w.listed(tc.req); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", what, got, tc.want)
		}
	}
	var got []names.SessionID
	for req := (&accessdv1.ListRecordingsRequest{Limit: 2}); ; {
		res := must(t, w.admin().ListRecordings, req)
		for _, r := range res.GetRecordings() {
			got = append(got, names.SessionID(r.GetSession()))
		}
		if req.Before = res.GetNextBefore(); req.Before == "" {
			break
		}
	}
	if !slices.Equal(got, ids) {
		t.Errorf("in pages of two: %v, want %v", got, ids)
	}
	if _, err := call(t, w.admin().ListRecordings, &accessdv1.ListRecordingsRequest{Limit: -1}); !fault.Is(err, fault.BadInput) {
		t.Errorf("a page of -1: %v", err)
	}
}

// A person reads recordings when a role says so, and that the session was the
// person's own is no such role.
func TestWhoReadsRecordings(t *testing.T) {
	w := newWorld(t, plan{})
	m := w.join(sshca.KindNode, "web-1")
	tp := w.newTape(m, "one")
	w.upload(m, tp)
	w.addUser("alice", "access") // whose session it was
	w.addUser("aud", "auditor")
	await(t, w, func() bool {
		_, a := w.policy.User("alice")
		_, b := w.policy.User("aud")
		return a && b
	})
	alice, aud := w.as(rpc.Peer{Identity: w.person("alice")}), w.as(rpc.Peer{Identity: w.person("aud")})
	if _, parts, err := read(t.Context(), alice, &accessdv1.ReadRecordingRequest{Session: string(tp.id)}); !fault.Is(err, fault.Denied) || len(parts) > 0 {
		t.Errorf("alice reads %d parts of her own session, %v; want a denial", len(parts), err)
	}
	if _, err := call(t, alice.SearchRecordings, &accessdv1.SearchRecordingsRequest{Words: "one"}); !fault.Is(err, fault.Denied) {
		t.Errorf("alice searches: %v", err)
	}
	if _, parts, err := read(t.Context(), aud, &accessdv1.ReadRecordingRequest{Session: string(tp.id)}); err != nil || len(parts) != 1 {
		t.Errorf("an auditor reads %d parts, %v; want 1", len(parts), err)
	}
	for what, err := range map[string]error{
		"holds":   second(call(t, aud.HoldRecording, &accessdv1.HoldRecordingRequest{Session: string(tp.id), Reason: "x"})),
		"removes": second(call(t, aud.RemoveRecording, &accessdv1.RemoveRecordingRequest{Session: string(tp.id)})),
	} {
		if !fault.Is(err, fault.Denied) {
			t.Errorf("an auditor %s: %v, want a denial", what, err)
		}
	}
}

func TestRecordingSettings(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	want := services.RecordingSettings{Recipients: []string{id.Recipient().String()}, MaxSession: 1 << 20}
	put := func(s services.RecordingSettings) func(*Config) {
		return func(c *Config) { c.Recordings.Settings = s }
	}
	me := names.NewNodeID()
	first := newWorld(t, plan{dir: dir, id: me, change: put(want)})
	if got := first.policy.RecordingSettings(); !got.Same(want) {
		t.Errorf("the policy begins with %+v, want %+v", got, want)
	}
	if got := named(first.rec.take(), events.RecordingSettings); len(got) != 1 || !got[0].Success {
		t.Errorf("events %+v, want one", got)
	}
	m := first.join(sshca.KindNode, "web-1")
	stream, err := m.WatchPolicy(t.Context(), connect.NewRequest(&accessdv1.WatchPolicyRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	told := services.NewCache()
	for stream.Receive() {
		if err := told.Apply(stream.Msg()); err != nil {
			t.Fatal(err)
		}
		if stream.Msg().GetSynced() {
			break
		}
	}
	_ = stream.Close()
	if got := told.RecordingSettings(); !got.Same(want) {
		t.Errorf("a node is told %+v, want %+v", got, want)
	}
	first.stop()

	again := newWorld(t, plan{dir: dir, id: me, change: put(want)})
	if got := named(again.rec.take(), events.RecordingSettings); len(got) != 0 {
		t.Errorf("events after a restart %+v, want none", got)
	}
	again.stop()
	third := newWorld(t, plan{dir: dir, id: me})
	if got := third.policy.RecordingSettings(); !got.Same(services.RecordingSettings{}) {
		t.Errorf("after the change %+v, want none", got)
	}
	if got := named(third.rec.take(), events.RecordingSettings); len(got) != 1 || !slices.Equal(got[0].Fields["recipients_before"].([]string), want.Recipients) {
		t.Errorf("events of the change %+v, want one", got)
	}
	third.stop()

	for _, bad := range []string{"age1nonsense", "AGE-SECRET-KEY-1QQQQ", "ssh-ed25519 AAAA", "ecdsa-sha2-nistp256 AAAA", "", "../recipients.txt"} {
		_, err := openWorld(t, plan{dir: dir, id: me, change: put(services.RecordingSettings{Recipients: []string{want.Recipients[0], bad}})})
		if !fault.Is(err, fault.BadInput) || !strings.HasPrefix(fault.Public(err), "recordings.recipients[1]: ") {
			t.Errorf("recipient %q: %v, want bad input with its place", bad, err)
		}
	}
}
