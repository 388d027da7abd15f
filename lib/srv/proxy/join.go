package proxy

import (
	"context"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// The commands that a node without software of ours runs here.
const (
	joinVerb = "join"
	krlVerb  = "krl" // once it has joined, as those below

	hostCAVerb = "host-ca"
	sshdCAVerb = "sshd-ca"
)

// joinHelp is what such a node can do here.
const joinHelp = `there is
  ssh NODE@PROXY join > KEY-cert.pub            to join, and later to renew
  ssh NODE@PROXY krl > FILE                     to fetch the list of what is locked, for sshd's RevokedKeys
  ssh NODE@PROXY host-ca > FILE                 to fetch whose hosts to believe, for ssh's UserKnownHostsFile
  ssh NODE@PROXY sshd-ca > FILE                 to fetch who may log in, for sshd's TrustedUserCAKeys
  ssh -N -R 22:localhost:22 NODE@PROXY          to be reached`

// joined prints cert, which a join token has bought.
func (x *session) joined(cert *ssh.Certificate) func(context.Context, *ssh.Request) int {
	return func(ctx context.Context, r *ssh.Request) int {
		if _, err := x.wants(ctx, r, joinVerb); err != nil {
			return x.fail(err)
		}
		return x.certify("joined", cert)
	}
}

// renewed prints a new certificate for the node m, in place of the one that has
// let it in, or what is locked, or an authority's keys.
func (x *session) renewed(m *member) func(context.Context, *ssh.Request) int {
	return func(ctx context.Context, r *ssh.Request) int {
		verb, err := x.wants(ctx, r, joinVerb, krlVerb, hostCAVerb, sshdCAVerb)
		if err != nil {
			return x.fail(err)
		}
		if !m.opens.Allow() {
			return x.fail(fault.New(fault.Unavailable, "too many of these"))
		}
		switch verb {
		case krlVerb:
			return x.revocations(ctx)
		case hostCAVerb, sshdCAVerb:
			return x.trusted(ctx, m, verb)
		}
		cert, err := x.s.renewNode(ctx, x.conn.Remote.String(), m.cert)
		if err != nil {
			return x.fail(err)
		}
		return x.certify("renewed", cert)
	}
}

// revocations prints what is locked on the node that asks, in the form sshd reads.
func (x *session) revocations(ctx context.Context) int {
	if x.s.cfg.People == nil || x.s.cfg.People.Locks == nil {
		return x.fail(fault.New(fault.Unavailable, "this process has no revocation list"))
	}
	req := &accessdv1.ReadKRLRequest{Node: string(x.conn.Identity.Member)}
	list, err := unwrap(x.s.cfg.People.Locks.ReadKRL(ctx, connect.NewRequest(req)))
	if err != nil {
		return x.fail(err)
	}
	if _, err := x.ch.Write(list.GetKrl()); err != nil {
		return x.fail(err)
	}
	return 0
}

// wants grants r and returns which of verbs it runs, or an error, which it has
// recorded.
func (x *session) wants(ctx context.Context, r *ssh.Request, verbs ...string) (string, error) {
	_ = r.Reply(true, nil)
	x.ignoreInput()
	w := wanted{kind: r.Type}
	if cmd, err := sshwire.ParseExec(r.Payload); err == nil && r.Type == sshwire.RequestExec {
		w.command = cmd.Command
	}
	if verb := strings.TrimSpace(w.command); slices.Contains(verbs, verb) {
		return verb, nil
	}
	err := error(fault.New(fault.Denied, "a node runs nothing here but \"%s\"", strings.Join(verbs, `" and "`)).WithHint("%s", joinHelp))
	if aerr := x.s.audit.misused(ctx, x.conn, w, err); aerr != nil {
		err = aerr
	}
	return "", err
}

// certify prints a node's certificate to standard output.
func (x *session) certify(what string, cert *ssh.Certificate) int {
	if _, err := x.ch.Write([]byte(x.lines(certificateLine(cert)))); err != nil {
		return x.fail(err)
	}
	as := "node " + x.conn.User()
	if x.who != nil {
		as = x.conn.User()
	}
	x.say("accessd: %s as %s; this certificate for key %s is valid until %s\n",
		what, as, ssh.FingerprintSHA256(cert.Key), moment(end(cert)))
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
