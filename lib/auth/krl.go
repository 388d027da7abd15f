package auth

import (
	"context"
	"fmt"
	"slices"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// ReadKRL returns the locks in the form that sshd reads, as far as that has words
// for them; with a node, those that are about this node, too.
func (s lockService) ReadKRL(ctx context.Context, req *connect.Request[accessdv1.ReadKRLRequest]) (*connect.Response[accessdv1.ReadKRLResponse], error) {
	var node services.Node
	if text := req.Msg.GetNode(); text != "" {
		id, err := names.ParseNodeID(text)
		if err != nil {
			return nil, err
		}
		if node, err = s.cfg.Store.Node(ctx, id); err != nil {
			return nil, err
		}
	} else if callerOf(ctx).member != nil {
		return nil, fault.New(fault.BadInput, "revocation list: want a node")
	}
	all, err := s.cfg.Store.Locks(ctx)
	if err != nil {
		return nil, err
	}
	users, err := s.cfg.Store.Users(ctx)
	if err != nil {
		return nil, err
	}
	people, plain := sshca.Revocations{}, sshca.Revocations{}
	for _, l := range all {
		if !l.Active(s.cfg.Now()) {
			continue
		}
		serials, ids, everyone := revoked(l.Target, node, users)
		people.KeyIDs = append(people.KeyIDs, ids...)
		for _, r := range []*sshca.Revocations{&people, &plain} {
			r.Serials, r.All = append(r.Serials, serials...), r.All || everyone
		}
	}
	trust, now := s.cfg.Keys.Trust(), s.cfg.Now()
	people.CAs, plain.CAs = trust.User, trust.SSHD
	krl, err := sshca.KRL{
		Version: uint64(max(now.Unix(), 0)), Generated: now,
		Comment: fmt.Sprintf("locks of cluster %s", s.cfg.Keys.ClusterName()), Revoked: []sshca.Revocations{people, plain},
	}.Marshal(s.cfg.Keys.signer(sshca.TypeUser))
	if err != nil {
		return nil, fault.New(fault.Internal, "revocation list: %w", err)
	}
	return connect.NewResponse(&accessdv1.ReadKRLResponse{Krl: krl}), nil
}

// revoked returns what a lock on t revokes on node: certificates by serial number,
// those of whole people, or all. A list knows neither logins nor addresses nor
// access requests: locks on these are for proxies and nodes of ours to keep.
func revoked(t services.LockTarget, node services.Node, users []services.User) (serials []uint64, ids []string, everyone bool) {
	here := t.Node != "" && t.Node == node.Name || t.NodeID != "" && t.NodeID == node.ID
	if t.Login != "" || t.Address.IsValid() || t.Request != "" || (t.Node != "" || t.NodeID != "") && !here {
		return nil, nil, false
	}
	switch {
	case t.Serial != 0 && t.User == "" && t.Role == "":
		return []uint64{t.Serial}, nil, false
	case t.Serial != 0: // whose it is, a list cannot ask
		return nil, nil, false
	case t.Role == "" && t.User != "":
		return nil, []string{string(t.User)}, false
	case t.Role == "":
		return nil, nil, true
	}
	for _, u := range users {
		if slices.Contains(u.Roles, t.Role) && (t.User == "" || t.User == u.Name) {
			ids = append(ids, string(u.Name))
		}
	}
	return nil, ids, false
}
