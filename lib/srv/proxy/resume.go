package proxy

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshca"
)

// resumeTime bounds the question whether somebody has signed in lately. Stock clients
// show their key before the certificate that lies beside it, and an authority that
// does not answer is not to keep out who needs none.
const resumeTime = 3 * time.Second

// resumes makes whoever has signed in through a browser lately, with the key
// that was just proven and from the same address, the connection's identity
// without a question: programs that connect many times cannot answer any. A
// visitor goes on to the node with a key of ours.
func (g *gate) resumes(m ssh.ConnMetadata, key ssh.PublicKey) bool {
	people := g.s.cfg.People
	if people == nil || people.SignOn == nil {
		return false
	}
	req := &accessdv1.ResumeRequest{User: m.User(), PublicKey: authorizedKey(key), Client: g.conn.Remote.String()}
	certified, own := key, ssh.Signer(nil)
	if _, visits := parseVisit(m.User()); visits {
		_, own = sshca.Generate()
		certified = own.PublicKey()
		req.User, req.ForKey = "", authorizedKey(certified)
	}
	ctx, stop := context.WithTimeout(g.conn.Context(), resumeTime)
	defer stop()
	res, err := unwrap(people.SignOn.Resume(ctx, connect.NewRequest(req)))
	if fault.Is(err, fault.NotFound) {
		return false
	}
	if err == nil {
		err = g.resumed(res, signInRequest{peer: g.peer(m), key: certified}, own)
	}
	if err != nil {
		g.s.log.Info("an earlier sign-in is not enough", zap.String("fingerprint", ssh.FingerprintSHA256(key)), zap.Error(err))
	}
	return err == nil
}

// resumed takes what the authority gave for r; own is the key of ours, if the
// certificate is for one.
func (g *gate) resumed(res *accessdv1.ResumeResponse, r signInRequest, own ssh.Signer) error {
	r.peer.SSHUser = res.GetUser()
	signed, err := g.s.conclude(&accessdv1.LoginStep{Certificate: res.GetCertificate(), Grant: res.GetGrant()}, r)
	if err != nil {
		return err
	}
	if signed.identity.Kind != sshca.KindUser {
		return fault.New(fault.Denied, "a node does not sign in")
	}
	if own != nil {
		if g.signer, err = ssh.NewCertSigner(signed.certificate, own); err != nil {
			return err
		}
	} else {
		g.signed = signed
	}
	return g.conn.Prove(signed.identity)
}
