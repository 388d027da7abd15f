package auth

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// Who has no app gets the code of a connection from a browser: the member shows a
// link, its page signs the person in as for a sign-in, with their connector or a
// passkey, and shows a code that is good for that connection alone.

// maxFactorLinks bounds the links of one person that are good at a time, of those
// that one member has asked this authority for.
const maxFactorLinks = 16

// A linkOwner is who asks for links, and for whom: a member that asks without end
// leaves the person those at others.
type linkOwner struct {
	member names.NodeID
	user   names.UserName
}

// factorLinks count the links that are good, or were until lately.
type factorLinks struct {
	now func() time.Time

	mu   sync.Mutex // guards what follows
	ends map[linkOwner][]time.Time
}

func newFactorLinks(now func() time.Time) *factorLinks {
	return &factorLinks{now: now, ends: map[linkOwner][]time.Time{}}
}

// add counts one more link, if there may be one.
func (f *factorLinks) add(o linkOwner) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.leftLocked(o)) >= maxFactorLinks {
		return false
	}
	f.ends[o] = append(f.ends[o], f.now().Add(signOnTTL))
	return true
}

// leftLocked forgets those of o that are over, and returns the others.
func (f *factorLinks) leftLocked(o linkOwner) []time.Time {
	now := f.now()
	left := slices.DeleteFunc(f.ends[o], func(end time.Time) bool { return !now.Before(end) })
	if f.ends[o] = left; len(left) == 0 {
		delete(f.ends, o)
	}
	return left
}

// sweep forgets all that are over.
func (f *factorLinks) sweep() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for o := range f.ends {
		f.leftLocked(o)
	}
}

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
	if !s.links.add(linkOwner{callerOf(ctx).member.ID, who.user}) {
		return link{}, refusal("there are too many links already; use one, or wait a few minutes")
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
