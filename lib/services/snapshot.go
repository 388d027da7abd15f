package services

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"google.golang.org/protobuf/proto"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

// snapshotMagic begins a snapshot; then come the SHA-256 of the rest and the
// rest, a [accessdv1.PolicyUpdate] with all resources. The sum finds damage, it
// keeps no attacker out: that is for the file's owner and mode.
const snapshotMagic = "accessd policy 1\n"

// maxSnapshot bounds a snapshot that is read, in bytes: some 100,000 nodes.
const maxSnapshot = 256 << 20

// snapshotOf says which version of the copy is in which file.
type snapshotOf struct {
	path    string
	version uint64
}

// Save writes a snapshot of a whole policy, so that a member that starts while
// the authority is away knows what it knew. Proxies and presences are left out:
// they are true only while somebody keeps them alive. The file is whole and on
// disk when Save returns, or is as it was. Nothing is written when nothing has
// changed since the last Save. Before a whole policy has come in Save fails with
// [fault.Unavailable].
func (c *Cache) Save(path string) error {
	c.mu.RLock()
	synced, old, now, copied := c.hasSynced, c.saved, snapshotOf{path, c.version}, c.current.durable()
	c.mu.RUnlock()
	if !synced {
		return fault.New(fault.Unavailable, "save the policy: it has not come in yet")
	}
	if now == old {
		return nil
	}
	resources := copied.resources()
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(&accessdv1.PolicyUpdate{Reset_: true, Put: resources, Synced: true})
	if err != nil {
		return fault.New(fault.Internal, "save the policy: %w", err)
	}
	sum := sha256.Sum256(body)
	if err := replaceFile(path, slices.Concat([]byte(snapshotMagic), sum[:], body)); err != nil {
		return fault.New(fault.Internal, "save the policy: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.saved = now
	return nil
}

// replaceFile makes data the content of path, durably and at once.
func replaceFile(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp") // mode 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // it has no such call
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Load replaces the copy with a snapshot. Without one it returns
// [os.ErrNotExist]; a damaged one is a [fault.BadInput] and changes nothing.
func (c *Cache) Load(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("load the policy: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxSnapshot {
		return fault.New(fault.BadInput, "load the policy: %q is no snapshot", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("load the policy: %w", err)
	}
	u, err := parseSnapshot(data)
	if err != nil {
		return fault.New(fault.BadInput, "load the policy: %q: %w", path, err)
	}
	return c.apply(u, false)
}

func parseSnapshot(data []byte) (*accessdv1.PolicyUpdate, error) {
	rest, ok := bytes.CutPrefix(data, []byte(snapshotMagic))
	if !ok || len(rest) < sha256.Size {
		return nil, errors.New("not a snapshot")
	}
	sum, body := rest[:sha256.Size], rest[sha256.Size:]
	if want := sha256.Sum256(body); !bytes.Equal(sum, want[:]) {
		return nil, errors.New("the snapshot is damaged")
	}
	u := &accessdv1.PolicyUpdate{}
	if err := proto.Unmarshal(body, u); err != nil {
		return nil, fmt.Errorf("the snapshot is damaged: %w", err)
	}
	return u, nil
}
