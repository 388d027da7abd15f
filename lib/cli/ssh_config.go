package cli

import (
	"bytes"
	"cmp"
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// clientConfig is what an ssh_config for one person says.
type clientConfig struct {
	Cluster    string
	Host, Port string // of the proxy
	User       string // at the proxy
	Login      string // at nodes, unless the command line says otherwise
	Identity   string
	Cert       string
	KnownHosts string
	Nodes      []string
	Direct     []string // hosts that are not nodes: the proxies'
}

// The template quotes every path and puts no name into a command: a name that
// reached a shell has been a hole more than once (CVE-2023-51385).
var configTemplate = template.Must(template.New("ssh_config").Parse(`# ssh_config of cluster {{.Cluster}} for {{.User}}: ssh -F THIS_FILE NODE
Host accessd-proxy
  HostName {{.Host}}
  Port {{.Port}}
  User {{.User}}

# The nodes of today, for completion, and those that join later.
Host{{range .Nodes}} {{.}}{{end}} * !accessd-proxy{{range .Direct}} !{{.}}{{end}}
  ProxyJump accessd-proxy
{{- if .Login}}
  User {{.Login}}
{{- end}}

Host *
  IdentityFile "{{.Identity}}"
  CertificateFile "{{.Cert}}"
  IdentitiesOnly yes
  UserKnownHostsFile "{{.KnownHosts}}"
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
  UpdateHostKeys no
`))

type sshConfigOptions struct {
	identity, proxy, login, knownHosts string
}

func sshConfigCommand(e *env) *cobra.Command {
	var o sshConfigOptions
	c := &cobra.Command{
		Use:   "ssh-config --identity FILE [--proxy HOST:PORT]",
		Short: "Print an ssh_config with which the stock client reaches every node",
		Long: "Print an ssh_config for the person whose certificate lies beside the identity,\n" +
			"in FILE-cert.pub. The cluster's host CA goes into a known_hosts file beside it.",
		Args: want(),
		RunE: verb(func(ctx context.Context, _ []string) error { return e.sshConfig(ctx, o) }),
	}
	c.Flags().StringVar(&o.identity, "identity", "", "private key file")
	c.Flags().StringVar(&o.proxy, "proxy", "", "host:port of the proxy (default the cluster's first)")
	c.Flags().StringVar(&o.login, "login", "", "login on nodes (default the certificate's first)")
	c.Flags().StringVar(&o.knownHosts, "known-hosts", "", "file to write the host CA to (default accessd_known_hosts beside the identity)")
	_ = c.MarkFlagRequired("identity") // the flag exists
	return c
}

func (e *env) sshConfig(ctx context.Context, o sshConfigOptions) error {
	identity, err := filepath.Abs(o.identity)
	if err != nil {
		return fault.New(fault.BadInput, "--identity: %w", err)
	}
	if strings.ContainsAny(identity, "\"\n%") {
		return fault.New(fault.BadInput, "--identity: %q: a quote, a newline or a %% cannot stand in an ssh_config", identity)
	}
	cert, err := readCertificate(identity + "-cert.pub")
	if err != nil {
		return err
	}
	cfg := clientConfig{User: cert.KeyId, Identity: identity, Cert: identity + "-cert.pub", Login: o.login}
	if _, err := names.ParseUserName(cfg.User); err != nil {
		return fault.New(fault.BadInput, "certificate %q: key id: %w", cfg.Cert, err)
	}
	if cfg.Login == "" {
		cfg.Login = firstLogin(cert)
	} else if _, err := names.ParseLogin(cfg.Login); err != nil {
		return fault.New(fault.BadInput, "--login: %w", err)
	}
	cfg.KnownHosts = cmp.Or(o.knownHosts, filepath.Join(filepath.Dir(identity), "accessd_known_hosts"))
	return e.writeConfig(ctx, cfg, o.proxy)
}

// writeConfig asks the cluster for what cfg lacks, writes the known_hosts file
// and prints the rest.
func (e *env) writeConfig(ctx context.Context, cfg clientConfig, proxy string) error {
	ca, err := e.exportCA(ctx, "host")
	if err != nil {
		return err
	}
	cfg.Cluster = ca.GetClusterName()
	if proxy == "" && len(ca.GetProxyAddresses()) > 0 {
		proxy = ca.GetProxyAddresses()[0]
	}
	if proxy == "" {
		return fault.New(fault.NotFound, "the cluster has no proxy").WithHint("name one with --proxy HOST:PORT")
	}
	if cfg.Host, cfg.Port, err = net.SplitHostPort(proxy); err != nil {
		return fault.New(fault.BadInput, "--proxy: %q: want host:port", proxy)
	}
	cfg.Direct = []string{cfg.Host}
	for _, addr := range ca.GetProxyAddresses() {
		if host, _, err := net.SplitHostPort(addr); err == nil && !slices.Contains(cfg.Direct, host) {
			cfg.Direct = append(cfg.Direct, host)
		}
	}
	res, err := e.nodes().ListNodes(ctx, connect.NewRequest(&accessdv1.ListNodesRequest{}))
	if err != nil {
		return err
	}
	for _, n := range res.Msg.GetNodes() {
		cfg.Nodes = append(cfg.Nodes, n.GetName())
	}
	slices.Sort(cfg.Nodes)
	var hosts bytes.Buffer
	if err := (&env{stdout: &hosts}).printCA(ca, "known-hosts"); err != nil {
		return err
	}
	if cfg.KnownHosts, err = filepath.Abs(cfg.KnownHosts); err != nil {
		return fault.New(fault.BadInput, "--known-hosts: %w", err)
	}
	if err := writeFile(cfg.KnownHosts, hosts.Bytes(), 0o644); err != nil {
		return err
	}
	return configTemplate.Execute(e.stdout, cfg)
}

// readCertificate reads one OpenSSH certificate in authorized_keys form.
func readCertificate(path string) (*ssh.Certificate, error) {
	line, err := readBounded(path, maxKeyFile)
	if err != nil {
		return nil, withSignHint(err)
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return nil, fault.New(fault.BadInput, "certificate %q: %w", path, err)
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, fault.New(fault.BadInput, "certificate %q: a plain public key", path)
	}
	return cert, nil
}

func withSignHint(err error) error {
	if f, ok := err.(*fault.Error); ok { //nolint:errorlint // only the outermost may carry the hint
		return f.WithHint(`get a certificate with "ssh USER@PROXY login" or "accessd users sign"`)
	}
	return err
}

// firstLogin picks the login for an ssh_config: none when the local account's
// name is a login already, since ssh takes that by itself.
func firstLogin(cert *ssh.Certificate) string {
	var logins []string
	for _, p := range cert.ValidPrincipals {
		if _, err := names.ParseLogin(p); err == nil {
			logins = append(logins, p)
		}
	}
	if len(logins) == 0 || slices.Contains(logins, os.Getenv("USER")) {
		return ""
	}
	return logins[0]
}
