//go:build unix

package recording

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/accessd/accessd/lib/fault"
)

// lockName is the file in a spool whose lock keeps a second recorder out.
const lockName = "lock"

// spoolDir is the spool's directory: ours alone, and locked.
type spoolDir struct {
	*os.Root

	lock *os.File
}

// openSpoolDir makes path when it is absent, closes it to others, and locks it.
func openSpoolDir(path string) (*spoolDir, error) {
	if err := makeDir(path); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot open the spool of recordings")
	}
	d := &spoolDir{Root: root}
	d.lock, err = d.OpenFile(lockName, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		_ = root.Close()
		return nil, fault.Wrap(fault.Unavailable, err, "cannot lock the spool of recordings")
	}
	if err := syscall.Flock(int(d.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		d.close()
		return nil, fault.New(fault.Conflict, "the spool of recordings %q is in use by another process", path)
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
		return fault.New(fault.BadInput, "the spool of recordings %q is not a directory", path)
	case err == nil && info.Mode().Perm()&0o077 != 0:
		err = os.Chmod(path, 0o700) //nolint:gosec // a directory
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot make the spool of recordings")
	}
	return nil
}

// close unlocks the directory.
func (d *spoolDir) close() { _, _ = d.lock.Close(), d.Close() }

// create makes a file that did not exist, following nothing.
func (d *spoolDir) create(name string) (*os.File, error) {
	return d.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
}

// replace makes a file anew, whatever had its name.
func (d *spoolDir) replace(name string) (*os.File, error) {
	f, err := d.create(name)
	if !errors.Is(err, fs.ErrExist) {
		return f, err
	}
	if err := d.remove(name); err != nil {
		return nil, err
	}
	return d.create(name)
}

// remove removes a file that may be absent.
func (d *spoolDir) remove(name string) error {
	if err := d.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// read returns a plain file's content of at most bound bytes, following nothing.
func (d *spoolDir) read(name string, bound int64) ([]byte, error) {
	info, err := d.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > bound {
		return nil, errDamaged
	}
	f, err := d.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, info.Size())
	n, err := f.ReadAt(data, 0)
	if n == len(data) {
		return data, nil
	}
	return nil, err
}

// sync makes a directory's entries durable.
func (d *spoolDir) sync(name string) error {
	f, err := d.Open(name)
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
