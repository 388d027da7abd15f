package cli

import (
	"context"
	"io"
	"os"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
)

func auditExport(e *env) *cobra.Command {
	var (
		o      auditFilter
		req    accessdv1.ExportEventsRequest
		form   string
		out    string
		values []string
	)
	for _, f := range events.Formats() {
		values = append(values, string(f))
	}
	c := &cobra.Command{
		Use:   "export [--format jsonl|csv|syslog|otlp] [--after PLACE] [--follow] [-o FILE]",
		Short: "Write events for other programs, in the order of the log",
		Long: "Write every event that matches, in the order in which they came into the log.\n\n" +
			"The last line on stderr is the place behind them: --after goes on there, so that\n" +
			"nothing is exported twice and nothing left out. A FILE that exists is added to.\n\n" +
			severalLogs,
		Args: want(),
		RunE: verb(func(ctx context.Context, _ []string) (err error) {
			f, err := events.ParseFormat(form)
			if err != nil {
				return err
			}
			if req.Filter, err = o.message(); err != nil {
				return err
			}
			x := exporter{env: e, format: f, to: e.stdout, head: f.Head()}
			if out != "" {
				file, err := x.open(out)
				if err != nil {
					return err
				}
				defer func() { err = closeFile(file, err) }()
			}
			return x.run(ctx, &req)
		}),
	}
	o.flags(c)
	c.Flags().StringVar(&form, "format", string(events.JSONL), "jsonl, csv, syslog (RFC 5424) or otlp (OpenTelemetry logs, JSON)")
	_ = c.Flags().SetAnnotation("format", valuesAnnotation, values) // the flag exists
	c.Flags().StringVar(&req.After, "after", "", "only what came after this place, as an earlier export said")
	c.Flags().BoolVar(&req.Follow, "follow", false, "go on with new events as they come")
	c.Flags().StringVarP(&out, "out", "o", "", "file to add to; stdout when there is none")
	return c
}

// exporter writes what an authority streams.
type exporter struct {
	*env

	format events.Format
	to     io.Writer
	head   []byte // still to be written
}

// open makes the file at path, which only its owner may read, the target.
func (x *exporter) open(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fault.New(fault.BadInput, "write %q: %w", path, err)
	}
	info, err := file.Stat()
	if err != nil {
		return nil, closeFile(file, err)
	}
	if x.to = file; info.Size() > 0 {
		x.head = nil
	}
	return file, nil
}

// closeFile closes file; err, if there is one, is what went wrong before.
func closeFile(file *os.File, err error) error {
	if closeErr := file.Close(); err == nil && closeErr != nil {
		return fault.New(fault.Unavailable, "write %q: %w", file.Name(), closeErr)
	}
	return err
}

// run exports until nothing is left, or ctx ends. However it ends, it says how
// far it came.
func (x *exporter) run(ctx context.Context, req *accessdv1.ExportEventsRequest) error {
	stream, err := x.audit().ExportEvents(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // what went wrong is in stream.Err
	after := req.GetAfter()
	defer func() { x.sayPlaces("", after) }()
	var away absence
	for stream.Receive() {
		away.note(x.env, stream.Msg().GetArchived())
		if missing := stream.Msg().GetMissing(); req.GetFollow() {
			away.tell(x.env, missing)
		} else {
			away.only(missing)
		}
		text, err := x.format.Append(x.head, stream.Msg().GetEvents())
		if err != nil {
			return err
		}
		if _, err := x.to.Write(text); err != nil {
			return fault.New(fault.Unavailable, "write the export: %w", err)
		}
		x.head, after = nil, stream.Msg().GetAfter()
	}
	if err := stream.Err(); err != nil && ctx.Err() == nil {
		return err
	}
	return away.err()
}
