package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

func sessionsCommand(e *env) *cobra.Command {
	return noun("sessions", "List, watch, join and end live sessions",
		sessionsList(e), sessionsWatch(e), sessionsJoin(e), sessionsKill(e))
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

func sessionsWatch(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "watch ID",
		Short: "Show a live session as it goes; its people are told",
		Args:  want("ID"),
		RunE:  verb(func(ctx context.Context, args []string) error { return e.attach(ctx, args[0], false) }),
	}
}

func sessionsJoin(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "join ID",
		Short: "Take part in a live session, with input; its people are told",
		Args:  want("ID"),
		RunE:  verb(func(ctx context.Context, args []string) error { return e.attach(ctx, args[0], true) }),
	}
}

// attach shows the session id, and with join lets its person take part. The
// bytes go through a proxy, which is where that is done.
func (e *env) attach(ctx context.Context, id string, join bool) error {
	verb := "watch"
	if join {
		verb = "join"
	}
	sid, err := names.ParseSessionID(id)
	switch {
	case err != nil:
		return err
	case e.call == nil:
		return fault.New(fault.BadInput, "sessions %s works at a proxy only", verb).WithHint("ssh -t PERSON@PROXY sessions %s %s", verb, sid)
	case join && !e.call.Terminal:
		return fault.New(fault.BadInput, "sessions join needs a terminal").WithHint("ssh -t %s@PROXY sessions join %s", e.call.User, sid)
	}
	return e.call.Attach(ctx, sid, join)
}
