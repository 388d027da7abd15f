package auth

import (
	"context"
	"maps"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

type nodeService struct{ *Authority }

// ListNodes lists nodes and who holds a tunnel to them.
func (s nodeService) ListNodes(ctx context.Context, _ *connect.Request[accessdv1.ListNodesRequest]) (*connect.Response[accessdv1.ListNodesResponse], error) {
	nodes, err := s.cfg.Store.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	presences, err := s.cfg.Store.Presences(ctx)
	if err != nil {
		return nil, err
	}
	proxies := map[names.NodeID][]string{}
	for _, p := range presences {
		proxies[p.Node] = append(proxies[p.Node], string(p.Proxy))
	}
	res := &accessdv1.ListNodesResponse{}
	for _, n := range nodes {
		res.Nodes = append(res.Nodes, nodeMessage(n, proxies[n.ID]))
	}
	return connect.NewResponse(res), nil
}

// RemoveNode forgets a node or a proxy. Its certificates are good for nothing
// from then on: every call is checked against the record that is gone.
func (s nodeService) RemoveNode(ctx context.Context, req *connect.Request[accessdv1.RemoveNodeRequest]) (*connect.Response[accessdv1.RemoveNodeResponse], error) {
	rec, err := s.member(ctx, req.Msg.GetNode())
	if err != nil {
		return nil, err
	}
	if rec.Kind == sshca.KindAuth {
		return connect.NewResponse(&accessdv1.RemoveNodeResponse{}), s.retire(ctx, rec.Member, req.Msg)
	}
	c := callerOf(ctx)
	ev := events.Event{Name: events.NodeDelete, AddrRemote: c.addr, Fields: map[string]any{
		"by": c.by, "node_id": string(rec.ID), "node_name": string(rec.Name), "reason": "removed " + string(rec.Kind),
	}}
	err = s.change(ctx, ev, func() error {
		if rec.node != nil {
			return s.cfg.Store.DeleteNode(ctx, rec.ID)
		}
		return s.cfg.Store.DeleteMember(ctx, rec.ID)
	})
	return connect.NewResponse(&accessdv1.RemoveNodeResponse{}), err
}

// member returns the node or, when no node is called so, the other member that
// s names by id or name.
func (a *Authority) member(ctx context.Context, s string) (*record, error) {
	nodes, err := a.cfg.Store.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if string(n.ID) == s || string(n.Name) == s {
			return nodeRecord(n), nil
		}
	}
	members, err := a.cfg.Store.Members(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		if string(m.ID) == s || string(m.Name) == s {
			return &record{Member: m}, nil
		}
	}
	return nil, fault.New(fault.NotFound, "no node named %q", clip(s)).WithHint("\"accessd nodes ls\" lists them")
}

func nodeMessage(n services.Node, proxies []string) *accessdv1.Node {
	m := &accessdv1.Node{
		Id: string(n.ID), Name: string(n.Name), Kind: n.Kind, Labels: maps.Clone(n.Labels), GatewayPort: int32(n.GatewayPort),
		Online: len(proxies) > 0, Proxies: proxies, Joined: timestamppb.New(n.Joined), Version: n.Version,
		Address: n.Address, HostKeys: fingerprints(n.HostKeys),
	}
	if !n.LastSeen.IsZero() {
		m.LastSeen = timestamppb.New(n.LastSeen)
	}
	return m
}
