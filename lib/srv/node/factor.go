package node

import (
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshsig"
)

// maxCode is the longest code in bytes; the authority takes no longer ones.
const maxCode = 1024

// needsFactor reports whether id is to give a second factor for the connection:
// when there is anything that its login is for and that takes one. It is asked
// for here, where stock clients ask people, or not at all.
func (l *login) needsFactor(m ssh.ConnMetadata, id *sshca.Identity) bool {
	if m.User() == srv.ObserverUser {
		return l.s.sessions.NeedsFactor(id)
	}
	return l.s.cfg.Engine.NeedsFactor(id, hostOf(l.conn).Node(), names.Login(m.User()))
}

// ask takes a code from the person who has proven a certificate. The authority
// checks it and writes that down.
func (l *login) ask(m ssh.ConnMetadata, challenge ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
	node := hostOf(l.conn).Node()
	if err := l.conn.Park(); err != nil {
		return nil, banner(fault.Wrap(fault.Unavailable, err, "too many people are signing in right now; try again in a minute"))
	}
	code, err := answer(challenge, fmt.Sprintf("Node %s takes a second factor for each connection (empty: from your browser).", node.Name))
	if err != nil {
		return nil, err
	}
	r := &accessdv1.VerifyFactorRequest{Code: code}
	if strings.TrimSpace(code) == "" {
		res, err := l.call(&accessdv1.VerifyFactorRequest{Browser: true})
		if err != nil {
			return nil, banner(err)
		}
		if r.Code, err = answer(challenge, res.GetWords()); err != nil {
			return nil, err
		}
		r.Link = res.GetLink()
	}
	id, err := l.verify(r)
	if err != nil {
		return nil, banner(err)
	}
	return nil, l.enter(m, id)
}

// answer asks for a code.
func answer(challenge ssh.KeyboardInteractiveChallenge, words string) (string, error) {
	answers, err := challenge("", words, []string{"Code: "}, []bool{false})
	if err != nil {
		return "", err
	}
	if len(answers) != 1 || len(answers[0]) > maxCode {
		return "", fault.New(fault.BadInput, "%d answers: want a code of at most %d bytes", len(answers), maxCode)
	}
	return answers[0], nil
}

// verify has the authority check what r has of a second factor, and returns who
// was certified with it.
func (l *login) verify(r *accessdv1.VerifyFactorRequest) (*sshca.Identity, error) {
	res, err := l.call(r)
	if err != nil {
		return nil, err
	}
	l.proof = res.GetProof()
	return l.certified.WithFactor(res.GetMethod()), nil
}

// call asks the authority about the second factor of who was certified.
func (l *login) call(r *accessdv1.VerifyFactorRequest) (*accessdv1.VerifyFactorResponse, error) {
	if l.s.cfg.Factors == nil {
		return nil, fault.New(fault.Unavailable, "second factors cannot be checked here")
	}
	cert, err := ssh.ParsePublicKey(l.certified.Certificate)
	if err != nil {
		return nil, err
	}
	r.Credential = &accessdv1.VerifyFactorRequest_Certificate{Certificate: string(ssh.MarshalAuthorizedKey(cert))}
	r.Client, r.Node = l.conn.Remote.String(), string(hostOf(l.conn).Node().ID)
	res, err := l.s.cfg.Factors.VerifyFactor(l.conn.Context(), connect.NewRequest(r))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// further returns what somebody who has proven a certificate may give a second
// factor with: a code or, who has one enrolled, a security key.
func (l *login) further() ssh.ServerAuthCallbacks {
	next := ssh.ServerAuthCallbacks{KeyboardInteractiveCallback: l.ask}
	if l.enrolled("") {
		next.PublicKeyCallback = l.offeredTouch
	}
	return next
}

// enrolled reports whether the security key with the fingerprint is enrolled for
// who was certified or, when that is "", any is.
func (l *login) enrolled(fingerprint string) bool {
	if l.s.cfg.User == nil {
		return false
	}
	u, ok := l.s.cfg.User(l.certified.User)
	if ok {
		_, ok = u.SecurityKey(fingerprint)
	}
	return ok
}

var errNoSecondKey = errors.New("not a security key that is enrolled for the person")

// offeredTouch says whether a touch of key would be a second factor.
func (l *login) offeredTouch(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	if _, ok := key.(*ssh.Certificate); ok || !services.IsSecurityKey(key) || !l.enrolled(ssh.FingerprintSHA256(key)) {
		return nil, errNoSecondKey
	}
	return nil, nil
}

// touched returns who was certified with a touch of key, a security key that has
// signed for the connection, as their second factor. x/crypto takes no signature
// of one that nobody has touched for it.
func (l *login) touched(key ssh.PublicKey) (*sshca.Identity, error) {
	return l.verify(&accessdv1.VerifyFactorRequest{TouchedKey: string(ssh.MarshalAuthorizedKey(sshsig.Plain(key)))})
}

// banner returns err, of which the person reads what they may.
func banner(err error) error {
	words := "accessd: " + fault.Public(err) + "\r\n"
	if hint := fault.Hint(err); hint != "" {
		words += "accessd: hint: " + hint + "\r\n"
	}
	return &ssh.BannerError{Err: err, Message: words}
}
