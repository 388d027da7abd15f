package cli

import (
	"context"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/rpc"
)

// Bounds of the files of connectors, in bytes.
const (
	maxConnectorFile = 256 << 10
	maxSecretFile    = 1 << 10
)

func connectorsCommand(e *env) *cobra.Command {
	return noun("connectors", "Manage the OpenID providers at which people sign in",
		connectorsApply(e), connectorsList(e), connectorsGet(e), connectorsRemove(e))
}

func (e *env) connectors() accessdv1connect.ConnectorServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewConnectorServiceClient)
}

func connectorsApply(e *env) *cobra.Command {
	var file, secretFile string
	c := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Create or replace every connector of a file, all or none",
		Long: "Create or replace every connector of a file, all or none. A client's secret is\n" +
			"sealed and never shown again; a document without one keeps the one there is.",
		Args: want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			req := &accessdv1.ApplyConnectorsRequest{Source: file}
			var err error
			if file == "-" {
				req.Yaml, err = readAll("stdin", e.stdin, maxConnectorFile)
			} else {
				req.Yaml, err = readBounded(file, maxConnectorFile)
			}
			if err != nil {
				return err
			}
			if secretFile != "" {
				secret, err := readBounded(secretFile, maxSecretFile)
				if err != nil {
					return err
				}
				req.ClientSecret = strings.TrimSpace(string(secret))
			}
			res, err := e.connectors().ApplyConnectors(ctx, connect.NewRequest(req))
			if err != nil {
				return err
			}
			for _, n := range res.Msg.GetCreated() {
				e.say("connector %q created", n)
			}
			for _, n := range res.Msg.GetUpdated() {
				e.say("connector %q updated", n)
			}
			return nil
		}),
	}
	c.Flags().StringVarP(&file, "file", "f", "", "YAML file, or - for stdin")
	c.Flags().StringVar(&secretFile, "client-secret-file", "", "file with the client's secret, for one connector")
	_ = c.MarkFlagRequired("file") // the flag exists
	return c
}

func connectorsList(e *env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "ls",
		Short: "List connectors",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			res, err := e.connectors().ListConnectors(ctx, connect.NewRequest(&accessdv1.ListConnectorsRequest{}))
			if err != nil {
				return err
			}
			return list[*accessdv1.Connector]{
				head: []string{"NAME", "ISSUER", "CLIENT ID", "SECRET"},
				rows: res.Msg.GetConnectors(),
				row: func(c *accessdv1.Connector) []string {
					return []string{c.GetName(), c.GetIssuer(), c.GetClientId(), yes(c.GetHasSecret())}
				},
			}.print(e.stdout, f)
		}),
	}
	addFormat(c, &f)
	return c
}

func connectorsGet(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "get NAME",
		Short: "Print a connector as YAML, without its secret",
		Args:  want("NAME"),
		RunE: verb(func(ctx context.Context, args []string) error {
			res, err := e.connectors().GetConnector(ctx, connect.NewRequest(&accessdv1.GetConnectorRequest{Name: args[0]}))
			if err != nil {
				return err
			}
			_, err = e.stdout.Write([]byte(res.Msg.GetConnector().GetYaml()))
			return err
		}),
	}
}

func connectorsRemove(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME",
		Short: "Remove a connector; who came through it cannot sign in again",
		Args:  want("NAME"),
		RunE: verb(func(ctx context.Context, args []string) error {
			_, err := e.connectors().RemoveConnector(ctx, connect.NewRequest(&accessdv1.RemoveConnectorRequest{Name: args[0]}))
			return err
		}),
	}
}
