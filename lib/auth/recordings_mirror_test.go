package auth

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/store"
	"github.com/accessd/accessd/lib/store/storetest"
)

// mirrored opens a world with a mirror in a folder, behind what fails when it is
// told to. Its mirror does what the test calls for, and nothing by itself.
func mirrored(t *testing.T, p plan) (*world, *failing, string) {
	t.Helper()
	dir := t.TempDir()
	w, f := mirroredTo(t, p, store.Folder(dir))
	return w, f, dir
}

// mirroredTo is mirrored with a store that is named.
func mirroredTo(t *testing.T, p plan, url string) (*world, *failing) {
	t.Helper()
	to, err := store.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = to.Close() })
	f, more := &failing{recordingStore: to}, p.change
	p.change = func(c *Config) {
		c.Recordings.Mirror = f
		if more != nil {
			more(c)
		}
	}
	w := newWorld(t, p)
	w.tend()
	w.archive.turn <- struct{}{} // nobody else tends or brings from here on
	// It takes a list when it is done with the one before, and each costs it one look
	// at its mark: the last one has been looked at when this returns.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 2 {
		looked := f.gets.Load()
		w.archive.mirror.offer(nil)
		for len(w.archive.mirror.offered) > 0 || f.gets.Load() == looked {
			select {
			case <-tick.C:
			case <-t.Context().Done():
				t.Fatal("the mirror looks at nothing")
			}
		}
	}
	return w, f
}

// bring brings the mirror up to now, and reports whether it is.
func (w *world) bring() bool {
	w.t.Helper()
	list, err := w.cfg.Store.Recordings(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return w.archive.mirror.round(w.t.Context(), list)
}

// copied returns the files that the mirror has of a recording.
func copied(t testing.TB, dir string, id names.SessionID) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	list, err := os.ReadDir(filepath.Join(dir, "recordings", string(id)))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, f := range list {
		if files[f.Name()], err = os.ReadFile(filepath.Join(dir, "recordings", string(id), f.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// wantCopy holds the copy of a recording against the recording, and its proof
// against the log's key.
func (w *world) wantCopy(dir string, tp *tape) {
	w.t.Helper()
	files := copied(w.t, dir, tp.id)
	var sums strings.Builder
	for i, p := range tp.parts {
		name := fmt.Sprintf("%06d.part", i+1)
		if !bytes.Equal(files[name], p) {
			w.t.Errorf("%s has %d bytes there, want the part's %d", name, len(files[name]), len(p))
		}
		sum := sha256.Sum256(p)
		sums.WriteString(hex.EncodeToString(sum[:]) + "  " + name + "\n")
	}
	if got := string(files["SHA256SUMS"]); got != sums.String() {
		w.t.Errorf("the sums are %q, want %q", got, sums.String())
	}
	of, err := recording.ParseCopied(files["recording.json"], tp.id)
	if err != nil || of.Root != tp.end().GetRoot() || of.User != "alice" || of.Parts != uint32(len(tp.parts)) {
		w.t.Errorf("recording.json says %+v, %v", of, err)
	}
	p, err := events.CheckProof(files["recording.proof"], w.cfg.Keys.AuditVerifierKey())
	if err != nil {
		w.t.Fatalf("the proof: %v", err)
	}
	if ev, err := events.ParseEvent(p.Event); err != nil || ev.Name != events.RecordingComplete || ev.SID != tp.id || ev.Fields["recording_root"] != of.Root {
		w.t.Errorf("proven is %+v, %v", ev, err)
	}
}

// A recording is in the mirror as far as it has come, and when it has ended whole,
// with what it takes to check it; whatever call the mirror fails at, and though
// every process that brings it ends there.
func TestRecordingsMirrored(t *testing.T) {
	w, f, dir := mirrored(t, plan{})
	m := w.join(sshca.KindNode, "web-1")
	tp := w.newTape(m, "one", "two", "three")
	must(t, m.UploadPart, tp.part(1))
	if !w.bring() || len(copied(t, dir, tp.id)) != 1 {
		t.Errorf("of one that goes on there is %v, want one part", copied(t, dir, tp.id))
	}
	w.upload(m, tp)
	for allowed := 0; ; allowed++ {
		f.failAfter(allowed, fault.New(fault.Unavailable, "the bucket is away"))
		w.archive.mirror.brought = map[names.SessionID]uint32{} // as after a restart
		if w.bring() {
			break
		}
		if files := copied(t, dir, tp.id); files["recording.json"] != nil && (files["SHA256SUMS"] == nil || files["recording.proof"] == nil || files["000003.part"] == nil) {
			t.Errorf("after %d calls it says that it is whole, and has only %d files", allowed, len(files))
		}
		if r, err := w.cfg.Store.Recording(t.Context(), tp.id); err != nil || r.Mirrored != "" {
			t.Errorf("after %d calls it counts as mirrored: %q, %v", allowed, r.Mirrored, err)
		}
		if allowed > 50 {
			t.Fatal("it never gets done")
		}
	}
	w.wantCopy(dir, tp)
	if got := testutil.ToFloat64(w.archive.mirror.failures); got < 5 {
		t.Errorf("%v failures are counted, want one for each call", got)
	}
	if got := testutil.ToFloat64(w.archive.mirror.waiting); got != 0 {
		t.Errorf("%v recordings wait, want none", got)
	}
	// What is there is not brought again, unless the mirror is another.
	f.failAfter(1, fault.New(fault.Unavailable, "more than its mark is asked for"))
	if !w.bring() {
		t.Error("what is there is brought again")
	}
	f.fail(nil)
	if err := os.RemoveAll(filepath.Join(dir, "recordings")); err != nil {
		t.Fatal(err)
	}
	if !w.bring() {
		t.Error("an empty mirror is not brought everything")
	}
	w.wantCopy(dir, tp)
}

// A real server that speaks S3's protocol, which is killed and comes back: recordings
// and a period of the log come to it whole, and are counted as there, and removed
// here, only when they are.
func TestBucketOfMirrorAndArchive(t *testing.T) {
	s3 := storetest.Start(t)
	at := s3.URL("copies")
	dir := filepath.Join(s3.Dir, "copies")
	w, _ := mirroredTo(t, plan{}, at)
	m := w.join(sshca.KindNode, "web-1")
	tapes := []*tape{w.newTape(m, "one", "two", "three"), w.newTape(m, "four", "five")}
	w.upload(m, tapes[0])
	if !w.bring() {
		t.Fatal("nothing came to the bucket")
	}
	w.wantCopy(dir, tapes[0])
	must(t, w.admin().RotateLog, &accessdv1.RotateLogRequest{})
	archive := func() (*accessdv1.ArchivePeriodResponse, error) {
		return call(t, w.admin().ArchivePeriod, &accessdv1.ArchivePeriodRequest{Period: events.FirstPeriod, To: at, Young: true})
	}
	here := w.cfg.AuditDir

	s3.Stop()
	w.upload(m, tapes[1])
	var wg sync.WaitGroup // both try for a while
	wg.Go(func() {
		if _, err := archive(); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "and stays") {
			t.Errorf("with the server gone: %v, want the period to stay", err)
		}
	})
	if w.bring() {
		t.Error("what is not there counts as mirrored")
	}
	wg.Wait()
	if r, err := w.cfg.Store.Recording(t.Context(), tapes[1].id); err != nil || r.Mirrored != "" {
		t.Errorf("what is not there counts as mirrored by %q, %v", r.Mirrored, err)
	}
	if r, err := events.Verify(t.Context(), here, w.cfg.Keys.AuditVerifierKey()); err != nil || len(r.Before) != 1 {
		t.Errorf("the log has %d periods before this one, %v; want it whole", len(r.Before), err)
	}

	s3.Again()
	if !w.bring() {
		t.Error("nothing comes to the bucket that is back")
	}
	for _, tp := range tapes {
		w.wantCopy(dir, tp)
	}
	done, err := archive()
	if err != nil {
		t.Fatal(err)
	}
	r, err := events.Verify(t.Context(), filepath.Join(dir, done.GetPath()), w.cfg.Keys.AuditVerifierKey())
	if err != nil || r.Size != done.GetSize() || r.RootHash != done.GetRootHash() {
		t.Errorf("the archive has %d entries, %v, want %d", r.Size, err, done.GetSize())
	}
	if r, err := events.VerifyArchived(t.Context(), here, w.cfg.Keys.AuditVerifierKey()); err != nil || r.Absent == nil || r.Absent.Size != done.GetSize() {
		t.Errorf("here the period is absent as %+v, %v", r.Absent, err)
	}
	if got := w.logged(events.AuditArchive); len(got) != 1 || got[0]["to"] != at {
		t.Errorf("the log has %v, want one event", got)
	}
}

// What is gone from the store, or was changed there, is not copied, and what is in
// the mirror already and other stays; neither holds up the others.
func TestMirrorOfDamagedRecordings(t *testing.T) {
	w, _, dir := mirrored(t, plan{})
	m := w.join(sshca.KindNode, "web-1")
	damaged, planted, good := w.newTape(m, "one", "two", "three"), w.newTape(m, "one"), w.newTape(m, "one")
	for _, tp := range []*tape{damaged, planted, good} {
		for n := range tp.parts {
			must(t, m.UploadPart, tp.part(n+1))
		}
	}
	if err := os.WriteFile(filepath.Join(w.dir, "recordings", "recordings", string(damaged.id), "000002.part"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "recordings", string(planted.id), "000001.part")
	if err := os.MkdirAll(filepath.Dir(other), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tp := range []*tape{damaged, planted, good} {
		w.upload(m, tp)
	}
	if w.bring() {
		t.Error("a mirror with other content is as good as a copy")
	}
	w.wantCopy(dir, good)
	files := copied(t, dir, damaged.id)
	if files["000001.part"] == nil || files["000002.part"] != nil || files["000003.part"] == nil || strings.Count(string(files["SHA256SUMS"]), "\n") != 3 || files["recording.json"] == nil {
		t.Errorf("of a damaged one there is %v", files)
	}
	if got := copied(t, dir, planted.id); string(got["000001.part"]) != "other" || got["recording.json"] != nil {
		t.Errorf("what was there is %q now", got)
	}
	if got := testutil.ToFloat64(w.archive.mirror.waiting); got != 1 {
		t.Errorf("%v recordings wait, want the one that is not there", got)
	}
}

// Time waits for the mirror, space does not. What is removed stays in the mirror,
// and goes from there, too, where that is said, also when the mirror was away.
func TestRetentionAndTheMirror(t *testing.T) {
	for _, erase := range []bool{false, true} {
		w, f, dir := mirrored(t, plan{change: func(c *Config) { c.Recordings.MirrorDelete = erase }})
		m := w.join(sshca.KindNode, "web-1")
		tp := w.newTape(m, "one")
		w.upload(m, tp)
		f.fail(fault.New(fault.Unavailable, "the bucket is away"))
		w.clock.advance(3 * time.Hour)
		list := func() int {
			t.Helper()
			all, err := w.cfg.Store.Recordings(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return len(w.archive.retain(t.Context(), all))
		}
		w.archive.cfg.Recordings.Retain = time.Hour
		if w.bring(); list() != 1 {
			t.Error("it was removed before the mirror had it")
		}
		f.fail(nil)
		if !w.bring() {
			t.Fatal("it cannot be brought")
		}
		w.rec.take()
		if list() != 0 {
			t.Error("it is kept though the mirror has it")
		}
		evs := named(w.rec.take(), events.RecordingDelete)
		if len(evs) != 1 || evs[0].Fields["mirrored"] != !erase {
			t.Errorf("events %+v", evs)
		}
		if got := len(copied(t, dir, tp.id)); (got == 0) != erase {
			t.Errorf("mirror_delete %v: %d files are in the mirror", erase, got)
		}
		// By hand, at once, whether or not the mirror answers.
		tp = w.newTape(m, "two")
		w.archive.cfg.Recordings.Retain = 0
		w.upload(m, tp)
		if !w.bring() {
			t.Fatal("it cannot be brought")
		}
		f.fail(fault.New(fault.Unavailable, "the bucket is away"))
		_, err := call(t, w.admin().RemoveRecording, &accessdv1.RemoveRecordingRequest{Session: string(tp.id), Reason: "by law"})
		if (err != nil) != erase {
			t.Errorf("mirror_delete %v: removal with the mirror away: %v", erase, err)
		}
		f.fail(nil)
		w.clock.advance(removalTime)
		if list() != 0 {
			t.Error("the removal does not go on")
		}
		if got := len(copied(t, dir, tp.id)); (got == 0) != erase {
			t.Errorf("mirror_delete %v: after all %d files are in the mirror", erase, got)
		}
		// Who brings it while another authority removes it leaves nothing behind.
		tp = w.newTape(m, "three")
		w.upload(m, tp)
		all, err := w.cfg.Store.Recordings(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f.before = func() {
			f.before = nil
			all[0].Removing = &services.RecordingRemoval{By: "another", At: w.clock.Now()}
			if err := w.cfg.Store.UpdateRecording(t.Context(), all[0]); err != nil {
				t.Error(err)
			}
		}
		w.archive.mirror.round(t.Context(), all)
		if got := len(copied(t, dir, tp.id)); erase && got != 0 {
			t.Errorf("%d files are left in the mirror of what was removed meanwhile", got)
		}
	}
}
