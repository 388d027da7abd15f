package node

import (
	"fmt"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/sshca"
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
	node, id := hostOf(l.conn).Node(), l.certified
	if l.s.cfg.Factors == nil {
		return nil, banner(fault.New(fault.Unavailable, "second factors cannot be checked here"))
	}
	if err := l.conn.Park(); err != nil {
		return nil, banner(fault.Wrap(fault.Unavailable, err, "too many people are signing in right now; try again in a minute"))
	}
	answers, err := challenge("", fmt.Sprintf("Node %s takes a second factor for each connection.", node.Name), []string{"Code: "}, []bool{false})
	if err != nil {
		return nil, err
	}
	if len(answers) != 1 || len(answers[0]) > maxCode {
		return nil, fault.New(fault.BadInput, "%d answers: want a code of at most %d bytes", len(answers), maxCode)
	}
	cert, err := ssh.ParsePublicKey(id.Certificate)
	if err != nil {
		return nil, err
	}
	res, err := l.s.cfg.Factors.VerifyFactor(l.conn.Context(), connect.NewRequest(&accessdv1.VerifyFactorRequest{
		Credential: &accessdv1.VerifyFactorRequest_Certificate{Certificate: string(ssh.MarshalAuthorizedKey(cert))},
		Client:     l.conn.Remote.String(), Node: string(node.ID), Code: answers[0],
	}))
	if err != nil {
		return nil, banner(err)
	}
	l.proof = res.Msg.GetProof()
	return nil, l.enter(m, id.WithFactor(res.Msg.GetMethod()))
}

// banner returns err, of which the person reads what they may.
func banner(err error) error {
	words := "accessd: " + fault.Public(err) + "\r\n"
	if hint := fault.Hint(err); hint != "" {
		words += "accessd: hint: " + hint + "\r\n"
	}
	return &ssh.BannerError{Err: err, Message: words}
}
