package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

func recordingsCommand(e *env) *cobra.Command {
	return noun("recordings", "List, play, export, search and keep recordings of sessions",
		recordingsList(e), recordingsPlay(e), recordingsExport(e), recordingsVerify(e), recordingsSearch(e), recordingsHold(e), recordingsRemove(e))
}

// recordingFilter are the flags that select recordings.
type recordingFilter struct {
	since, until, user, login, node string

	interactive, inProgress bool
	minDuration             time.Duration
	minSize                 int64
}

func (o *recordingFilter) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.since, "since", "", "began not before this time, or this long ago")
	c.Flags().StringVar(&o.until, "until", "", "began not after this time, or this long ago")
	c.Flags().StringVar(&o.user, "user", "", "person")
	c.Flags().StringVar(&o.login, "login", "", "login on the node")
	c.Flags().StringVar(&o.node, "node", "", "node, by name or id")
	c.Flags().BoolVar(&o.interactive, "interactive", false, "with a terminal; =false: without")
	c.Flags().BoolVar(&o.inProgress, "in-progress", false, "not complete yet; =false: complete")
	c.Flags().DurationVar(&o.minDuration, "min-duration", 0, "lasted at least so long")
	c.Flags().Int64Var(&o.minSize, "min-size", 0, "at least so many bytes in the store")
}

func (o *recordingFilter) message(c *cobra.Command) (*accessdv1.ListRecordingsRequest, error) {
	now := time.Now()
	since, err := parseWhen("since", o.since, now)
	if err != nil {
		return nil, err
	}
	until, err := parseWhen("until", o.until, now)
	if err != nil {
		return nil, err
	}
	req := &accessdv1.ListRecordingsRequest{User: o.user, Login: o.login, Node: o.node, Since: since, Until: until, MinSize: o.minSize}
	if c.Flags().Changed("interactive") {
		req.Terminal = &o.interactive
	}
	if c.Flags().Changed("in-progress") {
		req.InProgress = &o.inProgress
	}
	if o.minDuration > 0 {
		req.MinDuration = durationpb.New(o.minDuration)
	}
	return req, nil
}

// maxRemoteRecordings bounds a list of recordings at a proxy, which holds all of
// it.
const maxRemoteRecordings = 1000

func recordingsList(e *env) *cobra.Command {
	var (
		o     recordingFilter
		limit int32
		f     format
		c     *cobra.Command
	)
	c = &cobra.Command{
		Use:   "ls",
		Short: "List recordings, the newest first",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			req, err := o.message(c)
			if err != nil {
				return err
			}
			if limit < 1 {
				return fault.New(fault.BadInput, "--limit: %d: want at least 1", limit)
			}
			if e.call != nil && limit > maxRemoteRecordings {
				return fault.New(fault.BadInput, "--limit: %d: want at most %d at a proxy", limit, maxRemoteRecordings)
			}
			found, err := e.listRecordings(ctx, req, limit)
			if err != nil {
				return err
			}
			return list[*accessdv1.Recording]{
				head: []string{"SESSION", "STARTED", "DURATION", "SIZE", "USER", "LOGIN", "NODE", "KIND", "STATE", "COMMAND"},
				rows: found, row: recordingRow,
			}.print(e.stdout, f)
		}),
	}
	o.flags(c)
	c.Flags().Int32Var(&limit, "limit", 100, "how many at most")
	addFormat(c, &f)
	return c
}

// listRecordings collects pages until limit are there or no more match.
func (e *env) listRecordings(ctx context.Context, req *accessdv1.ListRecordingsRequest, limit int32) ([]*accessdv1.Recording, error) {
	var found []*accessdv1.Recording
	for {
		req.Limit = limit - int32(len(found))
		res, err := e.archive().ListRecordings(ctx, connect.NewRequest(req))
		if err != nil {
			return nil, err
		}
		found = append(found, res.Msg.GetRecordings()...)
		req.Before = res.Msg.GetNextBefore()
		if req.GetBefore() == "" || len(found) >= int(limit) {
			return found, nil
		}
	}
}

func recordingRow(r *accessdv1.Recording) []string {
	of := r.GetOf()
	kind := of.GetKind()
	if of.GetTerminal() {
		kind += "+tty"
	}
	duration := ""
	if r.GetDuration() != nil {
		duration = r.GetDuration().AsDuration().Round(time.Second / 10).String()
	}
	return []string{
		r.GetSession(), localTime(of.GetStarted()), duration, bytesText(r.GetSize()), of.GetUser(), of.GetLogin(), of.GetNodeName(), kind,
		recordingState(r), of.GetCommand(),
	}
}

// recordingState says what is special about a recording.
func recordingState(r *accessdv1.Recording) string {
	state := ""
	for _, s := range []struct {
		is   bool
		word string
	}{
		{r.GetInProgress(), "in progress"},
		{r.GetRecovered(), "recovered"},
		{r.GetOf().GetSealed(), "sealed"},
		{r.GetHold() != "", "held"},
		{r.GetFault() != "", "damaged: " + r.GetFault()},
	} {
		switch {
		case !s.is:
		case state == "":
			state = s.word
		default:
			state += ", " + s.word
		}
	}
	return state
}

// bytesText shows a size in the unit that fits.
func bytesText(n int64) string {
	const unit = 1024
	if n < unit {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, units := float64(n)/unit, "KMGTP"
	for v >= unit && len(units) > 1 {
		v, units = v/unit, units[1:]
	}
	return fmt.Sprintf("%.1f %ciB", v, units[0])
}

func recordingsSearch(e *env) *cobra.Command {
	var (
		since, until, user, node string
		limit                    int32
		f                        format
	)
	c := &cobra.Command{
		Use:   "search WORDS",
		Short: "Find recordings whose output has these words; sealed ones are not read",
		Args:  want("WORDS"),
		RunE: verb(func(ctx context.Context, args []string) error {
			now := time.Now()
			from, err := parseWhen("since", since, now)
			if err != nil {
				return err
			}
			to, err := parseWhen("until", until, now)
			if err != nil {
				return err
			}
			res, err := e.archive().SearchRecordings(ctx, connect.NewRequest(&accessdv1.SearchRecordingsRequest{
				Words: args[0], Limit: limit, User: user, Node: node, Since: from, Until: to,
			}))
			if err != nil {
				return err
			}
			if n := res.Msg.GetSealed(); n > 0 {
				fmt.Fprintf(e.stderr, "%d recordings in this time are sealed and were not searched\n", n)
			}
			return list[*accessdv1.RecordingMatch]{
				head: []string{"SESSION", "AT", "USER", "NODE", "LINE"}, rows: res.Msg.GetMatches(),
				row: func(m *accessdv1.RecordingMatch) []string {
					r := m.GetRecording()
					return []string{r.GetSession(), m.GetAt().AsDuration().Round(time.Second / 10).String(), r.GetOf().GetUser(), r.GetOf().GetNodeName(), m.GetLine()}
				},
			}.print(e.stdout, f)
		}),
	}
	c.Flags().StringVar(&since, "since", "", "began not before this time, or this long ago")
	c.Flags().StringVar(&until, "until", "", "began not after this time, or this long ago")
	c.Flags().StringVar(&user, "user", "", "person")
	c.Flags().StringVar(&node, "node", "", "node, by name or id")
	c.Flags().Int32Var(&limit, "limit", 100, "how many at most")
	addFormat(c, &f)
	return c
}

func recordingsHold(e *env) *cobra.Command {
	var (
		reason  string
		release bool
	)
	c := &cobra.Command{
		Use:   "hold SESSION (--reason TEXT | --release)",
		Short: "Keep a recording from being removed, or let it go",
		Args:  want("SESSION"),
		RunE: verb(func(ctx context.Context, args []string) error {
			if (reason == "") != release {
				return fault.New(fault.BadInput, "want --reason TEXT to hold it, or --release to let it go")
			}
			_, err := e.archive().HoldRecording(ctx, connect.NewRequest(&accessdv1.HoldRecordingRequest{Session: args[0], Reason: reason}))
			return err
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why it is held")
	c.Flags().BoolVar(&release, "release", false, "let it go")
	return c
}

func recordingsRemove(e *env) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "rm SESSION --reason TEXT",
		Short: "Remove a recording; the log keeps its digest and the reason",
		Args:  want("SESSION"),
		RunE: verb(func(ctx context.Context, args []string) error {
			_, err := e.archive().RemoveRecording(ctx, connect.NewRequest(&accessdv1.RemoveRecordingRequest{Session: args[0], Reason: reason}))
			return err
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why it is removed")
	_ = c.MarkFlagRequired("reason") // the flag exists
	return c
}
