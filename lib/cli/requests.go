package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
)

func requestsCommand(e *env) *cobra.Command {
	return noun("requests", "Ask for roles for a while, and review what others ask for",
		requestsCreate(e), requestsList(e), requestsShow(e), requestsWatch(e),
		requestsReview(e, services.VerdictApprove, "Approve a request"), requestsReview(e, services.VerdictDeny, "Deny a request, or end one that was approved"),
		requestsAssume(e), requestsDrop(e))
}

func (e *env) requests() accessdv1connect.RequestServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewRequestServiceClient)
}

// asPerson refuses what only a person can do, of whom there is none at the admin
// socket.
func (e *env) asPerson(verb string) error {
	if e.call != nil {
		return nil
	}
	return fault.New(fault.BadInput, "a person does this, and at the admin socket there is none").WithHint("ssh USER@PROXY %s", verb)
}

type requestsCreateOptions struct {
	roles  []string
	node   string
	reason string
	ttl    time.Duration
	wait   bool
	format format
}

func requestsCreate(e *env) *cobra.Command {
	var o requestsCreateOptions
	c := &cobra.Command{
		Use:   "create --roles R,… [--node NODE] --reason TEXT [--ttl D] [--wait]",
		Short: "Ask for roles, everywhere or on one node",
		Long: "Ask for roles, which the section \"requests\" of your own roles lets you ask for.\n" +
			"With --node they are for that node alone; --roles may then be left out when only\n" +
			"one is possible. The time runs from the approval.",
		Args: want(),
		RunE: verb(func(ctx context.Context, _ []string) error { return e.createRequest(ctx, o) }),
	}
	c.Flags().StringSliceVar(&o.roles, "roles", nil, "roles to ask for")
	c.Flags().StringVar(&o.node, "node", "", "name, id or labels of the only node they are for")
	c.Flags().StringVar(&o.reason, "reason", "", "why; reviewers and the audit log read it")
	c.Flags().DurationVar(&o.ttl, "ttl", 0, "for how long (default as long as the rules allow, at most 4h)")
	c.Flags().BoolVar(&o.wait, "wait", false, "wait until it is decided")
	addFormat(c, &o.format)
	return c
}

func (e *env) createRequest(ctx context.Context, o requestsCreateOptions) error {
	if err := e.asPerson("requests create"); err != nil {
		return err
	}
	if o.reason == "" {
		return fault.New(fault.BadInput, "--reason is missing").WithHint("say why; reviewers read it")
	}
	req := &accessdv1.CreateRequestRequest{Roles: o.roles, Node: o.node, Reason: o.reason}
	if o.ttl != 0 {
		req.Ttl = durationpb.New(o.ttl)
	}
	res, err := e.requests().CreateRequest(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	r := res.Msg.GetRequest()
	if err := requestList(r).print(e.stdout, o.format); err != nil || !o.wait {
		return err
	}
	return e.awaitRequest(ctx, r.GetId())
}

// awaitRequest waits until the request is decided; what is not approved is an
// error.
func (e *env) awaitRequest(ctx context.Context, id string) error {
	e.say("accessd: waiting for the reviewers")
	return e.watchRequests(ctx, func(r *accessdv1.AccessRequest) (bool, error) {
		if r.GetId() != id {
			return false, nil
		}
		switch services.RequestState(r.GetState()) {
		case services.RequestPending:
			return false, nil
		case services.RequestApproved:
			e.sayApproved(r)
			return true, nil
		case services.RequestDenied, services.RequestDropped, services.RequestExpired:
		}
		return true, fault.New(fault.Denied, "the request was not approved: %s", strings.TrimSpace(r.GetState()+" "+lastNote(r)))
	})
}

func lastNote(r *accessdv1.AccessRequest) string {
	if n := len(r.GetReviews()); n > 0 {
		if v := r.GetReviews()[n-1]; v.GetNote() != "" {
			return fmt.Sprintf("by %s: %s", v.GetReviewer(), v.GetNote())
		}
		return "by " + r.GetReviews()[n-1].GetReviewer()
	}
	return ""
}

// sayApproved says how r's person gets what it gives.
func (e *env) sayApproved(r *accessdv1.AccessRequest) {
	e.say("accessd: approved until %s; the next sign-in of %s brings it along, and so does", localTime(r.GetUntil()), r.GetUser())
	e.say("  ssh -A %s@PROXY requests assume %s", r.GetUser(), r.GetId())
}

// watchRequests calls fn with every request there is and every change, until fn
// says that it is done.
func (e *env) watchRequests(ctx context.Context, fn func(*accessdv1.AccessRequest) (done bool, err error)) error {
	stream, err := e.requests().WatchRequests(ctx, connect.NewRequest(&accessdv1.WatchRequestsRequest{}))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // whatever it says, nothing more is read
	for stream.Receive() {
		if r := stream.Msg().GetRequest(); r != nil {
			if done, err := fn(r); done || err != nil {
				return err
			}
		}
	}
	return stream.Err()
}

func requestsList(e *env) *cobra.Command {
	var (
		all bool
		f   format
	)
	c := &cobra.Command{
		Use:   "ls [--all]",
		Short: "List your requests and those you may review",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			res, err := e.requests().ListRequests(ctx, connect.NewRequest(&accessdv1.ListRequestsRequest{All: all}))
			if err != nil {
				return err
			}
			return requestList(res.Msg.GetRequests()...).print(e.stdout, f)
		}),
	}
	c.Flags().BoolVar(&all, "all", false, "also those that have ended, of the last 30 days")
	addFormat(c, &f)
	return c
}

func requestList(rows ...*accessdv1.AccessRequest) list[*accessdv1.AccessRequest] {
	return list[*accessdv1.AccessRequest]{
		head: []string{"ID", "USER", "ROLES", "NODE", "FOR", "STATE", "UNTIL", "MISSING", "REASON"},
		rows: rows,
		row: func(r *accessdv1.AccessRequest) []string {
			until := r.GetUntil()
			if until == nil {
				until = r.GetDeadline()
			}
			return []string{
				r.GetId(), r.GetUser(), strings.Join(r.GetRoles(), ","), r.GetNodeName(), r.GetTtl().AsDuration().String(),
				r.GetState(), localTime(until), strings.Join(r.GetMissing(), "; "), r.GetReason(),
			}
		},
	}
}

func requestsShow(e *env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "show ID",
		Short: "Show a request and what was said to it",
		Args:  want("ID"),
		RunE: verb(func(ctx context.Context, args []string) error {
			res, err := e.requests().GetRequest(ctx, connect.NewRequest(&accessdv1.GetRequestRequest{Id: args[0]}))
			if err != nil {
				return err
			}
			r := res.Msg.GetRequest()
			if f != formatTable {
				return printMessage(e.stdout, f, r)
			}
			return e.showRequest(r)
		}),
	}
	addFormat(c, &f)
	return c
}

func (e *env) showRequest(r *accessdv1.AccessRequest) error {
	for _, line := range [][2]string{
		{"Request", r.GetId()},
		{"User", r.GetUser()},
		{"Roles", strings.Join(r.GetRoles(), ", ")},
		{"Node", r.GetNodeName()},
		{"For", r.GetTtl().AsDuration().String()},
		{"Reason", r.GetReason()},
		{"State", r.GetState()},
		{"Missing", strings.Join(r.GetMissing(), "; ")},
		{"Created", localTime(r.GetCreated())},
		{"Deadline", localTime(r.GetDeadline())},
		{"Until", localTime(r.GetUntil())},
		{"Ended", localTime(r.GetEnded())},
		{"Ended by", r.GetEndedBy()},
	} {
		if line[1] == "" {
			continue
		}
		if _, err := fmt.Fprintf(e.stdout, "%-9s %s\n", line[0], events.Display(line[1])); err != nil {
			return err
		}
	}
	if len(r.GetReviews()) == 0 {
		return nil
	}
	rows := make([][]string, len(r.GetReviews()))
	for i, v := range r.GetReviews() {
		rows[i] = []string{v.GetReviewer(), v.GetVerdict(), localTime(v.GetTime()), v.GetProof(), v.GetFingerprint(), v.GetNote()}
	}
	fmt.Fprintln(e.stdout)
	return printTable(e.stdout, []string{"REVIEWER", "VERDICT", "WHEN", "PROOF", "KEY", "NOTE"}, rows)
}

func requestsWatch(e *env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "watch",
		Short: "Show requests as they come and change",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			if f == formatYAML {
				return fault.New(fault.BadInput, "--format: want table or json, one line for each change")
			}
			return e.watchRequests(ctx, func(r *accessdv1.AccessRequest) (bool, error) {
				if f == formatJSON {
					b, err := messageJSON(r)
					if err != nil {
						return false, err
					}
					return false, json.NewEncoder(e.stdout).Encode(b) // without the blanks that protojson puts in at random
				}
				row := requestList().row(r)
				for i := range row {
					row[i] = dash(events.Display(row[i]))
				}
				_, err := fmt.Fprintln(e.stdout, strings.Join(row, "  "))
				return false, err
			})
		}),
	}
	addFormat(c, &f)
	return c
}

func requestsDrop(e *env) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "drop ID [--reason TEXT]",
		Short: "End your request, and what it gave",
		Args:  want("ID"),
		RunE: verb(func(ctx context.Context, args []string) error {
			_, err := e.requests().DropRequest(ctx, connect.NewRequest(&accessdv1.DropRequestRequest{Id: args[0], Reason: reason}))
			return err
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "for the audit log")
	return c
}
