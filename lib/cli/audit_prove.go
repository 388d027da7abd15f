package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
)

func auditProve(e *env) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "prove UID [--out FILE]",
		Short: "Write a proof that an event is in the log",
		Long: "Write one text with the event of that uid, the proof that the log includes it, and\n" +
			"a checkpoint that the log's key signed (https://c2sp.org/tlog-proof).\n" +
			"\"accessd audit check\" checks it; that takes neither the log nor the cluster.",
		Args: want("UID"),
		RunE: verb(func(ctx context.Context, args []string) error {
			res, err := e.audit().ProveEvent(ctx, connect.NewRequest(&accessdv1.ProveEventRequest{Uid: args[0]}))
			if err != nil {
				return err
			}
			if out == "" || out == "-" {
				_, err = fmt.Fprint(e.stdout, res.Msg.GetProof())
				return err
			}
			return writeFile(out, []byte(res.Msg.GetProof()), 0o644)
		}),
	}
	c.Flags().StringVar(&out, "out", "", "where to put the proof (default stdout)")
	return c
}

func auditCheck(e *env) *cobra.Command {
	var (
		keyFile   string
		witnesses []string
		f         format
	)
	c := &cobra.Command{
		Use:   "check FILE --key FILE [--witness KEY]",
		Short: "Check a proof of an event, without the log or the cluster",
		Long: "Check what \"accessd audit prove\" wrote, and print the event that it proves.\n\n" +
			"--key takes what \"accessd ca export --type audit\" prints. Get it from somebody\n" +
			"other than whoever gave you the proof.",
		Args: want("FILE"),
		RunE: verb(func(_ context.Context, args []string) error {
			keys, err := readBounded(keyFile, maxKeyFile)
			if err != nil {
				return err
			}
			data, err := e.readInput(args[0], events.MaxProof)
			if err != nil {
				return err
			}
			proven, err := events.CheckProof(data, string(keys))
			if err != nil {
				return err
			}
			checkpoint := [][]byte{proven.Checkpoint}
			if _, err := events.Cosignatures(checkpoint, string(keys), witnesses); err != nil {
				return err
			}
			if err := e.printProven(proven, f); err != nil || f != formatTable {
				return err
			}
			return e.printCosignatures(checkpoint, string(keys), witnesses)
		}),
	}
	c.Flags().StringVar(&keyFile, "key", "", "file with the log's verifier key")
	addWitnesses(c, &witnesses)
	addFormat(c, &f)
	_ = c.MarkFlagRequired("key") // the flag exists
	return c
}

// printProven prints what was proven: in a table every field of the event, with
// what could drive a terminal escaped.
func (e *env) printProven(p events.Proven, f format) error {
	if f != formatTable {
		return printValue(e.stdout, f, map[string]any{
			"event": json.RawMessage(p.Event), "entry": p.Entry, "size": p.Size, "origin": p.Origin, "root_hash": p.RootHash,
		})
	}
	var members map[string]any
	if err := json.Unmarshal(p.Event, &members); err != nil {
		return fault.Wrap(fault.Internal, err, "the event cannot be read")
	}
	rows := make([][]string, 0, len(members))
	for _, key := range slices.Sorted(maps.Keys(members)) {
		text, ok := members[key].(string)
		if !ok {
			b, err := json.Marshal(members[key])
			if err != nil {
				return fault.Wrap(fault.Internal, err, "the event cannot be read")
			}
			text = string(b)
		}
		rows = append(rows, []string{key, text})
	}
	if err := printTable(e.stdout, []string{"FIELD", "VALUE"}, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(e.stdout, "proven: this is entry %d, counted from 0, of the log %s, whose first %d entries were signed\n",
		p.Entry, events.Display(p.Origin), p.Size)
	return err
}
