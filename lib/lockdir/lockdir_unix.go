//go:build unix

package lockdir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/accessd/accessd/lib/fault"
)

// LockName is the file whose lock guards a directory.
const LockName = "lock"

// Dir is a directory of ours alone.
type Dir struct {
	*os.Root

	lock *os.File
}

// Open makes path when it is absent, closes it to others, and locks it. A second
// opener, in this process or another, gets a [fault.Conflict] error. Errors call
// the directory what, such as "audit directory".
func Open(path, what string) (*Dir, error) {
	if err := prepare(path, what); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot open the "+what)
	}
	d := &Dir{Root: root}
	if err := d.acquire(path, what); err != nil {
		_ = root.Close()
		return nil, err
	}
	return d, nil
}

func prepare(path, what string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err = os.MkdirAll(path, 0o700); err == nil {
			err = Sync(filepath.Dir(path))
		}
	case err == nil && !info.IsDir():
		return fault.New(fault.BadInput, "%s %q is not a directory", what, path)
	case err == nil && info.Mode().Perm()&0o077 != 0:
		err = os.Chmod(path, 0o700) //nolint:gosec // a directory
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot make the "+what)
	}
	return nil
}

func (d *Dir) acquire(path, what string) error {
	f, err := d.OpenFile(LockName, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot lock the "+what)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return fault.New(fault.Conflict, "%s %q is in use by another process", what, path)
	}
	d.lock = f
	return nil
}

// Close unlocks the directory.
func (d *Dir) Close() error { return errors.Join(d.lock.Close(), d.Root.Close()) }

// New makes a file that did not exist, to append to, following nothing.
func (d *Dir) New(name string) (*os.File, error) {
	return d.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
}

// Sync makes the entries of a directory in it durable; "." is itself.
func (d *Dir) Sync(name string) error {
	f, err := d.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Sync makes any file, or the entries of any directory, durable.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
