//go:build unix

package events

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/accessd/accessd/lib/fault"
)

// privateDir is a directory of ours alone, locked against a second opener.
type privateDir struct {
	*os.Root

	path string
	lock *os.File
}

// lockName is the file whose lock guards a directory.
const lockName = "lock"

// openPrivateDir makes path when it is absent, closes it to others, and locks it.
// A second opener, in this process or another, gets a [fault.Conflict] error.
func openPrivateDir(path string) (*privateDir, error) {
	if err := makeDir(path); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot open the audit directory")
	}
	d := &privateDir{Root: root, path: path}
	if err := d.acquire(); err != nil {
		_ = root.Close()
		return nil, err
	}
	return d, nil
}

func makeDir(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err = os.MkdirAll(path, 0o700); err == nil {
			err = syncPath(filepath.Dir(path))
		}
	case err == nil && !info.IsDir():
		return fault.New(fault.BadInput, "audit directory %q is not a directory", path)
	case err == nil && info.Mode().Perm()&0o077 != 0:
		err = os.Chmod(path, 0o700) //nolint:gosec // a directory
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot make the audit directory")
	}
	return nil
}

func (d *privateDir) acquire() error {
	f, err := d.OpenFile(lockName, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot lock the audit directory")
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return fault.New(fault.Conflict, "audit directory %q is in use by another process", d.path)
	}
	d.lock = f
	return nil
}

// close unlocks the directory.
func (d *privateDir) close() error { return errors.Join(d.lock.Close(), d.Close()) }

// create makes a file that did not exist, following nothing.
func (d *privateDir) create(name string) (*os.File, error) {
	return d.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
}

// open opens a plain file for reading, following nothing.
func (d *privateDir) open(name string) (*os.File, error) {
	info, err := d.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.BadInput, "%q in the audit directory is not a plain file", name)
	}
	return d.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
}

// openAny opens a plain file for reading and writing, and makes it when there is
// none.
func (d *privateDir) openAny(name string) (*os.File, error) {
	info, err := d.Lstat(name)
	if err == nil && !info.Mode().IsRegular() {
		return nil, fault.New(fault.BadInput, "%q in the audit directory is not a plain file", name)
	}
	flags := os.O_RDWR | syscall.O_NOFOLLOW
	if errors.Is(err, fs.ErrNotExist) {
		flags |= os.O_CREATE | os.O_EXCL
	} else if err != nil {
		return nil, err
	}
	return d.OpenFile(name, flags, 0o600)
}

// sync makes the directory's entries durable.
func (d *privateDir) sync() error {
	f, err := d.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
