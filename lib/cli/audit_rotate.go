package cli

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

func auditRotate(e *env) *cobra.Command {
	var (
		reason string
		f      format
	)
	c := &cobra.Command{
		Use:   "rotate [--reason TEXT]",
		Short: "Close the log's period and go on in a new one",
		Long: "Close the period of this authority's log and go on in a new one, as audit.rotate does\n" +
			"by the calendar. The closed period never changes again: it can be copied, cosigned and\n" +
			"archived as one, and the new one begins with its last checkpoint.\n\n" +
			"Prints the new period's public key. It is the log's key under the period's name, so\n" +
			"\"accessd audit verify\" and \"check\" take the log's own for it; a witness needs it.",
		Args: want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			res, err := e.audit().RotateLog(ctx, connect.NewRequest(&accessdv1.RotateLogRequest{Reason: reason}))
			if err != nil {
				return err
			}
			if f != formatTable {
				return printValue(e.stdout, f, map[string]any{"origin": res.Msg.GetOrigin(), "verifier_key": res.Msg.GetVerifierKey()})
			}
			_, err = fmt.Fprintln(e.stdout, res.Msg.GetVerifierKey())
			return err
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the log")
	addFormat(c, &f)
	return c
}
