package seal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/accessd/accessd/lib/fault"
)

// keySize is the length of the key file, in bytes.
const keySize = 32

// loadKey returns the key in file and makes one when there is none.
func loadKey(file string) ([keySize]byte, error) {
	key, err := readKey(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := makeKey(file); err != nil {
		return key, fault.New(fault.Internal, "make the seal key: %w", err)
	}
	return readKey(file) // ours, or that of a process which was faster
}

// readKey returns the key in file, which only its owner may read.
func readKey(file string) (key [keySize]byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return key, fault.New(fault.BadInput, "seal key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return key, fault.New(fault.Internal, "seal key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return key, fault.New(fault.BadInput, "seal key %q: others may read it (mode %04o)", file, mode).
			WithHint("run chmod 600 %q", file)
	}
	if info.Size() != keySize {
		return key, fault.New(fault.BadInput, "seal key %q: has %d bytes, want %d", file, info.Size(), keySize)
	}
	if _, err := io.ReadFull(f, key[:]); err != nil {
		return key, fault.New(fault.Internal, "seal key %q: %w", file, err)
	}
	return key, nil
}

// makeKey puts a new key into file unless there is one. Whoever finds the file
// finds all of it, also after a crash: it gets its name once it is on disk.
func makeKey(file string) error {
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, filepath.Base(file)+".*.tmp") // O_EXCL, mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	key := make([]byte, keySize)
	rand.Read(key) // never fails
	_, err = tmp.Write(key)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), file); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(dir)
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // it has no such call; names are written with the file
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %q: %w", dir, err)
	}
	return nil
}
