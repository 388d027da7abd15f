package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
)

func auditCommand(e *env) *cobra.Command {
	return noun("audit", "Read and prove the audit log", auditList(e), auditTail(e), auditVerify(e))
}

// auditFilter are the flags that select events.
type auditFilter struct {
	since, until               string
	user, node, event, session string
}

func (o *auditFilter) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.since, "since", "", "not before this time, or this long ago")
	c.Flags().StringVar(&o.until, "until", "", "not after this time, or this long ago")
	c.Flags().StringVar(&o.user, "user", "", "person")
	c.Flags().StringVar(&o.node, "node", "", "node, by name or id")
	c.Flags().StringVar(&o.event, "event", "", `event, such as session.start, or a family, such as "session.*"`)
	c.Flags().StringVar(&o.session, "session", "", "session id")
}

func (o *auditFilter) message() (*accessdv1.EventFilter, error) {
	now := time.Now()
	since, err := parseWhen("since", o.since, now)
	if err != nil {
		return nil, err
	}
	until, err := parseWhen("until", o.until, now)
	if err != nil {
		return nil, err
	}
	return &accessdv1.EventFilter{Since: since, Until: until, User: o.user, Node: o.node, Event: o.event, Session: o.session}, nil
}

// maxRemoteEvents bounds a list of events at a proxy, which holds all of it.
const maxRemoteEvents = 1000

func auditList(e *env) *cobra.Command {
	var (
		o     auditFilter
		limit int32
		f     format
	)
	c := &cobra.Command{
		Use:   "ls",
		Short: "List events, the newest that match, oldest first",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			filter, err := o.message()
			if err != nil {
				return err
			}
			if limit < 1 {
				return fault.New(fault.BadInput, "--limit: %d: want at least 1", limit)
			}
			if e.call != nil && limit > maxRemoteEvents {
				return fault.New(fault.BadInput, "--limit: %d: want at most %d at a proxy", limit, maxRemoteEvents).WithHint("page with --until")
			}
			found, err := e.listEvents(ctx, filter, limit)
			if err != nil {
				return err
			}
			return e.printEvents(found, f)
		}),
	}
	o.flags(c)
	c.Flags().Int32Var(&limit, "limit", 1000, "how many at most")
	addFormat(c, &f)
	return c
}

// listEvents collects pages until limit events are there or no more match.
func (e *env) listEvents(ctx context.Context, filter *accessdv1.EventFilter, limit int32) ([][]byte, error) {
	var (
		found  [][]byte
		before string
	)
	for {
		res, err := e.audit().ListEvents(ctx, connect.NewRequest(&accessdv1.ListEventsRequest{
			Filter: filter, Limit: limit - int32(len(found)), Before: before,
		}))
		if err != nil {
			return nil, err
		}
		found = append(res.Msg.GetEvents(), found...)
		before = res.Msg.GetNextBefore()
		if before == "" || int32(len(found)) >= limit {
			return found, nil
		}
	}
}

func (e *env) printEvents(found [][]byte, f format) error {
	if f != formatTable {
		raw := make([]json.RawMessage, len(found))
		for i, b := range found {
			raw[i] = b
		}
		return printValue(e.stdout, f, raw)
	}
	rows := make([][]string, 0, len(found))
	for _, b := range found {
		ev, err := events.ParseEvent(b)
		if err != nil {
			return err
		}
		rows = append(rows, eventRow(ev))
	}
	return printTable(e.stdout, []string{"TIME", "EVENT", "OK", "USER", "LOGIN", "NODE", "FROM", "DETAIL"}, rows)
}

// eventRow shows an event in one line; --format json has all of it.
func eventRow(ev events.Event) []string {
	return []string{
		ev.Time.Local().Format("2006-01-02 15:04:05.000"), string(ev.Name), yes(ev.Success),
		string(ev.User), string(ev.Login), node(ev), ev.AddrRemote, detail(ev),
	}
}

// node returns the node that ev is about. Where that is a plain sshd, it is not
// the machine that wrote ev.
func node(ev events.Event) string {
	if name, ok := ev.Fields["node_name"].(string); ok && name != "" {
		return name
	}
	return ev.ServerHostname
}

// detail puts the fields that tell most about an event into one phrase.
func detail(ev events.Event) string {
	var parts []string
	if ev.Error != "" {
		parts = append(parts, ev.Error)
	}
	for _, k := range telling(ev.Name) {
		if v, ok := ev.Fields[k]; ok && v != "" {
			parts = append(parts, fmt.Sprintf("%s=%v", k, v))
		}
	}
	return strings.Join(parts, " ")
}

// telling returns the fields of an event that tell most.
func telling(name events.Name) []string {
	switch name {
	case events.SFTP, events.SCP:
		return []string{"action", "path", "target_path", "bytes_read", "bytes_written", "reason"}
	case events.Port:
		return []string{"state", "action", "target", "listen", "bytes_in", "bytes_out", "reason"}
	case events.SessionJoin, events.SessionLeave:
		return []string{"mode", "participant", "reason"}
	case events.NodeHostKey:
		return []string{"action", "fingerprint", "reason"}
	case events.AccountCreate, events.AccountDelete:
		return []string{"groups", "keep", "reason"}
	case events.UserKeyCreate, events.UserKeyDelete:
		return []string{"name", "fingerprint", "comment", "reason"}
	default:
		return []string{"command", "action", "rule", "kind", "exit_code", "exit_signal", "reason", "method", "cert_type", "name", "token_id"}
	}
}

func auditTail(e *env) *cobra.Command {
	var (
		o       auditFilter
		backlog int32
		f       format
	)
	c := &cobra.Command{
		Use:   "tail",
		Short: "Follow events as they are logged",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			filter, err := o.message()
			if err != nil {
				return err
			}
			return e.tail(ctx, &accessdv1.TailEventsRequest{Filter: filter, Backlog: backlog}, f)
		}),
	}
	o.flags(c)
	c.Flags().Int32VarP(&backlog, "lines", "n", 10, "past events to begin with")
	addFormat(c, &f)
	return c
}

// tail prints events until ctx ends; each is one line, also as JSON.
func (e *env) tail(ctx context.Context, req *accessdv1.TailEventsRequest, f format) error {
	stream, err := e.audit().TailEvents(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // what went wrong is in stream.Err
	for stream.Receive() {
		for _, b := range stream.Msg().GetEvents() {
			line := string(b)
			if f == formatTable {
				ev, err := events.ParseEvent(b)
				if err != nil {
					return err
				}
				line = tailLine(ev)
			}
			if _, err := fmt.Fprintln(e.stdout, line); err != nil {
				return err
			}
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return stream.Err()
}

func tailLine(ev events.Event) string {
	row := eventRow(ev)
	for i := range row {
		row[i] = dash(events.Display(row[i]))
	}
	return fmt.Sprintf("%s  %-16s %-3s %-10s %-8s %-12s %-21s %s", row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7])
}
