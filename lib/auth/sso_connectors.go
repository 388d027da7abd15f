package auth

import (
	"context"
	"slices"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
)

type connectorService struct{ *Authority }

// ApplyConnectors creates or replaces the connectors of a YAML stream, all or none.
func (s connectorService) ApplyConnectors(ctx context.Context, req *connect.Request[accessdv1.ApplyConnectorsRequest]) (*connect.Response[accessdv1.ApplyConnectorsResponse], error) {
	source := req.Msg.GetSource()
	if source == "" {
		source = "connectors"
	}
	list, secrets, err := services.ParseConnectors(clip(source), req.Msg.GetYaml())
	if err != nil {
		return nil, err
	}
	if secret := req.Msg.GetClientSecret(); secret != "" {
		if len(list) != 1 || len(secret) > maxText {
			return nil, fault.New(fault.BadInput, "a secret beside the document: want one connector, and at most %d bytes", maxText)
		}
		secrets[list[0].Name] = secret
	}
	res := &accessdv1.ApplyConnectorsResponse{}
	var changes []events.Event
	for i := range list {
		ev, err := s.prepare(ctx, &list[i], secrets[list[i].Name])
		if err != nil {
			return nil, err
		}
		changes = append(changes, ev)
		if ev.Name == events.ConnectorCreate {
			res.Created = append(res.Created, string(list[i].Name))
		} else {
			res.Updated = append(res.Updated, string(list[i].Name))
		}
	}
	if err := s.changeAll(ctx, changes, func() error { return s.cfg.Store.ApplyConnectors(ctx, list) }); err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

// prepare gives c its sealed secret and the revision it replaces, and returns
// the event of its change. A secret that is not given anew is kept for whom it
// was given only: elsewhere it would be told to a stranger.
func (s connectorService) prepare(ctx context.Context, c *services.Connector, secret string) (events.Event, error) {
	old, err := s.cfg.Store.Connector(ctx, c.Name)
	exists := err == nil
	if err != nil && !fault.Is(err, fault.NotFound) {
		return events.Event{}, err
	}
	switch {
	case secret != "":
		if c.Secret, err = s.cfg.Sealer.Seal(ctx, connectorPurpose(c.Name), []byte(secret)); err != nil {
			return events.Event{}, err
		}
	case exists && len(old.Secret) > 0 && (old.Issuer != c.Issuer || old.ClientID != c.ClientID):
		return events.Event{}, fault.New(fault.BadInput, "connector %q: another issuer or client needs its own secret", c.Name).
			WithHint("give it as client_secret or with --client-secret-file")
	case exists:
		c.Secret = old.Secret
	}
	c.Revision = old.Revision
	if !exists {
		return connectorEvent(ctx, events.ConnectorCreate, nil, c), nil
	}
	return connectorEvent(ctx, events.ConnectorUpdate, &old, c), nil
}

func connectorPurpose(name services.ConnectorName) string { return "connector/" + string(name) }

// ListConnectors lists every connector.
func (s connectorService) ListConnectors(ctx context.Context, _ *connect.Request[accessdv1.ListConnectorsRequest]) (*connect.Response[accessdv1.ListConnectorsResponse], error) {
	list, err := s.cfg.Store.Connectors(ctx)
	if err != nil {
		return nil, err
	}
	res := &accessdv1.ListConnectorsResponse{}
	for _, c := range list {
		res.Connectors = append(res.Connectors, connectorMessage(c))
	}
	return connect.NewResponse(res), nil
}

// GetConnector returns one connector, without its secret.
func (s connectorService) GetConnector(ctx context.Context, req *connect.Request[accessdv1.GetConnectorRequest]) (*connect.Response[accessdv1.GetConnectorResponse], error) {
	c, err := s.connector(ctx, req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.GetConnectorResponse{Connector: connectorMessage(c)}), nil
}

// RemoveConnector forgets a connector. Users that it made cannot sign in again.
func (s connectorService) RemoveConnector(ctx context.Context, req *connect.Request[accessdv1.RemoveConnectorRequest]) (*connect.Response[accessdv1.RemoveConnectorResponse], error) {
	c, err := s.connector(ctx, req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	ev := connectorEvent(ctx, events.ConnectorDelete, &c, nil)
	err = s.change(ctx, ev, func() error { return s.cfg.Store.DeleteConnector(ctx, c.Name) })
	return connect.NewResponse(&accessdv1.RemoveConnectorResponse{}), err
}

func (a *Authority) connector(ctx context.Context, s string) (services.Connector, error) {
	name, err := services.ParseConnectorName(s)
	if err != nil {
		return services.Connector{}, err
	}
	c, err := a.cfg.Store.Connector(ctx, name)
	if fault.Is(err, fault.NotFound) {
		err = fault.New(fault.NotFound, "no connector named %q", name).WithHint("\"accessd connectors ls\" lists them")
	}
	return c, err
}

// connectorEvent describes a change from before to after; nil is no connector.
func connectorEvent(ctx context.Context, name events.Name, before, after *services.Connector) events.Event {
	c := callerOf(ctx)
	ev := events.Event{Name: name, AddrRemote: c.addr, Fields: map[string]any{"by": c.by}}
	if before != nil {
		ev.Fields["name"], ev.Fields["before"] = string(before.Name), string(before.YAML())
	}
	if after != nil {
		ev.Fields["name"], ev.Fields["after"] = string(after.Name), string(after.YAML())
	}
	if before != nil && after != nil && !slices.Equal(before.Secret, after.Secret) {
		ev.Fields["reason"] = "the client's secret was replaced"
	}
	return ev
}

func connectorMessage(c services.Connector) *accessdv1.Connector {
	return &accessdv1.Connector{
		Name: string(c.Name), Issuer: c.Issuer, ClientId: c.ClientID, HasSecret: len(c.Secret) > 0,
		Yaml: string(c.YAML()), Revision: c.Revision,
	}
}
