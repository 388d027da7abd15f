//go:build unix

package events

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/lockdir"
)

// privateDir is a directory of the log's or a spool's.
type privateDir struct{ *lockdir.Dir }

func openPrivateDir(path string) (*privateDir, error) {
	d, err := lockdir.Open(path, "audit directory")
	return &privateDir{d}, err
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
