package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// Names of the files that a plain sshd gets, below the directory of its
// configuration.
const (
	userCAFile = "accessd_user_ca.pub"
	dropInFile = "sshd_config.d/accessd.conf"
	certSuffix = "-cert.pub" // in place of a host key's ".pub"
)

// sshdSetup is what a plain sshd needs to be a node.
type sshdSetup struct {
	Node        string   `json:"node,omitempty"`
	Authority   []string `json:"user_ca"`                    // keys of the sshd CA
	HostKey     string   `json:"host_key,omitempty"`         // of the machine, public
	Certificate string   `json:"host_certificate,omitempty"` // for that key
}

type setupOptions struct {
	hostKey, login, from string
	dir, config          string
	apply                bool
	format               format
}

func nodesSetupSSHD(e *env) *cobra.Command {
	var o setupOptions
	c := &cobra.Command{
		Use:   "setup-sshd [NAME] [--host-key FILE] [--apply]",
		Short: "Print, or on the machine itself apply, what a plain sshd needs to be a node",
		Long: "A plain sshd needs two lines: one that makes it trust the cluster's sshd CA, which\n" +
			"signs for one login and one session at a time, and one for a host certificate, by\n" +
			"which proxies know it. Without --apply the files are printed, each under a line\n" +
			"that names it. With --apply, as root on the machine itself, they are written, sshd\n" +
			"checks them, and if it refuses or reads them otherwise everything is as before.\n" +
			"What --format json prints on the authority's machine, --from takes on the node's.",
		Args: cobra.MaximumNArgs(1),
		RunE: verb(func(ctx context.Context, args []string) error {
			return e.setupSSHD(ctx, strings.Join(args, ""), o)
		}),
	}
	c.Flags().StringVar(&o.hostKey, "host-key", "", "public host key file of the machine (with --apply default ssh_host_ed25519_key.pub)")
	c.Flags().StringVar(&o.login, "login", "LOGIN", "login in the line for authorized_keys")
	c.Flags().BoolVar(&o.apply, "apply", false, "write the files here and let sshd check them")
	c.Flags().StringVar(&o.from, "from", "", "file that --format json printed, or - for stdin; with --apply")
	c.Flags().StringVar(&o.dir, "dir", "/etc/ssh", "directory of sshd's files")
	c.Flags().StringVar(&o.config, "sshd-config", "", "sshd's configuration (default sshd_config in the directory)")
	addFormat(c, &o.format)
	return c
}

func (e *env) setupSSHD(ctx context.Context, node string, o setupOptions) error {
	if !filepath.IsAbs(o.dir) || strings.ContainsAny(o.dir, " \t\r\n\"'#%") {
		return fault.New(fault.BadInput, "--dir: %q: want an absolute path without blanks and quotes", o.dir)
	}
	if o.from != "" && (!o.apply || node != "") {
		return fault.New(fault.BadInput, "--from goes with --apply and without a name")
	}
	if o.login != "LOGIN" {
		if _, err := names.ParseLogin(o.login); err != nil {
			return fault.New(fault.BadInput, "--login: %w", err)
		}
	}
	o.config = cmp.Or(o.config, filepath.Join(o.dir, "sshd_config"))
	if o.apply {
		o.hostKey = cmp.Or(o.hostKey, filepath.Join(o.dir, "ssh_host_ed25519_key.pub"))
	}
	s, err := e.sshdSetup(ctx, node, o)
	if err != nil {
		return err
	}
	if o.apply {
		return e.applySetup(ctx, s, o)
	}
	if o.format != formatTable {
		return printValue(e.stdout, o.format, s)
	}
	return e.printSetup(s, o)
}

// sshdSetup asks the authority for what a plain sshd needs, or reads it.
func (e *env) sshdSetup(ctx context.Context, node string, o setupOptions) (sshdSetup, error) {
	s := sshdSetup{Node: node}
	if o.from != "" {
		text, err := e.readInput(o.from, maxKeyFile)
		if err != nil {
			return s, err
		}
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&s); err != nil {
			return s, fault.New(fault.BadInput, "--from: %w", err)
		}
		return s, s.check()
	}
	ca, err := e.exportCA(ctx, "sshd")
	if err != nil {
		return s, err
	}
	s.Authority = ca.GetPublicKeys()
	if node != "" && o.hostKey != "" {
		keys, err := e.readKeys(o.hostKey)
		if err != nil {
			return s, err
		}
		if len(keys) > 1 {
			return s, fault.New(fault.BadInput, "--host-key: %q holds %d keys: want one", o.hostKey, len(keys))
		}
		res, err := e.nodes().SignHostKey(ctx, connect.NewRequest(&accessdv1.SignHostKeyRequest{Node: node, PublicKey: keys[0]}))
		if err != nil {
			return s, err
		}
		s.HostKey, s.Certificate = keys[0], res.Msg.GetCertificate()
	}
	return s, s.check()
}

// check refuses what would not be what it says in sshd's files.
func (s sshdSetup) check() error {
	if len(s.Authority) == 0 {
		return fault.New(fault.BadInput, "there is no key of the sshd CA")
	}
	for _, line := range s.Authority {
		if _, err := keyOn(line); err != nil {
			return fault.New(fault.BadInput, "sshd CA: %w", err)
		}
	}
	if s.Certificate == "" {
		return nil
	}
	host, err := keyOn(s.HostKey)
	if err != nil {
		return fault.New(fault.BadInput, "host key: %w", err)
	}
	key, err := keyOn(s.Certificate)
	if err != nil {
		return fault.New(fault.BadInput, "host certificate: %w", err)
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok || cert.CertType != ssh.HostCert || !bytes.Equal(cert.Key.Marshal(), host.Marshal()) {
		return fault.New(fault.BadInput, "the host certificate is not one for the host key")
	}
	return nil
}

// keyOn reads the public key or certificate on one line of authorized_keys
// without options.
func keyOn(line string) (ssh.PublicKey, error) {
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(options) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fault.New(fault.BadInput, "want one public key on one line")
	}
	return key, nil
}

// authorityText is the file of keys that sshd trusts.
func (s sshdSetup) authorityText() string { return strings.Join(s.Authority, "\n") + "\n" }

// configText is what sshd is told, with its files in dir.
func (s sshdSetup) configText(dir, certificate string) string {
	text := "TrustedUserCAKeys " + filepath.Join(dir, userCAFile) + "\n"
	if s.Certificate != "" {
		text += "HostCertificate " + certificate + "\n"
	}
	return text
}

// certificatePath is where the certificate of a host key goes: beside it.
func (s sshdSetup) certificatePath(o setupOptions) string {
	if o.apply {
		return strings.TrimSuffix(o.hostKey, ".pub") + certSuffix
	}
	kind := "ed25519"
	if key, err := keyOn(s.HostKey); err == nil {
		switch {
		case key.Type() == ssh.KeyAlgoRSA:
			kind = "rsa"
		case strings.HasPrefix(key.Type(), "ecdsa-"):
			kind = "ecdsa"
		}
	}
	return filepath.Join(o.dir, "ssh_host_"+kind+"_key"+certSuffix)
}

func (e *env) printSetup(s sshdSetup, o setupOptions) error {
	certificate := s.certificatePath(o)
	fmt.Fprintf(e.stdout, "# %s\n%s", filepath.Join(o.dir, userCAFile), s.authorityText())
	if s.Certificate != "" {
		fmt.Fprintf(e.stdout, "\n# %s\n%s\n", certificate, strings.TrimSpace(s.Certificate))
	}
	if _, err := fmt.Fprintf(e.stdout, "\n# %s\n%s", filepath.Join(o.dir, dropInFile), s.configText(o.dir, certificate)); err != nil {
		return err
	}
	e.say("put these files on the machine as root, then: sshd -t && systemctl reload ssh")
	if s.Certificate == "" {
		e.say("for a host certificate name the node and its key: setup-sshd NAME --host-key FILE")
	}
	e.say("without root, a line in ~/.ssh/authorized_keys lets the cluster in as that account only:")
	for _, key := range s.Authority {
		e.say("  cert-authority,principals=\"%s\" %s", o.login, key)
	}
	return nil
}
