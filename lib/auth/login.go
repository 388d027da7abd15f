package auth

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/listener"
)

// How somebody signed in, in events and certificates.
const (
	methodPassword = "password"
	methodInvite   = "invite"
	methodTOTP     = "totp"
)

const (
	// maxTries is how often a person may get a new password or the first code
	// wrong before the invite has to be given again.
	maxTries = 5
	// maxText bounds one answer, in bytes.
	maxText = 1 << 10
	// maxKnownKeys bounds the keys remembered of one person; the oldest goes.
	maxKnownKeys = 8
)

// A signIn is one person's sign-in under way. The conversation is the same for
// every name until a secret was right, so that it tells nobody which names
// exist:
//
//	password, invite ─┬─ a good invite ── new password twice ── first code ── certificate
//	or join token     ├─ a good token ── a node's certificate, or why not
//	                  └─ anything else ── code ─┬─ both right ── certificate
//	                                            └─ refused
type signIn struct {
	id      string // of the lobby, as the next two
	expires time.Time
	busy    bool

	owner  string // the proxy that carries the conversation
	user   names.UserName
	key    ssh.PublicKey // proven at the proxy
	client netip.AddrPort
	source netip.Prefix

	next   step // takes the next answers
	asked  int  // how many answers it takes
	tries  int
	method string

	sso       bool                   // there are connectors
	signOn    string                 // id of the sign-in through a browser that it waits for
	connector services.ConnectorName // of that
	grace     bool                   // an earlier one is enough
	loopback  string                 // where a program beside the browser listens, which
	challenge string                 // keeps the secret of this

	ours    bool                                // the key is the proxy's, for one connection
	change  accessdv1.BeginChangeRequest_Change // of how they sign in, by who has
	passkey string                              // the name of the one that changes
	proven  []byte                              // id of the passkey that they have shown for it

	creds    services.Credentials // as read when the first secret was checked
	refused  error                // why it will be refused, whatever comes
	factor   string               // method of the second one
	acquit   func()               // takes the charge for this try back
	rehash   string               // the right password, when its hash is of another cost than today's
	password string               // hash of the new password
	totp     totpKey              // the new second factor
}

// A step takes a person's answers and returns what to ask next, or the end.
type step func(ctx context.Context, s *signIn, answers []string) (*accessdv1.LoginStep, error)

type loginService struct{ *Authority }

// Begin starts a sign-in for a name that anybody may have typed.
func (s loginService) Begin(ctx context.Context, req *connect.Request[accessdv1.BeginRequest]) (*connect.Response[accessdv1.LoginStep], error) {
	user, err := names.ParseUserName(req.Msg.GetUser())
	if err != nil {
		return nil, err
	}
	key, err := parseKeyLine(req.Msg.GetPublicKey())
	if err != nil {
		return nil, err
	}
	client, err := parseClient(req.Msg.GetClient())
	if err != nil {
		return nil, err
	}
	in := &signIn{
		owner: string(callerOf(ctx).member.ID), user: user, key: key,
		client: client, source: listener.SourceOf(client.Addr()), method: methodPassword, ours: req.Msg.GetConnection(),
	}
	first, err := s.begin(ctx, in)
	if err != nil {
		return nil, err
	}
	if err := s.lobby.admit(in); err != nil {
		return nil, err
	}
	first.Id = in.id
	return connect.NewResponse(first), nil
}

// parseClient reads the address of a client as a proxy attests it.
func parseClient(s string) (netip.AddrPort, error) {
	client, err := netip.ParseAddrPort(s)
	if err != nil {
		return client, fault.New(fault.BadInput, "client address %q: want ADDRESS:PORT", clip(s))
	}
	return client, nil
}

// ask makes next the step that takes the answers to prompts.
func (s *signIn) ask(instruction string, next step, prompts ...*accessdv1.Prompt) *accessdv1.LoginStep {
	s.next, s.asked = next, len(prompts)
	return &accessdv1.LoginStep{Id: s.id, Instruction: instruction, Prompts: prompts}
}

// Continue answers the prompts of the step before.
func (s loginService) Continue(ctx context.Context, req *connect.Request[accessdv1.ContinueRequest]) (*connect.Response[accessdv1.LoginStep], error) {
	in, err := s.lobby.take(req.Msg.GetId(), string(callerOf(ctx).member.ID))
	if err != nil {
		return nil, err
	}
	answers := req.Msg.GetAnswers()
	if len(answers) != in.asked || slices.ContainsFunc(answers, func(a string) bool { return len(a) > maxText }) {
		s.leave(ctx, in)
		return nil, fault.New(fault.BadInput, "%d answers: want %d of at most %d bytes", len(answers), in.asked, maxText)
	}
	out, err := in.next(ctx, in, answers)
	if err != nil || out.GetDone() {
		s.leave(ctx, in)
		return connect.NewResponse(out), s.verdict(ctx, in, err)
	}
	s.lobby.putBack(in)
	return connect.NewResponse(out), nil
}

// Cancel forgets a sign-in.
func (s loginService) Cancel(ctx context.Context, req *connect.Request[accessdv1.CancelRequest]) (*connect.Response[accessdv1.CancelResponse], error) {
	if in, err := s.lobby.take(req.Msg.GetId(), string(callerOf(ctx).member.ID)); err == nil {
		s.leave(ctx, in)
	}
	return connect.NewResponse(&accessdv1.CancelResponse{}), nil
}

// leave ends a sign-in, and its link with it: nobody waits for that any more, and
// whoever begins without end shall not leave one each time.
func (a *Authority) leave(ctx context.Context, in *signIn) {
	a.lobby.forget(in)
	a.dropSignOn(ctx, in)
}

// A refusal is a sign-in's bad end; the person reads nothing of it.
type refusal string

// Error returns the reason, for the log and the event.
func (r refusal) Error() string { return string(r) }

// verdict records a sign-in's bad end and returns what the person reads.
func (s loginService) verdict(ctx context.Context, in *signIn, err error) error {
	if err == nil {
		return nil
	}
	if in.method != methodToken { // whose refusal is on record
		ev := in.event()
		ev.Error = err.Error()
		s.note(ctx, ev)
	}
	if _, ok := errors.AsType[refusal](err); !ok {
		return err
	}
	denied := fault.Wrap(fault.Denied, err, "permission denied")
	if in.method == methodSSO || in.method == methodPasskey {
		return denied.WithHint("the page in the browser says why")
	}
	if in.method == methodInvite {
		return denied.WithHint("an invite works once and until it expires; ask for another")
	}
	return denied
}

func (s *signIn) event() events.Event {
	ev := events.Event{Name: events.UserLogin, User: s.user, AddrRemote: s.client.String(), Proto: "ssh", Fields: map[string]any{
		"method": s.method, "fingerprint": ssh.FingerprintSHA256(s.key),
	}}
	set(ev, "connector", string(s.connector))
	if s.grace {
		ev.Fields["reason"] = "an earlier sign-in with the same key from the same address is enough"
	}
	return ev
}

// takeFirst takes a password or an invite. Only a good invite changes what is
// asked next; every other verdict waits until the code was given, too.
func (s loginService) takeFirst(ctx context.Context, in *signIn, answers []string) (*accessdv1.LoginStep, error) {
	if in.sso && ssoAsked(answers[0]) {
		return s.takeSSO(ctx, in, answers[0])
	}
	var err error
	in.creds, err = s.cfg.Store.Credentials(ctx, in.user)
	exists := err == nil
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	known := slices.Contains(in.creds.KnownKeys, ssh.FingerprintSHA256(in.key))
	invite, noInvite := parseInvite(answers[0])
	token, secret, noToken := parseToken(answers[0])
	in.acquit, in.refused = s.backoff.try(ctx, in.user, in.source, known)
	switch {
	case in.refused != nil: // it has to wait; nothing is checked
	case noInvite == nil:
		in.method = methodInvite
		in.refused = s.checkInvite(in, invite)
	case noToken == nil:
		in.method = methodToken
		if out, err := s.tryToken(ctx, in, token, secret); out != nil || err != nil {
			return out, err
		}
	default:
		if err := s.checkPassword(ctx, in, answers[0]); err != nil {
			return nil, err
		}
	}
	if _, wrong := errors.AsType[refusal](in.refused); wrong && !exists && in.method != methodToken {
		in.refused = refusal("no such user")
	}
	if in.method == methodInvite && in.refused == nil {
		if u, err := s.cfg.Store.User(ctx, in.user); err != nil || u.Bot != nil {
			if err != nil {
				return nil, err
			}
			in.method = methodBotToken
			return s.admitBot(ctx, in)
		}
		return in.ask(s.inviteWords(ctx, in), s.takeNewPassword, newPassword()...), nil
	}
	return in.ask("", s.takeCode, &accessdv1.Prompt{Text: "Code: "}), nil
}

// checkPassword refuses in unless password is the person's.
func (s loginService) checkPassword(ctx context.Context, in *signIn, password string) error {
	right, err := s.hasher.verify(ctx, password, in.creds.PasswordHash)
	if err != nil {
		return err
	}
	if !right {
		in.refused = refusal("wrong password")
	} else if s.hasher.stale(in.creds.PasswordHash) {
		in.rehash = password
	}
	return nil
}

// checkInvite returns why an invite is refused, if it is.
func (s loginService) checkInvite(in *signIn, hash string) error {
	if !sameHash(in.creds.InviteHash, hash) {
		return refusal("wrong invite")
	}
	if !s.cfg.Now().Before(in.creds.InviteExpires) {
		return refusal("the invite has expired")
	}
	return nil
}

// takeCode takes the second factor, and only now says whether the first was
// right. It does the same work when it was not.
func (s loginService) takeCode(ctx context.Context, in *signIn, answers []string) (*accessdv1.LoginStep, error) {
	use, ok, err := s.matchFactor(ctx, in.user, in.creds, answers[0])
	if err != nil {
		return nil, err
	}
	if in.refused != nil {
		return nil, in.refused
	}
	if !ok {
		return nil, refusal("wrong code")
	}
	in.factor = use.method
	if in.rehash != "" {
		if in.password, err = s.hasher.hash(ctx, in.rehash); err != nil {
			return nil, err
		}
	}
	return s.finish(ctx, in, func(c *services.Credentials) error {
		if c.PasswordHash != in.creds.PasswordHash {
			return refusal("the password was changed meanwhile")
		}
		if err := use.apply(c); err != nil {
			return err
		}
		if in.password != "" {
			c.PasswordHash = in.password
		}
		return nil
	})
}

func newPassword() []*accessdv1.Prompt {
	return []*accessdv1.Prompt{{Text: "New password: "}, {Text: "New password again: "}}
}

// takeNewPassword takes the new password, twice, or the wish for a passkey instead.
func (s loginService) takeNewPassword(ctx context.Context, in *signIn, answers []string) (*accessdv1.LoginStep, error) {
	if answers[0]+answers[1] == "" {
		if out, err := s.parkEnrol(ctx, in, services.Credentials{}, s.takeFirstPasskey); err == nil || !fault.Is(err, fault.Conflict) {
			return out, err
		}
	}
	err := checkPassword(answers[0])
	if err == nil && answers[0] != answers[1] {
		err = fault.New(fault.BadInput, "the two are not the same")
	}
	if err != nil {
		if in.tries++; in.tries >= maxTries {
			return nil, refusal("no password was set")
		}
		return in.ask("Again, please: "+fault.Public(err)+".", s.takeNewPassword, newPassword()...), nil
	}
	if in.password, err = s.hasher.hash(ctx, answers[0]); err != nil {
		return nil, err
	}
	in.totp, in.tries = newTOTPKey(), 0
	return in.ask(in.totp.poster(s.cfg.Keys.ClusterName(), in.user), s.takeFirstCode, &accessdv1.Prompt{Text: "Code: "}), nil
}

// takeFirstCode takes a code that proves that the person's app has the secret.
// Only then the invite is used up, in one step with all that it brought.
func (s loginService) takeFirstCode(ctx context.Context, in *signIn, answers []string) (*accessdv1.LoginStep, error) {
	at, ok := in.totp.match(answers[0], s.cfg.Now())
	in.factor = methodTOTP
	if !ok {
		if in.tries++; in.tries >= maxTries {
			return nil, refusal("the second factor was not confirmed")
		}
		return in.ask("That is not the code of this moment. Wait for the next one; if it is refused too, check the clock of your device.",
			s.takeFirstCode, &accessdv1.Prompt{Text: "Code: "}), nil
	}
	sealed, err := s.cfg.Sealer.Seal(ctx, totpPurpose(in.user), in.totp)
	if err != nil {
		return nil, err
	}
	return s.useInvite(ctx, in, func(c *services.Credentials) error {
		c.PasswordHash, c.TOTPSecret, c.TOTPLastStep = in.password, sealed, at
		return nil
	})
}

// useInvite ends the first sign-in: the invite is used up, and what fill puts into
// empty credentials is what the person has from then on.
func (s loginService) useInvite(ctx context.Context, in *signIn, fill func(*services.Credentials) error) (*accessdv1.LoginStep, error) {
	used := events.Event{
		Name: events.InviteUse, User: in.user, AddrRemote: in.client.String(), Proto: "ssh",
		Fields: map[string]any{"fingerprint": ssh.FingerprintSHA256(in.key)},
	}
	var out *accessdv1.LoginStep
	err := s.change(ctx, used, func() (err error) {
		out, err = s.finish(ctx, in, func(c *services.Credentials) error {
			if !sameHash(c.InviteHash, in.creds.InviteHash) {
				return refusal("the invite was used or replaced meanwhile")
			}
			*c = services.Credentials{Revision: c.Revision}
			return fill(c)
		})
		return err
	})
	return out, err
}

// finish applies what a good sign-in does to the credentials, so that no code
// and no invite is good twice, records it, and issues the certificate.
func (s loginService) finish(ctx context.Context, in *signIn, apply func(*services.Credentials) error) (*accessdv1.LoginStep, error) {
	sub, err := s.subject(ctx, in.user)
	if fault.Is(err, fault.NotFound) {
		return nil, refusal("the user was removed meanwhile")
	}
	if err != nil {
		return nil, err
	}
	err = retryConflict(func() error {
		c, err := s.cfg.Store.Credentials(ctx, in.user)
		if fault.Is(err, fault.NotFound) {
			return refusal("the user was removed meanwhile")
		}
		if err != nil {
			return err
		}
		if err := apply(&c); err != nil {
			return err
		}
		c.KnownKeys = remember(c.KnownKeys, ssh.FingerprintSHA256(in.key))
		_, err = s.cfg.Store.UpdateCredentials(ctx, in.user, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	in.acquit()
	return s.complete(ctx, in, sub)
}

// complete records the sign-in and ends it with a certificate.
func (s loginService) complete(ctx context.Context, in *signIn, sub subject) (*accessdv1.LoginStep, error) {
	sub, err := s.elevated(ctx, sub)
	if err != nil {
		return nil, err
	}
	ev := in.event()
	ev.Success = true
	ev.Fields["mfa"], ev.Fields["roles"], ev.Fields["logins"] = in.factor, sub.Roles, sub.Logins
	if err := s.record(ctx, ev); err != nil {
		return nil, err
	}
	before, sources := sub.until(s.cfg.Now().Add(s.cfg.UserTTL)), sub.sources(in.client)
	ask := sub.request()
	ask.Key, ask.ValidBefore, ask.SourceAddresses, ask.MFA = in.key, before, sources, in.factor
	if in.ours {
		ask.Factor = in.factor
	}
	cert, err := s.issueUser(ctx, userCert{UserRequest: ask, method: "login", by: string(in.user), client: in.client.String()})
	if err != nil {
		return nil, err
	}
	grant := s.grants.add(grant{
		owner: in.owner, user: in.user, roles: sub.Roles, mfa: in.factor, before: before, sources: sources, client: in.client.String(),
	})
	return &accessdv1.LoginStep{
		Id: in.id, Done: true, Certificate: keyLine(cert), Grant: grant, Expires: timestamppb.New(certTime(cert.ValidBefore)),
	}, nil
}

// remember returns known with key in front, without the oldest ones.
func remember(known []string, key string) []string {
	out := append([]string{key}, slices.DeleteFunc(slices.Clone(known), func(k string) bool { return k == key })...)
	return out[:min(len(out), maxKnownKeys)]
}

func totpPurpose(user names.UserName) string { return "totp/" + string(user) }
