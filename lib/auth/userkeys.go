package auth

import (
	"context"

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
	err = s.change(ctx, userKeyEvent(ctx, events.UserKeyCreate, u.Name, k), func() error {
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

func userKeyEvent(ctx context.Context, name events.Name, user names.UserName, k services.UserKey) events.Event {
	c := callerOf(ctx)
	ev := events.Event{Name: name, User: user, AddrRemote: c.addr, Fields: map[string]any{
		"by": c.by, "name": string(user), "fingerprint": k.Fingerprint,
	}}
	set(ev, "comment", k.Comment)
	return ev
}

func userKeyMessage(user names.UserName, k services.UserKey) *accessdv1.UserKey {
	return &accessdv1.UserKey{
		User: string(user), Fingerprint: k.Fingerprint, PublicKey: k.Public, Comment: k.Comment, Added: timestamppb.New(k.Added),
	}
}
