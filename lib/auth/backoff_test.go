package auth

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// A clock is a time that a test sets.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 3, 1, 9, 30, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

var (
	here  = sourceOf(netip.MustParseAddr("203.0.113.7"))
	there = sourceOf(netip.MustParseAddr("198.51.100.9"))
)

// fail makes n failed tries and returns how many were let in.
func fail(b *backoff, user names.UserName, from netip.Prefix, n int) (allowed int) {
	for range n {
		if _, err := b.try(user, from, false); err == nil {
			allowed++
		}
	}
	return allowed
}

// TestGuesserHasToWait: F38, brute force. The wait grows with every failure,
// holds the guesser only, and ends.
func TestGuesserHasToWait(t *testing.T) {
	c := newClock()
	b := newBackoff(c.Now)
	if got := fail(b, "alice", here, 100); got != pairGate.free {
		t.Fatalf("%d tries at once were let in, want %d", got, pairGate.free)
	}
	var waits []time.Duration
	for range 5 {
		waited := time.Duration(0)
		for fail(b, "alice", here, 1) == 0 {
			c.advance(time.Second)
			waited += time.Second
		}
		waits = append(waits, waited)
	}
	for i := 1; i < len(waits); i++ {
		if waits[i] != 2*waits[i-1] {
			t.Errorf("waits = %v, want each twice the one before", waits)
		}
	}
	if fail(b, "alice", there, 1) != 1 {
		t.Error("another place has to wait with the guesser")
	}
	if fail(b, "bob", here, 1) != 1 {
		t.Error("another person at the guesser's place has to wait for what was not theirs")
	}
	c.advance(24 * time.Hour)
	if got := fail(b, "alice", here, 100); got != pairGate.free {
		t.Errorf("a day later %d tries were let in, want %d", got, pairGate.free)
	}
}

func TestGuesserReadsHowLong(t *testing.T) {
	c := newClock()
	b := newBackoff(c.Now)
	fail(b, "alice", here, 10)
	_, err := b.try("alice", here, false)
	if !fault.Is(err, fault.Denied) || fault.Public(err) != "too many failed sign-ins" || fault.Hint(err) != "try again in 10s" {
		t.Errorf("try = %v (hint %q), want a denial that says when to try again", err, fault.Hint(err))
	}
}

// TestGuessersCannotKeepThePersonOut: many places that guess one person's
// password hold back each other, but not who proves a key the person used
// before, and nobody for more than half a minute.
func TestGuessersCannotKeepThePersonOut(t *testing.T) {
	c := newClock()
	b := newBackoff(c.Now)
	allowed := 0
	for i := range 200 {
		allowed += fail(b, "alice", sourceOf(netip.AddrFrom4([4]byte{10, 0, byte(i), 1})), 1)
	}
	if allowed != userGate.free {
		t.Errorf("%d guesses from 200 places were let in, want %d", allowed, userGate.free)
	}
	if _, err := b.try("alice", here, false); err == nil {
		t.Error("a new place with an unknown key does not have to wait")
	}
	if _, err := b.try("alice", here, true); err != nil {
		t.Errorf("a known key has to wait: %v", err)
	}
	c.advance(userGate.most)
	if _, err := b.try("alice", there, false); err != nil {
		t.Errorf("after %v a new place still has to wait: %v", userGate.most, err)
	}
}

// TestSprayerHasToWait: one place that tries many names is held for all of them.
func TestSprayerHasToWait(t *testing.T) {
	c := newClock()
	b := newBackoff(c.Now)
	allowed := 0
	for i := range 500 {
		allowed += fail(b, names.UserName(fmt.Sprintf("u%d", i)), here, 1)
	}
	if allowed != sourceGate.free {
		t.Errorf("%d names were tried from one place, want %d", allowed, sourceGate.free)
	}
}

// TestSuccessForgives: who signs in has no failures, and a place from which
// everybody signs in never has to wait.
func TestSuccessForgives(t *testing.T) {
	c := newClock()
	b := newBackoff(c.Now)
	for i := range 200 {
		acquit, err := b.try(names.UserName(fmt.Sprintf("u%d", i)), here, false)
		if err != nil {
			t.Fatalf("sign-in %d: %v", i, err)
		}
		acquit()
	}
	fail(b, "alice", here, pairGate.free-1)
	acquit, err := b.try("alice", here, false)
	if err != nil {
		t.Fatal(err)
	}
	acquit()
	if got := fail(b, "alice", here, 100); got != pairGate.free {
		t.Errorf("after a good sign-in %d tries were let in, want %d", got, pairGate.free)
	}
}

// TestTriesAtOnceCount: a guesser who asks a hundred times in parallel gets no
// more than one who waits for each answer.
func TestTriesAtOnceCount(t *testing.T) {
	c := newClock()
	b := newBackoff(c.Now)
	var wg sync.WaitGroup
	var allowed atomic.Int64
	for range 100 {
		wg.Go(func() { allowed.Add(int64(fail(b, "alice", here, 1))) })
	}
	wg.Wait()
	if got := allowed.Load(); got != int64(pairGate.free) {
		t.Errorf("%d of 100 tries at once were let in, want %d", got, pairGate.free)
	}
}

func TestSourceOf(t *testing.T) {
	for _, c := range []struct{ addr, want string }{
		{"203.0.113.7", "203.0.113.7/32"},
		{"::ffff:203.0.113.7", "203.0.113.7/32"},
		{"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"},
		{"fe80::1%eth0", "fe80::/64"},
	} {
		if got := sourceOf(netip.MustParseAddr(c.addr)); got.String() != c.want {
			t.Errorf("sourceOf(%s) = %v, want %s", c.addr, got, c.want)
		}
	}
	if got := sourceOf(netip.Addr{}); got.IsValid() {
		t.Errorf("sourceOf(nobody) = %v, want the zero prefix", got)
	}
}
