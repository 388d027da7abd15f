package auth

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// Who has no app gets the code of a connection from a browser: the member shows a
// link, its page signs the person in as for a sign-in, with their connector or a
// passkey, and shows a code that is good for that connection alone.

// factorLink makes such a link for who, at client.
func (s factorService) factorLink(ctx context.Context, who holder, client netip.AddrPort) (link, error) {
	u, err := s.cfg.Store.User(ctx, who.user)
	if fault.Is(err, fault.NotFound) {
		return link{}, refusal("the user was removed")
	}
	if err != nil {
		return link{}, err
	}
	o := services.SignOn{Purpose: services.SignOnFactor, User: who.user, Fingerprint: who.fingerprint, Client: client.String()}
	var at *services.Connector
	if u.Origin != nil {
		c, err := s.cfg.Store.Connector(ctx, u.Origin.Connector)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return link{}, err
		}
		if err == nil {
			at, o.Connector = &c, c.Name
		}
	}
	creds, err := s.cfg.Store.Credentials(ctx, who.user)
	if err != nil {
		return link{}, err
	}
	if o.Base, err = s.linkBase(ctx, at); err != nil {
		return link{}, err
	}
	if len(creds.Passkeys) > 0 {
		o.RP = rpOf(o.Base)
	}
	if o.Connector == "" && o.RP == "" {
		return link{}, refusal("there is nothing that you could sign in with in a browser")
	}
	return s.newLink(ctx, o)
}

// linkBase returns where browsers find the proxy that asks or, when a node does,
// any.
func (s factorService) linkBase(ctx context.Context, c *services.Connector) (string, error) {
	carrier := callerOf(ctx)
	if carrier.member.Kind != sshca.KindNode {
		return s.publicBase(c, carrier)
	}
	base, err := s.publicBase(c, caller{})
	if err == nil {
		return base, nil
	}
	members, lost := s.cfg.Store.Members(ctx)
	if lost != nil {
		return "", lost
	}
	for _, m := range members {
		if base, err := s.publicBase(c, caller{member: &record{Member: m}}); err == nil {
			return base, nil
		}
	}
	return "", err
}

// factorWords are what a terminal shows of l.
func (l link) factorWords() string {
	return fmt.Sprintf("Open this link in a browser:\n\n  %s\n\ntype this code there:  %s\n\nand here the one that it shows then.", l.url, l.code)
}

// useLink checks the code that the page of a link has shown, and uses it up. It
// returns how the person signed in there.
func (s factorService) useLink(ctx context.Context, who holder, id, code string) (method string, err error) {
	o, err := s.cfg.Store.SignOn(ctx, cmpID(id))
	switch {
	case fault.Is(err, fault.NotFound):
		return "", refusal("the link is no longer good")
	case err != nil:
		return "", err
	case o.Purpose != services.SignOnFactor || o.User != who.user || o.Fingerprint != who.fingerprint || !s.cfg.Now().Before(o.Expires):
		return "", refusal("the link is no longer good")
	case o.State == services.SignOnRefused:
		return "", refusal(o.Why)
	case o.State != services.SignOnApproved:
		return "", refusal("the sign-in in the browser is not finished")
	}
	good := sameHash(o.Receipt, codeHash(o.ID, code))
	if o.State = services.SignOnTaken; !good { // one guess is all there is
		o.State, o.Why = services.SignOnRefused, "the code was wrong"
	}
	if _, err := s.cfg.Store.UpdateSignOn(ctx, o); fault.Is(err, fault.Conflict) {
		return "", refusal("the code was used before")
	} else if err != nil {
		return "", err
	}
	switch {
	case !good:
		return "", refusal("that is not the code that the browser shows")
	case o.Origin == nil:
		return methodPasskey, nil
	}
	return methodSSO, nil
}
