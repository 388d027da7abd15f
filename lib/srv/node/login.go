package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
)

// bannerNoAudit is what people read while the spool cannot be written.
const bannerNoAudit = "the audit log cannot be written, so nobody can log in right now"

// codeNotAccepted is in audit events, beside [sshca.Code]'s, for what this
// package or a lower one refuses before it looks at a certificate.
const codeNotAccepted sshca.Code = "not_accepted"

// login decides who the peer of one connection is. Its methods but abandoned are
// the connection's authentication callbacks; one goroutine calls them.
type login struct {
	s    *Server
	conn *sshserver.Conn
	stop func() bool // keeps abandoned from being called

	certified *sshca.Identity // who has proven a certificate and is asked for a second factor
	proof     string          // of that factor, for the authority
	executor  srv.Executor    // of whom it let in; nil until then

	mu    sync.Mutex
	told  map[string]bool // refusals the audit log has; bounded by the tries of a connection
	plain *rejection      // a plain key that was offered
}

// authenticate sets the callbacks of a connection.
func (s *Server) authenticate(c *sshserver.Conn, cfg *ssh.ServerConfig) error {
	l := &login{s: s, conn: c, told: map[string]bool{}}
	c.Value = l
	l.stop = context.AfterFunc(c.Context(), l.abandoned)
	cfg.PublicKeyCallback = l.offered
	cfg.VerifiedPublicKeyCallback = l.proven
	cfg.AuthLogCallback = l.ended
	return nil
}

// offered says whether a signature by key would be of use. Nothing is known of
// the peer yet: whoever it is may offer any key (RFC 4252, section 7).
func (l *login) offered(m ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	_, err := l.identify(m, key)
	return nil, err
}

// identify returns whom key makes of the peer, if it holds it.
func (l *login) identify(m ssh.ConnMetadata, key ssh.PublicKey) (*sshca.Identity, error) {
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		why := &sshca.Refusal{
			Code: sshca.CodeNotCertificate, Detail: "a plain key was offered, and nothing else was good",
			Fingerprint: ssh.FingerprintSHA256(key),
		}
		l.mu.Lock()
		l.plain = &rejection{m: m, method: "publickey", why: why}
		l.mu.Unlock()
		return nil, why
	}
	peer := sshca.Peer{SSHUser: m.User(), Addr: l.conn.Remote.Addr(), Now: l.s.cfg.Now()}
	trust := l.s.cfg.Trust()
	check := trust.CheckLogin
	if m.User() == srv.ObserverUser {
		check, peer.SSHUser = trust.CheckUser, cert.KeyId // a claim, until CheckUser has held the user to it
	}
	id, err := check(cert, peer)
	if err == nil {
		return id, nil
	}
	why, ok := errors.AsType[*sshca.Refusal](err)
	if !ok {
		why = &sshca.Refusal{Code: codeNotAccepted, Detail: err.Error(), Fingerprint: ssh.FingerprintSHA256(cert.Key)}
	}
	l.tell(rejection{m: m, method: "publickey", cert: cert, why: why})
	return nil, why
}

// proven is told that the peer holds key, which offered let pass. From here on
// it is a person whose certificate is good, and who may read what is wrong.
func (l *login) proven(m ssh.ConnMetadata, key ssh.PublicKey, _ *ssh.Permissions, _ string) (*ssh.Permissions, error) {
	if l.certified != nil { // what offeredTouch let pass
		id, err := l.touched(key)
		if err != nil {
			return nil, banner(err)
		}
		return nil, l.enter(m, id)
	}
	id, err := l.identify(m, key)
	if err != nil {
		return nil, err
	}
	if l.needsFactor(m, id) {
		l.certified = id
		if services.IsSecurityKey(key) {
			if given, err := l.touched(key); err == nil { // else there are other ways
				return nil, l.enter(m, given)
			}
		}
		if err := l.conn.Prove(id); err != nil {
			return nil, err
		}
		return nil, &ssh.PartialSuccessError{Next: l.further()}
	}
	return nil, l.enter(m, id)
}

// enter lets id in, or says why not.
func (l *login) enter(m ssh.ConnMetadata, id *sshca.Identity) error {
	if err := l.admit(m, id); err != nil {
		return banner(err)
	}
	l.stop()
	return l.conn.Prove(id)
}

// admit decides whether id may use the login it asks for, and records it. What an
// observer may is decided for each session.
func (l *login) admit(m ssh.ConnMetadata, id *sshca.Identity) error {
	ctx := l.conn.Context()
	if m.User() == srv.ObserverUser {
		return l.record(ctx, l.s.loginEvent(l.conn, m, id))
	}
	host, account := hostOf(l.conn), names.Login(m.User()) // CheckLogin found it among parsed logins
	d := l.s.sessions.Admit(id, account, host.Node())
	if !d.Allow {
		return l.refuse(ctx, l.s.decisionEvent(l.conn, m, id, d), d.Err(""))
	}
	executor, err := host.Executor(Person{Identity: id, Remote: l.conn.Remote, Connection: connectionID(m), Proof: l.proof})
	if err == nil {
		l.adopt(executor)
		err = executor.Check(ctx, srv.Account{Login: account, Create: d.Options.CreateAccount})
	}
	if err != nil {
		return l.refuse(ctx, l.s.rejectionEvent(l.conn, m, id, fault.Public(err)), err)
	}
	return l.record(ctx, l.s.loginEvent(l.conn, m, id))
}

// adopt makes x the executor of the connection, until that ends.
func (l *login) adopt(x srv.Executor) {
	if had, ok := l.executor.(io.Closer); ok { // of a login that came to nothing
		_ = had.Close() // nothing runs on it
	}
	l.executor = x
	if c, ok := x.(io.Closer); ok {
		context.AfterFunc(l.conn.Context(), func() { _ = c.Close() }) // its connections end, whatever it says
	}
}

// refuse records a refusal and returns why, or that it cannot be recorded.
func (l *login) refuse(ctx context.Context, ev events.Event, why error) error {
	if err := l.record(ctx, ev); err != nil {
		return err
	}
	return why
}

func (l *login) record(ctx context.Context, ev events.Event) error {
	if err := l.s.emit(ctx, ev); err != nil {
		return fault.Wrap(fault.Unavailable, err, bannerNoAudit)
	}
	return nil
}

// ended is told how an attempt ended. What this package has not refused itself,
// such as a key that is too weak, is recorded here.
func (l *login) ended(m ssh.ConnMetadata, method string, err error) {
	_, refused := errors.AsType[*sshca.Refusal](err)
	_, banner := errors.AsType[*ssh.BannerError](err)
	_, partial := errors.AsType[*ssh.PartialSuccessError](err)
	if err == nil || refused || banner || partial || method == "none" || errors.Is(err, errNoSecondKey) {
		return
	}
	l.tell(rejection{m: m, method: method, why: &sshca.Refusal{Code: codeNotAccepted, Detail: err.Error()}})
}

// tell records r, once for each reason: clients come back with the same key.
func (l *login) tell(r rejection) {
	id := fmt.Sprintf("%s %s %s %s", r.why.Code, r.m.User(), r.why.Fingerprint, r.why.Detail)
	l.mu.Lock()
	known := l.told[id]
	l.told[id] = true
	l.mu.Unlock()
	if !known {
		_ = l.s.emit(l.conn.Context(), l.s.refusalEvent(l.conn, r)) // it is refused all the same
	}
}

// abandoned is called when the connection has ended without a login. It records
// a plain key, when that was all there was: clients try the plain key beside a
// certificate, too.
func (l *login) abandoned() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.plain != nil && len(l.told) == 0 {
		_ = l.s.emit(l.conn.Context(), l.s.refusalEvent(l.conn, *l.plain)) // there is nobody left to tell
	}
}
