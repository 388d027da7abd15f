// Package store keeps objects in a folder or in a bucket. An object has been
// written when it can be read back, and what [Store.Put] wrote once is never
// written again.
//
// A store is named by a URL. file:///PATH is a folder, on which the package
// itself does what a power cut calls for; s3://BUCKET?region=REGION is a bucket
// of S3 or of what speaks its protocol (with endpoint=URL and
// use_path_style=true in the query), and gs:// and azblob:// are in binaries that
// are built with these tags. The drivers, and the queries they know, are those of
// gocloud.dev/blob; they read their credentials from the environment, as their
// vendors document.
//
// What a bucket answers to a write is not believed: the object is read back and
// compared. A bucket that keeps old versions, or does not delete, keeps what
// [Store.Delete] removed.
package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"gocloud.dev/blob"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// defaultTimeout bounds one operation, with all its attempts.
	defaultTimeout = 30 * time.Second
	// MaxObject bounds one object, in bytes.
	MaxObject = 64 << 20
	// maxKey bounds a key, in bytes.
	maxKey = 512
)

// Store is a folder or a bucket. It is safe for concurrent use, by several
// processes, too.
type Store struct {
	medium  medium
	timeout time.Duration
}

// medium is what a Store keeps its objects in.
type medium interface {
	// create makes an object unless there is one of the key; then the error is
	// fs.ErrExist.
	create(ctx context.Context, key string, data []byte) error
	// replace makes an object whatever was there.
	replace(ctx context.Context, key string, data []byte) error
	// same reads the object back and reports whether it is exactly data;
	// fs.ErrNotExist is none.
	same(ctx context.Context, key string, data []byte) (bool, error)
	// get returns an object, or fs.ErrNotExist.
	get(ctx context.Context, key string) ([]byte, error)
	// remove removes an object, if it is there.
	remove(ctx context.Context, key string) error
	// keys returns the keys that begin with dir, which ends in a slash.
	keys(ctx context.Context, dir string) ([]string, error)
	close() error
}

// Folder returns the URL of a folder.
func Folder(path string) string {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") { // C:/…
		path = "/" + path
	}
	return (&url.URL{Scheme: "file", Path: path}).String()
}

// Open opens the store of a URL. It makes a folder that is not there; that a
// bucket can be reached is found out by the first use.
func Open(ctx context.Context, at string) (*Store, error) {
	u, err := url.Parse(at)
	if err != nil || u.Scheme == "" {
		return nil, fault.New(fault.BadInput, "store %q: want a URL, such as file:///var/lib/recordings or s3://bucket?region=eu-central-1", at)
	}
	if u.Scheme == "file" {
		if (u.Host != "" && u.Host != "localhost") || u.Path == "" || u.RawQuery != "" {
			return nil, fault.New(fault.BadInput, "store %q: want file:///PATH", at)
		}
		path := u.Path
		if runtime.GOOS == "windows" {
			path = strings.TrimPrefix(path, "/")
		}
		f, err := openFolder(filepath.FromSlash(path))
		if err != nil {
			return nil, err
		}
		return &Store{medium: f, timeout: defaultTimeout}, nil
	}
	b, err := blob.OpenBucket(ctx, at)
	if err != nil {
		return nil, fault.New(fault.BadInput, "store %q: %w", u.Redacted(), err)
	}
	return &Store{medium: bucket{b}, timeout: defaultTimeout}, nil
}

// Close ends the use of the store.
func (s *Store) Close() error { return s.medium.close() }

// checkKey takes names of letters, digits, '-', '_' and '.' between slashes. No
// key looks like another to any medium, or leads anywhere else.
func checkKey(key string) error {
	wrong := len(key) == 0 || len(key) > maxKey
	for name := range strings.SplitSeq(key, "/") {
		wrong = wrong || name == "" || name[0] == '.' || name[len(name)-1] == '.' || strings.ContainsFunc(name, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
		})
	}
	if wrong {
		return fault.New(fault.BadInput, "store: %.100q is no key", key)
	}
	return nil
}

// Put keeps data under key. When it returns nil the object is there, as was seen
// by reading it back. An object that is there already with these bytes is as good;
// with others it stays, and that is a [fault.Conflict].
func (s *Store) Put(ctx context.Context, key string, data []byte) error {
	if err := check(key, data); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	created := true
	if err := s.medium.create(ctx, key, data); errors.Is(err, fs.ErrExist) {
		created = false
	} else if err != nil {
		return away("write", key, err)
	}
	same, err := s.medium.same(ctx, key, data)
	switch {
	case err != nil:
		return away("confirm", key, err)
	case same:
		return nil
	case !created:
		return fault.New(fault.Conflict, "store: %q is there already, with other content", key)
	}
	// The medium kept something else. If that stays, the next attempt takes it for
	// another's; nobody was told that it is there.
	err = s.medium.remove(context.WithoutCancel(ctx), key)
	return away("write", key, errors.Join(errOther, err))
}

// Replace keeps data under key, whatever was there; else it is like [Store.Put].
func (s *Store) Replace(ctx context.Context, key string, data []byte) error {
	if err := check(key, data); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if err := s.medium.replace(ctx, key, data); err != nil {
		return away("write", key, err)
	}
	same, err := s.medium.same(ctx, key, data)
	if err == nil && !same {
		err = errOther
	}
	if err != nil {
		return away("confirm", key, err)
	}
	return nil
}

// errOther is that a medium keeps something else than it was given.
var errOther = errors.New("what was kept is not what was written")

func check(key string, data []byte) error {
	if len(data) > MaxObject {
		return fault.New(fault.BadInput, "store: object of %d bytes, want at most %d", len(data), MaxObject)
	}
	return checkKey(key)
}

// Get returns the object of a key, or [fault.NotFound].
func (s *Store) Get(ctx context.Context, key string) ([]byte, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	data, err := s.medium.get(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "store: there is no %q", key)
	}
	if err != nil {
		return nil, away("read", key, err)
	}
	return data, nil
}

// DeleteAll removes every object whose key begins with dir, which ends in a
// slash. It is no error that there is none.
func (s *Store) DeleteAll(ctx context.Context, dir string) error {
	name, isDir := strings.CutSuffix(dir, "/")
	if err := checkKey(name); err != nil || !isDir {
		return fault.New(fault.BadInput, "store: %.100q is no directory", dir)
	}
	list, err := s.listed(ctx, dir)
	if err != nil {
		return err
	}
	for _, key := range list {
		if err := s.remove(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) listed(ctx context.Context, dir string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	list, err := s.medium.keys(ctx, dir)
	if err != nil {
		return nil, away("list", dir, err)
	}
	return list, nil
}

func (s *Store) remove(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if err := s.medium.remove(ctx, key); err != nil {
		return away("remove", key, err)
	}
	return nil
}

// away is that the medium did not do what it was asked to.
func away(act, key string, err error) error {
	return fault.Wrap(fault.Unavailable, fmt.Errorf("%s %q: %w", act, key, err), "the store is away or failing")
}
