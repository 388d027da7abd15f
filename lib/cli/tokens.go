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
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

func tokensCommand(e *env) *cobra.Command {
	return noun("tokens", "Manage join tokens", tokensAdd(e), tokensList(e), tokensRemove(e))
}

type tokensAddOptions struct {
	role, labels string
	ttl          time.Duration
	uses         int32
	names        []string
	show         tokenOutput
}

// tokenOutput says how a verb shows a token that it made.
type tokenOutput struct {
	quiet  bool
	format format
}

func (o *tokenOutput) flags(c *cobra.Command) {
	c.Flags().BoolVar(&o.quiet, "quiet", false, "print the token and no words")
	addFormat(c, &o.format)
}

func (o *tokenOutput) check() error {
	if o.quiet && o.format != formatTable {
		return fault.New(fault.BadInput, "--quiet and --format contradict each other")
	}
	return nil
}

// madeToken is a token without its secret, of any kind.
type madeToken interface {
	GetId() string
	GetExpires() *timestamppb.Timestamp
}

// showToken shows a new token, the one time there is; words tell people what to do
// with it.
func (e *env) showToken(o tokenOutput, t madeToken, secret string, words func()) error {
	if o.format != formatTable {
		return printValue(e.stdout, o.format, map[string]any{"id": t.GetId(), "token": secret, "expires": t.GetExpires().AsTime()})
	}
	if !o.quiet {
		words()
	}
	_, err := fmt.Fprintln(e.stdout, secret)
	return err
}

func tokensAdd(e *env) *cobra.Command {
	var o tokensAddOptions
	c := &cobra.Command{
		Use:   "add [--role node|proxy] [--ttl D] [--uses N]",
		Short: "Make a token with which a machine joins the cluster",
		Args:  want(),
		RunE:  verb(func(ctx context.Context, _ []string) error { return e.addToken(ctx, o) }),
	}
	c.Flags().StringVar(&o.role, "role", "node", "what may join: node or proxy")
	c.Flags().DurationVar(&o.ttl, "ttl", time.Hour, "how long it may be used")
	c.Flags().Int32Var(&o.uses, "uses", 1, "how often it may be used")
	c.Flags().StringSliceVar(&o.names, "names", nil, "names it may give away (default any free one)")
	c.Flags().StringVar(&o.labels, "labels", "", "labels whoever joins must carry, key=value,…")
	o.show.flags(c)
	return c
}

func (e *env) addToken(ctx context.Context, o tokensAddOptions) error {
	labels, err := parsePairs("labels", o.labels)
	if err != nil {
		return err
	}
	if err := o.show.check(); err != nil {
		return err
	}
	if o.uses < 1 {
		return fault.New(fault.BadInput, "--uses: %d: want at least 1", o.uses)
	}
	res, err := e.tokens().AddToken(ctx, connect.NewRequest(&accessdv1.AddTokenRequest{
		Role: o.role, Ttl: durationpb.New(o.ttl), Uses: o.uses, Names: o.names, Labels: labels,
	}))
	if err != nil {
		return err
	}
	t := res.Msg.GetToken()
	return e.showToken(o.show, t, res.Msg.GetSecret(), func() {
		e.say("a %s joins with this token before %s:", o.role, localTime(t.GetExpires()))
		e.say("  accessd start --roles %s --join PROXY:PORT --token TOKEN --ca-pin %s", o.role, "$(accessd ca pin)")
		if o.role == "node" {
			e.say("or, where there is only ssh and sshd, by typing it when this asks:")
			e.say("  ssh -p PORT -i KEY NAME@PROXY join > KEY-cert.pub")
		}
	})
}

func tokensList(e *env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "ls",
		Short: "List tokens, without their secrets",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			res, err := e.tokens().ListTokens(ctx, connect.NewRequest(&accessdv1.ListTokensRequest{}))
			if err != nil {
				return err
			}
			return list[*accessdv1.Token]{
				head: []string{"ID", "ROLE", "USES LEFT", "EXPIRES", "NAMES", "LABELS"},
				rows: res.Msg.GetTokens(),
				row: func(t *accessdv1.Token) []string {
					return []string{t.GetId(), t.GetRole(), strconv.Itoa(int(t.GetUsesLeft())), localTime(t.GetExpires()), strings.Join(t.GetNames(), ","), pairs(t.GetLabels())}
				},
			}.print(e.stdout, f)
		}),
	}
	addFormat(c, &f)
	return c
}

func tokensRemove(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "rm ID",
		Short: "Remove a token",
		Args:  want("ID"),
		RunE: verb(func(ctx context.Context, args []string) error {
			id, _, _ := strings.Cut(args[0], ".") // a whole token names itself too
			_, err := e.tokens().RemoveToken(ctx, connect.NewRequest(&accessdv1.RemoveTokenRequest{Id: id}))
			return err
		}),
	}
}
