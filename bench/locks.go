//go:build linux

package main

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// sessionsOfConn is how many sessions each connection carries that a lock is to end.
const sessionsOfConn = 10

// measureLocks measures how long many live sessions outlive a lock on their person.
func measureLocks(ctx context.Context, l *lab) ([]figure, error) {
	return l.own(func() ([]figure, error) {
		p, err := l.here()
		if err != nil {
			return nil, err
		}
		a, err := l.startAuthority(ctx, p, cluster{})
		if err != nil {
			return nil, err
		}
		s := &side{name: "accessd", proxy: a.proxy, addr: a.addr, user: "bench", login: l.login, target: "n1:22"}
		if err := a.addNode(ctx, p, cluster{}, s); err != nil {
			return nil, err
		}
		if err := a.addUser(ctx, s); err != nil {
			return nil, err
		}
		many := pick(l, 1000, 20)
		ended, closed, err := a.lockOut(ctx, s, many)
		if err != nil {
			return nil, err
		}
		return []figure{
			figure{accessd: ended.Seconds() * 1000}.named("–", fmt.Sprintf("end %d live sessions of a locked person", many), millis, atMost(1000)).
				remark("from before `accessd locks add` is started until the client knows of the end of the last one; each session is recorded and its end is in the log. %d sessions share a connection.", sessionsOfConn),
			figure{accessd: closed.Seconds() * 1000}.named("–", "the same, until their last connection is cut", millis, goal{}).
				remark("people have half a second to read why."),
		}, nil
	})
}

// lockOut opens n sessions, locks their person and returns how long the last session
// and the last connection lived from then on.
func (a *authority) lockOut(ctx context.Context, s *side, n int) (ended, closed time.Duration, err error) {
	var sessions, conns sync.WaitGroup
	defer conns.Wait()
	for i := 0; i < n; i += sessionsOfConn {
		c, err := s.chain(ctx)
		if err != nil {
			return 0, 0, err
		}
		defer c.close()
		conns.Go(func() { _ = c.inner.Wait() }) // says why, which is known
		for range min(sessionsOfConn, n-i) {
			session, err := c.inner.NewSession()
			if err != nil {
				return 0, 0, fmt.Errorf("open session: %w", err)
			}
			if _, err := session.StdinPipe(); err != nil {
				return 0, 0, err
			}
			if err := session.Start("exec cat"); err != nil {
				return 0, 0, fmt.Errorf("start a session: %w", err)
			}
			sessions.Go(func() { _ = session.Wait() })
		}
	}
	begun := time.Now()
	if _, err := a.admin(ctx, "locks", "add", "--user", s.user, "--message", "enough"); err != nil {
		return 0, 0, err
	}
	sessions.Wait()
	ended = time.Since(begun)
	conns.Wait()
	return ended, time.Since(begun), nil
}
