package services_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

func part(number uint32, content string) services.RecordingPart {
	return services.RecordingPart{Number: number, Size: uint32(len(content)), Sum: sha256.Sum256([]byte(content))}
}

// sealedPart is part, of which the seventh is sealed.
func sealedPart(number uint32) services.RecordingPart {
	p := part(number, fmt.Sprint("part ", number))
	p.Sealed = number == 7
	return p
}

func anybody(services.SessionRecording) error { return nil }

// claim makes a recording of a session of its own.
func claim(t testing.TB, s *services.Store) names.SessionID {
	t.Helper()
	id := names.NewSessionID()
	_, err := s.ClaimRecording(t.Context(), services.SessionRecording{Session: id, Member: names.NewNodeID()})
	check(t, err)
	return id
}

// Of any number of members that claim one session, one has it, and all are told
// which.
func TestClaimRecording(t *testing.T) {
	s, _ := newStore(t)
	id := names.NewSessionID()
	var mu sync.Mutex
	seen := map[names.NodeID]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r, err := s.ClaimRecording(t.Context(), services.SessionRecording{Session: id, Member: names.NewNodeID()})
			if err != nil {
				t.Errorf("claim: %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			seen[r.Member] = true
		})
	}
	wg.Wait()
	if len(seen) != 1 {
		t.Errorf("%d members were told that it is theirs, want 1", len(seen))
	}
}

func TestRecordingParts(t *testing.T) {
	s, clock := newStore(t)
	ctx, id := t.Context(), claim(t, s)
	// In any order, several at once, over the border of a page, one of them missing.
	var wg sync.WaitGroup
	for n := uint32(1); n <= 130; n++ {
		if n == 65 {
			wg.Wait()
		}
		if n == 100 {
			continue
		}
		wg.Go(func() {
			if err := s.AddRecordingPart(ctx, id, sealedPart(n), anybody); err != nil {
				// Too many at once is said so, and nothing of it stays.
				if !fault.Is(err, fault.Conflict) {
					t.Errorf("part %d: %v", n, err)
				}
			}
		})
		if n%4 == 0 {
			wg.Wait()
		}
	}
	wg.Wait()
	for n := uint32(1); n <= 130; n++ {
		if n != 100 {
			check(t, s.AddRecordingPart(ctx, id, part(n, fmt.Sprint("part ", n)), anybody))
		}
	}
	r, err := s.Recording(ctx, id)
	check(t, err)
	all, err := s.RecordingParts(ctx, id, 1)
	check(t, err)
	size := int64(0)
	for i, p := range all {
		want := uint32(i) + 1
		if want >= 100 {
			want++
		}
		if p != part(want, fmt.Sprint("part ", want)) {
			t.Fatalf("part %d is %+v", want, p)
		}
		size += int64(p.Size)
	}
	if len(all) != 129 || r.Parts != 130 || r.Size != size || !r.Sealed || !r.Last.Equal(clock.Now()) {
		t.Errorf("recording = %+v with %d parts of %d bytes, want 129 parts, the newest 130, sealed", r, len(all), size)
	}
	late, err := s.RecordingParts(ctx, id, 99)
	check(t, err)
	if len(late) != 31 || late[0].Number != 99 || late[1].Number != 101 {
		t.Errorf("parts from 99 on: %d, beginning with %d, want 31", len(late), late[0].Number)
	}
	if p, err := s.RecordingPart(ctx, id, 128); err != nil || p != part(128, "part 128") {
		t.Errorf("RecordingPart 128 = %+v, %v", p, err)
	}
	_, err = s.RecordingPart(ctx, id, 100)
	wantKind(t, "a part that never came", err, fault.NotFound)
	_, err = s.RecordingPart(ctx, id, 1000)
	wantKind(t, "a part of a page that never came", err, fault.NotFound)
}

func TestRecordingPartRefused(t *testing.T) {
	s, _ := newStore(t)
	ctx, id := t.Context(), claim(t, s)
	add := func(p services.RecordingPart) error { return s.AddRecordingPart(ctx, id, p, anybody) }
	check(t, add(part(2, "two")))
	wantKind(t, "other bytes", add(part(2, "TWO")), fault.Conflict)
	wantKind(t, "number 0", add(part(0, "")), fault.BadInput)
	wantKind(t, "too far ahead", add(part(67, "")), fault.BadInput)
	check(t, add(part(66, "just so far")))
	no := fault.New(fault.Denied, "no")
	if err := s.AddRecordingPart(ctx, id, part(3, "x"), func(services.SessionRecording) error { return no }); !errors.Is(err, no) {
		t.Errorf("a part that may not be = %v, want what may said", err)
	}
	wantKind(t, "a part of nothing", s.AddRecordingPart(ctx, names.NewSessionID(), part(1, "x"), anybody), fault.NotFound)
	all, err := s.RecordingParts(ctx, id, 0)
	check(t, err)
	if len(all) != 2 {
		t.Errorf("%d parts, want the 2 that were taken", len(all))
	}
}

func TestWatchAndDeleteRecording(t *testing.T) {
	s, _ := newStore(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	id, other := claim(t, s), claim(t, s)
	check(t, s.AddRecordingPart(ctx, other, part(1, "other"), anybody))
	// Each call of fn brings about the next change, so this ends only when every
	// one of them is told.
	steps := []func() error{
		func() error { return s.AddRecordingPart(ctx, id, part(1, "one"), anybody) },
		func() error { return s.AddRecordingPart(ctx, id, part(2, "two"), anybody) },
		func() error {
			_, err := s.ChangeRecording(ctx, id, func(r *services.SessionRecording) error {
				r.End = &services.RecordingEnd{Parts: 2}
				return nil
			})
			return err
		},
		func() error { return s.DeleteRecording(ctx, id) },
	}
	done := errors.New("done")
	err := s.WatchRecording(ctx, id, func() error {
		if len(steps) == 0 {
			return done
		}
		step := steps[0]
		steps = steps[1:]
		return step()
	})
	if !errors.Is(err, done) {
		t.Fatalf("WatchRecording = %v with %d steps left", err, len(steps))
	}
	_, err = s.Recording(ctx, id)
	wantKind(t, "a deleted recording", err, fault.NotFound)
	wantKind(t, "deleted again", s.DeleteRecording(ctx, id), fault.NotFound)
	if parts, err := s.RecordingParts(ctx, id, 1); err != nil || len(parts) != 0 {
		t.Errorf("parts of a deleted recording = %v, %v", parts, err)
	}
	all, err := s.Recordings(ctx)
	check(t, err)
	if len(all) != 1 || all[0].Session != other || all[0].Parts != 1 {
		t.Errorf("recordings = %+v, want the other one", all)
	}
	stale := all[0]
	stale.Revision--
	wantKind(t, "a change by who has not seen the newest", s.UpdateRecording(ctx, stale), fault.Conflict)
	stale.Session = names.NewSessionID()
	wantKind(t, "a change of nothing", s.UpdateRecording(ctx, stale), fault.NotFound)
}
