package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/accessd/accessd/lib/config"
	"github.com/accessd/accessd/lib/daemon"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// serverCommands are the verbs that serve; they exist on Linux only.
func serverCommands(e *env) []*cobra.Command {
	return []*cobra.Command{startCommand(e), quickstartCommand(e)}
}

type startOptions struct {
	config, listen, clusterName string
	roles, join, caPins         []string
	token, tokenFile            string
	nodeName, labels            string
	publicAddresses             []string
	logLevel, logFormat         string
}

func startCommand(e *env) *cobra.Command {
	var o startOptions
	c := &cobra.Command{
		Use:   "start",
		Short: "Run the authority, the proxy and a node, or any of them",
		Long: "Run any of the roles auth, proxy and node; by default all, on an empty directory\n" +
			"as on an old one. Prints one line that begins with \"ready\" once every role serves.\n" +
			"SIGTERM lets sessions finish and ends with exit code 0.",
		Args: want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			cfg, err := e.startConfig(o)
			if err != nil {
				return err
			}
			return e.start(ctx, cfg)
		}),
	}
	fl := c.Flags()
	fl.StringVar(&o.config, "config", "", "configuration file; flags go before it")
	fl.StringVar(&o.listen, "listen", "", "address to listen on (default 0.0.0.0:3022)")
	fl.StringSliceVar(&o.roles, "roles", nil, "auth, proxy, node (default all)")
	fl.StringVar(&o.clusterName, "cluster-name", "", "name of a new cluster")
	fl.StringSliceVar(&o.join, "join", nil, "host:port of the cluster to join")
	fl.StringVar(&o.token, "token", "", "join token, for the first start; better --token-file")
	fl.StringVar(&o.tokenFile, "token-file", "", "file with the join token")
	fl.StringSliceVar(&o.caPins, "ca-pin", nil, "sha256:… of the cluster's host CA")
	fl.StringVar(&o.nodeName, "node-name", "", "name in the cluster (default the host's name)")
	fl.StringVar(&o.labels, "labels", "", "labels of the node, key=value,…")
	fl.StringSliceVar(&o.publicAddresses, "public-address", nil, "host[:port] under which this proxy is reached")
	fl.StringVar(&o.logLevel, "log-level", "", "debug, info, warn or error")
	fl.StringVar(&o.logFormat, "log-format", "", "console or json")
	return c
}

// startConfig reads the file and lets flags override it.
func (e *env) startConfig(o startOptions) (*config.Config, error) {
	cfg, err := config.Load(o.config)
	if err != nil {
		return nil, err
	}
	if e.dataDir != "" || cfg.DataDir == "" {
		cfg.DataDir = e.dir()
	}
	override(&cfg.Listen, o.listen)
	override(&cfg.ClusterName, o.clusterName)
	override(&cfg.Join.Token, o.token)
	override(&cfg.Join.TokenFile, o.tokenFile)
	override(&cfg.Node.Name, o.nodeName)
	override(&cfg.Log.Level, o.logLevel)
	override(&cfg.Log.Format, o.logFormat)
	overrideList(&cfg.Roles, o.roles)
	overrideList(&cfg.Join.Addresses, o.join)
	overrideList(&cfg.Join.CAPins, o.caPins)
	overrideList(&cfg.PublicAddresses, o.publicAddresses)
	if o.labels != "" {
		labels, err := names.ParseLabels(o.labels)
		if err != nil {
			return nil, fault.New(fault.BadInput, "--labels: %w", err)
		}
		cfg.Node.Labels = labels
	}
	return cfg, cfg.Check()
}

func override(field *string, flag string) {
	if flag != "" {
		*field = flag
	}
}

func overrideList(field *[]string, flag []string) {
	if len(flag) > 0 {
		*field = flag
	}
}

// start runs a daemon until ctx ends and prints the ready line.
func (e *env) start(ctx context.Context, cfg *config.Config) error {
	// A terminal that goes away does not stop a server; being notified, rather
	// than ignoring the signal, keeps it alive in the processes of sessions. They
	// also inherit the umask, which is to be a login's, not the caller's.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	syscall.Umask(0o022)
	d, err := daemon.New(cfg, daemon.Options{Stderr: e.stderr, Verbs: RunAs})
	if err != nil {
		return err
	}
	return serve(ctx, d, func(context.Context) error {
		_, err := fmt.Fprintln(e.stdout, "ready", d.Status())
		return err
	})
}

// serve runs d, calls then once every role serves, and waits for d's end. An
// error of then ends d.
func serve(ctx context.Context, d *daemon.Daemon, then func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	select {
	case err := <-done:
		return err
	case <-d.Ready():
	}
	if err := then(ctx); err != nil {
		cancel(err)
		return errors.Join(err, <-done)
	}
	return <-done
}
