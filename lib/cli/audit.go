package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
)

func auditCommand(e *env) *cobra.Command {
	return noun("audit", "Read and prove the audit log", auditList(e), auditTail(e), auditExport(e), auditVerify(e), auditProve(e), auditCheck(e), auditRotate(e), auditArchive(e))
}

// auditFilter are the flags that select events.
type auditFilter struct {
	since, until               string
	user, node, event, session string
	login, address, text       string
	labels                     []string
	success, failed            bool
}

func (o *auditFilter) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.since, "since", "", "not before this time, or this long ago")
	c.Flags().StringVar(&o.until, "until", "", "before this time, or this long ago")
	c.Flags().StringVar(&o.user, "user", "", "person")
	c.Flags().StringVar(&o.login, "login", "", "operating-system account")
	c.Flags().StringVar(&o.node, "node", "", "node, by name or id")
	c.Flags().StringArrayVar(&o.labels, "label", nil, "label of the node, key=value or a key; repeat it for more, which all must be there")
	c.Flags().StringVar(&o.address, "address", "", "client's address: IP, IP:PORT or a network such as 10.0.0.0/8")
	c.Flags().StringVar(&o.event, "event", "", `event, such as session.start, or a family, such as "session.*"`)
	c.Flags().StringVar(&o.session, "session", "", "session id")
	c.Flags().StringVar(&o.text, "text", "", "words that all occur in the event, in any case")
	c.Flags().BoolVar(&o.success, "success", false, "only what went well")
	c.Flags().BoolVar(&o.failed, "failed", false, "only what did not")
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
	if o.success && o.failed {
		return nil, fault.New(fault.BadInput, "--success and --failed exclude each other")
	}
	m := &accessdv1.EventFilter{
		Since: since, Until: until, User: o.user, Login: o.login, Node: o.node, Labels: o.labels,
		Address: o.address, Event: o.event, Session: o.session, Text: o.text,
	}
	if o.success || o.failed {
		m.Success = &o.success
	}
	return m, nil
}

// maxRemoteEvents bounds a list of events at a proxy, which holds all of it.
const maxRemoteEvents = 1000

func auditList(e *env) *cobra.Command {
	var (
		o auditFilter
		p auditPage
		f format
	)
	c := &cobra.Command{
		Use:   "ls",
		Short: "List events, the newest that match, oldest first",
		Long: "List the newest events that match, oldest first.\n\n" +
			"The last line on stderr says where the next page begins: --before for older events,\n" +
			"--after for those that came into the log later, so that a script can go on there.\n\n" +
			severalLogs,
		Args: want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			filter, err := o.message()
			if err != nil {
				return err
			}
			if err := p.check(e); err != nil {
				return err
			}
			found, err := e.listEvents(ctx, filter, &p)
			if err != nil {
				return err
			}
			if err := p.sort(found); err != nil {
				return err
			}
			if err := e.printEvents(found, f); err != nil {
				return err
			}
			p.say(e)
			return p.away.err()
		}),
	}
	o.flags(c)
	p.flags(c)
	addFormat(c, &f)
	return c
}

// severalLogs says in help texts what the verbs do that read all logs.
const severalLogs = "Where there are several authorities, the events of all are shown. One that cannot be\n" +
	"asked is named on stderr, and the exit code is 4."

// auditPage are the flags that say which part of a list is shown, and how.
type auditPage struct {
	limit         int32
	before, after string
	order         string
	reverse       bool
	away          absence // from the list, once it is there
}

func (p *auditPage) flags(c *cobra.Command) {
	c.Flags().Int32Var(&p.limit, "limit", 1000, "how many at most")
	c.Flags().StringVar(&p.before, "before", "", "older ones than this page, as the page said")
	c.Flags().StringVar(&p.after, "after", "", "the oldest that came after this page, as the page said")
	c.Flags().StringVar(&p.order, "order", "time", "time, or log for the order in which they came into it")
	_ = c.Flags().SetAnnotation("order", valuesAnnotation, []string{"time", "log"}) // the flag exists
	c.Flags().BoolVar(&p.reverse, "reverse", false, "newest first")
}

func (p *auditPage) check(e *env) error {
	switch {
	case p.limit < 1:
		return fault.New(fault.BadInput, "--limit: %d: want at least 1", p.limit)
	case e.call != nil && p.limit > maxRemoteEvents:
		return fault.New(fault.BadInput, "--limit: %d: want at most %d at a proxy", p.limit, maxRemoteEvents).WithHint("page with --before")
	case p.before != "" && p.after != "":
		return fault.New(fault.BadInput, "--before and --after exclude each other")
	case p.order != "time" && p.order != "log":
		return fault.New(fault.BadInput, "--order: %q: want time or log", p.order)
	}
	return nil
}

// sort brings found, which is in the order of the log, into the order asked for.
func (p *auditPage) sort(found [][]byte) error {
	if p.order == "time" {
		times := make(map[*byte]time.Time, len(found))
		for _, b := range found {
			ev, err := events.ParseEvent(b)
			if err != nil {
				return err
			}
			times[&b[0]] = ev.Time
		}
		slices.SortStableFunc(found, func(a, b []byte) int { return times[&a[0]].Compare(times[&b[0]]) })
	}
	if p.reverse {
		slices.Reverse(found)
	}
	return nil
}

// say says where the pages beside this one are; not to a person who has seen all
// there is.
func (p *auditPage) say(e *env) {
	if p.before == "" && isTerminal(e.stderr) {
		return
	}
	e.sayPlaces(p.before, p.after)
}

func (e *env) sayPlaces(before, after string) {
	var places []string
	if before != "" {
		places = append(places, "older: --before "+before)
	}
	if after != "" {
		places = append(places, "newer: --after "+after)
	}
	if len(places) > 0 {
		e.say("%s", events.Display(strings.Join(places, "   ")))
	}
}

// listEvents collects pages until p.limit events are there or no more match. It
// makes the places in p those of the pages beside.
func (e *env) listEvents(ctx context.Context, filter *accessdv1.EventFilter, p *auditPage) (found [][]byte, err error) {
	var older, newer string
	req := &accessdv1.ListEventsRequest{Filter: filter, Limit: p.limit, Before: p.before, After: p.after}
	forward := p.after != ""
	for first := true; ; first = false {
		res, err := e.audit().ListEvents(ctx, connect.NewRequest(req))
		if err != nil {
			return nil, err
		}
		p.away.add(res.Msg.GetMissing())
		p.away.note(e, res.Msg.GetArchived())
		page := res.Msg.GetEvents()
		if first || !forward {
			older = res.Msg.GetNextBefore()
		}
		if first || forward {
			newer = res.Msg.GetNextAfter()
		}
		if req.Limit -= int32(len(page)); forward {
			req.After, found = newer, append(found, page...)
		} else {
			req.Before, found = older, append(page, found...)
		}
		if req.Limit <= 0 || len(page) == 0 || !forward && older == "" {
			p.before, p.after = older, newer
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
	case events.AuditRotate, events.AuditArchive, events.AuthorityDelete:
		return []string{"period", "to", "entries", "log_lost", "reason"}
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
		Long:  "Follow events as they are logged.\n\n" + severalLogs,
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
	var away absence
	for stream.Receive() {
		away.tell(e, stream.Msg().GetMissing())
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
		return away.err()
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
