package cli

import (
	"context"
	"strconv"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

// maxRoleFile bounds a file of roles, in bytes.
const maxRoleFile = 1 << 20

func rolesCommand(e *env) *cobra.Command {
	return noun("roles", "Manage roles", rolesApply(e), rolesDiff(e), rolesTest(e), rolesExplain(e),
		rolesList(e), rolesGet(e), rolesRemove(e))
}

func rolesApply(e *env) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Create or replace every role of a file, all or none",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			yaml, err := e.readFile(file)
			if err != nil {
				return err
			}
			res, err := e.roles().ApplyRoles(ctx, connect.NewRequest(&accessdv1.ApplyRolesRequest{Yaml: yaml, Source: file}))
			if err != nil {
				return err
			}
			for _, n := range res.Msg.GetCreated() {
				e.say("role %q created", n)
			}
			for _, n := range res.Msg.GetUpdated() {
				e.say("role %q updated", n)
			}
			return nil
		}),
	}
	c.Flags().StringVarP(&file, "file", "f", "", "YAML file, or - for stdin")
	_ = c.MarkFlagRequired("file") // the flag exists
	return c
}

func rolesList(e *env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "ls",
		Short: "List roles",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			res, err := e.roles().ListRoles(ctx, connect.NewRequest(&accessdv1.ListRolesRequest{}))
			if err != nil {
				return err
			}
			return list[*accessdv1.Role]{
				head: []string{"NAME", "BUILT IN", "REVISION"},
				rows: res.Msg.GetRoles(),
				row: func(r *accessdv1.Role) []string {
					return []string{r.GetName(), yes(r.GetBuiltin()), strconv.FormatInt(r.GetRevision(), 10)}
				},
			}.print(e.stdout, f)
		}),
	}
	addFormat(c, &f)
	return c
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func rolesGet(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "get NAME",
		Short: "Print a role as YAML",
		Args:  want("NAME"),
		RunE: verb(func(ctx context.Context, args []string) error {
			res, err := e.roles().GetRole(ctx, connect.NewRequest(&accessdv1.GetRoleRequest{Name: args[0]}))
			if err != nil {
				return err
			}
			_, err = e.stdout.Write([]byte(res.Msg.GetRole().GetYaml()))
			return err
		}),
	}
}

func rolesRemove(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME",
		Short: "Remove a role",
		Args:  want("NAME"),
		RunE: verb(func(ctx context.Context, args []string) error {
			_, err := e.roles().RemoveRole(ctx, connect.NewRequest(&accessdv1.RemoveRoleRequest{Name: args[0]}))
			return err
		}),
	}
}
