package services

import (
	"context"
	"slices"
	"time"

	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// A KeyChallenge is what a security key was made with, which is good for one
// enrolment.
type KeyChallenge struct {
	ID      string    `json:"id"` // no secret: nobody makes a challenge of it
	Expires time.Time `json:"expires"`
}

// maxUsedChallenges bounds the security keys that are enrolled for one user within
// the life of a challenge, those that were removed again among them.
const maxUsedChallenges = 64

func challengesKey(user names.UserName) string { return dirChallenges + string(user) }

// errChallengeUsed is of a challenge whose one enrolment was.
func errChallengeUsed() error {
	return fault.New(fault.Denied, "the challenge was used before")
}

// CheckKeyChallenge returns [fault.Denied] when a key was enrolled with c already.
func (s *Store) CheckKeyChallenge(ctx context.Context, name names.UserName, c KeyChallenge) error {
	_, _, err := s.unusedChallenge(ctx, name, c)
	return err
}

// unusedChallenge returns the challenges that were used for a user and still have to
// be known, of which c is none, and the revision of the list.
func (s *Store) unusedChallenge(ctx context.Context, name names.UserName, c KeyChallenge) ([]KeyChallenge, int64, error) {
	used, revision, err := get[[]KeyChallenge](ctx, s, challengesKey(name), "list of challenges")
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, 0, err
	}
	if slices.ContainsFunc(used, func(u KeyChallenge) bool { return u.ID == c.ID }) {
		return nil, 0, errChallengeUsed()
	}
	return slices.DeleteFunc(used, func(u KeyChallenge) bool { return !s.now().Before(forgotten(u)) }), revision, nil
}

// forgotten returns when c need not be known any more, by anybody's clock.
func forgotten(c KeyChallenge) time.Time { return c.Expires.Add(defaults.ClockSkew) }

// AddAttestedKey is [Store.AddUserKey] for a key that was made with c, which is used
// up by it: it returns [fault.Denied] when it was before.
func (s *Store) AddAttestedKey(ctx context.Context, name names.UserName, k UserKey, c KeyChallenge) (User, error) {
	var lease backend.LeaseID
	u, err := s.addUserKey(ctx, name, k, func(tx *backend.Txn) error {
		used, revision, err := s.unusedChallenge(ctx, name, c)
		if err != nil {
			return err
		}
		if len(used) >= maxUsedChallenges {
			return fault.New(fault.Conflict, "%d security keys were enrolled for user %q lately, which is the most", len(used), name)
		}
		used = append(used, c)
		if lease == 0 {
			last := slices.MaxFunc(used, func(a, b KeyChallenge) int { return a.Expires.Compare(b.Expires) })
			if lease, err = s.b.Grant(ctx, max(forgotten(last).Sub(s.now()), time.Second)); err != nil {
				return err
			}
		}
		key := challengesKey(name)
		tx.At(key, revision).Put(key, encode(used), backend.WithLease(lease))
		return nil
	})
	if err != nil && lease != 0 {
		_ = s.b.Revoke(context.WithoutCancel(ctx), lease) // it would end by itself
	}
	return u, err
}
