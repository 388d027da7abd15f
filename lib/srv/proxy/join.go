package proxy

import (
	"context"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// joinVerb is the one command that a node without software of ours runs here.
const joinVerb = "join"

// joinHelp is what such a node can do here.
const joinHelp = `there is
  ssh NODE@PROXY join > KEY-cert.pub            to join, and later to renew
  ssh -N -R 22:localhost:22 NODE@PROXY          to be reached`

// joined prints cert, which a join token has bought.
func (x *session) joined(cert *ssh.Certificate) func(context.Context, *ssh.Request) int {
	return func(ctx context.Context, r *ssh.Request) int {
		if err := x.wantsJoin(ctx, r); err != nil {
			return x.fail(err)
		}
		return x.certify("joined", cert)
	}
}

// renewed prints a new certificate for the node m, in place of the one that has
// let it in.
func (x *session) renewed(m *member) func(context.Context, *ssh.Request) int {
	return func(ctx context.Context, r *ssh.Request) int {
		if err := x.wantsJoin(ctx, r); err != nil {
			return x.fail(err)
		}
		if !m.opens.Allow() {
			return x.fail(fault.New(fault.Unavailable, "too many of these"))
		}
		cert, err := x.s.renewNode(ctx, x.conn.Remote.String(), m.cert)
		if err != nil {
			return x.fail(err)
		}
		return x.certify("renewed", cert)
	}
}

// wantsJoin grants r and returns an error, which it has recorded, unless r runs
// the join verb.
func (x *session) wantsJoin(ctx context.Context, r *ssh.Request) error {
	_ = r.Reply(true, nil)
	x.ignoreInput()
	w := wanted{kind: r.Type}
	if cmd, err := sshwire.ParseExec(r.Payload); err == nil && r.Type == sshwire.RequestExec {
		w.command = cmd.Command
	}
	if strings.TrimSpace(w.command) == joinVerb {
		return nil
	}
	err := error(fault.New(fault.Denied, "a node runs nothing here but %q", joinVerb).WithHint("%s", joinHelp))
	if aerr := x.s.audit.misused(ctx, x.conn, w, err); aerr != nil {
		err = aerr
	}
	return err
}

// certify prints a node's certificate to standard output.
func (x *session) certify(what string, cert *ssh.Certificate) int {
	if _, err := x.ch.Write([]byte(x.lines(certificateLine(cert)))); err != nil {
		return x.fail(err)
	}
	x.say("accessd: %s as node %s; this certificate for key %s is valid until %s\n",
		what, x.conn.User(), ssh.FingerprintSHA256(cert.Key), moment(end(cert)))
	return 0
}

// renewNode has a node's certificate renewed, for the same key.
func (s *Server) renewNode(ctx context.Context, client string, old *ssh.Certificate) (*ssh.Certificate, error) {
	if s.cfg.People == nil {
		return nil, fault.New(fault.Unavailable, "this process is no proxy")
	}
	req := &accessdv1.RenewNodeRequest{Certificate: authorizedKey(old), Client: client}
	answer, err := unwrap(s.cfg.People.Login.RenewNode(ctx, connect.NewRequest(req)))
	if err != nil {
		return nil, err
	}
	cert, err := parseCertificate(answer.GetCertificate(), old.Key)
	if err != nil {
		return nil, err
	}
	if ca, _ := s.cfg.Policy.Trust().Type(cert); ca != sshca.TypeNode || cert.KeyId != old.KeyId {
		return nil, fault.New(fault.Internal, "the authority sent a certificate for something else")
	}
	return cert, nil
}
