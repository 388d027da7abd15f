package auth

import (
	"context"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

type roleService struct{ *Authority }

// ApplyRoles creates or replaces the roles of a YAML stream, all or none.
func (s roleService) ApplyRoles(ctx context.Context, req *connect.Request[accessdv1.ApplyRolesRequest]) (*connect.Response[accessdv1.ApplyRolesResponse], error) {
	source := req.Msg.GetSource()
	if source == "" {
		source = "roles"
	}
	roles, err := services.ParseRoles(clip(source), req.Msg.GetYaml())
	if err != nil {
		return nil, err
	}
	res := &accessdv1.ApplyRolesResponse{}
	var changes []events.Event
	for i := range roles {
		ev, err := s.prepareRole(ctx, &roles[i])
		if err != nil {
			return nil, err
		}
		changes = append(changes, ev)
		if ev.Name == events.RoleCreate {
			res.Created = append(res.Created, string(roles[i].Name))
		} else {
			res.Updated = append(res.Updated, string(roles[i].Name))
		}
	}
	if err := s.changeAll(ctx, changes, func() error { return s.cfg.Store.ApplyRoles(ctx, roles) }); err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

// prepareRole gives r the revision it replaces and returns the event of its
// change.
func (s roleService) prepareRole(ctx context.Context, r *services.Role) (events.Event, error) {
	old, err := s.cfg.Store.Role(ctx, r.Name)
	switch {
	case fault.Is(err, fault.NotFound):
		return roleEvent(ctx, events.RoleCreate, nil, r), nil
	case err != nil:
		return events.Event{}, err
	case old.Builtin:
		return events.Event{}, builtin(r.Name)
	}
	r.Revision = old.Revision
	return roleEvent(ctx, events.RoleUpdate, &old, r), nil
}

func builtin(name names.RoleName) error {
	return fault.New(fault.Denied, "role %q is built in", name).WithHint("make one of another name")
}

// ListRoles lists every role.
func (s roleService) ListRoles(ctx context.Context, _ *connect.Request[accessdv1.ListRolesRequest]) (*connect.Response[accessdv1.ListRolesResponse], error) {
	roles, err := s.cfg.Store.Roles(ctx)
	if err != nil {
		return nil, err
	}
	res := &accessdv1.ListRolesResponse{}
	for _, r := range roles {
		res.Roles = append(res.Roles, roleMessage(r))
	}
	return connect.NewResponse(res), nil
}

// GetRole returns one role.
func (s roleService) GetRole(ctx context.Context, req *connect.Request[accessdv1.GetRoleRequest]) (*connect.Response[accessdv1.GetRoleResponse], error) {
	r, err := s.role(ctx, req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.GetRoleResponse{Role: roleMessage(r)}), nil
}

// RemoveRole forgets a role. Who has it has one role less from then on.
func (s roleService) RemoveRole(ctx context.Context, req *connect.Request[accessdv1.RemoveRoleRequest]) (*connect.Response[accessdv1.RemoveRoleResponse], error) {
	r, err := s.role(ctx, req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	if r.Builtin {
		return nil, builtin(r.Name)
	}
	err = s.change(ctx, roleEvent(ctx, events.RoleDelete, &r, nil), func() error { return s.cfg.Store.DeleteRole(ctx, r.Name) })
	return connect.NewResponse(&accessdv1.RemoveRoleResponse{}), err
}

func (a *Authority) role(ctx context.Context, s string) (services.Role, error) {
	name, err := names.ParseRoleName(s)
	if err != nil {
		return services.Role{}, err
	}
	r, err := a.cfg.Store.Role(ctx, name)
	if fault.Is(err, fault.NotFound) {
		err = fault.New(fault.NotFound, "no role named %q", name).WithHint("\"accessd roles ls\" lists them")
	}
	return r, err
}

// roleEvent describes a change from before to after; nil is no role.
func roleEvent(ctx context.Context, name events.Name, before, after *services.Role) events.Event {
	c := callerOf(ctx)
	ev := events.Event{Name: name, AddrRemote: c.addr, Fields: map[string]any{"by": c.by}}
	if before != nil {
		ev.Fields["name"], ev.Fields["before"] = string(before.Name), string(before.YAML())
	}
	if after != nil {
		ev.Fields["name"], ev.Fields["after"] = string(after.Name), string(after.YAML())
	}
	return ev
}

func roleMessage(r services.Role) *accessdv1.Role {
	return &accessdv1.Role{Name: string(r.Name), Yaml: string(r.YAML()), Builtin: r.Builtin, Revision: r.Revision}
}
