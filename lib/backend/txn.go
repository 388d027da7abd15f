package backend

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/accessd/accessd/lib/fault"
)

// Txn is a change of several keys that happens in whole or, when one of its
// conditions does not hold, not at all. Build it with its methods, then Commit
// it once.
type Txn struct {
	b       *Backend
	ifs     []condition
	changes []clientv3.Op
	size    int // of the changes, in bytes
}

// condition is that key is at a revision, where 0 means that it is not there.
type condition struct {
	key      string
	revision int64
}

// ConflictError is the cause of a [fault.Conflict]: the first key that was not as
// the change demanded.
type ConflictError struct{ Key string }

// Error names the key.
func (c *ConflictError) Error() string { return fmt.Sprintf("%q exists or has changed", c.Key) }

// PutOption is an option of a put.
type PutOption func(*putOptions)

type putOptions struct {
	lease LeaseID
	keep  bool
}

// WithLease makes the item end with a lease.
func WithLease(id LeaseID) PutOption { return func(o *putOptions) { o.lease = id } }

// KeepLease leaves an item that is there on the lease it has; without it a put
// takes the item off its lease.
func KeepLease() PutOption { return func(o *putOptions) { o.keep = true } }

// Txn returns an empty transaction.
func (b *Backend) Txn() *Txn { return &Txn{b: b} }

// Absent demands that there is no key.
func (t *Txn) Absent(key string) *Txn { return t.At(key, 0) }

// At demands that key is at revision; 0 means that there is none.
func (t *Txn) At(key string, revision int64) *Txn {
	t.ifs = append(t.ifs, condition{key, revision})
	return t
}

// Put puts key. A transaction changes no key twice.
func (t *Txn) Put(key string, value []byte, opts ...PutOption) *Txn {
	var o putOptions
	for _, opt := range opts {
		opt(&o)
	}
	t.size += len(key) + len(value)
	lease := clientv3.WithLease(clientv3.LeaseID(o.lease))
	if o.keep {
		lease = clientv3.WithIgnoreLease()
	}
	t.changes = append(t.changes, clientv3.OpPut(t.b.prefix+key, string(value), lease))
	return t
}

// Delete removes key, if it is there.
func (t *Txn) Delete(key string) *Txn {
	t.changes = append(t.changes, clientv3.OpDelete(t.b.prefix+key))
	return t
}

// Commit makes the change and returns its revision, or [fault.Conflict] with a
// [ConflictError] cause when a condition does not hold.
func (t *Txn) Commit(ctx context.Context) (int64, error) {
	if n := max(len(t.ifs), len(t.changes)); n > maxTxnOps {
		return 0, fault.New(fault.BadInput, "%d changes at once: the state store takes at most %d", n, maxTxnOps)
	}
	if t.size > maxTxnBytes {
		return 0, fault.New(fault.BadInput, "%d bytes at once: the state store takes at most %d", t.size, maxTxnBytes)
	}
	octx, cancel := t.b.limit(ctx)
	defer cancel()
	conds := make([]clientv3.Cmp, len(t.ifs))
	reads := make([]clientv3.Op, len(t.ifs))
	for i, c := range t.ifs {
		conds[i] = clientv3.Compare(clientv3.ModRevision(t.b.prefix+c.key), "=", c.revision)
		reads[i] = clientv3.OpGet(t.b.prefix+c.key, clientv3.WithKeysOnly())
	}
	r, err := t.b.client.Txn(octx).If(conds...).Then(t.changes...).Else(reads...).Commit()
	if err != nil {
		return 0, classify(ctx, "change the state", err)
	}
	if !r.Succeeded {
		return 0, fault.New(fault.Conflict, "%w", t.conflict(r))
	}
	return r.Header.Revision, nil
}

// conflict finds the condition that did not hold in what was read instead of the
// change.
func (t *Txn) conflict(r *clientv3.TxnResponse) *ConflictError {
	for i, c := range t.ifs {
		kvs := r.Responses[i].GetResponseRange().Kvs
		if (len(kvs) == 0) != (c.revision == 0) || len(kvs) > 0 && kvs[0].ModRevision != c.revision {
			return &ConflictError{Key: c.key}
		}
	}
	panic("backend: internal error: a transaction failed though all its conditions hold")
}
