package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/store"
)

func auditArchive(e *env) *cobra.Command {
	var (
		to, reason string
		young      bool
		f          format
	)
	c := &cobra.Command{
		Use:   "archive PERIOD --to DIR|URL [--reason TEXT] [--young]",
		Short: "Move the log's oldest period to an archive",
		Long: "Check the oldest period of this authority's log, copy it to a directory or a bucket,\n" +
			"read back and compare each object, write the event that says so, and only then\n" +
			"remove the period here. PERIOD is its name, such as 2026-11, or \"first\" for the one\n" +
			"that began the log. It is there as audit/ID and verifies alone; an archive may hold\n" +
			"several periods, and may be the log's mirror. It may be begun again after a crash.\n\n" +
			"A period that a mirror or a sink of this authority has not seen all of stays. So does\n" +
			"one that ended less than 60 days ago, unless --young says otherwise: members may\n" +
			"have events of it to ship again, which the log knows by what is here.",
		Args: want("PERIOD"),
		RunE: verb(func(ctx context.Context, args []string) error {
			at := to
			if !strings.Contains(at, "://") {
				dir, err := filepath.Abs(at)
				if err != nil {
					return fault.New(fault.BadInput, "--to: %w", err)
				}
				at = store.Folder(dir)
			}
			res, err := e.audit().ArchivePeriod(ctx, connect.NewRequest(&accessdv1.ArchivePeriodRequest{
				Period: args[0], To: at, Reason: reason, Young: young,
			}))
			if err != nil {
				return err
			}
			if f != formatTable {
				return printMessage(e.stdout, f, res.Msg)
			}
			_, err = fmt.Fprintf(e.stdout, "archived %d events, origin %s, root %s, as %s\n",
				res.Msg.GetSize(), events.Display(res.Msg.GetOrigin()), res.Msg.GetRootHash(), res.Msg.GetPath())
			return err
		}),
	}
	c.Flags().StringVar(&to, "to", "", "a directory, or a URL as of recordings.store")
	c.Flags().StringVar(&reason, "reason", "", "why, for the log")
	c.Flags().BoolVar(&young, "young", false, "also a period that ended less than 60 days ago")
	_ = c.MarkFlagRequired("to") // the flag exists
	addFormat(c, &f)
	return c
}
