package cli

import (
	"context"
	"strconv"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

func nodesCommand(e *env) *cobra.Command {
	return noun("nodes", "List and remove nodes", nodesList(e), nodesRemove(e))
}

func nodesList(e *env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "ls",
		Short: "List nodes",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			res, err := e.nodes().ListNodes(ctx, connect.NewRequest(&accessdv1.ListNodesRequest{}))
			if err != nil {
				return err
			}
			return list[*accessdv1.Node]{
				head: []string{"NAME", "STATE", "PORT", "LABELS", "LAST SEEN", "ID"},
				rows: res.Msg.GetNodes(),
				row: func(n *accessdv1.Node) []string {
					return []string{n.GetName(), state(n), strconv.Itoa(int(n.GetGatewayPort())), pairs(n.GetLabels()), localTime(n.GetLastSeen()), n.GetId()}
				},
			}.print(e.stdout, f)
		}),
	}
	addFormat(c, &f)
	return c
}

func state(n *accessdv1.Node) string {
	if n.GetOnline() {
		return "online"
	}
	return "offline"
}

func nodesRemove(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "rm NODE",
		Short: "Forget a node; its certificates stop working at once",
		Args:  want("NODE"),
		RunE: verb(func(ctx context.Context, args []string) error {
			_, err := e.nodes().RemoveNode(ctx, connect.NewRequest(&accessdv1.RemoveNodeRequest{Node: args[0]}))
			return err
		}),
	}
}
