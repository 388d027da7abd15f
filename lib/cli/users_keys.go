package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

func usersKeysCommand(e *env) *cobra.Command {
	return noun("keys", "Manage public keys of clients that know no certificates", usersKeysAdd(e), usersKeysList(e), usersKeysRemove(e))
}

func usersKeysAdd(e *env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "add USER FILE",
		Short: "Enrol a public key; it signs in where a role has plain_keys",
		Long: "Enrol a public key, from a file or - for stdin, for a client that knows no\n" +
			"certificates. Whoever holds the key is that person without a second factor,\n" +
			"with those of the person's roles only that have the option plain_keys.",
		Args: want("USER", "FILE"),
		RunE: verb(func(ctx context.Context, args []string) error {
			keys, err := e.readKeys(args[1])
			if err != nil {
				return err
			}
			if len(keys) > 1 {
				return fault.New(fault.BadInput, "%q holds %d keys: want one", args[1], len(keys))
			}
			res, err := e.users().AddUserKey(ctx, connect.NewRequest(&accessdv1.AddUserKeyRequest{User: args[0], PublicKey: keys[0]}))
			if err != nil {
				return err
			}
			return userKeys(res.Msg.GetKey()).print(e.stdout, f)
		}),
	}
	addFormat(c, &f)
	return c
}

func usersKeysList(e *env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "ls [USER]",
		Short: "List enrolled keys, of one person or of everybody",
		Args:  cobra.MaximumNArgs(1),
		RunE: verb(func(ctx context.Context, args []string) error {
			req := &accessdv1.ListUserKeysRequest{}
			if len(args) > 0 {
				req.User = args[0]
			}
			res, err := e.users().ListUserKeys(ctx, connect.NewRequest(req))
			if err != nil {
				return err
			}
			return userKeys(res.Msg.GetKeys()...).print(e.stdout, f)
		}),
	}
	addFormat(c, &f)
	return c
}

func userKeys(keys ...*accessdv1.UserKey) list[*accessdv1.UserKey] {
	return list[*accessdv1.UserKey]{
		head: []string{"USER", "FINGERPRINT", "COMMENT", "ADDED"},
		rows: keys,
		row: func(k *accessdv1.UserKey) []string {
			return []string{k.GetUser(), k.GetFingerprint(), k.GetComment(), localTime(k.GetAdded())}
		},
	}
}

func usersKeysRemove(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "rm USER FINGERPRINT",
		Short: "Forget an enrolled key",
		Args:  want("USER", "FINGERPRINT"),
		RunE: verb(func(ctx context.Context, args []string) error {
			_, err := e.users().RemoveUserKey(ctx, connect.NewRequest(&accessdv1.RemoveUserKeyRequest{User: args[0], Fingerprint: args[1]}))
			return err
		}),
	}
}
