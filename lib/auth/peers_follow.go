package auth

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/names"
)

// tour reads the logs of all authorities from places on, and tells what it finds.
type tour struct {
	*Authority

	q       query
	began   time.Time // tell no older events of a log that has no place; zero: all
	at      places
	missing map[names.NodeID]*accessdv1.MissingLog
	turned  bool // what is missing has changed since it was told
	tell    func(t *tour, list [][]byte) error

	archived []string // periods that are not here
	told     told
	gone     map[names.NodeID]bool // of those followed, whose authorities were retired
}

// newTour returns a tour that begins at places.
func (a *Authority) newTour(q query, at places, tell func(t *tour, list [][]byte) error) *tour {
	return &tour{Authority: a, q: q, at: maps.Clone(at), missing: map[names.NodeID]*accessdv1.MissingLog{}, tell: tell}
}

// absent returns the logs that cannot be read now, by id.
func (t *tour) absent() []*accessdv1.MissingLog {
	list := make([]*accessdv1.MissingLog, 0, len(t.missing))
	for _, id := range slices.Sorted(maps.Keys(t.missing)) {
		list = append(list, t.missing[id])
	}
	return list
}

// once reads each log to its end, one after the other.
func (t *tour) once(ctx context.Context) error {
	logs, missing := t.logs(ctx, t.at)
	for _, m := range missing {
		t.missing[names.NodeID(m.GetId())] = m
	}
	q := t.q
	q.follow = false
	var failed error // of this side
	for i, l := range logs {
		q.place = t.at[l.id]
		err := l.read(ctx, q, func(p events.Page) error {
			t.at[l.id] = p.After
			t.archived = append(t.archived, p.Archived...)
			list, err := t.unheard(ctx, l.id, p.Events)
			if err == nil {
				err = t.tell(t, list)
			}
			failed = err
			return err
		})
		switch {
		case failed != nil:
			return failed
		case err != nil && (i == 0 || ctx.Err() != nil):
			return err
		case err != nil:
			t.missing[l.id] = t.away(l, err)
		}
	}
	if len(t.missing) > 0 {
		return t.tell(t, nil)
	}
	return nil
}

// news is what a follower of one log has to tell.
type news struct {
	log  authorityLog
	page events.Page
	err  error // the log is away
}

// follow tells what comes into any of the logs, as it comes, until ctx ends. A log
// that is away is asked again and again; one that is new is followed, too.
func (t *tour) follow(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	var followers sync.WaitGroup
	defer followers.Wait()
	defer stop()
	heard := make(chan news)
	followed := map[names.NodeID]bool{}
	for {
		changed := t.cfg.Cache.Changed()
		logs, unknown := t.logs(ctx, t.at)
		for _, m := range unknown {
			t.missing[names.NodeID(m.GetId())] = m
		}
		if t.part(followed, logs, unknown) {
			t.turned = true
			if err := t.tell(t, nil); err != nil {
				return err
			}
		}
		for _, l := range logs {
			if !followed[l.id] {
				followed[l.id] = true
				q := t.q
				q.place = t.at[l.id]
				followers.Go(func() { t.followOne(ctx, l, q, heard) })
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case n := <-heard:
			if err := t.hear(ctx, n); err != nil {
				return err
			}
		}
	}
}

// part gives up the logs of followed that are neither there nor missing: their
// authorities were retired. It reports whether one of them was missed.
func (t *tour) part(followed map[names.NodeID]bool, logs []authorityLog, missing []*accessdv1.MissingLog) (missed bool) {
	t.gone = maps.Clone(followed)
	for _, l := range logs {
		delete(t.gone, l.id)
	}
	for _, m := range missing {
		delete(t.gone, names.NodeID(m.GetId()))
	}
	for id := range t.gone {
		missed = missed || t.missing[id] != nil
		delete(t.missing, id)
		delete(t.at, id)
	}
	return missed
}

// hear tells news on. This authority's own log must not be away.
func (t *tour) hear(ctx context.Context, n news) error {
	was := t.missing[n.log.id]
	switch {
	case t.gone[n.log.id]:
		return nil
	case n.err != nil && n.log.id == t.cfg.Keys.authority:
		return n.err
	case n.err != nil && was != nil:
		return nil
	case n.err != nil:
		t.missing[n.log.id] = t.away(n.log, n.err)
		t.turned = true
	default:
		delete(t.missing, n.log.id)
		t.turned = was != nil
		t.at[n.log.id] = n.page.After
	}
	list, err := t.unheard(ctx, n.log.id, n.page.Events)
	if err != nil {
		return err
	}
	return t.tell(t, list)
}

// followOne follows one log until ctx ends.
func (t *tour) followOne(ctx context.Context, l authorityLog, q query, heard chan<- news) {
	hear := func(n news) error {
		n.log = l
		select {
		case heard <- n:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for ctx.Err() == nil {
		this := q
		this.follow = true
		if q.place == "" && !t.began.IsZero() {
			this.follow, this.filter = false, since(q.filter, t.began)
		}
		err := l.read(ctx, this, func(p events.Page) error {
			q.place = p.After
			return hear(news{page: p})
		})
		if err == nil && !this.follow && q.place != "" {
			continue // with the filter as it was asked for
		}
		if err == nil {
			err = errPeerBroken // it is for the caller to end
		}
		if hear(news{err: err}) != nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(peerRetry):
		}
	}
}

// since returns the filter without what is older than t.
func since(f *accessdv1.EventFilter, t time.Time) *accessdv1.EventFilter {
	out := &accessdv1.EventFilter{}
	if f != nil {
		out = proto.CloneOf(f)
	}
	if out.GetSince() == nil || out.GetSince().AsTime().Before(t) {
		out.Since = timestamppb.New(t)
	}
	return out
}
