package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// A gate makes whoever fails wait: after free failures for base, and twice as
// long after each further one, up to most. Every forgive without a failure
// takes one back.
type gate struct {
	name    string
	free    int
	base    time.Duration
	most    time.Duration
	forgive time.Duration
}

// The gates of a sign-in. The first is strict and holds one guesser at one
// place. The second holds a person's guessers at all places together; it is
// soft, so that they cannot keep the person out: it never asks for more than
// half a minute, and for nothing when the key was proven that the person
// signed in with before. The third holds a place that tries many names.
//
//nolint:gochecknoglobals // constants the language cannot write as such
var (
	pairGate   = gate{name: "pair", free: 4, base: 10 * time.Second, most: 15 * time.Minute, forgive: 10 * time.Minute}
	userGate   = gate{name: "user", free: 20, base: time.Second, most: 30 * time.Second, forgive: time.Minute}
	sourceGate = gate{name: "source", free: 30, base: time.Second, most: 5 * time.Minute, forgive: 20 * time.Second}
)

const (
	// gateSlots is the number of counters of each gate. Names and addresses are
	// hashed onto them with a key of the cluster's: the table, here and in the
	// store, can neither grow nor be flushed by a guesser with many addresses, and
	// the price is that two who share a slot share their failures.
	gateSlots = 1 << 13
	// maxDoublings keeps a gate's shift within its type; every gate is at its most
	// long before.
	maxDoublings = 20
	// maxFailures bounds what is counted, so that a gate forgives within hours.
	maxFailures = 64
	// storeTime is how long a sign-in waits for the store's counters.
	storeTime = time.Second
	// verdictTime is how long it is believed that somebody has to wait before the
	// store is asked again: in that time a guess costs it nothing.
	verdictTime = 2 * time.Second
	// toldFrom is the number of failures of which the store is told. Most people
	// who sign in have none, or one.
	toldFrom = 2
)

// until returns the end of the time in which a counter has everybody wait.
func (g gate) until(c services.Guesses) time.Time {
	over := c.Failures - g.free
	if over < 0 {
		return time.Time{}
	}
	return c.Last.Add(min(g.most, g.base<<min(over, maxDoublings)))
}

// charge counts n failures at now.
func (g gate) charge(c *services.Guesses, n int, now time.Time) {
	c.Failures = min(g.left(c.Failures, now.Sub(c.Last))+n, maxFailures)
	c.Last = now
}

// left returns what is left of n failures when the last is so long past.
func (g gate) left(n int, past time.Duration) int {
	return max(0, n-int(min(max(past, 0)/g.forgive, maxFailures)))
}

// A slot is a counter as this authority knows it: the cluster's when it was last
// read, and what has happened here since.
type slot struct {
	services.Guesses

	owed    int       // failures of which the store was not told,
	counted time.Time // the last of them at this time
	telling int       // those of which it is being told
	read    time.Time // when it was read
}

// guessStore keeps the cluster's counters; *services.Store is one.
type guessStore interface {
	GuessKey(ctx context.Context) ([]byte, error)
	Guesses(ctx context.Context, ids ...string) ([]services.Guesses, error)
	UpdateGuesses(ctx context.Context, ids []string, change func([]services.Guesses) error) error
}

// A backoff counts failed sign-ins and says who has to wait, for the whole cluster:
// a guesser who goes from one authority to the next, or waits for one to start
// anew, gains nothing.
//
// Every failure counts here first, before its try is let in, so that tries at the
// same time count, too. The store is told from a counter's second failure on, in one
// step that also decides when several authorities count at once; so a cluster lets
// in what one authority does, and at most one try more for each further authority.
// Whoever is known to have to wait is refused without asking the store.
//
// When the store does not answer, the counters here go on alone and owe it what
// they have counted: nobody waits for what was not their failure, and no guess is
// free. (Little can be guessed then: passwords are in the same store.)
type backoff struct {
	now   func() time.Time
	kind  string // of what is guessed
	store guessStore
	log   *zap.Logger
	turn  chan struct{} // holds a token while nobody changes the store: sign-ins here need not get into each other's way

	mu     sync.Mutex // guards what follows
	key    []byte     // the cluster's
	shared bool       // it is; else one of this process, until the store answers
	pair   [gateSlots]slot
	user   [gateSlots]slot
	source [gateSlots]slot
}

// newBackoff returns counters of kind; without a store they are this process's own.
func newBackoff(kind string, store guessStore, now func() time.Time, log *zap.Logger) *backoff {
	b := &backoff{now: now, kind: kind, store: store, log: log, turn: make(chan struct{}, 1), key: make([]byte, sha256.Size)}
	b.turn <- struct{}{}
	_, _ = rand.Read(b.key) // never fails
	return b
}

// A counted is one counter that a try is about.
type counted struct {
	gate
	*slot

	id     string
	waives bool // it asks nobody to wait, this time
}

// counters returns those of a try, of the pair first.
func (b *backoff) countersLocked(user names.UserName, source string, known bool) []counted {
	slotOf := func(g gate, table *[gateSlots]slot, text ...string) counted {
		mac := hmac.New(sha256.New, b.key)
		for _, s := range append([]string{b.kind, g.name}, text...) {
			fmt.Fprintf(mac, "%d:%s", len(s), s)
		}
		n := binary.BigEndian.Uint64(mac.Sum(nil)) % gateSlots
		return counted{gate: g, slot: &table[n], id: b.kind + "/" + g.name + "/" + strconv.FormatUint(n, 10)}
	}
	all := slotOf(userGate, &b.user, string(user))
	all.waives = known
	return []counted{slotOf(pairGate, &b.pair, string(user), source), all, slotOf(sourceGate, &b.source, source)}
}

// tooMany is the refusal of who has to wait, or nil.
func tooMany(list []counted, now time.Time, count func(i int) services.Guesses) error {
	var wait time.Duration
	for i, c := range list {
		if !c.waives {
			wait = max(wait, c.until(count(i)).Sub(now))
		}
	}
	if wait <= 0 {
		return nil
	}
	return fault.New(fault.Denied, "too many failed sign-ins").WithHint("try again in %v", max(wait.Round(time.Second), time.Second))
}

// try charges one failure to user and to source, whatever says where it is made,
// beforehand, so that tries made at the same time count too, or refuses while one
// of them has to wait. Whether there is such a user makes no difference; known
// spares a person the second gate. Call succeeded when the try was none of a
// guesser.
func (b *backoff) try(ctx context.Context, user names.UserName, source any, known bool) (succeeded func(), err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancel()
	b.learnKey(ctx)
	b.mu.Lock()
	list := b.countersLocked(user, fmt.Sprint(source), known)
	here := func(i int) services.Guesses { return list[i].Guesses }
	now := b.now()
	fresh := true
	for _, c := range list {
		fresh = fresh && now.Sub(c.read) < verdictTime
	}
	if err := tooMany(list, now, here); err != nil && fresh {
		b.mu.Unlock()
		return nil, err
	}
	b.mu.Unlock()

	counts, away := b.read(ctx, list)
	b.mu.Lock()
	for i, c := range list {
		if away == nil {
			c.adopt(counts[i], now)
		}
	}
	if err := tooMany(list, now, here); err != nil {
		b.mu.Unlock()
		return nil, err
	}
	var tell []counted
	var owed []int
	for i, c := range list {
		c.owed = min(c.left(c.owed, now.Sub(c.counted))+1, maxFailures)
		c.counted = now
		c.charge(&c.Guesses, 1, now)
		if away == nil && (c.owed+c.telling >= toldFrom || counts[i].Failures > 0) {
			tell, owed = append(tell, c), append(owed, c.owed)
			c.owed, c.telling = 0, c.telling+c.owed
		}
	}
	b.mu.Unlock()
	if err := b.tell(ctx, tell, owed, now); err != nil {
		return nil, err
	}
	return func() { b.acquit(ctx, list) }, nil
}

// learnKey makes the counters those of the cluster, once the store says which those
// are.
func (b *backoff) learnKey(ctx context.Context) {
	b.mu.Lock()
	shared := b.shared || b.store == nil
	b.mu.Unlock()
	if shared {
		return
	}
	key, err := b.store.GuessKey(ctx)
	if err != nil {
		b.log.Warn("failed sign-ins are counted by this authority alone for now", zap.Error(err))
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.shared { // and what was counted before is at the places of another key
		b.key, b.shared = key, true
		b.pair, b.user, b.source = [gateSlots]slot{}, [gateSlots]slot{}, [gateSlots]slot{}
	}
}

// read returns the counters as the store has them, or why it does not say.
func (b *backoff) read(ctx context.Context, list []counted) ([]services.Guesses, error) {
	if b.store == nil {
		return nil, fault.New(fault.Unavailable, "there is no store")
	}
	counts, err := b.store.Guesses(ctx, idsOf(list)...)
	if err != nil {
		b.log.Warn("failed sign-ins are counted by this authority alone for now", zap.Error(err))
	}
	return counts, err
}

func idsOf(list []counted) []string {
	ids := make([]string, len(list))
	for i, c := range list {
		ids[i] = c.id
	}
	return ids
}

// adopt makes s what the store has, and what that was not told of.
func (c counted) adopt(there services.Guesses, now time.Time) {
	if there.Last.After(now) {
		there.Last = now // a clock that is ahead shall not have anybody wait longer
	}
	c.Guesses, c.read = there, now
	if n := c.left(c.owed, now.Sub(c.counted)) + c.telling; n > 0 { // the latter may be in there already: better twice than not at all
		c.charge(&c.Guesses, n, c.counted)
		if there.Last.After(c.Last) {
			c.Last = there.Last
		}
	}
}

// tell has the store count what is owed, or refuses when others have made enough
// failures meanwhile. What it was not told stays owed.
func (b *backoff) tell(ctx context.Context, list []counted, owed []int, now time.Time) error {
	if len(list) == 0 {
		return nil
	}
	var refused error
	err := b.update(ctx, list, func(counts []services.Guesses) error {
		refused = tooMany(list, now, func(i int) services.Guesses { return counts[i] })
		for i, c := range list {
			c.charge(&counts[i], owed[i], now)
		}
		return refused
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, c := range list {
		c.telling -= owed[i]
		if err != nil {
			c.owed = min(c.owed+owed[i], maxFailures)
		}
		if refused != nil { // a try that was refused is no failure
			c.owed, c.Failures = max(0, c.owed-1), max(0, c.Failures-1)
		}
	}
	if err != nil && refused == nil {
		b.log.Warn("failed sign-ins are counted by this authority alone for now", zap.Error(err))
	}
	return refused
}

// update changes the store's counters, when it is this sign-in's turn.
func (b *backoff) update(ctx context.Context, list []counted, change func([]services.Guesses) error) error {
	select {
	case <-b.turn:
		defer func() { b.turn <- struct{}{} }()
		return b.store.UpdateGuesses(ctx, idsOf(list), change)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// acquit takes a charge back, and forgives the person all failures at that place.
func (b *backoff) acquit(ctx context.Context, list []counted) {
	b.mu.Lock()
	var tell []counted
	for i, c := range list {
		told := c.owed == 0 // this charge, or one that stands for it
		c.Failures, c.owed = max(0, c.Failures-1), max(0, c.owed-1)
		if i == 0 {
			c.Guesses, c.owed = services.Guesses{}, 0
		}
		if told && b.store != nil {
			tell = append(tell, c)
		}
	}
	b.mu.Unlock()
	if len(tell) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancel()
	err := b.update(ctx, tell, func(counts []services.Guesses) error {
		for i, c := range tell {
			counts[i].Failures = max(0, counts[i].Failures-1)
			if c.name == pairGate.name {
				counts[i].Failures = 0
			}
		}
		return nil
	})
	if err != nil { // time forgives it, too
		b.log.Warn("a good sign-in was not noted among the failed ones", zap.Error(err))
	}
}
