package authz_test

import (
	"testing"
	"time"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
)

// TestLockOverRules: a lock keeps out whom the rules let in, with its own words, and
// whom they do not let in hears nothing of it. It is asked about each time, for it
// expires.
func TestLockOverRules(t *testing.T) {
	p := newPolicy()
	roles := services.BuiltinRoles()
	id := p.give("alice", roles[1]) // admin
	u := p.users["alice"]
	u.Logins = append(u.Logins, "root")
	p.users["alice"] = u
	now := time.Unix(1000, 0)
	e, err := authz.New(authz.Config{Policy: p, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	lock := services.Lock{ID: services.NewLockID(), Message: "stolen", Expires: time.Unix(2000, 0)}
	var asked services.Subject
	p.locked = func(s services.Subject, at time.Time) (services.Lock, bool) {
		asked = s
		return lock, lock.Active(at)
	}
	n := authz.NodeView{ID: "0b9fdd2a-6a1c-4d8a-9d3c-0f7f1c9f3c11", Name: "n1"}
	questions := map[string]func() authz.Decision{
		"decide": func() authz.Decision {
			return e.Decide(authz.Request{Identity: id, Node: n, Login: "root", Action: authz.ActionShell})
		},
		"reach":    func() authz.Decision { return e.Reach(id, n) },
		"resource": func() authz.Decision { return e.Resource(id, "users", "read") },
	}
	for name, ask := range questions {
		d := ask()
		if d.Allow || d.LockID() != string(lock.ID) || services.LockOf(d.Err("anything")) != lock.ID || fault.Public(d.Err("anything")) != lock.Sentence() {
			t.Errorf("%s = %+v, want a refusal by the lock", name, d)
		}
		if asked.Identity != id {
			t.Errorf("%s asks about %v", name, asked.Identity)
		}
	}
	questions["decide"]()
	if asked.Login != "root" || asked.Node != n.ID || asked.NodeName != n.Name {
		t.Errorf("the lock is asked about %+v, want login and node", asked)
	}
	if d := e.Decide(authz.Request{Identity: id, Node: n, Login: "nobody", Action: authz.ActionShell}); d.Allow || d.Lock != nil {
		t.Errorf("what the rules refuse = %+v, want no word of a lock", d)
	}
	now = time.Unix(2000, 0)
	for name, ask := range questions {
		if d := ask(); !d.Allow || d.Err("") != nil {
			t.Errorf("%s = %+v once the lock has expired", name, d)
		}
	}
}

// TestStrictLocks: where the view of the locks is stale, a role that wants a fresh
// one grants nothing, and the others what they do.
func TestStrictLocks(t *testing.T) {
	p := newPolicy()
	strict := services.Role{Name: "strict", Allow: []services.Rule{{Nodes: selector(t, map[string][]string{"a": {"b"}}), Logins: []string{"root"}, Actions: []string{"*"}}}}
	strict.Options.Locks = services.LocksStrict
	loose := services.Role{Name: "loose", Allow: []services.Rule{{Nodes: selector(t, map[string][]string{"c": {"d"}}), Logins: []string{"root"}, Actions: []string{"*"}}}}
	id := p.give("alice", strict, loose)
	e := engine(t, p)
	for _, stale := range []bool{false, true, false} {
		p.stale = stale
		for key, want := range map[string]bool{"a": !stale, "c": true} {
			value := map[string]string{"a": "b", "c": "d"}[key]
			d := e.Decide(authz.Request{Identity: id, Login: "root", Action: authz.ActionShell, Node: authz.NodeView{Name: "n1", Labels: map[string]string{key: value}}})
			if d.Allow != want {
				t.Errorf("stale %v, node %s=%s: %+v, want allow %v", stale, key, value, d, want)
			}
		}
	}
}
