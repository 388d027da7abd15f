package auth

import (
	"fmt"
	"strings"
	"testing"
	"time"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// strictRole grants all that access does, with a second factor for each
// connection.
const strictRole = `kind: role
name: strict
allow:
  - {nodes: {"*": "*"}, logins: ["{{user.logins}}"], actions: ["*"]}
options: {mfa: session, plain_keys: true}
`

func (w *world) factors(id *sshca.Identity) accessdv1connect.FactorServiceClient {
	return accessdv1connect.NewFactorServiceClient(rpc.Local(w.Handler(), rpc.Peer{Identity: id, Addr: clientAddr}), rpc.BaseURL, rpc.ClientOptions()...)
}

// careful is alice, who has signed in at a proxy and whose role is strict.
type careful struct {
	*desk

	w     *world
	proxy *member
	cert  string
}

func newCareful(t *testing.T) *careful {
	t.Helper()
	w := newWorld(t, plan{})
	w.apply(strictRole)
	p := w.join(sshca.KindProxy, "edge-1")
	d := w.desk(p, "alice")
	cert := d.enrol(w.addUser("alice", "strict")).GetCertificate()
	w.known("alice")
	w.rec.take()
	return &careful{desk: d, w: w, proxy: p, cert: cert}
}

// node joins a node that decisions know.
func (c *careful) node(name string) *member {
	c.w.t.Helper()
	n := c.w.join(sshca.KindNode, name)
	await(c.w.t, c.w, func() bool { _, ok := c.w.policy.Node(n.id); return ok })
	return n
}

// verify has m check a code for a connection to node.
func (c *careful) verify(m *member, node names.NodeID, code string) (*accessdv1.VerifyFactorResponse, error) {
	return call(c.w.t, c.w.factors(m.identity).VerifyFactor, &accessdv1.VerifyFactorRequest{
		Credential: &accessdv1.VerifyFactorRequest_Certificate{Certificate: c.cert}, Client: clientAddr.String(), Node: string(node), Code: code,
	})
}

// person calls as alice.
func (c *careful) person() accessdv1connect.FactorServiceClient {
	return c.w.factors(c.w.identityOf(c.cert))
}

// change answers a conversation of change to its end.
func (c *careful) change(what accessdv1.BeginChangeRequest_Change, answers ...[]string) (*accessdv1.LoginStep, error) {
	s, err := call(c.w.t, c.person().BeginChange, &accessdv1.BeginChangeRequest{Change: what})
	for _, a := range answers {
		if err != nil {
			return nil, err
		}
		s, err = call(c.w.t, c.person().ContinueChange, &accessdv1.ContinueRequest{Id: s.GetId(), Answers: a})
	}
	return s, err
}

// TestFactorIsGoodOnce: F38. Where a code was given makes no difference: at a
// node, at a proxy or for a sign-in it is good once.
func TestFactorIsGoodOnce(t *testing.T) {
	c := newCareful(t)
	n := c.node("web-1")
	c.w.rec.take()
	code := c.code()
	if res, err := c.verify(n, n.id, code); err != nil || res.GetMethod() != "totp" {
		t.Fatalf("VerifyFactor = %v, %v", res, err)
	}
	evs := c.w.rec.take()
	if len(evs) != 1 || evs[0].Name != events.FactorVerify || !evs[0].Success || evs[0].User != "alice" || evs[0].Fields["method"] != "totp" ||
		evs[0].Fields["by"] != "node:"+string(n.id) || evs[0].Fields["node_name"] != "web-1" {
		t.Errorf("events = %+v", evs)
	}
	for _, m := range []*member{n, c.proxy} {
		_, err := c.verify(m, n.id, code)
		wantFault(t, err, fault.Denied, "the code was used before")
	}
	if _, err := c.elsewhere("198.51.100.9:999").signIn(goodPassword, code); !fault.Is(err, fault.Denied) {
		t.Errorf("a sign-in with the code: %v", err)
	}
	evs = c.w.rec.take()
	if bad := named(evs, events.FactorVerify); len(bad) != 2 || bad[0].Success || strings.Contains(stringOf(evs), code) {
		t.Errorf("events = %+v, want two refusals without the code", evs)
	}
}

// TestFactorOnlyForOwnConnections: a node is not told whether a code is right that
// was not given to it, or by who does not reach it.
func TestFactorOnlyForOwnConnections(t *testing.T) {
	c := newCareful(t)
	n, other := c.node("web-1"), c.node("web-2")
	for name, node := range map[string]names.NodeID{"another node's": other.id, "the cluster's": ""} {
		if _, err := c.verify(n, node, c.code()); err == nil {
			t.Errorf("%s: a node is told", name)
		}
	}
	c.w.apply("kind: role\nname: strict\nallow:\n  - {nodes: {none: such}, logins: [root], actions: [shell]}\noptions: {mfa: session}\n")
	await(t, c.w, func() bool { r, _ := c.w.policy.Role("strict"); return r.Allow[0].Logins[0] == "root" })
	if _, err := c.verify(n, n.id, c.code()); !fault.Is(err, fault.Denied) {
		t.Errorf("of who does not reach the node: %v", err)
	}
	if _, err := c.verify(c.proxy, "", c.code()); err != nil {
		t.Errorf("the code was used up by what was refused: %v", err)
	}
}

// TestFactorGuesses: who guesses at one member waits there. The person is let in
// at another, and their sign-in is not concerned (F38: no lockout of others).
func TestFactorGuesses(t *testing.T) {
	c := newCareful(t)
	bad, good := c.node("web-1"), c.node("web-2")
	waits := false
	for range pairGate.free + 1 {
		_, err := c.verify(bad, bad.id, wrongCode())
		waits = err != nil && strings.HasPrefix(fault.Public(err), "too many")
	}
	if !waits {
		t.Errorf("%d guesses at one node, and no wait", pairGate.free+1)
	}
	if _, err := c.verify(bad, bad.id, c.code()); !fault.Is(err, fault.Denied) {
		t.Errorf("the right code while it is to wait: %v", err)
	}
	if _, err := c.verify(good, good.id, c.code()); err != nil {
		t.Errorf("the right code at another node: %v", err)
	}
	c.w.clock.advance(time.Minute)
	if _, err := c.signIn(goodPassword, c.code()); err != nil {
		t.Errorf("the sign-in: %v", err)
	}
}

// TestProofOfFactor: what a proxy is issued says that the factor was given, for
// the proxy, the person and the key that it was given for and for nothing else,
// and as long as a certificate may live.
func TestProofOfFactor(t *testing.T) {
	c := newCareful(t)
	w := c.w
	delegate := func(m *member, cert, proof string) (*sshca.Identity, error) {
		res, err := call(t, m.Delegate, &accessdv1.DelegateRequest{
			Credential: &accessdv1.DelegateRequest_Certificate{Certificate: cert}, PublicKey: keyLine(proxyKey()), Client: clientAddr.String(), Proof: proof,
		})
		if err != nil {
			return nil, err
		}
		return w.identityOf(res.GetCertificate()), nil
	}
	if id, err := delegate(c.proxy, c.cert, ""); err != nil || id.Factor != "" || id.MFA != "totp" {
		t.Errorf("without a proof: %+v, %v; want the sign-in's factor alone", id, err)
	}
	res, err := c.verify(c.proxy, "", c.code())
	if err != nil {
		t.Fatal(err)
	}
	if id, err := delegate(c.proxy, c.cert, res.GetProof()); err != nil || id.Factor != "totp" {
		t.Errorf("with the proof: %+v, %v", id, err)
	}
	w.addUser("bob", "strict")
	w.known("bob")
	other := w.join(sshca.KindProxy, "edge-2")
	for name, try := range map[string]func() (*sshca.Identity, error){
		"another proxy":  func() (*sshca.Identity, error) { return delegate(other, c.cert, res.GetProof()) },
		"another person": func() (*sshca.Identity, error) { return delegate(c.proxy, w.sign("bob"), res.GetProof()) },
		"another key":    func() (*sshca.Identity, error) { return delegate(c.proxy, w.sign("alice"), res.GetProof()) },
		"a changed one":  func() (*sshca.Identity, error) { return delegate(c.proxy, c.cert, res.GetProof()[1:]+"A") },
		"no base64":      func() (*sshca.Identity, error) { return delegate(c.proxy, c.cert, "%") },
	} {
		if id, err := try(); !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %+v, %v; want it denied", name, id, err)
		}
	}
	n := w.addSSHD("db-1", nil)
	r := sessionRequest(c.cert, n)
	r.Role = "strict"
	if _, err := call(t, c.proxy.SignSession, r); !fault.Is(err, fault.Denied) {
		t.Errorf("a session on a plain sshd without a proof: %v", err)
	}
	r.Proof = res.GetProof()
	if _, err := call(t, c.proxy.SignSession, r); err != nil {
		t.Errorf("a session on a plain sshd with the proof: %v", err)
	}
}

// TestSignInForOneConnection: who signs in with password and code at the
// connection itself has given a factor for it; the certificate that a person
// takes home does not say so.
func TestSignInForOneConnection(t *testing.T) {
	c := newCareful(t)
	if id := c.w.identityOf(c.cert); id.Factor != "" || id.MFA != "totp" {
		t.Errorf("the person's own certificate: %+v", id)
	}
	key := proxyKey()
	s := must(t, c.proxy.Begin, &accessdv1.BeginRequest{User: "alice", PublicKey: keyLine(key), Client: clientAddr.String(), Connection: true})
	s, err := c.answer(s, goodPassword)
	if err == nil {
		s, err = c.answer(s, c.code())
	}
	if err != nil {
		t.Fatal(err)
	}
	if id := c.w.identityOf(s.GetCertificate()); id.Factor != "totp" {
		t.Errorf("the proxy's certificate: %+v", id)
	}
	id := c.w.identityOf(must(t, c.proxy.Redeem, &accessdv1.RedeemRequest{Grant: s.GetGrant(), PublicKey: keyLine(proxyKey())}).GetCertificate())
	if id.Factor != "" {
		t.Errorf("a further certificate: %+v, want the factor in none but that of the connection", id)
	}
}

// TestRecoveryCodes: each is good once, in place of a code, however it is typed;
// new ones make those before worthless, and the store has hashes.
func TestRecoveryCodes(t *testing.T) {
	c := newCareful(t)
	s, err := c.change(accessdv1.BeginChangeRequest_CHANGE_RECOVERY, []string{goodPassword, c.code()})
	if err != nil || !s.GetDone() {
		t.Fatalf("change = %v, %v", s, err)
	}
	_, text, _ := strings.Cut(s.GetInstruction(), "\n\n")
	codes := strings.Fields(text)
	if len(codes) != recoveryCodes {
		t.Fatalf("codes %q, want %d", codes, recoveryCodes)
	}
	stored, err := c.w.cfg.Store.Credentials(t.Context(), "alice")
	if err != nil || len(stored.Recovery) != recoveryCodes || strings.Contains(fmt.Sprint(stored.Recovery), codes[0]) {
		t.Errorf("stored %v, %v", stored.Recovery, err)
	}
	typed := strings.ToUpper(strings.ReplaceAll(codes[0], "-", " "))
	if res, err := c.verify(c.proxy, "", typed); err != nil || res.GetMethod() != "recovery" {
		t.Errorf("%q = %v, %v", typed, res, err)
	}
	if _, err := c.verify(c.proxy, "", codes[0]); err == nil {
		t.Error("a recovery code is good twice")
	}
	done, err := c.signIn(goodPassword, codes[1])
	if err != nil || c.w.identityOf(done.GetCertificate()).MFA != "recovery" {
		t.Errorf("sign-in with a recovery code: %v, %v", done, err)
	}
	if got := kinds(must(t, c.person().ListFactors, &accessdv1.ListFactorsRequest{})); got != "password totp recovery=8" {
		t.Errorf("factors = %q", got)
	}
	if _, err := c.change(accessdv1.BeginChangeRequest_CHANGE_RECOVERY_REMOVE, []string{goodPassword, codes[2]}); err != nil {
		t.Errorf("remove them: %v", err)
	}
	if _, err := c.verify(c.proxy, "", codes[3]); err == nil {
		t.Error("a recovery code is good that was given up")
	}
	c.w.clock.advance(time.Minute)
	must(t, c.w.admin().ResetUser, &accessdv1.ResetUserRequest{Name: "alice"})
	if got := kinds(must(t, c.person().ListFactors, &accessdv1.ListFactorsRequest{})); got != "" {
		t.Errorf("factors after a reset = %q", got)
	}
}

func kinds(res *accessdv1.ListFactorsResponse) string {
	var out []string
	for _, f := range res.GetFactors() {
		kind := f.GetKind()
		if f.GetLeft() > 0 {
			kind += fmt.Sprintf("=%d", f.GetLeft())
		}
		out = append(out, kind)
	}
	return strings.Join(out, " ")
}

// TestChangePassword: the password is changed by who knows it and has the second
// factor, whatever certificate they hold; what was wrong is not said.
func TestChangePassword(t *testing.T) {
	c := newCareful(t)
	const fresh = "another horse, another battery"
	for name, answers := range map[string][]string{
		"wrong password": {"wrong", c.code()}, "wrong code": {goodPassword, wrongCode()}, "both": {"wrong", wrongCode()},
	} {
		_, err := c.change(accessdv1.BeginChangeRequest_CHANGE_PASSWORD, answers)
		wantFault(t, err, fault.Denied, "the password or the code is wrong")
		if evs := c.w.rec.take(); len(named(evs, events.FactorVerify)) != 1 || len(named(evs, events.PasswordUpdate)) != 0 {
			t.Errorf("%s: events %+v", name, evs)
		}
	}
	s, err := c.change(accessdv1.BeginChangeRequest_CHANGE_PASSWORD, []string{goodPassword, c.code()}, []string{"short", "short"}, []string{fresh, "not " + fresh})
	if err != nil || s.GetDone() || !strings.HasPrefix(s.GetInstruction(), "Again, please: ") {
		t.Fatalf("after bad ones = %v, %v", s, err)
	}
	s, err = call(t, c.person().ContinueChange, &accessdv1.ContinueRequest{Id: s.GetId(), Answers: []string{fresh, fresh}})
	if err != nil || !s.GetDone() {
		t.Fatalf("change = %v, %v", s, err)
	}
	if evs := named(c.w.rec.take(), events.PasswordUpdate); len(evs) != 1 || !evs[0].Success || evs[0].User != "alice" || evs[0].Fields["by"] != "alice" {
		t.Errorf("events %+v", evs)
	}
	c.w.clock.advance(time.Minute)
	if _, err := c.elsewhere("198.51.100.9:999").signIn(goodPassword, c.code()); err == nil {
		t.Error("the old password is good")
	}
	if _, err := c.signIn(fresh, c.code()); err != nil {
		t.Errorf("the new password: %v", err)
	}
}

// TestChangeApp: the new app is confirmed before the old one is forgotten.
func TestChangeApp(t *testing.T) {
	c := newCareful(t)
	s, err := c.change(accessdv1.BeginChangeRequest_CHANGE_TOTP, []string{goodPassword, c.code()}, []string{wrongCode()})
	if err != nil || s.GetDone() {
		t.Fatalf("after a wrong code = %v, %v", s, err)
	}
	old := c.secret
	c.w.clock.advance(time.Minute)
	if _, err := c.verify(c.proxy, "", c.code()); err != nil {
		t.Errorf("the old app, while the new one is not confirmed: %v", err)
	}
	if s, err = c.change(accessdv1.BeginChangeRequest_CHANGE_TOTP); err != nil {
		t.Fatal(err)
	}
	c.w.clock.advance(time.Minute)
	if s, err = call(t, c.person().ContinueChange, &accessdv1.ContinueRequest{Id: s.GetId(), Answers: []string{goodPassword, c.code()}}); err != nil {
		t.Fatal(err)
	}
	c.secret = secretShown.FindString(s.GetInstruction())
	if s, err = call(t, c.person().ContinueChange, &accessdv1.ContinueRequest{Id: s.GetId(), Answers: []string{c.code()}}); err != nil || !s.GetDone() {
		t.Fatalf("change = %v, %v", s, err)
	}
	c.w.clock.advance(time.Minute)
	if _, err := c.verify(c.proxy, "", c.code()); err != nil {
		t.Errorf("the new app: %v", err)
	}
	c.w.clock.advance(time.Minute)
	c.secret = old
	if _, err := c.verify(c.proxy, "", c.code()); err == nil {
		t.Error("the old app is good")
	}
}

// TestResetWinsOverChange: what somebody had begun to change before an
// administrator reset them comes to nothing, and a conversation is its person's.
func TestResetWinsOverChange(t *testing.T) {
	c := newCareful(t)
	s, err := c.change(accessdv1.BeginChangeRequest_CHANGE_PASSWORD, []string{goodPassword, c.code()})
	if err != nil {
		t.Fatal(err)
	}
	c.w.addUser("bob", "access")
	c.w.known("bob")
	next := &accessdv1.ContinueRequest{Id: s.GetId(), Answers: []string{"a password of the thief's", "a password of the thief's"}}
	if _, err := call(t, c.w.factors(c.w.person("bob")).ContinueChange, next); !fault.Is(err, fault.NotFound) {
		t.Errorf("another person goes on: %v", err)
	}
	if _, err := call(t, c.proxy.Continue, next); !fault.Is(err, fault.NotFound) {
		t.Errorf("a proxy goes on: %v", err)
	}
	must(t, c.w.admin().ResetUser, &accessdv1.ResetUserRequest{Name: "alice"})
	_, err = call(t, c.person().ContinueChange, next)
	wantFault(t, err, fault.Denied, "it was changed meanwhile")
	if u, err := c.w.cfg.Store.Credentials(t.Context(), "alice"); err != nil || u.PasswordHash != "" {
		t.Errorf("credentials after a reset: password %v, %v", u.PasswordHash != "", err)
	}
	if _, err := call(t, c.w.factors(c.w.person("bob")).ListFactors, &accessdv1.ListFactorsRequest{User: "alice"}); !fault.Is(err, fault.Denied) {
		t.Errorf("another's factors: %v", err)
	}
}

// TestResetOfWhoSignsInElsewhere: there is nothing here to forget, and an invite
// would be a second way in.
func TestResetOfWhoSignsInElsewhere(t *testing.T) {
	w := newWorld(t, plan{})
	u := services.User{Name: "sue", Roles: []names.RoleName{"access"}, Origin: &services.UserOrigin{Connector: "google", Issuer: "https://accounts.example", Subject: "4711"}}
	if _, err := w.cfg.Store.CreateUser(t.Context(), u, services.Credentials{}); err != nil {
		t.Fatal(err)
	}
	_, err := call(t, w.admin().ResetUser, &accessdv1.ResetUserRequest{Name: "sue"})
	wantFault(t, err, fault.Conflict, `user "sue" signs in through connector "google" and has nothing here to forget`)
	if c, err := w.cfg.Store.Credentials(t.Context(), "sue"); err != nil || c.InviteHash != "" {
		t.Errorf("an invite is open, or %v", err)
	}
}
