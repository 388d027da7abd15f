package services

import (
	"context"
	"strings"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// Standing is what a member last got from the authorities, and which of their
// keys it trusted then: what a rotation has to wait for.
type Standing struct {
	ID     names.NodeID `json:"id"`
	Kind   sshca.Kind   `json:"kind"`             // a plain sshd node is a [sshca.KindNode]
	Trusts []string     `json:"trusts,omitempty"` // fingerprints of keys of any authority
	Seen   time.Time    `json:"seen"`

	Member     string    `json:"member,omitempty"` // fingerprint of the key that signed its member certificate
	MemberEnds time.Time `json:"member_ends,omitzero"`
	Host       string    `json:"host,omitempty"` // and its host certificate
	HostEnds   time.Time `json:"host_ends,omitzero"`

	Revision int64 `json:"-"`
}

func standingKey(kind sshca.Kind, id names.NodeID) string {
	return dirStanding + string(kind) + "/" + string(id)
}

// Stand changes what is known of a member with change, which may be called more
// than once and gets an empty one the first time.
func (s *Store) Stand(ctx context.Context, kind sshca.Kind, id names.NodeID, change func(*Standing)) error {
	key := standingKey(kind, id)
	for {
		st, revision, err := get[Standing](ctx, s, key, "standing")
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		st.ID, st.Kind = id, kind
		change(&st)
		if _, err = s.b.Txn().At(key, revision).Put(key, encode(st)).Commit(ctx); !fault.Is(err, fault.Conflict) {
			return err
		}
	}
}

// Standings returns what is known of all members, among them some that are on
// record no more.
func (s *Store) Standings(ctx context.Context) ([]Standing, error) {
	return list(ctx, s, dirStanding, func(st *Standing, revision int64) { st.Revision = revision })
}

// DeleteStanding forgets what is known of a member.
func (s *Store) DeleteStanding(ctx context.Context, kind sshca.Kind, id names.NodeID) error {
	return s.forget(ctx, standingKey(kind, id))
}

func (s *Store) forget(ctx context.Context, key string) error {
	if err := s.b.Delete(ctx, key); !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

// Holder is a person who has a certificate that one key of an authority signed.
type Holder struct {
	User names.UserName `json:"user"`
	Ends time.Time      `json:"ends"` // of the last one, or a little later

	Revision int64 `json:"-"`
}

// holdGrain is how exactly the end of people's last certificates is kept: so that
// somebody who gets one for each connection costs a write now and then only.
const holdGrain = 10 * time.Minute

// holderDir is where the holders of a key are. What a fingerprint has is base64,
// which has slashes and no underscores.
func holderDir(key string) string { return dirHolder + strings.ReplaceAll(key, "/", "_") + "/" }

// Hold notes that a key of an authority, named by its fingerprint, signs a
// certificate for the user that ends at ends.
func (s *Store) Hold(ctx context.Context, caKey string, user names.UserName, ends time.Time) error {
	key := holderDir(caKey) + string(user)
	for {
		h, revision, err := get[Holder](ctx, s, key, "holder")
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if !ends.After(h.Ends) {
			return nil
		}
		h = Holder{User: user, Ends: ends.UTC().Truncate(holdGrain).Add(holdGrain)}
		if _, err = s.b.Txn().At(key, revision).Put(key, encode(h)).Commit(ctx); !fault.Is(err, fault.Conflict) {
			return err
		}
	}
}

// Holders returns the people who ever had a certificate of a key, by name.
func (s *Store) Holders(ctx context.Context, caKey string) ([]Holder, error) {
	return list(ctx, s, holderDir(caKey), func(h *Holder, revision int64) { h.Revision = revision })
}

// DeleteHolders forgets the people with certificates of a key.
func (s *Store) DeleteHolders(ctx context.Context, caKey string) error {
	keys, err := s.b.Keys(ctx, holderDir(caKey))
	if err != nil {
		return err
	}
	for _, key := range keys {
		if err := s.forget(ctx, key); err != nil {
			return err
		}
	}
	return nil
}
