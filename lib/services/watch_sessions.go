package services

import (
	"cmp"
	"context"
	"errors"

	"github.com/accessd/accessd/lib/backend"
)

// WatchSessions calls fn with the live sessions: at first, and whenever a member
// says something new. What happens while fn runs comes together in one call. It
// returns when ctx ends, fn fails, or the state store does not answer.
func (s *Store) WatchSessions(ctx context.Context, fn func([]LiveSession) error) error {
	for {
		if err := s.watchSessionsOnce(ctx, fn); !errors.Is(err, backend.ErrCompacted) {
			return err
		}
	}
}

func (s *Store) watchSessionsOnce(ctx context.Context, fn func([]LiveSession) error) error {
	_, revision, err := s.b.List(ctx, dirSession)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	news, ended := make(chan struct{}, 1), make(chan error, 1)
	news <- struct{}{}
	go func() {
		ended <- s.b.Watch(ctx, dirSession, revision+1, func([]backend.Event) error {
			select {
			case news <- struct{}{}:
			default: // some are waiting already
			}
			return nil
		})
	}()
	for {
		select {
		case err := <-ended:
			return err
		case <-news:
		}
		live, err := s.Sessions(ctx)
		if err == nil {
			err = fn(live)
		}
		if err != nil {
			cancel()
			return cmp.Or(err, <-ended) // which has to be waited for
		}
	}
}
