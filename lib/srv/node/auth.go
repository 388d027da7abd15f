package node

import (
	"errors"
	"fmt"
	"strconv"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
)

// Why this package refuses what lib/sshca does not judge; they stand in audit
// events beside [sshca.Code]'s.
const (
	codePlainKey sshca.Code = "plain_key" // only certificates are taken
	codeLogin    sshca.Code = "login"     // the rules allow nothing as this login
	codeNoLogin  sshca.Code = "bad_name"  // no account can have that name
)

// gate decides who the peer of one connection is. Its methods are the
// connection's authentication callbacks; one goroutine calls them.
type gate struct {
	s    *Server
	conn *sshserver.Conn
	told map[string]bool // refusals that are recorded; bounded by the tries of a connection
}

// authenticate sets the callbacks of a connection.
func (s *Server) authenticate(c *sshserver.Conn, cfg *ssh.ServerConfig) error {
	g := &gate{s: s, conn: c, told: map[string]bool{}}
	cfg.PublicKeyCallback = g.offered
	cfg.VerifiedPublicKeyCallback = g.proven
	return nil
}

// offered says whether a signature by key would be of use. Whoever the peer is
// may offer any key (RFC 4252, section 7), so that nothing is kept here.
func (g *gate) offered(m ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	_, err := g.identify(m, key)
	return nil, err
}

// proven makes the holder of key the connection's identity, if the rules allow
// it anything as the login it names.
func (g *gate) proven(m ssh.ConnMetadata, key ssh.PublicKey, _ *ssh.Permissions, _ string) (*ssh.Permissions, error) {
	id, err := g.identify(m, key)
	if err != nil {
		return nil, err
	}
	d := g.s.sessions.Admit(id, names.Login(m.User()))
	if !d.Allow {
		refusal := g.refuse(m, key, &sshca.Refusal{Code: codeLogin, Detail: d.Reason}, withDecision(id, d))
		return nil, &ssh.BannerError{Err: refusal, Message: fmt.Sprintf("accessd: %s\n", events.Display(d.Reason))}
	}
	return nil, g.conn.Prove(id)
}

// identify checks key as the certificate of somebody who may be the login.
func (g *gate) identify(m ssh.ConnMetadata, key ssh.PublicKey) (*sshca.Identity, error) {
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, g.refuse(m, key, &sshca.Refusal{Code: codePlainKey, Detail: "only certificates are taken"}, nil)
	}
	if _, err := names.ParseLogin(m.User()); err != nil {
		return nil, g.refuse(m, key, &sshca.Refusal{Code: codeNoLogin, Detail: err.Error()}, nil)
	}
	id, err := g.s.cfg.Trust().CheckLogin(cert, sshca.Peer{SSHUser: m.User(), Addr: g.conn.Remote.Addr(), Now: g.s.cfg.Now()})
	if err != nil {
		return nil, g.refuse(m, key, err, nil)
	}
	return id, nil
}

// withDecision adds what the rules said to the event of a refusal.
func withDecision(id *sshca.Identity, d authz.Decision) func(*events.Event) {
	return func(ev *events.Event) {
		ev.User = id.User
		ev.Error = d.Reason
	}
}

// refuse records why key does not open the node, once for each key and reason,
// and returns err for the library, whose peer reads nothing of it.
func (g *gate) refuse(m ssh.ConnMetadata, key ssh.PublicKey, err error, more func(*events.Event)) error {
	why, ok := errors.AsType[*sshca.Refusal](err)
	if !ok {
		why = &sshca.Refusal{Code: "internal", Detail: err.Error()}
	}
	mark := string(why.Code) + " " + string(key.Marshal())
	if g.told[mark] {
		return err
	}
	g.told[mark] = true
	ev := g.event(m, key, why)
	if more != nil {
		more(&ev)
	}
	if failed := g.s.cfg.Events.Emit(g.conn.Context(), ev); failed != nil {
		g.s.log.Error("a refusal is not recorded", zap.Error(failed))
	}
	return err
}

// event describes a refusal; what it says of the peer are claims.
func (g *gate) event(m ssh.ConnMetadata, key ssh.PublicKey, why *sshca.Refusal) events.Event {
	ev := events.Event{
		Name: events.AuthRejected, Login: names.Login(m.User()), AddrRemote: g.conn.Remote.String(), Proto: "ssh", Error: string(why.Code),
		Fields: map[string]any{"refusal": string(why.Code), "reason": why.Detail, "method": "certificate", "fingerprint": ssh.FingerprintSHA256(key)},
	}
	if cert, ok := key.(*ssh.Certificate); ok {
		ev.Fields["fingerprint"] = ssh.FingerprintSHA256(cert.Key)
		ev.Fields["ca"] = ssh.FingerprintSHA256(cert.SignatureKey)
		ev.Fields["cert_serial"] = strconv.FormatUint(cert.Serial, 10)
		ev.Fields["key_id"] = cert.KeyId
		ev.Fields["principals"] = cert.ValidPrincipals
	}
	return ev
}
