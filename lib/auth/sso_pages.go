package auth

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

type signOnService struct{ *Authority }

// errNoSignOn is for a link or an answer of a sign-in that is not, or no longer,
// under way.
func errNoSignOn() error {
	return fault.New(fault.NotFound, "this link is not, or no longer, good").WithHint("begin again in the terminal")
}

// byLink returns the sign-in of a link that is still good.
func (s signOnService) byLink(ctx context.Context, link string) (services.SignOn, error) {
	o, err := s.cfg.Store.SignOn(ctx, hashSecret(link))
	if fault.Is(err, fault.NotFound) || (err == nil && (!s.cfg.Now().Before(o.Expires) || o.State != services.SignOnOpen)) {
		return o, errNoSignOn()
	}
	return o, err
}

// Show tells what a link is about.
func (s signOnService) Show(ctx context.Context, req *connect.Request[accessdv1.ShowRequest]) (*connect.Response[accessdv1.ShowResponse], error) {
	o, err := s.byLink(ctx, req.Msg.GetLink())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.ShowResponse{
		Cluster: s.cfg.Keys.ClusterName(), User: string(o.User), Connector: string(o.Connector), Fingerprint: o.Fingerprint,
		Client: o.Client, Code: o.Code != "", Expires: timestamppb.New(o.Expires),
		Passkey: o.RP != "", Purpose: string(o.Purpose),
	}), nil
}

// word is a person's word that a link is theirs.
type word interface {
	GetLink() string
	GetCode() string
	GetBrowser() string
	GetClient() string
}

// confirmed returns the sign-in of a link if the person's word for it is good. Who
// goes on with it changes it.
func (s signOnService) confirmed(ctx context.Context, m word) (services.SignOn, error) {
	o, err := s.byLink(ctx, m.GetLink())
	if err != nil {
		return o, err
	}
	if len(m.GetBrowser()) < minBrowser || len(m.GetBrowser()) > maxText || len(m.GetCode()) > maxText {
		return o, fault.New(fault.BadInput, "a browser or a code of this length is none")
	}
	if o.Browser != "" && !sameHash(o.Browser, hashSecret(m.GetBrowser())) {
		return o, s.otherBrowser(ctx, o, m.GetClient(), "the link was opened in another browser than the one it was confirmed in")
	}
	if o.Code == "" {
		return o, nil
	}
	// A try counts before the code is looked at, so that of many at the same time
	// one is looked at, and the others begin anew.
	o.Tries++
	if o, err = s.cfg.Store.UpdateSignOn(ctx, o); err != nil {
		return o, err
	}
	if !sameHash(o.Code, codeHash(m.GetLink(), m.GetCode())) {
		return o, s.wrongCode(ctx, o, m.GetClient())
	}
	o.Tries-- // which the caller's change brings to the store
	return o, nil
}

// otherBrowser refuses a browser that is not the one in which it was begun.
func (s signOnService) otherBrowser(ctx context.Context, o services.SignOn, client, why string) error {
	s.tell(ctx, o, client, why)
	return fault.New(fault.Denied, "the sign-in was begun in another browser").WithHint("open the link and finish in one browser")
}

// Confirm takes the person's word that the sign-in is theirs.
func (s signOnService) Confirm(ctx context.Context, req *connect.Request[accessdv1.ConfirmRequest]) (*connect.Response[accessdv1.ConfirmResponse], error) {
	m := req.Msg
	o, err := s.confirmed(ctx, m)
	if err != nil {
		return nil, err
	}
	if o.Connector == "" {
		return nil, fault.New(fault.Denied, "there is no provider to go to").WithHint("use a passkey; that takes JavaScript")
	}
	c, err := s.cfg.Store.Connector(ctx, o.Connector)
	if fault.Is(err, fault.NotFound) {
		return nil, s.refuse(ctx, o, m.GetClient(), refusal("the connector was removed meanwhile"))
	}
	if err != nil {
		return nil, err
	}
	secret := names.NewSecret()
	p := passage{connector: c, base: o.Base, state: o.ID + "." + secret, browser: m.GetBrowser()}
	where, err := s.authorize(ctx, p)
	if err != nil {
		return nil, err
	}
	o.State, o.Answer, o.Browser, o.Challenge = services.SignOnSent, hashSecret(secret), hashSecret(m.GetBrowser()), ""
	if _, err := s.cfg.Store.UpdateSignOn(ctx, o); err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.ConfirmResponse{Url: where}), nil
}

// minBrowser is the least that makes a browser's secret one, in characters of
// base64.
const minBrowser = 43

// wrongCode records a code that was not the terminal's; the last one ends the
// sign-in.
func (s signOnService) wrongCode(ctx context.Context, o services.SignOn, client string) error {
	if o.Tries >= signOnTries {
		return s.refuse(ctx, o, client, refusal("the code was wrong too often"))
	}
	s.tell(ctx, o, client, "the code was wrong")
	return fault.New(fault.BadInput, "that is not the code your terminal shows")
}

// Finish takes what the provider sent the browser back with. Whatever is wrong
// with it, it counts once.
func (s signOnService) Finish(ctx context.Context, req *connect.Request[accessdv1.FinishRequest]) (*connect.Response[accessdv1.FinishResponse], error) {
	m := req.Msg
	id, secret, _ := strings.Cut(m.GetState(), ".")
	o, err := s.cfg.Store.SignOn(ctx, cmpID(id))
	if fault.Is(err, fault.NotFound) {
		return nil, errNoSignOn()
	}
	if err != nil {
		return nil, err
	}
	switch {
	case !sameHash(o.Answer, hashSecret(secret)) || !s.cfg.Now().Before(o.Expires):
		return nil, errNoSignOn()
	case !sameHash(o.Browser, hashSecret(m.GetBrowser())):
		return nil, s.otherBrowser(ctx, o, m.GetClient(), "the provider's answer came from another browser than the confirmation")
	case o.State != services.SignOnSent:
		s.tell(ctx, o, m.GetClient(), "the provider's answer was used before")
		return nil, errNoSignOn()
	}
	o.State = services.SignOnBack
	if o, err = s.cfg.Store.UpdateSignOn(ctx, o); err != nil {
		return nil, err
	}
	onward, err := s.approve(ctx, &o, m)
	if err != nil {
		return nil, s.refuse(ctx, o, m.GetClient(), err)
	}
	return connect.NewResponse(finished(o, onward)), nil
}

// finished is what the page shows at the end.
func finished(o services.SignOn, onward string) *accessdv1.FinishResponse {
	res := &accessdv1.FinishResponse{User: string(o.User), Fingerprint: o.Fingerprint, Purpose: string(o.Purpose)}
	if o.Purpose == services.SignOnFactor {
		res.Code = onward
	} else {
		res.Onward = onward
	}
	return res
}

// cmpID returns id, or what no sign-in has when it cannot be one.
func cmpID(id string) string {
	if !signOnGrammar(id) {
		return "none"
	}
	return id
}

// signOnGrammar reports whether id is a hash in hexadecimal.
func signOnGrammar(id string) bool {
	return len(id) == 64 && !strings.ContainsFunc(id, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) })
}

// approve asks the provider who the person is, and approves the sign-in if that
// is who the terminal said.
func (s signOnService) approve(ctx context.Context, o *services.SignOn, m *accessdv1.FinishRequest) (onward string, err error) {
	if m.GetError() != "" {
		return "", refusal("the provider says: " + clip(m.GetError()))
	}
	c, err := s.cfg.Store.Connector(ctx, o.Connector)
	if fault.Is(err, fault.NotFound) {
		return "", refusal("the connector was removed meanwhile")
	}
	if err != nil {
		return "", err
	}
	if m.GetIssuer() != "" && m.GetIssuer() != c.Issuer {
		return "", refusal("the answer is of another provider") // RFC 9207, section 2.4
	}
	claims, err := s.claims(ctx, passage{connector: c, base: o.Base, state: m.GetState(), browser: m.GetBrowser()}, m.GetCode())
	if err != nil {
		return "", err
	}
	u, err := c.UserOf(claims)
	if err != nil {
		return "", refusal(err.Error())
	}
	o.Origin = u.Origin
	if o.MFA, err = c.SecondFactor(claims); err != nil {
		return "", refusal(err.Error())
	}
	if u.Name != o.User {
		return "", refusal("the provider says that this is " + string(u.Name))
	}
	if err := s.admitUser(ctx, o, u); err != nil {
		return "", err
	}
	return s.settle(ctx, o)
}

// settle approves o, whose person the browser has shown to be there. It returns
// where the browser goes on or, for a second factor, the code that it shows.
func (s signOnService) settle(ctx context.Context, o *services.SignOn) (onward string, err error) {
	if o.Loopback != "" {
		receipt := names.NewSecret()
		o.Receipt = hashSecret(receipt)
		onward = o.Loopback + "?" + url.Values{"receipt": {receipt}}.Encode()
	}
	if o.Purpose == services.SignOnFactor {
		onward = newCode()
		o.Receipt = codeHash(o.ID, onward)
	}
	o.State = services.SignOnApproved
	_, err = s.cfg.Store.UpdateSignOn(ctx, *o)
	return onward, err
}

// admitUser makes the user, or brings it up to date. A name is whose it was
// first: neither a user of ours nor one of another provider, or of another
// subject of the same, can be taken over by somebody who is called alike.
func (s signOnService) admitUser(ctx context.Context, o *services.SignOn, u services.User) error {
	now := s.cfg.Now().UTC()
	u.Expires = now.Add(s.cfg.UserTTL)
	return retryConflict(func() error {
		old, err := s.cfg.Store.User(ctx, u.Name)
		name := events.UserUpdate
		switch {
		case fault.Is(err, fault.NotFound):
			name = events.UserCreate
			u.Created, u.Revision = now, 0
		case err != nil:
			return err
		case old.Origin == nil || *old.Origin != *u.Origin:
			return refusal("the name is somebody else's")
		default:
			u.Created, u.Revision, u.Keys = old.Created, old.Revision, old.Keys
		}
		put := func() error {
			if name == events.UserCreate {
				_, err := s.cfg.Store.CreateUser(ctx, u, services.Credentials{})
				return err
			}
			_, err := s.cfg.Store.UpdateUser(ctx, u)
			return err
		}
		if name == events.UserUpdate && slices.Equal(old.Roles, u.Roles) && slices.Equal(old.Logins, u.Logins) && sameTraits(old.Traits, u.Traits) {
			return put() // nothing but when it was last seen
		}
		ev := userEvent(ctx, name, u)
		ev.User, ev.AddrRemote = u.Name, o.Client
		ev.Fields["by"] = "connector:" + string(o.Connector)
		return s.change(ctx, ev, put)
	})
}

func sameTraits(a, b map[string][]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || !slices.Equal(v, w) {
			return false
		}
	}
	return true
}

// refuse ends a sign-in with why, records it and returns what the browser's
// person reads. The terminal's reads nothing but that it was refused.
func (s signOnService) refuse(ctx context.Context, o services.SignOn, client string, why error) error {
	if _, ours := errors.AsType[refusal](why); !ours {
		s.tell(ctx, o, client, why.Error())
		o.State, o.Why = services.SignOnRefused, "the sign-in could not be finished"
		s.put(ctx, o)
		return why
	}
	o.State, o.Why = services.SignOnRefused, why.Error()
	s.put(ctx, o)
	s.tell(ctx, o, client, why.Error())
	denied := fault.Wrap(fault.Denied, why, "the sign-in was refused")
	switch {
	case o.Purpose == services.SignOnEnrol:
		return fault.Wrap(fault.Denied, why, "the passkey was refused").WithHint("begin again in the terminal")
	case o.Challenge != "":
		return denied.WithHint("use a passkey of the person whom the terminal named, or ask an administrator")
	}
	return denied.WithHint("sign in at %q as the person whom the terminal named, or ask an administrator", string(o.Connector))
}

// put keeps o where nothing depends on it: what is not approved is refused.
func (s signOnService) put(ctx context.Context, o services.SignOn) {
	if _, err := s.cfg.Store.UpdateSignOn(context.WithoutCancel(ctx), o); err != nil {
		s.cfg.Log.Info("a refused sign-in is not marked; it expires")
	}
}

// tell records what went wrong in the browser.
func (s signOnService) tell(ctx context.Context, o services.SignOn, client, why string) {
	if o.Purpose != services.SignOnLogin {
		name, method := events.FactorVerify, methodSSO
		if o.Purpose == services.SignOnEnrol {
			name = events.FactorCreate
		}
		if o.RP != "" {
			method = methodPasskey
		}
		s.note(ctx, events.Event{Name: name, User: o.User, AddrRemote: addrOf(client), Proto: "https", Error: why, Fields: map[string]any{
			"method": method, "reason": why,
		}})
		return
	}
	ev := events.Event{Name: events.UserLogin, User: o.User, AddrRemote: o.Client, Proto: "https", Error: why, Fields: map[string]any{
		"method": methodSSO,
	}}
	if o.Connector == "" || o.Challenge != "" {
		ev.Fields["method"] = methodPasskey
	} else {
		ev.Fields["connector"] = string(o.Connector)
	}
	set(ev, "fingerprint", o.Fingerprint)
	set(ev, "addr.browser", addrOf(client))
	if o.Origin != nil {
		ev.Fields["subject"] = o.Origin.Subject
	}
	s.note(ctx, ev)
}
