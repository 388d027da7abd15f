package auth

import (
	"bytes"
	"context"
	"slices"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/passkey"
	"github.com/accessd/accessd/lib/services"
)

// A passkey is another way to finish what a link is for (see sso.go), beside a
// provider: the browser's person proves it on the page itself. The relying party
// (WebAuthn Level 3, section 4) is the host name of the page, and the page's
// address is the one origin that is taken. Every passkey is discoverable and
// verifies its person, so it is who and two factors at once, and a page shows the
// same whether or not the name that was typed exists.
const methodPasskey = "passkey"

// maxCredential bounds what a browser sends of a passkey, in bytes.
const maxCredential = 32 << 10

// rpOf returns the relying party's id of pages at base, or "" where there can be
// none.
func rpOf(base string) string {
	p, _ := passkey.At(base)
	return p.ID
}

// passkeyOf returns a passkey as it is checked.
func passkeyOf(p services.Passkey) passkey.Key {
	return passkey.Key{
		ID: p.ID, PublicKey: p.PublicKey, Model: p.Model, Transports: p.Transports, State: passkey.State{Counter: p.Counter, Flags: p.Flags},
	}
}

// BeginPasskey takes the person's word that the link is theirs, and has the
// browser ask for a passkey. It may be begun again in the same browser.
func (s signOnService) BeginPasskey(ctx context.Context, req *connect.Request[accessdv1.BeginPasskeyRequest]) (*connect.Response[accessdv1.BeginPasskeyResponse], error) {
	m := req.Msg
	o, err := s.confirmed(ctx, m)
	if err != nil {
		return nil, err
	}
	if o.RP == "" {
		return nil, fault.New(fault.Denied, "no passkey can be used here")
	}
	res := &accessdv1.BeginPasskeyResponse{Create: o.Purpose == services.SignOnEnrol}
	if res.Options, err = s.challenge(ctx, &o); err != nil {
		return nil, err
	}
	o.Browser = hashSecret(m.GetBrowser())
	if _, err := s.cfg.Store.UpdateSignOn(ctx, o); err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

// challenge gives o a new challenge and returns what the browser is asked.
func (s signOnService) challenge(ctx context.Context, o *services.SignOn) ([]byte, error) {
	rp, _ := passkey.At(o.Base)
	o.Challenge = passkey.NewChallenge()
	if o.Purpose != services.SignOnEnrol {
		return rp.AskUse(o.Challenge, signOnTTL)
	}
	c, err := s.cfg.Store.Credentials(ctx, o.User)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	w := passkey.Wish{Challenge: o.Challenge, Timeout: signOnTTL, Site: s.cfg.Keys.ClusterName(), User: string(o.User), Handle: o.Handle}
	for _, p := range c.Passkeys {
		if p.RP == o.RP {
			w.Has = append(w.Has, p.ID)
		}
	}
	return rp.AskNew(w)
}

// FinishPasskey takes what the passkey answered. Whatever is wrong with it, it
// counts once.
func (s signOnService) FinishPasskey(ctx context.Context, req *connect.Request[accessdv1.FinishPasskeyRequest]) (*connect.Response[accessdv1.FinishPasskeyResponse], error) {
	m := req.Msg
	o, err := s.cfg.Store.SignOn(ctx, hashSecret(m.GetLink()))
	if fault.Is(err, fault.NotFound) {
		return nil, errNoSignOn()
	}
	switch {
	case err != nil:
		return nil, err
	case o.Challenge == "" || !s.cfg.Now().Before(o.Expires):
		return nil, errNoSignOn()
	case !sameHash(o.Browser, hashSecret(m.GetBrowser())):
		return nil, s.otherBrowser(ctx, o, m.GetClient(), "the passkey's answer came from another browser than the confirmation")
	case o.State != services.SignOnOpen:
		s.tell(ctx, o, m.GetClient(), "the passkey's answer was used before")
		return nil, errNoSignOn()
	}
	o.State = services.SignOnBack
	if o, err = s.cfg.Store.UpdateSignOn(ctx, o); err != nil {
		return nil, err
	}
	onward, err := s.answered(ctx, &o, m.GetCredential())
	if err != nil {
		return nil, s.refuse(ctx, o, m.GetClient(), err)
	}
	return connect.NewResponse(&accessdv1.FinishPasskeyResponse{End: finished(o, onward)}), nil
}

// answered approves o if the passkey's answer is what was asked for.
func (s signOnService) answered(ctx context.Context, o *services.SignOn, answer []byte) (onward string, err error) {
	if len(answer) > maxCredential {
		return "", refusal("the passkey's answer is too long")
	}
	if o.Purpose == services.SignOnEnrol {
		err = s.makePasskey(ctx, o, answer)
	} else {
		err = s.usePasskey(ctx, o, answer)
	}
	if err != nil {
		return "", err
	}
	return s.settle(ctx, o)
}

// makePasskey takes a new passkey. It is the terminal's to keep it: that is where
// the person has shown that they may.
func (s signOnService) makePasskey(ctx context.Context, o *services.SignOn, answer []byte) error {
	rp, _ := passkey.At(o.Base)
	k, err := rp.New(answer, o.Challenge)
	if err != nil {
		return badAnswer(err)
	}
	_, err = s.cfg.Store.PasskeyUser(ctx, k.ID)
	switch {
	case err == nil:
		return refusal("the passkey is enrolled already")
	case !fault.Is(err, fault.NotFound):
		return err
	}
	o.Made = &services.Passkey{
		ID: k.ID, PublicKey: k.PublicKey, RP: o.RP, Counter: k.Counter, Flags: k.Flags, Model: k.Model, Transports: k.Transports,
		Created: s.cfg.Now().UTC(),
	}
	return nil
}

// usePasskey finds out whose passkey answered, notes its use, and takes it if it is
// that of who the terminal said.
func (s signOnService) usePasskey(ctx context.Context, o *services.SignOn, answer []byte) error {
	use, err := passkey.ParseUse(answer)
	if err != nil {
		return badAnswer(err)
	}
	user, err := s.cfg.Store.PasskeyUser(ctx, use.ID)
	if fault.Is(err, fault.NotFound) {
		return refusal("no such passkey")
	}
	if err != nil {
		return err
	}
	err = retryConflict(func() error {
		c, err := s.cfg.Store.Credentials(ctx, user)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if c, err = s.usedBy(*o, use, user, c); err != nil {
			return err
		}
		_, err = s.cfg.Store.UpdateCredentials(ctx, user, c)
		return err
	})
	if err == nil {
		o.MFA, o.PasskeyID = methodPasskey, use.ID
	}
	return err
}

// usedBy returns user's credentials c after the use of a passkey, or why it is none
// of the person's whom o is about.
func (s signOnService) usedBy(o services.SignOn, use passkey.Use, user names.UserName, c services.Credentials) (services.Credentials, error) {
	i := slices.IndexFunc(c.Passkeys, func(p services.Passkey) bool { return bytes.Equal(p.ID, use.ID) && p.RP == o.RP })
	if i < 0 || !bytes.Equal(c.Handle, use.Handle) {
		return c, refusal("no such passkey")
	}
	rp, _ := passkey.At(o.Base)
	c.Passkeys = slices.Clone(c.Passkeys)
	p := &c.Passkeys[i]
	state, err := rp.Check(use, o.Challenge, passkeyOf(*p))
	if err != nil {
		return c, badAnswer(err)
	}
	if user != o.User {
		return c, refusal("the passkey is that of " + string(user))
	}
	p.Counter, p.Flags, p.Used = state.Counter, state.Flags, s.cfg.Now().UTC()
	return c, nil
}

// badAnswer says what is wrong with a passkey's answer.
func badAnswer(err error) error { return refusal("the passkey's answer: " + clip(err.Error())) }
