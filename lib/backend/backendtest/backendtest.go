// Package backendtest holds the contract of [backend.Backend] as one suite that
// runs on every way to open it, and helpers that open one for other tests.
package backendtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/fault"
)

// Open returns an embedded backend in a fresh directory, which ends with the
// test.
func Open(t testing.TB) *backend.Backend {
	t.Helper()
	b, err := backend.Open(t.Context(), backend.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return b
}

// Compact makes a store forget what was before a revision.
type Compact func(ctx context.Context, revision int64) error

// suite is one run of the contract. Each test uses a directory of its own.
type suite struct {
	*backend.Backend
	compact Compact
}

// Run runs the contract on b.
func Run(t *testing.T, b *backend.Backend, compact Compact) {
	s := suite{b, compact}
	for _, c := range []struct {
		name string
		test func(*testing.T, suite)
	}{
		{"get put delete", testGetPutDelete},
		{"create is exclusive", testCreate},
		{"compare and swap", testCompareAndSwap},
		{"list does not bleed", testList},
		{"transaction all or none", testTxn},
		{"transaction bound", testTxnBound},
		{"racing swaps lose nothing", testRace},
		{"sequence is unique", testSequence},
		{"lease ends items", testLease},
		{"lease revoked", testRevoke},
		{"watch in order", testWatch},
		{"watch stops at its function's error", testWatchStops},
		{"watch compacted", testWatchCompacted},
		{"cancelled caller", testCancelled},
		{"too large", testTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, s) })
	}
}

// dir is the test's own directory.
func dir(t *testing.T) string { return t.Name() + "/" }

func wantKind(t *testing.T, what string, err error, want fault.Kind) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s = %v, want kind %v", what, err, want)
	}
}

// put puts key to value and returns its revision.
func (s suite) put(t *testing.T, key, value string, opts ...backend.PutOption) int64 {
	t.Helper()
	rev, err := s.Put(t.Context(), key, []byte(value), opts...)
	if err != nil {
		t.Fatalf("Put(%q) = %v", key, err)
	}
	return rev
}

// wantValue checks that key is value; "" means that there is no key.
func (s suite) wantValue(t *testing.T, key, value string) {
	t.Helper()
	item, err := s.Get(t.Context(), key)
	if value == "" {
		wantKind(t, fmt.Sprintf("Get(%q)", key), err, fault.NotFound)
		return
	}
	if err != nil || string(item.Value) != value || item.Key != key {
		t.Errorf("Get(%q) = %q %q, %v, want %q", key, item.Key, item.Value, err, value)
	}
}

func testGetPutDelete(t *testing.T, s suite) {
	key := dir(t) + "k"
	s.wantValue(t, key, "")
	wantKind(t, "Delete of nothing", s.Delete(t.Context(), key), fault.NotFound)
	first := s.put(t, key, "one")
	s.wantValue(t, key, "one")
	if second := s.put(t, key, "two"); second <= first {
		t.Errorf("revision of the second put = %d, want more than %d", second, first)
	}
	s.wantValue(t, key, "two")
	if err := s.Delete(t.Context(), key); err != nil {
		t.Errorf("Delete = %v", err)
	}
	s.wantValue(t, key, "")
}

func testCreate(t *testing.T, s suite) {
	key := dir(t) + "k"
	rev, err := s.Create(t.Context(), key, []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	if item, err := s.Get(t.Context(), key); err != nil || item.Revision != rev {
		t.Errorf("Get = revision %d, %v, want the %d that Create returned", item.Revision, err, rev)
	}
	_, err = s.Create(t.Context(), key, []byte("two"))
	wantKind(t, "second Create", err, fault.Conflict)
	s.wantValue(t, key, "one")
}

func testCompareAndSwap(t *testing.T, s suite) {
	ctx, key := t.Context(), dir(t)+"k"
	old := s.put(t, key, "one")
	rev, err := s.CompareAndSwap(ctx, key, []byte("two"), old)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.CompareAndSwap(ctx, key, []byte("three"), old)
	wantKind(t, "CompareAndSwap at an old revision", err, fault.Conflict)
	s.wantValue(t, key, "two")
	if err := s.Delete(ctx, key); err != nil {
		t.Fatal(err)
	}
	_, err = s.CompareAndSwap(ctx, key, []byte("four"), rev)
	wantKind(t, "CompareAndSwap of a deleted key", err, fault.Conflict)
	s.wantValue(t, key, "")
}

// Threat: a role that can read "ops" read "ops-admin" too, since a range was
// asked for by a prefix of names.
func testList(t *testing.T, s suite) {
	d := dir(t)
	for _, k := range []string{"ops/b", "ops/a", "ops-admin/x", "ops", "opsx/y"} {
		s.put(t, d+k, k)
	}
	items, rev, err := s.List(t.Context(), d+"ops/")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range items {
		got = append(got, strings.TrimPrefix(i.Key, d)+"="+string(i.Value))
	}
	if want := "ops/a=ops/a ops/b=ops/b"; strings.Join(got, " ") != want {
		t.Errorf("List = %q, want %q", got, want)
	}
	keys, err := s.Keys(t.Context(), d+"ops/")
	if want := d + "ops/a " + d + "ops/b"; err != nil || strings.Join(keys, " ") != want {
		t.Errorf("Keys = %q, %v, want %q", keys, err, want)
	}
	if rev < items[0].Revision {
		t.Errorf("List's revision = %d, want at least its items' %d", rev, items[0].Revision)
	}
	for _, bad := range []string{d + "ops", ""} {
		if _, _, err := s.List(t.Context(), bad); err == nil {
			t.Errorf("List(%q) = nil error, want a refusal of what is no directory", bad)
		}
		if err := s.Watch(t.Context(), bad, 0, nil); err == nil {
			t.Errorf("Watch(%q) = nil error, want a refusal of what is no directory", bad)
		}
	}
}

func testTxn(t *testing.T, s suite) {
	ctx, d := t.Context(), dir(t)
	rev := s.put(t, d+"old", "1")
	_, err := s.Txn().Absent(d+"a").At(d+"old", rev).Put(d+"a", []byte("1")).Put(d+"b", []byte("1")).Delete(d + "old").Commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s.wantValue(t, d+"a", "1")
	s.wantValue(t, d+"b", "1")
	s.wantValue(t, d+"old", "")

	_, err = s.Txn().Absent(d+"new").Absent(d+"b").Put(d+"new", []byte("1")).Delete(d + "a").Commit(ctx)
	wantKind(t, "Commit with one condition broken", err, fault.Conflict)
	if c, ok := errors.AsType[*backend.ConflictError](err); !ok || c.Key != d+"b" {
		t.Errorf("the conflict is %+v, want it to name %q", c, d+"b")
	}
	s.wantValue(t, d+"new", "")
	s.wantValue(t, d+"a", "1")
}

func testTxnBound(t *testing.T, s suite) {
	tx := s.Txn()
	for i := range 128 {
		tx.Put(fmt.Sprintf("%s%d", dir(t), i), []byte("1"))
	}
	if _, err := tx.Commit(t.Context()); err != nil {
		t.Errorf("Commit of 128 changes = %v", err)
	}
	_, err := tx.Delete(dir(t) + "one more").Commit(t.Context())
	wantKind(t, "Commit of 129 changes", err, fault.BadInput)
}

func testRace(t *testing.T, s suite) {
	const writers, each = 4, 10
	key := dir(t) + "n"
	s.put(t, key, "")
	var g errgroup.Group
	for range writers {
		g.Go(func() error {
			for done := 0; done < each; {
				item, err := s.Get(t.Context(), key)
				if err != nil {
					return err
				}
				_, err = s.CompareAndSwap(t.Context(), key, append(item.Value, 'x'), item.Revision)
				if err == nil {
					done++
				} else if !fault.Is(err, fault.Conflict) {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	s.wantValue(t, key, strings.Repeat("x", writers*each))
}

func testSequence(t *testing.T, s suite) {
	const takers, each, block = 4, 5, 3
	firsts := make(chan uint64, takers*each)
	var g errgroup.Group
	for range takers {
		g.Go(func() error {
			for range each {
				first, err := s.NextSequence(t.Context(), dir(t)+"seq", block)
				if err != nil {
					return err
				}
				firsts <- first
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	close(firsts)
	seen := map[uint64]bool{}
	for first := range firsts {
		for n := first; n < first+block; n++ {
			if seen[n] || n < 1 || n > takers*each*block {
				t.Errorf("number %d came twice or is out of range", n)
			}
			seen[n] = true
		}
	}
}

func testLease(t *testing.T, s suite) {
	ctx, d := t.Context(), dir(t)
	short, err := s.Grant(ctx, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	long, err := s.Grant(ctx, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.put(t, d+"stays", "1", backend.WithLease(long))
	rev := s.put(t, d+"goes", "1", backend.WithLease(short))
	if ttl, err := s.KeepAliveOnce(ctx, long); err != nil || ttl != time.Hour {
		t.Errorf("KeepAliveOnce = %v, %v, want an hour", ttl, err)
	}
	done := errors.New("seen")
	err = s.Watch(ctx, d, rev+1, func(events []backend.Event) error {
		if e := events[0]; len(events) != 1 || e.Key != d+"goes" || !e.Deleted {
			t.Errorf("events = %+v, want the end of %q", events, "goes")
		}
		return done
	})
	if !errors.Is(err, done) {
		t.Errorf("Watch = %v", err)
	}
	s.wantValue(t, d+"goes", "")
	s.wantValue(t, d+"stays", "1")
	_, err = s.KeepAliveOnce(ctx, short)
	wantKind(t, "KeepAliveOnce of an ended lease", err, fault.NotFound)
	_, err = s.Put(ctx, d+"late", nil, backend.WithLease(short))
	wantKind(t, "Put with an ended lease", err, fault.NotFound)
}

func testRevoke(t *testing.T, s suite) {
	ctx, d := t.Context(), dir(t)
	id, err := s.Grant(ctx, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.put(t, d+"goes", "1", backend.WithLease(id))
	s.put(t, d+"goes", "2", backend.KeepLease())
	s.put(t, d+"stays", "1", backend.WithLease(id))
	s.put(t, d+"stays", "2")
	if err := s.Revoke(ctx, id); err != nil {
		t.Fatal(err)
	}
	s.wantValue(t, d+"goes", "")
	s.wantValue(t, d+"stays", "2")
	wantKind(t, "second Revoke", s.Revoke(ctx, id), fault.NotFound)
}

func testWatch(t *testing.T, s suite) {
	ctx, d := t.Context(), dir(t)
	s.put(t, d+"before", "1")
	_, rev, err := s.List(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	s.put(t, d+"a", "1") // between listing and watching: must not be missed
	var got []string
	calls, done := 0, errors.New("seen all")
	err = s.Watch(ctx, d, rev+1, func(events []backend.Event) error {
		if calls++; calls == 1 {
			s.put(t, d+"b", "2")
			s.put(t, strings.TrimSuffix(d, "/")+"-other/x", "no")
			if _, err := s.Txn().Put(d+"c", []byte("3")).Delete(d + "a").Commit(ctx); err != nil {
				return err
			}
		}
		for _, e := range events {
			got = append(got, fmt.Sprintf("%s=%s%v", strings.TrimPrefix(e.Key, d), e.Value, e.Deleted))
			if e.Revision <= rev {
				t.Errorf("event %+v is not after revision %d", e, rev)
			}
		}
		if len(got) >= 4 {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Errorf("Watch = %v", err)
	}
	if want := "a=1false b=2false c=3false a=true"; strings.Join(got, " ") != want {
		t.Errorf("Watch told %q, want %q", got, want)
	}
}

func testWatchStops(t *testing.T, s suite) {
	rev := s.put(t, dir(t)+"k", "1")
	ctx, cancel := context.WithCancelCause(t.Context())
	boom, over := errors.New("boom"), errors.New("over")
	if err := s.Watch(ctx, dir(t), rev, func([]backend.Event) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("Watch = %v, want its function's error", err)
	}
	err := s.Watch(ctx, dir(t), rev, func([]backend.Event) error {
		cancel(over)
		return nil
	})
	if !errors.Is(err, over) {
		t.Errorf("Watch = %v, want the cause of its context's end", err)
	}
}

func testWatchCompacted(t *testing.T, s suite) {
	key := dir(t) + "k"
	first := s.put(t, key, "1")
	last := s.put(t, key, "2")
	if err := s.compact(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	err := s.Watch(t.Context(), dir(t), first, func([]backend.Event) error { return nil })
	if !errors.Is(err, backend.ErrCompacted) {
		t.Errorf("Watch from a forgotten revision = %v, want ErrCompacted", err)
	}
}

func testCancelled(t *testing.T, s suite) {
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the caller left")
	cancel(gone)
	if _, err := s.Get(ctx, "k"); !errors.Is(err, gone) {
		t.Errorf("Get = %v, want the cause", err)
	}
	if _, err := s.Put(ctx, "k", nil); !errors.Is(err, gone) {
		t.Errorf("Put = %v, want the cause", err)
	}
}

func testTooLarge(t *testing.T, s suite) {
	_, err := s.Put(t.Context(), dir(t)+"k", make([]byte, 4<<20))
	wantKind(t, "Put of 4 MiB", err, fault.BadInput)
	s.wantValue(t, dir(t)+"k", "")
}
