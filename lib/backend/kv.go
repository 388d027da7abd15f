package backend

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/accessd/accessd/lib/fault"
)

// Item is a key with its value as of a revision.
type Item struct {
	Key      string
	Value    []byte
	Revision int64 // of the last change of this key
}

// Get returns the item of key, or [fault.NotFound].
func (b *Backend) Get(ctx context.Context, key string) (Item, error) {
	octx, cancel := b.limit(ctx)
	defer cancel()
	r, err := b.client.Get(octx, b.prefix+key)
	if err != nil {
		return Item{}, classify(ctx, fmt.Sprintf("get %q", key), err)
	}
	if len(r.Kvs) == 0 {
		return Item{}, fault.New(fault.NotFound, "there is no %q", key)
	}
	kv := r.Kvs[0]
	return Item{Key: key, Value: kv.Value, Revision: kv.ModRevision}, nil
}

// GetAll returns the items of keys as they stood at one revision of the store. One
// that is not there has the revision 0 and no value.
func (b *Backend) GetAll(ctx context.Context, keys ...string) ([]Item, error) {
	octx, cancel := b.limit(ctx)
	defer cancel()
	reads := make([]clientv3.Op, len(keys))
	for i, key := range keys {
		reads[i] = clientv3.OpGet(b.prefix + key)
	}
	r, err := b.client.Txn(octx).Then(reads...).Commit()
	if err != nil {
		return nil, classify(ctx, fmt.Sprintf("get %q", keys), err)
	}
	items := make([]Item, len(keys))
	for i, key := range keys {
		items[i].Key = key
		if kvs := r.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
			items[i].Value, items[i].Revision = kvs[0].Value, kvs[0].ModRevision
		}
	}
	return items, nil
}

// List returns the items whose keys begin with dir, by key, and the store's
// revision at which they stood so. dir ends in "/", so that "role/ops" cannot
// come with "role/ops-admin".
func (b *Backend) List(ctx context.Context, dir string) ([]Item, int64, error) {
	if err := checkDir(dir); err != nil {
		return nil, 0, err
	}
	octx, cancel := b.limit(ctx)
	defer cancel()
	r, err := b.client.Get(octx, b.prefix+dir, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, classify(ctx, fmt.Sprintf("list %q", dir), err)
	}
	items := make([]Item, len(r.Kvs))
	for i, kv := range r.Kvs {
		items[i] = Item{Key: string(kv.Key[len(b.prefix):]), Value: kv.Value, Revision: kv.ModRevision}
	}
	return items, r.Header.Revision, nil
}

// Keys returns the keys that begin with dir, in order, without their values.
func (b *Backend) Keys(ctx context.Context, dir string) ([]string, error) {
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	octx, cancel := b.limit(ctx)
	defer cancel()
	r, err := b.client.Get(octx, b.prefix+dir, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, classify(ctx, fmt.Sprintf("list the keys of %q", dir), err)
	}
	keys := make([]string, len(r.Kvs))
	for i, kv := range r.Kvs {
		keys[i] = string(kv.Key[len(b.prefix):])
	}
	return keys, nil
}

// checkDir refuses a prefix that could end inside a name.
func checkDir(dir string) error {
	if !strings.HasSuffix(dir, "/") {
		return fault.New(fault.Internal, "state store: directory %q does not end in a slash", dir)
	}
	return nil
}

// Create puts key if there is none, else it returns [fault.Conflict]. The
// revision of the new item is returned, as by every change.
func (b *Backend) Create(ctx context.Context, key string, value []byte, opts ...PutOption) (int64, error) {
	return b.Txn().Absent(key).Put(key, value, opts...).Commit(ctx)
}

// Put puts key whatever there was before.
func (b *Backend) Put(ctx context.Context, key string, value []byte, opts ...PutOption) (int64, error) {
	return b.Txn().Put(key, value, opts...).Commit(ctx)
}

// CompareAndSwap puts key if it is still at revision, else it returns
// [fault.Conflict]; a key that is gone is at no revision.
func (b *Backend) CompareAndSwap(ctx context.Context, key string, value []byte, revision int64) (int64, error) {
	return b.Txn().At(key, revision).Put(key, value).Commit(ctx)
}

// Delete removes key, or returns [fault.NotFound].
func (b *Backend) Delete(ctx context.Context, key string) error {
	octx, cancel := b.limit(ctx)
	defer cancel()
	r, err := b.client.Delete(octx, b.prefix+key)
	if err != nil {
		return classify(ctx, fmt.Sprintf("delete %q", key), err)
	}
	if r.Deleted == 0 {
		return fault.New(fault.NotFound, "there is no %q", key)
	}
	return nil
}

// NextSequence reserves n numbers of the sequence under key and returns the
// first. A sequence begins with 1, and no number is ever returned twice.
func (b *Backend) NextSequence(ctx context.Context, key string, n uint64) (uint64, error) {
	for {
		item, err := b.Get(ctx, key)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return 0, err
		}
		last := uint64(0)
		if err == nil {
			if last, err = strconv.ParseUint(string(item.Value), 10, 64); err != nil {
				return 0, fault.New(fault.Internal, "sequence %q: %w", key, err)
			}
		}
		if last+n < last {
			return 0, fault.New(fault.Internal, "sequence %q: out of numbers", key)
		}
		_, err = b.CompareAndSwap(ctx, key, strconv.AppendUint(nil, last+n, 10), item.Revision)
		if fault.Is(err, fault.Conflict) {
			continue // somebody else came first, so there is progress
		}
		if err != nil {
			return 0, err
		}
		return last + 1, nil
	}
}
