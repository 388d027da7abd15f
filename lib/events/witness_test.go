//go:build unix

package events

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	formats "github.com/transparency-dev/formats/note"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/lib/fault"
)

// startWitnesses runs real witnesses of the log with that key: the program of
// tools/witness, one process each.
func startWitnesses(t *testing.T, log testKey, names ...string) (list []Witness) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "witness")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".")
	build.Dir = filepath.Join("..", "..", "tools", "witness")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the witness: %v\n%s", err, out)
	}
	for _, name := range names {
		secret, public, err := NewAuditKey(name)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		cmd := exec.CommandContext(ctx, program, log.verifier, secret)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			stop()
			_ = cmd.Wait() // it was killed
		})
		address, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, Witness{URL: "http://" + strings.TrimSpace(address), Key: public})
	}
	return list
}

// watched is Witnesses whose log lines and metrics can be read.
type watched struct {
	*Witnesses

	lines *observer.ObservedLogs
}

func newWatched(t *testing.T, l *Log, list ...Witness) watched {
	t.Helper()
	core, lines := observer.New(zap.InfoLevel)
	w, err := NewWitnesses(WitnessesConfig{Log: l, Witnesses: list, Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	w.log = zap.New(core)
	t.Cleanup(w.client.CloseIdleConnections)
	return watched{w, lines}
}

// said returns the errors in the lines that were logged since it was called last.
func (w watched) said() (all []string) {
	for _, line := range w.lines.TakeAll() {
		all = append(all, fmt.Sprint(line.Message, ": ", line.ContextMap()["error"]))
	}
	return all
}

func keysOf(list []Witness) (keys []string) {
	for _, w := range list {
		keys = append(keys, w.Key)
	}
	return keys
}

// mustBeCosigned wants that each of the witnesses cosigned size entries.
func mustBeCosigned(t *testing.T, l *Log, size int, list ...Witness) {
	t.Helper()
	r, err := l.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := Cosignatures(r.Cosigned, l.cfg.VerifierKey, keysOf(list))
	if err != nil || len(got) != len(list) {
		t.Fatalf("Cosignatures = %+v, %v", got, err)
	}
	for _, c := range got {
		if c.Size != uint64(size) || time.Since(c.Time) > time.Minute {
			t.Errorf("%s cosigned %d entries at %v, want %d now", c.Witness, c.Size, c.Time, size)
		}
	}
}

// Two witnesses of other people's making cosign a log as it grows, know it again
// after a restart, and refuse it when it was cut back or forked.
func TestF28RealWitnesses(t *testing.T) {
	s := newSpecimen(t)
	list := startWitnesses(t, s.key, "one.example/witness", "two.example/witness")
	dir := s.copyOf(t, s.older)
	l := openTestLog(t, dir, s.key)
	w := newWatched(t, l, list...)
	w.round(t.Context())
	mustBeCosigned(t, l, olderSize, list...)
	mustAppend(t, l, s.events[olderSize:]...)
	mustVerify(t, l, specimenSize)
	w.round(t.Context())
	mustBeCosigned(t, l, specimenSize, list...)
	if got := testutil.ToFloat64(w.covered.WithLabelValues("one.example/witness")); got != specimenSize {
		t.Errorf("the metric says %v entries, want %d", got, specimenSize)
	}
	_, stranger, err := NewAuditKey("one.example/witness")
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Cosignatures(r.Cosigned, s.key.verifier, []string{stranger}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a witness that did not cosign: %v", err)
	}

	// A proof bears both cosignatures.
	p, err := CheckProof(mustProve(t, l, s.events[20]), s.key.verifier)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Cosignatures([][]byte{p.Checkpoint}, s.key.verifier, keysOf(list)); err != nil || len(got) != 2 {
		t.Errorf("cosignatures of a proof = %+v, %v", got, err)
	}

	// A process that knows nothing of the past learns it from the witnesses.
	mustAppend(t, l, numbered(t, specimenSize, 1)...)
	mustVerify(t, l, specimenSize+1)
	remove(t, filepath.Join(dir, cosignedDir))
	w = newWatched(t, l, list...)
	w.round(t.Context())
	mustBeCosigned(t, l, specimenSize+1, list...)
	// One that has the files asks for nothing when there is nothing new.
	w = newWatched(t, l, list...)
	w.round(t.Context())
	if n := testutil.CollectAndCount(w.rounds); n != 0 {
		t.Errorf("a cosigned checkpoint was sent again")
	}

	// Run does all of this by itself.
	mustAppend(t, l, numbered(t, specimenSize+1, 1)...)
	mustVerify(t, l, specimenSize+2)
	w = newWatched(t, l, list...)
	w.cfg.Interval = time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	for testutil.ToFloat64(w.covered.WithLabelValues("two.example/witness")) != specimenSize+2 {
		<-time.After(publishPoll)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
	cosigned, err := l.view().newest().tiles.cosigned()
	if err != nil || len(cosigned) != 2 || len(w.said()) != 0 {
		t.Fatalf("%d files, %v; the log says %q", len(cosigned), err, w.said())
	}

	// The owner brings an old state back, and lets it grow another way.
	back := openTestLog(t, s.copyOf(t, s.older), s.key)
	w = newWatched(t, back, list[0])
	w.round(t.Context())
	if said := w.said(); len(said) != 1 || !strings.Contains(said[0], "it cosigned 702 entries of this log, which has 300: the log was cut back") {
		t.Errorf("a log that was cut back: %q", said)
	}
	mustAppend(t, back, numbered(t, 5000, 500)...)
	mustVerify(t, back, 800) // the log goes on
	w.round(t.Context())
	if said := w.said(); len(said) != 0 { // it said so, once
		t.Errorf("a failing witness is logged each time: %q", said)
	}
	w = newWatched(t, back, list[0])
	w.round(t.Context())
	if said := w.said(); len(said) != 1 || !strings.Contains(said[0], "422") {
		t.Errorf("a forked log: %q", said)
	}
	if got := testutil.ToFloat64(w.rounds.WithLabelValues("one.example/witness", "failed")); got != 1 {
		t.Errorf("%v failures are counted, want 1", got)
	}
	// And who has what the witness cosigned sees it without the witness.
	if _, err := back.Verify(t.Context(), cosigned[0].raw); err == nil {
		t.Error("a forked log passes through what was cosigned")
	}
}

func (s specimen) copyOf(t *testing.T, from string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// What is not a witness, or not there, costs the log nothing, is said once, and is
// asked again.
func TestWitnessesThatFail(t *testing.T) {
	key := newTestKey(t, "example.com/audit")
	l := openTestLog(t, t.TempDir(), key)
	mustAppend(t, l, numbered(t, 0, 5)...)
	mustVerify(t, l, 5)
	secret, public, err := NewAuditKey("w.example")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := formats.NewSignerForCosignatureV1(secret)
	if err != nil {
		t.Fatal(err)
	}
	cosign := func(by note.Signer, text string) string {
		signed, err := note.Sign(&note.Note{Text: text}, by)
		if err != nil {
			t.Fatal(err)
		}
		return string(signed[len(text)+1:])
	}
	checkpoint, err := l.Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := strings.Cut(string(checkpoint), "\n\n")
	text += "\n"
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	for _, c := range []struct {
		name string
		does http.HandlerFunc
		want string
	}{
		{"another key", answer(200, cosign(key.signer, text)), "not its cosignature"},
		{"another checkpoint", answer(200, cosign(signer, strings.Replace(text, "\n5\n", "\n4\n", 1))), "not its cosignature"},
		{"nothing", answer(200, ""), "not its cosignature"},
		{"too much", answer(200, strings.Repeat("x", maxWitnessAnswer+1)), "it answers more than 16384 bytes"},
		{"an error", answer(500, ""), "500 Internal Server Error"},
		{"a log that it does not know", answer(404, ""), "404 Not Found"},
		{"a size that is none", answer(409, "many\n"), `409 and "many\n"`},
		{"a size beyond the log", answer(409, "6\n"), "cosigned 6 entries of this log, which has 5"},
		{"a size again and again", answer(409, "3\n"), "409 Conflict"},
		{"a way elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}, "302 Found"},
		{"no answer in time", func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // only then the server sees that the client has gone
			<-r.Context().Done()
		}, "Client.Timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var does atomic.Pointer[http.HandlerFunc]
			does.Store(&c.does)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*does.Load())(w, r) }))
			defer server.Close()
			w := newWatched(t, l, Witness{URL: server.URL, Key: public})
			w.client.Timeout = 300 * time.Millisecond
			w.round(t.Context())
			w.round(t.Context())
			if said := w.said(); len(said) != 1 || !strings.Contains(said[0], c.want) {
				t.Errorf("said %q, want %q once", said, c.want)
			}
			if list, err := l.view().newest().tiles.cosigned(); err != nil || len(list) != 0 {
				t.Errorf("%d cosigned checkpoints, %v", len(list), err)
			}
			good := answer(200, cosign(signer, text))
			does.Store(&good)
			w.client.Timeout = witnessTimeout
			w.round(t.Context())
			if said := w.said(); len(said) != 1 || !strings.Contains(said[0], "cosigns the audit log again") {
				t.Errorf("said %q", said)
			}
			mustBeCosigned(t, l, 5, Witness{Key: public})
			remove(t, filepath.Join(l.cfg.Dir, cosignedDir))
		})
	}
}

// F28: the checkpoints that witnesses cosigned are kept with the log, and editing,
// or replacing, one of them is found like the rest; deleting them is found by
// whoever demands them.
func TestF28CosignedCheckpoints(t *testing.T) {
	s := newSpecimen(t)
	secret, public, err := NewAuditKey("w.example")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := formats.NewSignerForCosignatureV1(secret)
	if err != nil {
		t.Fatal(err)
	}
	older := read(t, s.older, "checkpoint")
	text, _, _ := strings.Cut(string(older), "\n\n")
	kept, err := note.Sign(&note.Note{Text: text + "\n"}, s.key.signer, signer)
	if err != nil {
		t.Fatal(err)
	}
	dir := s.copy(t)
	if err := os.Mkdir(filepath.Join(dir, cosignedDir), 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, cosignedDir, "0badcafe")
	write(t, file, kept)
	write(t, file+".new", []byte("left by a crash"))
	r, err := Verify(t.Context(), dir, s.key.verifier)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Cosignatures(r.Cosigned, s.key.verifier, []string{public}); err != nil || got[0].Size != olderSize {
		t.Errorf("Cosignatures = %+v, %v", got, err)
	}
	if names := Cosigners(r.Cosigned[0]); len(names) != 1 || names[0] != "w.example" {
		t.Errorf("Cosigners = %q", names)
	}
	write(t, file, []byte(strings.Replace(string(kept), "\n300\n", "\n301\n", 1)))
	_, err = Verify(t.Context(), dir, s.key.verifier)
	if wrong, ok := errors.AsType[*TamperedError](err); !ok || wrong.File != "cosigned/0badcafe" {
		t.Errorf("an edited cosigned checkpoint: Verify = %v", err)
	}
	write(t, file, kept)
	write(t, filepath.Join(dir, "checkpoint"), older)
	remove(t, filepath.Join(dir, ".state"))
	newer, err := note.Sign(&note.Note{Text: strings.Split(string(read(t, s.dir, "checkpoint")), "\n\n")[0] + "\n"}, s.key.signer, signer)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, newer)
	_, err = Verify(t.Context(), dir, s.key.verifier)
	if wrong, ok := errors.AsType[*TamperedError](err); !ok || !strings.Contains(wrong.Reason, "cosigned/0badcafe signed 700 entries") {
		t.Errorf("a log behind what was cosigned: Verify = %v", err)
	}
	remove(t, filepath.Join(dir, cosignedDir))
	if _, err := Cosignatures(nil, s.key.verifier, []string{public}); !fault.Is(err, fault.Conflict) {
		t.Errorf("no cosigned checkpoint: %v", err)
	}
}

func TestNewWitnessesRefuses(t *testing.T) {
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	_, key, err := NewAuditKey("w.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []Witness{{}, {URL: "http://x", Key: "x"}, {URL: "x", Key: key}, {URL: "file:///x", Key: key}, {URL: "http:///x", Key: key}} {
		if _, err := NewWitnesses(WitnessesConfig{Log: l, Witnesses: []Witness{w}}); !fault.Is(err, fault.BadInput) {
			t.Errorf("NewWitnesses of %+v = %v", w, err)
		}
	}
}
