package auth

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
)

// handleSize is how many random bytes passkeys know a user by: no name, since
// devices show it to whoever asks (WebAuthn Level 3, section 14.6.1).
const handleSize = 32

// takePasskey ends a sign-in that a passkey has approved, if it is still there.
func (s loginService) takePasskey(ctx context.Context, in *signIn, o services.SignOn) (*accessdv1.LoginStep, error) {
	in.method, in.connector, in.factor = methodPasskey, "", o.MFA
	in.acquit = func() {} // nothing was guessed
	return s.finish(ctx, in, func(c *services.Credentials) error { return hasPasskey(*c, o.PasskeyID) })
}

func hasPasskey(c services.Credentials, id []byte) error {
	if _, has := c.Passkey(id); !has {
		return refusal("the passkey was removed meanwhile")
	}
	return nil
}

// enrolBase returns where the person of a conversation makes a passkey, or why
// there can be none. A passkey is of use under one name only, so where several
// proxies have several, somebody has to say which.
func (a *Authority) enrolBase(ctx context.Context) (string, error) {
	if a.cfg.PublicURL != "" || callerOf(ctx).member != nil {
		return passkeyBase(a.publicBase(nil, callerOf(ctx)))
	}
	members, err := a.cfg.Store.Members(ctx)
	if err != nil {
		return "", err
	}
	var found string
	for _, m := range members {
		base, err := a.publicBase(nil, caller{member: &record{Member: m}})
		if err != nil || rpOf(base) == "" {
			continue
		}
		if found != "" && rpOf(found) != rpOf(base) {
			return "", fault.New(fault.Conflict, "a passkey is for one host name, and the proxies have several: %s, %s", rpOf(found), rpOf(base)).
				WithHint("an administrator sets auth.public_url to the one that people's browsers go to")
		}
		found = cmp.Or(found, base)
	}
	return passkeyBase(found, nil)
}

// passkeyBase refuses a base that passkeys cannot be for.
func passkeyBase(base string, err error) (string, error) {
	if err == nil && rpOf(base) != "" {
		return base, nil
	}
	return "", fault.New(fault.Conflict, "a passkey needs a host name: the proxies are known here by IP addresses only").
		WithHint("an administrator gives a proxy a name with public_addresses, or all of them with auth.public_url")
}

// parkEnrol makes a link at which the person of in makes a passkey, and goes on
// with next when they have. c are the credentials they have.
func (a *Authority) parkEnrol(ctx context.Context, in *signIn, c services.Credentials, next taker) (*accessdv1.LoginStep, error) {
	base, err := a.enrolBase(ctx)
	if err != nil {
		return nil, err
	}
	o := services.SignOn{Purpose: services.SignOnEnrol, Base: base, Handle: c.Handle}
	if len(o.Handle) == 0 {
		o.Handle = randomBytes(handleSize)
	}
	return a.parkLink(ctx, in, o, next)
}

// parkProof makes a link at which the person of in shows a passkey.
func (a *Authority) parkProof(ctx context.Context, in *signIn, next taker) (*accessdv1.LoginStep, error) {
	base, err := a.enrolBase(ctx)
	if err != nil {
		return nil, err
	}
	return a.parkLink(ctx, in, services.SignOn{Purpose: services.SignOnProve, Base: base}, next)
}

func (a *Authority) parkLink(ctx context.Context, in *signIn, o services.SignOn, next taker) (*accessdv1.LoginStep, error) {
	o.User, o.RP, o.Client = in.user, rpOf(o.Base), in.client.String()
	if in.key != nil {
		o.Fingerprint = ssh.FingerprintSHA256(in.key)
	}
	l, err := a.newLink(ctx, o)
	if err != nil {
		return nil, err
	}
	in.signOn = l.id
	return in.ask(l.words(o), func(ctx context.Context, in *signIn, _ []string) (*accessdv1.LoginStep, error) {
		return a.awaitLink(ctx, in, next)
	}), nil
}

// adopt adds the passkey that was made for o, under name or, where that is "", one
// that is free.
func adopt(c *services.Credentials, o services.SignOn, name string) (string, error) {
	if o.Made == nil {
		return "", fault.New(fault.Internal, "the link was for no new passkey")
	}
	p := *o.Made
	p.Name = cmp.Or(name, freeName(*c))
	if len(c.Handle) == 0 {
		c.Handle = o.Handle
	}
	if string(c.Handle) != string(o.Handle) {
		return "", refusal("it was changed meanwhile")
	}
	c.Passkeys = append(slices.Clone(c.Passkeys), p)
	return p.Name, nil
}

// freeName returns a name that no passkey of c has.
func freeName(c services.Credentials) string {
	name := methodPasskey
	for i := 2; slices.ContainsFunc(c.Passkeys, func(p services.Passkey) bool { return p.Name == name }); i++ {
		name = methodPasskey + "-" + strconv.Itoa(i)
	}
	return name
}

// inviteWords ask who has an invite what they want to sign in with.
func (s loginService) inviteWords(ctx context.Context, in *signIn) string {
	text := fmt.Sprintf("Welcome, %s. Choose a password of at least %d characters", in.user, minPassword)
	if _, err := s.enrolBase(ctx); err == nil {
		text += ",\nor leave both empty to sign in with a passkey of your browser from now on"
	}
	return text + "."
}

// takeFirstPasskey uses an invite up for a passkey.
func (s loginService) takeFirstPasskey(ctx context.Context, in *signIn, o services.SignOn) (*accessdv1.LoginStep, error) {
	in.factor = methodPasskey
	return s.useInvite(ctx, in, func(c *services.Credentials) error {
		_, err := adopt(c, o, "")
		return err
	})
}

// checkPasskeyChange refuses a change of passkeys that cannot be made, before
// anything is asked.
func (s factorService) checkPasskeyChange(ctx context.Context, in *signIn, c services.Credentials) error {
	i := slices.IndexFunc(c.Passkeys, func(p services.Passkey) bool { return p.Name == in.passkey })
	switch in.change { //nolint:exhaustive // the others are of no passkey
	case accessdv1.BeginChangeRequest_CHANGE_PASSKEY:
		if in.passkey != "" {
			if err := services.CheckPasskeyName(in.passkey); err != nil {
				return err
			}
		}
		if i >= 0 {
			return fault.New(fault.Conflict, "you have a passkey %q already", in.passkey).WithHint("give the new one another name")
		}
		_, err := s.enrolBase(ctx)
		return err
	case accessdv1.BeginChangeRequest_CHANGE_PASSKEY_REMOVE:
		if i < 0 {
			return fault.New(fault.NotFound, "you have no passkey %q", clip(in.passkey)).WithHint("\"factors ls\" lists them")
		}
		return keepsOne(c)
	}
	return nil
}

// keepsOne refuses to take a passkey from who could not sign in any more then.
func keepsOne(c services.Credentials) error {
	if len(c.Passkeys) == 1 && c.PasswordHash == "" {
		return refusal("it is the last passkey, and there is no password: nobody could sign in")
	}
	return nil
}

// addPasskey takes a new passkey, for good.
func (s factorService) addPasskey(ctx context.Context, in *signIn, o services.SignOn) (*accessdv1.LoginStep, error) {
	ev := events.Event{Name: events.FactorCreate, Fields: map[string]any{"method": methodPasskey}}
	var name string
	err := s.alter(ctx, in, ev, func(c *services.Credentials) (err error) {
		name, err = adopt(c, o, in.passkey)
		return err
	})
	if err != nil {
		return nil, err
	}
	return in.changed(fmt.Sprintf("Passkey %s is set up, for %s.", name, o.RP))
}

// removePasskey forgets one passkey.
func (s factorService) removePasskey(ctx context.Context, in *signIn) (*accessdv1.LoginStep, error) {
	ev := events.Event{Name: events.FactorDelete, Fields: map[string]any{"method": methodPasskey}}
	err := s.alter(ctx, in, ev, func(c *services.Credentials) error {
		if err := keepsOne(*c); err != nil {
			return err
		}
		c.Passkeys = slices.DeleteFunc(slices.Clone(c.Passkeys), func(p services.Passkey) bool { return p.Name == in.passkey })
		return nil
	})
	if err != nil {
		return nil, err
	}
	return in.changed(fmt.Sprintf("Passkey %s is of no use any more.", in.passkey))
}
