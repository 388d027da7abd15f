package auth

import (
	"cmp"
	"context"
	"net/netip"
	"time"

	"connectrpc.com/connect"
	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/listener"
)

// How a bot came in, in events.
const (
	methodBotToken = "bot_token" // good once
	methodBotRenew = "bot_renew"
	methodBotOIDC  = "bot_oidc"
)

const (
	// botRetry is how long a bot may ask again for the certificate that its last
	// renewal gave, from the same address: the answer may have got lost.
	botRetry = time.Minute
	// maxIDToken bounds an ID token, in bytes; those of CI systems have about 2 KiB.
	maxIDToken = 8 << 10
)

type botService struct{ *Authority }

// AddBot creates a bot.
func (s botService) AddBot(ctx context.Context, req *connect.Request[accessdv1.AddBotRequest]) (*connect.Response[accessdv1.AddBotResponse], error) {
	m := req.Msg
	u, err := userService(s).newUser(ctx, &accessdv1.AddUserRequest{Name: m.GetName(), Roles: m.GetRoles(), Logins: m.GetLogins(), Traits: m.GetTraits()})
	if err != nil {
		return nil, err
	}
	u.Bot = botOf(m.GetRules())
	if err := u.Bot.Check(); err != nil {
		return nil, err
	}
	var token string
	var creds services.Credentials
	if u.Bot.Issuer == "" {
		if token, creds, err = s.invite(m.GetTokenTtl()); err != nil {
			return nil, err
		}
	}
	if u, err = s.createUser(ctx, u, creds); err != nil {
		return nil, err
	}
	res := &accessdv1.AddBotResponse{Bot: botMessage(u, creds), Token: token}
	if token != "" {
		res.TokenExpires = timestamppb.New(creds.InviteExpires)
	}
	return connect.NewResponse(res), nil
}

func botOf(m *accessdv1.BotRules) *services.Bot {
	return &services.Bot{
		TTL:    cmp.Or(m.GetTtl().AsDuration(), defaults.BotCertTTL),
		Issuer: m.GetIssuer(), Audience: m.GetAudience(), CA: m.GetCa(), Claims: listsOf(m.GetClaims()),
	}
}

func botMessage(u services.User, c services.Credentials) *accessdv1.Bot {
	user := userMessage(u, c)
	m := &accessdv1.Bot{
		Name: user.GetName(), Roles: user.GetRoles(), Logins: user.GetLogins(), Created: user.GetCreated(),
		Rules: &accessdv1.BotRules{
			Ttl: durationpb.New(u.Bot.TTL), Issuer: u.Bot.Issuer, Audience: u.Bot.Audience, Ca: u.Bot.CA, Claims: valuesOf(u.Bot.Claims),
		},
	}
	if c.Bot != nil {
		m.Renewed, m.Source = timestamppb.New(c.Bot.Renewed), c.Bot.Source
	}
	return m
}

// ListBots lists bots.
func (s botService) ListBots(ctx context.Context, _ *connect.Request[accessdv1.ListBotsRequest]) (*connect.Response[accessdv1.ListBotsResponse], error) {
	res := &accessdv1.ListBotsResponse{}
	err := s.eachUser(ctx, func(u services.User, c services.Credentials) {
		if u.Bot != nil {
			res.Bots = append(res.Bots, botMessage(u, c))
		}
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

// A botAsk asks for a bot's certificate.
type botAsk struct {
	key    ssh.PublicKey
	client netip.AddrPort
	method string
}

func (a botAsk) event(name names.UserName) events.Event {
	return events.Event{Name: events.UserLogin, User: name, AddrRemote: a.client.String(), Proto: "ssh", Fields: map[string]any{
		"method": a.method, "fingerprint": ssh.FingerprintSHA256(a.key),
	}}
}

// refuseBot records why a bot is refused, and returns what it reads.
func (a *Authority) refuseBot(ctx context.Context, ask botAsk, name names.UserName, reason string) error {
	ev := ask.event(name)
	ev.Error = reason
	a.note(ctx, ev)
	return fault.Wrap(fault.Denied, refusal(reason), "permission denied")
}

// issueBot issues a certificate to a bot that was let in.
func (a *Authority) issueBot(ctx context.Context, sub subject, ask botAsk) (*ssh.Certificate, error) {
	r := sub.request()
	r.Key, r.ValidBefore, r.SourceAddresses = ask.key, sub.until(a.cfg.Now().Add(sub.Bot.TTL)), sub.sources(ask.client)
	ev := ask.event(sub.Name)
	ev.Success = true
	ev.Fields["roles"], ev.Fields["logins"] = sub.Roles, sub.Logins
	if err := a.record(ctx, ev); err != nil {
		return nil, err
	}
	return a.issueUser(ctx, userCert{UserRequest: r, method: ask.method, by: string(sub.Name), client: ask.client.String()})
}

// admitBot takes the good token of a bot in a sign-in: it is used up by the
// bot's first certificate.
func (s loginService) admitBot(ctx context.Context, in *signIn) (*accessdv1.LoginStep, error) {
	sub, err := s.subject(ctx, in.user)
	if err != nil {
		return nil, err
	}
	if sub.Bot == nil {
		return nil, refusal("it is a bot no longer")
	}
	cert, err := s.issueBot(ctx, sub, botAsk{in.key, in.client, methodBotToken})
	if err != nil {
		return nil, err
	}
	err = retryConflict(func() error {
		c, err := s.cfg.Store.Credentials(ctx, in.user)
		if err != nil {
			return err
		}
		if !sameHash(c.InviteHash, in.creds.InviteHash) {
			return refusal("the token was used or replaced meanwhile")
		}
		c = services.Credentials{Revision: c.Revision, Bot: s.newest(cert, in.client, 0)}
		_, err = s.cfg.Store.UpdateCredentials(ctx, in.user, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	in.acquit()
	return &accessdv1.LoginStep{Id: in.id, Done: true, Certificate: keyLine(cert), Expires: timestamppb.New(certTime(cert.ValidBefore))}, nil
}

// newest returns the state of a bot that has got cert in place of another.
func (a *Authority) newest(cert *ssh.Certificate, client netip.AddrPort, before uint64) *services.BotState {
	return &services.BotState{
		Serial: cert.Serial, Key: ssh.FingerprintSHA256(cert.Key), Source: client.Addr().String(), Renewed: a.cfg.Now().UTC(), Before: before,
	}
}

type botSignInService struct{ *Authority }

// RenewBot issues a bot's next certificate for the same key.
func (s botSignInService) RenewBot(ctx context.Context, req *connect.Request[accessdv1.RenewBotRequest]) (*connect.Response[accessdv1.BotCertificate], error) {
	client, err := parseClient(req.Msg.GetClient())
	if err != nil {
		return nil, err
	}
	old, err := parseCertLine(req.Msg.GetCertificate())
	if err != nil {
		return nil, err
	}
	id, err := delegationService(s).verify(ctx, req.Msg.GetCertificate(), client)
	if err != nil {
		return nil, err
	}
	ask := botAsk{old.Key, client, methodBotRenew}
	sub, err := s.subject(ctx, id.User)
	if err != nil {
		return nil, err
	}
	if sub.Bot == nil {
		return nil, s.refuseBot(ctx, ask, id.User, "it is no bot")
	}
	creds, err := s.cfg.Store.Credentials(ctx, id.User)
	if err != nil {
		return nil, err
	}
	if creds.Bot == nil {
		return nil, s.refuseBot(ctx, ask, id.User, "the certificate did not come with a token, or the bot was reset")
	}
	if !s.mayRenew(*creds.Bot, old.Serial, client) {
		return nil, s.lockBot(ctx, ask, id.User)
	}
	cert, err := s.issueBot(ctx, sub, ask)
	if err != nil {
		return nil, err
	}
	creds.Bot = s.newest(cert, client, old.Serial)
	if _, err := s.cfg.Store.UpdateCredentials(ctx, id.User, creds); err != nil {
		return nil, err // of two at once one loses, and asks again: then it has a copy
	}
	return botCertificate(cert), nil
}

// mayRenew reports whether serial is the newest certificate, or the one before it
// by a bot that has not heard of that.
func (s botSignInService) mayRenew(b services.BotState, serial uint64, client netip.AddrPort) bool {
	if serial == b.Serial {
		return true
	}
	again := serial == b.Before && b.Before != 0 && b.Source == client.Addr().String()
	return again && s.cfg.Now().Sub(b.Renewed) < botRetry
}

// lockBot keeps a bot out whose key two have.
func (s botSignInService) lockBot(ctx context.Context, ask botAsk, name names.UserName) error {
	const reason = "a certificate that is not its newest was renewed: its key was copied"
	l := services.Lock{
		ID: services.NewLockID(), Target: services.LockTarget{User: name}, Message: "this bot's key was copied",
		By: "bot:" + string(name), Created: s.cfg.Now().UTC(),
	}
	err := s.change(ctx, lockEvent(ctx, events.LockCreate, l), func() error {
		_, err := s.cfg.Store.CreateLock(ctx, l)
		return err
	})
	if err != nil {
		return err
	}
	return s.refuseBot(ctx, ask, name, reason)
}

// ExchangeToken issues a certificate for a token that the bot's issuer has signed.
// It changes nothing of the bot, of whom many may be at work at once.
func (s botSignInService) ExchangeToken(ctx context.Context, req *connect.Request[accessdv1.ExchangeTokenRequest]) (*connect.Response[accessdv1.BotCertificate], error) {
	m := req.Msg
	name, err := names.ParseUserName(m.GetBot())
	if err != nil {
		return nil, err
	}
	key, err := parseKeyLine(m.GetPublicKey())
	if err != nil {
		return nil, err
	}
	client, err := parseClient(m.GetClient())
	if err != nil {
		return nil, err
	}
	ask := botAsk{key, client, methodBotOIDC}
	acquit, wait := s.backoff.try(ctx, name, listener.SourceOf(client.Addr()), false)
	if wait != nil {
		return nil, s.refuseBot(ctx, ask, name, wait.Error())
	}
	sub, err := s.subject(ctx, name)
	if fault.Is(err, fault.NotFound) {
		return nil, s.refuseBot(ctx, ask, name, "no such user")
	}
	if err != nil {
		return nil, err
	}
	if sub.Bot == nil || sub.Bot.Issuer == "" {
		return nil, s.refuseBot(ctx, ask, name, "it is no bot with an issuer")
	}
	if why, err := s.vouched(ctx, sub, m.GetIdToken()); err != nil {
		return nil, err
	} else if why != "" {
		return nil, s.refuseBot(ctx, ask, name, why)
	}
	acquit()
	cert, err := s.issueBot(ctx, sub, ask)
	if err != nil {
		return nil, err
	}
	return botCertificate(cert), nil
}

// vouched returns why token does not vouch for the bot, or "".
func (a *Authority) vouched(ctx context.Context, bot subject, token string) (why string, err error) {
	if len(token) > maxIDToken {
		return "the token is too long", nil
	}
	end, err := a.providers.begin(ctx)
	if err != nil {
		return "", err
	}
	defer end()
	// The name is no connector's: those have no colon.
	at, err := a.providers.of(ctx, services.Connector{
		Name: services.ConnectorName("bot:" + bot.Name), Issuer: bot.Bot.Issuer, CA: bot.Bot.CA, Revision: bot.Revision,
	})
	if err != nil {
		return "", err
	}
	id, err := at.Verifier(&oidc.Config{ClientID: bot.Bot.Audience, Now: a.cfg.Now}).Verify(oidc.ClientContext(ctx, at.client), token)
	if err != nil {
		return "the token: " + clip(err.Error()), nil
	}
	claims := services.Claims{}
	if err := id.Claims(&decoded{claims}); err != nil {
		return "the token's claims: " + clip(err.Error()), nil
	}
	if missing := bot.Bot.Vouched(claims); missing != "" {
		return "the token's claim " + missing + " is another", nil
	}
	return "", nil
}

func botCertificate(cert *ssh.Certificate) *connect.Response[accessdv1.BotCertificate] {
	return connect.NewResponse(&accessdv1.BotCertificate{Certificate: keyLine(cert), Expires: timestamppb.New(certTime(cert.ValidBefore))})
}
