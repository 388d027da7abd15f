package proxy

import (
	"context"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// separators stand between the login and the node in a visitor's SSH user name.
// None can be in a login or in a user's name.
const separators = "@:+"

// maxVisit bounds such a name, in bytes: a login, and a host name or a query.
const maxVisit = 512

// visit is where a visitor's SSH user name leads: LOGIN@NODE, LOGIN:NODE or
// LOGIN+NODE. OpenSSH splits what it is given at the last @.
type visit struct {
	login names.Login
	place string // what stands for the node, as the client wrote it
}

// parseVisit reads user as a visitor's name. What it cannot read is none.
func parseVisit(user string) (visit, bool) {
	i := strings.IndexAny(user, separators)
	if i <= 0 || i == len(user)-1 || len(user) > maxVisit {
		return visit{}, false
	}
	login, err := names.ParseLogin(user[:i])
	return visit{login, user[i+1:]}, err == nil
}

// visitor is what a person's connection has that is a way to one node.
type visitor struct {
	visit
	signer ssh.Signer // a certificate of our own for this person; nil when theirs buys one

	open sync.Once
	way  *passage
	err  error // why there is none
}

// errGone is why a passage is not opened any more.
var errGone = fault.New(fault.Unavailable, "the connection has ended")

// close ends the visitor's passage, if there is one, and lets none begin.
func (v *visitor) close() {
	v.open.Do(func() { v.err = errGone })
	if v.way != nil {
		v.way.close()
	}
}

// delegation asks for a certificate of our own with which to go on as somebody.
type delegation struct {
	peer        sshca.Peer // who is at the other end; the SSH user is the login
	client      string     // address and port
	certificate string     // that was proven, or
	enrolled    string     // a key that was; authorized_keys format
}

// delegate has a key of this process certified for the person who has shown the
// credential in d, for one login.
func (s *Server) delegate(ctx context.Context, d delegation) (ssh.Signer, *sshca.Identity, error) {
	if s.cfg.People.Delegation == nil {
		return nil, nil, fault.New(fault.Unavailable, "this proxy does not go on to nodes; use ssh -J")
	}
	_, key := sshca.Generate()
	req := &accessdv1.DelegateRequest{PublicKey: authorizedKey(key.PublicKey()), Client: d.client, Login: d.peer.SSHUser}
	if d.certificate != "" {
		req.Credential = &accessdv1.DelegateRequest_Certificate{Certificate: d.certificate}
	} else {
		req.Credential = &accessdv1.DelegateRequest_EnrolledKey{EnrolledKey: d.enrolled}
	}
	answer, err := unwrap(s.cfg.People.Delegation.Delegate(ctx, connect.NewRequest(req)))
	if err != nil {
		return nil, nil, err
	}
	cert, err := parseCertificate(answer.GetCertificate(), key.PublicKey())
	if err != nil {
		return nil, nil, err
	}
	d.peer.Now = s.cfg.Now()
	id, err := s.cfg.Policy.Trust().CheckLogin(cert, d.peer)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "the authority sent a bad certificate")
	}
	signer, err := ssh.NewCertSigner(cert, key)
	return signer, id, err
}
