package services

import (
	"bytes"
	"context"
	"crypto/rand"
	"time"

	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/fault"
)

// Guesses are the failed sign-ins of one counter of the cluster's, whatever that
// stands for. The zero value is none.
type Guesses struct {
	Failures int       `json:"failures"`
	Last     time.Time `json:"last"`

	Revision int64 `json:"-"`
}

const (
	// guessesKept is how long a counter is kept that nobody changes; each is
	// forgiven long before.
	guessesKept = 24 * time.Hour
	// guessLeaseFor is how long one lease is given to counters. They share it: a
	// guess shall not cost the store a lease of its own.
	guessLeaseFor = time.Hour
	// guessKeySize is the size of the key that names counters, in bytes.
	guessKeySize = 32
	// maxGuessTries bounds how often a change of counters begins anew because
	// another authority has changed one.
	maxGuessTries = 16
)

// A guessLease is the lease of the counters that are changed now.
type guessLease struct {
	id    backend.LeaseID
	until time.Time
}

// GuessKey returns the key by which names and addresses become counters, the same
// for every authority: without it nobody knows who shares one with whom.
func (s *Store) GuessKey(ctx context.Context) ([]byte, error) {
	key := make([]byte, guessKeySize)
	_, _ = rand.Read(key) // never fails
	if _, err := s.b.Create(ctx, keyGuessKey, key); err == nil || !fault.Is(err, fault.Conflict) {
		return key, err
	}
	item, err := s.b.Get(ctx, keyGuessKey)
	return bytes.Clone(item.Value), err
}

// Guesses returns the counters of these ids.
func (s *Store) Guesses(ctx context.Context, ids ...string) ([]Guesses, error) {
	keys := make([]string, len(ids))
	for i, id := range ids {
		keys[i] = dirGuess + id
	}
	items, err := s.b.GetAll(ctx, keys...)
	if err != nil {
		return nil, err
	}
	out := make([]Guesses, len(ids))
	for i, item := range items {
		if item.Revision == 0 {
			continue
		}
		if out[i], err = decode[Guesses](item); err != nil {
			return nil, err
		}
		out[i].Revision = item.Revision
	}
	return out, nil
}

// UpdateGuesses makes the counters of these ids what change makes of them, all at
// once; change is called again when another authority came first. Nothing is
// changed when it returns an error. A counter without failures is forgotten.
func (s *Store) UpdateGuesses(ctx context.Context, ids []string, change func([]Guesses) error) error {
	for range maxGuessTries {
		list, err := s.Guesses(ctx, ids...)
		if err != nil {
			return err
		}
		if err := change(list); err != nil {
			return err
		}
		lease, err := s.guessLease(ctx)
		if err != nil {
			return err
		}
		tx := s.b.Txn()
		for i, g := range list {
			key := dirGuess + ids[i]
			tx.At(key, g.Revision)
			if g.Failures > 0 {
				tx.Put(key, encode(g), backend.WithLease(lease))
			} else {
				tx.Delete(key)
			}
		}
		if _, err := tx.Commit(ctx); !fault.Is(err, fault.Conflict) {
			return err
		}
	}
	return fault.New(fault.Unavailable, "too many sign-ins fail at the same time")
}

func (s *Store) guessLease(ctx context.Context) (backend.LeaseID, error) {
	select {
	case l := <-s.guessLeases:
		defer func() { s.guessLeases <- l }()
		if now := s.now(); !now.Before(l.until) {
			id, err := s.b.Grant(ctx, guessesKept+guessLeaseFor)
			if err != nil {
				return 0, err
			}
			l = guessLease{id, now.Add(guessLeaseFor)}
		}
		return l.id, nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}
