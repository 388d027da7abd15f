package cli

import (
	"context"
	"maps"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

func rolesDiff(e *env) *cobra.Command {
	var f format
	var file string
	var only, without []string
	c := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Say who would gain or lose what, before roles are applied",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			before, err := e.fixed(ctx)
			if err != nil {
				return err
			}
			after, err := e.overlay(before, file, without)
			if err != nil {
				return err
			}
			nodes, err := e.views(ctx)
			if err != nil {
				return err
			}
			changes, err := authz.Compare(before, after, among(before, only), nodes)
			if err != nil {
				return err
			}
			return printChanges(e, f, changes)
		}),
	}
	c.Flags().StringVarP(&file, "file", "f", "", "YAML file of roles, or - for stdin")
	c.Flags().StringSliceVar(&without, "without", nil, "roles to compare without, as if they were removed")
	c.Flags().StringSliceVar(&only, "user", nil, "compare for these users (default all)")
	addFormat(c, &f)
	return c
}

// fixed returns the cluster's roles and users as they are now.
func (e *env) fixed(ctx context.Context) (authz.Fixed, error) {
	p := authz.Fixed{Users: map[names.UserName]services.User{}}
	var err error
	if p.Roles, err = e.clusterRoles(ctx); err != nil {
		return p, err
	}
	users, err := e.users().ListUsers(ctx, connect.NewRequest(&accessdv1.ListUsersRequest{}))
	if err != nil {
		return p, err
	}
	for _, m := range users.Msg.GetUsers() {
		u := services.User{Name: names.UserName(m.GetName()), Traits: map[string][]string{}}
		for _, r := range m.GetRoles() {
			u.Roles = append(u.Roles, names.RoleName(r))
		}
		for _, l := range m.GetLogins() {
			u.Logins = append(u.Logins, names.Login(l))
		}
		for k, v := range m.GetTraits() {
			u.Traits[k] = v.GetValues()
		}
		p.Users[u.Name] = u
	}
	return p, nil
}

// clusterRoles returns the roles of the cluster.
func (e *env) clusterRoles(ctx context.Context) (map[names.RoleName]services.Role, error) {
	res, err := e.roles().ListRoles(ctx, connect.NewRequest(&accessdv1.ListRolesRequest{}))
	if err != nil {
		return nil, err
	}
	roles := builtinRoles()
	for _, m := range res.Msg.GetRoles() {
		if m.GetBuiltin() {
			continue
		}
		list, err := services.ParseRoles("role "+m.GetName(), []byte(m.GetYaml()))
		if err != nil {
			return nil, err
		}
		put(roles, list)
	}
	return roles, nil
}

// builtinRoles returns the roles of every cluster, by name.
func builtinRoles() map[names.RoleName]services.Role {
	roles := map[names.RoleName]services.Role{}
	put(roles, services.BuiltinRoles())
	return roles
}

func put(roles map[names.RoleName]services.Role, list []services.Role) {
	for _, r := range list {
		roles[r.Name] = r
	}
}

// overlay returns before with the roles of file, if it is one, and without those of
// without.
func (e *env) overlay(before authz.Fixed, file string, without []string) (authz.Fixed, error) {
	if file == "" && len(without) == 0 {
		return before, fault.New(fault.BadInput, "nothing to compare with: want --file or --without")
	}
	after := authz.Fixed{Roles: map[names.RoleName]services.Role{}, Users: before.Users}
	maps.Copy(after.Roles, before.Roles)
	if file != "" {
		list, err := e.readRoles(file)
		if err != nil {
			return after, err
		}
		put(after.Roles, list)
	}
	for _, name := range without {
		if _, ok := after.Roles[names.RoleName(name)]; !ok {
			return after, fault.New(fault.NotFound, "no role named %q", name).WithHint("\"accessd roles ls\" lists them")
		}
		delete(after.Roles, names.RoleName(name))
	}
	return after, nil
}

// readRoles reads a file of roles, or stdin for "-".
func (e *env) readRoles(file string) ([]services.Role, error) {
	yaml, err := e.readFile(file)
	if err != nil {
		return nil, err
	}
	list, err := services.ParseRoles(file, yaml)
	if err != nil {
		return nil, err
	}
	for _, r := range list {
		if b, ok := builtinRoles()[r.Name]; ok && b.Builtin {
			return nil, fault.New(fault.Denied, "role %q is built in", r.Name).WithHint("make one of another name")
		}
	}
	return list, nil
}

// readFile reads a file of roles or fixtures, or stdin for "-".
func (e *env) readFile(file string) ([]byte, error) {
	if file == "-" {
		return readAll("stdin", e.stdin, maxRoleFile)
	}
	return readBounded(file, maxRoleFile)
}

// views returns the cluster's nodes as decisions know them.
func (e *env) views(ctx context.Context) ([]authz.NodeView, error) {
	res, err := e.nodes().ListNodes(ctx, connect.NewRequest(&accessdv1.ListNodesRequest{}))
	if err != nil {
		return nil, err
	}
	var out []authz.NodeView
	for _, n := range res.Msg.GetNodes() {
		out = append(out, authz.NodeView{ID: names.NodeID(n.GetId()), Name: names.NodeName(n.GetName()), Labels: n.GetLabels()})
	}
	return out, nil
}

// among returns the users of p that only names, or all.
func among(p authz.Fixed, only []string) []names.UserName {
	var out []names.UserName
	for _, name := range only {
		out = append(out, names.UserName(name))
	}
	if len(only) == 0 {
		for name := range p.Users {
			out = append(out, name)
		}
	}
	return out
}

// changeRow is a change as JSON has it.
type changeRow struct {
	Effect   authz.Effect     `json:"effect"`
	User     names.UserName   `json:"user"`
	Nodes    []names.NodeName `json:"nodes,omitempty"`
	Login    names.Login      `json:"login,omitempty"`
	Actions  []authz.Action   `json:"actions,omitempty"`
	Resource string           `json:"resource,omitempty"`
	Verbs    []string         `json:"verbs,omitempty"`
	Before   string           `json:"before"`
	After    string           `json:"after"`
	Limits   string           `json:"limits,omitempty"`
}

func printChanges(e *env, f format, changes []authz.Change) error {
	rows := make([]changeRow, len(changes))
	for i, c := range changes {
		rows[i] = changeRow{c.Effect, c.User, c.Nodes, c.Login, c.Actions, c.Resource, c.Verbs, c.Before.Reason, c.After.Reason, c.Limits}
	}
	if f != formatTable {
		return printValue(e.stdout, f, rows)
	}
	if len(rows) == 0 {
		e.say("nobody gains or loses anything")
		return nil
	}
	table := make([][]string, len(rows))
	for i, r := range rows {
		what, where := words(r.Actions)+" as "+string(r.Login), words(r.Nodes)
		if r.Resource != "" {
			what, where = words(r.Verbs), r.Resource
		}
		why := r.After
		if r.Effect == authz.Changes {
			why = r.Limits
		}
		table[i] = []string{string(r.User), string(r.Effect), what, where, why}
	}
	return printTable(e.stdout, []string{"USER", "EFFECT", "WHAT", "WHERE", "WHY"}, table)
}

// words joins a list for a table.
func words[S ~string](list []S) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return strings.Join(out, ",")
}
