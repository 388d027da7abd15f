package proxy

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshsig"
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

// evidence is what somebody shows of a second factor: a code that they typed, which
// may be that of a link, or a security key that has signed for the connection. Of
// such a key x/crypto takes no signature for which nobody has touched it.
type evidence struct {
	code string
	link string
	key  ssh.PublicKey

	browser bool // nothing yet: they ask for a link
}

// verifyFactor has the authority check what the holder of the credential in d
// shows, for a connection to node, or for one that stays here when that is "". It
// is the authority that writes it down.
func (s *Server) verifyFactor(ctx context.Context, d delegation, node names.NodeID, shown evidence) (factor, error) {
	answer, err := s.callFactor(ctx, d, node, shown)
	return factor{answer.GetMethod(), answer.GetProof()}, err
}

// takeCode checks what somebody typed when they were asked for a second factor.
// Who typed nothing gets a link, whose words again puts to them.
func (s *Server) takeCode(ctx context.Context, p pending, typed string, again func(words string) (string, error)) (factor, error) {
	shown := evidence{code: typed}
	if strings.TrimSpace(typed) == "" {
		l, err := s.callFactor(ctx, p.delegation, p.node, evidence{browser: true})
		if err != nil {
			return factor{}, err
		}
		shown.link = l.GetLink()
		if shown.code, err = again(l.GetWords()); err != nil {
			return factor{}, err
		}
	}
	return s.verifyFactor(ctx, p.delegation, p.node, shown)
}

func (s *Server) callFactor(ctx context.Context, d delegation, node names.NodeID, shown evidence) (*accessdv1.VerifyFactorResponse, error) {
	if s.cfg.People.Factors == nil {
		return nil, fault.New(fault.Unavailable, "second factors cannot be checked here")
	}
	if len(shown.code) > maxAnswer {
		return nil, fault.New(fault.BadInput, "an answer of %d bytes: want at most %d", len(shown.code), maxAnswer)
	}
	req := &accessdv1.VerifyFactorRequest{Client: d.client.String(), Node: string(node), Code: shown.code, Link: shown.link, Browser: shown.browser}
	if shown.key != nil {
		req.TouchedKey = authorizedKey(sshsig.Plain(shown.key))
	}
	if d.certificate != "" {
		req.Credential = &accessdv1.VerifyFactorRequest_Certificate{Certificate: d.certificate}
	} else {
		req.Credential = &accessdv1.VerifyFactorRequest_EnrolledKey{EnrolledKey: d.enrolled}
	}
	return unwrap(s.cfg.People.Factors.VerifyFactor(ctx, connect.NewRequest(req)))
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
	ask := func(words string) (string, error) {
		answers, err := challenge("", words, []string{"Code: "}, []bool{false})
		if err == nil && len(answers) != 1 {
			err = fault.New(fault.BadInput, "%d answers: want one", len(answers))
		}
		if err != nil {
			return "", err
		}
		return answers[0], nil
	}
	typed, err := ask("This node takes a second factor for each connection (empty: from your browser).")
	if err != nil {
		return nil, err
	}
	given, err := g.s.takeCode(g.conn.Context(), *g.pending, typed, ask)
	if err != nil {
		return nil, &ssh.BannerError{Err: err, Message: wordsOf(err)}
	}
	return nil, g.release(m, given)
}

// release lets in a visitor who has given a second factor.
func (g *gate) release(m ssh.ConnMetadata, given factor) error {
	p := g.pending
	p.proof = given.proof
	var err error
	if g.signer, _, err = g.s.delegate(g.conn.Context(), p.delegation); err != nil {
		return &ssh.BannerError{Err: err, Message: wordsOf(err)}
	}
	id := given.of(p.id)
	if g.cert != nil { // of an enrolled key the authority has written it down
		if err := g.s.audit.login(g.conn, m, id); err != nil {
			return &ssh.BannerError{Err: err, Message: bannerNoAudit}
		}
	}
	return g.conn.Prove(id)
}

// detained lets in a visitor who has proven key unless a second factor is to
// follow. A security key of theirs has been touched, which is one.
func (g *gate) detained(m ssh.ConnMetadata, key ssh.PublicKey) error {
	if g.pending == nil {
		return nil
	}
	if services.IsSecurityKey(key) {
		if err := g.touched(m, key); err == nil { // else there are other ways
			return nil
		}
	}
	next := ssh.ServerAuthCallbacks{KeyboardInteractiveCallback: g.askFactor}
	if g.secondKey("") {
		next.PublicKeyCallback = g.offeredTouch
	}
	return &ssh.PartialSuccessError{Next: next}
}

// touched lets in a visitor whose second factor is a touch of key.
func (g *gate) touched(m ssh.ConnMetadata, key ssh.PublicKey) error {
	given, err := g.s.verifyFactor(g.conn.Context(), g.pending.delegation, g.pending.node, evidence{key: key})
	if err != nil {
		return &ssh.BannerError{Err: err, Message: wordsOf(err)}
	}
	return g.release(m, given)
}

// secondKey reports whether the security key with the fingerprint is enrolled for
// the visitor or, when that is "", any is.
func (g *gate) secondKey(fingerprint string) bool {
	u, ok := g.s.cfg.Policy.User(g.pending.id.User)
	if ok {
		_, ok = u.SecurityKey(fingerprint)
	}
	return ok
}

// offeredTouch says whether a touch of key would be a second factor.
func (g *gate) offeredTouch(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	if _, ok := key.(*ssh.Certificate); ok || !services.IsSecurityKey(key) || !g.secondKey(ssh.FingerprintSHA256(key)) {
		return nil, errOtherWay
	}
	return nil, nil
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
	d := delegation{client: x.conn.Remote, certificate: x.who.cert, user: x.conn.Identity.User}
	if x.who.touched != nil { // for the connection; in case that is not enough there are codes
		if given, err := x.s.verifyFactor(ctx, d, "", evidence{key: x.who.touched}); err == nil {
			x.given = given
			return nil
		}
	}
	ask := func(words string) (string, error) {
		x.say("%s\n", words)
		_, _ = io.WriteString(x.ch.Stderr(), "Code: ") // there is nobody else to tell
		code, err := readLine(in)
		x.say("\n")
		if err != nil {
			err = fault.Wrap(fault.Denied, err, "a second factor is needed for this connection").WithHint("type the code when you are asked for it")
		}
		return code, err
	}
	typed, err := ask("A second factor is needed for this connection (empty: from your browser).")
	if err != nil {
		return err
	}
	x.given, err = x.s.takeCode(ctx, pending{delegation: d}, typed, ask)
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
