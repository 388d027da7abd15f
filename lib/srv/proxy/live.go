package proxy

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/sshserver"
)

const (
	// settle is how long changes of the policy are gathered, after one, before live
	// connections are judged again: a cluster that starts makes thousands.
	settle = 200 * time.Millisecond
	// openRate is how many channels one person may open in a second, in the long
	// run. Each is a decision, and a durable event.
	openRate = 500
)

// maxVerbs bounds what one user runs at this proxy at a time: each holds a menu or
// a request to the authority.
const maxVerbs = 32

// Joiners have proven nothing that costs anything, so there are few at a time.
const (
	maxJoiners       = 128
	maxSourceJoiners = 32 // of one address: a rack behind one router that is set up at once
)

// sayTime is how long a node may take to tell a person why they may not be there
// any more: it has the same policy, and the bytes are for it alone to write.
const sayTime = 500 * time.Millisecond

// leaveTime is how long what runs here may take to say why it ends, after that.
const leaveTime = 200 * time.Millisecond

// bridge is a person's way to one node.
type bridge struct {
	conn *sshserver.Conn
	who  *person
	node names.NodeID
	end  context.CancelCauseFunc

	observes bool // it follows the sessions of others there

	leaves sync.Once
}

// expel ends b in a moment.
func (b *bridge) expel(cause error) {
	b.leaves.Do(func() { time.AfterFunc(sayTime, func() { b.end(cause) }) }) // which does no harm to one that has ended
}

// usage is what all connections of one user use together.
type usage struct {
	conns, bridges int
	verbs          int // under way, menus among them
	opens          *rate.Limiter
}

// live knows who is connected to what.
type live struct {
	most int // connections of one user, and bridges

	// quiet ends, by hush, when the server drains and no bridge is left.
	quiet context.Context //nolint:containedctx // a state that other contexts follow
	hush  context.CancelFunc
	// serving ends when the server is to stop.
	serving context.Context //nolint:containedctx // the same

	mu       sync.Mutex
	conns    map[*sshserver.Conn]struct{}
	bridges  map[*bridge]struct{}
	users    map[names.UserName]*usage // those with a connection
	joiners  map[netip.Addr]int        // connections of joiners, by source
	draining bool
}

func newLive(most int) *live {
	return &live{
		most: most, conns: map[*sshserver.Conn]struct{}{}, bridges: map[*bridge]struct{}{},
		users: map[names.UserName]*usage{}, joiners: map[netip.Addr]int{},
	}
}

// enter adds a connection that has been authenticated, unless there are too
// many of its kind.
func (l *live) enter(c *sshserver.Conn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	switch v := c.Value.(type) {
	case *person:
		err = l.enterPersonLocked(c.Identity.User, v)
	case *joiner:
		err = l.enterJoinerLocked(source(c))
	}
	if err == nil {
		l.conns[c] = struct{}{}
	}
	return err
}

func (l *live) enterPersonLocked(user names.UserName, who *person) error {
	u := l.users[user]
	if u == nil {
		u = &usage{opens: rate.NewLimiter(openRate, l.most)}
		l.users[user] = u
	}
	if u.conns == l.most {
		return fault.New(fault.Unavailable, "user %q has %d connections already", user, u.conns)
	}
	u.conns++
	who.usage = u
	return nil
}

func (l *live) enterJoinerLocked(from netip.Addr) error {
	all := 0
	for _, n := range l.joiners {
		all += n
	}
	if all >= maxJoiners || l.joiners[from] >= maxSourceJoiners {
		return fault.New(fault.Unavailable, "%d joiners are here already, %d of them from there", all, l.joiners[from])
	}
	l.joiners[from]++
	return nil
}

// leave takes out a connection, if it is in.
func (l *live) leave(c *sshserver.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.conns[c]; !ok {
		return
	}
	delete(l.conns, c)
	switch v := c.Value.(type) {
	case *person:
		if v.usage.conns--; v.usage.conns == 0 {
			delete(l.users, c.Identity.User)
		}
	case *joiner:
		if l.joiners[source(c)]--; l.joiners[source(c)] == 0 {
			delete(l.joiners, source(c))
		}
	}
}

// source returns what is counted as one source: an address, or an IPv6 network
// of 64 bits, which is what one host gets.
func source(c *sshserver.Conn) netip.Addr {
	const host = 64
	addr := c.Remote.Addr().Unmap()
	if p, err := addr.Prefix(host); err == nil && addr.Is6() {
		return p.Addr()
	}
	return addr
}

// span adds b unless its user has too many bridges.
func (l *live) span(b *bridge) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u := b.who.usage; u.bridges == l.most {
		return fault.New(fault.Unavailable, "you have %d connections to nodes already", u.bridges)
	}
	b.who.usage.bridges++
	l.bridges[b] = struct{}{}
	return nil
}

// fold takes out b.
func (l *live) fold(b *bridge) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b.who.usage.bridges--
	delete(l.bridges, b)
	l.hushLocked()
}

// begin counts a verb of who's, unless there are too many.
func (l *live) begin(who *person) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if who.usage.verbs == maxVerbs {
		return fault.New(fault.Unavailable, "you run %d commands here already", maxVerbs)
	}
	who.usage.verbs++
	return nil
}

// finish takes it out.
func (l *live) finish(who *person) {
	l.mu.Lock()
	defer l.mu.Unlock()
	who.usage.verbs--
}

// drain makes it quiet as soon as the last bridge is gone.
func (l *live) drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.draining = true
	l.hushLocked()
}

func (l *live) hushLocked() {
	if l.draining && len(l.bridges) == 0 {
		l.hush()
	}
}

// now returns what is there at this moment.
func (l *live) now() ([]*sshserver.Conn, []*bridge) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.conns)), slices.Collect(maps.Keys(l.bridges))
}

// watch judges all that is live again whenever the policy changes, until ctx
// ends.
func (s *Server) watch(ctx context.Context) {
	for {
		changed := s.cfg.Policy.Changed() // taken first, so that no change is missed
		s.judge()
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// judge ends what the policy of now does not allow.
func (s *Server) judge() {
	conns, bridges := s.live.now()
	for _, c := range conns {
		if err := s.stillWelcome(c); err != nil {
			s.dismiss(c, err)
		}
	}
	for _, b := range bridges {
		n, ok := s.cfg.Policy.Node(b.node)
		if !ok {
			b.expel(fault.New(fault.Denied, "node %q was removed", b.node))
		} else if d := s.reaches(b.conn.Identity, n, b.observes); !d.Allow {
			b.expel(d.Err(fmt.Sprintf("node %q may not be reached any more", n.Name)))
		}
	}
}

// dismiss cuts c, whose right to be here has ended. Whom a lock keeps out reads so
// first: where they are and what they run here says it. A node that is locked hears
// of it meanwhile, and ends what it runs.
func (s *Server) dismiss(c *sshserver.Conn, why error) {
	if services.LockOf(why) == "" {
		c.Cut(why)
		return
	}
	switch v := c.Value.(type) {
	case *person:
		v.dismissed.Do(func() {
			time.AfterFunc(sayTime, func() { v.leave(why) }) // these do no harm to one that has ended
			time.AfterFunc(sayTime+leaveTime, func() { c.Cut(why) })
		})
	case *member:
		v.dismissed.Do(func() { time.AfterFunc(sayTime, func() { c.Cut(why) }) })
	default:
		c.Cut(why)
	}
}
