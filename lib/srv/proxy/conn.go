package proxy

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/time/rate"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/listener"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
)

// The connections that are good for one thing only end after a while.
const (
	signedTime = 2 * time.Minute // of a sign-in: to run login
	joinTime   = time.Minute     // of a joiner: to join
)

// Each accessd-authority channel is a key exchange for whoever asks, so there is
// a rate of them: what a node needs to reconnect, and what a joiner needs once.
const (
	nodeOpenRate  = 1 // a second
	nodeOpenBurst = 8
	joinOpens     = 4
)

// person is the Value of a person's connection.
type person struct {
	since   time.Time
	signed  *signedIn     // set when it was not a certificate but a sign-in that let it in
	cert    string        // the certificate that let it in, authorized_keys format; "" of others
	touched ssh.PublicKey // security key that signed for it; nil of others
	key     string        // fingerprint of the enrolled key that let it in; "" of others
	visitor *visitor      // set when the SSH user name leads to a node
	hurry   *time.Timer   // ends it, when it was signed in
	usage   *usage        // of its user, by all connections together

	dismissed sync.Once
	leaving   chan struct{} // closed when what it runs here is to end, and
	why       error         // says why
	in, out   atomic.Int64
}

func (s *Server) newPerson() *person {
	return &person{since: s.cfg.Now(), leaving: make(chan struct{})}
}

// leave ends what who runs here, with words. It is called once.
func (who *person) leave(why error) {
	who.why = why
	close(who.leaving)
}

// member is the Value of a member's connection, also of a nested one.
type member struct {
	key   string        // as the cluster's record had it when it was checked
	opens *rate.Limiter // of accessd-authority channels, or of renewals

	// stock is set of a node that has nothing but sshd and dials home with stock
	// ssh. It is the end of a tunnel, and of no service's concern.
	stock bool
	cert  *ssh.Certificate // that let it in

	dismissed sync.Once
}

// newcomer is the Value of a connection that was signed in with a join token: it
// fetches the certificate of a node.
type newcomer struct {
	hurry  *time.Timer
	signed *signedIn
}

// joiner is the Value of a joiner's connection.
type joiner struct {
	hurry  *time.Timer
	opens  *rate.Limiter // of accessd-authority channels
	joined atomic.Bool   // as far as we can tell
}

// applicant is the Value of a joiner's nested connection.
type applicant struct {
	outer *joiner // nil when a member relays it
}

// outerKey is the key of the outer connection in the context of a nested one.
type outerKey struct{}

// outerOf returns the connection that c is nested in.
func outerOf(c *sshserver.Conn) *sshserver.Conn {
	outer, ok := c.Context().Value(outerKey{}).(*sshserver.Conn)
	if !ok {
		panic("proxy: internal error: a nested connection without an outer one")
	}
	return outer
}

// opened takes in a connection from the listener whose peer is known now.
func (s *Server) opened(c *sshserver.Conn) error {
	g, _ := c.Value.(*gate)
	switch {
	case g.signed != nil && g.signed.identity.Kind != sshca.KindUser:
		c.Value = &newcomer{signed: g.signed, hurry: hurry(c, signedTime)}
	case c.Identity == nil:
		c.Value = &joiner{hurry: hurry(c, joinTime), opens: rate.NewLimiter(0, joinOpens)}
	case c.Identity.Kind != sshca.KindUser:
		return s.openedMember(c)
	default:
		who := s.newPerson()
		if g.signed != nil {
			who.signed, who.hurry = g.signed, hurry(c, signedTime)
		}
		if g.cert != nil {
			who.cert = authorizedKey(g.cert)
			if services.IsSecurityKey(g.cert) {
				who.touched = g.cert.Key
			}
		}
		if v, ok := parseVisit(c.User()); ok {
			who.visitor, who.key = &visitor{visit: v, signer: g.signer}, g.enrolledKey
		}
		c.Value = who
	}
	err := s.enter(c)
	if who, ok := c.Value.(*person); ok && err != nil {
		s.audit.gone(c, who, err, s.cfg.Now())
	}
	return err
}

// openedMember takes in a member's connection, nested or not.
func (s *Server) openedMember(c *sshserver.Conn) error {
	key, err := s.checkMember(c.Identity)
	if err != nil {
		return err
	}
	opens := rate.NewLimiter(rate.Inf, math.MaxInt) // a proxy's are those of all it relays
	if c.Identity.Kind == sshca.KindNode {
		opens = rate.NewLimiter(nodeOpenRate, nodeOpenBurst)
	}
	m := &member{key: key, opens: opens, stock: s.isStock(c.Identity)}
	if g, ok := c.Value.(*gate); ok {
		m.cert = g.cert
	}
	c.Value = m
	return s.enter(c)
}

// openedNested takes in a connection on an accessd-authority channel.
func (s *Server) openedNested(c *sshserver.Conn) error {
	switch {
	case c.Identity == nil:
	case c.Identity.Kind == sshca.KindUser:
		c.Value = s.newPerson()
		return s.enter(c)
	default:
		return s.openedMember(c)
	}
	outer, _ := outerOf(c).Value.(*joiner)
	c.Value = &applicant{outer: outer}
	return nil
}

// enter lets c in, unless there are too many of its kind or the policy has
// changed a moment ago.
func (s *Server) enter(c *sshserver.Conn) error {
	err := s.live.enter(c)
	if err == nil {
		err = s.stillWelcome(c)
	}
	if err != nil {
		s.leave(c)
	}
	return err
}

// closed lets a connection go.
func (s *Server) closed(c *sshserver.Conn, err error) {
	if who, ok := c.Value.(*person); ok && who.visitor != nil {
		who.visitor.close()
	}
	s.leave(c)
	switch v := c.Value.(type) {
	case *joiner:
		// Anybody can be a joiner, at the price of a handshake to us. It is free
		// for those who join.
		if !v.joined.Load() {
			c.Penalize(listener.OffenceNoAuth)
		}
	case *person:
		s.audit.gone(c, v, err, s.cfg.Now())
	}
}

// closedNested lets a nested connection go.
func (s *Server) closedNested(c *sshserver.Conn, _ error) { s.leave(c) }

// leave undoes what enter did, and it is no harm if that was nothing.
func (s *Server) leave(c *sshserver.Conn) {
	s.live.leave(c)
	switch v := c.Value.(type) {
	case *joiner:
		v.hurry.Stop()
	case *newcomer:
		v.hurry.Stop()
	case *person:
		if v.hurry != nil {
			v.hurry.Stop()
		}
	}
}

// hurry cuts c when it is still there after d.
func hurry(c *sshserver.Conn, d time.Duration) *time.Timer {
	return time.AfterFunc(d, func() { c.Cut(fault.New(fault.Unavailable, "its %s are over", d)) })
}

// stillWelcome refuses a connection whose user or member is gone or locked out.
// That there is no such user is no reason for one that was signed in a moment ago:
// it can do no harm, does not last, and news of its user may not have come here yet.
func (s *Server) stillWelcome(c *sshserver.Conn) error {
	switch v := c.Value.(type) {
	case *member:
		if key, ok := s.recordedKey(c.Identity); !ok || key != v.key {
			_, err := s.checkMember(c.Identity)
			return err
		}
		return s.checkLock(c.Identity)
	case *person:
		if u, ok := s.cfg.Policy.UserByKey(v.key); v.key != "" && (!ok || u.Name != c.Identity.User) {
			return refusal(c.Identity, codeKeyGone, "the key is not enrolled for the user any more")
		}
		if err := s.checkLock(c.Identity); err != nil {
			return err
		}
		if v.signed == nil {
			return s.checkUser(c.Identity)
		}
	}
	return nil
}
