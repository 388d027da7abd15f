package proxy

import (
	"context"
	"net/netip"
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

	mu      sync.Mutex
	opening chan struct{} // closed when the attempt under way is over; nil without one
	way     *passage      // nil until an attempt went well
	err     error         // of the last one
	gone    bool
}

// errGone is why a passage is not opened any more.
var errGone = fault.New(fault.Unavailable, "the connection has ended")

// passage returns the visitor's passage, which the first to need it opens; who
// comes meanwhile has to wait. An attempt that failed is no reason not to try
// again: a client may keep its connection until the node is back.
func (v *visitor) passage(open func() (*passage, error)) (*passage, error) {
	v.mu.Lock()
	if v.way != nil || v.gone {
		defer v.mu.Unlock()
		return v.way, v.err
	}
	if under := v.opening; under != nil {
		v.mu.Unlock()
		<-under
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.way, v.err
	}
	over := make(chan struct{})
	v.opening = over
	v.mu.Unlock()
	way, err := open()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.way, v.err, v.opening = way, err, nil
	close(over)
	return way, err
}

// close ends the visitor's passage, if there is one, and lets none begin. Nobody
// opens one at that time: it is called when all channels are gone.
func (v *visitor) close() {
	v.mu.Lock()
	way := v.way
	v.way, v.err, v.gone = nil, errGone, true
	v.mu.Unlock()
	if way != nil {
		way.close()
	}
}

// delegation asks for a certificate of our own with which to go on as somebody.
type delegation struct {
	client      netip.AddrPort // where they are
	certificate string         // that was proven, authorized_keys format, or
	enrolled    string         // a key that was, same format
	user        names.UserName // whose they are; "" of a key, where the authority says it
	login       names.Login    // the one login it shall be good for; "" means all
	proof       string         // that they gave a second factor for the connection; "" without one
}

// delegate has a key of this process certified for the person who has shown the
// credential in d.
func (s *Server) delegate(ctx context.Context, d delegation) (ssh.Signer, *sshca.Identity, error) {
	if s.cfg.People.Delegation == nil {
		return nil, nil, fault.New(fault.Unavailable, "this proxy does not go on to nodes; use ssh -J")
	}
	_, key := sshca.Generate()
	req := &accessdv1.DelegateRequest{PublicKey: authorizedKey(key.PublicKey()), Client: d.client.String(), Login: string(d.login), Proof: d.proof}
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
	id, err := s.delegated(cert, d)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "the authority sent a bad certificate")
	}
	signer, err := ssh.NewCertSigner(cert, key)
	return signer, id, err
}

// delegated returns whom cert, which was issued for d, makes of us.
func (s *Server) delegated(cert *ssh.Certificate, d delegation) (*sshca.Identity, error) {
	peer, check := sshca.Peer{SSHUser: string(d.login), Addr: d.client.Addr(), Now: s.cfg.Now()}, sshca.Trust.CheckLogin
	if d.login == "" {
		peer.SSHUser, check = string(d.user), sshca.Trust.CheckUser
	}
	id, err := check(s.cfg.Policy.Trust(), cert, peer)
	if err == nil && d.user != "" && id.User != d.user {
		err = refusal(id, sshca.CodeWrongPrincipal, "it is somebody else's")
	}
	return id, err
}
