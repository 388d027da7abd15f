//go:build unix

package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// folderStore is a store in a directory that refuses when it is told to, and
// remembers the order of what it took.
type folderStore struct {
	dir string

	mu     sync.Mutex
	refuse func(key string) error
	took   []string
}

func (s *folderStore) keep(key string, data []byte, again bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		if err := s.refuse(key); err != nil {
			return err
		}
	}
	name := filepath.Join(s.dir, filepath.FromSlash(key))
	if was, err := os.ReadFile(name); err == nil && !again && !bytes.Equal(was, data) {
		return fmt.Errorf("%s is there already, with other content", key)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	s.took = append(s.took, key)
	return os.WriteFile(name, data, 0o600)
}

func (s *folderStore) Put(_ context.Context, key string, data []byte) error {
	return s.keep(key, data, false)
}

func (s *folderStore) Replace(_ context.Context, key string, data []byte) error {
	return s.keep(key, data, true)
}

func (s *folderStore) DeleteAll(_ context.Context, dir string) error {
	return os.RemoveAll(filepath.Join(s.dir, filepath.FromSlash(dir)))
}

func newTestMirror(t *testing.T, l *Log, s mirrorStore) (*Mirror, *observer.ObservedLogs) {
	t.Helper()
	core, lines := observer.New(zap.InfoLevel)
	m, err := NewMirror(MirrorConfig{Log: l, Store: s, Name: "test", Prefix: "audit/one"})
	if err != nil {
		t.Fatal(err)
	}
	m.log = zap.New(core)
	return m, lines
}

// A mirror is a log at every moment: it verifies after each object that was
// brought, whatever the store did, and it has what the log had.
func TestMirror(t *testing.T) {
	key := newTestKey(t, "example.com/audit")
	l := openTestLog(t, t.TempDir(), key)
	s := &folderStore{dir: t.TempDir()}
	m, lines := newTestMirror(t, l, s)
	at := filepath.Join(s.dir, "audit", "one")
	events := numbered(t, 0, specimenSize)
	done := 0
	for _, size := range []int{1, 200, 256, 300, 512, specimenSize} {
		mustAppend(t, l, events[done:size]...)
		done = size
		mustVerify(t, l, size)
		// The store fails at each object in turn.
		broken := errors.New("the bucket is away")
		for n := 0; m.sizes[""] != uint64(size); n++ {
			left := n
			s.refuse = func(string) error {
				if left--; left < 0 {
					return broken
				}
				return nil
			}
			m.round(t.Context())
			if _, err := os.Stat(filepath.Join(at, "checkpoint")); err == nil {
				if r, err := Verify(t.Context(), at, key.verifier); err != nil {
					t.Fatalf("after %d objects for %d entries: Verify = %+v, %v", n, size, r, err)
				}
			}
		}
		r, err := Verify(t.Context(), at, key.verifier)
		if err != nil || r.Size != uint64(size) {
			t.Fatalf("the mirror of %d entries: %+v, %v", size, r, err)
		}
	}
	if n := lines.FilterMessageSnippet("cannot be mirrored").Len(); n != 6 {
		t.Errorf("%d lines say that the mirror fails, want one each time it began to", n)
	}
	if got := testutil.ToFloat64(m.entries); got != specimenSize || testutil.ToFloat64(m.failures) == 0 {
		t.Errorf("metrics: %v entries, %v failures", got, testutil.ToFloat64(m.failures))
	}
	if left, err := filepath.Glob(filepath.Join(at, "tile", "entries", "00[01].p")); err != nil || len(left) != 0 {
		t.Errorf("partial files that were replaced are still there: %q", left)
	}

	// The next process goes on where this one stopped.
	s.refuse, s.took = nil, nil
	m, _ = newTestMirror(t, l, s)
	m.round(t.Context())
	if len(s.took) != 0 {
		t.Errorf("what was there was brought again: %q", s.took)
	}
	// Without its memory it brings all again, which changes nothing.
	remove(t, filepath.Join(l.cfg.Dir, mirrorDir))
	m, lines = newTestMirror(t, l, s)
	m.round(t.Context())
	if len(s.took) == 0 || lines.Len() != 0 {
		t.Errorf("%d objects, %v", len(s.took), lines.All())
	}
	for i, name := range s.took { // entries, tiles, checkpoint
		if strings.HasSuffix(name, "/checkpoint") && i != len(s.took)-2 {
			t.Errorf("the checkpoint came before what it signs: %q", s.took)
		}
	}
	// What somebody changed there stays, is said, and is found.
	write(t, filepath.Join(at, "tile", "entries", "000"), []byte("gone"))
	remove(t, filepath.Join(l.cfg.Dir, mirrorDir))
	m, lines = newTestMirror(t, l, s)
	m.round(t.Context())
	if lines.FilterMessageSnippet("cannot be mirrored").Len() != 1 {
		t.Errorf("a mirror that was changed: %v", lines.All())
	}
	if _, err := Verify(t.Context(), at, key.verifier); err == nil {
		t.Error("a mirror that was changed verifies")
	}
}

// A store that hangs holds nothing up: not the log, not the end of the process.
func TestMirrorThatHangs(t *testing.T) {
	key := newTestKey(t, "example.com/audit")
	l := openTestLog(t, t.TempDir(), key)
	mustAppend(t, l, numbered(t, 0, 5)...)
	mustVerify(t, l, 5)
	s := &hangingStore{began: make(chan struct{}, 1)}
	m, _ := newTestMirror(t, l, s)
	m.cfg.Interval = time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	<-s.began
	mustAppend(t, l, numbered(t, 5, 500)...)
	mustVerify(t, l, 505)
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
}

type hangingStore struct{ began chan struct{} }

func (s *hangingStore) Put(ctx context.Context, _ string, _ []byte) error {
	select {
	case s.began <- struct{}{}:
	default:
	}
	<-ctx.Done()
	return ctx.Err()
}

func (s *hangingStore) Replace(ctx context.Context, _ string, _ []byte) error {
	return s.Put(ctx, "", nil)
}
func (s *hangingStore) DeleteAll(context.Context, string) error { return nil }
