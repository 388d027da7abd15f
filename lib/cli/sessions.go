package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

func sessionsCommand(e *env) *cobra.Command {
	return noun("sessions", "List and end live sessions", sessionsList(e), sessionsKill(e))
}

func sessionsList(e *env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "ls",
		Short: "List live sessions",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			res, err := e.sessions().ListSessions(ctx, connect.NewRequest(&accessdv1.ListSessionsRequest{}))
			if err != nil {
				return err
			}
			return list[*accessdv1.Session]{
				head: []string{"ID", "USER", "LOGIN", "NODE", "KIND", "FROM", "STARTED"},
				rows: res.Msg.GetSessions(),
				row: func(s *accessdv1.Session) []string {
					return []string{s.GetId(), s.GetUser(), s.GetLogin(), s.GetNodeName(), s.GetKind(), s.GetClient(), localTime(s.GetStarted())}
				},
			}.print(e.stdout, f)
		}),
	}
	addFormat(c, &f)
	return c
}

func sessionsKill(e *env) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "kill ID [--reason TEXT]",
		Short: "End a live session and tell its person why",
		Args:  want("ID"),
		RunE: verb(func(ctx context.Context, args []string) error {
			_, err := e.sessions().KillSession(ctx, connect.NewRequest(&accessdv1.KillSessionRequest{Id: args[0], Reason: reason}))
			return err
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "shown to the person")
	return c
}
