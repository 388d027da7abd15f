package store

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/accessd/accessd/lib/fault"
)

func open(t testing.TB, at string) *Store {
	t.Helper()
	s, err := Open(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func put(t testing.TB, s *Store, key, content string) {
	t.Helper()
	if err := s.Put(t.Context(), key, []byte(content)); err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
}

func wantKind(t testing.TB, what string, err error, k fault.Kind) {
	t.Helper()
	if !fault.Is(err, k) {
		t.Errorf("%s: %v (%v), want %v", what, err, fault.KindOf(err), k)
	}
}

func wantContent(t testing.TB, s *Store, key, want string) {
	t.Helper()
	if got, err := s.Get(t.Context(), key); err != nil || string(got) != want {
		t.Errorf("get %q = %.100q, %v; want %.100q", key, got, err, want)
	}
}

// wantNone fails the test if there is an object of the key.
func wantNone(t testing.TB, s *Store, key string) {
	t.Helper()
	_, err := s.Get(t.Context(), key)
	wantKind(t, "get "+key, err, fault.NotFound)
}

func TestFolderKeepsTheContract(t *testing.T) {
	contract(t, open(t, Folder(filepath.Join(t.TempDir(), "made", "by it"))))
}

// contract is what every medium does.
func contract(t *testing.T, s *Store) {
	ctx := t.Context()
	large := strings.Repeat("0123456789abcdef", 1<<15) // 512 KiB
	t.Run("written once", func(t *testing.T) {
		wantNone(t, s, "recordings/a/000001.part")
		put(t, s, "recordings/a/000001.part", large)
		wantContent(t, s, "recordings/a/000001.part", large)
		put(t, s, "recordings/a/000001.part", large)
		wantKind(t, "other bytes", s.Put(ctx, "recordings/a/000001.part", []byte(large[1:]+"x")), fault.Conflict)
		wantKind(t, "no bytes", s.Put(ctx, "recordings/a/000001.part", nil), fault.Conflict)
		wantContent(t, s, "recordings/a/000001.part", large)
		put(t, s, "empty", "")
		wantContent(t, s, "empty", "")
	})
	t.Run("replaced", func(t *testing.T) {
		for _, content := range []string{"one", large, "three"} {
			if err := s.Replace(ctx, "log/checkpoint", []byte(content)); err != nil {
				t.Fatal(err)
			}
			wantContent(t, s, "log/checkpoint", content)
		}
	})
	t.Run("removed", func(t *testing.T) {
		for _, key := range []string{"r/ab/1", "r/ab/2", "r/abc/1", "r/ab.d"} {
			put(t, s, key, key)
		}
		for range 2 {
			if err := s.DeleteAll(ctx, "r/ab/"); err != nil {
				t.Fatal(err)
			}
		}
		wantNone(t, s, "r/ab/1")
		wantNone(t, s, "r/ab/2")
		wantContent(t, s, "r/abc/1", "r/abc/1")
		wantContent(t, s, "r/ab.d", "r/ab.d")
		put(t, s, "r/ab/1", "anew")
		wantContent(t, s, "r/ab/1", "anew")
		for _, dir := range []string{"r/ab", "", "/", "../", "r/../", "r//"} {
			wantKind(t, "remove all of "+dir, s.DeleteAll(ctx, dir), fault.BadInput)
		}
	})
	t.Run("one of many writers wins", func(t *testing.T) {
		for i := range 4 {
			key := fmt.Sprintf("race/%d", i)
			errs := make([]error, 6)
			var wg sync.WaitGroup
			for w := range errs {
				wg.Go(func() { errs[w] = s.Put(ctx, key, bytes.Repeat([]byte{byte('a' + w)}, 1000)) })
			}
			wg.Wait()
			won := -1
			for w, err := range errs {
				if err == nil && won >= 0 {
					t.Errorf("both %d and %d have written %s", won, w, key)
				}
				if err == nil {
					won = w
				} else if !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.Unavailable) {
					t.Errorf("writer %d: %v, want a conflict", w, err)
				}
			}
			if won >= 0 { // else the medium refused all, and nobody believes otherwise
				wantContent(t, s, key, strings.Repeat(string(rune('a'+won)), 1000))
			}
		}
	})
	t.Run("keys", func(t *testing.T) {
		for _, key := range []string{
			"", ".", "..", "/", "/etc/passwd", "a/", "a//b", "../a", "a/../b", "a/./b", "a\x00b", "a b", "a\\b", "a\nb", "ä", ".hidden",
			"a/.tmp-1", "con.", "a:b", "a%2fb", strings.Repeat("a", maxKey+1),
		} {
			wantKind(t, fmt.Sprintf("put %.20q", key), s.Put(ctx, key, []byte("x")), fault.BadInput)
			wantKind(t, fmt.Sprintf("replace %.20q", key), s.Replace(ctx, key, []byte("x")), fault.BadInput)
			_, err := s.Get(ctx, key)
			wantKind(t, fmt.Sprintf("get %.20q", key), err, fault.BadInput)
		}
		wantKind(t, "too much", s.Put(ctx, "large", make([]byte, MaxObject+1)), fault.BadInput)
	})
	t.Run("a caller that has gone", func(t *testing.T) {
		gone, cancel := context.WithCancel(ctx)
		cancel()
		if err := s.Put(gone, "gone", []byte("x")); err == nil {
			wantContent(t, s, "gone", "x") // else it was not confirmed
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"", "/var/x", "file://host/x", "file:///x?create_dir=1", "file://", "nosuch://x", "s3://b?nosuch=1", "\x00", Folder(file)} {
		if s, err := Open(t.Context(), at); !fault.Is(err, fault.BadInput) {
			t.Errorf("Open(%q) = %v, %v; want bad input", at, s, err)
		}
	}
}

// A link that somebody planted in the folder leads nowhere outside of it.
func TestFolderFollowsNoLinkOut(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	s := open(t, Folder(dir))
	for name, target := range map[string]string{"dir": outside, "file": filepath.Join(outside, "secret")} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"dir/secret", "file"} {
		if data, err := s.Get(t.Context(), key); err == nil {
			t.Errorf("get %q = %q, want an error", key, data)
		}
		if err := s.Put(t.Context(), key, []byte("x")); err == nil {
			t.Errorf("put %q went through", key)
		}
	}
	if err := s.DeleteAll(t.Context(), "dir/"); err == nil {
		if _, err := os.Stat(filepath.Join(outside, "secret")); err != nil {
			t.Errorf("a file outside is gone: %v", err)
		}
	}
	list, err := os.ReadDir(outside)
	if err != nil || len(list) != 1 {
		t.Errorf("outside are %v, %v; want one file", list, err)
	}
}

// What a write was killed in the middle of is no object, nor in the way of one.
func TestFolderAfterAKill(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Folder(dir))
	put(t, s, "a/1", "one")
	if err := os.WriteFile(filepath.Join(dir, "a", tmpPrefix+"x"), []byte("tw"), 0o600); err != nil {
		t.Fatal(err)
	}
	put(t, s, "a/2", "two")
	info, err := os.Stat(filepath.Join(dir, "a", "2"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, %v; want 0600", info.Mode(), err)
	}
	if err := s.DeleteAll(t.Context(), "a/"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "a")); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
}
