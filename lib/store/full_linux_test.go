package store

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/accessd/accessd/lib/fault"
)

// On a file system that is full, or read-only, nothing is confirmed and nothing
// half is left; when there is room again it goes on.
func TestFolderOnAFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("accessd-test", dir, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Logf("cannot mount a small file system: %v", err)
		return
	}
	s, err := Open(t.Context(), Folder(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	part := make([]byte, 200<<10)
	if _, err := rand.Read(part); err != nil {
		t.Fatal(err)
	}
	var full string
	kept := 0
	for full == "" {
		key := fmt.Sprintf("r/%06d.part", kept+1)
		if err := s.Put(t.Context(), key, part); err != nil {
			wantKind(t, "put on a full file system", err, fault.Unavailable)
			full = key
			continue
		}
		kept++
	}
	files, err := os.ReadDir(filepath.Join(dir, "r"))
	if err != nil || len(files) != kept || kept == 0 {
		t.Errorf("there are %d files, %v; want the %d that were confirmed", len(files), err, kept)
	}
	wantNone(t, s, full)
	for n := range kept {
		if got, err := s.Get(t.Context(), fmt.Sprintf("r/%06d.part", n+1)); err != nil || !bytes.Equal(got, part) {
			t.Errorf("part %d is not what was confirmed: %v", n+1, err)
		}
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	wantKind(t, "put on a read-only file system", s.Put(t.Context(), full, part), fault.Unavailable)
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT, "size=2m"); err != nil {
		t.Fatal(err)
	}
	put(t, s, full, string(part))
	wantContent(t, s, full, string(part))
}
