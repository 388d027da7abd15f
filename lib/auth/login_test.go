package auth

import (
	"encoding/base32"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshca"
)

const goodPassword = "correct horse battery staple"

// A desk is a person who signs in: a key, a place, and an authenticator app.
type desk struct {
	w      *world
	proxy  *member
	user   string
	key    ssh.Signer
	client string
	secret string // of the app, base32
}

func (w *world) desk(proxy *member, user string) *desk {
	_, key := sshca.Generate()
	return &desk{w: w, proxy: proxy, user: user, key: key, client: clientAddr.String()}
}

// elsewhere returns the same person with another key at another place.
func (d *desk) elsewhere(client string) *desk {
	e := d.w.desk(d.proxy, d.user)
	e.client, e.secret = client, d.secret
	return e
}

func (d *desk) begin() *accessdv1.LoginStep {
	d.w.t.Helper()
	return must(d.w.t, d.proxy.Begin, &accessdv1.BeginRequest{User: d.user, PublicKey: keyLine(d.key.PublicKey()), Client: d.client})
}

func (d *desk) answer(s *accessdv1.LoginStep, answers ...string) (*accessdv1.LoginStep, error) {
	d.w.t.Helper()
	return call(d.w.t, d.proxy.Continue, &accessdv1.ContinueRequest{Id: s.GetId(), Answers: answers})
}

// code returns the app's code now.
func (d *desk) code() string {
	d.w.t.Helper()
	c, err := totp.GenerateCode(d.secret, d.w.clock.Now())
	if err != nil {
		d.w.t.Fatal(err)
	}
	return c
}

// signIn answers password and code.
func (d *desk) signIn(password, code string) (*accessdv1.LoginStep, error) {
	d.w.t.Helper()
	s, err := d.answer(d.begin(), password)
	if err != nil {
		return nil, err
	}
	return d.answer(s, code)
}

var secretShown = regexp.MustCompile(`(?m)^([A-Z2-7]{32})$`)

// enrol takes an invite all the way and moves on to the next code.
func (d *desk) enrol(invite string) *accessdv1.LoginStep {
	d.w.t.Helper()
	s := d.upToCode(invite)
	s, err := d.answer(s, d.code())
	if err != nil {
		d.w.t.Fatal(err)
	}
	d.w.clock.advance(time.Minute)
	return s
}

// upToCode takes an invite up to the confirmation of the app.
func (d *desk) upToCode(invite string) *accessdv1.LoginStep {
	d.w.t.Helper()
	s, err := d.answer(d.begin(), invite)
	if err != nil {
		d.w.t.Fatal(err)
	}
	if s, err = d.answer(s, goodPassword, goodPassword); err != nil {
		d.w.t.Fatal(err)
	}
	d.secret = secretShown.FindString(s.GetInstruction())
	return s
}

func prompts(s *accessdv1.LoginStep) string {
	var out []string
	for _, p := range s.GetPrompts() {
		out = append(out, fmt.Sprintf("%s%v", p.GetText(), p.GetEcho()))
	}
	return strings.Join(out, "|")
}

func TestFirstSignIn(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	invite := w.addUser("alice", "access")
	w.rec.take()
	d := w.desk(p, "alice")
	s := d.begin()
	if got := prompts(s); got != "Password, invite or join token: false" || s.GetInstruction() != "" {
		t.Errorf("first = %v", s)
	}
	s, err := d.answer(s, invite)
	if err != nil || prompts(s) != "New password: false|New password again: false" {
		t.Fatalf("after the invite = %v, %v", s, err)
	}
	for _, pair := range [][2]string{{"short", "short"}, {goodPassword, "another"}, {invite, invite}} {
		if s, err = d.answer(s, pair[0], pair[1]); err != nil || !strings.HasPrefix(s.GetInstruction(), "Again, please: ") {
			t.Fatalf("after %q = %v, %v", pair, s, err)
		}
	}
	if s, err = d.answer(s, goodPassword, goodPassword); err != nil || prompts(s) != "Code: false" || !strings.Contains(s.GetInstruction(), "▀") {
		t.Fatalf("after the password = %v, %v", s, err)
	}
	d.secret = secretShown.FindString(s.GetInstruction())
	if s, err = d.answer(s, "000000"); err != nil || s.GetDone() || !strings.Contains(s.GetInstruction(), "not the code") {
		t.Fatalf("after a wrong code = %v, %v", s, err)
	}
	if evs := named(w.rec.take(), events.InviteUse); len(evs) != 0 {
		t.Errorf("the invite is used before the end: %+v", evs)
	}
	if s, err = d.answer(s, d.code()); err != nil || !s.GetDone() {
		t.Fatalf("after the code = %v, %v", s, err)
	}
	id, err := w.cfg.Keys.Trust().CheckUser(parseCert(t, s.GetCertificate()), sshca.Peer{SSHUser: "alice", Now: w.clock.Now()})
	if err != nil || id.MFA != "totp" || id.Fingerprint != ssh.FingerprintSHA256(d.key.PublicKey()) || len(id.Logins) != 2 {
		t.Errorf("identity = %+v, %v", id, err)
	}
	if want := w.clock.Now().Add(12 * time.Hour); !s.GetExpires().AsTime().Equal(want) || !id.ValidBefore.Equal(want) {
		t.Errorf("expires %v, want %v", s.GetExpires().AsTime(), want)
	}
	var got []events.Name
	for _, ev := range w.rec.take() {
		got = append(got, ev.Name)
		if !ev.Success || ev.User != "alice" || ev.AddrRemote != d.client {
			t.Errorf("event %+v", ev)
		}
	}
	if want := []events.Name{events.InviteUse, events.UserLogin, events.CertCreate}; !slices.Equal(got, want) {
		t.Errorf("events = %v, want %v", got, want)
	}
	if u := must(t, w.admin().ListUsers, &accessdv1.ListUsersRequest{}).GetUsers()[0]; !u.GetHasPassword() || !u.GetHasTotp() || u.GetInviteExpires() != nil {
		t.Errorf("user = %v", u)
	}

	// The invite is used up, the code too, the next one is good.
	e := d.elsewhere(d.client)
	if _, err := e.signIn(invite, d.code()); !fault.Is(err, fault.Denied) {
		t.Errorf("second use of the invite: %v", err)
	}
	if _, err := e.signIn(goodPassword, d.code()); !fault.Is(err, fault.Denied) {
		t.Errorf("the code that confirmed the app is good again: %v", err)
	}
	w.clock.advance(30 * time.Second)
	if s, err := e.signIn(goodPassword, d.code()); err != nil || !s.GetDone() {
		t.Errorf("sign-in = %v, %v", s, err)
	}
}

// TestSignInRefusals: every bad end looks the same to the person and is told
// apart in the log; a stranger's name is asked what a person's is (THREATS: no
// name of user is learnt).
func TestSignInRefusals(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	alice := w.desk(p, "alice")
	alice.enrol(w.addUser("alice", "access"))
	openInvite := w.addUser("bob", "access")
	expired := w.addUser("carol", "access")
	w.clock.advance(25 * time.Hour)
	must(t, w.admin().ResetUser, &accessdv1.ResetUserRequest{Name: "bob"})
	madeUp, _ := newInvite()
	for i, c := range []struct {
		name, user, first string
		code              func() string
		reason            string
	}{
		{"wrong password, wrong code", "alice", "wrong", wrongCode, "wrong password"},
		{"wrong password, right code", "alice", "wrong", alice.code, "wrong password"},
		{"right password, wrong code", "alice", goodPassword, wrongCode, "wrong code"},
		{"right password, no code", "alice", goodPassword, func() string { return "" }, "wrong code"},
		{"empty password", "alice", "", alice.code, "wrong password"},
		{"unknown user", "nobody", "wrong", wrongCode, "no such user"},
		{"unknown user, other's secrets", "nobody", goodPassword, alice.code, "no such user"},
		{"invited only", "bob", "wrong", wrongCode, "wrong password"},
		{"invited only, nothing", "bob", "", func() string { return "" }, "wrong password"},
		{"replaced invite", "bob", openInvite, wrongCode, "wrong invite"},
		{"made-up invite", "alice", madeUp, wrongCode, "wrong invite"},
		{"made-up invite, unknown user", "nobody", madeUp, wrongCode, "no such user"},
		{"expired invite", "carol", expired, wrongCode, "the invite has expired"},
	} {
		w.rec.take()
		d := alice.elsewhere(fmt.Sprintf("198.51.100.%d:999", i+1))
		d.user = c.user
		first := d.begin()
		second, err := d.answer(first, c.first)
		if err != nil {
			t.Errorf("%s: the first answer: %v", c.name, err)
			continue
		}
		if prompts(first) != "Password, invite or join token: false" || first.GetInstruction() != "" || prompts(second) != "Code: false" || second.GetInstruction() != "" {
			t.Errorf("%s: asked %v and %v", c.name, first, second)
		}
		_, err = d.answer(second, c.code())
		wantFault(t, err, fault.Denied, "permission denied")
		evs := w.rec.take()
		if len(evs) != 1 || evs[0].Name != events.UserLogin || evs[0].Success || evs[0].Error != c.reason || string(evs[0].User) != c.user || evs[0].AddrRemote != d.client {
			t.Errorf("%s: events %+v, want one user.login with %q", c.name, evs, c.reason)
		}
		if strings.Contains(stringOf(evs), goodPassword) || strings.Contains(stringOf(evs), madeUp[10:]) {
			t.Errorf("%s: the event holds what was typed", c.name)
		}
		if _, err := d.answer(second, alice.code()); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: the sign-in goes on after its end: %v", c.name, err)
		}
	}
}

func wrongCode() string { return "000000" }

// TestReplayedCode: F38. A code is good once, whoever is first, also when two
// come at the same time, and an older one is not good after a newer one.
func TestReplayedCode(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	d := w.desk(p, "alice")
	d.enrol(w.addUser("alice", "access"))
	code := d.code()
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		e := d.elsewhere(fmt.Sprintf("198.51.100.%d:999", i+1))
		wg.Go(func() { _, errs[i] = e.signIn(goodPassword, code) })
	}
	wg.Wait()
	good := 0
	for _, err := range errs {
		if err == nil {
			good++
		} else {
			wantFault(t, err, fault.Denied, "permission denied")
		}
	}
	if good != 1 {
		t.Errorf("one code was good %d times at once: %v", good, errs)
	}
	if evs := named(w.rec.take(), events.UserLogin); !slices.ContainsFunc(evs, func(ev events.Event) bool { return ev.Error == "the code was used before" }) {
		t.Errorf("events = %+v", evs)
	}
	if _, err := d.signIn(goodPassword, code); !fault.Is(err, fault.Denied) {
		t.Errorf("replay: %v, want a denial", err)
	}
	older := d.code()
	w.clock.advance(30 * time.Second)
	if _, err := d.signIn(goodPassword, d.code()); err != nil {
		t.Errorf("the next code: %v", err)
	}
	if _, err := d.elsewhere("198.51.100.77:1").signIn(goodPassword, older); !fault.Is(err, fault.Denied) {
		t.Errorf("an older code after a newer one: %v, want a denial", err)
	}
}

// TestLockOutAtEveryAuthority: F08, F38. Whoever guesses at two authorities of a
// cluster waits at both, and so does who restarts one.
func TestLockOutAtEveryAuthority(t *testing.T) {
	dir := t.TempDir()
	one := newWorld(t, plan{dir: dir})
	two := newWorld(t, plan{dir: dir, backend: one.back})
	proxies := []*member{one.join(sshca.KindProxy, "edge-1"), two.join(sshca.KindProxy, "edge-2")}
	first := one.desk(proxies[0], "alice")
	first.enrol(one.addUser("alice", "access"))
	checked := 0
	for i := range 3 * pairGate.free {
		w := []*world{one, two}[i%2]
		d := w.desk(proxies[i%2], "alice")
		d.secret = first.secret
		if _, err := d.signIn("wrong password", "000000"); !fault.Is(err, fault.Denied) {
			t.Fatalf("a guess: %v", err)
		}
		if evs := named(w.rec.take(), events.UserLogin); len(evs) == 1 && evs[0].Error == "wrong password" {
			checked++
		}
	}
	if checked < pairGate.free || checked > pairGate.free+1 {
		t.Errorf("%d guesses were looked at, want %d and at most one more", checked, pairGate.free)
	}
	three := newWorld(t, plan{dir: dir, backend: one.back})
	d := three.desk(three.join(sshca.KindProxy, "edge-3"), "alice")
	d.secret = first.secret
	_, err := d.signIn(goodPassword, d.code())
	if evs := named(three.rec.take(), events.UserLogin); err == nil || len(evs) != 1 || evs[0].Error != "too many failed sign-ins" {
		t.Errorf("an authority that starts: %v, %v; want it to remember", err, evs)
	}
}

// TestLockOut: F38, brute force. The guesser waits, whatever he sends; the
// person elsewhere does not; a stranger's name is treated the same.
func TestLockOut(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	alice := w.desk(p, "alice")
	alice.enrol(w.addUser("alice", "access"))
	for _, user := range []string{"alice", "nobody"} {
		guesser := alice.elsewhere("198.51.100.9:1")
		guesser.user = user
		for range pairGate.free {
			if _, err := guesser.signIn("wrong", "000000"); fault.Public(err) != "permission denied" {
				t.Fatalf("guess at %s: %v", user, err)
			}
		}
		w.rec.take()
		_, err := guesser.signIn(goodPassword, alice.code())
		wantFault(t, err, fault.Denied, "too many failed sign-ins")
		if got := fault.Hint(err); got != "try again in 10s" {
			t.Errorf("%s: hint %q", user, got)
		}
		if evs := named(w.rec.take(), events.UserLogin); len(evs) != 1 || evs[0].Success || evs[0].Error != "too many failed sign-ins" {
			t.Errorf("%s: events %+v", user, evs)
		}
	}
	if _, err := alice.signIn(goodPassword, alice.code()); err != nil {
		t.Errorf("alice at her own place: %v", err)
	}
	w.clock.advance(time.Hour)
	late := alice.elsewhere("198.51.100.9:2")
	if _, err := late.signIn(goodPassword, alice.code()); err != nil {
		t.Errorf("alice at the guesser's place an hour later: %v", err)
	}
}

// TestInviteRace: two people with one invite: one of them is the person.
func TestInviteRace(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	invite := w.addUser("alice", "access")
	a, b := w.desk(p, "alice"), w.desk(p, "alice")
	sa, sb := a.upToCode(invite), b.upToCode(invite)
	if a.secret == b.secret {
		t.Fatal("two enrolments have one secret")
	}
	var wg sync.WaitGroup
	var errs [2]error
	wg.Go(func() { _, errs[0] = a.answer(sa, a.code()) })
	wg.Go(func() { _, errs[1] = b.answer(sb, b.code()) })
	wg.Wait()
	if (errs[0] == nil) == (errs[1] == nil) {
		t.Fatalf("errors = %v, want one", errs)
	}
	uses := named(w.rec.take(), events.InviteUse)
	last := map[any]bool{}
	for _, ev := range uses {
		last[ev.Fields["fingerprint"]] = ev.Success
	}
	if len(last) != 2 || last[ssh.FingerprintSHA256(a.key.PublicKey())] == last[ssh.FingerprintSHA256(b.key.PublicKey())] {
		t.Errorf("invite.use = %+v, want one that went well in the end", uses)
	}
}

// TestChangesMeanwhile: who is removed or reset while signing in is not in.
func TestChangesMeanwhile(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	alice := w.desk(p, "alice")
	alice.enrol(w.addUser("alice", "access"))
	half := func() *accessdv1.LoginStep {
		s, err := alice.answer(alice.begin(), goodPassword)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := half()
	must(t, w.admin().ResetUser, &accessdv1.ResetUserRequest{Name: "alice"})
	if _, err := alice.answer(s, alice.code()); !fault.Is(err, fault.Denied) {
		t.Errorf("after a reset: %v, want a denial", err)
	}
	bob := w.desk(p, "bob")
	s = bob.upToCode(w.addUser("bob", "access"))
	must(t, w.admin().RemoveUser, &accessdv1.RemoveUserRequest{Name: "bob"})
	if _, err := bob.answer(s, bob.code()); !fault.Is(err, fault.Denied) {
		t.Errorf("after a removal: %v, want a denial", err)
	}
}

// TestSignInBelongsToItsProxy: another proxy cannot answer, cancel or redeem.
func TestSignInBelongsToItsProxy(t *testing.T) {
	w := newWorld(t, plan{})
	p, q := w.join(sshca.KindProxy, "edge-1"), w.join(sshca.KindProxy, "edge-2")
	d := w.desk(p, "alice")
	d.enrol(w.addUser("alice", "access"))
	s := d.begin()
	_, err := call(t, q.Continue, &accessdv1.ContinueRequest{Id: s.GetId(), Answers: []string{goodPassword}})
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("another proxy's answer: %v", err)
	}
	must(t, q.Cancel, &accessdv1.CancelRequest{Id: s.GetId()})
	if s, err = d.answer(s, goodPassword); err != nil {
		t.Fatalf("after another proxy's cancel: %v", err)
	}
	must(t, p.Cancel, &accessdv1.CancelRequest{Id: s.GetId()})
	if _, err := d.answer(s, d.code()); !fault.Is(err, fault.NotFound) {
		t.Errorf("after the cancel: %v", err)
	}
	for _, answers := range [][]string{nil, {"a", "b"}, {strings.Repeat("x", maxText+1)}} {
		if _, err := d.answer(d.begin(), answers...); !fault.Is(err, fault.BadInput) {
			t.Errorf("%d answers: %v", len(answers), err)
		}
	}
}

func TestBeginBadInput(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	_, signer := sshca.Generate()
	key := keyLine(signer.PublicKey())
	for name, req := range map[string]*accessdv1.BeginRequest{
		"user":   {User: "a\nb", PublicKey: key, Client: clientAddr.String()},
		"key":    {User: "alice", PublicKey: "x", Client: clientAddr.String()},
		"client": {User: "alice", PublicKey: key, Client: "somewhere"},
	} {
		if _, err := call(t, p.Begin, req); !fault.Is(err, fault.BadInput) {
			t.Errorf("bad %s: %v", name, err)
		}
	}
}

// TestGrant: the certificate for the agent is that of the sign-in for another
// key: no longer, from nowhere else, with no role more; once; for a minute.
func TestGrant(t *testing.T) {
	w := newWorld(t, plan{})
	must(t, w.admin().ApplyRoles, &accessdv1.ApplyRolesRequest{Yaml: []byte(pinnedRole)})
	p, q := w.join(sshca.KindProxy, "edge-1"), w.join(sshca.KindProxy, "edge-2")
	d := w.desk(p, "alice")
	done := d.enrol(w.addUser("alice", "access", "pinned"))
	first := parseCert(t, done.GetCertificate())
	if got := first.CriticalOptions["source-address"]; got != "203.0.113.7/32" {
		t.Errorf("source-address = %q, want the client's", got)
	}
	if _, err := call(t, q.Redeem, &accessdv1.RedeemRequest{Grant: done.GetGrant(), PublicKey: keyLine(d.key.PublicKey())}); !fault.Is(err, fault.Denied) {
		t.Errorf("another proxy redeems: %v", err)
	}
	w.clock.advance(-time.Minute + time.Second) // enrol moved on by the minute a grant lives

	// Meanwhile the person gets a role and loses another.
	u, err := w.cfg.Store.User(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	u.Roles = append(u.Roles[1:], "admin")
	if _, err := w.cfg.Store.UpdateUser(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	_, fresh := sshca.Generate()
	w.rec.take()
	res := must(t, p.Redeem, &accessdv1.RedeemRequest{Grant: done.GetGrant(), PublicKey: keyLine(fresh.PublicKey())})
	second := parseCert(t, res.GetCertificate())
	id, err := w.cfg.Keys.Trust().CheckUser(second, sshca.Peer{SSHUser: "alice", Addr: clientAddr.Addr(), Now: w.clock.Now()})
	if err != nil || id.Fingerprint != ssh.FingerprintSHA256(fresh.PublicKey()) || id.MFA != "totp" {
		t.Fatalf("identity = %+v, %v", id, err)
	}
	if second.ValidBefore != first.ValidBefore || second.CriticalOptions["source-address"] != "203.0.113.7/32" {
		t.Errorf("the second certificate is more than the first: %+v", second)
	}
	if len(id.Roles) != 1 || id.Roles[0] != "pinned" {
		t.Errorf("roles = %v, want what the person had and still has", id.Roles)
	}
	if evs := named(w.rec.take(), events.CertCreate); len(evs) != 1 || evs[0].Fields["method"] != "grant" {
		t.Errorf("events = %+v", evs)
	}
	if _, err := call(t, p.Redeem, &accessdv1.RedeemRequest{Grant: done.GetGrant(), PublicKey: keyLine(fresh.PublicKey())}); !fault.Is(err, fault.Denied) {
		t.Errorf("second use: %v", err)
	}
}

// TestSecretsServeOnePurpose: a secret that opens one thing opens nothing else
// (THREATS: a token of one method is refused at another's endpoint).
func TestSecretsServeOnePurpose(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	token := w.token(&accessdv1.AddTokenRequest{Role: "node"})
	_, tokenSecret, _ := strings.Cut(token, ".")
	invite := w.addUser("bob", "access")
	alice, bob := w.desk(p, "alice"), w.desk(p, "bob")
	done := alice.enrol(w.addUser("alice", "access"))
	bob.secret = alice.secret
	for name, s := range map[string]string{
		"a proxy's token": w.token(&accessdv1.AddTokenRequest{Role: "proxy"}), "a token's secret": invitePrefix + tokenSecret, "a grant": invitePrefix + done.GetGrant(), "an invite without its prefix": invite[len(invitePrefix):],
	} {
		if _, err := bob.elsewhere("198.51.100.9:1").signIn(s, alice.code()); !fault.Is(err, fault.Denied) {
			t.Errorf("%s as an invite: %v", name, err)
		}
		w.clock.advance(time.Hour)
	}
	if _, err := alice.elsewhere("198.51.100.9:1").signIn(invite, alice.code()); !fault.Is(err, fault.Denied) {
		t.Errorf("another's invite: %v", err)
	}
	joiner := newMember(sshca.KindNode, "web-1")
	for name, s := range map[string]string{"an invite": invite, "an invite's secret": token[:13] + invite[len(invitePrefix):]} {
		if _, err := call(t, w.joiner(joiner.key).Join, joiner.request(s)); err == nil {
			t.Errorf("%s as a join token was taken", name)
		}
	}
	for name, s := range map[string]string{"an invite": invite, "a sign-in": alice.begin().GetId(), "a token's secret": tokenSecret} {
		if _, err := call(t, p.Redeem, &accessdv1.RedeemRequest{Grant: s, PublicKey: keyLine(alice.key.PublicKey())}); !fault.Is(err, fault.Denied) {
			t.Errorf("%s as a grant: %v", name, err)
		}
	}
	if _, err := call(t, p.Continue, &accessdv1.ContinueRequest{Id: done.GetGrant(), Answers: []string{goodPassword}}); !fault.Is(err, fault.NotFound) {
		t.Errorf("a grant as a sign-in: %v", err)
	}
}

// TestDearerHash: raising the cost reaches people as they sign in.
func TestDearerHash(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	d := w.desk(p, "alice")
	d.enrol(w.addUser("alice", "access"))
	w.hasher = newHasher(Argon2{Time: 2, MemoryKiB: 128, Threads: 1}, 2)
	if _, err := d.signIn(goodPassword, d.code()); err != nil {
		t.Fatal(err)
	}
	c, err := w.cfg.Store.Credentials(t.Context(), "alice")
	if err != nil || w.hasher.stale(c.PasswordHash) {
		t.Errorf("the hash is %q, %v, want one of today's cost", c.PasswordHash, err)
	}
	w.clock.advance(30 * time.Second)
	if _, err := d.signIn(goodPassword, d.code()); err != nil {
		t.Errorf("with the new hash: %v", err)
	}
}

// TestTimingTellsNothing: an unknown name costs what a wrong password costs.
func TestTimingTellsNothing(t *testing.T) {
	w := newWorld(t, plan{change: func(c *Config) { c.Argon2 = Argon2{Time: 1, MemoryKiB: 16 << 10, Threads: 1} }})
	p := w.join(sshca.KindProxy, "edge-1")
	alice := w.desk(p, "alice")
	alice.enrol(w.addUser("alice", "access"))
	const rounds = 25
	took := map[string][]time.Duration{}
	for i := range rounds {
		for _, user := range []string{"alice", "nobody"} {
			d := alice.elsewhere(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 1}), 1).String())
			d.user = user
			w.clock.advance(time.Hour) // nobody has to wait
			begin := time.Now()
			if _, err := d.signIn("wrong", "000000"); !fault.Is(err, fault.Denied) {
				t.Fatal(err)
			}
			took[user] = append(took[user], time.Since(begin))
		}
	}
	// A busy machine only adds to what a sign-in takes, so the fastest tell most.
	known, unknown := slices.Min(took["alice"]), slices.Min(took["nobody"])
	if diff := (known - unknown).Abs(); diff > max(10*time.Millisecond, known/3) {
		t.Errorf("fastest: known %v, unknown %v, want them within 10 ms or a third", known, unknown)
	}
}

func TestRemember(t *testing.T) {
	var known []string
	for i := range 12 {
		known = remember(known, fmt.Sprint(i))
	}
	known = remember(known, "8")
	if want := []string{"8", "11", "10", "9", "7", "6", "5", "4"}; !slices.Equal(known, want) {
		t.Errorf("known = %v, want %v", known, want)
	}
}

// FuzzFirstAnswer: whatever is typed at the first prompt, the next is the code,
// unless it is the invite.
func FuzzFirstAnswer(f *testing.F) {
	w := newWorld(f, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	invite := w.addUser("alice", "access")
	f.Add("password")
	f.Add(invite[:20])
	f.Fuzz(func(t *testing.T, s string) {
		w.backoff = newBackoff("sign-in", nil, w.clock.Now, w.cfg.Log)
		w.t = t
		d := w.desk(p, "alice")
		first := d.begin()
		next, err := d.answer(first, s)
		if err == nil && prompts(next) != "Code: false" && strings.TrimSpace(s) != invite {
			t.Errorf("%q leads to %v", s, next)
		}
		must(t, p.Cancel, &accessdv1.CancelRequest{Id: first.GetId()})
	})
}

func decodeBase32(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
