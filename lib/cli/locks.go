package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
)

func (e *env) locks() accessdv1connect.LockServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewLockServiceClient)
}

func locksCommand(e *env) *cobra.Command {
	return noun("locks", "Lock people, nodes and credentials out", locksAdd(e), locksList(e), locksRemove(e), locksKRL(e))
}

type locksAddOptions struct {
	target  accessdv1.LockTarget
	serial  string
	message string
	ttl     time.Duration
	format  format
}

func locksAdd(e *env) *cobra.Command {
	var o locksAddOptions
	c := &cobra.Command{
		Use:   "add [--user NAME] [--role NAME] [--login NAME] [--node NODE] [--address NETWORK] [--serial N] [--request ID]",
		Short: "Lock out whatever all given flags describe, and end what is there of it",
		Long: "Lock out whatever all given flags describe: sessions, forwards, connections and\n" +
			"tunnels end within a second, and nothing of it is let in until the lock has\n" +
			"expired or is removed. It prints the lock's id.",
		Args: want(),
		RunE: verb(func(ctx context.Context, _ []string) error { return e.addLock(ctx, &o) }),
	}
	c.Flags().StringVar(&o.target.User, "user", "", "a person or bot")
	c.Flags().StringVar(&o.target.Role, "role", "", "everybody who holds this role")
	c.Flags().StringVar(&o.target.Login, "login", "", "an account on nodes")
	c.Flags().StringVar(&o.target.Node, "node", "", "a node, by name or id")
	c.Flags().StringVar(&o.target.Address, "address", "", "an address, or a network such as 10.0.0.0/8, that somebody comes from")
	c.Flags().StringVar(&o.serial, "serial", "", "a certificate, by its serial number")
	c.Flags().StringVar(&o.target.Request, "request", "", "what an access request has brought, by its id")
	c.Flags().StringVar(&o.message, "message", "", "shown to whom it keeps out")
	c.Flags().DurationVar(&o.ttl, "ttl", 0, "how long it holds (default until it is removed)")
	addFormat(c, &o.format)
	return c
}

func (e *env) addLock(ctx context.Context, o *locksAddOptions) error {
	req := &accessdv1.AddLockRequest{Target: &o.target, Message: o.message}
	if o.serial != "" {
		n, err := strconv.ParseUint(o.serial, 10, 64)
		if err != nil || n == 0 {
			return fault.New(fault.BadInput, "--serial: %q: want the decimal number that \"ssh-keygen -L\" shows", o.serial)
		}
		req.Target.Serial = n
	}
	if o.ttl < 0 {
		return fault.New(fault.BadInput, "--ttl: %v: want a time span above zero", o.ttl)
	}
	if o.ttl > 0 {
		req.Ttl = durationpb.New(o.ttl)
	}
	res, err := e.locks().AddLock(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	for _, note := range res.Msg.GetNotes() {
		e.say("accessd: %s", note)
	}
	if o.format != formatTable {
		return printValue(e.stdout, o.format, res.Msg.GetLock())
	}
	_, err = fmt.Fprintln(e.stdout, res.Msg.GetLock().GetId())
	return err
}

func locksList(e *env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "ls",
		Short: "List the locks that hold",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			res, err := e.locks().ListLocks(ctx, connect.NewRequest(&accessdv1.ListLocksRequest{}))
			if err != nil {
				return err
			}
			return list[*accessdv1.Lock]{
				head: []string{"ID", "TARGET", "EXPIRES", "BY", "MESSAGE"},
				rows: res.Msg.GetLocks(),
				row: func(l *accessdv1.Lock) []string {
					expires := "never"
					if l.GetExpires() != nil {
						expires = localTime(l.GetExpires())
					}
					return []string{l.GetId(), lockTarget(l.GetTarget()), expires, l.GetBy(), l.GetMessage()}
				},
			}.print(e.stdout, f)
		}),
	}
	addFormat(c, &f)
	return c
}

// lockTarget returns what a lock is about, in the words of its flags.
func lockTarget(t *accessdv1.LockTarget) string {
	var out []string
	serial := ""
	if t.GetSerial() != 0 {
		serial = strconv.FormatUint(t.GetSerial(), 10)
	}
	for _, f := range []struct{ name, value string }{
		{"user", t.GetUser()},
		{"role", t.GetRole()},
		{"login", t.GetLogin()},
		{"node", t.GetNode()},
		{"address", t.GetAddress()},
		{"serial", serial},
		{"request", t.GetRequest()},
	} {
		if f.value != "" {
			out = append(out, f.name+"="+f.value)
		}
	}
	return strings.Join(out, " ")
}

func locksRemove(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "rm ID",
		Short: "Remove a lock, and let in again",
		Args:  want("ID"),
		RunE: verb(func(ctx context.Context, args []string) error {
			_, err := e.locks().RemoveLock(ctx, connect.NewRequest(&accessdv1.RemoveLockRequest{Id: args[0]}))
			return err
		}),
	}
}

func locksKRL(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "krl",
		Short: "Print the locks as a revocation list for sshd's RevokedKeys",
		Long: "Print a signed key revocation list in OpenSSH's form: locked people and\n" +
			"certificates, for an sshd that trusts the cluster's authorities itself. A plain\n" +
			"sshd node fetches its own with \"ssh NODE@PROXY krl\".",
		Args: want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			res, err := e.locks().ReadKRL(ctx, connect.NewRequest(&accessdv1.ReadKRLRequest{}))
			if err != nil {
				return err
			}
			_, err = e.stdout.Write(res.Msg.GetKrl())
			return err
		}),
	}
}
