package cli

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/durationpb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/client"
	"github.com/accessd/accessd/lib/rpc"
)

func apiTokensCommand(e *env) *cobra.Command {
	return noun("api-tokens", "Manage tokens for calls over HTTPS", apiTokensAdd(e), apiTokensList(e), apiTokensRemove(e))
}

func (e *env) apiTokens() accessdv1connect.APITokenServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewAPITokenServiceClient)
}

type apiTokensAddOptions struct {
	ttl  time.Duration
	note string
	show tokenOutput
}

func apiTokensAdd(e *env) *cobra.Command {
	var o apiTokensAddOptions
	c := &cobra.Command{
		Use:   "add [--ttl D] [--note TEXT]",
		Short: "Make a token with which a program calls the services over HTTPS as you",
		Long: "Make a token with which a program calls the services over HTTPS as you: it may\n" +
			"what your certificate lets you, where that is good and no longer than that,\n" +
			"except make certificates and tokens. It is shown this once.",
		Args: want(),
		RunE: verb(func(ctx context.Context, _ []string) error { return e.addAPIToken(ctx, o) }),
	}
	c.Flags().DurationVar(&o.ttl, "ttl", time.Hour, "how long it may be used")
	c.Flags().StringVar(&o.note, "note", "", "what it is for")
	o.show.flags(c)
	return c
}

func (e *env) addAPIToken(ctx context.Context, o apiTokensAddOptions) error {
	if err := o.show.check(); err != nil {
		return err
	}
	res, err := e.apiTokens().AddAPIToken(ctx, connect.NewRequest(&accessdv1.AddAPITokenRequest{Ttl: durationpb.New(o.ttl), Note: o.note}))
	if err != nil {
		return err
	}
	t := res.Msg.GetToken()
	return e.showToken(o.show, t, res.Msg.GetSecret(), func() {
		e.say("good until %s, for example:", localTime(t.GetExpires()))
		e.say("  curl -H \"Authorization: Bearer TOKEN\" --json {} https://PROXY:PORT/accessd.v1.NodeService/ListNodes")
	})
}

func apiTokensList(e *env) *cobra.Command {
	var f format
	var all bool
	c := &cobra.Command{
		Use:   "ls",
		Short: "List your tokens, without their secrets",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			res, err := e.apiTokens().ListAPITokens(ctx, connect.NewRequest(&accessdv1.ListAPITokensRequest{All: all}))
			if err != nil {
				return err
			}
			return list[*accessdv1.APIToken]{
				head: []string{"ID", "USER", "MADE", "EXPIRES", "FROM", "NOTE"},
				rows: res.Msg.GetTokens(),
				row: func(t *accessdv1.APIToken) []string {
					return []string{t.GetId(), t.GetUser(), localTime(t.GetCreated()), localTime(t.GetExpires()), t.GetClient(), t.GetNote()}
				},
			}.print(e.stdout, f)
		}),
	}
	c.Flags().BoolVar(&all, "all", false, "everybody's, for whoever may read users")
	addFormat(c, &f)
	return c
}

func apiTokensRemove(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "rm ID",
		Short: "End a token",
		Args:  want("ID"),
		RunE: verb(func(ctx context.Context, args []string) error {
			id, _, _ := strings.Cut(strings.TrimPrefix(args[0], "accessd-api-"), ".") // a whole token names itself too
			_, err := e.apiTokens().RemoveAPIToken(ctx, connect.NewRequest(&accessdv1.RemoveAPITokenRequest{Id: id}))
			return err
		}),
	}
}

// keepAPIToken makes a token with the certificate of a sign-in and keeps it in a
// file.
func (s *signingIn) keepAPIToken(ctx context.Context, key ssh.Signer, cert *ssh.Certificate) error {
	check, _, err := s.hostKeys()
	if err != nil {
		return err
	}
	signer, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		return err
	}
	c, err := client.Dial(ctx, client.Config{Address: s.proxy, User: s.user, Signer: signer, HostKey: check})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // nothing is left on it
	res, err := rpc.Service(c.HTTP(), accessdv1connect.NewAPITokenServiceClient).
		AddAPIToken(ctx, connect.NewRequest(&accessdv1.AddAPITokenRequest{Ttl: durationpb.New(s.tokenTTL), Note: "accessd login"}))
	if err != nil {
		return err
	}
	if err := writeFile(s.token, []byte(res.Msg.GetSecret()+"\n"), 0o600); err != nil {
		return err
	}
	s.say("an API token, good until %s, is in %s", localTime(res.Msg.GetToken().GetExpires()), s.token)
	return nil
}
