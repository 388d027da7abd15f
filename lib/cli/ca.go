package cli

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

func caCommand(e *env) *cobra.Command {
	return noun("ca", "Read and rotate the cluster's certificate authorities", caExport(e), caPin(e), caStatus(e), caRotate(e))
}

func caExport(e *env) *cobra.Command {
	var kind, form string
	c := &cobra.Command{
		Use:   "export --type user|host|node|sshd|audit [--format openssh|known-hosts]",
		Short: "Print the public keys of an authority",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			if form != "openssh" && form != "known-hosts" {
				return fault.New(fault.BadInput, "--format: %q: want openssh or known-hosts", form)
			}
			if form == "known-hosts" && kind != "host" {
				return fault.New(fault.BadInput, "--format known-hosts goes with --type host only")
			}
			ca, err := e.exportCA(ctx, kind)
			if err != nil {
				return err
			}
			return e.printCA(ca, form)
		}),
	}
	c.Flags().StringVar(&kind, "type", "", "user, host, node, sshd, or audit for the log's verifier key")
	c.Flags().StringVar(&form, "format", "openssh", "openssh (authorized_keys lines) or known-hosts")
	_ = c.MarkFlagRequired("type") // the flag exists
	return c
}

func (e *env) exportCA(ctx context.Context, kind string) (*accessdv1.ExportCAResponse, error) {
	res, err := e.ca().ExportCA(ctx, connect.NewRequest(&accessdv1.ExportCARequest{Type: kind}))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

func (e *env) printCA(ca *accessdv1.ExportCAResponse, form string) error {
	for _, k := range ca.GetPublicKeys() {
		if form == "known-hosts" {
			k = "@cert-authority * " + k
		}
		if _, err := fmt.Fprintln(e.stdout, k); err != nil {
			return err
		}
	}
	return nil
}

func caPin(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "pin",
		Short: "Print what --ca-pin takes",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			ca, err := e.exportCA(ctx, "host")
			if err != nil {
				return err
			}
			for _, p := range ca.GetPins() {
				if _, err := fmt.Fprintln(e.stdout, p); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}
