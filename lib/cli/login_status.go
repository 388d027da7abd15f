package cli

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
)

// signedInAs is what "status" says of a certificate.
type signedInAs struct {
	User        string   `json:"user"`
	Logins      []string `json:"logins"`
	Fingerprint string   `json:"fingerprint"`
	Serial      string   `json:"serial"`
	Until       string   `json:"valid_until"`
	Certificate string   `json:"certificate"`
}

func statusCommand(e *env) *cobra.Command {
	var identity string
	var f format
	c := &cobra.Command{
		Use:   "status",
		Short: "Say as whom you are signed in, and until when",
		Args:  want(),
		RunE: verb(func(context.Context, []string) error {
			path, err := identityPath(identity)
			if err != nil {
				return err
			}
			cert, err := readCertificate(path + "-cert.pub")
			if errors.Is(err, fs.ErrNotExist) || (err == nil && !time.Now().Before(certEnd(cert))) {
				return fault.New(fault.NotFound, "you are not signed in").WithHint("run \"accessd login\"")
			}
			if err != nil {
				return err
			}
			s := signedInAs{
				User: cert.KeyId, Logins: cert.ValidPrincipals, Fingerprint: ssh.FingerprintSHA256(cert.Key),
				Serial: strconv.FormatUint(cert.Serial, 10), Until: certEnd(cert).UTC().Format(time.RFC3339), Certificate: path + "-cert.pub",
			}
			if f != formatTable {
				return printValue(e.stdout, f, s)
			}
			return printTable(e.stdout, []string{"USER", "LOGINS", "KEY", "VALID UNTIL"}, [][]string{
				{s.User, strings.Join(s.Logins, ","), s.Fingerprint, certEnd(cert).Local().Format(time.DateTime)},
			})
		}),
	}
	identityFlag(c, &identity)
	addFormat(c, &f)
	return c
}

func logoutCommand(e *env) *cobra.Command {
	var identity string
	c := &cobra.Command{
		Use:   "logout",
		Short: "Forget the certificate, and the key if login made it",
		Args:  want(),
		RunE: verb(func(context.Context, []string) error {
			path, err := identityPath(identity)
			if err != nil {
				return err
			}
			files := []string{path + "-cert.pub"}
			public, err := readBounded(path+".pub", maxKeyFile)
			if err == nil && strings.HasSuffix(strings.TrimSpace(string(public)), " "+keyComment) {
				files = append(files, path, path+".pub") // a sign-in of lately is worth nothing without it
			}
			for _, file := range files {
				if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return fault.New(fault.BadInput, "%w", err)
				}
			}
			e.say("signed out: this machine has no certificate any more")
			return nil
		}),
	}
	identityFlag(c, &identity)
	return c
}
