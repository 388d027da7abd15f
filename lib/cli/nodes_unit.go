package cli

import (
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// unitConfig is what the units of one node say.
type unitConfig struct {
	Name       names.NodeName
	Host, Port string // of the proxy
	Key        string
	KnownHosts string
	Authority  []string // public keys of the host CA
	UserCA     string   // where "nodes setup-sshd" puts those of the sshd CA
}

// unitTemplate holds the files of a machine that dials home with a stock ssh.
// Whatever stands in a command is a name, a path or an address in a grammar that
// has no character with a meaning to systemd or to a shell.
//
// The certificate is renewed by a connection of its own, into a file that takes
// the old one's place when it is whole; the tunnel takes it when it dials next. In
// the same way the authorities' keys are fetched, so that the machine follows when
// those are rotated: whom ssh believes, and whom sshd lets in where it is told. What
// is locked is fetched each minute, over the tunnel's connection while that is up.
// What fetches has a time to do it in: systemd gives such a command for ever by
// itself, and one that waits for a network that has forgotten it would be the last.
var unitTemplate = template.Must(template.New("unit").Parse(`{{define "ssh"}}/usr/bin/ssh -F none -p {{.Port}} -i {{.Key}} -o CertificateFile={{.Key}}-cert.pub -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile={{.KnownHosts}} -o GlobalKnownHostsFile=none -o StrictHostKeyChecking=yes{{end -}}
# {{.KnownHosts}}
{{- range .Authority}}
@cert-authority * {{.}}
{{- end}}

# /etc/systemd/system/accessd-{{.Name}}.service
[Unit]
Description=accessd: {{.Name}} dials home
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart={{template "ssh" .}} -N -T -o ControlMaster=yes -o ControlPath={{.Key}}.ctl -o ExitOnForwardFailure=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=3 -R 22:localhost:22 {{.Name}}@{{.Host}}
Restart=always
RestartSec=5

[Install]
WantedBy=multi-user.target

# /etc/systemd/system/accessd-{{.Name}}-renew.service
[Unit]
Description=accessd: renew the certificate of {{.Name}} and the authorities' keys

[Service]
Type=oneshot
TimeoutStartSec=5min
ExecStart=/bin/sh -c '{{template "ssh" .}} {{.Name}}@{{.Host}} join > {{.Key}}-cert.new && mv {{.Key}}-cert.new {{.Key}}-cert.pub'
ExecStart=/bin/sh -c '{{template "ssh" .}} {{.Name}}@{{.Host}} host-ca > {{.KnownHosts}}.new && mv {{.KnownHosts}}.new {{.KnownHosts}}'
ExecStart=/bin/sh -c 'test ! -e {{.UserCA}} || { {{template "ssh" .}} {{.Name}}@{{.Host}} sshd-ca > {{.UserCA}}.new && mv {{.UserCA}}.new {{.UserCA}}; }'

# /etc/systemd/system/accessd-{{.Name}}-renew.timer
[Unit]
Description=accessd: renew the certificate of {{.Name}} every day

[Timer]
OnCalendar=daily
RandomizedDelaySec=6h
Persistent=true

[Install]
WantedBy=timers.target

# /etc/systemd/system/accessd-{{.Name}}-krl.service
[Unit]
Description=accessd: fetch what is locked on {{.Name}}

[Service]
Type=oneshot
TimeoutStartSec=50s
ExecStart=/bin/sh -c '{{template "ssh" .}} -o ControlPath={{.Key}}.ctl {{.Name}}@{{.Host}} krl > {{.Key}}.krl.new && mv {{.Key}}.krl.new {{.Key}}.krl'

# /etc/systemd/system/accessd-{{.Name}}-krl.timer
[Unit]
Description=accessd: fetch what is locked on {{.Name}} every minute

[Timer]
OnCalendar=minutely
AccuracySec=1s

[Install]
WantedBy=timers.target
`))

func nodesUnit(e *env) *cobra.Command {
	var proxy, key string
	c := &cobra.Command{
		Use:   "unit NAME --proxy HOST:PORT [--key FILE]",
		Short: "Print systemd units with which a machine dials home by stock ssh",
		Long: "Print the files with which a machine that has only ssh and sshd becomes a node:\n" +
			"a service that keeps \"ssh -N -R 22:localhost:22\" up through any NAT, a timer that\n" +
			"renews its certificate, and one that fetches the list of what is locked. Once that\n" +
			"is there, \"RevokedKeys /etc/accessd/NAME.krl\" in sshd_config has sshd read it; an\n" +
			"sshd that cannot read the file lets nobody in. Each file begins with a line that\n" +
			"names it.",
		Args: want("NAME"),
		RunE: verb(func(ctx context.Context, args []string) error { return e.printUnit(ctx, args[0], proxy, key) }),
	}
	c.Flags().StringVar(&proxy, "proxy", "", "host:port of the proxy (default the cluster's first)")
	c.Flags().StringVar(&key, "key", "", "private key file on that machine (default /etc/accessd/NAME)")
	return c
}

// unitPath is the grammar of a path in a unit: nothing that systemd or a shell
// would read as more than a path.
var unitPath = regexp.MustCompile(`^/[A-Za-z0-9/._-]+$`)

func (e *env) printUnit(ctx context.Context, name, proxy, key string) error {
	cfg := unitConfig{Key: key, UserCA: filepath.Join("/etc/ssh", userCAFile)}
	var err error
	if cfg.Name, err = names.ParseNodeName(name); err != nil {
		return err
	}
	if len(name) > maxUserName {
		return fault.New(fault.BadInput, "node name %q: want at most %d characters to sign in with", name, maxUserName)
	}
	if cfg.Key == "" {
		cfg.Key = "/etc/accessd/" + name
	}
	if !unitPath.MatchString(cfg.Key) || filepath.Clean(cfg.Key) != cfg.Key {
		return fault.New(fault.BadInput, "--key: %q: want an absolute path of letters, digits and . _ -", cfg.Key)
	}
	cfg.KnownHosts = filepath.Join(filepath.Dir(cfg.Key), "known_hosts")
	ca, err := e.exportCA(ctx, "host")
	if err != nil {
		return err
	}
	cfg.Authority = ca.GetPublicKeys()
	if proxy == "" && len(ca.GetProxyAddresses()) > 0 {
		proxy = ca.GetProxyAddresses()[0]
	}
	if proxy == "" {
		return fault.New(fault.NotFound, "the cluster has no proxy").WithHint("name one with --proxy HOST:PORT")
	}
	if cfg.Host, cfg.Port, err = proxyAddress(proxy); err != nil {
		return err
	}
	e.say("on the machine, once:")
	e.say("  ssh-keygen -t ed25519 -N '' -f %s", cfg.Key)
	e.say("  ssh -p %s -i %s -o UserKnownHostsFile=%s %s@%s join > %s-cert.pub", cfg.Port, cfg.Key, cfg.KnownHosts, name, cfg.Host, cfg.Key)
	e.say("  (it asks for the token that \"accessd tokens add --names %s\" prints)", name)
	e.say("  systemctl enable --now accessd-%[1]s.service accessd-%[1]s-renew.timer accessd-%[1]s-krl.timer", name)
	return unitTemplate.Execute(e.stdout, cfg)
}

// maxUserName is the longest name that signs in at a proxy, where a node of stock
// ssh is one, in bytes.
const maxUserName = 63

// proxyAddress parts a proxy's address, in the grammar of host names and
// addresses.
func proxyAddress(s string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(s)
	if err != nil {
		return "", "", fault.New(fault.BadInput, "--proxy: %q: want HOST:PORT", s)
	}
	addr, addrErr := netip.ParseAddr(host)
	_, nameErr := names.ParseNodeName(host)
	n, portErr := strconv.ParseUint(port, 10, 16)
	if addrErr != nil && nameErr != nil && host != "localhost" || addr.Zone() != "" || portErr != nil || n == 0 {
		return "", "", fault.New(fault.BadInput, "--proxy: %q: want HOST:PORT", s)
	}
	return host, port, nil
}
