package services_test

import (
	"net/netip"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

const (
	lockNode    names.NodeID = "0b9fdd2a-6a1c-4d8a-9d3c-0f7f1c9f3c11"
	lockRequest string       = "0195510c-9a40-7bb2-8c51-0b5e6f1f2a11"
)

// subject is alice on n1 as root, with everything a lock may be about.
func subject() services.Subject {
	return services.Subject{
		Identity: &sshca.Identity{
			Kind: sshca.KindUser, User: "alice", Roles: []names.RoleName{"access"}, Serial: 7,
			Requests: []string{lockRequest}, Addr: netip.MustParseAddr("::ffff:203.0.113.7"),
		},
		Login: "root", Node: lockNode, NodeName: "n1",
	}
}

func lockOn(t services.LockTarget) services.Lock {
	return services.Lock{ID: services.NewLockID(), Target: t, Message: "stolen", Created: time.Unix(1, 0).UTC()}
}

// TestLockTargets: a lock is about whom all that it says is true of, and a question
// that does not say where or as whom is not about a place or an account.
func TestLockTargets(t *testing.T) {
	now := time.Unix(1000, 0)
	for name, c := range map[string]struct {
		target services.LockTarget
		change func(*services.Subject) // makes it somebody else
	}{
		"user":         {services.LockTarget{User: "alice"}, func(s *services.Subject) { s.Identity.User = "bob" }},
		"role":         {services.LockTarget{Role: "access"}, func(s *services.Subject) { s.Identity.Roles = nil }},
		"login":        {services.LockTarget{Login: "root"}, func(s *services.Subject) { s.Login = "" }},
		"node":         {services.LockTarget{Node: "n1"}, func(s *services.Subject) { s.NodeName = "" }},
		"node id":      {services.LockTarget{NodeID: lockNode}, func(s *services.Subject) { s.Node = "" }},
		"node's name":  {services.LockTarget{Node: "n1", NodeID: "1b9fdd2a-6a1c-4d8a-9d3c-0f7f1c9f3c11"}, func(s *services.Subject) { s.NodeName = "n2" }},
		"node's id":    {services.LockTarget{Node: "n0", NodeID: lockNode}, func(s *services.Subject) { s.Node = "" }},
		"address":      {services.LockTarget{Address: netip.MustParsePrefix("203.0.113.7/32")}, func(s *services.Subject) { s.Identity.Addr = netip.MustParseAddr("203.0.113.8") }},
		"network":      {services.LockTarget{Address: netip.MustParsePrefix("203.0.0.0/16")}, func(s *services.Subject) { s.Identity.Addr = netip.Addr{} }},
		"serial":       {services.LockTarget{Serial: 7}, func(s *services.Subject) { s.Identity.Serial = 0 }},
		"request":      {services.LockTarget{Request: lockRequest}, func(s *services.Subject) { s.Identity.Requests = nil }},
		"user on node": {services.LockTarget{User: "alice", Node: "n1"}, func(s *services.Subject) { s.NodeName, s.Node = "n2", "" }},
		"role, login":  {services.LockTarget{Role: "access", Login: "root"}, func(s *services.Subject) { s.Login = "deploy" }},
		"all":          {services.LockTarget{User: "alice", Role: "access", Login: "root", Node: "n1", Address: netip.MustParsePrefix("203.0.113.0/24"), Serial: 7, Request: lockRequest}, func(s *services.Subject) { s.Login = "" }},
	} {
		t.Run(name, func(t *testing.T) {
			check(t, c.target.Check())
			cache, l := services.NewCache(), lockOn(c.target)
			other := lockOn(services.LockTarget{User: "somebody-else"})
			check(t, cache.Apply(put(resource(t, services.KindLock, string(other.ID), other), resource(t, services.KindLock, string(l.ID), l))))
			if got, ok := cache.Locked(subject(), now); !ok || got.ID != l.ID {
				t.Errorf("Locked = %v, %v, want the lock", got, ok)
			}
			s := subject()
			c.change(&s)
			if got, ok := cache.Locked(s, now); ok {
				t.Errorf("somebody else is locked out by %v", got)
			}
			if _, ok := cache.Locked(services.Subject{}, now); ok {
				t.Error("nobody is locked out")
			}
			check(t, cache.Apply(remove(key(services.KindLock, string(l.ID)))))
			if got, ok := cache.Locked(subject(), now); ok {
				t.Errorf("locked out by %v, which was removed", got)
			}
		})
	}
}

// TestLockOnAnOrigin: what stands for a certificate is locked with it: by its serial
// number, by a role that it had, by a request.
func TestLockOnAnOrigin(t *testing.T) {
	now := time.Unix(1000, 0)
	for name, target := range map[string]services.LockTarget{
		"serial": {Serial: 4}, "role": {Role: "ops"}, "request": {Request: lockRequest}, "all, and hers": {User: "alice", Serial: 4, Role: "ops", Request: lockRequest},
	} {
		cache, l := services.NewCache(), lockOn(target)
		check(t, cache.Apply(put(resource(t, services.KindLock, string(l.ID), l))))
		s := subject()
		s.Identity.Requests = nil
		if got, ok := cache.Locked(s, now); ok {
			t.Errorf("%s: what stands for itself is locked out by %v", name, got)
		}
		s.Identity.For = sshca.Origin{Serials: []uint64{3, 4}, Roles: []names.RoleName{"ops"}, Requests: []string{lockRequest}}
		if _, ok := cache.Locked(s, now); !ok {
			t.Errorf("%s: what stands for it is not locked out", name)
		}
	}
}

// TestLockOnRole: it is about who holds the role now, too, whatever an older
// certificate says.
func TestLockOnRole(t *testing.T) {
	cache, l := services.NewCache(), lockOn(services.LockTarget{Role: "dba"})
	u := services.User{Name: "alice", Roles: []names.RoleName{"access", "dba"}}
	check(t, cache.Apply(put(resource(t, services.KindUser, "alice", u), resource(t, services.KindLock, string(l.ID), l))))
	if _, ok := cache.Locked(subject(), time.Unix(1000, 0)); !ok {
		t.Error("a person who holds the role is not locked out")
	}
}

// TestLockExpires: by the clock of who asks, to the second.
func TestLockExpires(t *testing.T) {
	cache, l := services.NewCache(), lockOn(services.LockTarget{User: "alice"})
	l.Expires = time.Unix(2000, 0).UTC()
	check(t, cache.Apply(put(resource(t, services.KindLock, string(l.ID), l))))
	for at, want := range map[int64]bool{1999: true, 2000: false, 1 << 40: false} {
		if _, got := cache.Locked(subject(), time.Unix(at, 0)); got != want {
			t.Errorf("at %d: locked %v, want %v", at, got, want)
		}
	}
	if got, want := l.Sentence(), "locked: stolen (until 1970-01-01 00:33:20 UTC)"; got != want {
		t.Errorf("Sentence = %q, want %q", got, want)
	}
	if err := l.Refusal(); services.LockOf(err) != l.ID || fault.Public(err) != l.Sentence() || !fault.Is(err, fault.Denied) {
		t.Errorf("Refusal = %v, of lock %q", err, services.LockOf(err))
	}
	if err := fault.New(fault.Denied, "no"); services.LockOf(err) != "" {
		t.Errorf("LockOf %v = %q", err, services.LockOf(err))
	}
}

// TestLocksOutliveARestart: a member that starts while the authority is away has
// the locks it knew of.
func TestLocksOutliveARestart(t *testing.T) {
	cache, l := services.NewCache(), lockOn(services.LockTarget{User: "alice", Node: "n1"})
	check(t, cache.Apply(&accessdv1.PolicyUpdate{Reset_: true, Synced: true, Put: put(resource(t, services.KindLock, string(l.ID), l)).GetPut()}))
	path := filepath.Join(t.TempDir(), "snapshot")
	check(t, cache.Save(path))
	again := services.NewCache()
	check(t, again.Load(path))
	if got, ok := again.Locked(subject(), time.Unix(1000, 0)); !ok || got.ID != l.ID || got.Message != "stolen" {
		t.Errorf("Locked after Load = %v, %v, want the lock", got, ok)
	}
}

// TestStoreLocks: a lock is kept until it is removed or has expired, and every
// member hears of either.
func TestStoreLocks(t *testing.T) {
	s, clock := newStore(t)
	ctx := t.Context()
	l := lockOn(services.LockTarget{User: "alice"})
	l.Expires = clock.Now().Add(time.Hour)
	l, err := s.CreateLock(ctx, l)
	check(t, err)
	_, err = s.CreateLock(ctx, l)
	wantKind(t, "CreateLock again", err, fault.Conflict)
	_, err = s.CreateLock(ctx, lockOn(services.LockTarget{}))
	wantKind(t, "CreateLock about nothing", err, fault.BadInput)
	got, err := s.Lock(ctx, l.ID)
	want(t, "Lock", got, err, l)
	all, err := s.Locks(ctx)
	want(t, "Locks", all, err, []services.Lock{l})
	updates := watch(t, s, []string{services.KindLock}, func() { check(t, s.DeleteLock(ctx, l.ID)) })
	if last := updates[len(updates)-1]; len(updates[0].GetPut()) != 1 || len(last.GetRemove()) != 1 {
		t.Errorf("updates = %v, want the lock and then its removal", updates)
	}
	wantKind(t, "DeleteLock again", s.DeleteLock(ctx, l.ID), fault.NotFound)
}

// FuzzLockAddress: what is read is one network, which names itself.
func FuzzLockAddress(f *testing.F) {
	for _, s := range []string{"10.0.0.0/8", "10.0.0.1", "::1", "2001:db8::/32", "::ffff:10.0.0.1", "10.0.0.1/8", "fe80::1%eth0", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := services.ParseLockAddress(s)
		if err != nil {
			return
		}
		again, err := services.ParseLockAddress(p.String())
		if err != nil || again != p || (services.LockTarget{Address: p}).Check() != nil {
			t.Errorf("%q is read as %v, and that as %v, %v", s, p, again, err)
		}
	})
}

// TestStaleView: a member that has heard nothing for too long knows it, and whoever
// reads the policy is told to look again; a beat is news enough.
func TestStaleView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cache, beat := services.NewCache(), &accessdv1.PolicyUpdate{}
		if !cache.Stale() {
			t.Error("a view that never was one is fresh")
		}
		check(t, cache.Apply(&accessdv1.PolicyUpdate{Reset_: true, Synced: true}))
		for range 10 {
			<-time.After(services.StaleAfter - time.Second)
			check(t, cache.Apply(beat))
		}
		changed := cache.Changed()
		<-time.After(services.StaleAfter - time.Second)
		select {
		case <-changed:
			t.Error("beats are told as changes")
		default:
		}
		if cache.Stale() {
			t.Errorf("stale a second before %v are over", services.StaleAfter)
		}
		<-changed
		if !cache.Stale() {
			t.Errorf("fresh after %v without a word", services.StaleAfter)
		}
		check(t, cache.Apply(beat))
		if cache.Stale() {
			t.Error("stale after a word")
		}
	})
}

// TestSnapshotIsNoNews: what a member remembers says nothing of what was locked since.
func TestSnapshotIsNoNews(t *testing.T) {
	cache := services.NewCache()
	check(t, cache.Apply(&accessdv1.PolicyUpdate{Reset_: true, Synced: true}))
	path := filepath.Join(t.TempDir(), "snapshot")
	check(t, cache.Save(path))
	again := services.NewCache()
	check(t, again.Load(path))
	if !again.Stale() {
		t.Error("a view from a snapshot is fresh")
	}
}

// TestStrictestLocks: one role that is strict is enough.
func TestStrictestLocks(t *testing.T) {
	for _, c := range [][3]services.LockMode{
		{"", "", ""},
		{"", services.LocksStrict, services.LocksStrict},
		{services.LocksStrict, services.LocksBestEffort, services.LocksStrict},
		{services.LocksBestEffort, services.LocksStrict, services.LocksStrict},
		{services.LocksBestEffort, "", services.LocksBestEffort},
	} {
		a, b := services.RoleOptions{Locks: c[0]}, services.RoleOptions{Locks: c[1]}
		if got := a.Strictest(b).Locks; got != c[2] {
			t.Errorf("strictest of %q and %q = %q, want %q", c[0], c[1], got, c[2])
		}
	}
	list, err := services.ParseRoles("a.yaml", []byte("kind: role\nname: a\nallow:\n  - {nodes: {a: b}, logins: [x], actions: [exec]}\noptions: {locks: strict}\n"))
	if err != nil || len(list) != 1 || list[0].Options.Locks != services.LocksStrict {
		t.Errorf("ParseRoles = %+v, %v, want locks: strict", list, err)
	}
	if _, err := services.ParseRoles("a.yaml", []byte("kind: role\nname: a\nallow:\n  - {nodes: {a: b}, logins: [x], actions: [exec]}\noptions: {locks: loose}\n")); !fault.Is(err, fault.BadInput) {
		t.Errorf("locks: loose = %v, want bad input", err)
	}
}
