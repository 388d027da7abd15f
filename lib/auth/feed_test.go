package auth

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

func resource(kind, name, json string) *accessdv1.Resource {
	return &accessdv1.Resource{Key: &accessdv1.ResourceKey{Kind: kind, Name: name}, Json: []byte(json)}
}

func put(rs ...*accessdv1.Resource) *accessdv1.PolicyUpdate { return &accessdv1.PolicyUpdate{Put: rs} }

func remove(kind, name string) *accessdv1.PolicyUpdate {
	return &accessdv1.PolicyUpdate{Remove: []*accessdv1.ResourceKey{{Kind: kind, Name: name}}}
}

// A mirror applies updates as a member does.
type mirror struct {
	t       *testing.T
	have    map[resourceKey]string
	resets  int
	synced  int
	largest int
}

func (m *mirror) apply(u *accessdv1.PolicyUpdate) {
	if u.GetReset_() {
		m.have = map[resourceKey]string{}
		m.resets++
	}
	size := 0
	for _, r := range u.GetPut() {
		m.have[keyOf(r.GetKey())] = string(r.GetJson())
		size += len(r.GetJson())
	}
	for _, k := range u.GetRemove() {
		delete(m.have, keyOf(k))
	}
	if u.GetSynced() {
		m.synced++
	}
	m.largest = max(m.largest, size)
}

// drain applies what there is now.
func (m *mirror) drain(fo *follower) {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			u, err := fo.next(ctx)
			if err != nil {
				return
			}
			m.apply(u)
		}
	}()
	synctest.Wait()
	cancel()
	<-done
}

func (m *mirror) want(want map[resourceKey]string) {
	m.t.Helper()
	if !maps.Equal(m.have, want) {
		m.t.Errorf("the follower has %v, want %v", slices.Collect(maps.Keys(m.have)), slices.Collect(maps.Keys(want)))
	}
}

func everything(resourceKey) bool { return true }

func TestFeedFirstAllThenChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeed()
		early := f.follow(everything)
		defer early.close()
		m := &mirror{t: t}
		f.apply(&accessdv1.PolicyUpdate{Reset_: true, Put: []*accessdv1.Resource{resource("role", "a", "1")}})
		m.drain(early)
		if m.resets != 0 {
			t.Fatal("a follower got something before the copy was complete")
		}
		f.apply(&accessdv1.PolicyUpdate{Put: []*accessdv1.Resource{resource("user", "u", "1")}, Synced: true})
		m.drain(early)
		m.want(map[resourceKey]string{{"role", "a"}: "1", {"user", "u"}: "1"})
		f.apply(put(resource("role", "a", "2")))
		f.apply(put(resource("role", "b", "1")))
		f.apply(remove("user", "u"))
		m.drain(early)
		m.want(map[resourceKey]string{{"role", "a"}: "2", {"role", "b"}: "1"})
		if m.resets != 1 || m.synced != 1 {
			t.Errorf("%d resets and %d synced, want one each", m.resets, m.synced)
		}
	})
}

// TestFeedShowsNodesTheirOwnOnly: a node learns nothing about other nodes.
func TestFeedShowsNodesTheirOwnOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeed()
		all := []*accessdv1.Resource{
			resource(services.KindRole, "r", "1"), resource(services.KindUser, "u", "1"), resource(services.KindCA, "user", "1"),
			resource(services.KindNode, "n1", "1"), resource(services.KindNode, "n10", "1"), resource(services.KindNode, "n2", "1"),
			resource(services.KindPresence, "p1/n1", "1"), resource(services.KindProxy, "p1", "1"), resource(services.KindMember, "m1", "1"), resource("secret", "x", "1"),
		}
		f.apply(&accessdv1.PolicyUpdate{Reset_: true, Put: all, Synced: true})
		for _, c := range []struct {
			kind sshca.Kind
			want []string
		}{
			{sshca.KindNode, []string{"ca/user", "node/n1", "role/r", "user/u"}},
			{sshca.KindProxy, []string{"ca/user", "member/m1", "node/n1", "node/n10", "node/n2", "presence/p1/n1", "proxy/p1", "role/r", "user/u"}},
			{sshca.KindAuth, []string{"ca/user", "member/m1", "node/n1", "node/n10", "node/n2", "presence/p1/n1", "proxy/p1", "role/r", "user/u"}},
		} {
			fo := f.follow(wantedBy(&record{Member: services.Member{ID: "n1", Kind: c.kind}}))
			m := &mirror{t: t}
			m.drain(fo)
			f.apply(put(resource(services.KindNode, "n2", "2"), resource("secret", "x", "2")))
			m.drain(fo)
			fo.close()
			var got []string
			for k := range m.have {
				got = append(got, k.kind+"/"+k.name)
			}
			if slices.Sort(got); !slices.Equal(got, c.want) {
				t.Errorf("a %s sees %v, want %v", c.kind, got, c.want)
			}
		}
	})
}

// TestSlowFollowerCostsNothing: one that reads nothing while the policy changes
// ten thousand times gets everything anew, and the feed kept no queue for it.
func TestSlowFollowerCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeed()
		f.apply(&accessdv1.PolicyUpdate{Reset_: true, Synced: true})
		slow, brisk := f.follow(everything), f.follow(everything)
		defer slow.close()
		defer brisk.close()
		ms, mb := &mirror{t: t}, &mirror{t: t}
		ms.drain(slow)
		want := map[resourceKey]string{}
		for i := range 3 * feedHistory {
			name := fmt.Sprintf("r%d", i%100)
			f.apply(put(resource("role", name, fmt.Sprint(i))))
			want[resourceKey{"role", name}] = fmt.Sprint(i)
			if i%1000 == 0 {
				mb.drain(brisk)
			}
		}
		ms.drain(slow)
		mb.drain(brisk)
		ms.want(want)
		mb.want(want)
		if ms.resets != 2 || mb.resets != 1 {
			t.Errorf("resets: slow %d, brisk %d, want 2 and 1", ms.resets, mb.resets)
		}
	})
}

// TestFeedMessagesAreBounded: a large policy comes in parts.
func TestFeedMessagesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeed()
		f.apply(&accessdv1.PolicyUpdate{Reset_: true})
		body := string(make([]byte, 10_000))
		for i := range 200 {
			f.apply(put(resource("role", fmt.Sprint(i), body)))
		}
		f.apply(&accessdv1.PolicyUpdate{Synced: true})
		fo := f.follow(everything)
		defer fo.close()
		m := &mirror{t: t}
		m.drain(fo)
		for i := range 200 {
			f.apply(put(resource("role", fmt.Sprint(i), body+"2")))
		}
		m.drain(fo)
		if len(m.have) != 200 || m.have[resourceKey{"role", "7"}] != body+"2" {
			t.Errorf("the follower has %d roles", len(m.have))
		}
		if limit := maxUpdate + 2*len(body); m.largest > limit {
			t.Errorf("a message held %d bytes, want at most %d", m.largest, limit)
		}
	})
}

// TestFeedSurvivesANewBeginning: when the store's stream begins anew, followers
// see the difference, not everything.
func TestFeedSurvivesANewBeginning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeed()
		f.apply(&accessdv1.PolicyUpdate{Reset_: true, Put: []*accessdv1.Resource{resource("role", "a", "1"), resource("role", "b", "1")}, Synced: true})
		fo := f.follow(everything)
		defer fo.close()
		m := &mirror{t: t}
		m.drain(fo)
		f.apply(&accessdv1.PolicyUpdate{Reset_: true, Put: []*accessdv1.Resource{resource("role", "a", "1")}})
		m.drain(fo)
		m.want(map[resourceKey]string{{"role", "a"}: "1", {"role", "b"}: "1"})
		before := f.next
		f.apply(&accessdv1.PolicyUpdate{Put: []*accessdv1.Resource{resource("role", "c", "1")}, Synced: true})
		m.drain(fo)
		m.want(map[resourceKey]string{{"role", "a"}: "1", {"role", "c"}: "1"})
		if got := f.next - before; m.resets != 1 || got != 2 {
			t.Errorf("%d resets and %d changes, want 1 and 2", m.resets, got)
		}
	})
}

func BenchmarkFeedPublish10000Followers(b *testing.B) {
	f := newFeed()
	f.apply(&accessdv1.PolicyUpdate{Reset_: true, Synced: true})
	for i := range 10_000 {
		fo := f.follow(wantedBy(&record{Member: services.Member{Kind: sshca.KindNode, ID: "n"}}))
		defer fo.close()
		_ = i
	}
	u := put(resource(services.KindPresence, "p/n1", "{}"))
	for b.Loop() {
		f.apply(u)
	}
}
