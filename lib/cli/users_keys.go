package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

func usersKeysCommand(e *env) *cobra.Command {
	return noun("keys", "Manage public keys of clients that know no certificates", usersKeysAdd(e), usersKeysList(e), usersKeysRemove(e), usersKeysChallenge(e))
}

func usersKeysAdd(e *env) *cobra.Command {
	var f format
	var attestation, challenge string
	c := &cobra.Command{
		Use:   "add USER FILE [--attestation FILE --challenge FILE]",
		Short: "Enrol a public key; it signs in where a role has plain_keys",
		Long: "Enrol a public key, from a file or - for stdin, for a client that knows no\n" +
			"certificates. Whoever holds the key is that person without a second factor,\n" +
			"with those of the person's roles only that have the option plain_keys.\n\n" +
			"A security key (sk-ssh-ed25519, sk-ecdsa) is a second factor, too. Where it is said\n" +
			"which of them count (users authenticators), it needs what its maker says of it:\n\n" +
			"  accessd users keys challenge alice >challenge\n" +
			"  ssh-keygen -t ed25519-sk -O challenge=challenge -O write-attestation=attestation",
		Args: want("USER", "FILE"),
		RunE: verb(func(ctx context.Context, args []string) error {
			keys, err := e.readKeys(args[1])
			if err != nil {
				return err
			}
			if len(keys) > 1 {
				return fault.New(fault.BadInput, "%q holds %d keys: want one", args[1], len(keys))
			}
			req := &accessdv1.AddUserKeyRequest{User: args[0], PublicKey: keys[0]}
			if attestation != "" {
				if req.Attestation, err = e.readInput(attestation, maxKeyFile); err != nil {
					return err
				}
				if req.Challenge, err = e.readInput(challenge, maxKeyFile); err != nil {
					return err
				}
			}
			res, err := e.users().AddUserKey(ctx, connect.NewRequest(req))
			if err != nil {
				return err
			}
			return userKeys(res.Msg.GetKey()).print(e.stdout, f)
		}),
	}
	c.Flags().StringVar(&attestation, "attestation", "", "what ssh-keygen -O write-attestation wrote")
	c.Flags().StringVar(&challenge, "challenge", "", "what it was made with; see users keys challenge")
	c.MarkFlagsRequiredTogether("attestation", "challenge")
	addFormat(c, &f)
	return c
}

func usersKeysChallenge(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "challenge USER",
		Short: "Print what a security key is to be made with",
		Long: "Print what a person gives to ssh-keygen -O challenge=FILE, so that what the maker\n" +
			"says of their security key is of now. It is good for a day, for one key of this person.",
		Args: want("USER"),
		RunE: verb(func(ctx context.Context, args []string) error {
			res, err := e.users().NewKeyChallenge(ctx, connect.NewRequest(&accessdv1.NewKeyChallengeRequest{User: args[0]}))
			if err != nil {
				return err
			}
			_, err = e.stdout.Write(res.Msg.GetChallenge()) // every byte counts: no newline
			return err
		}),
	}
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
