package proxy

import (
	"context"
	"fmt"
	"io"
	"slices"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// factor is a second factor that a person gave for a connection. The zero value
// is none.
type factor struct {
	method string
	proof  string // for the authority, when it is asked for something to go on with
}

// of returns id with f.
func (f factor) of(id *sshca.Identity) *sshca.Identity {
	if f.method == "" {
		return id
	}
	return id.WithFactor(f.method)
}

// verifyFactor has the authority check what the holder of the credential in d
// typed, for a connection to node, or for one that stays here when that is "". It
// is the authority that writes it down.
func (s *Server) verifyFactor(ctx context.Context, d delegation, node names.NodeID, code string) (factor, error) {
	if s.cfg.People.Factors == nil {
		return factor{}, fault.New(fault.Unavailable, "second factors cannot be checked here")
	}
	if len(code) > maxAnswer {
		return factor{}, fault.New(fault.BadInput, "an answer of %d bytes: want at most %d", len(code), maxAnswer)
	}
	req := &accessdv1.VerifyFactorRequest{Client: d.client.String(), Node: string(node), Code: code}
	if d.certificate != "" {
		req.Credential = &accessdv1.VerifyFactorRequest_Certificate{Certificate: d.certificate}
	} else {
		req.Credential = &accessdv1.VerifyFactorRequest_EnrolledKey{EnrolledKey: d.enrolled}
	}
	answer, err := unwrap(s.cfg.People.Factors.VerifyFactor(ctx, connect.NewRequest(req)))
	if err != nil {
		return factor{}, err
	}
	return factor{answer.GetMethod(), answer.GetProof()}, nil
}

// pending is a visitor who has proven who they are and is asked for a second
// factor.
type pending struct {
	delegation
	id   *sshca.Identity
	node names.NodeID
}

// asksFactor returns the node that v leads to, if that asks id for a second factor.
func (s *Server) asksFactor(id *sshca.Identity, v visit) (services.Node, bool) {
	host, port := parsePlace(v.place)
	node, known, err := parseTarget(host, port).find(s.cfg.Policy, func(n services.Node) bool {
		return s.cfg.Engine.Reach(id, authz.ViewOf(n)).Allow
	})
	return node, err == nil && known && s.cfg.Engine.NeedsFactor(id, authz.ViewOf(node), v.login)
}

// detains reports whether a visitor is to give a second factor, and begins to ask
// for it: the node, where the proxy logs in, will want to hear of it and cannot
// ask anybody.
func (g *gate) detains(v visit, id *sshca.Identity, d delegation) bool {
	node, ok := g.s.asksFactor(id, v)
	if !ok {
		return false
	}
	d.client, d.user, d.login = g.conn.Remote, id.User, v.login
	g.pending = &pending{delegation: d, id: id, node: node.ID}
	return true
}

// askFactor takes a code from a visitor who has proven who they are.
func (g *gate) askFactor(m ssh.ConnMetadata, challenge ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
	if err := g.conn.Park(); err != nil {
		return nil, &ssh.BannerError{Err: err, Message: bannerParked}
	}
	p, ctx := g.pending, g.conn.Context()
	answers, err := challenge("", "This node takes a second factor for each connection.", []string{"Code: "}, []bool{false})
	if err != nil {
		return nil, err
	}
	if len(answers) != 1 {
		return nil, fault.New(fault.BadInput, "%d answers: want one", len(answers))
	}
	given, err := g.s.verifyFactor(ctx, p.delegation, p.node, answers[0])
	if err == nil {
		p.proof = given.proof
		g.signer, _, err = g.s.delegate(ctx, p.delegation)
	}
	if err != nil {
		return nil, &ssh.BannerError{Err: err, Message: wordsOf(err)}
	}
	id := given.of(p.id)
	if g.cert != nil { // of an enrolled key the authority has written it down
		if err := g.s.audit.login(g.conn, m, id); err != nil {
			return nil, &ssh.BannerError{Err: err, Message: bannerNoAudit}
		}
	}
	return nil, g.conn.Prove(id)
}

// wordsOf returns what a person reads of err before they are let in.
func wordsOf(err error) string {
	words := "accessd: " + fault.Public(err) + "\r\n"
	if hint := fault.Hint(err); hint != "" {
		words += "accessd: hint: " + hint + "\r\n"
	}
	return words
}

// maxLine bounds what is read of a line that should be a code, in bytes.
const maxLine = 128

// obtain has the person give a second factor for this connection, unless they
// have, for what needs one: it asks on the channel, where in is what they type.
func (x *session) obtain(ctx context.Context, in io.Reader) error {
	if x.given.method != "" {
		return nil
	}
	x.say("A second factor is needed for this connection.\n")
	_, _ = io.WriteString(x.ch.Stderr(), "Code: ") // there is nobody else to tell
	code, err := readLine(in)
	x.say("\n")
	if err != nil {
		return fault.Wrap(fault.Denied, err, "a second factor is needed for this connection").WithHint("type the code when you are asked for it")
	}
	d := delegation{client: x.conn.Remote, certificate: x.who.cert, user: x.conn.Identity.User}
	x.given, err = x.s.verifyFactor(ctx, d, "", code)
	return err
}

// readLine reads up to the end of a line, and not a byte beyond.
func readLine(r io.Reader) (string, error) {
	const ctrlC, ctrlD, backspace, del = 3, 4, 8, 127
	var line []byte
	for b := [1]byte{}; len(line) < maxLine; {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return "", err
		}
		switch b[0] {
		case '\r', '\n':
			return string(line), nil
		case ctrlC, ctrlD:
			return "", errInterrupted
		case backspace, del:
			line = line[:max(0, len(line)-1)]
		default:
			line = append(line, b[0])
		}
	}
	return "", fmt.Errorf("a line of more than %d bytes", maxLine)
}

// nounNeedsFactor reports whether a verb of the noun may need a second factor: it
// has the name of a resource, some of which the person is given only with one.
func (x *session) nounNeedsFactor(args []string) bool {
	id := x.conn.Identity
	if len(args) < 2 || !slices.Contains(services.Resources(), args[0]) {
		return false
	}
	return slices.ContainsFunc(services.Verbs(), func(verb string) bool {
		return x.s.cfg.Engine.Resource(id, args[0], verb).NeedsFactor
	})
}

// joinNeedsFactor reports whether taking part in a session as login on n needs a
// second factor.
func (x *session) joinNeedsFactor(n names.NodeID, login names.Login) bool {
	id := x.conn.Identity
	if x.s.cfg.Engine.Resource(id, "recordings", "read").NeedsFactor {
		return true
	}
	node, ok := x.s.cfg.Policy.Node(n)
	return ok && x.s.cfg.Engine.Decide(authz.Request{Identity: id, Node: authz.ViewOf(node), Login: login, Action: authz.ActionJoin}).NeedsFactor
}
