package auth

import (
	"context"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

var errNotYet = fault.New(fault.Unavailable, "not available yet")

func (userService) AddUserKey(context.Context, *connect.Request[accessdv1.AddUserKeyRequest]) (*connect.Response[accessdv1.AddUserKeyResponse], error) {
	return nil, errNotYet
}

func (userService) ListUserKeys(context.Context, *connect.Request[accessdv1.ListUserKeysRequest]) (*connect.Response[accessdv1.ListUserKeysResponse], error) {
	return nil, errNotYet
}

func (userService) RemoveUserKey(context.Context, *connect.Request[accessdv1.RemoveUserKeyRequest]) (*connect.Response[accessdv1.RemoveUserKeyResponse], error) {
	return nil, errNotYet
}

func (nodeService) AddNode(context.Context, *connect.Request[accessdv1.AddNodeRequest]) (*connect.Response[accessdv1.AddNodeResponse], error) {
	return nil, errNotYet
}

func (nodeService) SignHostKey(context.Context, *connect.Request[accessdv1.SignHostKeyRequest]) (*connect.Response[accessdv1.SignHostKeyResponse], error) {
	return nil, errNotYet
}
