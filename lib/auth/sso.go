package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/listener"
)

// A sign-in through a browser, at a provider or with a passkey, has two halves. The
// terminal's half is a step of a [signIn], which shows a link and waits. The
// browser's half comes over [signOnService] from whichever proxy, at whichever
// authority, so the two meet in the store, in a [services.SignOn]. What is granted
// is for the key that the terminal has proven, and only after the browser's person
// has seen that key's fingerprint and the terminal's address and typed the code the
// terminal shows.
const methodSSO = "sso"

const (
	// signOnTTL is how long a link is good: a little less than a proxy lets a
	// sign-in take.
	signOnTTL = defaults.SignInTimeout - 10*time.Second
	// signOnWait is how long one round of waiting takes. A round without questions
	// is answered at once by a client that is still there.
	signOnWait = 25 * time.Second
	// signOnTries is how often the code may be typed.
	signOnTries = 3
)

// begin asks what everybody is asked first.
func (s loginService) begin(ctx context.Context, in *signIn) (*accessdv1.LoginStep, error) {
	connectors, err := s.cfg.Store.Connectors(ctx)
	if err != nil {
		return nil, err
	}
	base, _ := s.publicBase(nil, callerOf(ctx)) // without one there is no page, which is said where one is asked for
	passkeys, err := s.passkeysAt(ctx, base)
	if err != nil {
		return nil, err
	}
	text := "Password, invite or join token: "
	switch {
	case len(connectors) > 0 && passkeys:
		text = "Password, invite or join token (empty: single sign-on or passkey): "
	case len(connectors) > 0:
		text = "Password, invite or join token (empty: single sign-on): "
	case passkeys:
		text = "Password, invite or join token (empty: passkey): "
	}
	in.sso = len(connectors) > 0 || passkeys
	return in.ask("", s.takeFirst, &accessdv1.Prompt{Text: text}), nil
}

// passkeysAt reports whether passkeys are of use at a page at base: whether that
// has a name, and anybody a passkey.
func (s loginService) passkeysAt(ctx context.Context, base string) (bool, error) {
	if rpOf(base) == "" {
		return false, nil
	}
	return s.cfg.Store.Passkeys(ctx)
}

// A program of ours may ask for single sign-on with this answer: the connector,
// or nothing; then where it listens and the challenge of what it keeps secret
// (RFC 7636, section 4.2), when the browser is on its own machine.
var ssoGrammar = regexp.MustCompile(`^sso:([a-z0-9-]*)(?: (http://(?:127\.0\.0\.1|\[::1\]):[0-9]{1,5}/[A-Za-z0-9_-]{1,64}) ([A-Za-z0-9_-]{43}))?$`)

// ssoAsked reports whether a first answer asks for single sign-on.
func ssoAsked(answer string) bool {
	return answer == "" || ssoGrammar.MatchString(answer)
}

// takeSSO goes on with single sign-on, whoever the name belongs to.
func (s loginService) takeSSO(ctx context.Context, in *signIn, answer string) (*accessdv1.LoginStep, error) {
	in.method = methodSSO
	var want string
	if m := ssoGrammar.FindStringSubmatch(answer); m != nil {
		want, in.loopback, in.challenge = m[1], m[2], m[3]
	}
	list, err := s.cfg.Store.Connectors(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case want != "":
		return s.takeConnector(ctx, in, []string{want})
	case len(list) == 0:
		return s.park(ctx, in, nil)
	case len(list) == 1:
		return s.park(ctx, in, &list[0])
	}
	var text strings.Builder
	for _, c := range list {
		text.WriteString(" " + string(c.Name))
	}
	base, _ := s.publicBase(nil, callerOf(ctx)) // as in begin
	if passkeys, err := s.passkeysAt(ctx, base); err == nil && passkeys {
		text.WriteString(" " + methodPasskey)
	}
	return in.ask("Where you can sign in:"+text.String(), s.takeConnector, &accessdv1.Prompt{Text: "Where: ", Echo: true}), nil
}

// takeConnector takes the name of a connector, or "passkey" where none is called
// so.
func (s loginService) takeConnector(ctx context.Context, in *signIn, answers []string) (*accessdv1.LoginStep, error) {
	name := strings.TrimSpace(answers[0])
	c, err := s.connector(ctx, name)
	switch {
	case err == nil:
		return s.park(ctx, in, &c)
	case name == methodPasskey:
		return s.park(ctx, in, nil)
	}
	return nil, refusal("no such connector")
}

// codeLetters have no vowels, which would make words, and nothing that looks
// like something else. Eight of them are one of 2.6e10, and there are three tries.
const codeLetters = "BCDFGHJKLMNPQRSTVWXZ"

// newCode returns a code that is easy to read from one screen and type on
// another.
func newCode() string {
	var b strings.Builder
	for i := range 8 {
		if i == 4 {
			b.WriteByte('-')
		}
		b.WriteByte(codeLetters[letter()])
	}
	return b.String()
}

// letter returns an even choice of a letter's number.
func letter() int {
	for {
		var b [1]byte
		rand.Read(b[:]) // never fails
		if even := 256 / len(codeLetters); int(b[0]) < even*len(codeLetters) {
			return int(b[0]) % len(codeLetters)
		}
	}
}

// codeHash is how a code is kept: nobody finds it without the link's secret.
func codeHash(link, code string) string {
	code = strings.ToUpper(strings.NewReplacer("-", "", " ", "").Replace(code))
	return hashSecret(link + " " + code)
}

// park makes a link for a sign-in through c, or with a passkey only, and has the
// terminal wait for its browser.
func (s loginService) park(ctx context.Context, in *signIn, c *services.Connector) (*accessdv1.LoginStep, error) {
	base, err := s.publicBase(c, callerOf(ctx))
	if err != nil {
		return nil, err
	}
	passkeys, err := s.passkeysAt(ctx, base)
	if err != nil {
		return nil, err
	}
	o := services.SignOn{User: in.user, Fingerprint: ssh.FingerprintSHA256(in.key), Client: in.client.String(), Base: base, Loopback: in.loopback}
	if passkeys {
		o.RP = rpOf(base)
	}
	switch {
	case c != nil:
		o.Connector, in.connector = c.Name, c.Name
	case !passkeys:
		return nil, refusal("no passkey can be used here")
	default:
		in.method = methodPasskey
	}
	l, err := s.newLink(ctx, o)
	if err != nil {
		return nil, err
	}
	in.signOn = l.id
	if in.loopback != "" {
		return in.ask(l.url, s.takeReceipt, &accessdv1.Prompt{Text: "Receipt: "}), nil
	}
	return in.ask(l.words(o), s.await), nil
}

// A link is what a person opens in a browser, and what they type there.
type link struct{ id, url, code string }

// newLink makes a link for o, whose id, state and end it fills in. Without a
// program that waits for the browser there is a code.
func (a *Authority) newLink(ctx context.Context, o services.SignOn) (link, error) {
	secret := names.NewSecret()
	l := link{id: hashSecret(secret), url: o.Base + "/sso?" + url.Values{"link": {secret}}.Encode()}
	o.ID, o.State, o.Expires = l.id, services.SignOnOpen, a.cfg.Now().Add(signOnTTL).UTC()
	if o.Loopback == "" {
		l.code = newCode()
		o.Code = codeHash(secret, l.code)
	}
	_, err := a.cfg.Store.CreateSignOn(ctx, o)
	return l, err
}

// words are what a terminal shows of l, and of o for its person to compare.
func (l link) words(o services.SignOn) string {
	var compare string
	if client, err := netip.ParseAddrPort(o.Client); err == nil && o.Fingerprint != "" {
		compare = "\n\nYour key:     " + o.Fingerprint + "\nYour address: " + client.Addr().Unmap().String()
	}
	return fmt.Sprintf("Open this link in a browser:\n\n  %s\n\nand type this code there:  %s%s\n\nWaiting ...", l.url, l.code, compare)
}

// publicBase returns where browsers find the proxy that carries a sign-in: where
// the connector or the configuration says, or at its own address. For passkeys,
// which need one, an address that has a name comes first.
func (a *Authority) publicBase(c *services.Connector, carrier caller) (string, error) {
	switch {
	case c != nil && c.PublicURL != "":
		return strings.TrimRight(c.PublicURL, "/"), nil
	case a.cfg.PublicURL != "":
		return a.cfg.PublicURL, nil
	case carrier.member == nil || len(carrier.member.Addresses) == 0:
		return "", fault.New(fault.Unavailable, "the proxy has no address for browsers").WithHint("set auth.public_url, or give the connector a public_url")
	}
	list := carrier.member.Addresses
	if i := slices.IndexFunc(list, func(at string) bool { return rpOf("https://"+at) != "" }); c == nil && i >= 0 {
		return "https://" + list[i], nil
	}
	return "https://" + list[0], nil
}

// await waits for the browser of a sign-in.
func (s loginService) await(ctx context.Context, in *signIn, _ []string) (*accessdv1.LoginStep, error) {
	return s.awaitLink(ctx, in, s.take)
}

// A taker goes on with what a browser has approved.
type taker func(ctx context.Context, s *signIn, o services.SignOn) (*accessdv1.LoginStep, error)

// awaitLink waits for the browser, in rounds, and then goes on with next, once.
func (a *Authority) awaitLink(ctx context.Context, in *signIn, next taker) (*accessdv1.LoginStep, error) {
	wait, stop := context.WithTimeout(ctx, signOnWait)
	defer stop()
	o, err := a.cfg.Store.AwaitSignOn(wait, in.signOn)
	switch {
	case ctx.Err() != nil:
		return nil, fault.Wrap(fault.Unavailable, context.Cause(ctx), "the sign-in was given up")
	case fault.Is(err, fault.NotFound) || (err == nil && !a.cfg.Now().Before(o.Expires)):
		return nil, refusal("nobody confirmed the sign-in in time")
	case err != nil:
		return nil, err
	case o.State == services.SignOnRefused:
		return nil, refusal(o.Why)
	case o.State == services.SignOnApproved:
		return a.taken(ctx, in, o, next)
	}
	return in.ask("", func(ctx context.Context, in *signIn, _ []string) (*accessdv1.LoginStep, error) {
		return a.awaitLink(ctx, in, next)
	}), nil
}

// taken makes what was approved the terminal's, once.
func (a *Authority) taken(ctx context.Context, in *signIn, o services.SignOn, next taker) (*accessdv1.LoginStep, error) {
	o.State = services.SignOnTaken
	if _, err := a.cfg.Store.UpdateSignOn(ctx, o); err != nil {
		return nil, err
	}
	return next(ctx, in, o)
}

// takeReceipt takes what the browser brought to the program on its machine, and
// the secret that the program began with.
func (s loginService) takeReceipt(ctx context.Context, in *signIn, answers []string) (*accessdv1.LoginStep, error) {
	receipt, verifier, _ := strings.Cut(answers[0], " ")
	sum := sha256.Sum256([]byte(verifier))
	o, err := s.cfg.Store.SignOn(ctx, in.signOn)
	switch {
	case fault.Is(err, fault.NotFound):
		return nil, refusal("nobody confirmed the sign-in in time")
	case err != nil:
		return nil, err
	case o.State == services.SignOnRefused:
		return nil, refusal(o.Why)
	case o.State != services.SignOnApproved:
		return nil, refusal("the sign-in is not confirmed")
	case !sameHash(o.Receipt, hashSecret(receipt)):
		return nil, refusal("the receipt is of another sign-in")
	case subtle.ConstantTimeCompare([]byte(base64.RawURLEncoding.EncodeToString(sum[:])), []byte(in.challenge)) != 1:
		return nil, refusal("the receipt is another program's")
	}
	return s.taken(ctx, in, o, s.take)
}

// take ends an approved sign-in.
func (s loginService) take(ctx context.Context, in *signIn, o services.SignOn) (*accessdv1.LoginStep, error) {
	if len(o.PasskeyID) > 0 {
		return s.takePasskey(ctx, in, o)
	}
	sub, err := s.ssoSubject(ctx, in, o.Origin)
	if err != nil {
		return nil, err
	}
	in.factor = o.MFA
	out, err := s.complete(ctx, in, sub)
	if err != nil {
		return nil, err
	}
	if c, err := s.cfg.Store.Connector(ctx, o.Connector); err == nil && c.Grace > 0 {
		g := services.Grace{User: in.user, Origin: *o.Origin, MFA: o.MFA, Until: s.cfg.Now().Add(c.Grace).UTC()}
		return out, s.cfg.Store.PutGrace(ctx, in.place(), g)
	}
	return out, nil
}

// ssoSubject returns the person of the name that was typed, if it is the one of
// origin.
func (s loginService) ssoSubject(ctx context.Context, in *signIn, origin *services.UserOrigin) (subject, error) {
	sub, err := s.subject(ctx, in.user)
	if fault.Is(err, fault.NotFound) {
		return sub, refusal("the user was removed meanwhile")
	}
	if err == nil && (origin == nil || sub.Origin == nil || *sub.Origin != *origin) {
		return sub, refusal("the name is somebody else's")
	}
	return sub, err
}

// place is where a grace of this sign-in holds.
func (s *signIn) place() services.GracePlace {
	return services.GracePlace{Fingerprint: ssh.FingerprintSHA256(s.key), Address: s.client.Addr().Unmap().String()}
}

// Resume signs in whoever has signed in with the same key from the same address
// so lately that it is enough.
func (s signOnService) Resume(ctx context.Context, req *connect.Request[accessdv1.ResumeRequest]) (*connect.Response[accessdv1.ResumeResponse], error) {
	m := req.Msg
	key, err := parseKeyLine(m.GetPublicKey())
	if err != nil {
		return nil, err
	}
	client, err := parseClient(m.GetClient())
	if err != nil {
		return nil, err
	}
	in := &signIn{
		owner: string(callerOf(ctx).member.ID), key: key, client: client, source: listener.SourceOf(client.Addr()), method: methodSSO, grace: true,
	}
	g, err := s.graceOf(ctx, in, m.GetUser())
	if err != nil {
		return nil, err
	}
	login := loginService(s)
	in.user, in.factor, in.connector = g.User, g.MFA, g.Origin.Connector
	sub, err := login.ssoSubject(ctx, in, &g.Origin)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "no sign-in of lately is enough")
	}
	if m.GetForKey() != "" {
		if in.key, err = parseKeyLine(m.GetForKey()); err != nil {
			return nil, err
		}
	}
	out, err := login.complete(ctx, in, sub)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.ResumeResponse{User: string(in.user), Certificate: out.GetCertificate(), Grant: out.GetGrant()}), nil
}

// graceOf returns the grace that in is in, as user or, when that is empty, as
// whoever it was; NotFound when it is in none.
func (s signOnService) graceOf(ctx context.Context, in *signIn, user string) (services.Grace, error) {
	none := fault.New(fault.NotFound, "no sign-in of lately is enough")
	g, err := s.cfg.Store.Grace(ctx, in.place())
	if err != nil {
		return g, err
	}
	if !s.cfg.Now().Before(g.Until) || (user != "" && user != string(g.User)) {
		return g, none
	}
	c, err := s.cfg.Store.Connector(ctx, g.Origin.Connector)
	if err != nil {
		return g, err
	}
	if c.Grace == 0 || c.Issuer != g.Origin.Issuer {
		return g, none
	}
	return g, nil
}

// dropSignOn forgets the link of a sign-in that is over. One that the browser has
// ended stays until it expires, and whoever sends its answer again is in the log.
func (a *Authority) dropSignOn(ctx context.Context, in *signIn) {
	if in.signOn == "" {
		return
	}
	ctx = context.WithoutCancel(ctx)
	o, err := a.cfg.Store.SignOn(ctx, in.signOn)
	if fault.Is(err, fault.NotFound) || err == nil && (o.State == services.SignOnTaken || o.State == services.SignOnRefused) {
		return
	}
	if err == nil {
		err = a.cfg.Store.DeleteSignOn(ctx, in.signOn)
	}
	if err != nil {
		a.cfg.Log.Info("a sign-in's link stays until it expires")
	}
}

// addrOf reads an address that a proxy attests, for an event.
func addrOf(s string) string {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return ""
	}
	return a.String()
}
