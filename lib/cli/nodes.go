package cli

import (
	"context"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

func nodesCommand(e *env) *cobra.Command {
	return noun("nodes", "Manage nodes", nodesAdd(e), nodesList(e), nodesRemove(e), nodesSetupSSHD(e), nodesUnit(e))
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
				head: []string{"NAME", "KIND", "STATE", "ADDRESS", "PORT", "LABELS", "LAST SEEN", "ID"},
				rows: res.Msg.GetNodes(),
				row: func(n *accessdv1.Node) []string {
					return []string{n.GetName(), n.GetKind(), state(n), n.GetAddress(), strconv.Itoa(int(n.GetGatewayPort())), pairs(n.GetLabels()), localTime(n.GetLastSeen()), n.GetId()}
				},
			}.print(e.stdout, f)
		}),
	}
	addFormat(c, &f)
	return c
}

// state says whether a node can be reached; of one that is dialled nobody knows
// before it is tried.
func state(n *accessdv1.Node) string {
	if n.GetAddress() != "" {
		return "dialled"
	}
	return online(n.GetOnline())
}

type nodesAddOptions struct {
	address, labels string
	hostKeys        []string
	format          format
}

func nodesAdd(e *env) *cobra.Command {
	var o nodesAddOptions
	c := &cobra.Command{
		Use:   "add NAME [--address HOST:PORT] [--labels K=V,…] [--host-key FILE]…",
		Short: "Register a machine that runs a plain sshd",
		Long: "Register a machine that runs a plain sshd. Proxies dial its address, and expect\n" +
			"the host keys given; without --host-key the authority asks the address now, and\n" +
			"what it shows is printed for you to compare. Without --address the machine dials\n" +
			"home with \"ssh -R\": see \"accessd nodes unit\".",
		Args: want("NAME"),
		RunE: verb(func(ctx context.Context, args []string) error { return e.addNode(ctx, args[0], o) }),
	}
	c.Flags().StringVar(&o.address, "address", "", "where it is reached, host:port (default port 22)")
	c.Flags().StringVar(&o.labels, "labels", "", "its labels, key=value,…")
	c.Flags().StringArrayVar(&o.hostKeys, "host-key", nil, "file with public host keys to expect, or - for stdin; may be repeated")
	addFormat(c, &o.format)
	return c
}

func (e *env) addNode(ctx context.Context, name string, o nodesAddOptions) error {
	req := &accessdv1.AddNodeRequest{Name: name, Address: o.address}
	var err error
	if req.Labels, err = parsePairs("labels", o.labels); err != nil {
		return err
	}
	for _, path := range o.hostKeys {
		keys, err := e.readKeys(path)
		if err != nil {
			return err
		}
		req.HostKeys = append(req.HostKeys, keys...)
	}
	res, err := e.nodes().AddNode(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	if o.format != formatTable {
		return printMessage(e.stdout, o.format, res.Msg)
	}
	n, keys := res.Msg.GetNode(), res.Msg.GetFingerprints()
	switch {
	case n.GetAddress() == "":
		e.say("%s joins with a token of its own: accessd tokens add --names %s", name, name)
		e.say("how it dials home: accessd nodes unit %s --proxy HOST:PORT", name)
	case len(keys) == 0:
		e.say("%s shows a host certificate of this cluster", name)
	case len(o.hostKeys) == 0:
		e.say("compare with what the machine itself says: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub")
	}
	return printTable(e.stdout, []string{"NAME", "ADDRESS", "PORT", "ID", "HOST KEYS"}, [][]string{{
		n.GetName(), n.GetAddress(), strconv.Itoa(int(n.GetGatewayPort())), n.GetId(), strings.Join(keys, ","),
	}})
}

// readKeys returns the lines of a file of public keys, or of stdin for "-".
func (e *env) readKeys(path string) ([]string, error) {
	text, err := e.readInput(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	var keys []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			keys = append(keys, line)
		}
	}
	if len(keys) == 0 {
		return nil, fault.New(fault.BadInput, "%q holds no public key", path)
	}
	return keys, nil
}

func nodesRemove(e *env) *cobra.Command {
	var (
		force       bool
		reason, end string
	)
	c := &cobra.Command{
		Use:   "rm NODE [--force --reason TEXT [--end FILE]]",
		Short: "Forget a node; its certificates stop working at once",
		Long: "Forget a node or a proxy; its certificates stop working at once.\n\n" +
			"With --force also an authority that is gone for good, and does not answer: its log is\n" +
			"no longer missed in what \"accessd audit\" shows. The event authority.delete has the\n" +
			"last checkpoint of that log, from --end, which may be the file \"checkpoint\" of the\n" +
			"newest period in its mirror or archive; without --end the log is declared lost.",
		Args: want("NODE"),
		RunE: verb(func(ctx context.Context, args []string) error {
			req := &accessdv1.RemoveNodeRequest{Node: args[0], Force: force, Reason: reason}
			if end != "" {
				text, err := e.readInput(end, maxSaved)
				if err != nil {
					return err
				}
				if req.LogEnd = string(text); len(text) == 0 {
					return fault.New(fault.BadInput, "--end: %q is empty", end)
				}
			}
			_, err := e.nodes().RemoveNode(ctx, connect.NewRequest(req))
			return err
		}),
	}
	c.Flags().BoolVar(&force, "force", false, "also an authority that is gone for good")
	c.Flags().StringVar(&reason, "reason", "", "why, for the log; with --force")
	c.Flags().StringVar(&end, "end", "", "the last checkpoint of its log (- is stdin)")
	return c
}
