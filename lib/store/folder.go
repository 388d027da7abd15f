package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"

	"github.com/google/uuid"

	"github.com/accessd/accessd/lib/fault"
)

// folder keeps objects as files, each complete and on disk under its name or not
// there. Whatever a name is, it does not lead out of the folder.
type folder struct{ root *os.Root }

// tmpPrefix begins the name of a file that is being written, which no key has.
const tmpPrefix = ".tmp-"

func openFolder(dir string) (folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return folder{}, fault.New(fault.BadInput, "store: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return folder{}, fault.New(fault.BadInput, "store: %w", err)
	}
	return folder{root}, nil
}

func (m folder) create(_ context.Context, key string, data []byte) error {
	return m.put(key, data, m.root.Link) // which never replaces
}

func (m folder) replace(_ context.Context, key string, data []byte) error {
	return m.put(key, data, m.root.Rename)
}

// put writes a file under another name and then gives it its own.
func (m folder) put(key string, data []byte, name func(from, to string) error) error {
	dir := path.Dir(key)
	if err := m.root.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp := path.Join(dir, tmpPrefix+uuid.NewString())
	err := m.write(tmp, data)
	if err == nil {
		err = name(tmp, key)
	}
	if removed := m.root.Remove(tmp); !errors.Is(removed, fs.ErrNotExist) {
		err = errors.Join(err, removed)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Who finds the object there shall find it after a power cut, too, whoever
	// made it.
	return errors.Join(err, m.syncUp(dir))
}

func (m folder) write(name string, data []byte) error {
	f, err := m.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// syncUp makes the names in dir durable, and those of dir and of what is above.
func (m folder) syncUp(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // it has no such call
	}
	for {
		d, err := m.root.Open(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil || dir == "." {
			return err
		}
		dir = path.Dir(dir)
	}
}

func (m folder) same(ctx context.Context, key string, data []byte) (bool, error) {
	kept, err := m.get(ctx, key)
	return err == nil && bytes.Equal(kept, data), err
}

func (m folder) get(_ context.Context, key string) (data []byte, err error) {
	f, err := m.root.Open(key)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > MaxObject {
		return nil, errors.Join(err, errTooLarge)
	}
	return io.ReadAll(f)
}

func (m folder) remove(_ context.Context, key string) error {
	if err := m.root.Remove(key); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = m.root.Remove(path.Dir(key)) // only when it is empty
	return nil
}

func (m folder) keys(_ context.Context, dir string) ([]string, error) {
	var out []string
	err := fs.WalkDir(m.root.FS(), strings.TrimSuffix(dir, "/"), func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !d.IsDir() {
			out = append(out, name)
		}
		return err
	})
	return out, err
}

func (m folder) close() error { return m.root.Close() }
