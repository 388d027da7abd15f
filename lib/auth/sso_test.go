package auth

import (
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/integration/impostor"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// A counter is a proxy with its pages.
type counter struct {
	*member
	accessdv1connect.SignOnServiceClient

	w *world
}

func (w *world) counter(name string) counter {
	m := w.join(sshca.KindProxy, name)
	h := rpc.Local(w.Handler(), rpc.Peer{Identity: m.identity, Addr: clientAddr})
	return counter{m, accessdv1connect.NewSignOnServiceClient(h, rpc.BaseURL, rpc.ClientOptions()...), w}
}

// connector makes the provider's people ours.
func (w *world) connector(l *impostor.Provider, more string) {
	w.t.Helper()
	h := rpc.Local(w.Handler(), rpc.Peer{Local: true})
	admin := accessdv1connect.NewConnectorServiceClient(h, rpc.BaseURL, rpc.ClientOptions()...)
	must(w.t, admin.ApplyConnectors, &accessdv1.ApplyConnectorsRequest{Yaml: []byte("kind: connector\nname: corp\nissuer: " + l.URL + `
client_id: accessd
client_secret: hush, it is one
public_url: https://login.example
rules: [{claim: groups, values: [ops], roles: [access], logins: [root]}]
` + more)})
}

const (
	browserOne = "one-browser-one-browser-one-browser-one-browser"
	browserTwo = "two-browser-two-browser-two-browser-two-browser"
)

var linkShown = regexp.MustCompile(`(?s)https://login\.example/sso\?link=(\S+).*:  (\S+)\n`)

// waiting is a terminal that shows a link.
type waiting struct {
	*desk
	step       *accessdv1.LoginStep
	link, code string
}

func (c counter) waiting(user string) *waiting {
	c.w.t.Helper()
	d := c.w.desk(c.member, user)
	s, err := d.answer(d.begin(), "")
	if err != nil {
		c.w.t.Fatal(err)
	}
	m := linkShown.FindStringSubmatch(s.GetInstruction())
	if m == nil || len(s.GetPrompts()) != 0 {
		c.w.t.Fatalf("waiting = %v", s)
	}
	return &waiting{d, s, m[1], m[2]}
}

// confirm confirms in a browser and returns the state for the provider.
func (c counter) confirm(w *waiting, l *impostor.Provider, browser string) string {
	c.w.t.Helper()
	res := must(c.w.t, c.Confirm, &accessdv1.ConfirmRequest{Link: w.link, Code: w.code, Browser: browser, Client: "203.0.113.9:1"})
	u, err := url.Parse(res.GetUrl())
	if err != nil {
		c.w.t.Fatal(err)
	}
	l.Nonce = u.Query().Get("nonce")
	if u.Query().Get("code_challenge_method") != "S256" || u.Query().Get("redirect_uri") != "https://login.example/sso/callback" {
		c.w.t.Errorf("authorize = %v", u)
	}
	return u.Query().Get("state")
}

func TestSignOnThroughABrowser(t *testing.T) {
	w := newWorld(t, plan{})
	l := impostor.New(t, w.clock.Now)
	w.connector(l, "grace: 5m\nrequire_amr: [mfa]\n")
	c := w.counter("edge-1")
	l.Claims = map[string]any{"amr": []string{"pwd", "mfa"}}
	term := c.waiting("alice")
	shown := must(t, c.Show, &accessdv1.ShowRequest{Link: term.link})
	if shown.GetFingerprint() != ssh.FingerprintSHA256(term.key.PublicKey()) || shown.GetClient() != term.client || !shown.GetCode() || shown.GetUser() != "alice" {
		t.Errorf("the page shows %v", shown)
	}
	if _, err := w.cfg.Store.User(t.Context(), "alice"); !fault.Is(err, fault.NotFound) {
		t.Errorf("before anybody confirmed: user = %v", err)
	}
	w.rec.take()
	state := c.confirm(term, l, browserOne)
	must(t, c.Finish, &accessdv1.FinishRequest{State: state, Code: "c", Browser: browserOne, Client: "203.0.113.9:1"})
	out, err := term.answer(term.step)
	if err != nil || !out.GetDone() {
		t.Fatalf("the terminal = %v, %v", out, err)
	}
	id, err := w.policy.Trust().CheckUser(parseCert(t, out.GetCertificate()), sshca.Peer{SSHUser: "alice", Now: w.clock.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if id.MFA != "sso" || len(id.Roles) != 1 || id.Roles[0] != "access" || id.Fingerprint != shown.GetFingerprint() {
		t.Errorf("identity = %+v", id)
	}
	u, err := w.cfg.Store.User(t.Context(), "alice")
	if want := (services.UserOrigin{Connector: "corp", Issuer: l.URL, Subject: "s-1"}); err != nil || u.Origin == nil || *u.Origin != want {
		t.Errorf("user = %+v, %v", u, err)
	}
	evs := named(w.rec.take(), events.UserLogin)
	if len(evs) != 1 || !evs[0].Success || evs[0].Fields["connector"] != "corp" {
		t.Errorf("events = %+v", evs)
	}

	resume := func(user string, key ssh.PublicKey, client string) error {
		_, err := call(t, c.Resume, &accessdv1.ResumeRequest{User: user, PublicKey: keyLine(key), Client: client})
		return err
	}
	key := term.key.PublicKey()
	_, other := sshca.Generate()
	for name, row := range map[string]struct {
		err  error
		want bool
	}{
		"same key and address": {resume("alice", key, term.client), true},
		"another port":         {resume("alice", key, netip.AddrPortFrom(clientAddr.Addr(), 999).String()), true},
		"whoever it was":       {resume("", key, term.client), true},
		"another name":         {resume("bob", key, term.client), false},
		"another key":          {resume("alice", other.PublicKey(), term.client), false},
		"another address":      {resume("alice", key, "203.0.113.200:1"), false},
	} {
		if (row.err == nil) != row.want || (row.err != nil && !fault.Is(row.err, fault.NotFound)) {
			t.Errorf("resume with %s = %v", name, row.err)
		}
	}
	w.clock.advance(6 * time.Minute)
	if err := resume("alice", key, term.client); !fault.Is(err, fault.NotFound) {
		t.Errorf("resume after the grace = %v", err)
	}
	w.clock.advance(13 * time.Hour)
	if _, err := w.subject(t.Context(), "alice"); !fault.Is(err, fault.Denied) {
		t.Errorf("a certificate long after the sign-in: %v", err)
	}
}

// What goes wrong, in one cluster.
func TestSignOnGoesWrong(t *testing.T) {
	w := newWorld(t, plan{})
	l := impostor.New(t, w.clock.Now)
	w.connector(l, "")
	c := w.counter("edge-1")
	for _, part := range []struct {
		name string
		run  func(*testing.T, counter, *impostor.Provider)
	}{
		{"the provider lies", lyingProvider},
		{"parts of a sign-in", partsOfASignOn},
		{"a name that exists", tellsNoNames},
		{"a receipt", loopbacks},
		{"the client's secret", keepsItsSecret},
	} {
		t.Run(part.name, func(t *testing.T) {
			defer func() { l.Signer, l.Claims, l.Token = l.Key, nil, "" }()
			part.run(t, c, l)
		})
	}
}

// THREATS: an ID token is nobody's word until its signature, issuer, audience,
// time and nonce are right, and nobody's twice.
func lyingProvider(t *testing.T, c counter, l *impostor.Provider) {
	t.Helper()
	w := c.w
	c.confirm(c.waiting("alice"), l, browserOne)
	earlier := l.IDToken()
	for name, lie := range map[string]struct {
		tell func()
		why  string
	}{
		"another key":       {func() { l.Signer = impostor.Key(t) }, "failed to verify signature"},
		"unsigned":          {func() { l.Token = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzLTEifQ." }, "the provider's token"},
		"no token":          {func() { l.Token = " " }, "the provider's token"},
		"another nonce":     {func() { l.Claims = map[string]any{"nonce": "x"} }, "another sign-in"},
		"no nonce":          {func() { l.Claims = map[string]any{"nonce": nil} }, "another sign-in"},
		"another client's":  {func() { l.Claims = map[string]any{"aud": "somebody"} }, "audience"},
		"another issuer's":  {func() { l.Claims = map[string]any{"iss": "https://evil.example"} }, "different provider"},
		"expired":           {func() { l.Claims = map[string]any{"exp": l.Now().Add(-time.Hour).Unix()} }, "expired"},
		"an earlier one":    {func() { l.Token = earlier }, "another sign-in"},
		"a name of no form": {func() { l.Claims = map[string]any{"preferred_username": "a,b"} }, "user name"},
		"a name of no text": {func() { l.Claims = map[string]any{"preferred_username": []string{"alice"}} }, "no claim"},
		"no subject":        {func() { l.Claims = map[string]any{"sub": ""} }, "origin"},
		"nobody's group":    {func() { l.Claims = map[string]any{"groups": []string{"ops2"}} }, "gives"},
	} {
		t.Run(name, func(t *testing.T) {
			term := c.waiting("alice")
			state := c.confirm(term, l, browserOne)
			lie.tell()
			defer func() { l.Signer, l.Claims, l.Token = l.Key, nil, "" }()
			w.rec.take()
			_, err := call(t, c.Finish, &accessdv1.FinishRequest{State: state, Code: "c", Browser: browserOne})
			wantFault(t, err, fault.Denied, "the sign-in was refused")
			evs := named(w.rec.take(), events.UserLogin)
			if len(evs) != 1 || evs[0].Success || !strings.Contains(evs[0].Error, lie.why) {
				t.Errorf("events = %+v, want one with %q", evs, lie.why)
			}
			_, err = term.answer(term.step)
			wantFault(t, err, fault.Denied, "permission denied")
			if _, err := w.cfg.Store.User(t.Context(), "alice"); !fault.Is(err, fault.NotFound) {
				t.Errorf("user = %v", err)
			}
		})
	}
}

// Who has part of a sign-in has nothing: not the answer without the browser that
// confirmed, not the link without the code, not anything twice, nothing late.
func partsOfASignOn(t *testing.T, c counter, l *impostor.Provider) {
	t.Helper()
	w := c.w
	term := c.waiting("alice")
	for try := 1; try <= 2; try++ {
		_, err := call(t, c.Confirm, &accessdv1.ConfirmRequest{Link: term.link, Code: "BCDF-GHJK", Browser: browserOne})
		wantFault(t, err, fault.BadInput, "that is not the code your terminal shows")
	}
	_, err := call(t, c.Confirm, &accessdv1.ConfirmRequest{Link: term.link, Code: term.code, Browser: "short"})
	wantFault(t, err, fault.BadInput, "a browser or a code of this length is none")
	state := c.confirm(term, l, browserOne)
	if _, err := call(t, c.Show, &accessdv1.ShowRequest{Link: term.link}); !fault.Is(err, fault.NotFound) {
		t.Errorf("the link after it was confirmed = %v", err)
	}
	w.rec.take()
	for name, m := range map[string]*accessdv1.FinishRequest{
		"another browser": {State: state, Code: "c", Browser: browserTwo},
		"no browser":      {State: state, Code: "c"},
		"half a state":    {State: state[:70], Code: "c", Browser: browserOne},
		"no secret in it": {State: strings.SplitN(state, ".", 2)[0] + ".", Code: "c", Browser: browserOne},
		"a path":          {State: "../connector/corp." + state, Code: "c", Browser: browserOne},
		"nothing":         {},
	} {
		if _, err := call(t, c.Finish, m); !fault.Is(err, fault.Denied) && !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: finish = %v", name, err)
		}
	}
	if evs := named(w.rec.take(), events.UserLogin); len(evs) != 2 {
		t.Errorf("events = %+v, want one for each wrong browser", evs)
	}
	if _, err := call(t, c.Finish, &accessdv1.FinishRequest{State: state, Code: "c", Browser: browserOne, Issuer: "https://evil.example"}); !fault.Is(err, fault.Denied) {
		t.Errorf("an answer of another provider = %v", err)
	}
	if _, err := call(t, c.Finish, &accessdv1.FinishRequest{State: state, Code: "c", Browser: browserOne}); !fault.Is(err, fault.NotFound) {
		t.Errorf("the same answer again = %v", err)
	}

	late := c.waiting("alice")
	w.clock.advance(signOnTTL)
	if _, err := call(t, c.Show, &accessdv1.ShowRequest{Link: late.link}); !fault.Is(err, fault.NotFound) {
		t.Errorf("a link that is too old = %v", err)
	}

	gone := c.waiting("alice")
	must(t, c.Cancel, &accessdv1.CancelRequest{Id: gone.step.GetId()})
	if _, err := call(t, c.Show, &accessdv1.ShowRequest{Link: gone.link}); !fault.Is(err, fault.NotFound) {
		t.Errorf("the link of a terminal that went away = %v", err)
	}
}

// The receipt that the browser brings to a program on its machine is worth
// nothing to another program, or before it was confirmed.
func loopbacks(t *testing.T, c counter, l *impostor.Provider) {
	t.Helper()
	w := c.w
	const verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk" // RFC 7636, appendix B
	const challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
	begin := func() (*desk, *accessdv1.LoginStep, *waiting) {
		d := w.desk(c.member, "alice")
		s, err := d.answer(d.begin(), "sso:corp http://127.0.0.1:4711/cb "+challenge)
		if err != nil || len(s.GetPrompts()) != 1 {
			t.Fatalf("begin = %v, %v", s, err)
		}
		return d, s, &waiting{desk: d, step: s, link: strings.TrimPrefix(s.GetInstruction(), "https://login.example/sso?link=")}
	}
	for name, row := range map[string]struct {
		answer func(receipt string) string
		want   bool
	}{
		"ours":              {func(r string) string { return r + " " + verifier }, true},
		"another program's": {func(r string) string { return r + " " + challenge }, false},
		"no verifier":       {func(r string) string { return r }, false},
		"no receipt":        {func(string) string { return " " + verifier }, false},
		"a guess":           {func(string) string { return strings.Repeat("a", 52) + " " + verifier }, false},
	} {
		t.Run(name, func(t *testing.T) {
			d, s, term := begin()
			res := must(t, c.Finish, &accessdv1.FinishRequest{State: c.confirm(term, l, browserOne), Code: "c", Browser: browserOne})
			receipt, ok := strings.CutPrefix(res.GetOnward(), "http://127.0.0.1:4711/cb?receipt=")
			if !ok {
				t.Fatalf("onward = %q", res.GetOnward())
			}
			out, err := d.answer(s, row.answer(receipt))
			if (err == nil && out.GetDone()) != row.want {
				t.Errorf("answer = %v, %v", out, err)
			}
		})
	}
	t.Run("not confirmed", func(t *testing.T) {
		d, s, _ := begin()
		_, err := d.answer(s, "x "+verifier)
		wantFault(t, err, fault.Denied, "permission denied")
	})
	t.Run("elsewhere than this machine", func(t *testing.T) {
		for _, where := range []string{"http://evil.example/cb", "http://127.0.0.1.evil.example:1/cb", "https://127.0.0.1:1/cb", "http://127.0.0.1:1/cb?x=y", "http://[::2]:1/cb"} {
			d := w.desk(c.member, "alice")
			s, err := d.answer(d.begin(), "sso:corp "+where+" "+challenge)
			if err == nil && s.GetInstruction() != "" {
				t.Errorf("%s is taken: %v", where, s)
			}
		}
	})
}

// The conversation is the same for every name, and a user of ours cannot be
// taken over by a provider's person of that name.
func tellsNoNames(t *testing.T, c counter, l *impostor.Provider) {
	t.Helper()
	w := c.w
	w.addUser("carol", "access")
	l.Claims = map[string]any{"preferred_username": "carol"}
	var said []string
	for _, name := range []string{"carol", "dave"} {
		term := c.waiting(name)
		said = append(said, strings.NewReplacer(term.link, "LINK", term.code, "CODE", ssh.FingerprintSHA256(term.key.PublicKey()), "KEY").Replace(term.step.GetInstruction()))
		_, err := call(t, c.Finish, &accessdv1.FinishRequest{State: c.confirm(term, l, browserOne), Code: "c", Browser: browserOne})
		wantFault(t, err, fault.Denied, "the sign-in was refused")
		said = append(said, fault.Public(err)+fault.Hint(err))
		_, err = term.answer(term.step)
		said = append(said, fault.Public(err)+fault.Hint(err))
	}
	for i := range 3 {
		if said[i] != said[i+3] {
			t.Errorf("to one that exists %q, to one that does not %q", said[i], said[i+3])
		}
	}
	if u, err := w.cfg.Store.User(t.Context(), "carol"); err != nil || u.Origin != nil {
		t.Errorf("carol = %+v, %v", u, err)
	}
}

// A secret is kept for whom it was given, and shown to nobody.
func keepsItsSecret(t *testing.T, c counter, l *impostor.Provider) {
	t.Helper()
	w := c.w
	before, err := w.cfg.Store.Connector(t.Context(), "corp")
	if err != nil || len(before.Secret) == 0 || strings.Contains(string(before.Secret), "hush") {
		t.Fatalf("stored = %q, %v", before.Secret, err)
	}
	h := rpc.Local(w.Handler(), rpc.Peer{Local: true})
	admin := accessdv1connect.NewConnectorServiceClient(h, rpc.BaseURL, rpc.ClientOptions()...)
	yaml := must(t, admin.GetConnector, &accessdv1.GetConnectorRequest{Name: "corp"}).GetConnector().GetYaml()
	if strings.Contains(yaml, "hush") || strings.Contains(yaml, "secret") {
		t.Errorf("get = %s", yaml)
	}
	must(t, admin.ApplyConnectors, &accessdv1.ApplyConnectorsRequest{Yaml: []byte(yaml)})
	after, err := w.cfg.Store.Connector(t.Context(), "corp")
	if err != nil || string(after.Secret) != string(before.Secret) {
		t.Errorf("applied again: the secret is another, %v", err)
	}
	elsewhere := strings.Replace(yaml, l.URL, "https://evil.example", 1)
	if _, err := call(t, admin.ApplyConnectors, &accessdv1.ApplyConnectorsRequest{Yaml: []byte(elsewhere)}); !fault.Is(err, fault.BadInput) {
		t.Errorf("the secret for another issuer = %v", err)
	}
	for _, ev := range w.rec.take() {
		if strings.Contains(stringOf(ev), "hush") {
			t.Errorf("an event tells the secret: %+v", ev)
		}
	}
}
