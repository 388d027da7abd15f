package proxy

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshca"
)

// Bounds on a sign-in.
const (
	// maxRounds bounds the rounds of questions. The longest is that of an
	// invite: invite, new password, again, second factor.
	maxRounds = 16
	// maxAnswer is the longest answer in bytes; no passphrase is longer.
	maxAnswer = 1024
	// cancelTime bounds how long the authority is told that a person went away.
	cancelTime = 5 * time.Second
)

// signedIn is what a person gets by signing in.
type signedIn struct {
	identity    *sshca.Identity  // a person's, or a node's that has joined
	certificate *ssh.Certificate // for the key that was proven
	grant       string           // secret: it buys one more certificate, for a key made here
}

// signInRequest says who wants to sign in. The name is what the peer calls
// itself; the key is proven.
type signInRequest struct {
	peer      sshca.Peer
	key       ssh.PublicKey
	ours      bool // the key is this process's, for the connection alone
	client    netip.AddrPort
	banner    func(string) error
	challenge ssh.KeyboardInteractiveChallenge
}

// signIn carries the authority's questions to the person and the answers back
// until the authority is satisfied. An error is what the connection's
// authentication ends with.
func (s *Server) signIn(ctx context.Context, r signInRequest) (*signedIn, error) {
	begin := &accessdv1.BeginRequest{User: r.peer.SSHUser, PublicKey: authorizedKey(r.key), Client: r.client.String(), Connection: r.ours}
	step, err := unwrap(s.cfg.People.Login.Begin(ctx, connect.NewRequest(begin)))
	for round := 0; err == nil && !step.GetDone(); round++ {
		var answers []string
		if answers, err = r.put(step, round); err != nil {
			s.cancelSignIn(ctx, step.GetId())
			return nil, err
		}
		next := &accessdv1.ContinueRequest{Id: step.GetId(), Answers: answers}
		step, err = unwrap(s.cfg.People.Login.Continue(ctx, connect.NewRequest(next)))
	}
	if err == nil {
		var signed *signedIn
		if signed, err = s.conclude(step, r); err == nil {
			return signed, nil
		}
	}
	if fault.Is(err, fault.Denied) { // the authority has written it to the audit log
		if hint := fault.Hint(err); hint != "" {
			err = &ssh.BannerError{Err: err, Message: "accessd: hint: " + hint + "\r\n"}
		}
		return nil, err
	}
	s.log.Warn("sign-in ended without an answer", zap.Stringer("client", r.client), zap.Error(err)) // no name, which may be a password
	return nil, &ssh.BannerError{Err: err, Message: bannerAway}
}

// maxInstruction is how much of an instruction OpenSSH shows, in bytes. It puts
// it through its log, which cuts, and escapes what is not ASCII.
const maxInstruction = 1000

// put asks the questions of step and returns the answers. An instruction that
// stock ssh would spoil, such as a QR code, goes before them as a banner (RFC
// 4252, section 5.4), which it shows as it is.
func (r *signInRequest) put(step *accessdv1.LoginStep, round int) ([]string, error) {
	if round == maxRounds {
		return nil, errors.New("the sign-in takes too many rounds")
	}
	instruction := step.GetInstruction()
	if len(instruction) > maxInstruction || strings.ContainsFunc(instruction, func(c rune) bool { return c > unicode.MaxASCII }) {
		if err := r.banner(instruction + "\n"); err != nil {
			return nil, err
		}
		instruction = ""
	}
	var questions []string
	var echos []bool
	for _, p := range step.GetPrompts() {
		questions, echos = append(questions, p.GetText()), append(echos, p.GetEcho())
	}
	answers, err := r.challenge("", instruction, questions, echos)
	if err != nil {
		return nil, err
	}
	for _, a := range answers {
		if len(a) > maxAnswer {
			return nil, fault.New(fault.BadInput, "an answer of %d bytes: want at most %d", len(a), maxAnswer)
		}
	}
	return answers, nil
}

// conclude checks that the authority gave what was asked for: a good certificate
// for this user and this key or, for a join token, of a node with this name.
func (s *Server) conclude(step *accessdv1.LoginStep, r signInRequest) (*signedIn, error) {
	cert, err := parseCertificate(step.GetCertificate(), r.key)
	if err != nil {
		return nil, err
	}
	r.peer.Now = s.cfg.Now() // answering takes a while
	trust, check := s.cfg.Policy.Trust(), sshca.Trust.CheckUser
	if ca, _ := trust.Type(cert); ca == sshca.TypeNode {
		check = sshca.Trust.CheckMember
	}
	id, err := check(trust, cert, r.peer)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the authority sent a bad certificate")
	}
	return &signedIn{identity: id, certificate: cert, grant: step.GetGrant()}, nil
}

// cancelSignIn tells the authority to forget a sign-in. ctx may have ended: its
// person went away.
func (s *Server) cancelSignIn(ctx context.Context, id string) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cancelTime)
	defer stop()
	_, err := s.cfg.People.Login.Cancel(ctx, connect.NewRequest(&accessdv1.CancelRequest{Id: id}))
	if err != nil {
		s.log.Info("sign-in not cancelled", zap.Error(err))
	}
}

// parseCertificate reads line, which the authority wrote, as the certificate
// for key.
func parseCertificate(line string, key ssh.PublicKey) (*ssh.Certificate, error) {
	parsed, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)) //nolint:dogsled // its shape
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the authority sent no certificate")
	}
	cert, ok := parsed.(*ssh.Certificate)
	if !ok || string(cert.Key.Marshal()) != string(key.Marshal()) {
		return nil, fault.New(fault.Internal, "the authority sent a certificate for another key")
	}
	return cert, nil
}

// certificateLine returns cert as stock ssh reads it from a file.
func certificateLine(cert *ssh.Certificate) string {
	return authorizedKey(cert) + " " + cert.KeyId + "\n"
}

// unwrap takes the message out of a unary response.
func unwrap[T any](r *connect.Response[T], err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return r.Msg, nil
}
