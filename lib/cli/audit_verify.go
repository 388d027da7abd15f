package cli

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
)

func auditVerify(e *env) *cobra.Command {
	var (
		dir, keyFile string
		f            format
	)
	c := &cobra.Command{
		Use:   "verify [--log DIR --key FILE]",
		Short: "Check that nothing in the log was changed, dropped or reordered",
		Long: "Check every entry, tile and checkpoint of the audit log.\n\n" +
			"With --log and --key the check reads only that directory, which may be a copy,\n" +
			"and the public key that \"accessd ca export --type audit\" prints; it needs no\n" +
			"running cluster. Without them the running authority checks its own log.",
		Args: want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			if (dir == "") != (keyFile == "") {
				return fault.New(fault.BadInput, "--log and --key come together")
			}
			res := &accessdv1.VerifyLogResponse{}
			if dir == "" {
				got, err := e.audit().VerifyLog(ctx, connect.NewRequest(&accessdv1.VerifyLogRequest{}))
				if err != nil {
					return err
				}
				res = got.Msg
			} else if err := verifyCopy(ctx, dir, keyFile, res); err != nil {
				return err
			}
			return e.printVerdict(res, f)
		}),
	}
	c.Flags().StringVar(&dir, "log", "", "directory of the log, or of a copy")
	c.Flags().StringVar(&keyFile, "key", "", "file with the log's verifier key")
	addFormat(c, &f)
	return c
}

// verifyCopy checks a log from its files alone.
func verifyCopy(ctx context.Context, dir, keyFile string, res *accessdv1.VerifyLogResponse) error {
	key, err := readBounded(keyFile, maxKeyFile)
	if err != nil {
		return err
	}
	res.VerifierKey = strings.TrimSpace(string(key))
	report, err := events.Verify(ctx, dir, res.GetVerifierKey())
	if err != nil {
		res.Fault = fault.Public(err)
		return nil
	}
	res.Size, res.RootHash, res.Origin = report.Size, report.RootHash, report.Origin
	return nil
}

// printVerdict prints res; a log with a fault is an error.
func (e *env) printVerdict(res *accessdv1.VerifyLogResponse, f format) error {
	if f != formatTable {
		b, err := messageJSON(res)
		if err != nil {
			return err
		}
		if err := printValue(e.stdout, f, b); err != nil {
			return err
		}
	}
	if res.GetFault() != "" {
		return fault.New(fault.Conflict, "the audit log does not verify: %s", res.GetFault())
	}
	if f == formatTable {
		_, err := fmt.Fprintf(e.stdout, "verified %d events, origin %s, root %s\n", res.GetSize(), res.GetOrigin(), res.GetRootHash())
		return err
	}
	return nil
}
