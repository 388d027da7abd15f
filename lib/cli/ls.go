package cli

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/srv/proxy"
)

// reachableCommand lists the nodes for a person at a proxy.
func reachableCommand(e *env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "ls",
		Short: "List the nodes that you may reach, and your logins there",
		Args:  want(),
		RunE: verb(func(context.Context, []string) error {
			nodes := e.call.Nodes()
			if f != formatTable {
				return printValue(e.stdout, f, reachables(nodes))
			}
			rows := make([][]string, len(nodes))
			for i, n := range nodes {
				rows[i] = []string{string(n.Name), online(n.Online), strconv.Itoa(n.GatewayPort), pairs(n.Labels), strings.Join(logins(n), ",")}
			}
			return printTable(e.stdout, []string{"NAME", "STATE", "PORT", "LABELS", "LOGINS"}, rows)
		}),
	}
	addFormat(c, &f)
	return c
}

// reachable is a node in JSON.
type reachable struct {
	ID          names.NodeID   `json:"id"`
	Name        names.NodeName `json:"name"`
	Online      bool           `json:"online"`
	GatewayPort int            `json:"gateway_port"`
	Labels      names.Labels   `json:"labels"`
	Logins      []string       `json:"logins"`
}

func reachables(nodes []proxy.Reachable) []reachable {
	out := make([]reachable, len(nodes))
	for i, n := range nodes {
		out[i] = reachable{ID: n.ID, Name: n.Name, Online: n.Online, GatewayPort: n.GatewayPort, Labels: n.Labels, Logins: logins(n)}
		if n.Labels == nil {
			out[i].Labels = names.Labels{}
		}
	}
	return out
}

func logins(n proxy.Reachable) []string {
	out := make([]string, len(n.Logins))
	for i, l := range n.Logins {
		out[i] = string(l)
	}
	return out
}

func online(yes bool) string {
	if yes {
		return "online"
	}
	return "offline"
}
