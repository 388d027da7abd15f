package auth

import (
	"context"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// AddUserKey enrols a public key for a person. It signs them in where a role of
// theirs takes plain keys, and nowhere else.
func (s userService) AddUserKey(ctx context.Context, req *connect.Request[accessdv1.AddUserKeyRequest]) (*connect.Response[accessdv1.AddUserKeyResponse], error) {
	if _, err := parseKeyLine(req.Msg.GetPublicKey()); err != nil {
		return nil, err
	}
	k, err := services.NewUserKey(req.Msg.GetPublicKey(), s.cfg.Now().UTC())
	if err != nil {
		return nil, err
	}
	u, err := s.user(ctx, req.Msg.GetUser())
	if err != nil {
		return nil, err
	}
	made, err := s.attest(ctx, u.Name, &k, req.Msg)
	if err != nil {
		s.note(ctx, failed(userKeyEvent(ctx, events.UserKeyCreate, u.Name, k), err))
		return nil, err
	}
	err = s.change(ctx, userKeyEvent(ctx, events.UserKeyCreate, u.Name, k), func() error {
		if made != nil {
			_, err := s.cfg.Store.AddAttestedKey(ctx, u.Name, k, *made)
			return err
		}
		_, err := s.cfg.Store.AddUserKey(ctx, u.Name, k)
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.AddUserKeyResponse{Key: userKeyMessage(u.Name, k)}), nil
}

// ListUserKeys lists the enrolled keys of one person or of everybody.
func (s userService) ListUserKeys(ctx context.Context, req *connect.Request[accessdv1.ListUserKeysRequest]) (*connect.Response[accessdv1.ListUserKeysResponse], error) {
	var users []services.User
	if name := req.Msg.GetUser(); name != "" {
		u, err := s.user(ctx, name)
		if err != nil {
			return nil, err
		}
		users = []services.User{u}
	} else {
		var err error
		if users, err = s.cfg.Store.Users(ctx); err != nil {
			return nil, err
		}
	}
	res := &accessdv1.ListUserKeysResponse{}
	for _, u := range users {
		for _, k := range u.Keys {
			res.Keys = append(res.Keys, userKeyMessage(u.Name, k))
		}
	}
	return connect.NewResponse(res), nil
}

// RemoveUserKey ends the enrolment of a key.
func (s userService) RemoveUserKey(ctx context.Context, req *connect.Request[accessdv1.RemoveUserKeyRequest]) (*connect.Response[accessdv1.RemoveUserKeyResponse], error) {
	u, err := s.user(ctx, req.Msg.GetUser())
	if err != nil {
		return nil, err
	}
	for _, k := range u.Keys {
		if k.Fingerprint != req.Msg.GetFingerprint() {
			continue
		}
		err := s.change(ctx, userKeyEvent(ctx, events.UserKeyDelete, u.Name, k), func() error {
			_, err := s.cfg.Store.RemoveUserKey(ctx, u.Name, k.Fingerprint)
			return err
		})
		return connect.NewResponse(&accessdv1.RemoveUserKeyResponse{}), err
	}
	return nil, fault.New(fault.NotFound, "user %q has no key %q", u.Name, clip(req.Msg.GetFingerprint())).
		WithHint("\"accessd users keys ls %s\" lists them", u.Name)
}

// NewKeyChallenge returns what a security key of a person is to be made with.
func (s userService) NewKeyChallenge(ctx context.Context, req *connect.Request[accessdv1.NewKeyChallengeRequest]) (*connect.Response[accessdv1.NewKeyChallengeResponse], error) {
	u, err := s.user(ctx, req.Msg.GetUser())
	if err != nil {
		return nil, err
	}
	challenge, expires, err := s.newChallenge(ctx, u.Name)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.NewKeyChallengeResponse{Challenge: challenge, Expires: timestamppb.New(expires)}), nil
}

// SetAuthenticators says which security keys count from now on. Those that are
// enrolled stay, and count while their model does.
func (s userService) SetAuthenticators(ctx context.Context, req *connect.Request[accessdv1.SetAuthenticatorsRequest]) (*connect.Response[accessdv1.SetAuthenticatorsResponse], error) {
	m := req.Msg.GetAuthenticators()
	old, err := s.cfg.Store.Authenticators(ctx)
	if err != nil {
		return nil, err
	}
	now := services.Authenticators{AAGUIDs: m.GetAaguids(), Roots: m.GetRoots(), Revision: old.Revision}
	if err := now.Check(); err != nil {
		return nil, err
	}
	err = s.change(ctx, events.Event{Name: events.AuthenticatorsUpdate, AddrRemote: callerOf(ctx).addr, Fields: map[string]any{
		"by": callerOf(ctx).by, "before": authenticatorWords(old), "after": authenticatorWords(now),
	}}, func() error { return s.cfg.Store.PutAuthenticators(ctx, now) })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.SetAuthenticatorsResponse{}), nil
}

// authenticatorWords returns what a says, for an event.
func authenticatorWords(a services.Authenticators) string {
	return strings.TrimSpace("aaguids: " + strings.Join(a.AAGUIDs, " ") + "\n" + a.Roots)
}

// GetAuthenticators returns which security keys count.
func (s userService) GetAuthenticators(ctx context.Context, _ *connect.Request[accessdv1.GetAuthenticatorsRequest]) (*connect.Response[accessdv1.GetAuthenticatorsResponse], error) {
	a, err := s.cfg.Store.Authenticators(ctx)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.GetAuthenticatorsResponse{
		Authenticators: &accessdv1.Authenticators{Aaguids: a.AAGUIDs, Roots: a.Roots},
	}), nil
}

func userKeyEvent(ctx context.Context, name events.Name, user names.UserName, k services.UserKey) events.Event {
	c := callerOf(ctx)
	ev := events.Event{Name: name, User: user, AddrRemote: c.addr, Fields: map[string]any{
		"by": c.by, "name": string(user), "fingerprint": k.Fingerprint,
	}}
	set(ev, "comment", k.Comment)
	set(ev, "aaguid", k.AAGUID)
	if k.PIN {
		ev.Fields["pin"] = true
	}
	return ev
}

func userKeyMessage(user names.UserName, k services.UserKey) *accessdv1.UserKey {
	return &accessdv1.UserKey{
		User: string(user), Fingerprint: k.Fingerprint, PublicKey: k.Public, Comment: k.Comment, Added: timestamppb.New(k.Added),
		Aaguid: k.AAGUID, Pin: k.PIN,
	}
}
