package cli

import (
	"context"
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

// maxPEM bounds a file of certificates, in bytes.
const maxPEM = 64 << 10

func (e *env) bots() accessdv1connect.BotServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewBotServiceClient)
}

func botsCommand(e *env) *cobra.Command {
	return noun("bots", "Manage bots: users without a person", botsAdd(e), botsList(e))
}

func botsAdd(e *env) *cobra.Command {
	var (
		roles, logins, claims []string
		ttl, tokenTTL         time.Duration
		ca                    string
		f                     format
	)
	rules := &accessdv1.BotRules{}
	c := &cobra.Command{
		Use:   "add NAME --roles R,…",
		Short: "Create a bot and print the token with which it comes in once",
		Long: "Create a bot. Without --issuer its token, which is printed alone on stdout, buys its first certificate:\n" +
			"ssh NAME@PROXY login; then \"ssh NAME@PROXY renew\" gives the next. With --issuer it comes with an ID token of\n" +
			"that OpenID provider instead, each time: see docs/bots.md.",
		Args: want("NAME"),
		RunE: verb(func(ctx context.Context, args []string) error {
			var err error
			if rules.Claims, err = parseClaims(claims); err != nil {
				return err
			}
			if ca != "" {
				pem, err := readBounded(ca, maxPEM)
				if err != nil {
					return err
				}
				rules.Ca = string(pem)
			}
			rules.Ttl = durationpb.New(ttl)
			req := &accessdv1.AddBotRequest{Name: args[0], Roles: roles, Logins: logins, Rules: rules}
			if tokenTTL != 0 {
				req.TokenTtl = durationpb.New(tokenTTL)
			}
			res, err := e.bots().AddBot(ctx, connect.NewRequest(req))
			if err != nil {
				return err
			}
			return e.printBot(f, res.Msg)
		}),
	}
	c.Flags().StringSliceVar(&roles, "roles", nil, "its roles")
	c.Flags().StringSliceVar(&logins, "logins", nil, "accounts it may use on nodes, where its roles say so")
	c.Flags().DurationVar(&ttl, "ttl", 0, "how long a certificate of its is good (default 10m)")
	c.Flags().DurationVar(&tokenTTL, "token-ttl", 0, "how long the token is good")
	c.Flags().StringVar(&rules.Issuer, "issuer", "", "OpenID provider whose ID tokens it comes with")
	c.Flags().StringVar(&rules.Audience, "audience", "", "who those tokens must be for")
	c.Flags().StringArrayVar(&claims, "claim", nil, "CLAIM=VALUE that those tokens must have; * stands for anything; again for another")
	c.Flags().StringVar(&ca, "issuer-ca", "", "PEM file with the authority of the provider's TLS (default the system's)")
	_ = c.MarkFlagRequired("roles") // the flag exists
	addFormat(c, &f)
	return c
}

// printBot prints what came of adding a bot: the token alone, or all.
func (e *env) printBot(f format, m *accessdv1.AddBotResponse) error {
	if f != formatTable {
		return printMessage(e.stdout, f, m)
	}
	name := m.GetBot().GetName()
	if m.GetToken() == "" {
		e.say("bot %q added; it comes with ID tokens of %s", name, m.GetBot().GetRules().GetIssuer())
		return nil
	}
	e.say("bot %q added; its token is good once, until %s:", name, localTime(m.GetTokenExpires()))
	_, err := e.stdout.Write([]byte(m.GetToken() + "\n"))
	return err
}

// parseClaims reads "CLAIM=VALUE" given to --claim.
func parseClaims(list []string) (map[string]*accessdv1.Values, error) {
	out := map[string]*accessdv1.Values{}
	for _, s := range list {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" || value == "" {
			return nil, fault.New(fault.BadInput, "--claim: %q: want CLAIM=VALUE", s)
		}
		if out[name] == nil {
			out[name] = &accessdv1.Values{}
		}
		out[name].Values = append(out[name].Values, value)
	}
	return out, nil
}

func botsList(e *env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "ls",
		Short: "List bots",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			res, err := e.bots().ListBots(ctx, connect.NewRequest(&accessdv1.ListBotsRequest{}))
			if err != nil {
				return err
			}
			return list[*accessdv1.Bot]{
				head: []string{"NAME", "ROLES", "ISSUER", "TTL", "RENEWED", "FROM"},
				rows: res.Msg.GetBots(),
				row: func(b *accessdv1.Bot) []string {
					return []string{
						b.GetName(), strings.Join(b.GetRoles(), ","), b.GetRules().GetIssuer(), b.GetRules().GetTtl().AsDuration().String(),
						localTime(b.GetRenewed()), b.GetSource(),
					}
				},
			}.print(e.stdout, f)
		}),
	}
	addFormat(c, &f)
	return c
}
