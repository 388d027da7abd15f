package services

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// requestKept is how long a request is kept after it ended; the audit log has it
// for ever.
const requestKept = 30 * 24 * time.Hour

func requestKey(id string) string              { return dirRequest + id }
func elevationKey(id string) string            { return dirOf(KindElevation) + id }
func requesterKey(user names.UserName) string  { return dirRequester + string(user) }
func stampRequest(r *AccessRequest, rev int64) { r.Revision = rev }
func byCreation(a, b AccessRequest) int        { return a.Created.Compare(b.Created) }
func noRequest(id string) error {
	return missing(fault.New(fault.NotFound, ""), "access request", clip(id))
}
func (r AccessRequest) of(u names.UserName) bool { return r.User == u && r.Open() }

// CreateRequest keeps a new request, or returns [fault.Conflict] when its person
// has as many open ones as there may be.
func (s *Store) CreateRequest(ctx context.Context, r AccessRequest) (AccessRequest, error) {
	if err := r.Check(); err != nil {
		return r, err
	}
	for {
		// Whoever else makes a request for the same person changes this key.
		requester, err := s.b.Get(ctx, requesterKey(r.User))
		if err != nil && !fault.Is(err, fault.NotFound) {
			return r, err
		}
		all, err := s.Requests(ctx)
		if err != nil {
			return r, err
		}
		open := 0
		for _, other := range all {
			if other.of(r.User) {
				open++
			}
		}
		if open >= maxOpenRequests {
			return r, fault.New(fault.Conflict, "%q has %d open access requests, which is the most", r.User, open).
				WithHint("drop one that is not needed")
		}
		key := requestKey(r.ID)
		r.Revision, err = s.b.Txn().At(requesterKey(r.User), requester.Revision).Absent(key).
			Put(requesterKey(r.User), encode(s.now())).Put(key, encode(r)).Commit(ctx)
		if conflicting(err) != requesterKey(r.User) {
			return r, exists(err, "access request", r.ID)
		}
	}
}

// Request returns the access request, or [fault.NotFound].
func (s *Store) Request(ctx context.Context, id string) (AccessRequest, error) {
	if names.CheckRequestID(id) != nil {
		return AccessRequest{}, noRequest(id)
	}
	r, revision, err := get[AccessRequest](ctx, s, requestKey(id), "access request")
	r.Revision = revision
	return r, err
}

// Requests returns all access requests, the oldest first; those that ended, for
// some time.
func (s *Store) Requests(ctx context.Context) ([]AccessRequest, error) {
	all, err := list(ctx, s, dirRequest, stampRequest)
	slices.SortFunc(all, byCreation)
	return all, err
}

// Elevation returns what the approved request of an id gives, or [fault.NotFound]
// when it gives nothing any more.
func (s *Store) Elevation(ctx context.Context, id string) (Elevation, error) {
	if names.CheckRequestID(id) != nil {
		return Elevation{}, noRequest(id)
	}
	g, revision, err := get[Elevation](ctx, s, elevationKey(id), "access request")
	if err == nil && !s.now().Before(g.Until) {
		return Elevation{}, noRequest(id)
	}
	g.Revision = revision
	return g, err
}

// Elevations returns all that approved requests give now, by id.
func (s *Store) Elevations(ctx context.Context) ([]Elevation, error) {
	all, err := list(ctx, s, dirOf(KindElevation), func(g *Elevation, revision int64) { g.Revision = revision })
	return slices.DeleteFunc(all, func(g Elevation) bool { return !s.now().Before(g.Until) }), err
}

// UpdateRequest replaces the request at r.Revision, and together with it what it
// gives; [fault.Conflict] when it has changed meanwhile. What it gives ends by
// itself when its time is over, and a request that has ended is forgotten some
// time later.
func (s *Store) UpdateRequest(ctx context.Context, r AccessRequest) (AccessRequest, error) {
	if err := r.Check(); err != nil {
		return r, err
	}
	key, given := requestKey(r.ID), elevationKey(r.ID)
	tx := s.b.Txn().At(key, r.Revision)
	switch r.State {
	case RequestPending:
		tx.Put(key, encode(r))
	case RequestApproved:
		lease, err := s.b.Grant(ctx, max(r.Until.Sub(s.now()), time.Second))
		if err != nil {
			return r, err
		}
		tx.Put(key, encode(r)).Put(given, encode(r.elevation()), backend.WithLease(lease))
	case RequestDenied, RequestDropped, RequestExpired:
		lease, err := s.b.Grant(ctx, requestKept)
		if err != nil {
			return r, err
		}
		tx.Put(key, encode(r), backend.WithLease(lease)).Delete(given)
	default:
		return r, fault.New(fault.BadInput, "access request: no state is named %q", r.State)
	}
	revision, err := s.update(ctx, key, "access request", tx)
	r.Revision = revision
	return r, err
}

// WatchRequests calls fn with every access request and then, after synced, with
// each one that changes, as it is then; one that is forgotten is not told. It
// returns when ctx ends, when fn fails, or when the state store does not answer
// as it begins. After it fell behind it tells all requests again.
func (s *Store) WatchRequests(ctx context.Context, fn func(AccessRequest) error, synced func() error) error {
	for {
		items, revision, err := s.b.List(ctx, dirRequest)
		if err != nil {
			return err
		}
		if err := tellRequests(items, fn); err != nil {
			return err
		}
		if synced != nil {
			if err := synced(); err != nil {
				return err
			}
			synced = nil
		}
		err = s.b.Watch(ctx, dirRequest, revision+1, func(changes []backend.Event) error {
			var items []backend.Item
			for _, e := range changes {
				if !e.Deleted {
					items = append(items, e.Item)
				}
			}
			return tellRequests(items, fn)
		})
		if !errors.Is(err, backend.ErrCompacted) {
			return err
		}
	}
}

func tellRequests(items []backend.Item, fn func(AccessRequest) error) error {
	for _, item := range items {
		r, err := decode[AccessRequest](item)
		if err != nil {
			return err
		}
		r.Revision = item.Revision
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}
