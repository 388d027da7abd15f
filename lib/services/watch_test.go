package services_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/backend/backendtest"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

func sortedStrings(in []string) []string {
	slices.Sort(in)
	return in
}

// show returns an update in one line: "reset +role/a -user/b synced".
func show(u *accessdv1.PolicyUpdate) string {
	var out []string
	if u.GetReset_() {
		out = append(out, "reset")
	}
	for _, r := range u.GetPut() {
		out = append(out, "+"+r.GetKey().GetKind()+"/"+r.GetKey().GetName())
	}
	for _, k := range u.GetRemove() {
		out = append(out, "-"+k.GetKind()+"/"+k.GetName())
	}
	if u.GetSynced() {
		out = append(out, "synced")
	}
	return strings.Join(out, " ")
}

var errEnough = errors.New("seen enough")

// watch runs steps, each after the next update, and returns all updates.
func watch(t *testing.T, s *services.Store, kinds []string, steps ...func()) (updates []*accessdv1.PolicyUpdate) {
	t.Helper()
	err := s.Watch(t.Context(), kinds, func(u *accessdv1.PolicyUpdate) error {
		updates = append(updates, u)
		if len(updates) > len(steps) {
			return errEnough
		}
		steps[len(updates)-1]()
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatalf("Watch = %v", err)
	}
	return updates
}

func TestWatch(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	_, err := s.CreateUser(ctx, services.User{Name: "alice"}, services.Credentials{})
	check(t, err)
	check(t, s.ApplyRoles(ctx, []services.Role{role("a", "exec")}))
	n := admit(t, s, node("n"))
	updates := watch(t, s, nil,
		func() { check(t, s.ApplyRoles(ctx, []services.Role{role("b", "exec"), role("c", "exec")})) },
		func() { check(t, s.DeleteUser(ctx, "alice")) },
		func() {
			_, _, err := s.Announce(ctx, services.Announcement{Proxy: services.Proxy{ID: n.ID}, Full: true, Up: []names.NodeID{n.ID}})
			check(t, err)
		},
		func() {}, func() { check(t, s.DeleteNode(ctx, n.ID)) },
	)
	var got []string
	for _, u := range updates {
		got = append(got, strings.ReplaceAll(show(u), string(n.ID), "ID"))
	}
	want := []string{
		"reset +node/ID +role/a +user/alice synced", "+role/b +role/c", "-user/alice",
		"+proxy/ID", "+presence/ID/ID", "-node/ID",
	}
	if !slices.Equal(got, want) {
		t.Errorf("Watch told %q, want %q", got, want)
	}
}

func TestWatchKinds(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	check(t, s.ApplyRoles(ctx, []services.Role{role("a", "exec")}))
	admit(t, s, node("n"))
	updates := watch(t, s, []string{services.KindRole, services.KindUser}, func() {
		admit(t, s, node("m"))
		check(t, s.CreateCA(ctx, services.CA{Type: sshca.TypeHost}))
		check(t, s.DeleteRole(ctx, "a"))
	})
	if got, want := show(updates[0])+", "+show(updates[1]), "reset +role/a synced, -role/a"; got != want {
		t.Errorf("Watch told %q, want %q", got, want)
	}
	updates = watch(t, s, []string{services.KindNode})
	if got := show(updates[0]); strings.Count(got, "+node/") != 2 || strings.Count(got, "+") != 2 {
		t.Errorf("Watch told %q, want two nodes", got)
	}
	wantKind(t, "Watch of no kind", s.Watch(ctx, []string{"credential"}, nil), fault.BadInput)
}

// No secret can be on a stream: neither hashes nor sealed keys nor tokens.
func TestWatchIsPublic(t *testing.T) {
	s, c := newStore(t)
	ctx := t.Context()
	const marker = "marker"
	secret := services.Credentials{PasswordHash: marker, TOTPSecret: []byte(marker), InviteHash: marker}
	_, err := s.CreateUser(ctx, services.User{Name: "alice"}, secret)
	check(t, err)
	sealed := []services.CAKey{{Public: "ssh-ed25519 AAAA", Sealed: []byte(marker)}}
	check(t, s.CreateCA(ctx, services.CA{Type: sshca.TypeUser, Keys: sealed}))
	check(t, s.CreateCA(ctx, services.CA{Type: services.AuditCA, Keys: sealed}))
	check(t, s.CreateToken(ctx, services.Token{ID: "t", SecretHash: marker, Role: "node", UsesLeft: 1, Expires: c.Now().Add(time.Hour)}))
	check(t, s.ReportSessions(ctx, names.NewNodeID(), []services.LiveSession{{Client: marker}}))
	updates := watch(t, s, nil, func() {
		ca, err := s.CA(ctx, sshca.TypeUser)
		check(t, err)
		_, err = s.UpdateCA(ctx, ca)
		check(t, err)
	})
	if got, want := show(updates[0])+", "+show(updates[1]), "reset +ca/user +user/alice synced, +ca/user"; got != want {
		t.Errorf("Watch told %q, want %q", got, want)
	}
	for _, u := range updates {
		if all := u.String(); strings.Contains(all, marker) || strings.Contains(all, "bWFya2Vy") {
			t.Errorf("a secret is on the stream: %s", all)
		}
	}
}

// A policy larger than a message comes in several; reset is on the first and
// synced on the last.
func TestWatchInParts(t *testing.T) {
	s, _ := newStore(t)
	const users = 40
	for i := range users {
		u := services.User{Name: names.UserName(fmt.Sprintf("u%02d", i)), Traits: map[string][]string{}}
		for k := range 30 {
			for v := range 20 {
				u.Traits[fmt.Sprint("t", k)] = append(u.Traits[fmt.Sprint("t", k)], fmt.Sprint(strings.Repeat("x", 20), v))
			}
		}
		_, err := s.CreateUser(t.Context(), u, services.Credentials{})
		check(t, err)
	}
	var puts, parts int
	check2 := func(u *accessdv1.PolicyUpdate) error {
		if u.GetReset_() != (parts == 0) {
			t.Errorf("part %d has reset %v", parts, u.GetReset_())
		}
		parts++
		puts += len(u.GetPut())
		if u.GetSynced() {
			return errEnough
		}
		return nil
	}
	if err := s.Watch(t.Context(), nil, check2); !errors.Is(err, errEnough) || parts < 2 || puts != users {
		t.Errorf("Watch = %v with %d users in %d parts, want %d in several", err, puts, parts, users)
	}
}

// A function that is slow makes nothing wait without bound: it misses no state,
// since it is told anew.
func TestWatchBehindBeginsAnew(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	resets, slow, last := 0, false, ""
	err := s.Watch(ctx, []string{services.KindUser}, func(u *accessdv1.PolicyUpdate) error {
		if u.GetReset_() {
			resets++
		}
		for _, r := range u.GetPut() {
			last = string(r.GetJson())
		}
		if resets == 1 && len(u.GetPut()) == 1 && !slow { // the first change: be slow over 2000 more
			slow = true
			alice, err := s.User(ctx, "alice")
			for i := 0; i < 2000 && err == nil; i++ {
				alice.Logins = []names.Login{names.Login(fmt.Sprintf("l%d", i))}
				alice, err = s.UpdateUser(ctx, alice)
			}
			return err
		}
		if resets == 1 && u.GetSynced() {
			_, err := s.CreateUser(ctx, services.User{Name: "alice"}, services.Credentials{})
			return err
		}
		if resets == 2 {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) || !strings.Contains(last, "l1999") {
		t.Errorf("Watch = %v and ends with %s, want it to begin anew with the newest", err, last)
	}
}

// On a cluster whose members stop in turn and which forgets its history, a Cache
// that follows ends with what the Store has.
func TestCacheFollowsThroughRestartsAndCompaction(t *testing.T) {
	cluster := backendtest.StartCluster(t)
	b := cluster.Open(t)
	s := services.NewStore(b, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cache := services.NewCache()
	var g errgroup.Group
	g.Go(func() error {
		return cache.Run(ctx, func(ctx context.Context, fn func(*accessdv1.PolicyUpdate) error) error {
			return s.Watch(ctx, nil, fn)
		})
	})
	<-cache.Synced()
	const each = 15
	for round := range 3 {
		cluster.Stop(round)
		for i := range each {
			name := names.RoleName(fmt.Sprintf("r%d-%d", round, i))
			for { // fails while a leader is elected, and may have happened all the same
				err := s.ApplyRoles(ctx, []services.Role{role(name, "exec")})
				if err == nil || fault.Is(err, fault.Conflict) {
					break
				}
				wantKind(t, "ApplyRoles", err, fault.Unavailable)
			}
		}
		r, err := s.Role(ctx, names.RoleName(fmt.Sprintf("r%d-%d", round, each-1)))
		check(t, err)
		check(t, cluster.Compact(ctx, r.Revision))
		cluster.StartAll(t)
	}
	for {
		changed := cache.Changed()
		if len(cache.Roles()) == 3*each {
			break
		}
		select {
		case <-changed:
		case <-time.After(30 * time.Second):
			t.Fatalf("the cache has %d roles, want %d", len(cache.Roles()), 3*each)
		}
	}
	cancel()
	check(t, g.Wait())
}
