package auth

import (
	"testing"
	"time"

	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/srv/listener"
)

func park(t *testing.T, l *lobby, owner string) *signIn {
	t.Helper()
	s := &signIn{owner: owner, source: here}
	if err := l.admit(s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLobbyIsBounded(t *testing.T) {
	c := newClock()
	l := newLobby(c.Now, 3, 2)
	first := park(t, l, "p")
	park(t, l, "p")
	if err := l.admit(&signIn{source: here}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a third from one source = %v, want unavailable", err)
	}
	if err := l.admit(&signIn{source: there}); err != nil {
		t.Errorf("another source: %v", err)
	}
	if err := l.admit(&signIn{source: listener.SourceOf(there.Addr().Next())}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a fourth in all = %v, want unavailable", err)
	}
	l.forget(first)
	l.forget(first) // twice is once
	park(t, l, "p")
	c.advance(defaults.SignInTimeout)
	park(t, l, "p") // the forgotten make room
	if len(l.waiting) != 1 || len(l.perSource) != 1 {
		t.Errorf("%d sign-ins from %d sources wait, want 1", len(l.waiting), len(l.perSource))
	}
}

func TestLobbyTake(t *testing.T) {
	c := newClock()
	l := newLobby(c.Now, 10, 10)
	s := park(t, l, "proxy-1")
	if _, err := l.take(s.id, "proxy-2"); !fault.Is(err, fault.NotFound) {
		t.Errorf("another proxy's take = %v, want not found", err)
	}
	if got, err := l.take(s.id, "proxy-1"); got != s || err != nil {
		t.Fatalf("take = %v, %v", got, err)
	}
	if _, err := l.take(s.id, "proxy-1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("take of a taken one = %v, want not found", err)
	}
	l.putBack(s)
	c.advance(defaults.SignInTimeout - time.Second)
	if _, err := l.take(s.id, "proxy-1"); err != nil {
		t.Errorf("take in the last second: %v", err)
	}
	l.putBack(s)
	c.advance(time.Second)
	if _, err := l.take(s.id, "proxy-1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("take after its time = %v, want not found", err)
	}
	l.sweep()
	if len(l.waiting) != 0 || len(l.perSource) != 0 {
		t.Errorf("after the sweep %d sign-ins from %d sources wait", len(l.waiting), len(l.perSource))
	}
}

func TestGrantsWorkOnceAndForAMinute(t *testing.T) {
	c := newClock()
	g := newGrants(c.Now, 2)
	first, second := g.add(grant{owner: "proxy-1", user: "alice"}), g.add(grant{owner: "proxy-1", user: "bob"})
	if extra := g.add(grant{owner: "proxy-1"}); extra != "" {
		t.Error("a grant beyond the bound was given")
	}
	if _, err := g.take(first, "proxy-2"); !fault.Is(err, fault.Denied) {
		t.Errorf("another proxy's take = %v, want denied", err)
	}
	if got, err := g.take(first, "proxy-1"); err != nil || got.user != "alice" {
		t.Errorf("take = %+v, %v, want alice's", got, err)
	}
	if _, err := g.take(first, "proxy-1"); !fault.Is(err, fault.Denied) {
		t.Errorf("second take = %v, want denied", err)
	}
	if _, err := g.take("", "proxy-1"); !fault.Is(err, fault.Denied) {
		t.Errorf("take of nothing = %v, want denied", err)
	}
	c.advance(grantTTL)
	if _, err := g.take(second, "proxy-1"); !fault.Is(err, fault.Denied) {
		t.Errorf("take after its time = %v, want denied", err)
	}
	g.sweep()
	if len(g.open) != 0 {
		t.Errorf("%d grants are left after the sweep", len(g.open))
	}
}
