package auth

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// maxInviteTTL bounds an invite's life: whoever finds it is the person.
const maxInviteTTL = 30 * 24 * time.Hour

type userService struct{ *Authority }

// AddUser creates a person and an invite.
func (s userService) AddUser(ctx context.Context, req *connect.Request[accessdv1.AddUserRequest]) (*connect.Response[accessdv1.AddUserResponse], error) {
	u, err := s.newUser(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	invite, creds, err := s.invite(req.Msg.GetInviteTtl())
	if err != nil {
		return nil, err
	}
	if u, err = s.createUser(ctx, u, creds); err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.AddUserResponse{
		User: userMessage(u, creds), Invite: invite, InviteExpires: timestamppb.New(creds.InviteExpires),
	}), nil
}

// createUser makes a user that there is not yet.
func (a *Authority) createUser(ctx context.Context, u services.User, c services.Credentials) (services.User, error) {
	if _, err := a.cfg.Store.User(ctx, u.Name); err == nil {
		return u, fault.New(fault.Conflict, "there is a user named %q already", u.Name)
	}
	err := a.change(ctx, userEvent(ctx, events.UserCreate, u), func() error {
		var err error
		u, err = a.cfg.Store.CreateUser(ctx, u, c)
		return err
	})
	return u, err
}

func (s userService) newUser(ctx context.Context, m *accessdv1.AddUserRequest) (services.User, error) {
	u := services.User{Name: names.UserName(m.GetName()), Created: s.cfg.Now().UTC()}
	for _, r := range m.GetRoles() {
		u.Roles = append(u.Roles, names.RoleName(r))
	}
	for _, l := range m.GetLogins() {
		u.Logins = append(u.Logins, names.Login(l))
	}
	u.Traits = listsOf(m.GetTraits())
	if err := u.Check(); err != nil {
		return u, err
	}
	if len(u.Roles) == 0 {
		return u, fault.New(fault.BadInput, "user %q: want at least one role", u.Name)
	}
	for _, r := range u.Roles {
		if _, err := s.cfg.Store.Role(ctx, r); err != nil {
			if fault.Is(err, fault.NotFound) {
				err = fault.New(fault.NotFound, "no role named %q", r).WithHint("\"accessd roles ls\" lists them")
			}
			return u, err
		}
	}
	return u, nil
}

// invite returns a fresh invite and credentials that know nothing else.
func (a *Authority) invite(ttl *durationpb.Duration) (string, services.Credentials, error) {
	d, err := lifetime("invite", ttl, defaults.InviteTTL, maxInviteTTL)
	if err != nil {
		return "", services.Credentials{}, err
	}
	invite, hash := newInvite()
	return invite, services.Credentials{InviteHash: hash, InviteExpires: a.cfg.Now().Add(d).UTC()}, nil
}

// lifetime returns what was asked for, or the default, up to a bound.
func lifetime(what string, asked *durationpb.Duration, otherwise, most time.Duration) (time.Duration, error) {
	d := asked.AsDuration()
	if asked.CheckValid() != nil && asked != nil || d < 0 {
		return 0, fault.New(fault.BadInput, "lifetime of the %s: %v is not a time span", what, d)
	}
	if d == 0 {
		return otherwise, nil
	}
	if d > most {
		return 0, fault.New(fault.BadInput, "lifetime of the %s: %v is more than the most, %v", what, d, most)
	}
	return d, nil
}

// ListUsers lists people, without their secrets.
func (s userService) ListUsers(ctx context.Context, _ *connect.Request[accessdv1.ListUsersRequest]) (*connect.Response[accessdv1.ListUsersResponse], error) {
	res := &accessdv1.ListUsersResponse{}
	err := s.eachUser(ctx, func(u services.User, c services.Credentials) {
		res.Users = append(res.Users, userMessage(u, c))
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

// eachUser calls fn with every user and what it signs in with.
func (a *Authority) eachUser(ctx context.Context, fn func(services.User, services.Credentials)) error {
	users, err := a.cfg.Store.Users(ctx)
	if err != nil {
		return err
	}
	for _, u := range users {
		c, err := a.cfg.Store.Credentials(ctx, u.Name)
		if fault.Is(err, fault.NotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		fn(u, c)
	}
	return nil
}

// RemoveUser forgets a person. Whatever trusts the live policy refuses them
// from then on, whatever certificates they still have.
func (s userService) RemoveUser(ctx context.Context, req *connect.Request[accessdv1.RemoveUserRequest]) (*connect.Response[accessdv1.RemoveUserResponse], error) {
	u, err := s.user(ctx, req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	err = s.change(ctx, userEvent(ctx, events.UserDelete, u), func() error { return s.cfg.Store.DeleteUser(ctx, u.Name) })
	return connect.NewResponse(&accessdv1.RemoveUserResponse{}), err
}

// ResetUser forgets a person's password, second factor, recovery codes and passkeys.
func (s userService) ResetUser(ctx context.Context, req *connect.Request[accessdv1.ResetUserRequest]) (*connect.Response[accessdv1.ResetUserResponse], error) {
	u, err := s.user(ctx, req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	if u.Origin != nil {
		return nil, fault.New(fault.Conflict, "user %q signs in through connector %q and has nothing here to forget", u.Name, u.Origin.Connector)
	}
	invite, fresh, err := s.invite(req.Msg.GetInviteTtl())
	if err != nil {
		return nil, err
	}
	ev := userEvent(ctx, events.UserUpdate, u)
	ev.Fields["reason"] = "reset: password, second factor, recovery codes and passkeys forgotten"
	err = s.change(ctx, ev, func() error {
		return retryConflict(func() error {
			old, err := s.cfg.Store.Credentials(ctx, u.Name)
			if err != nil {
				return err
			}
			fresh.Revision = old.Revision
			_, err = s.cfg.Store.UpdateCredentials(ctx, u.Name, fresh)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.ResetUserResponse{Invite: invite, InviteExpires: timestamppb.New(fresh.InviteExpires)}), nil
}

// SignUser issues a certificate for a key that an administrator vouches for.
func (s userService) SignUser(ctx context.Context, req *connect.Request[accessdv1.SignUserRequest]) (*connect.Response[accessdv1.SignUserResponse], error) {
	name, err := names.ParseUserName(req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	key, err := parseKeyLine(req.Msg.GetPublicKey())
	if err != nil {
		return nil, err
	}
	ttl, err := lifetime("certificate", req.Msg.GetTtl(), s.cfg.UserTTL, s.cfg.MaxUserTTL)
	if err != nil {
		return nil, err
	}
	sources, err := parseSources(req.Msg.GetSourceAddresses())
	if err != nil {
		return nil, err
	}
	sub, err := s.subject(ctx, name)
	if fault.Is(err, fault.NotFound) {
		return nil, noUser(name)
	}
	if err != nil {
		return nil, err
	}
	if role, pin := sub.pinned(); pin && len(sources) == 0 {
		return nil, fault.New(fault.BadInput, "role %q of user %q pins certificates to an address: say which", role, name)
	}
	ask := sub.request()
	ask.Key, ask.ValidBefore, ask.SourceAddresses = key, s.cfg.Now().Add(ttl), sources
	cert, err := s.issueUser(ctx, userCert{UserRequest: ask, method: "sign", by: callerOf(ctx).by})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.SignUserResponse{
		Certificate: keyLine(cert), Serial: cert.Serial, Expires: timestamppb.New(certTime(cert.ValidBefore)),
	}), nil
}

// maxSources bounds the networks of one certificate.
const maxSources = 64

// parseSources reads networks, or addresses as networks of one.
func parseSources(list []string) ([]netip.Prefix, error) {
	if len(list) > maxSources {
		return nil, fault.New(fault.BadInput, "%d source addresses: want at most %d", len(list), maxSources)
	}
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if addr, aerr := netip.ParseAddr(s); aerr == nil && addr.Zone() == "" {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil || p.Addr().Is4In6() {
			return nil, fault.New(fault.BadInput, "source address %.80q: want an address or a network such as 203.0.113.0/24", s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func (a *Authority) user(ctx context.Context, s string) (services.User, error) {
	name, err := names.ParseUserName(s)
	if err != nil {
		return services.User{}, err
	}
	u, err := a.cfg.Store.User(ctx, name)
	if fault.Is(err, fault.NotFound) {
		err = noUser(name)
	}
	return u, err
}

func noUser(name names.UserName) error {
	return fault.New(fault.NotFound, "no user named %q", name).WithHint("\"accessd users ls\" lists them")
}

func userEvent(ctx context.Context, name events.Name, u services.User) events.Event {
	c := callerOf(ctx)
	return events.Event{Name: name, User: u.Name, AddrRemote: c.addr, Fields: map[string]any{
		"by": c.by, "name": string(u.Name), "roles": u.Roles, "logins": u.Logins,
	}}
}

func userMessage(u services.User, c services.Credentials) *accessdv1.User {
	m := &accessdv1.User{
		Name: string(u.Name), Created: timestamppb.New(u.Created),
		HasPassword: c.PasswordHash != "", HasTotp: len(c.TOTPSecret) > 0, HasPasskey: len(c.Passkeys) > 0,
		Traits: valuesOf(u.Traits),
	}
	for _, r := range u.Roles {
		m.Roles = append(m.Roles, string(r))
	}
	for _, l := range u.Logins {
		m.Logins = append(m.Logins, string(l))
	}
	if c.InviteHash != "" {
		m.InviteExpires = timestamppb.New(c.InviteExpires)
	}
	return m
}

// listsOf returns lists by name as they are kept; nil when there are none.
func listsOf(m map[string]*accessdv1.Values) map[string][]string {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string][]string, len(m))
	for name, v := range m {
		out[name] = v.GetValues()
	}
	return out
}

// valuesOf is the opposite of listsOf.
func valuesOf(lists map[string][]string) map[string]*accessdv1.Values {
	out := make(map[string]*accessdv1.Values, len(lists))
	for name, list := range lists {
		out[name] = &accessdv1.Values{Values: slices.Clone(list)}
	}
	return out
}

// clip shortens what somebody typed for an error that quotes it.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
