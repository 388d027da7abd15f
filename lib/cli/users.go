package cli

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

func usersCommand(e *env) *cobra.Command {
	return noun("users", "Manage the people of the cluster",
		usersAdd(e), usersList(e), usersRemove(e), usersReset(e), usersSign(e), usersKeysCommand(e), authenticatorsCommand(e))
}

func usersAdd(e *env) *cobra.Command {
	var (
		roles, logins []string
		traits        string
		ttl           time.Duration
		f             format
	)
	c := &cobra.Command{
		Use:   "add NAME --roles R,… [--logins L,…] [--traits K=V,…]",
		Short: "Add a person and print a one-time invite",
		Args:  want("NAME"),
		RunE: verb(func(ctx context.Context, args []string) error {
			t, err := parsePairs("traits", traits)
			if err != nil {
				return err
			}
			req := &accessdv1.AddUserRequest{Name: args[0], Roles: roles, Logins: logins, Traits: map[string]*accessdv1.Values{}, InviteTtl: durationpb.New(ttl)}
			for k, v := range t {
				req.Traits[k] = &accessdv1.Values{Values: strings.Split(v, "|")}
			}
			res, err := e.users().AddUser(ctx, connect.NewRequest(req))
			if err != nil {
				return err
			}
			return e.printInvite(f, args[0], res.Msg.GetInvite(), res.Msg.GetInviteExpires())
		}),
	}
	c.Flags().StringSliceVar(&roles, "roles", nil, "roles, comma separated")
	c.Flags().StringSliceVar(&logins, "logins", nil, "logins on nodes that {{user.logins}} stands for")
	c.Flags().StringVar(&traits, "traits", "", "traits that roles may use, key=value|value,…")
	c.Flags().DurationVar(&ttl, "invite-ttl", 0, "lifetime of the invite (default 24h)")
	addFormat(c, &f)
	_ = c.MarkFlagRequired("roles") // the flag exists
	return c
}

// printInvite writes the invite to stdout and what to do with it to stderr.
func (e *env) printInvite(f format, user, invite string, expires *timestamppb.Timestamp) error {
	if f != formatTable {
		return printValue(e.stdout, f, map[string]any{"user": user, "invite": invite, "invite_expires": expires.AsTime()})
	}
	e.say("%s signs in once with this invite, before %s:", user, localTime(expires))
	e.say("  ssh -p PORT %s@PROXY login", user)
	_, err := fmt.Fprintln(e.stdout, invite)
	return err
}

func usersList(e *env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "ls",
		Short: "List people",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			res, err := e.users().ListUsers(ctx, connect.NewRequest(&accessdv1.ListUsersRequest{}))
			if err != nil {
				return err
			}
			return list[*accessdv1.User]{
				head: []string{"NAME", "ROLES", "LOGINS", "SIGN-IN", "CREATED"},
				rows: res.Msg.GetUsers(),
				row: func(u *accessdv1.User) []string {
					return []string{u.GetName(), strings.Join(u.GetRoles(), ","), strings.Join(u.GetLogins(), ","), signIn(u), localTime(u.GetCreated())}
				},
			}.print(e.stdout, f)
		}),
	}
	addFormat(c, &f)
	return c
}

// signIn says in a word how u can sign in.
func signIn(u *accessdv1.User) string {
	switch {
	case u.GetHasPassword() && u.GetHasTotp() && u.GetHasPasskey():
		return "password+totp, passkey"
	case u.GetHasPassword() && u.GetHasTotp():
		return "password+totp"
	case u.GetHasPassword():
		return "password"
	case u.GetHasPasskey():
		return "passkey"
	case u.GetInviteExpires() != nil:
		return "invited"
	}
	return "signed only"
}

func usersRemove(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME",
		Short: "Remove a person; open sessions end",
		Args:  want("NAME"),
		RunE: verb(func(ctx context.Context, args []string) error {
			_, err := e.users().RemoveUser(ctx, connect.NewRequest(&accessdv1.RemoveUserRequest{Name: args[0]}))
			return err
		}),
	}
}

func usersReset(e *env) *cobra.Command {
	var (
		ttl time.Duration
		f   format
	)
	c := &cobra.Command{
		Use:   "reset NAME",
		Short: "Forget password and second factor and print a new invite",
		Args:  want("NAME"),
		RunE: verb(func(ctx context.Context, args []string) error {
			res, err := e.users().ResetUser(ctx, connect.NewRequest(&accessdv1.ResetUserRequest{Name: args[0], InviteTtl: durationpb.New(ttl)}))
			if err != nil {
				return err
			}
			return e.printInvite(f, args[0], res.Msg.GetInvite(), res.Msg.GetInviteExpires())
		}),
	}
	c.Flags().DurationVar(&ttl, "invite-ttl", 0, "lifetime of the invite (default 24h)")
	addFormat(c, &f)
	return c
}

// maxKeyFile bounds a public key file, in bytes; an RSA key of 4096 bits has 750.
const maxKeyFile = 64 << 10

func usersSign(e *env) *cobra.Command {
	var (
		key, out string
		ttl      time.Duration
		sources  []string
	)
	c := &cobra.Command{
		Use:   "sign NAME --public-key FILE [--ttl D] [--out FILE]",
		Short: "Issue a certificate for a public key",
		Args:  want("NAME"),
		RunE: verb(func(ctx context.Context, args []string) error {
			line, err := readBounded(key, maxKeyFile)
			if err != nil {
				return err
			}
			if ttl < 0 {
				return fault.New(fault.BadInput, "--ttl: %v: negative", ttl)
			}
			res, err := e.users().SignUser(ctx, connect.NewRequest(&accessdv1.SignUserRequest{
				Name: args[0], PublicKey: string(line), Ttl: durationpb.New(ttl), SourceAddresses: sources,
			}))
			if err != nil {
				return err
			}
			cert := []byte(strings.TrimRight(res.Msg.GetCertificate(), "\n") + "\n")
			if out == "" || out == "-" {
				_, err = e.stdout.Write(cert)
				return err
			}
			return writeFile(out, cert, 0o644)
		}),
	}
	c.Flags().StringVar(&key, "public-key", "", "file with one public key")
	c.Flags().StringVar(&out, "out", "", "where to put the certificate (default stdout)")
	c.Flags().DurationVar(&ttl, "ttl", 0, "lifetime of the certificate (default 12h)")
	c.Flags().StringSliceVar(&sources, "source-address", nil, "addresses or networks it may be used from")
	_ = c.MarkFlagRequired("public-key") // the flag exists
	return c
}

// readInput is readBounded with "-" for stdin, which is all that there is for a
// person at a proxy.
func (e *env) readInput(path string, limit int64) ([]byte, error) {
	if path == "-" {
		return readAll("stdin", e.stdin, limit)
	}
	if e.call != nil {
		return nil, fault.New(fault.BadInput, "%q: want -, which is stdin: your files are not at the proxy", path)
	}
	return readBounded(path, limit)
}

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.New(fault.BadInput, "read file: %w", err)
	}
	defer f.Close()
	return readAll(path, f, limit)
}
