package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/backend/backendtest"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/listener"
)

// A clock is a time that a test sets.
type clock struct {
	mu    sync.Mutex
	now   time.Time
	asked func() // nil, or called whenever somebody asks
}

func newClock() *clock { return &clock{now: time.Date(2026, 3, 1, 9, 30, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	now, asked := c.now, c.asked
	c.mu.Unlock()
	if asked != nil {
		asked()
	}
	return now
}

// whenAsked has fn called whenever somebody asks for the time; nil ends that.
func (c *clock) whenAsked(fn func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = fn
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

var (
	here  = listener.SourceOf(netip.MustParseAddr("203.0.113.7"))
	there = listener.SourceOf(netip.MustParseAddr("198.51.100.9"))
)

// fail makes n failed tries and returns how many were let in.
func fail(b *backoff, user names.UserName, from netip.Prefix, n int) (allowed int) {
	for range n {
		if _, err := b.try(context.Background(), user, from, false); err == nil {
			allowed++
		}
	}
	return allowed
}

// TestGuesserHasToWait: F38, brute force. The wait grows with every failure,
// holds the guesser only, and ends.
func TestGuesserHasToWait(t *testing.T) {
	c := newClock()
	b := newBackoff("sign-in", nil, c.Now, zap.NewNop())
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
	b := newBackoff("sign-in", nil, c.Now, zap.NewNop())
	fail(b, "alice", here, 10)
	_, err := b.try(context.Background(), "alice", here, false)
	if !fault.Is(err, fault.Denied) || fault.Public(err) != "too many failed sign-ins" || fault.Hint(err) != "try again in 10s" {
		t.Errorf("try = %v (hint %q), want a denial that says when to try again", err, fault.Hint(err))
	}
}

// TestGuessersCannotKeepThePersonOut: many places that guess one person's
// password hold back each other, but not who proves a key the person used
// before, and nobody for more than half a minute.
func TestGuessersCannotKeepThePersonOut(t *testing.T) {
	c := newClock()
	b := newBackoff("sign-in", nil, c.Now, zap.NewNop())
	allowed := 0
	for i := range 200 {
		allowed += fail(b, "alice", listener.SourceOf(netip.AddrFrom4([4]byte{10, 0, byte(i), 1})), 1)
	}
	if allowed != userGate.free {
		t.Errorf("%d guesses from 200 places were let in, want %d", allowed, userGate.free)
	}
	if _, err := b.try(context.Background(), "alice", here, false); err == nil {
		t.Error("a new place with an unknown key does not have to wait")
	}
	if _, err := b.try(context.Background(), "alice", here, true); err != nil {
		t.Errorf("a known key has to wait: %v", err)
	}
	c.advance(userGate.most)
	if _, err := b.try(context.Background(), "alice", there, false); err != nil {
		t.Errorf("after %v a new place still has to wait: %v", userGate.most, err)
	}
}

// TestSprayerHasToWait: one place that tries many names is held for all of them.
func TestSprayerHasToWait(t *testing.T) {
	c := newClock()
	b := newBackoff("sign-in", nil, c.Now, zap.NewNop())
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
	b := newBackoff("sign-in", nil, c.Now, zap.NewNop())
	for i := range 200 {
		acquit, err := b.try(context.Background(), names.UserName(fmt.Sprintf("u%d", i)), here, false)
		if err != nil {
			t.Fatalf("sign-in %d: %v", i, err)
		}
		acquit()
	}
	fail(b, "alice", here, pairGate.free-1)
	acquit, err := b.try(context.Background(), "alice", here, false)
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
	b := newBackoff("sign-in", nil, c.Now, zap.NewNop())
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
		if got := listener.SourceOf(netip.MustParseAddr(c.addr)); got.String() != c.want {
			t.Errorf("listener.SourceOf(%s) = %v, want %s", c.addr, got, c.want)
		}
	}
	if got := listener.SourceOf(netip.Addr{}); got.IsValid() {
		t.Errorf("listener.SourceOf(nobody) = %v, want the zero prefix", got)
	}
}

// A guarded store counts what it is asked, and is away when told so.
type guarded struct {
	guessStore

	away           atomic.Bool
	reads, changes atomic.Int64
}

var errAway = fault.Wrap(fault.Unavailable, errors.New("no leader"), "the state store is away")

func (g *guarded) GuessKey(ctx context.Context) ([]byte, error) {
	if g.away.Load() {
		return nil, errAway
	}
	return g.guessStore.GuessKey(ctx)
}

func (g *guarded) Guesses(ctx context.Context, ids ...string) ([]services.Guesses, error) {
	g.reads.Add(1)
	if g.away.Load() {
		return nil, errAway
	}
	return g.guessStore.Guesses(ctx, ids...)
}

func (g *guarded) UpdateGuesses(ctx context.Context, ids []string, change func([]services.Guesses) error) error {
	g.changes.Add(1)
	if g.away.Load() {
		return errAway
	}
	return g.guessStore.UpdateGuesses(ctx, ids, change)
}

// authorities returns the counters of n authorities on one store, and the store.
func authorities(t *testing.T, n int) (*clock, *guarded, []*backoff) {
	t.Helper()
	c := newClock()
	store := &guarded{guessStore: services.NewStore(backendtest.Open(t), c.Now)}
	list := make([]*backoff, n)
	for i := range list {
		list[i] = newBackoff("sign-in", store, c.Now, zap.NewNop())
	}
	return c, store, list
}

// TestGuesserGoesFromAuthorityToAuthority: F08 with two of them. Going back and
// forth gains one try, once; waiting for one to start anew gains none.
func TestGuesserGoesFromAuthorityToAuthority(t *testing.T) {
	c, store, as := authorities(t, 2)
	allowed := 0
	for i := range 100 {
		allowed += fail(as[i%2], "alice", here, 1)
	}
	if most := pairGate.free + len(as) - 1; allowed < pairGate.free || allowed > most {
		t.Errorf("%d tries were let in, want %d to %d", allowed, pairGate.free, most)
	}
	anew := newBackoff("sign-in", store, c.Now, zap.NewNop())
	if fail(anew, "alice", here, 1) != 0 {
		t.Error("an authority that starts anew has forgotten")
	}
	if fail(anew, "alice", there, 1) != 1 || fail(anew, "bob", here, 1) != 1 {
		t.Error("others have to wait with the guesser")
	}
	for range 5 { // each wait is for both, and twice as long as the one before
		before := c.Now()
		for fail(as[0], "alice", here, 1)+fail(as[1], "alice", here, 1) == 0 {
			c.advance(10 * time.Second)
		}
		if waited := c.Now().Sub(before); waited < pairGate.base {
			t.Errorf("a further try after %v, want at least %v", waited, pairGate.base)
		}
	}
	if waited := c.Now().Sub(newClock().Now()); waited < (1+2+4+8)*pairGate.base {
		t.Errorf("five more tries took %v, want at least %v", waited, 15*pairGate.base)
	}
}

// TestTriesAtOnceCountAtEveryAuthority: nor do many at the same time gain any.
func TestTriesAtOnceCountAtEveryAuthority(t *testing.T) {
	_, _, as := authorities(t, 2)
	var wg sync.WaitGroup
	var allowed atomic.Int64
	for i := range 60 {
		wg.Go(func() { allowed.Add(int64(fail(as[i%2], "alice", here, 1))) })
	}
	wg.Wait()
	if got, most := int(allowed.Load()), pairGate.free+len(as)-1; got > most {
		t.Errorf("%d of 60 tries at once were let in, want at most %d", got, most)
	}
}

// TestGuessesAreCheapForTheStore: who has to wait is refused without it, and who
// signs in at once changes nothing there.
func TestGuessesAreCheapForTheStore(t *testing.T) {
	c, store, as := authorities(t, 1)
	for i := range 20 {
		acquit, err := as[0].try(t.Context(), names.UserName(fmt.Sprintf("u%d", i)), here, false)
		if err != nil {
			t.Fatal(err)
		}
		acquit()
	}
	if n := store.changes.Load(); n != 0 {
		t.Errorf("20 good sign-ins changed the store %d times, want never", n)
	}
	fail(as[0], "alice", here, pairGate.free)
	reads, changes := store.reads.Load(), store.changes.Load()
	if changes > int64(pairGate.free) {
		t.Errorf("%d failures changed the store %d times", pairGate.free, changes)
	}
	fail(as[0], "alice", here, 1000)
	if r, w := store.reads.Load()-reads, store.changes.Load()-changes; r > 1 || w != 0 {
		t.Errorf("1000 refused tries asked the store %d times and changed it %d times", r, w)
	}
	before := store.changes.Load()
	for range 5 { // somebody who gets it wrong once a day
		c.advance(24 * time.Hour)
		fail(as[0], "bob", there, 1)
	}
	if n := store.changes.Load() - before; n != 0 {
		t.Errorf("a failure a day changed the store %d times", n)
	}
}

// TestSuccessForgivesEverywhere: who signs in at one authority need not wait at
// another for what they got wrong there.
func TestSuccessForgivesEverywhere(t *testing.T) {
	c, _, as := authorities(t, 2)
	fail(as[0], "alice", here, pairGate.free-1)
	acquit, err := as[1].try(t.Context(), "alice", here, false)
	if err != nil {
		t.Fatal(err)
	}
	acquit()
	c.advance(verdictTime)
	if got := fail(as[0], "alice", here, 100); got != pairGate.free {
		t.Errorf("after a good sign-in elsewhere %d tries were let in, want %d", got, pairGate.free)
	}
}

// TestStoreThatIsAway: each authority goes on alone, nobody waits for nothing, no
// guess is free, and what was counted meanwhile is the cluster's afterwards.
func TestStoreThatIsAway(t *testing.T) {
	c, store, as := authorities(t, 2)
	fail(as[0], "zoe", there, 1) // it has the cluster's key
	fail(as[1], "zoe", there, 1)
	store.away.Store(true)
	if got := fail(as[0], "alice", here, 100); got != pairGate.free {
		t.Errorf("without the store %d tries were let in, want %d", got, pairGate.free)
	}
	acquit, err := as[0].try(t.Context(), "bob", there, false)
	if err != nil {
		t.Fatalf("somebody without failures has to wait: %v", err)
	}
	acquit()
	c.advance(pairGate.base)
	store.away.Store(false)
	if fail(as[0], "alice", here, 1) != 1 {
		t.Error("the wait does not end")
	}
	if fail(as[1], "alice", here, 1) != 0 {
		t.Error("the other authority was not told of what was counted meanwhile")
	}
}

// TestClockThatIsAhead: an authority whose clock is wrong has nobody wait at the
// others for longer than the gate says.
func TestClockThatIsAhead(t *testing.T) {
	c, store, as := authorities(t, 1)
	ahead := newBackoff("sign-in", store, func() time.Time { return c.Now().Add(48 * time.Hour) }, zap.NewNop())
	fail(ahead, "alice", here, pairGate.free)
	if fail(as[0], "alice", here, 1) != 0 {
		t.Fatal("what the other counted does not count")
	}
	_, err := as[0].try(t.Context(), "alice", here, false)
	if fault.Hint(err) != "try again in 10s" {
		t.Errorf("hint = %q, want 10s", fault.Hint(err))
	}
}
