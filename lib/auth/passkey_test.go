package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/integration/impostor"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// A gadget is a browser with a passkey of its own, which answers as the page asks,
// and otherwise than its counter and origin say only when a test has it so. What
// stands in an answer is package passkey's to test.
type gadget struct {
	t       *testing.T
	key     *ecdsa.PrivateKey
	id      []byte
	handle  []byte // of the user that it was made for
	counter uint32
	origin  string
}

func newGadget(t *testing.T) *gadget {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &gadget{t: t, key: key, id: randomBytes(32), origin: "https://login.example"}
}

// answer does what the options say.
func (g *gadget) answer(ask *accessdv1.BeginPasskeyResponse) []byte {
	g.t.Helper()
	b64 := base64.RawURLEncoding
	var o struct {
		PublicKey struct {
			Challenge string `json:"challenge"`
			User      struct {
				ID string `json:"id"`
			} `json:"user"`
		} `json:"publicKey"`
	}
	if err := json.Unmarshal(ask.GetOptions(), &o); err != nil {
		g.t.Fatal(err)
	}
	marshal := func(v any) []byte {
		text, err := json.Marshal(v)
		if err != nil {
			g.t.Fatal(err)
		}
		return text
	}
	act, flags := "webauthn.get", byte(1|4)
	if ask.GetCreate() {
		act, flags = "webauthn.create", byte(1|4|64)
		var err error
		if g.handle, err = b64.DecodeString(o.PublicKey.User.ID); err != nil {
			g.t.Fatal(err)
		}
	} else {
		g.counter++
	}
	client := marshal(map[string]any{"type": act, "challenge": o.PublicKey.Challenge, "origin": g.origin})
	rp := sha256.Sum256([]byte("login.example"))
	data := binary.BigEndian.AppendUint32(append(rp[:], flags), g.counter)
	response := map[string]any{"clientDataJSON": b64.EncodeToString(client)}
	if ask.GetCreate() {
		data = binary.BigEndian.AppendUint16(append(data, make([]byte, 16)...), uint16(len(g.id)))
		data = append(data, g.id...)
		public, err := x509.MarshalPKIXPublicKey(g.key.Public())
		if err != nil {
			g.t.Fatal(err)
		}
		response["publicKey"], response["publicKeyAlgorithm"] = b64.EncodeToString(public), -7
	} else {
		hash := sha256.Sum256(client)
		sum := sha256.Sum256(append(slices.Clip(data), hash[:]...))
		signature, err := ecdsa.SignASN1(rand.Reader, g.key, sum[:])
		if err != nil {
			g.t.Fatal(err)
		}
		response["signature"], response["userHandle"] = b64.EncodeToString(signature), b64.EncodeToString(g.handle)
	}
	response["authenticatorData"] = b64.EncodeToString(data)
	return marshal(map[string]any{"rawId": b64.EncodeToString(g.id), "type": "public-key", "response": response})
}

// A page is one that a link leads to.
type page struct {
	counter

	link, code string
}

var anyLink = regexp.MustCompile(`(?s)https://login\.example/sso\?link=(\S+).*type this code there:  (\S+)\n`)

// open opens the link that a terminal shows.
func (c counter) open(s *accessdv1.LoginStep) page {
	c.w.t.Helper()
	m := anyLink.FindStringSubmatch(s.GetInstruction())
	if m == nil || len(s.GetPrompts()) > 0 {
		c.w.t.Fatalf("there is no link in %v", s)
	}
	return page{c, m[1], m[2]}
}

func (p page) begin(browser string) (*accessdv1.BeginPasskeyResponse, error) {
	return call(p.w.t, p.BeginPasskey, &accessdv1.BeginPasskeyRequest{Link: p.link, Code: p.code, Browser: browser, Client: "203.0.113.9:1"})
}

func (p page) finish(browser string, answer []byte) error {
	_, err := call(p.w.t, p.FinishPasskey, &accessdv1.FinishPasskeyRequest{Link: p.link, Credential: answer, Browser: browser, Client: "203.0.113.9:1"})
	return err
}

// vouch uses g on the page, from its beginning to its end.
func (p page) vouch(g *gadget) error {
	p.w.t.Helper()
	ask, err := p.begin(browserOne)
	if err != nil {
		p.w.t.Fatal(err)
	}
	return p.finish(browserOne, g.answer(ask))
}

// newPasskeys is a cluster whose pages have a name, in which alice has taken an
// invite with a passkey.
func newPasskeys(t *testing.T) (counter, *desk, *gadget) {
	t.Helper()
	w := newWorld(t, plan{change: func(c *Config) { c.PublicURL = "https://login.example" }})
	c := w.counter("edge-1")
	d, g := w.desk(c.member, "alice"), newGadget(t)
	invite := w.add("alice")
	s := d.begin()
	if got := prompts(s); got != "Password, invite or join token: false" {
		t.Errorf("before there are passkeys the first question is %q", got)
	}
	s = c.w.then(d, s, invite)
	s = c.w.then(d, s, "", "")
	if err := c.open(s).vouch(g); err != nil {
		t.Fatal(err)
	}
	if s = c.w.then(d, s); !s.GetDone() {
		t.Fatalf("with an invite and a passkey = %v", s)
	}
	return c, d, g
}

// add makes a user and returns the invite.
func (w *world) add(user string) string {
	w.t.Helper()
	return must(w.t, w.admin().AddUser, &accessdv1.AddUserRequest{Name: user, Roles: []string{"access"}, Logins: []string{"root"}}).GetInvite()
}

// then is a desk's answer that must be good.
func (w *world) then(d *desk, s *accessdv1.LoginStep, answers ...string) *accessdv1.LoginStep {
	w.t.Helper()
	out, err := d.answer(s, answers...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// reasons are why sign-ins were refused since the last look.
func (w *world) reasons() (list []string) {
	for _, ev := range named(w.rec.take(), events.UserLogin) {
		if !ev.Success {
			list = append(list, ev.Error)
		}
	}
	return list
}

// A passkey is who and two factors; each use is noted, and no name is told apart
// from another before a passkey was shown.
func TestSignInWithAPasskey(t *testing.T) {
	c, d, g := newPasskeys(t)
	w := c.w
	w.rec.take()
	s := d.begin()
	nobody := w.desk(c.member, "nobody")
	if a, b := prompts(s), prompts(nobody.begin()); a != "Password, invite or join token (empty: passkey): false" || a != b {
		t.Errorf("the first question is %q, and %q for nobody", a, b)
	}
	s = w.then(d, s, "")
	p := c.open(s)
	shown := must(t, c.Show, &accessdv1.ShowRequest{Link: p.link})
	if !shown.GetPasskey() || shown.GetConnector() != "" || shown.GetUser() != "alice" || shown.GetFingerprint() != ssh.FingerprintSHA256(d.key.PublicKey()) {
		t.Errorf("the page shows %v", shown)
	}
	if err := p.vouch(g); err != nil {
		t.Fatal(err)
	}
	if s = w.then(d, s); !s.GetDone() {
		t.Fatalf("the terminal = %v", s)
	}
	id := w.identityOf(s.GetCertificate())
	if id.MFA != methodPasskey || id.Factor != "" || id.User != "alice" {
		t.Errorf("identity = %+v", id)
	}
	evs := named(w.rec.take(), events.UserLogin)
	if len(evs) != 1 || !evs[0].Success || evs[0].Fields["method"] != methodPasskey || evs[0].Fields["mfa"] != methodPasskey {
		t.Errorf("events = %+v", evs)
	}
	creds, err := w.cfg.Store.Credentials(t.Context(), "alice")
	if err != nil || len(creds.Passkeys) != 1 || creds.Passkeys[0].Counter != g.counter || creds.Passkeys[0].Used.IsZero() || len(creds.KnownKeys) == 0 {
		t.Errorf("credentials = %#v, %v", creds.Passkeys, err)
	}
	s = w.then(nobody, nobody.begin(), "")
	if err := c.open(s).vouch(g); err == nil {
		t.Error("a passkey of alice's is good for nobody")
	}
	_, err = nobody.answer(s)
	wantFault(t, err, fault.Denied, "permission denied")
}

// What is refused, and why, which the log says and the person's terminal does not.
func TestPasskeyRefused(t *testing.T) {
	c, alice, g := newPasskeys(t)
	w := c.w
	w.add("bob")
	mark := g.counter
	var old []byte // an answer that was good once
	for _, row := range []struct {
		name, user, why string
		do              func(p page, ask *accessdv1.BeginPasskeyResponse) error
	}{
		{"another person's", "bob", "the passkey is that of alice", func(p page, ask *accessdv1.BeginPasskeyResponse) error {
			return p.finish(browserOne, g.answer(ask))
		}},
		{"nobody's", "alice", "no such passkey", func(p page, ask *accessdv1.BeginPasskeyResponse) error {
			return p.finish(browserOne, newGadget(t).answer(ask))
		}},
		{"of another page", "alice", "it was given to the page", func(p page, ask *accessdv1.BeginPasskeyResponse) error {
			evil := *g
			evil.origin = "https://login.example.evil.test"
			return p.finish(browserOne, evil.answer(ask))
		}},
		{"with another's key", "alice", "the signature is not the passkey's", func(p page, ask *accessdv1.BeginPasskeyResponse) error {
			other := *newGadget(t)
			other.id, other.handle, other.counter = g.id, g.handle, g.counter
			return p.finish(browserOne, other.answer(ask))
		}},
		{"with another handle", "alice", "no such passkey", func(p page, ask *accessdv1.BeginPasskeyResponse) error {
			other := *g
			other.handle = []byte("x")
			return p.finish(browserOne, other.answer(ask))
		}},
		{"a copy", "alice", "there may be a copy", func(p page, ask *accessdv1.BeginPasskeyResponse) error {
			twin := *g
			twin.counter = 0
			old = twin.answer(ask)
			twin.counter = 0
			return p.finish(browserOne, twin.answer(ask))
		}},
		{"an answer to another challenge", "alice", "it is to another challenge", func(p page, _ *accessdv1.BeginPasskeyResponse) error {
			return p.finish(browserOne, old)
		}},
		{"no answer", "alice", "it cannot be read", func(p page, _ *accessdv1.BeginPasskeyResponse) error {
			return p.finish(browserOne, []byte("{"))
		}},
		{"too long", "alice", "too long", func(p page, _ *accessdv1.BeginPasskeyResponse) error {
			return p.finish(browserOne, make([]byte, maxCredential+1))
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			d := w.desk(c.member, row.user)
			g.counter = max(g.counter, mark+1)
			if row.name == "a copy" { // the passkey itself has been used since
				s := w.then(d, d.begin(), "")
				if err := c.open(s).vouch(g); err != nil {
					t.Fatal(err)
				}
			}
			s := w.then(d, d.begin(), "")
			p := c.open(s)
			ask, err := p.begin(browserOne)
			if err != nil {
				t.Fatal(err)
			}
			w.rec.take()
			wantFault(t, row.do(p, ask), fault.Denied, "the sign-in was refused")
			if why := w.reasons(); len(why) != 1 || !strings.Contains(why[0], row.why) {
				t.Errorf("the log says %q, want %q", why, row.why)
			}
			_, err = d.answer(s)
			wantFault(t, err, fault.Denied, "permission denied")
			if err := p.finish(browserOne, g.answer(ask)); !fault.Is(err, fault.NotFound) {
				t.Errorf("the right answer after a wrong one = %v", err)
			}
		})
	}
	t.Run("another browser", func(t *testing.T) {
		p := c.open(w.then(alice, alice.begin(), ""))
		ask, err := p.begin(browserOne)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.begin(browserTwo); !fault.Is(err, fault.Denied) {
			t.Errorf("begun again elsewhere = %v", err)
		}
		if err := p.finish(browserTwo, g.answer(ask)); !fault.Is(err, fault.Denied) {
			t.Errorf("finished elsewhere = %v", err)
		}
		if again, err := p.begin(browserOne); err != nil || string(again.GetOptions()) == string(ask.GetOptions()) {
			t.Errorf("begun again here = %v, %v", again, err)
		}
	})
	t.Run("a guessed code", func(t *testing.T) {
		s := w.then(alice, alice.begin(), "")
		p := c.open(s)
		good := p.code
		p.code = "BBBB-BBBB"
		for range signOnTries {
			if _, err := p.begin(browserOne); err == nil {
				t.Error("a wrong code is taken")
			}
		}
		p.code = good
		if _, err := p.begin(browserOne); !fault.Is(err, fault.NotFound) {
			t.Errorf("the right code after too many wrong ones = %v", err)
		}
		_, err := alice.answer(s)
		wantFault(t, err, fault.Denied, "permission denied")
	})
	t.Run("codes guessed at the same time", func(t *testing.T) {
		p := c.open(w.then(alice, alice.begin(), ""))
		const at = 16
		var read, all sync.WaitGroup // read: the link, of which the clock is asked next
		read.Add(at)
		var arrived, taken atomic.Int32
		w.clock.whenAsked(func() {
			if arrived.Add(1) <= at {
				read.Done()
				read.Wait()
			}
		})
		for range at { // as good as guesses of which one is right: all are looked at, or one
			all.Go(func() {
				if _, err := (signOnService{w.Authority}).confirmed(t.Context(), &accessdv1.BeginPasskeyRequest{Link: p.link, Code: p.code, Browser: browserOne}); err == nil {
					taken.Add(1)
				} else if !fault.Is(err, fault.Conflict) {
					t.Errorf("a guess at the same time: %v", err)
				}
			})
		}
		all.Wait()
		w.clock.whenAsked(nil)
		if taken.Load() > signOnTries {
			t.Errorf("%d codes were looked at, with %d tries", taken.Load(), signOnTries)
		}
	})
	t.Run("removed meanwhile", func(t *testing.T) {
		s := w.then(alice, alice.begin(), "")
		g.counter = max(g.counter, mark+9)
		if err := c.open(s).vouch(g); err != nil {
			t.Fatal(err)
		}
		must(t, w.admin().ResetUser, &accessdv1.ResetUserRequest{Name: "alice"})
		w.rec.take()
		_, err := alice.answer(s)
		wantFault(t, err, fault.Denied, "permission denied")
		if why := w.reasons(); len(why) != 1 || why[0] != "the passkey was removed meanwhile" {
			t.Errorf("the log says %q", why)
		}
		if user, err := w.cfg.Store.PasskeyUser(t.Context(), g.id); !fault.Is(err, fault.NotFound) {
			t.Errorf("after a reset the passkey finds %q, %v", user, err)
		}
	})
}

// A person changes what they sign in with after a passkey, as after password and
// code, and never so that nobody could sign in.
func TestChangePasskeys(t *testing.T) {
	c, d, g := newPasskeys(t)
	w := c.w
	w.known("alice")
	s := w.then(d, d.begin(), "")
	if err := c.open(s).vouch(g); err != nil {
		t.Fatal(err)
	}
	person := w.factors(w.identityOf(w.then(d, s).GetCertificate()))
	change := func(what accessdv1.BeginChangeRequest_Change, name string) (*accessdv1.LoginStep, error) {
		return call(t, person.BeginChange, &accessdv1.BeginChangeRequest{Change: what, Name: name})
	}
	goOn := func(s *accessdv1.LoginStep) (*accessdv1.LoginStep, error) {
		return call(t, person.ContinueChange, &accessdv1.ContinueRequest{Id: s.GetId()})
	}
	for _, row := range []struct {
		what accessdv1.BeginChangeRequest_Change
		name string
		kind fault.Kind
	}{
		{accessdv1.BeginChangeRequest_CHANGE_PASSKEY, "a b", fault.BadInput},
		{accessdv1.BeginChangeRequest_CHANGE_PASSKEY, "passkey", fault.Conflict},
		{accessdv1.BeginChangeRequest_CHANGE_PASSKEY_REMOVE, "other", fault.NotFound},
		{accessdv1.BeginChangeRequest_CHANGE_UNSPECIFIED, "", fault.BadInput},
		{99, "", fault.BadInput},
	} {
		if _, err := change(row.what, row.name); !fault.Is(err, row.kind) {
			t.Errorf("%v %q = %v, want %v", row.what, row.name, err, row.kind)
		}
	}
	if _, err := change(accessdv1.BeginChangeRequest_CHANGE_PASSKEY_REMOVE, "passkey"); err == nil {
		t.Error("the last passkey can be removed")
	}

	// The one they have, then the new one.
	s, err := change(accessdv1.BeginChangeRequest_CHANGE_PASSKEY, "phone")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.open(s).vouch(g); err != nil {
		t.Fatal(err)
	}
	if s, err = goOn(s); err != nil {
		t.Fatal(err)
	}
	phone := newGadget(t)
	p := c.open(s)
	ask, err := p.begin(browserOne)
	if err != nil || !ask.GetCreate() || !strings.Contains(string(ask.GetOptions()), base64.RawURLEncoding.EncodeToString(g.id)) {
		t.Fatalf("a further passkey = %v, %v", ask, err)
	}
	if err := p.finish(browserOne, phone.answer(ask)); err != nil {
		t.Fatal(err)
	}
	if creds, err := w.cfg.Store.Credentials(t.Context(), "alice"); err != nil || len(creds.Passkeys) != 1 {
		t.Errorf("before the terminal went on there are %d, %v", len(creds.Passkeys), err)
	}
	w.rec.take()
	if s, err = goOn(s); err != nil || !s.GetDone() || !strings.Contains(s.GetInstruction(), "phone") {
		t.Fatalf("the terminal = %v, %v", s, err)
	}
	if evs := named(w.rec.take(), events.FactorCreate); len(evs) != 1 || !evs[0].Success || evs[0].Fields["method"] != methodPasskey {
		t.Errorf("events = %+v", evs)
	}
	if string(phone.handle) != string(g.handle) {
		t.Error("two passkeys of one person know them by two handles")
	}

	// Nobody enrols what is enrolled, with another's proof.
	s, err = change(accessdv1.BeginChangeRequest_CHANGE_PASSKEY, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.open(s).vouch(phone); err != nil {
		t.Fatal(err)
	}
	if s, err = goOn(s); err != nil {
		t.Fatal(err)
	}
	wantFault(t, c.open(s).vouch(phone), fault.Denied, "the passkey was refused")
	if _, err := goOn(s); !fault.Is(err, fault.Denied) {
		t.Errorf("a passkey that is there already = %v", err)
	}

	s, err = change(accessdv1.BeginChangeRequest_CHANGE_PASSKEY_REMOVE, "passkey")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.open(s).vouch(phone); err != nil {
		t.Fatal(err)
	}
	if s, err = goOn(s); err != nil || !s.GetDone() {
		t.Fatalf("rm passkey = %v, %v", s, err)
	}
	list := must(t, person.ListFactors, &accessdv1.ListFactorsRequest{}).GetFactors()
	if len(list) != 1 || list[0].GetName() != "phone" || list[0].GetHost() != "login.example" || list[0].GetUsed() == nil {
		t.Errorf("factors = %v", list)
	}
	if _, err := w.cfg.Store.PasskeyUser(t.Context(), g.id); !fault.Is(err, fault.NotFound) {
		t.Errorf("the removed passkey still finds somebody: %v", err)
	}
	must(t, w.admin().RemoveUser, &accessdv1.RemoveUserRequest{Name: "alice"})
	if _, err := w.cfg.Store.PasskeyUser(t.Context(), phone.id); !fault.Is(err, fault.NotFound) {
		t.Errorf("a passkey of who was removed still finds somebody: %v", err)
	}
}

// Of two people with one invite one is the person, whatever they make of it.
func TestInviteMakesOnePasskey(t *testing.T) {
	w := newWorld(t, plan{change: func(c *Config) { c.PublicURL = "https://login.example" }})
	c := w.counter("edge-1")
	invite := w.add("alice")
	one, two := w.desk(c.member, "alice"), w.desk(c.member, "alice").elsewhere("198.51.100.9:999")
	a := w.then(one, w.then(one, one.begin(), invite), "", "")
	b := w.then(two, w.then(two, two.begin(), invite), "", "")
	for _, s := range []*accessdv1.LoginStep{a, b} {
		if err := c.open(s).vouch(newGadget(t)); err != nil {
			t.Fatal(err)
		}
	}
	if s := w.then(one, a); !s.GetDone() {
		t.Errorf("the first = %v", s)
	}
	if _, err := two.answer(b); !fault.Is(err, fault.Denied) {
		t.Errorf("the second = %v", err)
	}
	if creds, err := w.cfg.Store.Credentials(t.Context(), "alice"); err != nil || len(creds.Passkeys) != 1 {
		t.Errorf("passkeys = %d, %v", len(creds.Passkeys), err)
	}
}

// Without a host name there are no passkeys, which is said; with several it is
// said which one is missing.
func TestPasskeysNeedAName(t *testing.T) {
	w := newWorld(t, plan{})
	admit := func(name string, addresses ...string) *member {
		m := newMember(sshca.KindProxy, name)
		req := m.request(w.token(&accessdv1.AddTokenRequest{Role: "proxy"}))
		req.PublicAddresses = addresses
		w.admitted(m, must(t, w.joiner(m.key).Join, req))
		return m
	}
	edge := admit("edge-1", "203.0.113.1:3022")
	d := w.desk(edge, "alice")
	if s := w.then(d, d.begin(), w.add("alice")); strings.Contains(s.GetInstruction(), "passkey") {
		t.Errorf("a page without a name offers %q", s.GetInstruction())
	} else if s = w.then(d, s, "", ""); !strings.Contains(s.GetInstruction(), "Again, please") {
		t.Errorf("no password and no passkey = %v", s)
	}
	d.enrol(must(t, w.admin().ResetUser, &accessdv1.ResetUserRequest{Name: "alice"}).GetInvite())
	w.known("alice")
	person := w.factors(w.person("alice"))
	begin := func() error {
		_, err := call(t, person.BeginChange, &accessdv1.BeginChangeRequest{Change: accessdv1.BeginChangeRequest_CHANGE_PASSKEY})
		return err
	}
	wantFault(t, begin(), fault.Conflict, "a passkey needs a host name: the proxies are known here by IP addresses only")
	admit("edge-2", "203.0.113.2:3022", "two.example:3022")
	if err := begin(); err != nil {
		t.Errorf("with one name = %v", err)
	}
	admit("edge-3", "two.example:443")
	if err := begin(); err != nil {
		t.Errorf("with one name at two proxies = %v", err)
	}
	admit("edge-4", "four.example:3022")
	if err := begin(); !fault.Is(err, fault.Conflict) || !strings.Contains(fault.Hint(err), "auth.public_url") {
		t.Errorf("with two names = %v", err)
	}
	if got, err := w.publicBase(nil, caller{member: &record{Member: services.Member{Addresses: []string{"203.0.113.2:3022", "two.example:3022"}}}}); got != "https://two.example:3022" || err != nil {
		t.Errorf("for passkeys a page is at %q, %v", got, err)
	}
	if _, err := w.publicBase(nil, caller{member: &record{}}); err == nil {
		t.Error("a proxy without an address has a page")
	}
}

// Beside a connector the page offers both, and who has begun with a passkey may
// still go to the provider, in the same browser.
func TestPasskeyBesideAConnector(t *testing.T) {
	c, alice, g := newPasskeys(t)
	w := c.w
	w.connector(impostor.New(t, w.clock.Now), "")
	s := alice.begin()
	if got := prompts(s); got != "Password, invite or join token (empty: single sign-on or passkey): false" {
		t.Errorf("the first question is %q", got)
	}
	s = w.then(alice, s, "")
	p := c.open(s)
	if shown := must(t, c.Show, &accessdv1.ShowRequest{Link: p.link}); shown.GetConnector() != "corp" || !shown.GetPasskey() {
		t.Errorf("the page shows %v", shown)
	}
	w.rec.take()
	if err := p.vouch(g); err != nil {
		t.Fatal(err)
	}
	if s = w.then(alice, s); !s.GetDone() {
		t.Fatalf("the terminal = %v", s)
	}
	if evs := named(w.rec.take(), events.UserLogin); len(evs) != 1 || evs[0].Fields["method"] != methodPasskey || evs[0].Fields["connector"] != nil {
		t.Errorf("events = %+v", evs)
	}
	p = c.open(w.then(alice, alice.begin(), ""))
	ask, err := p.begin(browserOne)
	if err != nil {
		t.Fatal(err)
	}
	confirm := func(browser string) error {
		_, err := call(t, p.Confirm, &accessdv1.ConfirmRequest{Link: p.link, Code: p.code, Browser: browser})
		return err
	}
	if err := confirm(browserTwo); !fault.Is(err, fault.Denied) {
		t.Errorf("to the provider in another browser = %v", err)
	}
	if err := confirm(browserOne); err != nil {
		t.Errorf("to the provider = %v", err)
	}
	if err := p.finish(browserOne, g.answer(ask)); err == nil {
		t.Error("the passkey's answer is good after the person went to the provider")
	}
}
