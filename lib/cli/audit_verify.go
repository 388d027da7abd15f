package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
)

// verifyOptions are the flags of "audit verify".
type verifyOptions struct {
	dir, keyFile string
	since, save  string
	witnesses    []string
	archived     bool
	format       format
}

func auditVerify(e *env) *cobra.Command {
	var o verifyOptions
	c := &cobra.Command{
		Use:   "verify [--log DIR --key FILE] [--since FILE] [--save FILE] [--witness KEY] [--archived]",
		Short: "Check that nothing in the log was changed, dropped or reordered",
		Long: "Check every entry, tile and checkpoint of the audit log.\n\n" +
			"With --log and --key the check reads only that directory, which may be a copy,\n" +
			"and the public key that \"accessd ca export --type audit\" prints; it needs no\n" +
			"running cluster. Without them the running authority checks its own log.\n\n" +
			"A log that was cut back, or made anew with the same key, agrees with itself. With\n" +
			"--since it must also continue the checkpoint that --save kept at an earlier time,\n" +
			"in a place that who runs the log cannot write to. Both may name the same file.\n" +
			"With --witness the witness of that key must have cosigned a checkpoint of the log.\n\n" +
			"A log in periods is checked period by period, each against what the next one says of\n" +
			"its end. One that is not there is a fault, unless --archived says that the oldest may\n" +
			"be absent; what is absent is then printed, as it was signed.",
		Args: want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			if (o.dir == "") != (o.keyFile == "") {
				return fault.New(fault.BadInput, "--log and --key come together")
			}
			return e.verify(ctx, o)
		}),
	}
	c.Flags().StringVar(&o.dir, "log", "", "directory of the log, or of a copy")
	c.Flags().StringVar(&o.keyFile, "key", "", "file with the log's verifier key")
	c.Flags().StringVar(&o.since, "since", "", "an earlier checkpoint that the log must continue (- is stdin)")
	c.Flags().StringVar(&o.save, "save", "", "file for the checkpoint of the verified log")
	addWitnesses(c, &o.witnesses)
	c.Flags().BoolVar(&o.archived, "archived", false, "the oldest periods may be absent")
	addFormat(c, &o.format)
	return c
}

// addWitnesses adds --witness to c.
func addWitnesses(c *cobra.Command, keys *[]string) {
	c.Flags().StringArrayVar(keys, "witness", nil, "key of a witness that must have cosigned (repeatable)")
}

// maxSaved bounds a saved checkpoint, in bytes; one with twenty cosignatures has
// 3 KiB.
const maxSaved = 64 << 10

func (e *env) verify(ctx context.Context, o verifyOptions) error {
	var since []byte
	if o.since != "" {
		var err error
		if since, err = e.readInput(o.since, maxSaved); err != nil {
			return err
		}
		if len(since) == 0 {
			return fault.New(fault.BadInput, "--since: %q is empty", o.since)
		}
	}
	res := &accessdv1.VerifyLogResponse{}
	if o.dir != "" {
		if err := verifyCopy(ctx, o, since, res); err != nil {
			return err
		}
	} else {
		got, err := e.audit().VerifyLog(ctx, connect.NewRequest(&accessdv1.VerifyLogRequest{Since: string(since), Archived: o.archived}))
		if err != nil {
			return err
		}
		res = got.Msg
	}
	checkpoints := make([][]byte, len(res.GetCosigned()))
	for i, raw := range res.GetCosigned() {
		checkpoints[i] = []byte(raw)
	}
	if res.GetFault() == "" {
		if _, err := events.Cosignatures(checkpoints, res.GetVerifierKey(), o.witnesses); err != nil {
			return err
		}
	}
	if err := e.printVerdict(res, o.format); err != nil {
		return err
	}
	if o.format == formatTable {
		if err := e.printCosignatures(checkpoints, res.GetVerifierKey(), o.witnesses); err != nil {
			return err
		}
	}
	if o.save == "" {
		return nil
	}
	return writeFile(o.save, []byte(res.GetCheckpoint()), 0o644)
}

// verifyCopy checks a log from its files alone.
func verifyCopy(ctx context.Context, o verifyOptions, since []byte, res *accessdv1.VerifyLogResponse) error {
	keys, err := readBounded(o.keyFile, maxKeyFile)
	if err != nil {
		return err
	}
	var earlier [][]byte
	if since != nil {
		earlier = append(earlier, since)
	}
	verify := events.Verify
	if o.archived {
		verify = events.VerifyArchived
	}
	report, err := verify(ctx, o.dir, string(keys), earlier...)
	if err != nil {
		if _, tampered := errors.AsType[*events.TamperedError](err); !tampered {
			return err
		}
		res.Fault = fault.Public(err)
		return nil
	}
	res.Size, res.RootHash, res.Origin, res.VerifierKey = report.Size, report.RootHash, report.Origin, report.Key
	res.Checkpoint = string(report.Checkpoint)
	for _, raw := range report.Cosigned {
		res.Cosigned = append(res.Cosigned, string(raw))
	}
	for _, p := range report.Before {
		res.Before = append(res.Before, &accessdv1.VerifiedPeriod{Origin: p.Origin, Size: p.Size, RootHash: p.RootHash, Checkpoint: string(p.Checkpoint)})
	}
	if p := report.Absent; p != nil {
		res.Before = append(res.Before, &accessdv1.VerifiedPeriod{Origin: p.Origin, Size: p.Size, Checkpoint: string(p.Checkpoint), Absent: true})
	}
	return nil
}

// printVerdict prints res; a log with a fault is an error.
func (e *env) printVerdict(res *accessdv1.VerifyLogResponse, f format) error {
	if f != formatTable {
		if err := printMessage(e.stdout, f, res); err != nil {
			return err
		}
	}
	if res.GetFault() != "" {
		return fault.New(fault.Conflict, "the audit log does not verify: %s", res.GetFault())
	}
	if f == formatTable {
		return e.printPeriods(res)
	}
	return nil
}

// printPeriods prints a line for each period of a log that is whole, the newest
// first.
func (e *env) printPeriods(res *accessdv1.VerifyLogResponse) error {
	if _, err := fmt.Fprintf(e.stdout, "verified %d events, origin %s, root %s\n", res.GetSize(), res.GetOrigin(), res.GetRootHash()); err != nil {
		return err
	}
	for _, p := range res.GetBefore() {
		line := fmt.Sprintf("verified %d events, origin %s, root %s", p.GetSize(), p.GetOrigin(), p.GetRootHash())
		if p.GetAbsent() {
			line = fmt.Sprintf("not here: origin %s, which ended with %d events, and what was before it", p.GetOrigin(), p.GetSize())
		}
		if _, err := fmt.Fprintln(e.stdout, line); err != nil {
			return err
		}
	}
	return nil
}

// printCosignatures prints what witnesses said of the checkpoints: those whose
// keys are given, and the names of the others.
func (e *env) printCosignatures(checkpoints [][]byte, logKey string, witnesses []string) error {
	checked, err := events.Cosignatures(checkpoints, logKey, witnesses)
	if err != nil {
		return err
	}
	var lines, known []string
	for _, c := range checked {
		known = append(known, c.Witness)
		lines = append(lines, fmt.Sprintf("cosigned by %s at %s: the first %d entries", events.Display(c.Witness), c.Time.UTC().Format(time.RFC3339), c.Size))
	}
	for _, raw := range checkpoints {
		for _, name := range events.Cosigners(raw) {
			if !slices.Contains(known, name) {
				known = append(known, name)
				lines = append(lines, fmt.Sprintf("not checked: a cosignature of %s; its key goes behind --witness", events.Display(name)))
			}
		}
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(e.stdout, line); err != nil {
			return err
		}
	}
	return nil
}
