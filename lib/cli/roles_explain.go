package cli

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
)

func (e *env) policy() accessdv1connect.PolicyServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewPolicyServiceClient)
}

func rolesExplain(e *env) *cobra.Command {
	var f format
	var q accessdv1.ExplainRequest
	c := &cobra.Command{
		Use:   "explain USER [LOGIN@NODE]",
		Short: "Say whether somebody may do something, by which rule, and why not",
		Long: "Say what the next connection of USER would be answered: as LOGIN on NODE, or, with --resource and --verb, about a\n" +
			"resource of the cluster. Everybody may ask about themselves.",
		Args: func(cmd *cobra.Command, args []string) error {
			if q.GetResource() != "" {
				return want("USER")(cmd, args)
			}
			return want("USER", "LOGIN@NODE")(cmd, args)
		},
		RunE: verb(func(ctx context.Context, args []string) error {
			if err := fill(&q, args); err != nil {
				return err
			}
			res, err := e.policy().Explain(ctx, connect.NewRequest(&q))
			if err != nil {
				return err
			}
			if f != formatTable {
				return printMessage(e.stdout, f, res.Msg)
			}
			_, err = fmt.Fprint(e.stdout, explanation(res.Msg))
			return err
		}),
	}
	c.Flags().StringVar(&q.Action, "action", "", "what is done, one of the actions of docs/roles.md (default shell; exec with --command, forward:local with --target)")
	c.Flags().StringVar(&q.Command, "command", "", "the command line")
	c.Flags().StringVar(&q.Target, "target", "", "where a forward leads: HOST:PORT, or a Unix socket on the node")
	c.Flags().StringVar(&q.Resource, "resource", "", "a resource of the cluster, such as audit")
	c.Flags().StringVar(&q.Verb, "verb", "read", "what is done with the resource")
	addFormat(c, &f)
	return c
}

// fill makes q the question that args and the flags ask.
func fill(q *accessdv1.ExplainRequest, args []string) error {
	q.User = args[0]
	if q.Resource != "" {
		return nil
	}
	q.Verb = ""
	login, node, ok := strings.Cut(args[1], "@")
	if !ok {
		return fault.New(fault.BadInput, "%q: want LOGIN@NODE", args[1])
	}
	q.Login, q.Node = login, node
	switch {
	case q.Action != "":
	case q.Command != "":
		q.Action = string(authz.ActionExec)
	case q.Target != "":
		q.Action = string(authz.ActionForwardLocal)
	default:
		q.Action = string(authz.ActionShell)
	}
	return nil
}

// explanation says m in lines of words.
func explanation(m *accessdv1.ExplainResponse) string {
	var b strings.Builder
	verdict := "refused"
	if m.GetAllow() {
		verdict = "allowed"
	}
	fmt.Fprintf(&b, "%s: %s\n", verdict, events.Display(m.GetReason()))
	if m.GetRule() != "" {
		fmt.Fprintf(&b, "rule: %s\n", m.GetRule())
	}
	if l := m.GetLimits(); l != nil {
		for _, x := range []struct{ name, value string }{
			{"session_ttl", l.GetSessionTtl().AsDuration().String()},
			{"idle_timeout", l.GetIdleTimeout().AsDuration().String()},
			{"max_sessions", fmt.Sprint(l.GetMaxSessions())},
			{"pin_source", fmt.Sprint(l.GetPinSource())},
			{"mfa", l.GetMfa()},
			{"key", l.GetKey()},
			{"record", l.GetRecord()},
			{"record_input", fmt.Sprint(l.GetRecordInput())},
		} {
			if x.value != "" && x.value != "0s" && x.value != "0" && x.value != "false" {
				fmt.Fprintf(&b, "%s: %s\n", x.name, x.value)
			}
		}
	}
	return b.String()
}
