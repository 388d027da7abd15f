package services

import (
	"context"
	"time"

	"github.com/accessd/accessd/lib/names"
)

// Retired is an authority that is gone for good: what remains is what is known of
// the end of its log.
type Retired struct {
	ID     names.NodeID   `json:"id"`
	Name   names.NodeName `json:"name"`
	By     string         `json:"by"`
	Reason string         `json:"reason"`
	At     time.Time      `json:"at"`
	End    string         `json:"end,omitempty"` // the last checkpoint of its log that is known; "" is that the log is lost
}

func retiredKey(id names.NodeID) string { return dirRetired + string(id) }

// RetireAuthority notes that an authority is gone for good, and removes it from the
// members. Killed in between, it is a member still.
func (s *Store) RetireAuthority(ctx context.Context, r Retired) error {
	if _, err := s.b.Put(ctx, retiredKey(r.ID), encode(r)); err != nil {
		return err
	}
	return s.DeleteMember(ctx, r.ID)
}

// RetiredAuthority returns what is known of an authority that was retired, or
// [fault.NotFound].
func (s *Store) RetiredAuthority(ctx context.Context, id names.NodeID) (Retired, error) {
	r, _, err := get[Retired](ctx, s, retiredKey(id), "retired authority")
	return r, err
}
