package services

import (
	"context"
	"time"

	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/fault"
)

// MaxLocks bounds the locks of a cluster. Every member knows them all and asks
// for them at each decision.
const MaxLocks = 10_000

// lockGrace is how much longer a lock is kept than it holds: a member whose clock
// is behind still has it until then.
const lockGrace = time.Minute

func lockResource(id LockID) string { return dirOf(KindLock) + string(id) }

// CreateLock keeps a new lock until it has expired, or returns [fault.Conflict]
// when there are too many.
func (s *Store) CreateLock(ctx context.Context, l Lock) (Lock, error) {
	if err := l.Check(); err != nil {
		return Lock{}, err
	}
	all, err := s.Locks(ctx)
	if err != nil {
		return Lock{}, err
	}
	if len(all) >= MaxLocks {
		return Lock{}, fault.New(fault.Conflict, "there are %d locks already", len(all)).WithHint("remove those that are of no use any more")
	}
	var opts []backend.PutOption
	if !l.Expires.IsZero() {
		lease, err := s.b.Grant(ctx, max(l.Expires.Sub(s.now()), 0)+lockGrace)
		if err != nil {
			return Lock{}, err
		}
		opts = append(opts, backend.WithLease(lease))
	}
	key := lockResource(l.ID)
	l.Revision, err = s.b.Txn().Absent(key).Put(key, encode(l), opts...).Commit(ctx)
	return l, exists(err, "lock", string(l.ID))
}

// Lock returns the lock with an id, or [fault.NotFound].
func (s *Store) Lock(ctx context.Context, id LockID) (Lock, error) {
	l, revision, err := get[Lock](ctx, s, lockResource(id), KindLock)
	l.Revision = revision
	return l, err
}

// Locks returns the locks, by id. Some may have expired a moment ago.
func (s *Store) Locks(ctx context.Context) ([]Lock, error) {
	return list(ctx, s, dirOf(KindLock), func(l *Lock, revision int64) { l.Revision = revision })
}

// DeleteLock removes a lock, or returns [fault.NotFound].
func (s *Store) DeleteLock(ctx context.Context, id LockID) error {
	key := lockResource(id)
	l, err := s.Lock(ctx, id)
	if err != nil {
		return err
	}
	_, err = s.update(ctx, key, KindLock, s.b.Txn().At(key, l.Revision).Delete(key))
	return err
}
