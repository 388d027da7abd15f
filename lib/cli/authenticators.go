package cli

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

func authenticatorsCommand(e *env) *cobra.Command {
	return noun("authenticators", "Say which security keys count", authenticatorsSet(e), authenticatorsShow(e))
}

func authenticatorsSet(e *env) *cobra.Command {
	var m accessdv1.Authenticators
	var roots string
	var every bool
	c := &cobra.Command{
		Use:   "set {--roots FILE [--aaguid MODEL,…] | --every}",
		Short: "Take the security keys of these makers and models only",
		Long: "Take as security keys only those that are enrolled (users keys add) with the word\n" +
			"of their maker: an attestation under one of the certificates in FILE (PEM), of one\n" +
			"of the models, if any are named. Others sign in as ordinary keys do. Keys that are\n" +
			"enrolled already count while their model does. With --every nobody has to vouch for\n" +
			"a key.",
		Args: cobra.NoArgs,
		RunE: verb(func(ctx context.Context, _ []string) error {
			if !every {
				text, err := e.readInput(roots, maxRoleFile)
				if err != nil {
					return err
				}
				m.Roots = string(text)
			}
			_, err := e.users().SetAuthenticators(ctx, connect.NewRequest(&accessdv1.SetAuthenticatorsRequest{Authenticators: &m}))
			return err
		}),
	}
	c.Flags().StringVar(&roots, "roots", "", "certificates of makers, in PEM")
	c.Flags().StringSliceVar(&m.Aaguids, "aaguid", nil, "models, as UUIDs (default all of these makers)")
	c.Flags().BoolVar(&every, "every", false, "take every key that says it is one")
	c.MarkFlagsOneRequired("roots", "every")
	c.MarkFlagsMutuallyExclusive("roots", "every")
	c.MarkFlagsMutuallyExclusive("aaguid", "every")
	return c
}

func authenticatorsShow(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show which security keys count",
		Args:  cobra.NoArgs,
		RunE: verb(func(ctx context.Context, _ []string) error {
			res, err := e.users().GetAuthenticators(ctx, connect.NewRequest(&accessdv1.GetAuthenticatorsRequest{}))
			if err != nil {
				return err
			}
			m := res.Msg.GetAuthenticators()
			if m.GetRoots() == "" {
				_, err = fmt.Fprintln(e.stdout, "every security key")
				return err
			}
			for _, id := range m.GetAaguids() {
				fmt.Fprintln(e.stdout, id)
			}
			_, err = fmt.Fprint(e.stdout, m.GetRoots())
			return err
		}),
	}
}
