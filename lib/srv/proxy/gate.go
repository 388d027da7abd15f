package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
)

// JoinUser is the SSH user name of whoever wants to become a member. No user
// and no member can have it.
const JoinUser = "+join"

// Why this package refuses a certificate that lib/sshca finds good, or a plain
// key; they stand in audit events beside [sshca.Code]'s.
const (
	codeUserGone    sshca.Code = "user_gone"    // the user is not or no longer in the cluster
	codeKeyGone     sshca.Code = "key_gone"     // the key is not or no longer enrolled for the user
	codeMemberGone  sshca.Code = "member_gone"  // the member is not or no longer in the cluster
	codeKeyReplaced sshca.Code = "key_replaced" // the member has joined again with another key
	codeLocked      sshca.Code = "locked"       // a lock keeps them out
	codeNotServed   sshca.Code = "not_served"   // such peers are not served here
	codeBadName     sshca.Code = "bad_name"     // no user can have that name
	codeNotAccepted sshca.Code = "not_accepted" // a key or a method that is taken of nobody
)

// errOtherWay refuses a plain key on a connection that has proven one: what may
// follow is a certificate, or the questions. It is no failure of the peer's.
var errOtherWay = errors.New("a plain key was proven already")

// errKeyFirst refuses questions to a person who has proven no key yet: what they
// end with is a certificate for it.
var errKeyFirst = errors.New("the questions follow a key")

// admits says which peers a gate lets in beside members.
type admits struct {
	people  bool // by their certificates
	signIns bool // and without
	joiners bool
}

// gate decides who the peer of one connection is. Its methods are the
// connection's authentication callbacks; one goroutine calls them.
type gate struct {
	s      *Server
	conn   *sshserver.Conn
	admits admits

	banner      func(string) error // shows words to the person, until authenticated
	key         ssh.PublicKey      // the plain key that was proven first; a sign-in is for it
	keys        map[string]bool    // of enrolled keys that were proven: fingerprints
	signed      *signedIn          // what the sign-in gave
	cert        *ssh.Certificate   // once proven
	signer      ssh.Signer         // a visitor's: a certificate of our own for the person
	enrolledKey string             // fingerprint of the enrolled key that let a visitor in
	pending     *pending           // set while a visitor is asked for a second factor
	told        map[string]bool    // refusals the audit log has; bounded by the tries of a connection
	last        checked
}

// checked is a certificate that lib/sshca found good.
type checked struct {
	cert     string // in wire form
	user     string // the name it was shown with
	revision uint64 // of the policy, which names the authorities
	id       *sshca.Identity
}

// authenticator returns what sets the callbacks of a connection, which of says
// whom to admit to.
func (s *Server) authenticator(of func(*sshserver.Conn) admits) func(*sshserver.Conn, *ssh.ServerConfig) error {
	return func(c *sshserver.Conn, cfg *ssh.ServerConfig) error {
		a := of(c)
		g := &gate{s: s, conn: c, admits: a, told: map[string]bool{}, keys: map[string]bool{}}
		c.Value = g
		cfg.PreAuthConnCallback = func(p ssh.ServerPreAuthConn) { g.banner = p.SendAuthBanner }
		cfg.PublicKeyCallback = g.offered
		cfg.VerifiedPublicKeyCallback = g.proven
		if a.signIns {
			cfg.KeyboardInteractiveCallback = g.ask // of visitors whose clients have no keys
		}
		cfg.AuthLogCallback = g.ended
		return nil
	}
}

// offered says whether a signature by key would be of use. Nothing is known of
// the peer yet: whoever it is may offer any key (RFC 4252, section 7).
func (g *gate) offered(m ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, g.offeredPlain(m, key)
	}
	peer := g.peer(m)
	if _, err := g.identify(cert, peer); err != nil && services.LockOf(err) == "" && !g.wasGood(cert, peer) {
		return nil, g.refuse(m, cert, err)
	}
	return nil, nil
}

// offeredPlain takes any plain key, once, whoever the name belongs to. A visitor
// may have several, of which one that is enrolled for somebody counts.
func (g *gate) offeredPlain(m ssh.ConnMetadata, key ssh.PublicKey) error {
	_, visits := parseVisit(m.User())
	switch {
	case g.key != nil && (!visits || !g.enrolled(key)):
		return errOtherWay
	case m.User() == JoinUser && g.admits.joiners:
		return nil
	case m.User() == JoinUser || !g.admits.signIns:
		return g.refuse(m, key, &sshca.Refusal{Code: codeNotServed, Detail: "plain keys are not taken here"})
	}
	if _, err := names.ParseUserName(m.User()); err != nil && !visits {
		return g.refuse(m, key, &sshca.Refusal{Code: codeBadName, Detail: err.Error()})
	}
	return nil
}

// proven is told that the peer holds key, which offered let pass.
func (g *gate) proven(m ssh.ConnMetadata, key ssh.PublicKey, _ *ssh.Permissions, _ string) (*ssh.Permissions, error) {
	if g.pending != nil { // what offeredTouch let pass
		return nil, g.touched(m, key)
	}
	if cert, ok := key.(*ssh.Certificate); ok {
		return nil, g.certified(m, cert)
	}
	if m.User() == JoinUser {
		return nil, g.conn.ProveKey(key)
	}
	if v, ok := parseVisit(m.User()); ok && g.enrolled(key) {
		if err := g.lockedKey(key); err != nil {
			refused := g.refuse(m, key, err)
			return nil, &ssh.BannerError{Err: refused, Message: lockBanner(err)}
		}
		if g.visits(v, key) {
			return nil, g.detained(m, key)
		}
	}
	if g.resumes(m, key) {
		return nil, nil
	}
	g.key = cmp.Or(g.key, key)
	return nil, &ssh.PartialSuccessError{Next: ssh.ServerAuthCallbacks{
		PublicKeyCallback:           g.offered,
		KeyboardInteractiveCallback: g.ask,
	}}
}

// certified makes the holder of cert the connection's identity.
func (g *gate) certified(m ssh.ConnMetadata, cert *ssh.Certificate) error {
	peer := g.peer(m)
	id, err := g.identify(cert, peer)
	if err != nil {
		refused := g.refuse(m, cert, err)
		if services.LockOf(err) != "" {
			return &ssh.BannerError{Err: refused, Message: lockBanner(err)}
		}
		if g.wasGood(cert, peer) {
			return &ssh.BannerError{Err: refused, Message: expiredBanner(cert)}
		}
		return refused
	}
	if v, ok := parseVisit(m.User()); ok && id.Kind == sshca.KindUser && g.detains(v, id, delegation{certificate: authorizedKey(cert)}) {
		g.cert = cert
		if err := g.conn.Prove(id); err != nil {
			return err
		}
		return g.detained(m, cert)
	}
	if id.Kind == sshca.KindUser {
		if err := g.s.audit.login(g.conn, m, id); err != nil {
			return &ssh.BannerError{Err: err, Message: bannerNoAudit}
		}
	}
	g.cert = cert
	return g.conn.Prove(id)
}

// enrolled reports whether key, which may be no more than offered, is enrolled
// for somebody and has not been tried.
func (g *gate) enrolled(key ssh.PublicKey) bool {
	fingerprint := ssh.FingerprintSHA256(key)
	_, ok := g.s.cfg.Policy.UserByKey(fingerprint)
	return ok && !g.keys[fingerprint]
}

// visits makes the person for whom key is enrolled, and who has proven it, the
// connection's identity, if the authority lets such a key do for that person.
// The audit log hears of either from the authority.
func (g *gate) visits(v visit, key ssh.PublicKey) bool {
	g.keys[ssh.FingerprintSHA256(key)] = true
	signer, id, err := g.s.delegate(g.conn.Context(), delegation{client: g.conn.Remote, enrolled: authorizedKey(key), login: v.login})
	if err == nil {
		err = g.s.checkUser(id)
	}
	if err == nil {
		err = g.conn.Prove(id)
	}
	if err != nil {
		g.s.log.Info("enrolled key not taken", zap.String("fingerprint", ssh.FingerprintSHA256(key)), zap.Error(err))
		return false
	}
	g.signer, g.enrolledKey = signer, ssh.FingerprintSHA256(key)
	g.detains(v, id, delegation{enrolled: authorizedKey(key)})
	return true
}

// lockedKey refuses the person who has proven key, which is enrolled for them, when
// a lock keeps them out. The authority says so, too, but not to them.
func (g *gate) lockedKey(key ssh.PublicKey) error {
	u, ok := g.s.cfg.Policy.UserByKey(ssh.FingerprintSHA256(key))
	if !ok {
		return nil
	}
	return g.s.checkLock(&sshca.Identity{
		Kind: sshca.KindUser, User: u.Name, Roles: u.Roles, Addr: g.conn.Remote.Addr(), Fingerprint: ssh.FingerprintSHA256(key),
	})
}

// ask conducts the sign-in for the key that was proven, or a visitor's.
func (g *gate) ask(m ssh.ConnMetadata, challenge ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
	_, visits := parseVisit(m.User())
	if g.key == nil && !visits {
		return nil, errKeyFirst
	}
	if err := g.s.checkLock(&sshca.Identity{Addr: g.conn.Remote.Addr()}); err != nil { // no more is known yet
		refused := g.refuse(m, g.key, err)
		return nil, &ssh.BannerError{Err: refused, Message: lockBanner(err)}
	}
	if err := g.conn.Park(); err != nil {
		return nil, &ssh.BannerError{Err: err, Message: bannerParked}
	}
	r := signInRequest{peer: g.peer(m), key: g.key, client: g.conn.Remote, banner: g.banner, challenge: challenge}
	if visits {
		return nil, g.askVisitor(r)
	}
	signed, err := g.s.signIn(g.conn.Context(), r)
	if err != nil {
		return nil, err
	}
	g.signed = signed
	if signed.identity.Kind != sshca.KindUser { // a node's certificate signs nobody in here
		return nil, g.conn.ProveKey(g.key)
	}
	return nil, g.conn.Prove(signed.identity)
}

// nobody stands for every name that no user can have. Asking the authority about
// it has the questions and the refusal be those of any other.
const nobody = "_"

// askVisitor asks who a visitor is and conducts the sign-in for a key of ours:
// whatever key the visitor may have proven is no credential of theirs.
func (g *gate) askVisitor(r signInRequest) error {
	answers, err := r.challenge("", "", []string{"User: "}, []bool{true})
	if err != nil {
		return err
	}
	r.peer.SSHUser = nobody
	if user, err := names.ParseUserName(strings.TrimSpace(answers[0])); err == nil {
		r.peer.SSHUser = string(user)
	}
	_, key := sshca.Generate()
	r.key, r.ours = key.PublicKey(), true
	signed, err := g.s.signIn(g.conn.Context(), r)
	if err != nil {
		return err
	}
	if signed.identity.Kind != sshca.KindUser {
		return fault.New(fault.Denied, "a node is nobody's visitor")
	}
	signer, err := ssh.NewCertSigner(signed.certificate, key)
	if err != nil {
		return err
	}
	if err := g.conn.Prove(signed.identity); err != nil {
		return err
	}
	g.signer = signer
	return nil
}

// ended is told how an attempt ended. What this package has not refused itself,
// such as a key that is too weak, is recorded here.
func (g *gate) ended(m ssh.ConnMetadata, method string, err error) {
	_, partial := errors.AsType[*ssh.PartialSuccessError](err)
	_, ours := errors.AsType[*sshca.Refusal](err)
	if err == nil || partial || ours || method == "none" || method == "keyboard-interactive" || errors.Is(err, errOtherWay) {
		return
	}
	g.tell(m, rejection{method: method, why: &sshca.Refusal{Code: codeNotAccepted, Detail: err.Error()}})
}

func (g *gate) peer(m ssh.ConnMetadata) sshca.Peer {
	return sshca.Peer{SSHUser: m.User(), Addr: g.conn.Remote.Addr(), Now: g.s.cfg.Now()}
}

// refuse writes to the audit log that key was refused and returns why.
func (g *gate) refuse(m ssh.ConnMetadata, key ssh.PublicKey, why error) error {
	r, ok := errors.AsType[*sshca.Refusal](why)
	if !ok {
		r = &sshca.Refusal{Code: codeNotAccepted, Detail: why.Error()}
	}
	g.tell(m, rejection{method: "publickey", key: key, why: r, lock: services.LockOf(why)})
	return r
}

// tell records r, once for each reason: clients come back with the same key.
func (g *gate) tell(m ssh.ConnMetadata, r rejection) {
	id := fmt.Sprintf("%s %s %s", r.why.Code, m.User(), r.why.Detail)
	if r.key != nil {
		id += ssh.FingerprintSHA256(r.key)
	}
	if !g.told[id] {
		g.told[id] = true
		g.s.audit.rejected(g.conn, m, r)
	}
}

// identify returns whom cert makes of a peer, by the certificate and by the
// policy of now. It does not ask whether the peer holds the key.
func (g *gate) identify(cert *ssh.Certificate, peer sshca.Peer) (*sshca.Identity, error) {
	id, err := g.check(cert, peer)
	switch {
	case err != nil:
		return nil, err
	case id.Kind != sshca.KindUser:
		if _, err = g.s.checkMember(id); err == nil {
			err = g.s.checkLock(id)
		}
		return id, err
	case !g.admits.people:
		return nil, refusal(id, codeNotServed, "this process is no proxy")
	}
	if err = g.s.checkUser(id); err == nil {
		err = g.s.checkLock(id)
	}
	return id, err
}

// check returns whom cert makes of a peer, by the certificate alone. Clients
// offer a certificate and then come back with a signature, so the last good
// answer is kept for as long as it holds: to verify the authority's signature
// costs more than the rest of a login's decisions.
func (g *gate) check(cert *ssh.Certificate, peer sshca.Peer) (*sshca.Identity, error) {
	now := checked{cert: string(cert.Marshal()), user: peer.SSHUser, revision: g.s.cfg.Policy.Revision(), id: g.last.id}
	if now == g.last && peer.Now.Before(now.id.ValidBefore) {
		return now.id, nil
	}
	trust, check := g.s.cfg.Policy.Trust(), sshca.Trust.CheckUser
	if ca, _ := trust.Type(cert); ca == sshca.TypeNode {
		check = sshca.Trust.CheckMember
	} else if v, ok := parseVisit(peer.SSHUser); ok && g.admits.signIns {
		check, peer.SSHUser = sshca.Trust.CheckLogin, string(v.login)
	}
	var err error
	if now.id, err = check(trust, cert, peer); err == nil {
		g.last = now
	}
	return now.id, err
}

// wasGood reports whether cert was valid for peer until it expired.
func (g *gate) wasGood(cert *ssh.Certificate, peer sshca.Peer) bool {
	if peer.Now.Before(end(cert)) {
		return false
	}
	peer.Now = end(cert).Add(-time.Second)
	id, err := g.identify(cert, peer)
	return err == nil && id.Kind == sshca.KindUser
}

// checkUser refuses a person who is no longer in the cluster.
func (s *Server) checkUser(id *sshca.Identity) error {
	if _, ok := s.cfg.Policy.User(id.User); !ok {
		return refusal(id, codeUserGone, "there is no such user")
	}
	return nil
}

// checkLock refuses whom a lock keeps out.
func (s *Server) checkLock(id *sshca.Identity) error {
	subject := services.Subject{Identity: id}
	if id.Kind == sshca.KindNode {
		subject.Node, subject.NodeName = id.Member, id.MemberName
	}
	l, locked := s.cfg.Policy.Locked(subject, s.cfg.Now())
	if !locked {
		return nil
	}
	return &lockedError{refusal: refusal(id, codeLocked, fmt.Sprintf("lock %s on %s", l.ID, l.Target)), lock: l.Refusal()}
}

// lockedError refuses whom a lock keeps out, who may read why.
type lockedError struct{ refusal, lock error }

// Error is for the log.
func (e *lockedError) Error() string { return e.refusal.Error() }

// Unwrap returns both, the public one first.
func (e *lockedError) Unwrap() []error { return []error{e.lock, e.refusal} }

// checkMember refuses a member that is no longer in the cluster, or not with
// this key. It returns the key as the cluster's record has it.
func (s *Server) checkMember(id *sshca.Identity) (string, error) {
	line, ok := s.recordedKey(id)
	if !ok {
		return "", refusal(id, codeMemberGone, "there is no such member")
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)) //nolint:dogsled // its shape
	if err != nil || ssh.FingerprintSHA256(key) != id.Fingerprint {
		return "", refusal(id, codeKeyReplaced, "the member has another key now")
	}
	return line, nil
}

// isStock reports whether id's member is a node without software of ours, as far
// as is known: of one that is not, it is.
func (s *Server) isStock(id *sshca.Identity) bool {
	if id.Kind != sshca.KindNode {
		return false
	}
	n, ok := s.cfg.Policy.Node(id.Member)
	return !ok || n.Kind != services.NodeAccessd
}

// recordedKey returns the key in the cluster's record of id's member.
func (s *Server) recordedKey(id *sshca.Identity) (string, bool) {
	if id.Kind == sshca.KindNode {
		n, ok := s.cfg.Policy.Node(id.Member)
		return n.MemberKey, ok && n.Name == id.MemberName
	}
	m, ok := s.cfg.Policy.Member(id.Member)
	return m.MemberKey, ok && m.Kind == id.Kind && m.Name == id.MemberName
}

// authorizedKey returns key as an authorized_keys line without a comment.
func authorizedKey(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

func refusal(id *sshca.Identity, code sshca.Code, detail string) error {
	return &sshca.Refusal{
		Code: code, Detail: detail, Serial: id.Serial, KeyID: id.KeyID,
		Fingerprint: id.Fingerprint, CAFingerprint: id.CAFingerprint,
	}
}

// What a peer may read before it is let in. Nothing here tells whether a name
// exists: only who holds a certificate that was good reads about it.
const (
	bannerNoAudit = "accessd: the audit log cannot be written, so nobody can log in right now\r\n"
	bannerParked  = "accessd: too many people are signing in right now; try again in a minute\r\n"
	bannerAway    = "accessd: signing in is not possible right now; try again in a minute\r\n"
)

// lockBanner tells the person whom the lock in err keeps out what it says.
func lockBanner(err error) string { return "accessd: " + fault.Public(err) + "\r\n" }

// expiredBanner tells the person whose cert was good what to do.
func expiredBanner(cert *ssh.Certificate) string {
	return fmt.Sprintf("accessd: your certificate expired at %s; run \"ssh %s@PROXY login\" for a new one\r\n", moment(end(cert)), cert.KeyId)
}
