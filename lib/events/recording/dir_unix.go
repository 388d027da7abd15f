//go:build unix

package recording

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"github.com/accessd/accessd/lib/lockdir"
)

// spoolDir is the spool's directory.
type spoolDir struct{ *lockdir.Dir }

func openSpoolDir(path string) (*spoolDir, error) {
	d, err := lockdir.Open(path, "spool of recordings")
	return &spoolDir{d}, err
}

// replace makes a file anew, whatever had its name.
func (d *spoolDir) replace(name string) (*os.File, error) {
	f, err := d.New(name)
	if !errors.Is(err, fs.ErrExist) {
		return f, err
	}
	if err := d.remove(name); err != nil {
		return nil, err
	}
	return d.New(name)
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
