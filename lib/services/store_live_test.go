package services_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// presences returns which nodes are present, by name.
func presences(t testing.TB, s *services.Store, of map[names.NodeID]string) string {
	t.Helper()
	all, err := s.Presences(t.Context())
	check(t, err)
	var out []string
	for _, p := range all {
		out = append(out, of[p.Proxy]+":"+of[p.Node])
	}
	return strings.Join(sortedStrings(out), " ")
}

func TestAnnounce(t *testing.T) {
	s, c := newStore(t)
	ctx := t.Context()
	a, b, gone := admit(t, s, node("a")), admit(t, s, node("b")), node("gone")
	p := services.Proxy{ID: names.NewNodeID(), Name: "p", Addresses: []string{"p:3022"}}
	q := services.Proxy{ID: names.NewNodeID(), Name: "q"}
	of := map[names.NodeID]string{a.ID: "a", b.ID: "b", gone.ID: "gone", p.ID: "p", q.ID: "q"}
	announce := func(an services.Announcement) string {
		t.Helper()
		lease, ttl, err := s.Announce(ctx, an)
		check(t, err)
		if lease == "" || ttl <= 0 {
			t.Errorf("Announce = %q for %v, want a lease", lease, ttl)
		}
		return lease
	}
	wantPresent := func(want string) {
		t.Helper()
		if got := presences(t, s, of); got != want {
			t.Errorf("present are %q, want %q", got, want)
		}
	}
	_, _, err := s.Announce(ctx, services.Announcement{Proxy: p})
	wantKind(t, "a first announcement that is not full", err, fault.BadInput)

	lease := announce(services.Announcement{Proxy: p, Full: true, Up: []names.NodeID{a.ID, a.ID, gone.ID}})
	wantPresent("p:a")
	other := announce(services.Announcement{Proxy: q, Full: true, Up: []names.NodeID{a.ID, b.ID}})
	wantPresent("p:a q:a q:b")
	c.Advance(time.Minute)
	announce(services.Announcement{Proxy: p, Lease: lease, Up: []names.NodeID{b.ID}, Down: []names.NodeID{a.ID, b.ID, gone.ID}})
	wantPresent("p:b q:a q:b")
	if n, err := s.Node(ctx, a.ID); err != nil || !n.LastSeen.Equal(c.Now()) {
		t.Errorf("a was last seen %v, %v, want when its tunnel ended", n.LastSeen, err)
	}
	if n, err := s.Node(ctx, gone.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("Node = %+v, %v, want none", n, err)
	}
	announce(services.Announcement{Proxy: p, Lease: lease, Full: true, Up: []names.NodeID{a.ID}})
	wantPresent("p:a q:a q:b")

	before, err := s.Proxies(ctx)
	check(t, err)
	announce(services.Announcement{Proxy: p, Lease: lease})
	after, err := s.Proxies(ctx)
	want(t, "Proxies after nothing changed", after, err, before)
	p.Draining = true
	announce(services.Announcement{Proxy: p, Lease: lease})
	wantPresent("p:a q:a q:b")
	if all, err := s.Proxies(ctx); err != nil || len(all) != 2 {
		t.Errorf("Proxies = %+v, %v, want both", all, err)
	} else if i := map[bool]int{true: 0, false: 1}[p.ID < q.ID]; !all[i].Draining || all[i].Addresses[0] != "p:3022" {
		t.Errorf("Proxies = %+v, want p draining", all)
	}

	_, _, err = s.Announce(ctx, services.Announcement{Proxy: p, Lease: other, Down: []names.NodeID{a.ID}})
	wantKind(t, "Announce with another proxy's lease", err, fault.NotFound)
	fresh := announce(services.Announcement{Proxy: p, Full: true, Up: []names.NodeID{b.ID}})
	wantPresent("p:b q:a q:b")
	_, _, err = s.Announce(ctx, services.Announcement{Proxy: p, Lease: lease})
	wantKind(t, "Announce with the lease before", err, fault.NotFound)

	c.Advance(2 * time.Hour)
	announce(services.Announcement{Proxy: p, Lease: fresh})
	if n, err := s.Node(ctx, b.ID); err != nil || !n.LastSeen.Equal(c.Now()) {
		t.Errorf("b was last seen %v, %v, want now, since its tunnel is up", n.LastSeen, err)
	}
}

func TestAnnounceMany(t *testing.T) {
	s, _ := newStore(t)
	var up []names.NodeID
	for i := range 150 { // more than one change takes
		up = append(up, admit(t, s, node(fmt.Sprintf("n%d", i))).ID)
	}
	p := services.Proxy{ID: names.NewNodeID()}
	lease, _, err := s.Announce(t.Context(), services.Announcement{Proxy: p, Full: true, Up: up})
	check(t, err)
	if all, err := s.Presences(t.Context()); err != nil || len(all) != len(up) {
		t.Errorf("%d presences, %v, want %d", len(all), err, len(up))
	}
	_, _, err = s.Announce(t.Context(), services.Announcement{Proxy: p, Lease: lease, Full: true})
	check(t, err)
	if all, err := s.Presences(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%d presences, %v, want none", len(all), err)
	}
}

func TestSessions(t *testing.T) {
	s, c := newStore(t)
	ctx := t.Context()
	a, b := names.NewNodeID(), names.NewNodeID()
	one := services.LiveSession{ID: names.NewSessionID(), User: "alice", Login: "root", Started: c.Now()}
	two := services.LiveSession{ID: names.NewSessionID(), User: "bob", Node: b, Started: c.Now().Add(time.Second)}
	check(t, s.ReportSessions(ctx, a, []services.LiveSession{two, one}))
	check(t, s.ReportSessions(ctx, b, nil))
	all, err := s.Sessions(ctx)
	if err != nil || len(all) != 2 || all[0].ID != one.ID || all[1].ID != two.ID {
		t.Errorf("Sessions = %+v, %v, want both, oldest first", all, err)
	}
	if all[0].Node != a || all[1].Node != b {
		t.Errorf("the sessions are on %q and %q, want the node that reported one and the node of the other", all[0].Node, all[1].Node)
	}
	if all[0].Reporter != a || all[1].Reporter != a {
		t.Errorf("the sessions were reported by %q and %q, want %q", all[0].Reporter, all[1].Reporter, a)
	}
	check(t, s.ReportSessions(ctx, a, []services.LiveSession{two, one})) // keeps it alive
	check(t, s.ReportSessions(ctx, a, []services.LiveSession{two}))
	if all, err := s.Sessions(ctx); err != nil || len(all) != 1 || all[0].ID != two.ID {
		t.Errorf("Sessions = %+v, %v, want the one that goes on", all, err)
	}
	check(t, s.ReportSessions(ctx, a, nil))
	check(t, s.ReportSessions(ctx, a, nil))
	if all, err := s.Sessions(ctx); err != nil || len(all) != 0 {
		t.Errorf("Sessions = %+v, %v, want none", all, err)
	}
	wantKind(t, "a report without measure", s.ReportSessions(ctx, a, make([]services.LiveSession, 2049)), fault.BadInput)
	full := make([]services.LiveSession, 2048)
	for i := range full {
		full[i] = services.LiveSession{
			ID: names.NewSessionID(), User: names.UserName(strings.Repeat("u", 63)), Login: names.Login(strings.Repeat("l", 33)),
			NodeName: names.NodeName(strings.Repeat("n", 253)), Client: "[2001:db8:1111:2222:3333:4444:5555:6666]:65535", Kind: "subsystem", Started: c.Now(),
		}
	}
	check(t, s.ReportSessions(ctx, a, full))
}

func kill(session string) *accessdv1.Instruction {
	return &accessdv1.Instruction{What: &accessdv1.Instruction_KillSession{KillSession: &accessdv1.KillSession{Session: session}}}
}

func TestInstructions(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	a, b := names.NewNodeID(), names.NewNodeID()
	for _, session := range []string{"1", "2"} {
		check(t, s.PutInstruction(ctx, a, kill(session), time.Hour))
	}
	check(t, s.PutInstruction(ctx, b, kill("not for a"), time.Hour))
	boom, done := errors.New("boom"), errors.New("done")
	err := s.WatchInstructions(ctx, a, func(*accessdv1.Instruction) error { return boom })
	if !errors.Is(err, boom) {
		t.Errorf("WatchInstructions = %v, want its function's error", err)
	}
	var got []string
	err = s.WatchInstructions(ctx, a, func(in *accessdv1.Instruction) error {
		got = append(got, in.GetKillSession().GetSession())
		if len(got) == 2 {
			return s.PutInstruction(ctx, a, kill("3"), time.Hour)
		}
		if len(got) == 3 {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) || strings.Join(got, " ") != "1 2 3" {
		t.Errorf("instructions were %q, %v, want 1, 2 and 3, the first again since it had failed", got, err)
	}
	got = nil
	err = s.WatchInstructions(ctx, a, func(in *accessdv1.Instruction) error {
		got = append(got, in.GetKillSession().GetSession())
		return done
	})
	if !errors.Is(err, done) || strings.Join(got, " ") != "3" {
		t.Errorf("instructions were %q, %v, want 3 only: the others are done", got, err)
	}
}
