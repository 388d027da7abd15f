//go:build unix

package lockdir_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/lockdir"
)

func TestOneOpener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	d, err := lockdir.Open(path, "box")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockdir.Open(path, "box"); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second opener: %v, want Conflict", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, err = lockdir.Open(path, "box")
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	d.Close()
}

func TestClosedToOthers(t *testing.T) {
	path := t.TempDir()
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := lockdir.Open(path, "box")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v; want 0700", info.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(path, "plain"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := lockdir.Open(filepath.Join(path, "plain"), "box"); !fault.Is(err, fault.BadInput) {
		t.Errorf("a file: %v, want BadInput", err)
	}
}

// Whoever could plant something in the directory gains nothing by it.
func TestFollowsNothing(t *testing.T) {
	path, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	if err := os.Symlink(out, filepath.Join(path, "link")); err != nil {
		t.Fatal(err)
	}
	d, err := lockdir.Open(path, "box")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, name := range []string{"link", "../out", out} {
		if f, err := d.New(name); err == nil {
			f.Close()
			t.Errorf("New(%q) made a file", name)
		}
	}
	if _, err := os.Lstat(out); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("outside there is a file: %v", err)
	}
	f, err := d.New("once")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := d.New("once"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("New of what is there: %v, want ErrExist", err)
	}
	for _, dir := range []string{".", "once"} {
		if err := d.Sync(dir); err != nil {
			t.Errorf("Sync(%q): %v", dir, err)
		}
	}
}

func TestLockIsNoLink(t *testing.T) {
	path := t.TempDir()
	if err := os.Symlink(filepath.Join(t.TempDir(), "out"), filepath.Join(path, lockdir.LockName)); err != nil {
		t.Fatal(err)
	}
	if d, err := lockdir.Open(path, "box"); err == nil {
		d.Close()
		t.Error("opened with a lock that leads elsewhere")
	}
}
