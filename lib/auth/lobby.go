package auth

import (
	"net/netip"
	"sync"
	"time"

	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// A lobby holds the sign-ins under way, a bounded number in all and from each
// source. A sign-in that is not continued in time is forgotten.
type lobby struct {
	now          func() time.Time
	most, source int

	mu        sync.Mutex // guards what follows
	waiting   map[string]*signIn
	perSource map[netip.Prefix]int
}

func newLobby(now func() time.Time, most, source int) *lobby {
	return &lobby{now: now, most: most, source: source, waiting: map[string]*signIn{}, perSource: map[netip.Prefix]int{}}
}

// admit lets a new sign-in wait for its first answers.
func (l *lobby) admit(s *signIn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) >= l.most || l.perSource[s.source] >= l.source {
		l.sweepLocked()
	}
	if len(l.waiting) >= l.most || l.perSource[s.source] >= l.source {
		return fault.New(fault.Unavailable, "too many sign-ins are under way").WithHint("finish one, or try again in a few minutes")
	}
	s.id = names.NewSecret()
	s.expires = l.now().Add(defaults.SignInTimeout)
	l.waiting[s.id] = s
	l.perSource[s.source]++
	return nil
}

// take returns the sign-in with this id for its next step, if owner began it.
// Nobody else can take it until it is put back.
func (l *lobby) take(id, owner string) (*signIn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.waiting[id]
	if !ok || s.owner != owner || s.busy || !l.now().Before(s.expires) {
		return nil, fault.New(fault.NotFound, "the sign-in took too long or was given up").WithHint("begin again")
	}
	s.busy = true
	return s, nil
}

// putBack lets a taken sign-in wait for further answers.
func (l *lobby) putBack(s *signIn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.busy = false
}

// forget ends a sign-in.
func (l *lobby) forget(s *signIn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetLocked(s)
}

func (l *lobby) forgetLocked(s *signIn) {
	if l.waiting[s.id] != s {
		return
	}
	delete(l.waiting, s.id)
	if l.perSource[s.source]--; l.perSource[s.source] == 0 {
		delete(l.perSource, s.source)
	}
}

// sweep forgets what has waited too long.
func (l *lobby) sweep() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweepLocked()
}

func (l *lobby) sweepLocked() {
	now := l.now()
	for _, s := range l.waiting {
		if !s.busy && !now.Before(s.expires) {
			l.forgetLocked(s)
		}
	}
}
