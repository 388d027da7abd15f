package backend

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// LeaseID names a lease; 0 is none.
type LeaseID int64

// Grant returns a new lease that lives for ttl, rounded up to seconds, unless it
// is kept alive.
func (b *Backend) Grant(ctx context.Context, ttl time.Duration) (LeaseID, error) {
	octx, cancel := b.limit(ctx)
	defer cancel()
	r, err := b.client.Grant(octx, int64((ttl+time.Second-1)/time.Second))
	if err != nil {
		return 0, classify(ctx, "grant a lease", err)
	}
	return LeaseID(r.ID), nil
}

// KeepAliveOnce gives a lease its whole time again and returns how much that is,
// or [fault.NotFound] when it has ended.
func (b *Backend) KeepAliveOnce(ctx context.Context, id LeaseID) (time.Duration, error) {
	octx, cancel := b.limit(ctx)
	defer cancel()
	r, err := b.client.KeepAliveOnce(octx, clientv3.LeaseID(id))
	if err != nil {
		return 0, classify(ctx, fmt.Sprintf("keep lease %x alive", int64(id)), err)
	}
	return time.Duration(r.TTL) * time.Second, nil
}

// Revoke ends a lease and removes its items, or returns [fault.NotFound] when it
// has ended before.
func (b *Backend) Revoke(ctx context.Context, id LeaseID) error {
	octx, cancel := b.limit(ctx)
	defer cancel()
	if _, err := b.client.Revoke(octx, clientv3.LeaseID(id)); err != nil {
		return classify(ctx, fmt.Sprintf("revoke lease %x", int64(id)), err)
	}
	return nil
}
